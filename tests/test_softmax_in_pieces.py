"""Softmaxes put together over a distance: normalized behind the value product, or by segments.

Oracle: the same attention, or graph network, with `jax.nn.softmax` in one piece.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import composites, rules, select

N = 5
GRAPH = np.repeat(np.arange(N), N), np.tile(np.arange(N), N)  # receivers, senders: all to all


def behind_the_values(z, v):
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return (e @ v) / e.sum(-1, keepdims=True)


def maximum_held(z, v):
    e = jnp.exp(z - lax.stop_gradient(z.max(-1, keepdims=True)))
    return (e @ v) / jnp.maximum(e.sum(-1, keepdims=True), 1e-6)


def by_reciprocal(z, v):
    e = jnp.exp(z)
    return (e @ v) * (1 / (e.sum(-1, keepdims=True) + 0.0))


def sum_first(z, v):
    e = jnp.exp(z)
    s = e.sum(-1)
    return jnp.einsum("ij,jk->ik", e, v) / s[:, None]


def sum_as_product(z, v):
    e = jnp.exp(z)
    return (e @ v) / (e @ jnp.ones((N, 1)))


def sum_as_product_in_front(z, v):
    e = jnp.exp(z)
    return (e / (e @ jnp.ones((N, 1)))) @ v


def base_two(z, v):
    e = jnp.exp2(z / jnp.log(2.0))
    return (e @ v) / e.sum(-1, keepdims=True)


def by_segments(z, v):
    receivers, senders = GRAPH
    e = jnp.exp(z.reshape(-1))
    s = jax.ops.segment_sum(e, receivers, N)
    return jax.ops.segment_sum((e / s[receivers])[:, None] * v[senders], receivers, N)


def by_segments_with_maximum(z, v):
    receivers, senders = GRAPH
    z = z.reshape(-1)
    m = jax.ops.segment_max(lax.stop_gradient(z), receivers, N)
    e = jnp.exp(z - m[receivers])
    s = jax.ops.segment_sum(e, receivers, N)
    return jax.ops.segment_sum((e / (s[receivers] + 0.0))[:, None] * v[senders], receivers, N)


def by_segments_behind_the_values(z, v):
    receivers, senders = GRAPH
    e = jnp.exp(z.reshape(-1))
    s = jax.ops.segment_sum(e, receivers, N)
    return jax.ops.segment_sum(e[:, None] * v[senders], receivers, N) / s[:, None]


def read_twice(z, v):
    e = jnp.exp(z)
    s = e.sum(-1, keepdims=True)
    return (e @ v) / s + 0 * ((e / s) @ v)


FORMS = [
    behind_the_values,
    maximum_held,
    by_reciprocal,
    sum_first,
    sum_as_product,
    sum_as_product_in_front,
    base_two,
    by_segments,
    by_segments_with_maximum,
    by_segments_behind_the_values,
    read_twice,
]
NAMES = [form.__name__ for form in FORMS]


def whole(z, v):
    return jax.nn.softmax(z) @ v


@pytest.fixture
def weights(rng):
    return {name: rng.normal(size=(4, 4)) for name in "qkv"}


@pytest.fixture
def x(rng):
    return rng.normal(size=(N, 4))


def attention(form):
    def function(w, x):
        q, k, v = (x @ w[name] for name in "qkv")
        return form(q @ k.T / 2, v)

    return function


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
@pytest.mark.parametrize(
    "rules_",
    [
        "attnlrp",
        pytest.param("cp_lrp", marks=pytest.mark.slow),
        pytest.param("epsilon", marks=pytest.mark.slow),
        pytest.param("guided_backprop", marks=pytest.mark.slow),
    ],
)
def test_equal_to_the_softmax_in_one_piece(form, rules_, weights, x):
    """Under the Jacobian, a constant, the defaults, and the plain gradient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", relax.RelaxWarning)  # guided backprop without a ReLU
        mine = getattr(composites, rules_)()
        expected = relax.lrp(attention(whole), mine, target=1)(weights, x)
        got = jax.jit(relax.lrp(attention(form), mine, target=1))(weights, x)
        plan = relax.layers(attention(form), mine)(weights, x)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    kinds = [row.kind for row in plan]
    assert kinds.count("softmax") == 1
    assert "activation" not in kinds or form is by_reciprocal


