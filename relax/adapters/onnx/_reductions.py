"""Sums, means and extrema over axes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np
from jax import lax

from relax.adapters.onnx._node import Node, Value, axes_of, known_ints


def _reduction(reduce: Callable[..., Value]) -> Callable[..., Value]:
    def apply(node: Node, x: Value, axes: Value = None) -> Value:
        given = node.get("axes")
        if axes is not None:
            given = known_ints(node, axes, "which axes it goes over")
        if not given:
            if node.get("noop_with_empty_axes", 0) and x.ndim:
                return reduce(jnp.expand_dims(x, 0), axis=(0,), keepdims=False)
            given = range(x.ndim)
        over = axes_of(node, list(given), x.ndim)
        return reduce(x, axis=over, keepdims=bool(node.get("keepdims", 1)))

    return apply


def _extremum(reduce: Callable[..., Value], empty: float) -> Callable[..., Value]:
    def apply(x: Value, axis: tuple[int, ...], keepdims: bool) -> Value:
        if not any(x.shape[i] == 0 for i in axis):
            return reduce(x, axis=axis, keepdims=keepdims)
        return reduce(x, axis=axis, keepdims=keepdims, initial=_bound(x.dtype, empty))

    return apply


def _bound(dtype: jnp.dtype, infinity: float) -> float:
    """The least or the greatest number of a type."""
    if jnp.issubdtype(dtype, jnp.floating):
        return infinity
    if dtype == np.bool_:
        return infinity > 0
    return jnp.iinfo(dtype).max if infinity > 0 else jnp.iinfo(dtype).min


def _norm(x: Value, **over: Value) -> Value:
    return jnp.sqrt(jnp.sum(jnp.square(x), **over))


def _argument(find: Callable[..., Value]) -> Callable[..., Value]:
    def apply(node: Node, x: Value) -> Value:
        axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
        if not node.get("select_last_index", 0):
            return find(x, axis=axis, keepdims=keep)
        return x.shape[axis] - 1 - find(jnp.flip(x, axis), axis=axis, keepdims=keep)

    return apply


def _cumulative_sum(node: Node, x: Value, axis: Value) -> Value:
    along = axes_of(node, known_ints(node, axis, "its axis"), x.ndim)[0]
    reverse = bool(node.get("reverse", 0))
    sums = lax.cumsum(x, along, reverse=reverse)
    if not node.get("exclusive", 0):
        return sums
    pads = [(0, 0, 0)] * x.ndim  # one step on, and the first sum is empty
    pads[along] = (-1, 1, 0) if reverse else (1, -1, 0)
    return lax.pad(sums, jnp.zeros((), x.dtype), pads)


def _top_k(node: Node, x: Value, k: Value = None) -> Value:
    count = node.get("k") if k is None else known_ints(node, k, "how many it takes")[0]
    axis = node.get("axis", -1)
    ahead = jnp.moveaxis(x, axis, -1)
    if node.get("largest", 1):
        values, places = lax.top_k(ahead, count)
    else:
        values, places = lax.top_k(-ahead, count)
        values = -values
    places = places.astype(jax.dtypes.canonicalize_dtype(np.int64))
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(places, -1, axis)


REDUCTIONS: dict[str, Callable[..., Value]] = {
    "ReduceSum": _reduction(jnp.sum),
    "ReduceMean": _reduction(jnp.mean),
    "ReduceMax": _reduction(_extremum(jnp.max, -jnp.inf)),
    "ReduceMin": _reduction(_extremum(jnp.min, jnp.inf)),
    "ReduceProd": _reduction(jnp.prod),
    "ReduceL1": _reduction(lambda x, **over: jnp.sum(jnp.abs(x), **over)),
    "ReduceL2": _reduction(_norm),
    "ReduceSumSquare": _reduction(lambda x, **over: jnp.sum(jnp.square(x), **over)),
    "ReduceLogSum": _reduction(lambda x, **over: jnp.log(jnp.sum(x, **over))),
    "ReduceLogSumExp": _reduction(jax.scipy.special.logsumexp),
    "ArgMax": _argument(jnp.argmax),
    "ArgMin": _argument(jnp.argmin),
    "CumSum": _cumulative_sum,
    "TopK": _top_k,
}
