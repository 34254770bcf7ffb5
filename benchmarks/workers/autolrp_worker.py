"""autoLRP: rules by the names of autograd's nodes. The graph is walked anew in every call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import autolrp
import torch
from autolrp import ATTNLRP, BASE, CPLRP, ELEMENTWISE_NODES, LRPConfig, on

from benchmarks.workers._serve import TARGET, serve
from benchmarks.workers._torch import TorchWorker

CONFIGS: dict[str, LRPConfig] = {
    "epsilon": LRPConfig(eps=1e-6),
    "epsilon_plus": LRPConfig.composite(eps=1e-6),
    "attnlrp": LRPConfig(rule={**BASE, **ATTNLRP, **on(ELEMENTWISE_NODES, "yx")}),
    "cp_lrp": LRPConfig(rule={**BASE, **CPLRP, **on(ELEMENTWISE_NODES, "yx")}),
}


class AutoLRPWorker(TorchWorker):
    @contextlib.contextmanager
    def explanation(self, method: str) -> Iterator[Any]:
        yield lambda: self._explain(CONFIGS[method])

    def _explain(self, config: LRPConfig) -> torch.Tensor:
        x = autolrp.tensor(self.x)
        z = self.model(x)[:, TARGET].sum()
        z.lrp(config=config)
        return x.relevance * z.detach()  # it starts with one, relax with the logit


if __name__ == "__main__":
    serve(AutoLRPWorker)