@pytest.mark.more
@pytest.mark.parametrize(
    "form",
    [by_segments_behind_the_values, pytest.param(behind_the_values, marks=pytest.mark.slow)],
)
def test_its_derivative_is_that_of_the_softmax_in_one_piece(form, weights, x):
    """Through the parameters and the input, batched, in a scan and under checkpoint."""

    def score(form, way):
        def run(w, x):
            explain = relax.lrp(way(attention(form)), composites.attnlrp(), target=1)
            return (explain(w, x) ** 2).sum()

        return run

    ways = {
        "plain": lambda f: f,
        "scan": lambda f: lambda w, x: lax.scan(lambda c, _: (f(w, c), None), x, None, 2)[0],
        "checkpoint": jax.checkpoint,
    }
    for name, way in ways.items():
        expected = jax.grad(score(whole, way), (0, 1))(weights, x)
        got = jax.jit(jax.grad(score(form, way), (0, 1)))(weights, x)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10, err_msg=name)
    many = jnp.stack([x, 2 * x])
    run = lambda form: jax.vmap(
        lambda x: relax.lrp(attention(form), composites.attnlrp(), target=1)(weights, x)
    )(many)
    np.testing.assert_allclose(run(form), run(whole), rtol=1e-9, atol=1e-12)


def test_shares_of_a_user(weights, x):
    """Whatever share the weights get of the value product, the sum takes as much away."""
    for share in (rules.Left(), rules.Right(), rules.Uniform()):
        mine = [
            (select.product & "*div*", rules.SignalTakeAll()),
            (select.product, share),
            composites.attnlrp(),
        ]
        expected = relax.lrp(attention(whole), [(select.product, share), composites.attnlrp()])
        got = relax.lrp(attention(behind_the_values), mine)
        np.testing.assert_allclose(got(weights, x), expected(weights, x), rtol=1e-9, atol=1e-12)


@pytest.mark.more
def test_segments_of_different_sizes(rng):
    """A graph with a node that nothing reaches, and one that only one other does."""
    receivers = np.array([0, 0, 1, 3, 3, 3])
    z, v = rng.normal(size=6), rng.normal(size=(6, 2))

    def function(zv):
        z, v = zv
        e = jnp.exp(z)
        a = e / jax.ops.segment_sum(e, receivers, 4)[receivers]
        return jax.ops.segment_sum(a[:, None] * v, receivers, 4)

    def oracle(zv):
        z, v = zv
        rows = [jax.nn.softmax(z[receivers == i]) @ v[receivers == i] for i in (0, 1, 3)]
        return jnp.stack([rows[0], rows[1], jnp.zeros(2), rows[2]])

    got = relax.lrp(function, composites.attnlrp())((z, v))
    expected = relax.lrp(oracle, composites.attnlrp())((z, v))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_weights_alone_are_no_attention(rng):
    """Segment weights that are returned are a classifier's, and no constants to CP-LRP."""
    receivers, v = np.array([0, 0, 1, 1, 1]), np.linspace(-1, 2, 5)

    def function(z):
        e = jnp.exp(z)
        s = jax.ops.segment_sum(e, receivers, 2)
        return (v * e / s[receivers]).sum() + 0 * (e / s[receivers]).sum()

    z = rng.normal(size=5)
    explain = relax.lrp(lambda z: function(z) * 1.0, composites.cp_lrp())
    gradient = jax.grad(function)(z)
    np.testing.assert_allclose(explain(z), z * gradient, atol=1e-12)
    (row,) = [
        row for row in relax.layers(function, composites.cp_lrp())(z) if row.kind == "softmax"
    ]
    assert row.rule == rules.Jacobian()


def test_probabilities_and_their_logarithms(rng):
    """The entropy, whose log_softmax is read twice."""
    z = rng.normal(size=(3, 4))

    def entropy(z):
        lp = jax.nn.log_softmax(z)
        return -(jnp.exp(lp) * lp).sum(-1)

    kinds = [row.kind for row in relax.layers(entropy)(z)]
    assert kinds.count("softmax") == 2
    assert "activation" not in kinds
    left = [(select.product, rules.Left())]
    p = jax.nn.softmax(z)
    held = lambda z: -(jax.nn.softmax(z) * jnp.log(p)).sum()
    np.testing.assert_allclose(relax.lrp(entropy, left)(z), z * jax.grad(held)(z), rtol=1e-9)


