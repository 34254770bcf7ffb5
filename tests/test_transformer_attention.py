"""Attention as JAX, Flax, Keras, Equinox and Haiku offer it, against the formulas of AttnLRP.

At epsilon = 0 queries and keys have 1/4, and values 1/2, of their gradient times input.
"""

import functools
import math
import warnings

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_models as models
from flax import nnx
from jax import lax
from row_layers import COMPOSITES, bare, by_hand, error, weights
from row_models import ATTENTION, BATCH, CAUSAL, FEATURES, HEADS, TIME, WIDTH, vectors

import relax

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import haiku as hk
    import keras

kinds = pytest.mark.parametrize("kind", COMPOSITES)
attnlrp = relax.composites.attnlrp()


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Frameworks add biases of lower rank; that is their affair."""
    with jax.numpy_rank_promotion("allow"):
        yield


# Queries, keys and values


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def explicit(q, k, v, seed, *, mask=True, bias=0.0, scale=None):
    """AttnLRP in numpy: relevances of queries, keys, values and of what is added to the scores."""
    q, k, v = (np.asarray(a, float) for a in (q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    groups = k.shape[2]
    wide = lambda a: np.repeat(a, q.shape[2] // groups, axis=2)
    narrow = lambda a: a.reshape(*a.shape[:2], groups, -1, a.shape[-1]).sum(3)
    scores = scale * np.einsum("bqhd,bkhd->bhqk", q, wide(k)) + bias
    p = softmax(np.where(mask, scores, -np.inf))
    y = np.einsum("bhqk,bkhd->bqhd", p, wide(v))
    c_v = np.einsum("bhqk,bqhd->bkhd", p, seed) / 2
    c_p = np.einsum("bqhd,bkhd->bhqk", seed, wide(v)) / 2
    c_s = p * (c_p - (p * c_p).sum(-1, keepdims=True))
    c_q = scale * np.einsum("bhqk,bkhd->bqhd", c_s, wide(k)) / 2
    c_k = scale * np.einsum("bhqk,bqhd->bkhd", c_s, q) / 2
    return y, (q * c_q, k * narrow(c_k), v * narrow(c_v), bias * c_s)


def by_einsum(q, k, v):
    p = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(FEATURES))
    return jnp.einsum("bhqk,bkhd->bqhd", p, v)


def by_matmul(q, k, v):
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    p = jax.nn.softmax((q / math.sqrt(FEATURES)) @ k.swapaxes(-1, -2))
    return (p @ v).swapaxes(1, 2)


def by_sums(q, k, v):
    """Products and sums, no matrix product at all."""
    scores = (q[:, :, None] * k[:, None]).sum(-1) / math.sqrt(FEATURES)
    return (jax.nn.softmax(scores, axis=2)[..., None] * v[:, None]).sum(2)


def by_vmap(q, k, v):
    """One query of one head at a time."""
    one = lambda q, k, v: jax.nn.softmax(k @ q / math.sqrt(FEATURES)) @ v
    head = jax.vmap(one, (0, None, None))
    return jax.vmap(jax.vmap(head, in_axes=1, out_axes=1))(q, k, v)


def by_heads(q, k, v):
    """A Python loop over the heads."""
    parts = [by_einsum(*(a[:, :, h : h + 1] for a in (q, k, v))) for h in range(HEADS)]
    return jnp.concatenate(parts, axis=2)


MASK = np.random.default_rng(5).random((BATCH, HEADS, TIME, TIME)) < 0.6
MASK = jnp.asarray(MASK | np.eye(TIME, dtype=bool))
BIAS = vectors(BATCH, HEADS, TIME, TIME, seed=6)
LENGTHS = jnp.array([3, 5], jnp.int32)
SHORT = jnp.arange(TIME)[None, None, None] < LENGTHS[:, None, None, None]
WINDOW = jnp.abs(models.DISTANCE) <= 1
GROUPED = ((BATCH, TIME, 4, FEATURES), (BATCH, TIME, 2, FEATURES), (BATCH, TIME, 2, FEATURES))
CROSS = ((BATCH, 3, HEADS, FEATURES), *2 * ((BATCH, TIME, HEADS, FEATURES),))
ONE_HEAD = 3 * ((BATCH, TIME, 1, FEATURES),)
fused = jax.nn.dot_product_attention
part = functools.partial


def keras_attention(q, k, v):
    """Keras' layer without weights or heads."""
    layer = keras.layers.Attention(dtype="float64")
    return layer([q[:, :, 0], v[:, :, 0], k[:, :, 0]])[:, :, None]


