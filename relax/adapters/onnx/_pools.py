"""Pools: maxima and means of windows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from relax.adapters.onnx._linear import paddings
from relax.adapters.onnx._node import Node, Value, per_channel


def _windows(
    node: Node, sizes: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[tuple[int, int]], list[int]]:
    """Kernel, strides, dilations, padding, and how far windows go beyond it, of each axis.

    With ``ceil_mode`` a last window may hang over; one that lies in the padding alone is none.
    """
    kernel = list(node.get("kernel_shape"))
    strides = list(node.get("strides", [1] * len(kernel)))
    dilations = list(node.get("dilations", [1] * len(kernel)))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = paddings(node, sizes, spans, strides)
    over = []
    for size, (before, after), span, stride in zip(sizes, pads, spans, strides, strict=True):
        free = size + before + after - span
        steps = -(-free // stride) if node.get("ceil_mode", 0) else free // stride
        if steps * stride >= size + before:
            steps -= 1
        over.append(max(steps * stride - free, 0))
    return kernel, strides, dilations, pads, over


def _max_pool(node: Node, x: Value) -> Value:
    if node.wants(1):
        raise node.unsupported("gives the places of maxima", "Leave its second output unused.")
    kernel, strides, dilations, pads, over = _windows(node, x.shape[2:])
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(
        x,
        np.asarray(lowest, x.dtype),
        lax.max,
        (1, 1, *kernel),
        (1, 1, *strides),
        [(0, 0), (0, 0), *((b, a + more) for (b, a), more in zip(pads, over, strict=True))],
        window_dilation=(1, 1, *dilations),
    )


def _average_pool(node: Node, x: Value) -> Value:
    kernel, strides, dilations, pads, over = _windows(node, x.shape[2:])
    sums = lax.reduce_window(
        x,
        np.zeros((), x.dtype),
        lax.add,
        (1, 1, *kernel),
        (1, 1, *strides),
        [(0, 0), (0, 0), *((b, a + more) for (b, a), more in zip(pads, over, strict=True))],
        window_dilation=(1, 1, *dilations),
    )
    padded = bool(node.get("count_include_pad", 0))
    axes = list(zip(x.shape[2:], sums.shape[2:], kernel, strides, dilations, pads, strict=True))
    count = functools.reduce(np.multiply.outer, [_counts(np, axis, padded) for axis in axes])
    if (count == count.flat[0]).all():
        return sums / np.asarray(count.flat[0], x.dtype)
    for number, axis in enumerate(axes):
        # Of literals: an array would be a scale that belongs to the model.
        of_axis = _counts(jnp, axis, padded).astype(x.dtype)
        sums = sums / per_channel(of_axis, sums, number + 2)
    return sums


def _counts(xp: Any, axis: tuple[int, int, int, int, int, tuple[int, int]], padded: bool) -> Any:
    """How many places of each window count: those of the input, or those of the padding too."""
    size, steps, kernel, stride, dilation, pad = axis
    places = stride * xp.arange(steps)[:, None] + dilation * xp.arange(kernel)[None] - pad[0]
    low, high = (-pad[0], size + pad[1]) if padded else (0, size)
    return ((places >= low) & (places < high)).sum(1)


def _global(reduce: Callable[..., Value]) -> Callable[..., Value]:
    return lambda node, x: reduce(x, axis=tuple(range(2, x.ndim)), keepdims=True)


POOLS: dict[str, Callable[..., Value]] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global(jnp.mean),
    "GlobalMaxPool": _global(jnp.max),
}
