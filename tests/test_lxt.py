"""Llama, Qwen3, GPT-2 and BERT against the relevances that LXT recorded, and against its rules.

LXT's efficient variant swaps functions of the model for others with another gradient, and takes
gradient * input. `by_hand` does that to the bare models, and is the oracle where nothing was
recorded: for BERT, and for more digits than a float32 RMSNorm has. The seed is the logit of
``target``, at the last position; LXT divides by ``x + 1e-10`` in activations.
"""

import contextlib
import functools
from unittest import mock

import bare_transformers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformer_frameworks as frameworks
from jax import lax

import relax

stop = lax.stop_gradient
load = functools.cache(bare_transformers.load)

LANGUAGE_MODELS = ("llama", "qwen3", "gpt2")
ALL = (*LANGUAGE_MODELS, "bert")
KINDS = ("attn", "cp")
LXT_GUARD = 1e-10

# The RMSNorm of Llama and Qwen3 computes in float32; the guard is felt in GPT-2's GELUs.
TOLERANCE = {"llama": 1e-6, "qwen3": 1e-6, "gpt2": 1e-8, "bert": 1e-12}
WITHOUT_GUARD = TOLERANCE | {"gpt2": 1e-12}

names = pytest.mark.parametrize("name", ALL)
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Model authors add biases of lower rank; that is their affair."""
    with jax.numpy_rank_promotion("allow"):
        yield


def error(got, expected):
    """The largest difference, over the largest value."""
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


def explained(function, name):
    """The logits that are explained: those of the last position; BERT has but one."""
    return function if name == "bert" else lambda *args: function(*args)[..., -1, :]


def rules(kind):
    return {"attn": relax.composites.attnlrp, "cp": relax.composites.cp_lrp}[kind]()


# The oracle: LXT's way


def share(x, part):
    """x itself, with a part of its gradient."""
    return part * x + stop((1 - part) * x)


def passing(activation, guard):
    """An activation that hands on its relevance: its gradient is y / x."""

    def passes(x, **options):
        y = activation(x, **options)
        coefficient = stop(y / (x + guard))
        return coefficient * x + stop(y - coefficient * x)

    return passes


def rms_norm(p, x, eps, dtype=jnp.float32):
    """RMSNorm with a constant root mean square."""
    wide = x.astype(dtype)
    mean_square = jnp.mean(wide**2, axis=-1, keepdims=True)
    return p["weight"] * (wide * stop(lax.rsqrt(mean_square + eps))).astype(x.dtype)


def layer_norm(p, x, eps):
    """LayerNorm with a constant standard deviation; the centering stays."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return centered / stop(jnp.sqrt(variance + eps)) * p["weight"] + p["bias"]


def replaced(kind, guard):
    """Functions of `bare_transformers` with LXT's gradients."""
    attend, linear = bare_transformers.attention, bare_transformers.linear
    silu = passing(bare_transformers.silu, guard)

    def attention(q, k, v, causal=True):
        if kind == "cp":  # the attention weights are constants
            return attend(stop(q), stop(k), v, causal)
        return attend(share(q, 1 / 4), share(k, 1 / 4), share(v, 1 / 2), causal)

    def gated_mlp(p, x):
        gate, up = silu(linear(p["gate_proj"], x)), linear(p["up_proj"], x)
        product = stop(gate) * up if kind == "cp" else share(gate * up, 1 / 2)
        return linear(p["down_proj"], product)

    return {
        "attention": attention,
        "gated_mlp": gated_mlp,
        "gelu": passing(bare_transformers.gelu, guard),
        "tanh": passing(bare_transformers.tanh, guard),
        "rms_norm": rms_norm,
        "layer_norm": layer_norm,
    }


def by_hand(name, kind, embeds, *, guard=0.0, norm_dtype=jnp.float64):
    """Relevance of word vectors, by LXT's rules; ``gi`` is plain gradient * input."""
    model, params, data = load(name)
    model = explained(model.replace(norm_dtype=norm_dtype), name)
    new = {} if kind == "gi" else replaced(kind, guard)
    with contextlib.ExitStack() as stack:
        for attribute, function in new.items():
            stack.enter_context(mock.patch.object(bare_transformers, attribute, function))
        return embeds * jax.grad(lambda x: model(params, x)[data["target"]])(embeds)


