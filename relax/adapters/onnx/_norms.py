"""Normalizations and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax.adapters.onnx._node import Node, Value, aligned, axes_of, per_channel


def _batch_norm(node: Node, x: Value, scale: Value, b: Value, mean: Value, var: Value) -> Value:
    if node.get("training_mode", 0) or any(node.wants(i) for i in range(1, 5)):
        raise node.unsupported("normalizes by its batch", "Export the model in evaluation mode.")
    if not node.get("spatial", 1):
        raise node.unsupported("normalizes each place by itself (spatial=0)")
    scale, b, mean, var = (per_channel(v, x) for v in (scale, b, mean, var))
    return (x - mean) * (scale * lax.rsqrt(var + node.get("epsilon", 1e-5))) + b


def _standardized(x: Value, axes: Sequence[int], epsilon: float) -> tuple[Value, Value, Value]:
    mean = jnp.mean(x, axes, keepdims=True)
    centered = x - mean
    inverse = lax.rsqrt(jnp.mean(jnp.square(centered), axes, keepdims=True) + epsilon)
    return centered * inverse, mean, inverse


def _layer_norm(node: Node, x: Value, scale: Value, b: Value = None) -> Value:
    (axis,) = axes_of(node, [node.get("axis", -1)], x.ndim)
    y, mean, inverse = _standardized(x, range(axis, x.ndim), node.get("epsilon", 1e-5))
    y = jnp.multiply(*aligned(y, scale))
    y = y if b is None else jnp.add(*aligned(y, b))
    return (y, mean, inverse) if node.wants(1) or node.wants(2) else y


def _rms_norm(node: Node, x: Value, scale: Value) -> Value:
    (axis,) = axes_of(node, [node.get("axis", -1)], x.ndim)
    square = jnp.mean(jnp.square(x), range(axis, x.ndim), keepdims=True)
    return jnp.multiply(*aligned(x * lax.rsqrt(square + node.get("epsilon", 1e-5)), scale))


def _instance_norm(node: Node, x: Value, scale: Value, b: Value) -> Value:
    y, _, _ = _standardized(x, range(2, x.ndim), node.get("epsilon", 1e-5))
    return y * per_channel(scale, y) + per_channel(b, y)


def _group_norm(node: Node, x: Value, scale: Value, b: Value) -> Value:
    groups = node.get("num_groups")
    grouped = x.reshape(x.shape[0], groups, -1)
    y = _standardized(grouped, (2,), node.get("epsilon", 1e-5))[0].reshape(x.shape)
    if node.opset < 21:  # one scale for each group
        scale, b = (jnp.repeat(v, x.shape[1] // groups) for v in (scale, b))
    return y * per_channel(scale, y) + per_channel(b, y)


def _lp_norm(node: Node, x: Value) -> Value:
    axis, p = node.get("axis", -1), node.get("p", 2)
    if p == 1:
        norm = jnp.sum(jnp.abs(x), axis, keepdims=True)
        return x / jnp.where(norm == 0, 1, norm)
    square = jnp.sum(jnp.square(x), axis, keepdims=True)
    return x * jnp.where(square == 0, 0, lax.rsqrt(jnp.where(square == 0, 1, square)))


def _local_response_norm(node: Node, x: Value) -> Value:
    size = node.get("size")
    window = (1, size) + (1,) * (x.ndim - 2)
    pads = [(0, 0), ((size - 1) // 2, size // 2)] + [(0, 0)] * (x.ndim - 2)
    ones = (1,) * x.ndim
    sums = lax.reduce_window(jnp.square(x), np.zeros((), x.dtype), lax.add, window, ones, pads)
    scale = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * sums
    return x / scale ** node.get("beta", 0.75)


def _softmax(function: Callable[..., jax.Array]) -> Callable[..., Value]:
    def apply(node: Node, x: Value) -> Value:
        if node.opset >= 13:
            return function(x, axis=node.get("axis", -1))
        first = node.get("axis", 1)  # before, over all axes from there on
        if x.ndim == 0 or math.prod(x.shape[first:]) == 0:
            return x
        return function(x, axis=tuple(range(first % max(x.ndim, 1), x.ndim)))

    return apply


NORMS: dict[str, Callable[..., Value]] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp_norm,
    "LRN": _local_response_norm,
    "Softmax": _softmax(jax.nn.softmax),
    "LogSoftmax": _softmax(jax.nn.log_softmax),
}
