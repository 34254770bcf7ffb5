"""Softmax, log_softmax and logsumexp, however they are written, are one layer with their Jacobian.

Oracle: with LRP-0 everywhere else, the relevance is gradient times input of the whole function.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import rules, select

# Small functions that end in a sigmoid or a softmax are explained as they are.
pytestmark = pytest.mark.filterwarnings("ignore:What is explained is a probability")

MASK = np.tril(np.ones((5, 5), bool))[None]
MASK_OF_ZEROS = jnp.where(MASK, 0.0, -jnp.inf)


def normalized(e):
    return e / e.sum(-1, keepdims=True)


def top(z):
    return z.max(-1, keepdims=True)


SOFTMAX = {
    "jax.nn": jax.nn.softmax,
    "flax": nn.softmax,
    "other axis": lambda z: jax.nn.softmax(z, axis=1),
    "two axes": lambda z: jax.nn.softmax(z, axis=(-1, -2)),
    "by hand": lambda z: normalized(jnp.exp(z)),
    "by hand, maximum subtracted": lambda z: normalized(jnp.exp(z - top(z))),
    "by hand, maximum held": lambda z: normalized(jnp.exp(z - lax.stop_gradient(top(z)))),
    "reciprocal": lambda z: (lambda e: e * (1 / e.sum(-1, keepdims=True)))(jnp.exp(z)),
    "reciprocal by power": lambda z: (lambda e: e * e.sum(-1, keepdims=True) ** -1)(jnp.exp(z)),
    "base two": lambda z: normalized(jnp.exp2(z - top(z))),
    "exp of log_softmax": lambda z: jnp.exp(jax.nn.log_softmax(z)),
    "exp of z - logsumexp": lambda z: jnp.exp(z - jax.nn.logsumexp(z, axis=-1, keepdims=True)),
    "temperature": lambda z: jax.nn.softmax(z / 0.7),
    "scaled": lambda z: jax.nn.softmax(z * (1 / np.sqrt(8))),
    "masked by where": lambda z: jax.nn.softmax(jnp.where(MASK, z, -jnp.inf)),
    "masked by a finite number": lambda z: jax.nn.softmax(jnp.where(MASK, z, -1e30)),
    "masked by where=": lambda z: jax.nn.softmax(z, where=MASK),
    "minus infinity added": lambda z: jax.nn.softmax(z + MASK_OF_ZEROS),
    "a large number added": lambda z: jax.nn.softmax(z + (1.0 - MASK) * -1e9),
    "masked behind exp": lambda z: normalized(jnp.exp(z - top(z)) * MASK),
    "scaled, then masked": lambda z: jax.nn.softmax(jnp.where(MASK, z * 0.3, -jnp.inf)),
    "with a sink": lambda z: (lambda e: e / (1 + e.sum(-1, keepdims=True)))(jnp.exp(z)),
    "jitted": jax.jit(jax.nn.softmax),
    "mapped": jax.vmap(jax.nn.softmax),
}
LOG_SOFTMAX = {
    "jax.nn": jax.nn.log_softmax,
    "by hand": lambda z: z - jnp.log(jnp.exp(z).sum(-1, keepdims=True)),
    "by hand, maximum subtracted": lambda z: (
        (z - top(z)) - jnp.log(jnp.exp(z - top(z)).sum(-1, keepdims=True))
    ),
    "z - logsumexp": lambda z: z - jax.nn.logsumexp(z, axis=-1, keepdims=True),
}
LOGSUMEXP = {
    "jax.nn": lambda z: jax.nn.logsumexp(z, axis=-1),
    "scipy, kept": lambda z: jax.scipy.special.logsumexp(z, axis=-1, keepdims=True),
    "by hand": lambda z: jnp.log(jnp.exp(z).sum(-1)),
    "by hand, maximum added": lambda z: (
        jnp.log(jnp.exp(z - top(z)).sum(-1, keepdims=True)) + top(z)
    ),
}
ALL = [
    pytest.param(kind, form, id=f"{kind}: {name}")
    for kind, forms in (
        ("softmax", SOFTMAX),
        ("log_softmax", LOG_SOFTMAX),
        ("logsumexp", LOGSUMEXP),
    )
    for name, form in forms.items()
]


@pytest.fixture
def arrays(rng):
    return rng.normal(size=(2, 5, 4)), rng.normal(size=(4, 5)), rng.normal(size=(4, 5))


@pytest.mark.parametrize(("name", "form"), ALL)
def test_every_writing_is_one_layer_with_its_jacobian(name, form, arrays):
    """Between products and a nonlinear end, and between affine layers with a bias."""
    x, w, v = arrays
    logits = {
        "dense": lambda x: x @ w + 0.3,
        "product": lambda x: jnp.tanh(x @ w) @ jnp.swapaxes(x @ v, 1, 2),
    }
    for way, made in logits.items():
        function = lambda x, made=made: form(made(x))
        plan = relax.layers(function)(x)
        found = [row.name for row in plan if row.kind == "softmax"]
        assert found == [name], way
        assert not {row.kind for row in plan} & {"scale_shift", "winner", "unsupported"}, way
    seed = np.random.default_rng(1).normal(size=function(x).shape)
    explain = relax.lrp(lambda x: form(x @ w) * seed, rules.Epsilon(0.0))
    gradient = jax.grad(lambda x: (form(x @ w) * seed).sum())(x)
    np.testing.assert_allclose(jax.jit(explain)(x), x * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "form"), ALL)
def test_relevance_that_arrives_as_relevance(name, form, arrays):
    """Behind a rule that ignores its input, R becomes a coefficient by the value: R = s c."""
    x, w, _ = arrays
    u = np.random.default_rng(2).normal(size=(form(x @ w).shape[-1], 3))
    head = {
        ("dense", 1): lambda z: z @ u,
    }[("dense", 1)]
    mine = [(select.first, rules.Epsilon(0.0)), (select.dense, rules.Flat(0.0))]
    got = relax.lrp(lambda x: head(form(x @ w)), mine)(x)
    s, pull_back = jax.vjp(lambda x: form(x @ w), x)
    given = np.broadcast_to(np.asarray(head(s)).sum(-1, keepdims=True) / s.shape[-1], s.shape)
    coefficient = given / np.where(s < 0, -1, 1) / np.maximum(np.abs(s), 1e-6)
    np.testing.assert_allclose(got, x * pull_back(coefficient)[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", ["masked by where", "minus infinity added", "masked by where="])
def test_what_is_masked_gets_exactly_nothing(form, arrays):
    """Rows of logits, of which a part never counts."""
    v = arrays[2]
    explain = relax.lrp(lambda z: SOFTMAX[form](z) @ v.T, at="softmax")
    z = np.random.default_rng(0).normal(size=(2, 5, 5))
    relevance, _ = explain(z)
    assert np.isfinite(relevance).all()
    np.testing.assert_array_equal(relevance[np.broadcast_to(~MASK, z.shape)], 0)
    assert (np.abs(relevance[:, -1]) > 0).all()


def test_a_row_that_is_masked_as_a_whole_is_the_models_own_affair():
    """-inf everywhere is nan in the model; what does not read it stays finite."""
    z = jnp.zeros((2, 3))
    mask = jnp.array([[True, True, False], [False, False, False]])
    attend = lambda z: jax.nn.softmax(jnp.where(mask, z, -jnp.inf))
    value, relevance = relax.value_and_lrp(attend, target=0)(z)
    assert np.isnan(value[1]).all()
    assert np.isfinite(relevance[0]).all()
    filled = lambda z: jax.nn.softmax(jnp.where(mask, z, jnp.finfo(z.dtype).min))
    assert np.isfinite(relax.lrp(filled, target=0)(z)).all()


@pytest.mark.more
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_float32_softmax_inside_of_half_precision(dtype, arrays):
    """Casts around a softmax belong to it."""
    x, w, v = (jnp.asarray(a, dtype) for a in arrays)

    def function(x):
        z = (x @ w).astype(jnp.float32)
        return jax.nn.softmax(z).astype(dtype) @ v.T

    kinds = [row.kind for row in relax.layers(function)(x)]
    assert kinds == ["dense", "softmax", "dense"]
    wide = lambda x: jax.nn.softmax(x @ w.astype(jnp.float32)) @ v.T.astype(jnp.float32)
    expected = relax.lrp(wide)(x.astype(jnp.float32))
    got = relax.lrp(function)(x).astype(jnp.float32)
    np.testing.assert_allclose(got, expected, atol=0.05 * float(jnp.abs(expected).max()))


def test_soft_capped_logits(arrays):
    """The cap is an activation of its own, which passes relevance; the softmax follows."""
    x, w, _ = arrays
    function = lambda x: jax.nn.softmax(5 * jnp.tanh((x @ w) / 5))
    kinds = [row.kind for row in relax.layers(function)(x) if row.kind != "linear"]
    assert kinds == ["dense", "activation", "softmax"]


def test_a_constant_softmax_passes_nothing(arrays):
    x, w, v = arrays
    function = lambda x: jax.nn.softmax(x @ w) @ v.T + x
    both = [("softmax", rules.Constant()), rules_of_the_rest()]
    np.testing.assert_allclose(relax.lrp(function, both)(x), x, rtol=1e-12)


def rules_of_the_rest():
    return relax.composites.attnlrp()


def test_no_exponential_is_taken_for_a_softmax(arrays):
    """exp alone, and a sum of something else, are none."""
    x, w, _ = arrays
    for function in (
        lambda x: jnp.exp(x @ w).sum(-1),
        lambda x: jnp.exp(x @ w) / (1 + jnp.exp(x @ w)),
        lambda x: jax.nn.softplus(x @ w) / jax.nn.softplus(x @ w).sum(-1, keepdims=True),
    ):
        assert "softmax" not in [row.kind for row in relax.layers(function)(x)]
