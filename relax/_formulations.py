"""The same values by other equations, where XLA's own code for a CPU is slow by a factor.

Three operations: a depthwise convolution as a sum of shifted products, a convolution whose windows
do not overlap as one matrix product, the derivative of a max-pool as a sum of selections. They
are used where JAX runs on a CPU; on other devices XLA has kernels for the originals.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from relax._jaxpr import bind_bare
from relax._order import kept
from relax._primitives import CONV, conv_axes

# Every place of a window is an equation: up to 7 x 7 for a convolution, 4 x 4 for a pool.
_MOST_PRODUCTS, _MOST_SELECTIONS = 49, 16


def evaluate(primitive: Any, params: dict[str, Any], operands: Sequence[Any]) -> list[Any]:
    """Evaluates a primitive, in the formulation that is fast where JAX runs."""
    formulation = _FORMULATIONS.get(primitive)
    if formulation is not None and jax.default_backend() == "cpu" and _is_plain(operands):
        result = formulation(params, *operands)
        if result is not None:
            return [result]
    return bind_bare(primitive, params, operands)


def _is_plain(operands: Sequence[Any]) -> bool:
    """Floats of known sizes, where no mesh has axes that lay them out explicitly."""
    avals = [jax.typeof(x) for x in operands]
    known = all(type(n) is int for aval in avals for n in aval.shape)
    explicit = jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    whole = not explicit and not any(any(aval.sharding.spec) for aval in avals)
    return known and whole and avals[0].dtype in (jnp.float32, jnp.float64)


def _windows(
    x: jax.Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """Each place of a window, and what stands there in all windows."""
    spans = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    counts = [
        (n - span) // stride + 1 for n, span, stride in zip(x.shape, spans, strides, strict=True)
    ]
    for place in itertools.product(*map(range, window)):
        start = [i * step for i, step in zip(place, dilation, strict=True)]
        end = [
            a + (count - 1) * stride + 1
            for a, count, stride in zip(start, counts, strides, strict=True)
        ]
        yield place, lax.slice(x, start, end, strides)


def _convolution(params: dict[str, Any], x: jax.Array, w: jax.Array) -> jax.Array | None:
    numbers, axes = params["dimension_numbers"], conv_axes(params)
    unusual = (
        axes.batch_groups != 1
        or any(n != 1 for n in params["lhs_dilation"])
        or any(n < 0 for pair in params["padding"] for n in pair)
        or params["preferred_element_type"] not in (None, x.dtype)
        or params["precision"] is not None
        or 0 in w.shape
        or w.dtype != x.dtype
    )
    channels, *sizes = (x.shape[axis] for axis in numbers.lhs_spec[1:])
    window = [w.shape[axis] for axis in numbers.rhs_spec[2:]]
    spans = [(n - 1) * step + 1 for n, step in zip(window, params["rhs_dilation"], strict=True)]
    depthwise = axes.feature_groups == channels == w.shape[axes.rhs_out] > 1
    apart = axes.feature_groups == 1 < math.prod(window) and _is_apart(params, window)
    fits = 0 not in x.shape and _fits(sizes, spans, params["padding"])
    if unusual or not fits or not (apart or (depthwise and math.prod(window) <= _MOST_PRODUCTS)):
        return None
    batch, feature, *space = numbers.lhs_spec
    x = x.transpose(batch, *space, feature)
    out, given, *space = numbers.rhs_spec
    w = w.transpose(*space, given, out)
    z = _apart(x, w) if apart else _depthwise(params, x, w)
    batch, feature, *space = numbers.out_spec
    order = {axis: i for i, axis in enumerate((batch, *space, feature))}
    return z.transpose([order[i] for i in range(z.ndim)])


def _fits(sizes: Sequence[int], spans: Sequence[int], padding: Sequence[Any]) -> bool:
    """Whether there is anything, and a window of that span has a place in it."""
    return all(
        n > 0 and span <= n + low + high
        for n, span, (low, high) in zip(sizes, spans, padding, strict=True)
    )


def _is_apart(params: dict[str, Any], window: Sequence[int]) -> bool:
    """Whether windows neither overlap nor leave anything out at the borders."""
    return (
        tuple(params["window_strides"]) == tuple(window)
        and not any(itertools.chain(*params["padding"]))
        and all(n == 1 for n in params["rhs_dilation"])
    )


def _apart(x: jax.Array, w: jax.Array) -> jax.Array:
    *window, given, out = w.shape
    batch, *sizes, _ = x.shape
    counts = [n // k for n, k in zip(sizes, window, strict=True)]
    whole = [n * k for n, k in zip(counts, window, strict=True)]
    x = lax.slice(x, [0] * x.ndim, [batch, *whole, given])
    x = x.reshape(batch, *itertools.chain(*zip(counts, window, strict=True)), given)
    n = len(window)
    x = x.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    x = x.reshape(batch, *counts, -1)
    return lax.dot_general(x, w.reshape(-1, out), (((n + 1,), (0,)), ((), ())))


def _depthwise(params: dict[str, Any], x: jax.Array, w: jax.Array) -> jax.Array:
    padding = [(0, 0, 0), *((a, b, 0) for a, b in params["padding"]), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), padding)
    window = (1, *w.shape[:-2], 1)
    strides = (1, *params["window_strides"], 1)
    parts = _windows(x, window, strides, (1, *params["rhs_dilation"], 1))
    products = (part * w[place[1:-1]].reshape(*(1,) * (x.ndim - 1), -1) for place, part in parts)
    return kept(functools.reduce(lax.add, products))


def _max_pool(params: dict[str, Any], x: jax.Array) -> jax.Array | None:
    dilated = any(n != 1 for n in (*params["base_dilation"], *params["window_dilation"]))
    window = params["window_dimensions"]
    fits = _fits(x.shape, window, params["padding"])
    if dilated or not fits or math.prod(window) > _MOST_SELECTIONS:
        return None
    names = ("window_dimensions", "window_strides", "padding")
    return _pooled(tuple((name, tuple(params[name])) for name in names), x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _pooled(shape: tuple[tuple[str, Any], ...], x: jax.Array) -> jax.Array:
    window, strides, padding = (value for _, value in shape)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


@_pooled.defjvp
def _pooled_jvp(shape: Any, primals: Any, tangents: Any) -> Any:
    """The first of the largest of a window has it all, as in JAX; of NaN, the first NaN.

    Which one that is, its places tell among themselves. Compared with the maximum none may win: XLA
    fuses what x is made of into both, computes it twice, and rounds it in two ways.
    """
    window, strides, padding = (value for _, value in shape)
    (x,), (change,) = primals, tangents
    y = _pooled(shape, x)
    edges = [(a, b, 0) for a, b in padding]
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)
    moved = lax.pad(change, jnp.zeros((), change.dtype), edges)
    ones = (1,) * x.ndim
    (_, largest), *others = _windows(padded, window, strides, ones)
    winner = jnp.zeros(y.shape, jnp.int8)
    for number, (_, part) in enumerate(others, 1):
        larger = (part > largest) | ((part != part) & (largest == largest))
        largest = jnp.where(larger, part, largest)
        winner = jnp.where(larger, jnp.int8(number), winner)
    total = jnp.zeros_like(y)
    for number, (_, step) in enumerate(_windows(moved, window, strides, ones)):
        total = total + jnp.where(winner == number, step, 0)
    return y, total


_FORMULATIONS = {CONV: _convolution, lax.reduce_window_max_p: _max_pool}
