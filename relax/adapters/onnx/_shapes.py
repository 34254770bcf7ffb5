"""Operators that move elements about and leave them as they are."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError
from relax.adapters.onnx._node import Node, Value, axes_of, known_ints


def _shape(node: Node, x: Value) -> Value:
    return np.array(np.shape(x)[node.get("start", 0) : node.get("end")], np.int64)


def _size(node: Node, x: Value) -> Value:
    return np.array(np.size(x), np.int64)


def _reshape(node: Node, x: Value, shape: Value) -> Value:
    sizes = known_ints(node, shape, "its shape")
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    try:
        return jnp.reshape(x, sizes)
    except TypeError as error:
        raise ArgumentError(
            f"{node}: {x.shape} as {tuple(sizes)}: the model was exported for inputs of one size."
        ) from error


def _flatten(node: Node, x: Value) -> Value:
    axis = node.get("axis", 1)
    first = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:first])), int(np.prod(x.shape[first:])))


def _squeeze(node: Node, x: Value, axes: Value = None) -> Value:
    given = node.get("axes") if axes is None else known_ints(node, axes, "which axes go")
    if given is None:
        given = [i for i, size in enumerate(x.shape) if size == 1]
    return jnp.squeeze(x, axes_of(node, given, x.ndim))


def _unsqueeze(node: Node, x: Value, axes: Value = None) -> Value:
    given = node.get("axes") if axes is None else known_ints(node, axes, "which axes come")
    return jnp.expand_dims(x, axes_of(node, given, np.ndim(x) + len(given)))


def _transpose(node: Node, x: Value) -> Value:
    return jnp.transpose(x, node.get("perm"))


def _concat(node: Node, *values: Value) -> Value:
    dtype = jnp.result_type(*values)
    return jnp.concatenate([jnp.asarray(v, dtype) for v in values], node.get("axis", 1))


def _split(node: Node, x: Value, sizes: Value = None) -> Value:
    axis = node.get("axis", 0)
    if sizes is not None:
        given = known_ints(node, sizes, "where it splits")
    elif (given := node.get("split")) is None:
        each = -(-x.shape[axis] // len(node.outputs))  # the last one may be smaller
        given = [each] * (len(node.outputs) - 1)
        given.append(x.shape[axis] - sum(given))
    return tuple(jnp.split(x, np.cumsum(given)[:-1].tolist(), axis))


def _expand(node: Node, x: Value, shape: Value) -> Value:
    sizes = known_ints(node, shape, "its shape")
    rank = max(len(sizes), np.ndim(x))
    x = jnp.expand_dims(x, tuple(range(rank - np.ndim(x))))
    return jnp.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(sizes)))


def _tile(node: Node, x: Value, repeats: Value) -> Value:
    return jnp.tile(x, known_ints(node, repeats, "how often it repeats"))


def _pad(node: Node, x: Value, pads: Value = None, fill: Value = None, axes: Value = None) -> Value:
    if node.opset < 11:
        widths, fill = list(node.get("pads")), node.get("value", 0.0)
    else:
        widths = known_ints(node, pads, "how much it pads")
    over = range(x.ndim) if axes is None else known_ints(node, axes, "which axes it pads")
    over = axes_of(node, list(over), x.ndim)
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(over):
        before[axis], after[axis] = widths[i], widths[i + len(over)]
    # Less than nothing is cut away.
    x = x[
        tuple(
            slice(max(-b, 0), size - max(-a, 0))
            for b, a, size in zip(before, after, x.shape, strict=True)
        )
    ]
    pairs = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
    mode = node.get("mode", "constant")
    if mode != "constant":
        return jnp.pad(x, pairs, mode)
    value = 0 if fill is None else jnp.asarray(fill, x.dtype).reshape(())
    return jnp.pad(x, pairs, constant_values=value)


def _depth_to_space(node: Node, x: Value) -> Value:
    n, channels, height, width = x.shape
    b = node.get("blocksize")
    rest = channels // b**2
    if node.get("mode", "DCR") == "DCR":
        parts, order = (n, b, b, rest, height, width), (0, 3, 4, 1, 5, 2)
    else:
        parts, order = (n, rest, b, b, height, width), (0, 1, 4, 2, 5, 3)
    return x.reshape(parts).transpose(order).reshape(n, rest, height * b, width * b)


def _space_to_depth(node: Node, x: Value) -> Value:
    n, channels, height, width = x.shape
    b = node.get("blocksize")
    parts = x.reshape(n, channels, height // b, b, width // b, b)
    order = (0, 3, 5, 1, 2, 4) if node.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.transpose(order).reshape(n, channels * b**2, height // b, width // b)


def _triangle(node: Node, x: Value, k: Value = None) -> Value:
    diagonal = 0 if k is None else known_ints(node, k, "its diagonal")[0]
    return (jnp.triu if node.get("upper", 1) else jnp.tril)(x, diagonal)


SHAPES: dict[str, Callable[..., Value]] = {
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _triangle,
}
