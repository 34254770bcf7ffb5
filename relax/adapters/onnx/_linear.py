"""Operators with weights: dense layers, convolutions, products of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax.adapters.onnx._node import Node, Value, aligned, axes_of, per_channel


def paddings(
    node: Node, sizes: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis; `window` is what a window spans, dilated."""
    auto = node.get("auto_pad", "NOTSET")
    rank = len(sizes)
    if auto == "VALID":
        return [(0, 0)] * rank
    if auto == "NOTSET":
        pads = node.get("pads", [0] * 2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True))
    found = []
    for size, spans, stride in zip(sizes, window, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + spans - size, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return found


def _layout(rank: int) -> lax.ConvDimensionNumbers:
    """Channels first, whatever the number of spatial axes."""
    axes = tuple(range(rank + 2))
    return lax.ConvDimensionNumbers(axes, axes, axes)


def _same_dtype(*values: Value) -> list[jax.Array]:
    """Convolutions of JAX do not promote: parameters may have been made float64."""
    dtype = jnp.result_type(*values)
    return [jnp.asarray(value, dtype) for value in values]


def _conv(node: Node, x: Value, w: Value, b: Value = None) -> Value:
    rank = x.ndim - 2
    dilations, strides = node.get("dilations", [1] * rank), node.get("strides", [1] * rank)
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    x, w = _same_dtype(x, w)
    y = lax.conv_general_dilated(
        x,
        w,
        strides,
        paddings(node, x.shape[2:], spans, strides),
        rhs_dilation=dilations,
        dimension_numbers=_layout(rank),
        feature_group_count=node.get("group", 1),
    )
    return y if b is None else y + per_channel(b, y)


def _conv_transpose(node: Node, x: Value, w: Value, b: Value = None) -> Value:
    rank, groups = x.ndim - 2, node.get("group", 1)
    ones = [1] * rank
    dilations, strides = node.get("dilations", ones), node.get("strides", ones)
    extra = node.get("output_padding", [0] * rank)
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    pads = _transposed_paddings(node, x.shape[2:], spans, strides, extra)
    x, w = _same_dtype(x, w)
    # Its kernel is (inputs, outputs / groups, ...): that of the convolution it is the transpose of.
    inputs, outputs, *kernel = w.shape
    w = jnp.flip(w, tuple(range(2, w.ndim)))
    if groups == 1:
        w = jnp.swapaxes(w, 0, 1)
    else:
        w = w.reshape(groups, inputs // groups, outputs, *kernel)
        w = jnp.swapaxes(w, 1, 2).reshape(groups * outputs, inputs // groups, *kernel)
    y = lax.conv_general_dilated(
        x,
        w,
        ones,
        [
            (span - 1 - before, span - 1 - after + more)
            for span, (before, after), more in zip(spans, pads, extra, strict=True)
        ],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=_layout(rank),
        feature_group_count=groups,
    )
    return y if b is None else y + per_channel(b, y)


def _transposed_paddings(
    node: Node,
    sizes: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
    extra: Sequence[int],
) -> list[tuple[int, int]]:
    """What is cut away before and after: as it says, or so that the output has a size."""
    auto, shape = node.get("auto_pad", "NOTSET"), node.get("output_shape")
    if shape is None and auto in ("NOTSET", "VALID"):
        return paddings(node, sizes, spans, strides)
    if shape is None:
        shape = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    found = []
    for size, span, stride, more, wanted in zip(
        sizes, spans, strides, extra, shape[-len(sizes) :], strict=True
    ):
        total = stride * (size - 1) + more + span - wanted
        less, rest = total // 2, total - total // 2
        found.append((less, rest) if auto == "SAME_UPPER" else (rest, less))
    return found


def _gemm(node: Node, a: Value, b: Value, c: Value = None) -> Value:
    a = jnp.swapaxes(a, 0, 1) if node.get("transA", 0) else a
    b = jnp.swapaxes(b, 0, 1) if node.get("transB", 0) else b
    y = _scaled(jnp.matmul(a, b), node.get("alpha", 1.0))
    return y if c is None else jnp.add(*aligned(y, _scaled(c, node.get("beta", 1.0))))


def _scaled(x: Value, factor: float) -> Value:
    return x if factor == 1 else x * np.asarray(factor, x.dtype)


def _matmul(node: Node, a: Value, b: Value) -> Value:
    return jnp.matmul(a, b)


def _einsum(node: Node, *values: Value) -> Value:
    return jnp.einsum(node.get("equation").replace(" ", ""), *values)


def _dequantize(node: Node, x: Value, scale: Value, zero: Value = None) -> Value:
    """Weights that are stored as integers."""
    if node.get("block_size", 0):
        raise node.unsupported("has a scale for each block of a weight")
    rank = np.ndim(x)
    if np.ndim(scale) == 1 and rank:
        (axis,) = axes_of(node, [node.get("axis", 1)], rank)
        others = tuple(i for i in range(rank) if i != axis)
        scale = jnp.expand_dims(scale, others)
        zero = None if zero is None else jnp.expand_dims(zero, others)
    # In the type of the scale: differences of two bytes do not fit into a byte.
    x = jnp.asarray(x, scale.dtype)
    return (x if zero is None else x - jnp.asarray(zero, scale.dtype)) * scale


LINEAR: dict[str, Callable[..., Value]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "DequantizeLinear": _dequantize,
}