# A function, what the formulas are told of it, shapes of q, k and v. jax.nn takes its softmax in
# float32, whatever it is given; so do those that call it.
CORES = {
    "einsum": (by_einsum, {}, None, 1e-12),
    "one head": (by_einsum, {}, ONE_HEAD, 1e-12),
    "matmul": (by_matmul, {}, None, 1e-12),
    "products and sums": (by_sums, {}, None, 1e-12),
    "vmap": (by_vmap, {}, None, 1e-12),
    "loop over heads": (by_heads, {}, None, 1e-12),
    "linen": (nn.dot_product_attention, {}, None, 1e-12),
    "linen, mask": (part(nn.dot_product_attention, mask=MASK), {"mask": MASK}, None, 1e-12),
    "linen, bias": (part(nn.dot_product_attention, bias=BIAS), {"bias": BIAS}, None, 1e-12),
    "nnx": (nnx.dot_product_attention, {}, None, 1e-6),
    "nnx, mask": (part(nnx.dot_product_attention, mask=MASK), {"mask": MASK}, None, 1e-6),
    "nnx, causal": (part(nnx.dot_product_attention, is_causal=True), {"mask": CAUSAL}, None, 1e-6),
    "keras.ops": (keras.ops.dot_product_attention, {}, None, 1e-6),
    "keras layer": (keras_attention, {"scale": 1.0}, ONE_HEAD, 1e-12),
    "jax.nn": (fused, {}, None, 1e-6),
    "jax.nn, mask": (part(fused, mask=MASK), {"mask": MASK}, None, 1e-6),
    "jax.nn, bias": (part(fused, bias=BIAS), {"bias": BIAS}, None, 1e-6),
    "jax.nn, causal": (part(fused, is_causal=True), {"mask": CAUSAL}, None, 1e-6),
    "jax.nn, scale": (part(fused, scale=0.3), {"scale": 0.3}, None, 1e-6),
    "jax.nn, grouped": (fused, {}, GROUPED, 1e-6),
    "jax.nn, multi-query": (fused, {}, (CROSS[0], *2 * ONE_HEAD[:1]), 1e-6),
    "jax.nn, cross": (fused, {}, CROSS, 1e-6),
    "jax.nn, window": (part(fused, local_window_size=1), {"mask": WINDOW}, None, 1e-6),
    "jax.nn, lengths": (part(fused, key_value_seq_lengths=LENGTHS), {"mask": SHORT}, None, 1e-6),
    "jax.nn, all": (
        part(fused, mask=MASK, bias=BIAS, is_causal=True, scale=0.7),
        {"mask": MASK & CAUSAL[None, None], "bias": BIAS, "scale": 0.7},
        None,
        1e-6,
    ),
}


@pytest.mark.parametrize("name", CORES)
def test_the_identity(name):
    """AttnLRP of queries, keys and values is the explicit formula, and a part of the gradient."""
    function, options, shapes, tolerance = CORES[name]
    shapes = shapes or 3 * ((BATCH, TIME, HEADS, FEATURES),)
    q, k, v = (vectors(*shape, seed=i) for i, shape in enumerate(shapes))
    seed = vectors(*jax.eval_shape(function, q, k, v).shape, seed=8)
    seeded = lambda *qkv: (function(*qkv) * seed).sum()
    value, expected = explicit(q, k, v, seed, **options)
    assert error(jax.jit(function)(q, k, v), value) < tolerance
    got = jax.jit(relax.lrp(seeded, attnlrp, argnums=(0, 1, 2)))(q, k, v)
    for r, own in zip(got, expected[:3], strict=True):
        assert error(r, own) < tolerance


