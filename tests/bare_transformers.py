"""The transformers whose relevances LXT recorded, in plain ``jax.numpy``.

``load("llama")`` gives a model, its parameters under Hugging Face's names, and the record:
``model(params, embeds)`` and ``model.on_ids(params, ids)`` are the logits. Shapes are
``(*batch, time, feature)``, heads ``(*batch, time, head, feature)``.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import gelu, silu, softmax, tanh

FOLDER = Path(__file__).parent / "data" / "lxt"


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its configuration, to be called with vectors or with token ids."""

    function: Callable
    words: tuple[str, ...]
    config: SimpleNamespace

    def __call__(self, params, embeds):
        return self.function(self.config, params, embeds)

    def on_ids(self, params, ids):
        return self(params, self.embedding(params)[ids])

    def embedding(self, params):
        """The table of word vectors."""
        for name in self.words:
            params = params[name]
        return params["weight"]

    def replace(self, **config):
        """The same network, differently configured."""
        config = SimpleNamespace(**vars(self.config) | config)
        return dataclasses.replace(self, config=config)


def load(name):
    """A model, its parameters and the record: arrays, with relevances under gi, attn and cp."""
    config = json.loads((FOLDER / f"{name}_config.json").read_text())
    config = SimpleNamespace(**config, norm_dtype=jnp.float32)
    with np.load(FOLDER / f"{name}_gi.npz") as stored:
        data = dict(stored)
    params = nested({key[2:]: data.pop(key) for key in list(data) if key.startswith("w:")})
    data["gi"] = data.pop("R_embed")
    for kind in ("attn", "cp"):
        path = FOLDER / f"{name}_{kind}.npz"
        if path.exists():
            with np.load(path) as stored:
                data[kind] = stored["R_embed"]
    return Model(*MODELS[name], config), params, data


def nested(arrays):
    """``{"a.b.weight": w}`` as ``{"a": {"b": {"weight": w}}}``."""
    params = {}
    for name, array in arrays.items():
        *path, last = name.split(".")
        inner = params
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = jnp.asarray(array)
    return params


# Layers


def linear(p, x):
    """A dense layer of weight ``(out, in)``, with a bias if there is one."""
    z = x @ p["weight"].T
    return z + p["bias"] if "bias" in p else z


def conv1d(p, x):
    """What GPT-2 calls a convolution: a dense layer of weight ``(in, out)``."""
    return x @ p["weight"] + p["bias"]


def rms_norm(p, x, eps, dtype=jnp.float32):
    """RMSNorm over the features; the root mean square is taken in ``dtype``."""
    wide = x.astype(dtype)
    wide = wide * lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return p["weight"] * wide.astype(x.dtype)