@names
def test_models(name):
    """The models written here are the recorded ones: logits and gradient * input agree."""
    model, params, data = load(name)
    logits = explained(model, name)(params, data["embeds"])
    assert error(logits, data["logits"]) < WITHOUT_GUARD[name]
    assert np.argmax(data["logits"]) == data["target"]
    np.testing.assert_array_equal(model.embedding(params)[data["ids"]], data["embeds"])
    got = by_hand(name, "gi", data["embeds"], norm_dtype=jnp.float32)
    assert error(got, data["gi"]) < WITHOUT_GUARD[name]


@kinds
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_by_hand(name, kind):
    """The oracle is LXT."""
    *_, data = load(name)
    got = by_hand(name, kind, data["embeds"], guard=LXT_GUARD, norm_dtype=jnp.float32)
    assert error(got, data[kind]) < WITHOUT_GUARD[name]


# relax


def explain(function, name, kind):
    *_, data = load(name)
    target = int(data["target"])
    return jax.jit(relax.lrp(explained(function, name), rules(kind), target=target))


@kinds
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_record(name, kind):
    """relax agrees with LXT; CP-LRP conserves relevance where there is no bias."""
    model, params, data = load(name)
    relevance = explain(model, name, kind)(params, jnp.asarray(data["embeds"]))
    assert error(relevance, data[kind]) < TOLERANCE[name]
    if kind == "cp" and name != "gpt2":
        np.testing.assert_allclose(relevance.sum(), data["logits"][data["target"]], rtol=1e-6)


@kinds
@names
def test_token_ids(name, kind):
    """The relevance of a token is that of its word vector, in every sentence of a batch."""
    model, params, data = load(name)
    ids = np.stack([data["ids"], data["ids"][::-1]])
    model = model.replace(norm_dtype=jnp.float64)
    relevance = explain(model.on_ids, name, kind)(params, jnp.asarray(ids))
    assert relevance.shape == ids.shape
    expected = [by_hand(name, kind, model.embedding(params)[row]).sum(-1) for row in ids]
    assert error(relevance, np.stack(expected)) < 1e-10


# `jax.nn.dot_product_attention`, which NNX and Equinox call, takes its softmax in float32.
FRAMEWORKS = {
    "linen-llama": (frameworks.linen_llama, "llama", 1e-10),
    "linen-gpt2": (frameworks.linen_gpt2, "gpt2", 1e-10),
    "nnx-bert": (frameworks.nnx_bert, "bert", 1e-6),
    "equinox-llama": (frameworks.equinox_llama, "llama", 1e-6),
}


@pytest.mark.parametrize("variant", FRAMEWORKS)
def test_frameworks_are_the_same_model(variant):
    """Logits from vectors and from ids are those of the bare model."""
    build, name, tolerance = FRAMEWORKS[variant]
    model, params, data = load(name)
    function, args = build(model.config, params)
    expected = explained(model.replace(norm_dtype=jnp.float64), name)(params, data["embeds"])
    for x in (data["embeds"], data["ids"]):
        logits = jax.jit(explained(function, name))(*args, jnp.asarray(x))
        assert error(logits, expected) < tolerance


@kinds
@pytest.mark.parametrize("variant", FRAMEWORKS)
def test_frameworks(variant, kind):
    """A module of a framework, with its own layers, has the relevance of the bare model."""
    build, name, tolerance = FRAMEWORKS[variant]
    model, params, data = load(name)
    function, args = build(model.config, params)
    relevance = explain(function, name, kind)(*args, jnp.asarray(data["embeds"]))
    assert error(relevance, by_hand(name, kind, jnp.asarray(data["embeds"]))) < tolerance


@pytest.mark.parametrize("variant", FRAMEWORKS)
def test_token_ids_in_frameworks(variant):
    """The framework's own embedding layer is a look-up like any other."""
    build, name, tolerance = FRAMEWORKS[variant]
    model, params, data = load(name)
    function, args = build(model.config, params)
    relevance = explain(function, name, "attn")(*args, jnp.asarray(data["ids"]))
    expected = by_hand(name, "attn", jnp.asarray(data["embeds"])).sum(-1)
    assert error(relevance, expected) < tolerance
