"""What the PyTorch peers share: the networks from arrays, and the gradient of autograd.

torchvision comes first: its compiled part does not load beside every build of PyTorch, and then
the import fails on operators that nothing here needs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.workers._serve import TARGET, THREADS, Worker

torch.set_num_threads(THREADS)
try:
    import torchvision
except RuntimeError:
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

assert torchvision


class TorchWorker(Worker):
    """A network with ``(batch, channel, height, width)`` pictures, or with word vectors."""

    def load(self, network: str, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        # Only now: LXT patches the modules from which networks are made.
        from benchmarks.workers._torch_networks import NETWORKS

        self.pictures = x.ndim == 4
        self.model = NETWORKS[network](weights).eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy() if self.pictures else x)
        with torch.no_grad():
            return self.model(self.x).numpy()

    @contextlib.contextmanager
    def explanation(self, method: str) -> Iterator[Any]:
        assert method == "gradient", method
        yield self.gradient

    def gradient(self) -> torch.Tensor:
        """x times the gradient of the first logit."""
        x = self.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.model(x)[:, TARGET].sum(), x)
        return self.x * gradient

    def to_input(self, relevance: torch.Tensor) -> np.ndarray:
        array = relevance.detach().numpy()
        return array.transpose(0, 2, 3, 1) if self.pictures else array
