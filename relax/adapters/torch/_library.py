"""torch and torchax, imported without leaving a trace in torch."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

# By name: without torch, a type checker takes this folder for it.
torch: Any = importlib.import_module("torch")
tree: Any = importlib.import_module("torch.utils._pytree")


@contextlib.contextmanager
def slow_attention() -> Iterator[None]:
    """The fused path of `torch.nn.TransformerEncoder` is one operation, which torchax has not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _same_environment(name: str) -> Iterator[None]:
    before = os.environ.get(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


# On import torchax turns the fused path off for the whole process, asks libtpu to report, and has
# torch believe that there is an accelerator called jax. Who imports it first wants that.
_wanted = "torchax" in sys.modules
with slow_attention(), _same_environment("ENABLE_RUNTIME_UPTIME_TELEMETRY"):
    tensor: Any = importlib.import_module("torchax.tensor")
    mappings: Any = importlib.import_module("torchax.ops.mappings")
if not _wanted:
    device: Any = importlib.import_module("torchax.device_module")
    device.is_available = lambda: False

Operator: Any = importlib.import_module("torchax.ops.ops_registry").Operator
OperatorNotFound: Any = tensor.OperatorNotFound
View: Any = tensor.View

__all__ = [
    "Operator",
    "OperatorNotFound",
    "View",
    "mappings",
    "slow_attention",
    "tensor",
    "torch",
    "tree",
]
