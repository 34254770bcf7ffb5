"""The network of the reaction example once more: a tiny one, and two references.

`naive_logits` is what it computes, in float64 and loops; `modified_gradient` is what its relevance
is, by automatic differentiation of a network in which some derivatives are changed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from reference_language_model import halved
from scipy.special import erf

from reaction_albert import Config, ReactionAlbert, ReactionModel, variables_from_checkpoint

TOKENS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "C",
    "N",
    "O",
    "Cl",
    "c",
    "1",
    "(",
    ")",
    "=",
    ".",
    ">>",
]
CONFIG = Config(
    vocabulary=len(TOKENS),
    context=32,
    segments=2,
    embedding=8,
    width=16,
    heads=4,
    hidden=24,
    repeats=3,
    epsilon=1e-12,
)
_BODY = "albert.encoder.albert_layer_groups.0.albert_layers.0"


def tiny_state():
    """Name to array, as a checkpoint has them: weights are (out, in)."""
    rng = np.random.default_rng(0)
    c = CONFIG
    arrays = {"predictions.bias": rng.normal(0, 0.1, c.vocabulary)}

    def embedding(name, rows):
        arrays[f"albert.embeddings.{name}.weight"] = rng.normal(0, 1, (rows, c.embedding))

    def dense(name, out, inputs):
        arrays[f"{name}.weight"] = rng.normal(0, inputs**-0.5, (out, inputs))
        arrays[f"{name}.bias"] = rng.normal(0, 0.1, out)

    def norm(name, size):
        arrays[f"{name}.weight"] = rng.normal(1, 0.3, size)
        arrays[f"{name}.bias"] = rng.normal(0, 0.1, size)

    embedding("word_embeddings", c.vocabulary)
    embedding("position_embeddings", c.context)
    embedding("token_type_embeddings", c.segments)
    norm("albert.embeddings.LayerNorm", c.embedding)
    dense("albert.encoder.embedding_hidden_mapping_in", c.width, c.embedding)
    for name in ("query", "key", "value", "dense"):
        dense(f"{_BODY}.attention.{name}", c.width, c.width)
    norm(f"{_BODY}.attention.LayerNorm", c.width)
    dense(f"{_BODY}.ffn", c.hidden, c.width)
    dense(f"{_BODY}.ffn_output", c.width, c.hidden)
    norm(f"{_BODY}.full_layer_layer_norm", c.width)
    dense("albert.pooler", c.width, c.width)
    dense("predictions.dense", c.embedding, c.width)
    norm("predictions.LayerNorm", c.embedding)
    dense("predictions.decoder", c.vocabulary, c.embedding)
    return {name: np.float32(array) for name, array in arrays.items()}


def tiny_model():
    """The network with these arrays."""
    return ReactionModel(
        ReactionAlbert(CONFIG), variables_from_checkpoint(tiny_state(), CONFIG), TOKENS
    )


def naive_logits(state, ids):
    """The network in float64 and loops."""
    w = {name: np.float64(array) for name, array in state.items()}
    size, count = CONFIG.width // CONFIG.heads, len(ids)

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return x * (1 + erf(x / np.sqrt(2))) / 2

    embeddings = "albert.embeddings"
    x = w[f"{embeddings}.word_embeddings.weight"][ids]
    x = x + w[f"{embeddings}.position_embeddings.weight"][:count]
    x = x + w[f"{embeddings}.token_type_embeddings.weight"][0]
    x = dense(norm(x, f"{embeddings}.LayerNorm"), "albert.encoder.embedding_hidden_mapping_in")
    for _ in range(CONFIG.repeats):
        query, key, value = (
            dense(x, f"{_BODY}.attention.{name}") for name in ("query", "key", "value")
        )
        mixed = np.zeros_like(x)
        for here in range(count):
            for head in range(CONFIG.heads):
                part = slice(head * size, (head + 1) * size)
                weights = np.exp(key[:, part] @ query[here, part] / np.sqrt(size))
                mixed[here, part] = weights @ value[:, part] / weights.sum()
        x = norm(x + dense(mixed, f"{_BODY}.attention.dense"), f"{_BODY}.attention.LayerNorm")
        hidden = gelu(dense(x, f"{_BODY}.ffn"))
        x = norm(x + dense(hidden, f"{_BODY}.ffn_output"), f"{_BODY}.full_layer_layer_norm")
    x = norm(gelu(dense(x, "predictions.dense")), "predictions.LayerNorm")
    return x @ w[f"{embeddings}.word_embeddings.weight"].T + w["predictions.bias"]


def modified_logits(variables, config, x, conservative):
    """The network from its embedded tokens on, whose gradient times x is relevance.

    That is AttnLRP as its authors write it down for PyTorch: the deviations of norms and the factor
    of gelu count as constants, and products halve the derivative. For CP-LRP attention is constant.
    """
    hold, half = jax.lax.stop_gradient, (lambda z: z) if conservative else halved
    params = variables["params"]

    def dense(x, group):
        return x @ group["kernel"] + group["bias"][None]

    def norm(x, group):
        x = x - x.mean(axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.epsilon)
        return x / hold(deviation) * group["scale"][None] + group["bias"][None]

    def gelu(x):
        return x * hold(jax.scipy.stats.norm.cdf(x))

    x = x + params["positions"]["embedding"][: len(x)] + params["segments"]["embedding"][:1]
    x = dense(norm(x, params["embedding_norm"]), params["widen"])
    layer = params["layer"]
    weights = layer["attention"]
    for _ in range(config.repeats):
        query, key, value = (
            jnp.einsum("tc,chd->thd", x, weights[name]["kernel"]) + weights[name]["bias"][None]
            for name in ("query", "key", "value")
        )
        scores = half(jnp.einsum("thd,shd->hts", query, key)) / query.shape[-1] ** 0.5
        attention = jax.nn.softmax(scores, axis=-1)
        attention = hold(attention) if conservative else attention
        mixed = half(jnp.einsum("hts,shd->thd", attention, value))
        mixed = jnp.einsum("thd,hdc->tc", mixed, weights["out"]["kernel"])
        x = norm(x + mixed + weights["out"]["bias"][None], layer["attention_norm"])
        x = norm(x + dense(gelu(dense(x, layer["up"])), layer["down"]), layer["norm"])
    x = norm(gelu(dense(x, params["narrow"])), params["head_norm"])
    return x @ params["tokens"]["embedding"].T + params["bias"][None]


def modified_gradient(model, ids, position, target, against, conservative):
    """Relevance as gradient times input of `modified_logits`, for a difference of two logits."""

    def chosen(x):
        logits = modified_logits(model.variables, model.network.config, x, conservative)
        return logits[position, target] - logits[position, against]

    x = model.variables["params"]["tokens"]["embedding"][ids]
    return np.asarray((x * jax.jit(jax.grad(chosen))(x)).sum(axis=-1))
