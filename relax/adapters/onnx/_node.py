"""What an operator sees: a node of the graph, and values that are known or traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError, UnsupportedOperationError, message

# A value is an array of numpy if it is known while JAX traces (a shape, an axis, a constant), else
# one of JAX. An input that is left out is None.
Value = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A node of a graph.

    Attributes:
      op: its operator, ``Conv``.
      opset: the version of the operators that the model was written for.
      name: as the file has it; may be empty.
      inputs, outputs: names of values; an empty one is left out.
      attributes: of the file; tensors are arrays of numpy, graphs are protos.
      proto: what onnx itself has of it.
    """

    op: str
    opset: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    proto: Any

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(attribute, default)

    def wants(self, number: int) -> bool:
        """Whether an output is used."""
        return len(self.outputs) > number and bool(self.outputs[number])

    def __str__(self) -> str:
        place = (
            f"node `{self.name}`"
            if self.name
            else f"the node that makes `{next(filter(None, self.outputs))}`"
        )
        return f"{place} ({self.op}, opset {self.opset})"

    def unsupported(self, what: str, remedy: str = "") -> UnsupportedOperationError:
        """The error that says what of this node has no counterpart here."""
        return UnsupportedOperationError(message(f"{self}: {what}", remedy=remedy))


def known(node: Node, value: Value, what: str) -> np.ndarray:
    """A value that has to be there before anything runs: XLA's shapes are static."""
    if isinstance(value, np.ndarray):
        return value
    raise node.unsupported(
        f"{what} depends on the values of the inputs or parameters; XLA needs it beforehand",
        "Export the model with fixed sizes, or give `output=` a value in front of this node.",
    )


def known_ints(node: Node, value: Value, what: str) -> list[int]:
    """The same, of integers."""
    return [int(v) for v in known(node, value, what).ravel()]


def axes_of(node: Node, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front."""
    for axis in axes:
        if not -rank <= axis < rank:
            raise ArgumentError(f"{node}: axis {axis} of a value of rank {rank}.")
    return tuple(axis % rank for axis in axes)


def aligned(*values: Value) -> list[Value]:
    """Values of one rank, with leading axes of size one: ranks may not be promoted silently."""
    rank = max(np.ndim(value) for value in values)
    return [_lifted(value, rank) for value in values]


def _lifted(value: Value, rank: int) -> Value:
    missing = rank - np.ndim(value)
    if missing == 0 or np.ndim(value) == 0:
        return value
    if isinstance(value, np.ndarray):
        return np.expand_dims(value, tuple(range(missing)))
    return jnp.expand_dims(value, tuple(range(missing)))


def per_channel(vector: Value, x: Value, axis: int = 1) -> Value:
    """A vector along an axis of x, as an array of the rank of x."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    return jnp.expand_dims(vector, others)


_FLOATING = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
_NUMERIC = (
    *_FLOATING,
    *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    "BOOL",
)


def is_floating(element_type: int) -> bool:
    """Whether a type of ONNX is one that weights have."""
    import onnx

    return onnx.TensorProto.DataType.Name(element_type) in _FLOATING


def dtype_of(element_type: int, what: object) -> np.dtype:
    """The dtype of JAX for a type of ONNX: 64 bits only with ``jax_enable_x64``.

    Types of less than 8 bits, and float8, which ONNX rounds and saturates in its own way, are left
    out, and so is text.
    """
    import onnx

    name = onnx.TensorProto.DataType.Name(element_type)
    if name not in _NUMERIC:
        raise ArgumentError(f"{what}: values of type {name}; known are {', '.join(_NUMERIC)}.")
    return jax.dtypes.canonicalize_dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type))