@pytest.mark.parametrize("name", ["one head", "jax.nn, all", "jax.nn, grouped", "linen, mask"])
def test_the_identity_with_the_gradient(name):
    """So a fused kernel needs no more than its own VJP, with its cotangents scaled."""
    function, _, shapes, tolerance = CORES[name]
    shapes = shapes or 3 * ((BATCH, TIME, HEADS, FEATURES),)
    inputs = [vectors(*shape, seed=i) for i, shape in enumerate(shapes)]
    got = jax.jit(relax.lrp(function, attnlrp, argnums=(0, 1, 2), target=1))(*inputs)
    chosen = lambda *qkv: function(*qkv)[..., 1].sum()
    gradients = jax.jit(jax.grad(chosen, (0, 1, 2)))(*inputs)
    for r, x, g, part in zip(got, inputs, gradients, (1 / 4, 1 / 4, 1 / 2), strict=True):
        assert error(r, part * x * g) < tolerance


@pytest.mark.parametrize(
    "function",
    [fused, nn.dot_product_attention, nnx.dot_product_attention],
    ids=["jax.nn", "linen", "nnx"],
)
def test_a_bias_that_is_explained(function):
    """What is added to the scores has half of its gradient; the values have theirs."""
    q, k, v = (vectors(BATCH, TIME, HEADS, FEATURES, seed=i) for i in range(3))
    seed = vectors(*q.shape, seed=8)
    seeded = lambda *args: (function(*args[:3], bias=args[3]) * seed).sum()
    got = jax.jit(relax.lrp(seeded, attnlrp, argnums=(0, 1, 2, 3)))(q, k, v, BIAS)
    _, expected = explicit(q, k, v, seed, bias=BIAS)
    for r, own in zip(got, expected, strict=True):
        assert error(r, own) < 1e-6


@pytest.mark.parametrize("name", ["einsum", "linen, mask", "jax.nn, all", "keras.ops"])
def test_constant_weights(name):
    """CP-LRP gives all to the values; queries and keys have exactly nothing."""
    function, _, _, tolerance = CORES[name]
    q, k, v = (vectors(BATCH, TIME, HEADS, FEATURES, seed=i) for i in range(3))
    explain = relax.lrp(function, relax.composites.cp_lrp(), argnums=(0, 1, 2), target=1)
    of_q, of_k, of_v = jax.jit(explain)(q, k, v)
    assert not np.any(of_q)
    assert not np.any(of_k)
    np.testing.assert_allclose(of_v.sum(), function(q, k, v)[..., 1].sum(), rtol=tolerance)


def test_one_explained_operand_is_a_dense_layer():
    """Constant queries, as of a Perceiver: the keys take all of q k, half as much as is left."""
    q, k, v = (vectors(BATCH, TIME, HEADS, FEATURES, seed=i) for i in range(3))
    got = relax.lrp(lambda k, v: by_einsum(q, k, v), attnlrp, argnums=(0, 1), target=1)(k, v)
    chosen = lambda k, v: by_einsum(q, k, v)[..., 1].sum()
    gradients = jax.grad(chosen, (0, 1))(k, v)
    for r, x, g in zip(got, (k, v), gradients, strict=True):
        assert error(r, x * g / 2) < 1e-12


# The frameworks' attention layers as they are, with biases

BIASES = {f"{name}_bias": (1, WIDTH) for name in "qkvo"}
NAMES = {"q": "query", "k": "key", "v": "value", "o": "out"}
X = vectors(BATCH, TIME, WIDTH)
SOURCE = vectors(BATCH, 3, WIDTH, seed=2)
PADDING = jnp.arange(TIME)[None] < jnp.array([3, 5])[:, None]


def parameters(groups=HEADS):
    """Kernels and biases for one attention layer."""
    width = groups * FEATURES
    dense = weights(ATTENTION | {"k": (WIDTH, width), "v": (WIDTH, width)})
    shapes = BIASES | {"k_bias": (1, width), "v_bias": (1, width)}
    return dense, {name: b[0] for name, b in weights(shapes, seed=4).items()}


def flax_parameters(dense, arrays):
    """Kernels and biases by Flax' names, features split into heads."""
    made = {}
    for short, name in NAMES.items():
        w, b = dense[short], arrays[f"{short}_bias"]
        if short == "o":
            made[name] = {"kernel": w.reshape(HEADS, FEATURES, WIDTH), "bias": b}
        else:
            split = lambda a: a.reshape(*a.shape[:-1], -1, FEATURES)
            made[name] = {"kernel": split(w), "bias": split(b)}
    return made


