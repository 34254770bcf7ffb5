"""Networks that the benchmarks measure, in Flax, at the sizes people use; parameters as shapes."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class LlamaBlock(nn.Module):
    """Pre-norm attention with rotary positions and grouped queries, and a SwiGLU."""

    width: int
    heads: int
    kv_heads: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        batch, time, _ = x.shape
        size = self.width // self.heads
        dense = lambda features, name: nn.Dense(features, use_bias=False, name=name)
        y = nn.RMSNorm(name="attention_norm")(x)
        q = dense(self.heads * size, "q")(y).reshape(batch, time, self.heads, size)
        k = dense(self.kv_heads * size, "k")(y).reshape(batch, time, self.kv_heads, size)
        v = dense(self.kv_heads * size, "v")(y).reshape(batch, time, self.kv_heads, size)
        a = jax.nn.dot_product_attention(rotary(q), rotary(k), v, is_causal=True)
        x = x + dense(self.width, "out")(a.reshape(batch, time, self.width))
        y = nn.RMSNorm(name="mlp_norm")(x)
        gated = nn.silu(dense(self.hidden, "gate")(y)) * dense(self.hidden, "up")(y)
        return x + dense(self.width, "down")(gated)


def rotary(x):
    """Rotates pairs of features by their position."""
    time, size = x.shape[1], x.shape[-1]
    angle = jnp.arange(time)[:, None] / 10_000 ** (jnp.arange(size // 2)[None] / (size // 2))
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Llama(nn.Module):
    """Embedded tokens to the logits of the last position."""

    layers: int = 4
    width: int = 512
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 1408
    vocabulary: int = 1000

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            block = LlamaBlock(
                self.width, self.heads, self.kv_heads, self.hidden, name=f"block_{i}"
            )
            x = block(x)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(nn.RMSNorm()(x)[:, -1])


class TransformerBlock(nn.Module):
    """Pre-norm attention and a GELU perceptron, as in ViT and GPT-2."""

    heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2])) if self.causal else None
        attention = nn.MultiHeadDotProductAttention(self.heads)
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        y = nn.gelu(nn.Dense(4 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class ViT(nn.Module):
    """ViT-B/16 on 224 x 224 pictures."""

    layers: int = 12
    width: int = 768
    heads: int = 12

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (16, 16), (16, 16), "VALID", name="patches")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for i in range(self.layers):
            x = TransformerBlock(self.heads, name=f"block_{i}")(x)
        return nn.Dense(1000, name="head")(nn.LayerNorm()(x)[:, 0])


class GPT2(nn.Module):
    """Embedded tokens to the logits of the last position; the small GPT-2's sizes, four blocks."""

    layers: int = 4
    width: int = 768
    heads: int = 12
    vocabulary: int = 1000

    @nn.compact
    def __call__(self, x):
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for i in range(self.layers):
            x = TransformerBlock(self.heads, causal=True, name=f"block_{i}")(x)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(nn.LayerNorm()(x)[:, -1])


class VGG16(nn.Module):
    """Pictures to the logits of ImageNet (Simonyan & Zisserman 2015, configuration D)."""

    @nn.compact
    def __call__(self, x):
        for block, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
            for layer in range(depth):
                x = nn.relu(nn.Conv(width, (3, 3), name=f"conv_{block + 1}_{layer + 1}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for layer in range(2):
            x = nn.relu(nn.Dense(4096, name=f"dense_{layer + 1}")(x))
        return nn.Dense(1000, name="head")(x)


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Llama, 4 blocks": (Llama(), (1, 128, 512)),
    "ViT-B/16": (ViT(), (1, 224, 224, 3)),
    "GPT-2, 4 blocks": (GPT2(), (1, 128, 768)),
}


def shapes(name: str) -> tuple[Callable[..., jax.Array], Any, jax.ShapeDtypeStruct]:
    """The function of a network, and its parameters and input as shapes."""
    module, shape = NETWORKS[name]
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return module.apply, jax.eval_shape(module.init, jax.random.key(0), x), x
