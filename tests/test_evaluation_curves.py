"""Perturbation curves, against loops that replace one region after the other, and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import relax
from relax import evaluation


@pytest.fixture
def p(rng):
    return {n: jnp.asarray(rng.normal(size=s)) for n, s in {"a": (24, 7), "b": (7, 3)}.items()}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(3, 4, 6)))


@jax.jit
def network(p, x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ p["a"]) @ p["b"]


def by_hand(value, x, blank, relevance, labels, order):
    """The value of every sample after each region more, in Python's own stable order."""
    names, curves = np.unique(labels), []
    for i in range(len(x)):
        sums = {n: relevance[i][labels == n].sum() for n in names}
        first_best = order in ("morf", "insertion")
        ranked = sorted(names, key=lambda n: -sums[n] if first_best else sums[n])
        now, new = (blank, x) if order == "insertion" else (x, blank)
        now, curve = np.array(now), []
        curve.append(value(now)[i])
        for name in ranked:
            now[i][labels == name] = new[i][labels == name]
            curve.append(value(now)[i])
        curves.append(curve)
    return np.array(curves)


@pytest.mark.parametrize("order", ["morf", "lerf", "insertion"])
@pytest.mark.parametrize("grouped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_against_loops(order, grouped, p, x, rng):
    """Every order, with regions and without, ties among the relevance; in batches of steps."""
    relevance = rng.integers(-3, 4, size=x.shape).astype(float)
    relevance[0] = -0.0  # all are tied
    relevance[0, 1] = 0.0
    groups = evaluation.patches((4, 6), 2) * 3 - 5 if grouped else None
    labels = np.arange(24).reshape(4, 6) if groups is None else groups
    blank = rng.normal(size=(4, 6))
    common = {"groups": groups, "replacement": blank, "target": 1, "batch_size": 4}
    if order == "insertion":
        curve = evaluation.insertion(network, p, x, relevance=relevance, **common)
    else:
        curve = evaluation.perturbation(network, p, x, relevance=relevance, order=order, **common)
    value = lambda x: np.asarray(network(p, x))[:, 1]
    whole = np.broadcast_to(blank, x.shape)
    want = by_hand(value, np.asarray(x), whole, relevance, labels, order)
    np.testing.assert_allclose(curve.values, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(curve.fractions, np.linspace(0, 1, len(np.unique(labels)) + 1))
    assert curve.order == order


def test_steps_and_until_are_points_of_the_whole_curve(p, x, rng):
    """Fewer steps replace several regions at once; `until` stops early."""
    relevance = rng.normal(size=x.shape)
    make = functools.partial(evaluation.perturbation, network, p, x, relevance=relevance, target=0)
    whole = make()
    some = make(steps=5, until=0.5)
    at = [0, 2, 5, 7, 10, 12]  # even numbers of 12 / 5, halves to the even one
    np.testing.assert_allclose(some.values, whole.values[:, at], rtol=1e-9)
    np.testing.assert_allclose(some.fractions, np.array(at) / 24)
    assert make(steps=1).values.shape == (3, 2)
    many = jnp.ones((1, 100))
    assert evaluation.deletion(lambda x: x.sum(1), many, relevance=many).values.shape == (1, 51)


def test_deletion_and_insertion_are_perturbations(p, x, rng):
    """Deletion is MoRF; without ties insertion is LeRF from its end, and ABPC what lies between."""
    common = {"relevance": rng.normal(size=x.shape), "target": 2, "replacement": 0.5}
    of = functools.partial(evaluation.perturbation, network, p, x, **common)
    morf, lerf = of(order="morf"), of(order="lerf")
    deletion = evaluation.deletion(network, p, x, **common)
    insertion = evaluation.insertion(network, p, x, **common)
    np.testing.assert_array_equal(deletion.values, morf.values)
    np.testing.assert_allclose(insertion.values, lerf.values[:, ::-1], rtol=1e-9)
    between = evaluation.area_between(network, p, x, **common)
    np.testing.assert_allclose(between, insertion.area() - deletion.area(), rtol=1e-9)
    common["relevance"] = -common["relevance"]
    np.testing.assert_allclose(evaluation.area_between(network, p, x, **common), -between)
    common["relevance"] = np.ones(x.shape)
    np.testing.assert_array_equal(evaluation.area_between(network, p, x, **common), 0)


def test_aopc_area_and_mean_by_their_definitions(rng):
    """Against the sums written out, and numpy's trapezoids; the samples of a vmap stay apart."""
    fractions, values = np.array([0.0, 0.2, 0.5, 1.0]), rng.normal(size=(2, 5, 4))
    curve = evaluation.Curve(jnp.asarray(fractions), jnp.asarray(values[0]))
    aopc = [sum(v[0] - v[k] for k in range(4)) / 4 for v in values[0]]
    np.testing.assert_allclose(curve.aopc(), aopc, rtol=1e-12)
    np.testing.assert_allclose(curve.area(), np.trapezoid(values[0], fractions), rtol=1e-12)
    np.testing.assert_allclose(curve.mean(), values[0].mean(0), rtol=1e-12)
    many = evaluation.Curve(jnp.asarray(np.stack([fractions] * 2)), jnp.asarray(values))
    np.testing.assert_allclose(many.area(), np.trapezoid(values, fractions), rtol=1e-12)
    np.testing.assert_allclose(many.aopc()[0], aopc, rtol=1e-12)


WEIGHTS = np.array([[2.0, -1.0, 0.5, 3.0, -2.0, 1.0]])


@functools.partial(jax.jit, static_argnames="grouped")
def both(x, blank, relevance, grouped):
    linear = lambda w, x: (x * w).sum(1)
    groups = np.array([0, 0, 1, 1, 2, 2]) if grouped else None
    return [
        evaluation.perturbation(
            linear, jnp.asarray(WEIGHTS), x, relevance=r, order=order, groups=groups,
            replacement=blank,
        ).values
        for order in ("morf", "lerf")
        for r in (relevance, jnp.asarray(WEIGHTS) * (x - blank))
    ]  # fmt: skip


NUMBERS = st.floats(-8, 8).map(lambda v: round(v, 3))


@settings(deadline=None, max_examples=60)
@given(
    x=arrays(float, (2, 6), elements=NUMBERS),
    blank=arrays(float, (1, 6), elements=NUMBERS),
    relevance=arrays(float, (2, 6), elements=NUMBERS),
    grouped=st.booleans(),
)
def test_of_a_linear_function_the_contributions_are_best(x, blank, relevance, grouped):
    """w (x - blank): sorted cumulative sums; no order lies below its MoRF or above its LeRF."""
    morf, best_morf, lerf, best_lerf = both(x, blank, relevance, grouped)
    exact = WEIGHTS * (x - blank)
    exact = exact.reshape(2, 3, 2).sum(-1) if grouped else exact
    falling = -np.sort(-exact, axis=1)
    start = (WEIGHTS * x).sum(1, keepdims=True)
    none = np.zeros((2, 1))
    np.testing.assert_allclose(
        best_morf, start - np.cumsum(np.hstack([none, falling]), 1), atol=1e-9
    )
    np.testing.assert_allclose(
        best_lerf, start - np.cumsum(np.hstack([none, falling[:, ::-1]]), 1), atol=1e-9
    )
    assert np.all(best_morf <= morf + 1e-9)
    assert np.all(best_lerf >= lerf - 1e-9)
    assert np.all(best_morf <= lerf + 1e-9)


def test_random_orders(p, x):
    """Each sample has its own; the key says which; relevance is not needed."""
    one = jnp.ones((400, 4))
    f = lambda x: (x * jnp.array([[8.0, 4.0, 2.0, 1.0]])).sum(1)
    make = lambda key: evaluation.perturbation(f, one, order="random", key=key)
    curve = make(jax.random.key(0))
    np.testing.assert_array_equal(curve.values, make(jax.random.key(0)).values)
    first = 15 - np.asarray(curve.values)[:, 1]  # what was replaced first
    counts = [int((first == v).sum()) for v in (8, 4, 2, 1)]
    assert sum(counts) == 400
    assert min(counts) > 60
    np.testing.assert_array_equal(curve.values[:, -1], 0)
    assert np.any(make(jax.random.key(1)).values != curve.values)


def test_replacements(p, x, rng):
    """A number, an array, the mean, a function with its key: seen where all is replaced."""
    end = lambda replacement, **more: evaluation.perturbation(
        network, p, x, relevance=x, replacement=replacement, steps=1, target=0, **more
    ).values[:, -1]
    at = lambda blank: np.asarray(network(p, jnp.broadcast_to(blank, x.shape)))[:, 0]
    other = rng.normal(size=(6,))
    np.testing.assert_allclose(end(2.0), at(2.0), rtol=1e-12)
    np.testing.assert_allclose(end(other), at(other), rtol=1e-12)
    np.testing.assert_allclose(end("mean"), at(x.mean((1, 2), keepdims=True)), rtol=1e-12)
    blurred = evaluation.blur(x, 1.5)
    np.testing.assert_allclose(end(blurred), at(blurred), rtol=1e-12)
    np.testing.assert_allclose(end(lambda key, x: evaluation.blur(x, 1.5)), at(blurred), rtol=1e-12)
    key = jax.random.key(3)
    noisy = end(evaluation.noise, key=key)
    np.testing.assert_array_equal(noisy, end(evaluation.noise, key=key))
    assert np.all(noisy != end(evaluation.noise, key=jax.random.key(4)))
    tokens = jnp.arange(12).reshape(2, 6)
    count = lambda x: (x == 99).sum(1) * 1.0
    curve = evaluation.perturbation(count, tokens, relevance=tokens, replacement=99, steps=3)
    np.testing.assert_array_equal(curve.values, [[0, 2, 4, 6]] * 2)


def test_blur_and_noise(rng):
    """scipy's Gaussian filter; the moments of the noise are those of each sample."""
    from scipy.ndimage import gaussian_filter1d

    x = rng.normal(size=(2, 9, 11, 3))
    want = x
    for axis in (1, 2):
        want = gaussian_filter1d(want, 2.3, axis=axis, mode="nearest", truncate=4.0)
    np.testing.assert_allclose(evaluation.blur(x, 2.3), want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(evaluation.blur(jnp.ones((1, 4, 4)), 9.0), 1.0, rtol=1e-12)
    assert evaluation.blur(jnp.ones((1, 4, 4), jnp.bfloat16), 1.0).dtype == jnp.bfloat16
    many = jnp.asarray(rng.normal(size=(2, 40000))) * jnp.array([[3.0], [0.1]]) + 5
    noisy = evaluation.noise(jax.random.key(0), many, scale=2.0)
    np.testing.assert_allclose(noisy.mean(1), many.mean(1), atol=0.1)
    np.testing.assert_allclose(noisy.std(1), 2 * many.std(1), rtol=0.03)
    assert abs(np.corrcoef(noisy[0], many[0])[0, 1]) < 0.02


TARGETS = {
    "none": (None, lambda z, z0: z.sum(-1)),
    "array": (jnp.array([0, 1, 2]), lambda z, z0: z[np.arange(3), [0, 1, 2]]),
    "max": ("max", lambda z, z0: z[np.arange(3), z0.argmax(-1)]),
    "callable": (lambda z: z * jnp.array([[1.0, -1.0, 0.0]]), lambda z, z0: z[:, 0] - z[:, 1]),
}


@pytest.mark.parametrize("target", TARGETS)
def test_targets(target, p, x):
    """What is explained at the first, some and the last step."""
    chosen, of = TARGETS[target]
    curve = evaluation.perturbation(network, p, 3 * x, relevance=x, steps=24, target=chosen)
    z0, z1 = (np.asarray(network(p, v)) for v in (3 * x, jnp.zeros_like(x)))
    np.testing.assert_allclose(curve.values[:, 0], of(z0, z0), rtol=1e-12)
    np.testing.assert_allclose(curve.values[:, -1], of(z1, z0), rtol=1e-12, atol=1e-12)
    best = jnp.argmax(x.reshape(3, -1), 1)
    once = (3 * x).reshape(3, -1).at[jnp.arange(3), best].set(0).reshape(x.shape)
    np.testing.assert_allclose(curve.values[:, 1], of(np.asarray(network(p, once)), z0))


def test_transformations(p, x, rng):
    """jit, vmap over explanations, and batches of steps are the same numbers; one trace a shape."""
    relevance = rng.normal(size=(2, *x.shape))
    traces = 0

    def f(p, x):
        nonlocal traces
        traces += 1
        return network(p, x)

    def make(p, x, relevance, batch_size=None):
        groups = evaluation.patches((4, 6), 2)
        return evaluation.perturbation(
            f, p, x, relevance=relevance, groups=groups, target="max", batch_size=batch_size
        )

    want = [make(p, x, r).values for r in relevance]
    compiled = jax.jit(make, static_argnames="batch_size")
    np.testing.assert_allclose(compiled(p, x, relevance[0]).values, want[0], rtol=1e-9)
    np.testing.assert_allclose(
        compiled(p, x, relevance[0], batch_size=2).values, want[0], rtol=1e-9
    )
    traces = 0
    np.testing.assert_allclose(compiled(p, x, relevance[1]).values, want[1], rtol=1e-9)
    assert traces == 0
    swept = jax.jit(jax.vmap(lambda r: make(p, x, r, 3)))(relevance)
    np.testing.assert_allclose(swept.values, want, rtol=1e-9)
    np.testing.assert_allclose(
        swept.area(), [np.trapezoid(v, np.linspace(0, 1, 7)) for v in want], rtol=1e-9
    )


def test_derivatives_of_the_parameters(p, x, rng):
    """The order is fixed, the curve is not: its area has the gradient of the function's values."""
    relevance = rng.normal(size=x.shape)
    area = lambda s: evaluation.deletion(network, p, s * x, relevance=relevance).area().sum()
    want = (area(1 + 1e-6) - area(1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(area)(1.0), want, rtol=1e-6)


def test_half_precision_is_summed_in_single(p, x):
    """Many small numbers of a region; the values are float32."""
    relevance = np.full((1, 4096), 1, jnp.bfloat16)
    relevance[0, 2048::1024] = 1.0078125  # in half precision all regions add up to 1024
    groups = np.arange(4096) // 1024
    f = lambda x: (x * (jnp.arange(4096) >= 2048)[None]).sum(1)
    x = jnp.ones((1, 4096), jnp.bfloat16)
    curve = evaluation.perturbation(f, x, relevance=relevance, groups=groups)
    np.testing.assert_array_equal(curve.values, [[2048, 1024, 0, 0, 0]])
    assert curve.values.dtype == jnp.float32


def test_what_is_not_finite_is_not_ranked(p, x):
    """It raises, in a trace too if it is known; if it is not, that sample's values are NaN."""
    wrong = np.array(x)
    wrong[1, 0, 0] = np.nan
    make = lambda r: evaluation.perturbation(network, p, x, relevance=r, steps=2)
    with pytest.raises(
        relax.ArgumentError, match="not finite in 1 of 3 samples, first in sample 1"
    ):
        make(wrong)
    known = jnp.asarray(wrong)
    with pytest.raises(relax.ArgumentError, match="not finite"):
        jax.jit(lambda s: evaluation.perturbation(network, p, s * x, relevance=known).values)(1.0)
    for number in (np.nan, np.inf):
        wrong[1, 0, 0] = number
        got = jax.jit(make)(wrong).values
        assert np.isnan(got[1]).all()
        np.testing.assert_allclose(got[jnp.array([0, 2])], make(x).values[jnp.array([0, 2])])


def test_how_a_curve_reads_and_looks(p, x):
    """Its line says order, samples, steps and values; the plot has the mean and its band."""
    curve = evaluation.Curve(jnp.array([0.0, 0.5]), jnp.array([[4.0, 2.0], [2.0, 0.0]]), "lerf")
    assert repr(curve) == "Curve(lerf: 2 samples, 1 steps to 0.5; value 3 to 1, area 1)"
    assert jax.eval_shape(lambda c: c, curve).order == "lerf"
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="extra `eval` not installed")
    pyplot.switch_backend("agg")
    axes = curve.plot(label="mine")
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[0, 3], [0.5, 1]])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.0, 4.0)  # a standard error of 1
    assert axes.get_legend().get_texts()[0].get_text() == "mine"
    assert len(curve.plot(axes).lines) == 2
    pyplot.close("all")