@pytest.mark.parametrize("function", [jnp.logaddexp, jnp.logaddexp2])
def test_logaddexp_of_two_values_is_a_logsumexp(function, rng):
    a, b = rng.normal(size=(2, 6))
    (row,) = relax.layers(lambda ab: function(*ab))((a, b))
    assert (row.kind, row.name) == ("softmax", function.__name__)
    got = jax.jit(relax.lrp(lambda ab: function(*ab)))((a, b))
    pulled = jax.vjp(function, a, b)[1](np.ones(6))
    for r, x, c in zip(got, (a, b), pulled, strict=True):
        np.testing.assert_allclose(r, x * c, rtol=1e-10)
    twice = relax.lrp(lambda a: function(a, a))(a)
    np.testing.assert_allclose(twice, a, rtol=1e-10)


def test_logaddexp_of_impossible_states(rng):
    """As in a Markov model: minus infinity on both sides, where JAX's gradient is nan."""
    a, b = rng.normal(size=(2, 4))
    closed = np.array([True, True, False, False])
    none = lambda x, mask: jnp.where(mask, -jnp.inf, x)

    def function(ab):
        total = jnp.logaddexp(none(ab[0], closed), none(ab[1], closed[::-1] | closed))
        return jnp.where(jnp.isinf(total), 0.0, total)

    got = relax.lrp(function)((a, b))
    np.testing.assert_allclose(got[0], np.where(closed, 0, a), rtol=1e-10)
    np.testing.assert_array_equal(got[1], 0)


