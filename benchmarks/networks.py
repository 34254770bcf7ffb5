"""Networks that the benchmarks measure, in Flax, at the sizes people use; parameters as shapes."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


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
    cos = jnp.cos(angle)[None, :, None].astype(x.dtype)
    sin = jnp.sin(angle)[None, :, None].astype(x.dtype)
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


def normalized(x, features, size, name, stride=1, groups=1):
    """A convolution without bias and a BatchNorm."""
    conv = nn.Conv(
        features,
        (size, size),
        (stride, stride),
        feature_group_count=groups,
        use_bias=False,
        name=name,
    )
    return nn.BatchNorm(use_running_average=True, name=f"{name}_norm")(conv(x))


class Bottleneck(nn.Module):
    """The block of ResNet50; ``project``: the shortcut is a convolution."""

    width: int
    stride: int
    project: bool

    @nn.compact
    def __call__(self, x):
        y = nn.relu(normalized(x, self.width, 1, "reduce"))
        y = nn.relu(normalized(y, self.width, 3, "conv", self.stride))
        y = normalized(y, 4 * self.width, 1, "expand")
        if self.project:
            x = normalized(x, 4 * self.width, 1, "shortcut", self.stride)
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """Pictures to the logits of ImageNet (He et al. 2016)."""

    depths: tuple[int, ...] = (3, 4, 6, 3)

    @nn.compact
    def __call__(self, x):
        x = nn.relu(normalized(x, 64, 7, "stem", 2))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if stage and not i else 1
                x = Bottleneck(64 * 2**stage, stride, not i, name=f"block_{stage}_{i}")(x)
        return nn.Dense(1000, name="head")(x.mean((1, 2)))


class MobileNet(nn.Module):
    """Depthwise and pointwise convolutions in turn (Howard et al. 2017)."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(normalized(x, 32, 3, "stem", 2))
        widths = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
        for i, width in enumerate(widths):
            stride = 2 if i in (1, 3, 5, 11) else 1
            x = nn.relu6(normalized(x, x.shape[-1], 3, f"depthwise_{i}", stride, x.shape[-1]))
            x = nn.relu6(normalized(x, width, 1, f"pointwise_{i}"))
        return nn.Dense(1000, name="head")(x.mean((1, 2)))


class MobileNetV2(nn.Module):
    """Inverted residuals, whose narrow ends have both signs (Sandler et al. 2018)."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(normalized(x, 32, 3, "stem", 2))
        stages = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2))
        for stage, (width, depth, stride) in enumerate((*stages, (320, 1, 1))):
            for i in range(depth):
                expansion = 6 if stage else 1
                x = self.block(x, width, expansion, 1 if i else stride, f"block_{stage}_{i}")
        x = nn.relu6(normalized(x, 1280, 1, "last"))
        return nn.Dense(1000, name="head")(x.mean((1, 2)))

    def block(self, x, width, expansion, stride, name):
        wide = expansion * x.shape[-1]
        y = nn.relu6(normalized(x, wide, 1, f"{name}_expand")) if expansion > 1 else x
        y = nn.relu6(normalized(y, wide, 3, f"{name}_depthwise", stride, wide))
        y = normalized(y, width, 1, f"{name}_project")
        return x + y if y.shape == x.shape else y


PICTURES: dict[str, nn.Module] = {
    "VGG16": VGG16(),
    "ResNet50": ResNet50(),
    "MobileNet": MobileNet(),
    "MobileNetV2": MobileNetV2(),
}
TRANSFORMERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Llama, 4 blocks": (Llama(), (1, 128, 512)),
    "ViT-B/16": (ViT(), (1, 224, 224, 3)),
    "GPT-2, 4 blocks": (GPT2(), (1, 128, 768)),
}
NETWORKS = {name: (module, (1, 224, 224, 3)) for name, module in PICTURES.items()} | TRANSFORMERS


def shapes(
    name: str, size: int | None = None, batch: int = 1, length: int | None = None
) -> tuple[Callable[..., jax.Array], Any, jax.ShapeDtypeStruct]:
    """The function of a network, and its parameters and input as shapes.

    Args:
        name: of ``NETWORKS``.
        size: of pictures, in pixels; by default 224.
        batch: how many samples.
        length: of sequences, in tokens; by default 128.
    """
    module: Any
    module, shape = NETWORKS[name]
    shape = (batch, *shape[1:])
    if size is not None and name in PICTURES:
        shape = (batch, size, size, 3)
    if length is not None and len(shape) == 3:
        shape = (batch, length, shape[-1])
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return module.apply, jax.eval_shape(module.init, jax.random.key(0), x), x


def draw(shapes: Any, dtype: Any = jnp.float32, seed: int = 0) -> Any:
    """Numbers for shapes: kernels and inputs normal and He-scaled, scales one, biases zero."""
    generator = np.random.default_rng(seed)

    def one(path: Any, leaf: Any) -> jax.Array:
        if len(leaf.shape) > 1:
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return jnp.asarray(generator.standard_normal(leaf.shape, np.float32) * deviation, dtype)
        ones = jax.tree_util.keystr(path[-1:], simple=True) in ("scale", "var")
        return jnp.full(leaf.shape, float(ones), dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)
