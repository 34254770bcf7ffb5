"""Operators that act on each element."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax.adapters.onnx._node import Node, Value, aligned, dtype_of, known


def _unary(function: Callable[[jax.Array], jax.Array]) -> Callable[..., Value]:
    return lambda node, x: function(x)


def _binary(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., Value]:
    return lambda node, x, y: function(*aligned(x, y))


def _variadic(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., Value]:
    def apply(node: Node, *values: Value) -> Value:
        return functools.reduce(lambda x, y: function(*aligned(x, y)), values[1:], _jax(values[0]))

    return apply


def _jax(x: Value) -> jax.Array:
    return jnp.asarray(x)


def _divide(node: Node, x: Value, y: Value) -> Value:
    x, y = aligned(x, y)
    if jnp.issubdtype(x.dtype, jnp.integer):  # towards zero
        return lax.div(*jnp.broadcast_arrays(x, y))
    return jnp.divide(x, y)


def _mod(node: Node, x: Value, y: Value) -> Value:
    return jnp.fmod(*aligned(x, y)) if node.get("fmod", 0) else jnp.mod(*aligned(x, y))


def _power(node: Node, x: Value, y: Value) -> Value:
    """Squares and roots by their own primitives: they have signs, and derivatives at zero."""
    if isinstance(y, np.ndarray) and y.size == 1 and y.ndim <= np.ndim(x):
        exponent = float(y.ravel()[0])
        if exponent == 0.5:
            return jnp.sqrt(x)
        if exponent.is_integer() and abs(exponent) <= 64 and jnp.issubdtype(x.dtype, jnp.inexact):
            return lax.integer_pow(x, int(exponent))
    x, y = aligned(x, y)
    return jnp.power(x, y).astype(x.dtype)


def _mean(node: Node, *values: Value) -> Value:
    total = _variadic(jnp.add)(node, *values)
    return total / np.asarray(len(values), total.dtype)


def _clip(node: Node, x: Value, low: Value = None, high: Value = None) -> Value:
    if node.opset < 11:
        low, high = (node.get(name) for name in ("min", "max"))
    if low is not None:
        x = jnp.maximum(x, jnp.asarray(low, x.dtype).reshape(()))
    return x if high is None else jnp.minimum(x, jnp.asarray(high, x.dtype).reshape(()))


def _cast(node: Node, x: Value) -> Value:
    return jnp.asarray(x).astype(dtype_of(node.get("to"), node))


def _cast_like(node: Node, x: Value, like: Value) -> Value:
    return jnp.asarray(x).astype(jax.dtypes.canonicalize_dtype(like.dtype))


def _where(node: Node, condition: Value, x: Value, y: Value) -> Value:
    return jnp.where(*aligned(condition, x, y))


def _is_infinite(node: Node, x: Value) -> Value:
    above, below = (node.get(f"detect_{sign}", 1) for sign in ("positive", "negative"))
    return jnp.isinf(x) & ((x > 0) & bool(above) | (x < 0) & bool(below))


def _dropout(node: Node, x: Value, ratio: Value = None, training: Value = None) -> Value:
    if training is not None and known(node, training, "whether it is training").any():
        raise node.unsupported("drops at random", "Export the model in evaluation mode.")
    return (x, jnp.ones(x.shape, bool)) if node.wants(1) else x


# Activations


def _leaky_relu(node: Node, x: Value) -> Value:
    return jax.nn.leaky_relu(x, node.get("alpha", 0.01))


def _prelu(node: Node, x: Value, slope: Value) -> Value:
    x, slope = aligned(x, slope)
    return jnp.where(x < 0, slope * x, x)


def _elu(node: Node, x: Value) -> Value:
    return jax.nn.elu(x, node.get("alpha", 1.0))


def _selu(node: Node, x: Value) -> Value:
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    return gamma * jax.nn.elu(x, alpha)


def _celu(node: Node, x: Value) -> Value:
    return jax.nn.celu(x, node.get("alpha", 1.0))


def _gelu(node: Node, x: Value) -> Value:
    return jax.nn.gelu(x, approximate=node.get("approximate", "none") == "tanh")


def _swish(node: Node, x: Value) -> Value:
    alpha = node.get("alpha", 1.0)
    return jax.nn.silu(x) if alpha == 1 else x * jax.nn.sigmoid(alpha * x)


def _hard_sigmoid(node: Node, x: Value) -> Value:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    return jnp.minimum(jnp.maximum(alpha * x + beta, 0), 1)


def _thresholded_relu(node: Node, x: Value) -> Value:
    return jnp.where(x > node.get("alpha", 1.0), x, jnp.zeros_like(x))


ELEMENTWISE: dict[str, Callable[..., Value]] = {
    "Identity": _unary(_jax),
    "Abs": _unary(jnp.abs),
    "Neg": _unary(jnp.negative),
    "Sign": _unary(jnp.sign),
    "Exp": _unary(jnp.exp),
    "Log": _unary(jnp.log),
    "Sqrt": _unary(jnp.sqrt),
    "Reciprocal": _unary(jnp.reciprocal),
    "Floor": _unary(jnp.floor),
    "Ceil": _unary(jnp.ceil),
    "Round": _unary(jnp.round),
    "Erf": _unary(jax.scipy.special.erf),
    "Sin": _unary(jnp.sin),
    "Cos": _unary(jnp.cos),
    "Tan": _unary(jnp.tan),
    "Asin": _unary(jnp.arcsin),
    "Acos": _unary(jnp.arccos),
    "Atan": _unary(jnp.arctan),
    "Sinh": _unary(jnp.sinh),
    "Cosh": _unary(jnp.cosh),
    "Tanh": _unary(jnp.tanh),
    "Asinh": _unary(jnp.arcsinh),
    "Acosh": _unary(jnp.arccosh),
    "Atanh": _unary(jnp.arctanh),
    "Not": _unary(jnp.logical_not),
    "IsNaN": _unary(jnp.isnan),
    "IsInf": _is_infinite,
    "Add": _binary(jnp.add),
    "Sub": _binary(jnp.subtract),
    "Mul": _binary(jnp.multiply),
    "Div": _divide,
    "Mod": _mod,
    "Pow": _power,
    "Equal": _binary(jnp.equal),
    "Less": _binary(jnp.less),
    "LessOrEqual": _binary(jnp.less_equal),
    "Greater": _binary(jnp.greater),
    "GreaterOrEqual": _binary(jnp.greater_equal),
    "And": _binary(jnp.logical_and),
    "Or": _binary(jnp.logical_or),
    "Xor": _binary(jnp.logical_xor),
    "Sum": _variadic(jnp.add),
    "Mean": _mean,
    "Max": _variadic(jnp.maximum),
    "Min": _variadic(jnp.minimum),
    "Where": _where,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Dropout": _dropout,
    "Relu": _unary(jax.nn.relu),
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "ThresholdedRelu": _thresholded_relu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Gelu": _gelu,
    "Swish": _swish,
    "HardSwish": _unary(jax.nn.hard_swish),
    "Mish": _unary(jax.nn.mish),
    "Softplus": _unary(jax.nn.softplus),
    "Softsign": _unary(jax.nn.soft_sign),
    "Sigmoid": _unary(jax.nn.sigmoid),
    "HardSigmoid": _hard_sigmoid,
}
