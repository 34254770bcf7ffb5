"""Against masks, and how much there is to read: by loops over pixels and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import relax
from relax import evaluation

SHAPE = (3, 4, 5)
WHOLE = st.integers(-3, 3).map(float)


@jax.jit
def measured(relevance, mask):
    games = [evaluation.pointing_game(relevance, mask, tolerance=t) for t in (0, 1.5, 2)]
    return games, evaluation.inside_mass(relevance, mask), evaluation.inside_rank(relevance, mask)


@settings(deadline=None, max_examples=60)
@given(relevance=arrays(float, SHAPE, elements=WHOLE), mask=arrays(bool, SHAPE))
def test_against_loops_over_pixels(relevance, mask):
    """Distances one by one, ranks by Python's stable sort, sums written out; ties and all."""
    games, mass, rank = measured(relevance, mask)
    for i, (r, m) in enumerate(zip(relevance, mask, strict=True)):
        pixels = list(np.ndindex(r.shape))
        ranked = sorted(pixels, key=lambda p: -r[p])
        inside = [p for p in pixels if m[p]]
        nearest = min((np.hypot(*np.subtract(ranked[0], p)) for p in inside), default=np.inf)
        for game, tolerance in zip(games, (0, 1.5, 2), strict=True):
            assert bool(game[i]) == (nearest <= tolerance)
        positive = sum(max(r[p], 0) for p in pixels)
        want = sum(max(r[p], 0) for p in inside) / positive if positive else 0
        np.testing.assert_allclose(mass[i], want, rtol=1e-12)
        hits = len(set(ranked[: len(inside)]) & set(inside))
        np.testing.assert_allclose(rank[i], hits / len(inside) if inside else 0, rtol=1e-12)


@pytest.mark.more
def test_channels_are_summed_and_axes_are_any(rng):
    """Relevance of colors; words instead of pictures; three axes of positions."""
    for shape in ((4, 9), (4, 3, 4, 5)):
        r, mask = rng.normal(size=(*shape, 3)), rng.random(size=shape) > 0.5
        for measure in (evaluation.inside_mass, evaluation.inside_rank):
            np.testing.assert_allclose(measure(r, mask), measure(r.sum(-1), mask), rtol=1e-12)
        game = evaluation.pointing_game(r, mask)
        best = r.sum(-1).reshape(4, -1).argmax(1)
        np.testing.assert_array_equal(game, mask.reshape(4, -1)[np.arange(4), best])


def test_constant_relevance_has_the_share_of_the_mask(rng):
    """So the docs say; and the scale does not matter: no sum overflows."""
    mask = rng.random(size=(3, 8, 8)) > 0.7
    share = mask.mean((1, 2))
    for size in (1e-37, 1.0, 1e37):
        r = jnp.full(mask.shape, size, jnp.float32)
        np.testing.assert_allclose(evaluation.inside_mass(r, mask), share, rtol=1e-5)


@pytest.mark.more
def test_entropy_and_gini_by_their_definitions(rng):
    """Sums written out; the double sum over pairs that the Gini index is; both extremes."""
    r = rng.normal(size=(3, 2, 6))
    flat = np.abs(r).reshape(3, -1)
    p = flat / flat.sum(1, keepdims=True)
    np.testing.assert_allclose(evaluation.entropy(r), [-(q * np.log(q)).sum() for q in p])
    pairs = [np.abs(a[:, None] - a[None]).sum() / (2 * a.size * a.sum()) for a in flat]
    np.testing.assert_allclose(evaluation.gini(r), pairs, rtol=1e-12)
    groups = np.arange(6)[None] // 3
    summed = r.reshape(3, 2, 2, 3).sum((1, 3))
    np.testing.assert_allclose(evaluation.entropy(r, groups=groups), evaluation.entropy(summed))
    np.testing.assert_allclose(evaluation.gini(r, groups=groups), evaluation.gini(summed))
    one, none, same = np.eye(1, 8) * -5, np.zeros((1, 8)), np.full((1, 8), -1e-300)
    np.testing.assert_array_equal([evaluation.entropy(v)[0] for v in (one, none)], 0)
    np.testing.assert_allclose(evaluation.entropy(same), np.log(8))
    np.testing.assert_allclose([evaluation.gini(v)[0] for v in (one, none, same)], [7 / 8, 0, 0])


@pytest.mark.parametrize("measure", ["entropy", "gini", "inside_mass"])
def test_derivatives(measure, rng):
    """By central differences; at zeros they have no NaN."""
    mask = rng.random(size=(2, 3, 4)) > 0.5
    function = getattr(evaluation, measure)
    of = lambda r: (function(r, mask) if measure == "inside_mass" else function(r)).sum()
    r, step = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    r[0, 0, 0] = step[0, 0, 0] = 0
    slope = jax.grad(of)(r)
    want = (of(r + 1e-6 * step) - of(r - 1e-6 * step)) / 2e-6
    np.testing.assert_allclose((slope * step).sum(), want, rtol=1e-6)
    assert np.isfinite(slope).all()
    assert np.isfinite(jax.grad(of)(np.zeros((2, 3, 4)))).all()


def test_what_is_not_finite(rng):
    """It raises; under jit it is NaN."""
    r, mask = rng.normal(size=SHAPE), np.ones(SHAPE, bool)
    r[1, 2, 3] = np.nan
    named = {
        "pointing_game": lambda r: evaluation.pointing_game(r, mask),
        "inside_mass": lambda r: evaluation.inside_mass(r, mask),
        "inside_rank": lambda r: evaluation.inside_rank(r, mask),
        "entropy": evaluation.entropy,
        "gini": evaluation.gini,
    }
    for name, measure in named.items():
        with pytest.raises(relax.ArgumentError, match=f"{name}: .*not finite in 1 of 3"):
            measure(r)
        found = jax.jit(measure)(r)
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])


def test_errors():
    """What is wrong with which argument."""
    r, mask = np.ones((2, 3, 4)), np.ones((2, 3, 4), bool)
    for call, words in (
        (lambda: evaluation.pointing_game(r, mask * 1), "dtype int64; expected booleans"),
        (lambda: evaluation.pointing_game(r, mask, -1), "tolerance=-1"),
        (lambda: evaluation.inside_mass(r, mask[:, :2]), r"\(2, 3, 4\), and the mask \(2, 2, 4\)"),
        (lambda: evaluation.inside_rank(r[0, 0], mask[0, 0]), r"shape \(4,\)"),
        (lambda: evaluation.inside_rank(r[0], mask), r"shape \(3, 4\)"),
        (lambda: evaluation.entropy(r, groups=np.ones((2,), int)), "do not broadcast"),
        (lambda: evaluation.gini(r + 0j), "complex"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()