def linen_attention(dense, arrays, **options):
    params = flax_parameters(dense, arrays)
    return part(nn.MultiHeadDotProductAttention(HEADS).apply, {"params": params}, **options)


def nnx_attention(dense, arrays, **options):
    groups = dense["k"].shape[-1] // FEATURES
    layer = nnx.MultiHeadAttention(
        HEADS, WIDTH, num_kv_heads=groups, decode=False, rngs=nnx.Rngs(0)
    )
    for name, p in flax_parameters(dense, arrays).items():
        getattr(layer, name).kernel.set_value(p["kernel"])
        getattr(layer, name).bias.set_value(p["bias"])
    return lambda x, *source: layer(x, *source, **options)


def keras_layer(make, dense, arrays, **options):
    layer = make(dtype="float64")
    layer.build(*2 * [(None, TIME, WIDTH)])
    made = flax_parameters(dense, arrays).values()
    layer.set_weights([a for p in made for a in (p["kernel"], p["bias"])])
    return lambda x, source=None: layer(x, x if source is None else source, **options)


def equinox_attention(dense, arrays, **options):
    use = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
    layer = eqx.nn.MultiheadAttention(HEADS, WIDTH, **use, key=jax.random.key(0))
    for short, name in zip("qkvo", ("query", "key", "value", "output"), strict=True):
        where = lambda m, n=name: [getattr(m, f"{n}_proj").weight, getattr(m, f"{n}_proj").bias]
        layer = eqx.tree_at(where, layer, [dense[short].T, arrays[f"{short}_bias"]])
    one = lambda x, source: layer(x, source, source, **options)
    return lambda x, source=None: jax.vmap(one)(x, x if source is None else source)


def haiku_attention(dense, arrays, **options):
    make = part(hk.MultiHeadAttention, HEADS, FEATURES, w_init=jnp.zeros, name="attention")
    layer = hk.without_apply_rng(hk.transform(lambda q, k, v: make()(q, k, v, **options)))
    params = {
        f"attention/{name}": {"w": dense[short], "b": arrays[f"{short}_bias"]}
        for short, name in zip("qkvo", ("query", "key", "value", "linear"), strict=True)
    }

    def apply(x, source=None):
        source = x if source is None else source
        return layer.apply(params, x, source, source)

    return apply


multi_head = part(keras.layers.MultiHeadAttention, HEADS, FEATURES)
grouped_query = part(keras.layers.GroupQueryAttention, FEATURES, HEADS)
WIDE = PADDING[:, None, None]
# A layer, groups of keys, what the oracle is told of it, whether it attends to a source.
LAYERS = {
    "linen": (linen_attention, HEADS, {}, False, 1e-10),
    "linen, causal": (
        part(linen_attention, mask=nn.make_causal_mask(X[..., 0])),
        HEADS,
        {"mask": CAUSAL},
        False,
        1e-10,
    ),
    "linen, cross": (linen_attention, HEADS, {}, True, 1e-10),
    "linen, padding": (part(linen_attention, mask=WIDE), HEADS, {"mask": WIDE}, False, 1e-10),
    "nnx": (nnx_attention, HEADS, {}, False, 1e-6),
    "nnx, grouped": (nnx_attention, 1, {"groups": 1}, False, 1e-6),
    "nnx, cross": (nnx_attention, HEADS, {}, True, 1e-6),
    "nnx, padding": (part(nnx_attention, mask=WIDE), HEADS, {"mask": WIDE}, False, 1e-6),
    "keras": (part(keras_layer, multi_head), HEADS, {}, False, 1e-6),
    "keras, cross": (part(keras_layer, multi_head), HEADS, {}, True, 1e-6),
    "keras, causal": (
        part(keras_layer, multi_head, use_causal_mask=True),
        HEADS,
        {"mask": CAUSAL},
        False,
        1e-6,
    ),
    "keras, padding": (
        part(keras_layer, multi_head, attention_mask=PADDING[:, None]),
        HEADS,
        {"mask": WIDE},
        False,
        1e-6,
    ),
    "keras, grouped": (
        part(keras_layer, part(grouped_query, 1), use_causal_mask=True),
        1,
        {"groups": 1, "mask": CAUSAL},
        False,
        1e-6,
    ),
    "equinox": (equinox_attention, HEADS, {}, False, 1e-10),
    "equinox, causal": (
        part(equinox_attention, mask=CAUSAL),
        HEADS,
        {"mask": CAUSAL},
        False,
        1e-10,
    ),
    "equinox, cross": (equinox_attention, HEADS, {}, True, 1e-10),
    "haiku": (haiku_attention, HEADS, {}, False, 1e-10),
    "haiku, padding": (part(haiku_attention, mask=WIDE), HEADS, {"mask": WIDE}, False, 1e-10),
    "haiku, cross": (haiku_attention, HEADS, {}, True, 1e-10),
}


