"""Operations of torch that torchax has wrong, in too many equations, or not at all."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from relax.adapters.torch._library import View, mappings, torch


def _linear(function: Callable[..., Any]) -> Callable[..., Any]:
    """torchax names the scope of its einsum by its letters."""

    def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        y = x @ weight.T
        return y if bias is None else y + bias

    return linear


def _sum(combine: Callable[[Any, Any], Any]) -> Callable[..., Callable[..., Any]]:
    """torchax multiplies by ``alpha``, and so by one: that would be a layer of its own."""

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def add(x: Any, y: Any, alpha: Any = 1) -> Any:
            arrays = isinstance(x, jax.Array) and isinstance(y, jax.Array)
            plain = arrays and isinstance(alpha, int) and alpha == 1
            return combine(x, y) if plain else function(x, y, alpha=alpha)

        return add

    return wrapped


def _group_norm(function: Callable[..., Any]) -> Callable[..., Any]:
    """torchax loops over the groups in a scan that returns the statistics too: no region."""

    def group_norm(
        x: jax.Array,
        weight: Any,
        bias: Any,
        batch: int,
        _channels: int,
        _size: int,
        groups: int,
        eps: float,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        grouped = x.reshape(batch, groups, -1)
        mean = grouped.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt(grouped.var(-1, keepdims=True) + eps)
        y = ((grouped - mean) * scale).reshape(x.shape)
        channels = (1, -1) + (1,) * (x.ndim - 2)
        y = y if weight is None else y * weight.reshape(channels)
        y = y if bias is None else y + bias.reshape(channels)
        return y, mean.reshape(batch, groups), scale.reshape(batch, groups)

    return group_norm


def _average_pool(function: Callable[..., Any]) -> Callable[..., Any]:
    """torchax divides by the wrong number at the end of an axis, in ``ceil_mode``."""

    def average_pool(
        x: jax.Array,
        kernel: Any,
        strides: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> jax.Array:
        if not ceil_mode or not count_include_pad or divisor_override is not None:
            return function(
                x, kernel, strides, padding, ceil_mode, count_include_pad, divisor_override
            )
        count = len(kernel)
        pads = tuple(padding) * (count if len(padding) == 1 else 1) if padding else (0,) * count
        wide = [(0, 0)] * (x.ndim - count) + [(pad, pad) for pad in pads]
        # What was padded counts, what the last window lacks beyond it does not; a window that
        # begins in the padding behind the input is left out.
        steps = tuple(strides or kernel) * (count if len(strides) == 1 else 1)
        y = function(jnp.pad(x, wide), kernel, steps, 0, True, False, None)
        sizes = x.shape[x.ndim - count :]
        begins = zip(sizes, pads, steps, strict=True)
        kept = tuple(slice(-(-(size + pad) // step)) for size, pad, step in begins)
        return y[(..., *kept)]

    return average_pool


def _index(function: Callable[..., Any]) -> Callable[..., Any]:
    """torchax takes what is indexed by a tensor or a list for no view of another."""

    def index(x: Any, places: Any) -> Any:
        parts = places if isinstance(places, tuple) else (places,)
        by_value = any(isinstance(part, torch.Tensor | list) for part in parts)
        return function(x.torch() if by_value and isinstance(x, View) else x, places)

    return index


def _new_tensor(x: jax.Array, data: Any, *, dtype: Any = None, **_: Any) -> jax.Array:
    """torchax has none, and torch would make one that holds no numbers, as x seems to."""
    return jnp.array(data, x.dtype if dtype is None else mappings.t2j_dtype(dtype))


# What torchax has not.
ADDED: dict[Any, Callable[..., Any]] = {torch.Tensor.new_tensor: _new_tensor}

# What replaces an operation of torchax, made of it.
REPLACED: dict[Any, Callable[..., Any]] = {
    torch.Tensor.__getitem__: _index,
    torch.ops.aten.avg_pool1d: _average_pool,
    torch.ops.aten.avg_pool2d: _average_pool,
    torch.ops.aten.avg_pool3d: _average_pool,
    torch.ops.aten.native_group_norm: _group_norm,
    torch.nn.functional.linear: _linear,
    torch.ops.aten.add.Tensor: _sum(operator.add),
    torch.ops.aten.sub.Tensor: _sum(operator.sub),
}
