"""Networks of any depth for the benchmarks, in bare JAX, by a loop of Python; parameters as shapes.

Each returns the function, its parameters and its input. ``wrap`` is applied to the function of a
block: `jax.checkpoint`, say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Stack = tuple[Callable[[Any, jax.Array], jax.Array], Any, jax.ShapeDtypeStruct]


def unchanged(block: Any) -> Any:
    """The block as it is."""
    return block


def perceptron(depth: int, width: int = 256, batch: int = 8) -> Stack:
    """Dense layers and ReLUs, and a dense layer to ten logits."""

    def network(params: Any, x: jax.Array) -> jax.Array:
        *hidden, head = params
        for kernel, bias in hidden:
            x = jax.nn.relu(x @ kernel + bias[None])
        return _dense(head, x)

    params = [(_shape(width, width), _shape(width))] * (depth - 1)
    return network, [*params, (_shape(width, 10), _shape(10))], _shape(batch, width)


def residual(
    depth: int,
    channels: int = 32,
    size: int = 32,
    batch: int = 8,
    wrap: Any = unchanged,
    block: int = 1,
) -> Stack:
    """Convolutions and ReLUs on pictures, each added to what it is given, and ten logits.

    ``block``: how many of them are wrapped together.
    """

    def convolve(p: Any, x: jax.Array) -> jax.Array:
        kernel, bias = p
        numbers = ("NHWC", "HWIO", "NHWC")
        z = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(z + bias.reshape(1, 1, 1, -1))

    def several(params: Any, x: jax.Array) -> jax.Array:
        for p in params:
            x = x + convolve(p, x)
        return x

    def network(params: Any, x: jax.Array) -> jax.Array:
        stem, *blocks, head = params
        x = convolve(stem, x)
        for start in range(0, len(blocks), block):
            x = wrap(several)(blocks[start : start + block], x)
        return _dense(head, x.mean((1, 2)))

    blocks = [(_shape(3, 3, channels, channels), _shape(channels))] * (depth - 2)
    stem, head = (_shape(3, 3, 3, channels), _shape(channels)), (_shape(channels, 10), _shape(10))
    return network, [stem, *blocks, head], _shape(batch, size, size, 3)


def transformer(
    depth: int, width: int = 128, length: int = 128, batch: int = 4, wrap: Any = unchanged
) -> Stack:
    """Pre-norm transformer blocks, and the mean over tokens for logits."""

    def network(params: Any, x: jax.Array) -> jax.Array:
        for p in params:
            x = wrap(transformer_block)(p, x)
        return x.mean(1)

    return network, [transformer_shapes(width)] * depth, _shape(batch, length, width)


def transformer_block(p: Any, x: jax.Array) -> jax.Array:
    """Attention of one head and a GELU perceptron, each behind an RMSNorm."""
    q, k, v = (_norm(x) @ p[name] for name in "qkv")
    weights = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / x.shape[-1] ** 0.5)
    x = x + weights @ v @ p["o"]
    return x + jax.nn.gelu(_norm(x) @ p["up"]) @ p["down"]


def transformer_shapes(width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a block."""
    square = {name: _shape(width, width) for name in "qkvo"}
    return square | {"up": _shape(width, 4 * width), "down": _shape(4 * width, width)}


def _norm(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def _dense(p: Any, x: jax.Array) -> jax.Array:
    kernel, bias = p
    return x @ kernel + bias[None]


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)