ONCE = [(name, "attn") for name in LAYERS]
TWICE = [(name, "cp") for name in LAYERS if "," not in name or "padding" in name]


@pytest.mark.parametrize(("name", "kind"), ONCE + TWICE)
def test_layers_as_they_are(name, kind):
    """The relevance of each input is that of the formulas; its own biases absorb their share."""
    make, groups, options, crosses, tolerance = LAYERS[name]
    dense, arrays = parameters(groups)
    inputs = (X, SOURCE) if crosses else (X,)
    function = make(dense, arrays)
    body = lambda ops, *inputs: models.attention(ops, *inputs, **options)
    argnums = tuple(range(len(inputs)))
    explain = relax.value_and_lrp(function, COMPOSITES[kind](), argnums=argnums, target=1)
    value, got = jax.jit(explain)(*inputs)
    assert error(value, jax.jit(bare(body, dense, arrays))(*inputs)) < tolerance
    for r, own in zip(got, by_hand(kind, body, dense, arrays, inputs), strict=True):
        scale = max(np.abs(own).max(), 1e-3)
        assert np.abs(r - own).max() < tolerance * scale
    if "padding" in name and kind == "cp":
        np.testing.assert_array_equal(got[0][0, 3:], 0)


# A cache that is an argument


def steps(function, cache):
    """The last of three steps of decoding, and its cache."""
    step = jax.jit(function)
    for t in range(2):
        _, cache = step(cache, X[:, t : t + 1])
    return function, cache, X[:, 2:3]


def linen_decoder(dense, arrays):
    layer = nn.MultiHeadDotProductAttention(HEADS, decode=True)
    cache = layer.init(jax.random.key(0), X)["cache"]
    params = flax_parameters(dense, arrays)

    def step(cache, x):
        value, changed = layer.apply({"params": params, "cache": cache}, x, mutable=["cache"])
        return value, changed["cache"]

    return steps(step, cache)


def nnx_decoder(dense, arrays):
    layer = nnx.MultiHeadAttention(HEADS, WIDTH, decode=True, rngs=nnx.Rngs(0))
    for name, p in flax_parameters(dense, arrays).items():
        getattr(layer, name).kernel.set_value(p["kernel"])
        getattr(layer, name).bias.set_value(p["bias"])
    layer.init_cache(X.shape, dtype=X.dtype)
    graph, cache, rest = nnx.split(layer, nnx.Cache, ...)

    def step(cache, x):
        module = nnx.merge(graph, cache, rest)
        return module(x), nnx.state(module, nnx.Cache)

    return steps(step, cache)


@kinds
@pytest.mark.parametrize("make", [linen_decoder, nnx_decoder], ids=["linen", "nnx"])
def test_decoding_with_a_cache(make, kind):
    """The new token is explained, what it finds in the cache is a constant."""
    dense, arrays = parameters()
    function, cache, x = make(dense, arrays)
    explain = relax.lrp(function, COMPOSITES[kind](), target=1, has_aux=True)
    relevance, _ = jax.jit(explain)(cache, x)
    before = X[:, :2]

    def body(ops, x):
        held = lambda name: lax.stop_gradient(ops.linear(name, before))
        q, k, v = (ops.linear(name, x) for name in "qkv")
        k, v = (jnp.concatenate([held(n), a], axis=1) for n, a in (("k", k), ("v", v)))
        q, k, v = (models.split(a) for a in (q, k, v))
        scores = ops.product("bqhd,bkhd->bhqk", q, k) / math.sqrt(FEATURES)
        mixed = ops.weigh("bhqk,bkhd->bqhd", ops.softmax(scores), v)
        return ops.linear("o", models.merge(mixed))

    assert error(relevance, by_hand(kind, body, dense, arrays, (x,))[0]) < 1e-6