def test_a_curve_leaves_out_what_is_not_finite(rng):
    """Mean, line and plot are those without such samples, and say so; the values stay."""
    values = rng.normal(size=(5, 3))
    values[1, 2], values[3, 0] = np.nan, np.inf
    fractions, good = jnp.array([0.0, 0.5, 1.0]), np.array([0, 2, 4])
    curve = evaluation.Curve(fractions, jnp.asarray(values))
    alone = evaluation.Curve(fractions, jnp.asarray(values[good]))
    np.testing.assert_array_equal(curve.values, values)
    np.testing.assert_array_equal(np.flatnonzero(curve.finite()), good)
    want = values[good].mean(0)
    np.testing.assert_allclose(curve.mean(), want, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda c: c.mean())(curve), want, rtol=1e-12)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), curve)
    np.testing.assert_allclose(stacked.mean(), [want, want], rtol=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(~np.isfinite(curve.area())), [1, 3])
    slope = jax.grad(lambda v: evaluation.Curve(fractions, v).mean().sum())(curve.values)
    np.testing.assert_allclose(slope, np.isin(np.arange(5), good)[:, None] * np.full((5, 3), 1 / 3))

    assert "3 of 5 samples" in repr(curve)
    assert repr(curve).replace("3 of 5 samples", "3 samples") == repr(alone)
    none = evaluation.Curve(fractions, jnp.full((2, 3), jnp.nan))
    assert repr(none) == "Curve(morf: 0 of 2 samples, 2 steps to 1; value nan to nan, area nan)"

    pyplot = pytest.importorskip("matplotlib.pyplot", reason="extra `eval` not installed")
    pyplot.switch_backend("agg")
    axes, other = curve.plot(), alone.plot()
    np.testing.assert_allclose(axes.lines[0].get_xydata(), other.lines[0].get_xydata())
    bands = [a.collections[0].get_paths()[0].vertices for a in (axes, other)]
    np.testing.assert_allclose(*bands)
    assert axes.get_legend().get_texts()[0].get_text() == "morf (3 of 5 samples)"
    assert other.get_legend().get_texts()[0].get_text() == "morf"
    none.plot()
    pyplot.close("all")


