"""Operators that look elements up, by places that are known or computed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax.adapters.onnx._node import Node, Value, axes_of, dtype_of, known_ints


def _slice(node: Node, x: Value, *given: Value) -> Value:
    if node.opset < 10:
        starts, ends, axes, steps = (*map(node.get, ("starts", "ends", "axes")), None)
    else:
        starts, ends, axes, steps = (
            None if value is None else known_ints(node, value, f"its {name}")
            for name, value in zip(
                ("starts", "ends", "axes", "steps"), (*given, None, None)[:4], strict=True
            )
        )
    starts, ends = starts or [], ends or []
    axes = axes_of(node, axes or range(len(starts)), x.ndim)
    where = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        size = x.shape[axis]
        if step < 0 and end < -size:  # before the first: Python has no number for it
            end = None
        where[axis] = slice(start, end, step)
    return x[tuple(where)]


def _gather(node: Node, x: Value, places: Value) -> Value:
    (axis,) = axes_of(node, [node.get("axis", 0)], np.ndim(x))
    if isinstance(places, np.ndarray) and places.ndim == 0:
        return lax.index_in_dim(x, int(places) % x.shape[axis], axis, keepdims=False)
    return jnp.take(x, jnp.asarray(places), axis)


def _from_the_front(places: Value, size: int) -> jax.Array:
    return jnp.where(places < 0, places + size, places)


def _open_grid(places: Value, axis: int) -> tuple[jax.Array, ...]:
    """Indices of all axes for elements that are looked up along one."""
    grid = list(jnp.indices(places.shape, sparse=True))
    grid[axis] = places
    return tuple(grid)


def _gather_elements(node: Node, x: Value, places: Value) -> Value:
    (axis,) = axes_of(node, [node.get("axis", 0)], x.ndim)
    return x[_open_grid(_from_the_front(places, x.shape[axis]), axis)]


def _gather_nd(node: Node, x: Value, places: Value) -> Value:
    def look_up(x: Value, places: Value) -> Value:
        return x[tuple(jnp.moveaxis(places, -1, 0))]

    x, places = jnp.asarray(x), jnp.asarray(places)
    for _ in range(node.get("batch_dims", 0)):
        look_up = jax.vmap(look_up)
    return look_up(x, places)


_SCATTER = {"none": "set", "add": "add", "mul": "multiply", "max": "max", "min": "min"}


def _scatter_elements(node: Node, x: Value, places: Value, updates: Value) -> Value:
    (axis,) = axes_of(node, [node.get("axis", 0)], x.ndim)
    at = jnp.asarray(x).at[_open_grid(_from_the_front(places, x.shape[axis]), axis)]
    return getattr(at, _SCATTER[node.get("reduction", "none")])(updates)


def _scatter_nd(node: Node, x: Value, places: Value, updates: Value) -> Value:
    at = jnp.asarray(x).at[tuple(jnp.moveaxis(jnp.asarray(places), -1, 0))]
    return getattr(at, _SCATTER[node.get("reduction", "none")])(updates)


def _one_hot(node: Node, places: Value, depth: Value, values: Value) -> Value:
    count = known_ints(node, depth, "its depth")[0]
    rank = np.ndim(places) + 1
    (axis,) = axes_of(node, [node.get("axis", -1)], rank)
    classes = np.expand_dims(np.arange(count), tuple(i for i in range(rank) if i != axis))
    here = jnp.expand_dims(_from_the_front(places, count), axis) == classes
    return jnp.where(here, values[1], values[0])


def _eye_like(node: Node, x: Value) -> Value:
    dtype = dtype_of(node.get("dtype"), node) if node.get("dtype") else x.dtype
    return jnp.eye(*x.shape, k=node.get("k", 0), dtype=dtype)


INDEXING: dict[str, Callable[..., Value]] = {
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "OneHot": _one_hot,
    "EyeLike": _eye_like,
}
