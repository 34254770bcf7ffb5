"""Normalizations, however written, are one layer whose statistic is a constant for relevance.

Oracle: the same formula with its statistic computed from a second argument that is held; with LRP-0
relevance is gradient times input of that.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import relax
from relax import rules, select

ROWS = np.array([1, 1])  # both rows are nodes of the second of two graphs
SOME = np.arange(8) % 3 > 0  # not masked
GAIN = np.linspace(-1.0, 2.0, 8).reshape(1, 1, 8)
SHIFT = np.linspace(0.5, -0.7, 8).reshape(1, 1, 8)


def mean(x, axes=-1):
    return x.mean(axes, keepdims=True)


def var(x, axes=-1):
    return x.var(axes, keepdims=True)


def some(x):
    """The mean of what is not masked."""
    return x.mean(-1, keepdims=True, where=jnp.broadcast_to(SOME, x.shape))


def groups(x):
    return x.reshape(2, 5, 2, 4)


# Each takes x and what its statistic is computed from, which is x as well.
FORMS = {
    "layer norm": lambda x, s: (x - mean(x)) / jnp.sqrt(var(s) + 1e-5),
    "layer norm, affine": lambda x, s: (x - mean(x)) / jnp.sqrt(var(s) + 1e-5) * GAIN + SHIFT,
    "scale inside": lambda x, s: (x - mean(x)) * (lax.rsqrt(var(s) + 1e-5) * GAIN) + SHIFT,
    "variance by hand": lambda x, s: (
        (x - mean(x)) / jnp.sqrt(mean((s - mean(s)) ** 2) + 1e-5) * GAIN
    ),
    "fast variance": lambda x, s: (
        (x - mean(x)) * lax.rsqrt(jnp.maximum(mean(s * s) - mean(s) ** 2, 0) + 1e-5)
    ),
    "power": lambda x, s: (x - mean(x)) * (var(s) + 1e-5) ** -0.5,
    "standard deviation": lambda x, s: (x - mean(x)) / (s.std(-1, keepdims=True) + 1e-5),
    "statistic first": lambda x, s: lax.rsqrt(var(s) + 1e-5) * (x - mean(x)),
    "rms": lambda x, s: x * lax.rsqrt(mean(s * s) + 1e-6) * GAIN,
    "rms by division": lambda x, s: GAIN * (x / jnp.sqrt(mean(jnp.square(s)) + 1e-6)),
    "rms by a product": lambda x, s: (
        x * lax.rsqrt(jnp.einsum("...d,...d->...", s, s)[..., None] / 8 + 1e-6)
    ),
    "l2": lambda x, s: x / jnp.linalg.norm(s, axis=-1, keepdims=True),
    "l2, guarded": lambda x, s: (
        x / jnp.maximum(jnp.linalg.norm(s, axis=-1, keepdims=True), 1e-12) * GAIN
    ),
    "l1": lambda x, s: x / jnp.abs(s).sum(-1, keepdims=True),
    "largest": lambda x, s: x / jnp.abs(s).max(-1, keepdims=True),
    "instance": lambda x, s: (x - mean(x, 1)) / jnp.sqrt(var(s, 1) + 1e-5) * GAIN + SHIFT,
    "group": lambda x, s: (
        ((groups(x) - mean(groups(x), (1, 3))) / jnp.sqrt(var(groups(s), (1, 3)) + 1e-5)).reshape(
            x.shape
        )
        * GAIN
        + SHIFT
    ),
    "batch": lambda x, s: (x - mean(x, (0, 1))) / jnp.sqrt(var(s, (0, 1)) + 1e-5) * GAIN + SHIFT,
    "mean of squares as a product": lambda x, s: (
        x * lax.rsqrt(s**2 @ jnp.ones((8, 1)) / 8 + 1e-6) * GAIN
    ),
    "layer norm, masked": lambda x, s: (
        (x - some(x)) * (lax.rsqrt(some(s * s) - some(s) ** 2 + 1e-5) * GAIN) + SHIFT
    ),
    "layer norm, masked, by hand": lambda x, s: (
        (x - some(x)) / jnp.sqrt(some((s - some(s)) ** 2) + 1e-5) * GAIN + SHIFT
    ),
    "graphs of a batch": lambda x, s: (
        x / jnp.sqrt(jax.ops.segment_sum(s**2, ROWS, 2)[ROWS] + 1e-6) * GAIN
    ),
    "local response": lambda x, s: (
        x / (1 + 0.1 * lax.reduce_window(s * s, 0.0, lax.add, (1, 1, 3), (1, 1, 1), "SAME")) ** 0.75
    ),
}


@pytest.fixture
def x(rng):
    return rng.normal(size=(2, 5, 8))


def twice(form):
    return lambda x: form(x, x)


def held(form, x):
    """Gradient times input, the statistic held; and the value."""
    value, pull_back = jax.vjp(lambda y: form(y, x), x)
    return value, lambda c: x * pull_back(c)[0]


@pytest.mark.parametrize("name", FORMS)
def test_every_writing_is_one_layer(name, x):
    assert [row.kind for row in relax.layers(twice(FORMS[name]))(x)] == ["normalization"]


@pytest.mark.parametrize("name", FORMS)
def test_the_statistic_is_a_constant(name, x):
    """The default, in a coefficient and in relevance that arrives, and under jit and vmap."""
    form = FORMS[name]
    value, relevance = held(form, x)
    seed = np.random.default_rng(1).normal(size=x.shape)
    got = relax.lrp(lambda x: twice(form)(x) * seed)(x)
    np.testing.assert_allclose(got, relevance(seed), rtol=1e-9, atol=1e-12)
    given = np.random.default_rng(2).normal(size=x.shape)
    small = np.maximum(np.abs(value), 1e-6) * np.where(value < 0, -1, 1)
    _, relprop = relax.vrp(twice(form), x)
    np.testing.assert_allclose(relprop(given)[0], relevance(given / small), rtol=1e-8, atol=1e-10)
    if name not in ("batch", "group", "graphs of a batch"):
        each = jax.jit(jax.vmap(relax.lrp(lambda x: twice(form)(x[None])[0])))
        np.testing.assert_allclose(each(x), relevance(np.ones_like(x)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_epsilon_on_the_whole_layer(name, x):
    """R_i = x_i sum_j J_ji R_j / s(y_j), shift included in y."""
    form = FORMS[name]
    value, relevance = held(form, x)
    given = np.random.default_rng(2).normal(size=x.shape)
    mine = [(select.norm, rules.Epsilon(0.1))]
    _, relprop = relax.vrp(twice(form), x, rules=mine)
    expected = relevance(given / (value + 0.1 * np.where(value < 0, -1, 1)))
    np.testing.assert_allclose(relprop(given)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_identity_and_gradient(name, x):
    form = FORMS[name]
    given = np.random.default_rng(2).normal(size=x.shape)
    _, relprop = relax.vrp(twice(form), x, rules=[(select.norm, rules.Identity())])
    np.testing.assert_allclose(relprop(given)[0], given, rtol=1e-12)
    _, relprop = relax.vrp(twice(form), x, rules=[(select.norm, rules.Gradient())])
    expected = jax.vjp(twice(form), x)[1](given)[0]
    np.testing.assert_allclose(relprop(given)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["layer norm, affine", "scale inside", "fast variance"])
def test_ln_rule(name, x):
    """Scale and shift pass relevance; the centering shares it: written out for each sample."""
    given = np.random.default_rng(2).normal(size=x.shape)
    _, relprop = relax.vrp(twice(FORMS[name]), x, rules=[(select.norm, rules.LayerNormRule(0.0))])
    centering = np.eye(8) - 1 / 8
    if name == "scale inside":  # there the scale is part of what is normalized
        pass
    expected = np.einsum("bti,ij,btj->bti", x, centering, given / (x @ centering))
    np.testing.assert_allclose(relprop(given)[0], expected, rtol=1e-8, atol=1e-10)


def test_rms_norm_is_the_identity_without_centering(x):
    """As the papers say: under the default, an RMSNorm passes relevance unchanged."""
    given = np.random.default_rng(2).normal(size=x.shape)
    _, relprop = relax.vrp(twice(FORMS["rms"]), x)
    small = np.abs(FORMS["rms"](x, x)) < 1e-6
    np.testing.assert_allclose(relprop(given)[0][~small], given[~small], rtol=1e-9)


LINEN = {
    "LayerNorm": nn.LayerNorm(),
    "LayerNorm, slow variance": nn.LayerNorm(use_fast_variance=False),
    "LayerNorm, bare": nn.LayerNorm(use_bias=False, use_scale=False),
    "RMSNorm": nn.RMSNorm(),
    "GroupNorm": nn.GroupNorm(2),
    "InstanceNorm": nn.InstanceNorm(),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen_norms(name, x):
    """As they are: one layer, named by its module."""
    module = LINEN[name]
    params = module.init(jax.random.key(0), x)
    (row,) = relax.layers(module.apply)(params, x)
    assert row.kind == "normalization"
    assert np.isfinite(relax.lrp(module.apply)(params, x)).all()


@pytest.mark.parametrize("make", [nnx.LayerNorm, nnx.RMSNorm])
def test_nnx_norms(make, x):
    module = make(8, rngs=nnx.Rngs(0))
    (row,) = relax.layers(module)(x.astype(np.float32))
    assert row.kind == "normalization"


@pytest.mark.parametrize("library", ["equinox", "haiku", "keras"])
def test_norms_of_other_libraries(library, x):
    x = x.astype(np.float32)
    if library == "equinox":
        import equinox as eqx

        functions = [jax.vmap(jax.vmap(eqx.nn.LayerNorm(8))), jax.vmap(jax.vmap(eqx.nn.RMSNorm(8)))]
    elif library == "haiku":
        import haiku as hk

        made = [
            hk.transform(lambda x: hk.LayerNorm(-1, True, True)(x)),
            hk.transform(lambda x: hk.RMSNorm(-1)(x)),
        ]
        functions = [lambda x, m=m: m.apply(m.init(jax.random.key(0), x), None, x) for m in made]
    else:
        import keras

        functions = [keras.layers.LayerNormalization(), keras.layers.UnitNormalization()]
        for layer in functions:
            layer(x)
    with jax.numpy_rank_promotion("allow"):
        for function in functions:
            kinds = [row.kind for row in relax.layers(function)(x)]
            assert kinds == ["normalization"]


def test_float32_inside_of_bfloat16(x):
    """The casts belong to it, and so does a scale behind them."""

    def norm(x):
        wide = x.astype(jnp.float32)
        normal = wide * lax.rsqrt(mean(wide * wide) + 1e-6)
        return normal.astype(jnp.bfloat16) * jnp.asarray(GAIN, jnp.bfloat16)

    half = jnp.asarray(x, jnp.bfloat16)
    assert [row.kind for row in relax.layers(norm)(half)] == ["normalization"]
    np.testing.assert_allclose(
        relax.lrp(norm)(half).astype(jnp.float32), norm(half).astype(jnp.float32), rtol=0.02
    )


def test_the_derivative_of_relevance_goes_through_the_statistic(x):
    """Held for relevance, not for its derivative: finite differences say so."""
    loss = lambda x: jnp.sum(jnp.sin(relax.lrp(twice(FORMS["layer norm, affine"]))(x)))
    direction = np.random.default_rng(4).normal(size=x.shape)
    step = 1e-5
    expected = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert float(jnp.vdot(jax.grad(loss)(x), direction)) == pytest.approx(float(expected), rel=1e-6)


def test_what_was_pooled_can_be_normalized(x):
    """A pooling is a reduction, and so is the mean that is subtracted from it."""
    norm = twice(FORMS["layer norm"])
    pooled = lambda x: norm(x.mean(1)[:, None])
    assert [row.kind for row in relax.layers(pooled)(x)] == ["mean", "normalization"]
    _, relevance = held(lambda x, s: FORMS["layer norm"](*(a.mean(1)[:, None] for a in (x, s))), x)
    np.testing.assert_allclose(
        relax.lrp(pooled)(x), relevance(np.ones((2, 1, 8))), rtol=1e-9, atol=1e-12
    )


NONE = {
    "global average pooling": lambda x: x.mean(1),
    "squeeze and excite": lambda x: (
        x * jax.nn.sigmoid(x.mean(1, keepdims=True) @ np.diag(GAIN[0, 0]))
    ),
    "times its mean": lambda x: x * mean(x),
    "soft sign": lambda x: x / (1 + jnp.abs(x)),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_normalization(name, x):
    kinds = [row.kind for row in relax.layers(NONE[name])(x)]
    assert "normalization" not in kinds


def test_a_statistic_that_is_read_again_is_still_a_constant(x):
    """The mean is an output too, so there is no closed region; the statistic takes nothing."""

    def norm(x):
        deviation = jnp.sqrt(var(x) + 1e-5)
        return jnp.concatenate([(x - mean(x)) / deviation, deviation], axis=-1)

    target = lambda z: z * (np.arange(9) < 8).reshape(1, 1, -1)
    value, relevance = held(lambda x, s: (x - mean(x)) / jnp.sqrt(var(s) + 1e-5), x)
    got = relax.lrp(norm, target=target)(x)
    np.testing.assert_allclose(got, relevance(np.ones_like(value)), rtol=1e-5, atol=1e-6)
