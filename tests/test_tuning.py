"""relax.tune: hyper-parameters layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import relax
from relax import composites, rules, select


@pytest.fixture
def p(rng):
    shapes = {"first": (8, 6), "second": (6, 6), "head": (6, 3)}
    return {n: {"w": jnp.asarray(rng.normal(size=s))} for n, s in shapes.items()}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(4, 8)))


def network(p, x):
    x = jnp.tanh(x @ p["first"]["w"])
    x = jnp.tanh(x @ p["second"]["w"])
    return x @ p["head"]["w"]


def explained(p, x, *gammas):
    given = {name: rules.Gamma(g) for name, g in zip(("first", "second"), gammas, strict=True)}
    return relax.lrp(network, given, target=0)(p, x)


def near(wanted):
    """Scores by the distance to an explanation."""
    return lambda relevance: -jnp.sum((relevance - wanted) ** 2)


GIVEN = {"first": rules.Gamma(0.25), "second": rules.Gamma(0.25)}


def test_by_grid_it_is_coordinate_ascent(p, x):
    """Against the same by hand, one run for each value; the present value is a candidate."""
    score, grid = near(explained(p, x, 0.8, 0.1)), (0.0, 0.5, 1.0)
    found = relax.tune(network, GIVEN, score, grid=grid, batch_size=2, target=0)(p, x)
    values = {"first": 0.25, "second": 0.25}
    history = [score(explained(p, x, *values.values()))]
    for name in ("second", "first"):
        each = {g: score(explained(p, x, *(values | {name: g}).values())) for g in (0.25, *grid)}
        values[name] = max(each, key=each.get)
        history.append(each[values[name]])
    assert {name: float(v) for name, v in found.values.items()} == values
    np.testing.assert_allclose(found.history, history, rtol=1e-8)
    assert found.score > found.start
    assert found.score == found.history[-1]
    assert "second" in str(found)
    assert f"{float(found.start):.4f} -> {float(found.score):.4f}" in str(found)


@pytest.mark.more
def test_its_rules_are_what_scored(p, x):
    """They go into lrp as they are, also under jit and for another batch, and in the plan."""
    score = near(explained(p, x, 0.8, 0.1))
    for given in (GIVEN, list(GIVEN.items()), [(select.first, rules.Gamma()), GIVEN_SECOND]):
        found = relax.tune(network, given, score, target=0)(p, x)
        relevance = jax.jit(relax.lrp(network, found.rules, target=0))(p, x)
        np.testing.assert_allclose(score(relevance), found.score, rtol=1e-8)
        plan = {row.path: row.rule for row in relax.layers(network, found.rules)(p, x)}
        assert plan["first"].gamma == found.values["first"]
        assert plan["head"] == rules.Epsilon()
    assert relax.lrp(network, found.rules)(p, x[:1]).shape == (1, 8)


GIVEN_SECOND = ("second", rules.Gamma())


def test_by_gradient_it_finds_what_made_the_explanation(p, x):
    """The score has its maximum, zero, at two known gammas."""
    score = near(explained(p, x, 0.8, 0.1))
    tuned = relax.tune(network, GIVEN, score, optimizer=optax.adam(0.1), steps=150, target=0)
    found = tuned(p, x)
    assert found.score > 1e-4 * found.start
    np.testing.assert_allclose(found.values["first"], 0.8, rtol=0.05)
    np.testing.assert_allclose(found.values["second"], 0.1, rtol=0.05)
    assert np.all(np.diff(found.history) >= 0)
    assert len(found.history) == 151


def test_a_score_for_each_sample_and_other_hyper_parameters(p, x):
    """The mean counts; epsilon of a composite."""
    score = relax.evaluation.sensitivity_n(network, p, x, key=jax.random.key(0), n=3, target=0)
    given = composites.epsilon_plus()
    tune = relax.tune(network, given, score, name="epsilon", grid=(0.01, 0.1), target=0)
    found = tune(p, x)
    assert set(found.values) == {"first", "second", "head"}
    relevance = relax.lrp(network, found.rules, target=0)(p, x)
    np.testing.assert_allclose(score(relevance).mean(), found.score, rtol=1e-8)
    assert found.score >= found.start


def test_each_round_of_a_scan_has_its_own(x, rng):
    """As for the loop written out."""
    w = jnp.asarray(rng.normal(size=(3, 8, 8)))
    scanned = lambda w, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def unrolled(w, x):
        for i in range(3):
            x = jnp.tanh(x @ w[i])
        return x

    score = near(relax.lrp(unrolled, {"dense": rules.Gamma(0.6), "dense#1": rules.ZPlus()})(w, x))
    found = [
        relax.tune(f, rules.Gamma(0.25), score, grid=(0.0, 1.0))(w, x) for f in (scanned, unrolled)
    ]
    assert found[0].values["dense"].shape == (3,)
    np.testing.assert_array_equal(found[0].values["dense"], list(found[1].values.values()))
    np.testing.assert_allclose(found[0].history, found[1].history, rtol=1e-7)
    again = relax.lrp(scanned, found[0].rules)(w, x)
    np.testing.assert_allclose(score(again), found[0].score, rtol=1e-7)


def test_conditions_stay_and_it_can_be_traced(p, x):
    """A layer with a mask is tuned as well, behind its mask; under jit as outside of it."""
    mask = ("first", rules.Mask(jnp.linspace(0, 1, 6)))
    conditioned = [mask, rules.Gamma(0.25)]
    score = near(relax.lrp(network, [mask, rules.Gamma(1.0)], target=0)(p, x))
    tune = relax.tune(network, conditioned, score, grid=np.array([0.0, 1.0]), target=0)
    found = tune(p, x)
    assert set(found.values) == {"first", "second", "head"}
    relevance = relax.lrp(network, found.rules, target=0)(p, x)
    np.testing.assert_allclose(score(relevance), found.score, rtol=1e-8, atol=1e-12)
    values = jax.jit(lambda p, x: tune(p, x).values)(p, x)
    jax.tree.map(np.testing.assert_array_equal, values, found.values)


def test_errors(p, x):
    for options, words in (
        ({"name": "delta"}, "'delta'"),
        ({"name": "stabilizer"}, "'stabilizer'"),
        ({"name": "propagate"}, "'propagate'"),
        ({"grid": ()}, "grid is empty"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            relax.tune(network, GIVEN, jnp.sum, **options)(p, x)
    with pytest.raises(relax.ArgumentError, match="not finite"):
        relax.tune(network, GIVEN, lambda r: jnp.log(-1.0 - jnp.sum(r**2)))(p, x)
    each = {"first": rules.Gamma(jnp.ones((1, 6)))}
    with pytest.raises(relax.ArgumentError, match=r"`first` has shape \(1, 6\)"):
        relax.tune(network, each, jnp.sum)(p, x)
