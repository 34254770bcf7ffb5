"""LXT, the efficient variant: it patches the modules of a process, so that each has one method."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.workers._serve import serve
from benchmarks.workers._torch import TorchWorker

from lxt.efficient import monkey_patch  # isort: skip (after torchvision)
from lxt.efficient.models import bert, llama, vit_torch

# Of a network: the patched module, and a method with what it patches.
PATCHES: dict[tuple[str, str], tuple[Any, Any]] = {
    ("Llama", "attnlrp"): (llama.modeling_llama, llama.attnLRP),
    ("Llama", "cp_lrp"): (llama.modeling_llama, llama.cp_LRP),
    ("BERT", "attnlrp"): (bert.modeling_bert, bert.attnLRP),
    ("ViT", "cp_lrp"): (vit_torch.vision_transformer, vit_torch.cp_LRP),
}


class LXTWorker(TorchWorker):
    patched: tuple[str, str] | None = None

    def load(self, network: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        self.network, self.weights, self.inputs = network, weights, x
        return super().load(network, weights, x)

    @contextlib.contextmanager
    def explanation(self, method: str) -> Iterator[Any]:
        wanted = (self.network, method)
        if self.patched is None:
            module, patches = PATCHES[wanted]
            monkey_patch(module, patches)
            self.patched = wanted
            super().load(self.network, self.weights, self.inputs)  # made of patched modules
        assert self.patched == wanted, f"{self.patched} is patched, {wanted} is asked for"
        yield self.gradient


if __name__ == "__main__":
    serve(LXTWorker)