def test_a_softmax_that_is_not_recognized_is_not_passed_over_in_silence(x):
    """Online softmax, whose running maximum and sum are carried by a scan."""

    def online(x):
        def step(carry, keys):
            top, total, out = carry
            z = x @ keys.T
            higher = jnp.maximum(top, z.max(-1))
            e, old = jnp.exp(z - higher[:, None]), jnp.exp(top - higher)
            return (higher, total * old + e.sum(-1), out * old[:, None] + e @ keys), None

        start = jnp.full(6, -1e9), jnp.zeros(6), jnp.zeros((6, 4))
        (_, total, out), _ = lax.scan(step, start, x.reshape(3, 2, 4))
        return out / total[:, None]

    x = jnp.concatenate([x, x[:1]])
    np.testing.assert_allclose(online(x), jax.nn.softmax(x @ x.T) @ x, rtol=1e-9)
    with pytest.warns(relax.RelaxWarning, match="looks like a part of a softmax.*test_softmax_in"):
        relax.lrp(online, composites.attnlrp())(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relax.lrp(online, [("exp*", rules.Gradient()), composites.attnlrp()])(x)


NO_SOFTMAX = {
    "exponentials of differences": lambda x: jnp.exp(-((x[:, None] - x[None]) ** 2)).sum(),
    "centered": lambda x: jnp.exp(x - x.mean()).sum(),
    "a constant subtracted": lambda x: jnp.exp(x - 1).sum(),
    "a distance": lambda x: jnp.exp(-jnp.abs(x - x.mean())).sum(),
    "another denominator": lambda x: jnp.exp(x).sum() / (x**2).sum(),
    "another numerator": lambda x: (x**2).sum() / jnp.exp(x).sum(),
}


@pytest.mark.parametrize("name", NO_SOFTMAX)
def test_no_false_alarm(name, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = relax.layers(NO_SOFTMAX[name], composites.attnlrp())(x)
    assert "softmax" not in [row.kind for row in plan]


def both_axes(e):
    return e / e.sum(1, keepdims=True) + e / e.sum(0, keepdims=True)


NOT_ALL_DIVIDED = {
    "read undivided as well": lambda e, v: e @ v / e.sum(-1) + e @ v,
    "over rows and over columns": lambda e, v: both_axes(e) @ v,
    "product of both": lambda e, v: (
        (e / e.sum(1, keepdims=True)) * (e / e.sum(0, keepdims=True)) @ v
    ),
    "over the other axis": lambda e, v: (e @ v) / e.sum(0),
    "divided twice": lambda e, v: (e @ v) / e.sum(-1) / e.sum(-1),
    "squared": lambda e, v: ((e * e) @ v) / e.sum(-1),
    "through a root": lambda e, v: jnp.sqrt(e @ jnp.abs(v)) / e.sum(-1),
    "something added": lambda e, v: (e @ v + v) / e.sum(-1),
    "one over the sum": lambda e, v: e @ v / e.sum(-1) + 1 / e.sum(-1),
    "a returned sum": lambda e, v: jnp.stack([e @ v / e.sum(-1), e.sum(-1)]),
    "a logarithm": lambda e, v: e @ v / e.sum(-1) + jnp.log(e.sum(-1)),
}


@pytest.mark.parametrize("name", NOT_ALL_DIVIDED)
def test_what_is_not_wholly_divided_by_its_sum_is_said(name, rng):
    """No Jacobian is guessed: the user is told, or it is the gradient of all of it."""
    z, v = rng.normal(size=(4, 4)), rng.normal(size=4)
    function = lambda z: NOT_ALL_DIVIDED[name](jnp.exp(z), v)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = relax.lrp(function, composites.attnlrp())(z)
    gradient = z * jax.grad(lambda z: function(z).sum())(z)
    assert any("part of a softmax" in str(w.message) for w in said) or np.allclose(got, gradient)


GUARDS = {
    "a mean": lambda e, v: (e @ v) / e.mean(-1) / N,
    "half": lambda e, v: (e @ v) / (e.sum(-1) / 2) / 2,
    "where": lambda e, v: (e @ v) / (lambda s: jnp.where(s == 0, 1, s))(e.sum(-1)),
    "cast": lambda e, v: (e @ v) / e.sum(-1).astype(jnp.float64),
    "values scaled": lambda e, v: (3 * (-e) @ v) / e.sum(-1) / -3,
    "summed in two steps": lambda e, v: (e @ v)[None].sum(0) / e.sum(-1),
}


@pytest.mark.parametrize("name", GUARDS)
def test_guards_and_scales_of_the_sum(name, rng):
    z, v = rng.normal(size=(N, N)), rng.normal(size=N)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = relax.lrp(lambda z: GUARDS[name](jnp.exp(z), v), composites.attnlrp())(z)
    expected = relax.lrp(lambda z: jax.nn.softmax(z) @ v, composites.attnlrp())(z)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


LOGADDEXPS = {
    "mapped, one broadcast": lambda a: jax.vmap(jnp.logaddexp)(a, a[:, 0]),
    "mapped over other axes": lambda a: jax.vmap(jnp.logaddexp, (0, 1))(a[:3], a[:, :3]),
    "pairs": lambda a: jax.vmap(jax.vmap(jnp.logaddexp, (None, 0)), (0, None))(a[0], a[1]),
    "a helper called twice": lambda a: HELPER(HELPER(a[0], a[1]), a[2]),
    "a sum of two calls": lambda a: HELPER(a[0], a[1]) + HELPER(a[1], a[2]),
    "reduced": lambda a: jnp.logaddexp.reduce(a),
}
HELPER = jax.jit(lambda a, b: jnp.logaddexp(a, b) + 0.0)


@pytest.mark.parametrize("name", LOGADDEXPS)
def test_logaddexp_in_all_positions(name, rng):
    a = rng.normal(size=(4, 4))
    function = LOGADDEXPS[name]
    got = jax.jit(relax.lrp(function))(a)
    np.testing.assert_allclose(
        got, a * jax.grad(lambda a: function(a).sum())(a), rtol=1e-9, atol=1e-12
    )


def test_another_function_of_that_name_is_none(rng):
    @jax.jit
    def logaddexp(a, b):
        return jnp.maximum(a, b) * 2

    a, b = rng.normal(size=(2, 5))
    assert "softmax" not in [r.kind for r in relax.layers(lambda x: logaddexp(*x))((a, b))]
