"""Llama, GPT-2 and BERT as Linen, NNX and Equinox modules, each with the framework's own layers.

``linen_llama(config, params)`` and the like take the arrays of `bare_transformers`, and give a
function and the arguments before the last; the last is vectors ``(time, feature)`` or token ids
``(time,)``.
"""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from bare_transformers import merge, rotary
from flax import nnx


def is_ids(x):
    """Whether the input is token ids, not vectors."""
    return jnp.issubdtype(x.dtype, jnp.integer)


# Linen


class GatedMLP(nn.Module):
    """SwiGLU."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, use_bias=False)
        hidden = nn.silu(dense(self.hidden, name="gate")(x)) * dense(self.hidden, name="up")(x)
        return dense(x.shape[-1], name="down")(hidden)


class GroupedAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    heads: int
    groups: int
    theta: float

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        dense = functools.partial(nn.DenseGeneral, use_bias=False)
        q = dense((self.heads, width // self.heads), name="query")(x)
        k = dense((self.groups, width // self.heads), name="key")(x)
        v = dense((self.groups, width // self.heads), name="value")(x)
        k, v = (jnp.repeat(a, self.heads // self.groups, axis=-2) for a in (k, v))
        mask = nn.make_causal_mask(x[..., 0])
        mixed = nn.dot_product_attention(rotary(q, self.theta), rotary(k, self.theta), v, mask=mask)
        return dense(width, axis=(-2, -1), name="out")(mixed)


class LinenLlama(nn.Module):
    """Llama: logits of the next token at every position."""

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    groups: int
    eps: float
    theta: float

    @nn.compact
    def __call__(self, x):
        if is_ids(x):
            x = nn.Embed(self.vocabulary, self.width, name="embed")(x)
        norm = functools.partial(nn.RMSNorm, epsilon=self.eps)
        for i in range(self.layers):
            attention = GroupedAttention(self.heads, self.groups, self.theta, name=f"attention_{i}")
            x = x + attention(norm(name=f"attention_norm_{i}")(x))
            x = x + GatedMLP(self.hidden, name=f"mlp_{i}")(norm(name=f"mlp_norm_{i}")(x))
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(norm(name="norm")(x))


class LinenGPT2(nn.Module):
    """GPT-2: logits of the next token at every position."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    eps: float

    @nn.compact
    def __call__(self, x):
        if is_ids(x):
            x = nn.Embed(self.vocabulary, self.width, name="wte")(x)
        x = x + nn.Embed(self.positions, self.width, name="wpe")(jnp.arange(x.shape[-2]))
        norm = functools.partial(nn.LayerNorm, epsilon=self.eps)
        mask = nn.make_causal_mask(x[..., 0])
        for i in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads, name=f"attention_{i}")
            x = x + attention(norm(name=f"ln_1_{i}")(x), mask=mask)
            hidden = nn.gelu(nn.Dense(4 * self.width, name=f"fc_{i}")(norm(name=f"ln_2_{i}")(x)))
            x = x + nn.Dense(self.width, name=f"proj_{i}")(hidden)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(norm(name="ln_f")(x))


