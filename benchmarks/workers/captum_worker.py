"""Captum's LRP, with its rules on the layers on which relax's composites have theirs.

Its rule for positive weights keeps negative biases, and lets an input of either sign through
positive weights: on the first layer, and where biases are negative, it differs from ZPlus.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule
from torch import nn

from benchmarks.workers._serve import TARGET, serve
from benchmarks.workers._torch import TorchWorker

Rules = dict[type, Callable[[], Any]]
EPSILON: Callable[[], Any] = lambda: EpsilonRule(1e-6)
METHODS: dict[str, Rules] = {
    "epsilon": {nn.Conv2d: EPSILON, nn.Linear: EPSILON},
    "epsilon_plus": {nn.Conv2d: Alpha1_Beta0_Rule, nn.Linear: EPSILON},
}


class CaptumWorker(TorchWorker):
    @contextlib.contextmanager
    def explanation(self, method: str) -> Iterator[Any]:
        yield lambda: self._explain(METHODS[method])

    def _explain(self, rules: Rules) -> torch.Tensor:
        for module in self.model.modules():  # Captum takes them off again
            if type(module) in rules:
                module.rule = rules[type(module)]()
        return LRP(self.model).attribute(self.x, target=TARGET)


if __name__ == "__main__":
    serve(CaptumWorker)