def layer_norm(p, x, eps):
    """LayerNorm over the features."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + eps) * p["weight"] + p["bias"]


def rotary(x, theta):
    """Rotates pairs of features, the first half with the second, by the position."""
    time, features = x.shape[-3], x.shape[-1]
    frequency = theta ** -(jnp.arange(0, features, 2) / features)
    angle = jnp.arange(time)[:, None] * frequency
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def heads(x, count):
    """Splits the features into heads."""
    return x.reshape(*x.shape[:-1], count, -1)


def merge(x):
    """Heads back to features."""
    return x.reshape(*x.shape[:-2], -1)


def attention(q, k, v, causal=True):
    """Scaled dot-product attention."""
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k) / math.sqrt(q.shape[-1])
    if causal:
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(seen, scores, -jnp.inf)
    return jnp.einsum("...hqk,...khd->...qhd", softmax(scores, axis=-1), v)


# Llama and Qwen3


def llama_attention(config, p, x):
    """Grouped-query attention with rotary positions; Qwen3 normalizes queries and keys."""
    q = heads(linear(p["q_proj"], x), config.num_attention_heads)
    k = heads(linear(p["k_proj"], x), config.num_key_value_heads)
    v = heads(linear(p["v_proj"], x), config.num_key_value_heads)
    if "q_norm" in p:
        q = rms_norm(p["q_norm"], q, config.rms_norm_eps, config.norm_dtype)
        k = rms_norm(p["k_norm"], k, config.rms_norm_eps, config.norm_dtype)
    theta = config.rope_parameters["rope_theta"]
    q, k = rotary(q, theta), rotary(k, theta)
    groups = config.num_attention_heads // config.num_key_value_heads
    k, v = jnp.repeat(k, groups, axis=-2), jnp.repeat(v, groups, axis=-2)
    return linear(p["o_proj"], merge(attention(q, k, v)))


def gated_mlp(p, x):
    """SwiGLU."""
    return linear(p["down_proj"], silu(linear(p["gate_proj"], x)) * linear(p["up_proj"], x))


def llama(config, params, x):
    """Llama, and Qwen3: logits of the next token at every position."""
    eps, dtype = config.rms_norm_eps, config.norm_dtype
    for p in params["model"]["layers"].values():
        normed = rms_norm(p["input_layernorm"], x, eps, dtype)
        x = x + llama_attention(config, p["self_attn"], normed)
        x = x + gated_mlp(p["mlp"], rms_norm(p["post_attention_layernorm"], x, eps, dtype))
    return linear(params["lm_head"], rms_norm(params["model"]["norm"], x, eps, dtype))


# GPT-2


def gpt2(config, params, x):
    """GPT-2: logits of the next token at every position."""
    body, eps, count = params["transformer"], config.layer_norm_epsilon, config.n_head
    x = x + body["wpe"]["weight"][: x.shape[-2]]
    for p in body["h"].values():
        normed = layer_norm(p["ln_1"], x, eps)
        q, k, v = jnp.split(conv1d(p["attn"]["c_attn"], normed), 3, axis=-1)
        mixed = attention(heads(q, count), heads(k, count), heads(v, count))
        x = x + conv1d(p["attn"]["c_proj"], merge(mixed))
        hidden = gelu(conv1d(p["mlp"]["c_fc"], layer_norm(p["ln_2"], x, eps)))
        x = x + conv1d(p["mlp"]["c_proj"], hidden)
    return linear(params["lm_head"], layer_norm(body["ln_f"], x, eps))


# BERT


def bert_attention(config, p, x):
    """Attention over the whole sentence, with LayerNorm after the residual sum."""
    count, inner = config.num_attention_heads, p["self"]
    q, k, v = (heads(linear(inner[name], x), count) for name in ("query", "key", "value"))
    mixed = linear(p["output"]["dense"], merge(attention(q, k, v, causal=False)))
    return layer_norm(p["output"]["LayerNorm"], x + mixed, config.layer_norm_eps)


def bert(config, params, x):
    """The BERT classifier: logits of the classes, from the first token."""
    body, eps = params["bert"], config.layer_norm_eps
    table = body["embeddings"]
    x = x + table["token_type_embeddings"]["weight"][0]
    x = x + table["position_embeddings"]["weight"][: x.shape[-2]]
    x = layer_norm(table["LayerNorm"], x, eps)
    for p in body["encoder"]["layer"].values():
        x = bert_attention(config, p["attention"], x)
        hidden = gelu(linear(p["intermediate"]["dense"], x), approximate=False)
        x = layer_norm(p["output"]["LayerNorm"], x + linear(p["output"]["dense"], hidden), eps)
    pooled = tanh(linear(body["pooler"]["dense"], x[..., 0, :]))
    return linear(params["classifier"], pooled)


MODELS = {
    "llama": (llama, ("model", "embed_tokens")),
    "qwen3": (llama, ("model", "embed_tokens")),
    "gpt2": (gpt2, ("transformer", "wte")),
    "bert": (bert, ("bert", "embeddings", "word_embeddings")),
}