def linen_llama(config, params):
    """Linen's Llama with the weights of the bare one."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    body = params["model"]
    variables = {
        "embed": {"embedding": body["embed_tokens"]["weight"]},
        "norm": scale(body["norm"]),
        "head": dense(params["lm_head"]),
    }
    for i, p in body["layers"].items():
        attention = {name: dense(p["self_attn"][f"{name[0]}_proj"]) for name in ATTENTION}
        variables |= {
            f"attention_{i}": split(attention, heads, groups),
            f"attention_norm_{i}": scale(p["input_layernorm"]),
            f"mlp_{i}": {name: dense(p["mlp"][f"{name}_proj"]) for name in ("gate", "up", "down")},
            f"mlp_norm_{i}": scale(p["post_attention_layernorm"]),
        }
    model = LinenLlama(
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        hidden=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=heads,
        groups=groups,
        eps=config.rms_norm_eps,
        theta=config.rope_parameters["rope_theta"],
    )
    return model.apply, ({"params": variables},)


def linen_gpt2(config, params):
    """Linen's GPT-2 with the weights of the bare one; queries, keys and values are taken apart."""
    body = params["transformer"]
    variables = {
        "wte": {"embedding": body["wte"]["weight"]},
        "wpe": {"embedding": body["wpe"]["weight"]},
        "ln_f": scale(body["ln_f"]),
        "head": dense(params["lm_head"]),
    }
    for i, p in body["h"].items():
        parts = {name: jnp.split(a, 3, axis=-1) for name, a in kernel(p["attn"]["c_attn"]).items()}
        attention = {
            name: {"kernel": parts["kernel"][j], "bias": parts["bias"][j]}
            for j, name in enumerate(ATTENTION[:3])
        }
        attention["out"] = kernel(p["attn"]["c_proj"])
        variables |= {
            f"attention_{i}": split(attention, config.n_head, config.n_head),
            f"ln_1_{i}": scale(p["ln_1"]),
            f"ln_2_{i}": scale(p["ln_2"]),
            f"fc_{i}": kernel(p["mlp"]["c_fc"]),
            f"proj_{i}": kernel(p["mlp"]["c_proj"]),
        }
    model = LinenGPT2(
        vocabulary=config.vocab_size,
        positions=config.n_positions,
        width=config.n_embd,
        layers=config.n_layer,
        heads=config.n_head,
        eps=config.layer_norm_epsilon,
    )
    return model.apply, ({"params": variables},)


# NNX


class NNXBlock(nnx.Module):
    """Attention over the whole sentence and an MLP, with LayerNorm after the residual sums."""

    def __init__(self, config, rngs):
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = nnx.MultiHeadAttention(
            config.num_attention_heads, width, decode=False, rngs=rngs
        )
        self.attention_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.fc = nnx.Linear(width, config.intermediate_size, rngs=rngs)
        self.proj = nnx.Linear(config.intermediate_size, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)

    def __call__(self, x):
        x = self.attention_norm(x + self.attention(x))
        return self.norm(x + self.proj(nnx.gelu(self.fc(x), approximate=False)))


class NNXBert(nnx.Module):
    """The BERT classifier: logits of the classes, from the first token."""

    def __init__(self, config, rngs):
        width = config.hidden_size
        embed = functools.partial(nnx.Embed, param_dtype=jnp.float64, rngs=rngs)
        self.words = embed(config.vocab_size, width)
        self.positions = embed(config.max_position_embeddings, width)
        self.types = embed(config.type_vocab_size, width)
        self.norm = nnx.LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.blocks = nnx.List(NNXBlock(config, rngs) for _ in range(config.num_hidden_layers))
        self.pooler = nnx.Linear(width, width, rngs=rngs)
        self.head = nnx.Linear(width, len(config.id2label), rngs=rngs)

    def __call__(self, x):
        if is_ids(x):
            x = self.words(x)
        positions = jnp.arange(x.shape[-2])
        x = self.norm(x + self.positions(positions) + self.types(jnp.zeros_like(positions)))
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.tanh(self.pooler(x[..., 0, :])))


def nnx_bert(config, params):
    """NNX's BERT with the weights of the bare one."""
    body = params["bert"]
    table = body["embeddings"]
    weights = {
        "words": {"embedding": table["word_embeddings"]["weight"]},
        "positions": {"embedding": table["position_embeddings"]["weight"]},
        "types": {"embedding": table["token_type_embeddings"]["weight"]},
        "norm": scale(table["LayerNorm"]),
        "pooler": dense(body["pooler"]["dense"]),
        "head": dense(params["classifier"]),
    }
    model = NNXBert(config, nnx.Rngs(0))
    carry(model, weights)
    heads = config.num_attention_heads
    for block, p in zip(model.blocks, body["encoder"]["layer"].values(), strict=True):
        attention = {name: dense(p["attention"]["self"][name]) for name in ATTENTION[:3]}
        attention["out"] = dense(p["attention"]["output"]["dense"])
        weights = {
            "attention": split(attention, heads, heads),
            "attention_norm": scale(p["attention"]["output"]["LayerNorm"]),
            "fc": dense(p["intermediate"]["dense"]),
            "proj": dense(p["output"]["dense"]),
            "norm": scale(p["output"]["LayerNorm"]),
        }
        carry(block, weights)
    return model, ()


