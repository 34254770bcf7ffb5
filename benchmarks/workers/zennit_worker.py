"""Zennit: its composites, with BatchNorm merged and residual sums as it wants them.

Hooks are registered and BatchNorms merged outside the time that is taken.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.workers import _torch_networks
from benchmarks.workers._problems import BOX
from benchmarks.workers._serve import TARGET, serve
from benchmarks.workers._torch import TorchWorker

from zennit.canonizers import SequentialMergeBatchNorm  # isort: skip (after torchvision)
from zennit.composites import COMPOSITES, LayerMapComposite, layer_map_base
from zennit.layer import Sum
from zennit.rules import Epsilon
from zennit.types import Linear

_torch_networks.NETWORKS["ResNet50"] = functools.partial(_torch_networks.resnet50, total=Sum)


def composite(method: str, x: torch.Tensor) -> Any:
    """A composite of Zennit under its name, or Epsilon on every affine layer, which it lacks."""
    merge = {"canonizers": [SequentialMergeBatchNorm()]}
    if method == "epsilon":
        return LayerMapComposite([*layer_map_base(), (Linear, Epsilon())], **merge)
    if method == "epsilon_gamma_box":
        merge |= {"low": torch.full_like(x, -BOX), "high": torch.full_like(x, BOX)}
    return COMPOSITES[method](**merge)


class ZennitWorker(TorchWorker):
    def load(self, network: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        logits = super().load(network, weights, x)
        self.target = torch.zeros(logits.shape)
        self.target[:, TARGET] = 1.0
        return logits

    @contextlib.contextmanager
    def explanation(self, method: str) -> Iterator[Any]:
        with composite(method, self.x).context(self.model) as model:
            yield lambda: self._explain(model)

    def _explain(self, model: torch.nn.Module) -> torch.Tensor:
        x = self.x.clone().requires_grad_()
        z = model(x)
        (relevance,) = torch.autograd.grad(z, x, z.detach() * self.target)
        return relevance


if __name__ == "__main__":
    serve(ZennitWorker)
