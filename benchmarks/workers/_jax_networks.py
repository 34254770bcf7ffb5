"""LeNet in Flax, and the transformers of the peers in plain ``jax.numpy``.

The transformers read parameters under the names of their PyTorch modules: Llama and BERT of
Hugging Face's transformers, ViT-B/16 of torchvision. Shapes are ``(batch, time, feature)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import networks
from benchmarks.workers._problems import BERT, LLAMA, VIT

Params = Mapping[str, jax.Array]


class LeNet(nn.Module):
    """Two convolutions and two dense layers, for digits."""

    @nn.compact
    def __call__(self, x):
        for number, width in enumerate((20, 50), 1):
            x = nn.relu(nn.Conv(width, (5, 5), padding="VALID", name=f"conv_{number}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(500, name="dense_1")(x.reshape(x.shape[0], -1)))
        return nn.Dense(10, name="head")(x)


def linear(p: Params, name: str, x: jax.Array) -> jax.Array:
    """A dense layer of weight ``(out, in)``, with a bias if there is one."""
    z = x @ p[f"{name}.weight"].T
    bias = p.get(f"{name}.bias")
    return z if bias is None else z + bias


def rms_norm(p: Params, name: str, x: jax.Array, epsilon: float) -> jax.Array:
    root = lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + epsilon)
    return p[f"{name}.weight"] * (x * root)


def layer_norm(p: Params, name: str, x: jax.Array, epsilon: float) -> jax.Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + epsilon) * p[f"{name}.weight"] + p[f"{name}.bias"]


def rotary(x: jax.Array, theta: float) -> jax.Array:
    """Rotates pairs of features, the first half with the second, by the position."""
    time, features = x.shape[1], x.shape[-1]
    angle = np.arange(time)[:, None] * theta ** -(np.arange(0, features, 2) / features)
    cos, sin = (f(angle)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def heads(x: jax.Array, count: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], count, -1)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = False) -> jax.Array:
    """Scaled dot-product attention of ``(batch, time, head, feature)``; heads are merged."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
    return mixed.reshape(*mixed.shape[:2], -1)


def llama(p: Params, x: jax.Array) -> jax.Array:
    """Word vectors to the logits of the next word, after the last position."""
    epsilon, theta = LLAMA["rms_norm_eps"], LLAMA["rope_theta"]
    query, keys = LLAMA["num_attention_heads"], LLAMA["num_key_value_heads"]
    for i in range(LLAMA["num_hidden_layers"]):
        block = f"model.layers.{i}"
        y = rms_norm(p, f"{block}.input_layernorm", x, epsilon)
        q = rotary(heads(linear(p, f"{block}.self_attn.q_proj", y), query), theta)
        k = rotary(heads(linear(p, f"{block}.self_attn.k_proj", y), keys), theta)
        v = heads(linear(p, f"{block}.self_attn.v_proj", y), keys)
        k, v = (jnp.repeat(z, query // keys, axis=2) for z in (k, v))
        x = x + linear(p, f"{block}.self_attn.o_proj", attention(q, k, v, causal=True))
        y = rms_norm(p, f"{block}.post_attention_layernorm", x, epsilon)
        gate = jax.nn.silu(linear(p, f"{block}.mlp.gate_proj", y))
        x = x + linear(p, f"{block}.mlp.down_proj", gate * linear(p, f"{block}.mlp.up_proj", y))
    return linear(p, "lm_head", rms_norm(p, "model.norm", x[:, -1], epsilon))


def bert(p: Params, x: jax.Array) -> jax.Array:
    """Word vectors to the logits of classes, from the first position."""
    epsilon, count = BERT["layer_norm_eps"], BERT["num_attention_heads"]
    table = "bert.embeddings"
    x = x + p[f"{table}.token_type_embeddings.weight"][0]
    x = x + p[f"{table}.position_embeddings.weight"][: x.shape[1]]
    x = layer_norm(p, f"{table}.LayerNorm", x, epsilon)
    for i in range(BERT["num_hidden_layers"]):
        block = f"bert.encoder.layer.{i}"
        inner = f"{block}.attention"
        q, k, v = (heads(linear(p, f"{inner}.self.{n}", x), count) for n in QUERY_KEY_VALUE)
        x = x + linear(p, f"{inner}.output.dense", attention(q, k, v))
        x = layer_norm(p, f"{inner}.output.LayerNorm", x, epsilon)
        hidden = linear(p, f"{block}.intermediate.dense", x)
        x = x + linear(p, f"{block}.output.dense", jax.nn.gelu(hidden, approximate=False))
        x = layer_norm(p, f"{block}.output.LayerNorm", x, epsilon)
    return linear(p, "classifier", jnp.tanh(linear(p, "bert.pooler.dense", x[:, 0])))


QUERY_KEY_VALUE = ("query", "key", "value")


def vit(p: Params, x: jax.Array) -> jax.Array:
    """Pictures to the logits of ImageNet."""
    size, count = VIT["patch"], VIT["heads"]
    kernel = p["conv_proj.weight"].transpose(2, 3, 1, 0)
    layout = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, kernel, (size, size), "VALID", dimension_numbers=layout)
    x = (x + p["conv_proj.bias"]).reshape(x.shape[0], -1, x.shape[-1])
    token = jnp.broadcast_to(p["class_token"], (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([token, x], axis=1) + p["encoder.pos_embedding"]
    for i in range(VIT["layers"]):
        block = f"encoder.layers.encoder_layer_{i}"
        y = layer_norm(p, f"{block}.ln_1", x, 1e-6)
        weight, bias = (p[f"{block}.self_attention.in_proj_{n}"] for n in ("weight", "bias"))
        q, k, v = (heads(z, count) for z in jnp.split(y @ weight.T + bias, 3, axis=-1))
        x = x + linear(p, f"{block}.self_attention.out_proj", attention(q, k, v))
        y = linear(p, f"{block}.mlp.0", layer_norm(p, f"{block}.ln_2", x, 1e-6))
        x = x + linear(p, f"{block}.mlp.3", jax.nn.gelu(y, approximate=False))
    return linear(p, "heads.head", layer_norm(p, "encoder.ln", x[:, 0], 1e-6))


FLAX: dict[str, nn.Module] = {
    "LeNet": LeNet(),
    "VGG16": networks.VGG16(),
    "ResNet50": networks.ResNet50(),
}
PLAIN: dict[str, Callable[[Params, jax.Array], jax.Array]] = {
    "Llama": llama,
    "BERT": bert,
    "ViT": vit,
}


def network(name: str, weights: Mapping[str, Any]) -> tuple[Callable[..., jax.Array], Any]:
    """The function of a network, and its parameters."""
    arrays = {key: jnp.asarray(value) for key, value in weights.items()}
    if name in PLAIN:
        return PLAIN[name], arrays
    params: dict[str, Any] = {}
    for key, value in arrays.items():
        *path, last = key.split("/")
        inner = params
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return FLAX[name].apply, params