def carry(module, weights):
    """Sets the parameters of an NNX module, by name."""
    for name, value in weights.items():
        if isinstance(value, dict):
            carry(getattr(module, name), value)
        else:
            getattr(module, name).set_value(value)


# Equinox


class EquinoxAttention(eqx.Module):
    """Grouped-query attention with rotary positions, through JAX's own attention."""

    q_proj: eqx.nn.Linear
    k_proj: eqx.nn.Linear
    v_proj: eqx.nn.Linear
    o_proj: eqx.nn.Linear
    rotary: eqx.nn.RotaryPositionalEmbedding
    features: int = eqx.field(static=True)

    def __call__(self, x):
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            jax.vmap(project)(x).reshape(len(x), -1, self.features) for project in projections
        )
        rotate = jax.vmap(self.rotary, in_axes=1, out_axes=1)
        mixed = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return jax.vmap(self.o_proj)(merge(mixed))


class EquinoxBlock(eqx.Module):
    """Attention and SwiGLU, each on normalized values and added to them."""

    attention: EquinoxAttention
    attention_norm: eqx.nn.RMSNorm
    gate_proj: eqx.nn.Linear
    up_proj: eqx.nn.Linear
    down_proj: eqx.nn.Linear
    mlp_norm: eqx.nn.RMSNorm

    def mlp(self, x):
        """SwiGLU of one token."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))

    def __call__(self, x):
        x = x + self.attention(jax.vmap(self.attention_norm)(x))
        return x + jax.vmap(self.mlp)(jax.vmap(self.mlp_norm)(x))


class EquinoxLlama(eqx.Module):
    """Llama: logits of the next token at every position."""

    words: eqx.nn.Embedding
    blocks: list[EquinoxBlock]
    norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __call__(self, x):
        if is_ids(x):
            x = jax.vmap(self.words)(x)
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.head)(jax.vmap(self.norm)(x))


def equinox_llama(config, params):
    """Equinox' Llama with the weights of the bare one."""

    def linear(p):
        rows, columns = p["weight"].shape
        layer = eqx.nn.Linear(columns, rows, use_bias=False, key=jax.random.key(0))
        return eqx.tree_at(lambda layer: layer.weight, layer, p["weight"])

    def norm(p):
        layer = eqx.nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, use_bias=False)
        return eqx.tree_at(lambda layer: layer.weight, layer, p["weight"])

    theta = config.rope_parameters["rope_theta"]
    rotary = eqx.nn.RotaryPositionalEmbedding(config.head_dim, theta, dtype=jnp.float64)

    def block(p):
        attention = {name: linear(p["self_attn"][name]) for name in p["self_attn"]}
        return EquinoxBlock(
            attention=EquinoxAttention(**attention, rotary=rotary, features=config.head_dim),
            attention_norm=norm(p["input_layernorm"]),
            mlp_norm=norm(p["post_attention_layernorm"]),
            **{name: linear(p["mlp"][name]) for name in p["mlp"]},
        )

    body = params["model"]
    model = EquinoxLlama(
        words=eqx.nn.Embedding(weight=body["embed_tokens"]["weight"]),
        blocks=[block(p) for p in body["layers"].values()],
        norm=norm(body["norm"]),
        head=linear(params["lm_head"]),
    )
    return model, ()


# Weights under Flax' names

ATTENTION = ("query", "key", "value", "out")


def kernel(p):
    """A dense layer whose weight is ``(in, out)`` already."""
    return {"kernel": p["weight"]} | {name: p[name] for name in p if name == "bias"}


def dense(p):
    """A dense layer of weight ``(out, in)``."""
    return kernel(p | {"weight": p["weight"].T})


def scale(p):
    """A normalization."""
    return {"scale": p["weight"]} | {name: p[name] for name in p if name == "bias"}


def split(attention, heads, groups):
    """The dense layers around an attention, their features split into heads."""
    counts = {"query": heads, "key": groups, "value": groups}
    parts = {
        name: {key: a.reshape(*a.shape[:-1], count, -1) for key, a in attention[name].items()}
        for name, count in counts.items()
    }
    out = attention["out"]
    width = out["kernel"].shape[-1]
    return parts | {"out": out | {"kernel": out["kernel"].reshape(heads, -1, width)}}