def test_errors(p, x):
    """What is wrong with which argument."""
    make = lambda x=x, **options: evaluation.perturbation(
        network, p, x, **{"relevance": x, "target": 0} | options
    )
    integers = jnp.ones((3, 4, 6), int)
    for call, words in (
        (lambda: make(order="best"), "order='best'"),
        (lambda: make(relevance=None), 'only order="random"'),
        (lambda: make(order="random"), "give it a key"),
        (lambda: make(relevance=x[:, 0]), r"\(3, 6\); x has \(3, 4, 6\)"),
        (lambda: make(relevance=x + 0j), "complex"),
        (lambda: make(steps=25), "steps=25.*at most 24"),
        (lambda: make(steps=0), "steps=0"),
        (lambda: make(steps=13, until=0.5), "at most 12"),
        (lambda: make(until=0.0), "until=0.0"),
        (lambda: make(groups=np.ones((4, 6))), "integers"),
        (lambda: jax.jit(lambda g: make(groups=g).values)(integers[0]), "groups are traced"),
        (lambda: make(replacement="median"), "median"),
        (lambda: make(replacement=np.ones(5)), r"\(5,\) does not broadcast to x, \(3, 4, 6\)"),
        (lambda: make(replacement=lambda key, x: x[:2]), r"\(2, 4, 6\) does not broadcast"),
        (lambda: make(replacement=evaluation.noise), "noise needs a key"),
        (lambda: make(integers), "id of a mask token"),
        (lambda: make(integers, replacement="mean"), "for floats"),
        (lambda: make(batch_size=0), "batch_size=0"),
        (lambda: evaluation.deletion(lambda x: x.sum(), x, relevance=x), "deletion: an output"),
        (lambda: evaluation.deletion(lambda x: {}, x, relevance=x), "returns no array"),
        (lambda: evaluation.insertion(network, p, {"x": x}, relevance=x), "insertion: x is a dict"),
        (lambda: evaluation.blur(x, 0.0), "sigma=0.0"),
        (lambda: evaluation.blur(x, 1.0, axes=(3,)), r"axes=\(3,\)"),
        (lambda: evaluation.blur(integers, 1.0), "int64"),
        (lambda: evaluation.noise(jax.random.key(0), integers), "int64"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()
    with pytest.raises(relax.TargetError, match="out of range"):
        make(target=5)
