"""How alike explanations are, agreement, and the sanity check with randomized parameters."""

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


def naive_spearman(a, b):
    """The correlation of mean ranks; each rank counted out."""
    rank = lambda v: np.array([(v < w).sum() + ((v == w).sum() - 1) / 2 for w in v])
    ra, rb = rank(a), rank(b)
    if not ra.std() or not rb.std():
        return 0.0
    return float(np.corrcoef(ra, rb)[0, 1])


SPEARMAN = jax.jit(evaluation.spearman)
WHOLE = arrays(float, (2, 3, 3), elements=st.integers(-3, 3).map(float))


@settings(deadline=None, max_examples=60)
@given(a=WHOLE, b=WHOLE)
def test_spearman_with_ties(a, b):
    """Against ranks that are counted; a constant has no ranks, and 0."""
    want = [naive_spearman(u.ravel(), v.ravel()) for u, v in zip(a, b, strict=True)]
    np.testing.assert_allclose(SPEARMAN(a, b), want, atol=1e-12)


def test_spearman_is_that_of_scipy(rng):
    """A larger one, in single and half precision too."""
    from scipy.stats import spearmanr

    a = rng.normal(size=(2, 3000)).round(1)
    b = a + rng.normal(size=(2, 3000)).round(1)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-4), (np.float16, 1e-4)):
        u, v = a.astype(dtype), b.astype(dtype)  # in each there are other ties
        want = [spearmanr(u[i], v[i]).statistic for i in range(2)]
        np.testing.assert_allclose(SPEARMAN(u, v), want, rtol=tolerance)


def test_pearson_and_cosine(rng):
    """numpy's; no square over- or underflows."""
    a, b = rng.normal(size=(2, 3, 4, 5))
    pearson = [np.corrcoef(u.ravel(), v.ravel())[0, 1] for u, v in zip(a, b, strict=True)]
    np.testing.assert_allclose(evaluation.pearson(a, b), pearson, rtol=1e-9)
    norm = np.sqrt((a**2).sum((1, 2)) * (b**2).sum((1, 2)))
    angle = (a * b).sum((1, 2)) / norm
    for size in (1.0, 1e-300, 1e300):
        np.testing.assert_allclose(evaluation.cosine(size * a, b), angle, rtol=1e-9)
    np.testing.assert_array_equal(evaluation.cosine(0 * a, b), 0)
    np.testing.assert_array_equal(evaluation.pearson(0 * a + 1, b), 0)


def test_top_k_and_signs(rng):
    """Sets of Python; of equal magnitudes the first are taken."""
    a, b = rng.integers(-4, 5, size=(2, 6, 20)).astype(float)
    top = lambda v, k: set(sorted(range(20), key=lambda i: -abs(v[i]))[:k])
    for k in (None, 7):
        count = k or 2
        want = [len(top(u, count) & top(v, count)) / count for u, v in zip(a, b, strict=True)]
        np.testing.assert_allclose(evaluation.top_k(a, b, k=k), want)
        count = k or 20
        want = [
            sum(np.sign(u[i]) == np.sign(v[i]) for i in top(u, count) & top(v, count)) / count
            for u, v in zip(a, b, strict=True)
        ]
        np.testing.assert_allclose(evaluation.same_sign(a, b, k=k), want)


def test_ssim_is_that_of_scikit_image(rng):
    """With Gaussian windows within the picture; each heatmap divided by its largest magnitude."""
    metrics = pytest.importorskip("skimage.metrics", reason="extra `examples` not installed")
    a = rng.normal(size=(2, 14, 17, 3))
    b = 3 * (a + 0.5 * rng.normal(size=a.shape))
    scaled = lambda v: v.sum(-1) / np.abs(v.sum(-1)).max((1, 2), keepdims=True)
    want = [
        metrics.structural_similarity(
            u, v, data_range=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for u, v in zip(scaled(a), scaled(b), strict=True)
    ]
    np.testing.assert_allclose(evaluation.ssim(a, b), want, rtol=1e-9)
    np.testing.assert_allclose(evaluation.ssim(a.sum(-1), b.sum(-1)), want, rtol=1e-9)
    assert want[0] < 0.9


def test_agreement(rng):
    """A mean over samples for each pair; by region; under jit; zeros agree with nothing."""
    given = {name: rng.normal(size=(5, 4, 4)) for name in ("lrp", "gradient")}
    given["zero"] = np.zeros((5, 4, 4))
    found = evaluation.agreement(given)
    two = zip(given["lrp"], given["gradient"], strict=True)
    pair = np.mean([naive_spearman(u.ravel(), v.ravel()) for u, v in two])
    want = [[1, pair, 0], [pair, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(found.values, want, atol=1e-12)
    assert found.names == ("lrp", "gradient", "zero")
    compiled = jax.jit(evaluation.agreement)(given)
    assert compiled.names == ("gradient", "lrp", "zero")  # jit sorts the names of a dict
    np.testing.assert_allclose(compiled.values[1], [pair, 1, 0], atol=1e-9)
    groups = evaluation.patches((4, 4), 2)
    squares = {n: r.reshape(5, 2, 2, 2, 2).sum((2, 4)) for n, r in given.items()}
    for measure in ("cosine", functools.partial(evaluation.top_k, k=2)):
        np.testing.assert_allclose(
            evaluation.agreement(given, measure, groups=groups).values,
            evaluation.agreement(squares, measure).values,
            atol=1e-12,
        )
    assert evaluation.agreement(given, functools.partial(evaluation.cosine)).measure == "cosine"
    lines = str(found).splitlines()
    assert lines[0].split() == ["spearman", "lrp", "gradient", "zero"]
    assert lines[2].split() == ["lrp", "1.00", f"{pair:.2f}", "0.00"]
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="extra `eval` not installed")
    pyplot.switch_backend("agg")
    axes = found.plot()
    assert [t.get_text() for t in axes.texts][:2] == ["1.00", f"{pair:.2f}"]
    pyplot.close("all")


@pytest.fixture
def p(rng):
    shapes = {"b": {"kernel": (6, 9), "bias": (9,)}, "a": {"kernel": (9, 3), "bias": (3,)}}
    draw = lambda shape: jnp.asarray(rng.normal(size=shape))
    return jax.tree.map(draw, shapes, is_leaf=lambda v: isinstance(v, tuple)) | {"step": 3}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(4, 6)))


def network(p, x):
    h = jax.nn.relu(x @ p["b"]["kernel"] + p["b"]["bias"][None])
    return h @ p["a"]["kernel"] + p["a"]["bias"][None]


@jax.jit
def explain(p, x):
    return x * jax.grad(lambda x: network(p, x)[:, 0].sum())(x)


@pytest.mark.parametrize("cascade", [True, False])
@pytest.mark.parametrize("draw", ["permute", pytest.param("normal", marks=pytest.mark.slow)])
def test_randomization_against_a_loop(draw, cascade, p, x):
    """Parameters put together by hand, ranks counted; the last leaf first."""
    key = jax.random.key(5)
    found = evaluation.randomization(explain, p, x, key=key, cascade=cascade, draw=draw)
    assert found.names == ("b/kernel", "b/bias", "a/kernel", "a/bias")
    leaves, tree = jax.tree.flatten(p)

    def drawn(i):
        k, leaf = jax.random.fold_in(key, i), leaves[i]
        if draw == "permute":
            return jax.random.permutation(k, leaf.ravel()).reshape(leaf.shape)
        return leaf.mean() + leaf.std() * jax.random.normal(k, leaf.shape)

    before, now = explain(p, x), list(leaves)
    for stage, i in enumerate((3, 2, 1, 0)):  # leaf 4 is an integer
        now = list(now if cascade else leaves)
        now[i] = drawn(i)
        after = explain(jax.tree.unflatten(tree, now), x)
        want = [naive_spearman(u, v) for u, v in zip(before, after, strict=True)]
        np.testing.assert_allclose(found.values[stage], want, atol=1e-9)
    assert found.values.shape == (4, 4)
    assert float(found.values[0].max()) < 1


def test_randomization_of_what_is_known(p, x, rng):
    """No parameters, similarity 1; a negated weight, -1; a constant cannot be shuffled."""
    of_input = evaluation.randomization(lambda p, x: x**3, p, x, key=jax.random.key(0))
    np.testing.assert_allclose(of_input.values, 1, rtol=1e-12)
    linear = {"w": jnp.asarray(rng.normal(size=6)), "scale": jnp.full(6, 2.0)}
    of = functools.partial(
        evaluation.randomization,
        lambda p, x: x * (p["w"] * p["scale"])[None],
        linear,
        x,
        key=jax.random.key(0),
        order=["scale", "w"],
    )
    negated = of(draw=lambda key, leaf: -leaf).values
    np.testing.assert_allclose(negated, [[-1] * 4, [1] * 4], rtol=1e-12)
    np.testing.assert_allclose(
        of(draw=lambda key, leaf: -leaf, cascade=False).values, -1, rtol=1e-12
    )
    shuffled = of(similarity="pearson").values
    np.testing.assert_allclose(shuffled[0], 1, rtol=1e-12)
    assert float(jnp.abs(shuffled[1]).max()) < 1
    moments = lambda key, leaf: jnp.zeros_like(leaf)
    np.testing.assert_array_equal(of(draw=moments).values, 0)


def test_order_of_stages_and_regions(p, x):
    """Globs and modules, several leaves a stage; what none matches is left; relevance by region."""
    make = functools.partial(evaluation.randomization, explain, p, x, key=jax.random.key(1))
    whole = make()
    found = make(order=["a", "*/kernel"])
    assert found.names == ("a", "*/kernel")
    apart = make(order=["a/bias", "a/kernel", "b/kernel"])
    np.testing.assert_allclose(found.values, apart.values[1:], rtol=1e-9)
    np.testing.assert_array_equal(make(order=["b/kernel"]).values[0], whole.values[0])
    same = make(order=["b/bias"], cascade=False).values[0]
    np.testing.assert_allclose(same, make(cascade=False).values[1], rtol=1e-9)
    grouped = make(order=["b"], groups=np.arange(6) // 2, similarity="cosine").values
    pairs = lambda p, x: explain(p, x).reshape(4, 3, 2).sum(-1)
    want = evaluation.randomization(
        pairs, p, x, key=jax.random.key(1), order=["b"], similarity="cosine"
    )
    np.testing.assert_allclose(grouped, want.values, rtol=1e-9)


def test_randomization_is_one_program(p, x):
    """Under jit the same numbers; the explanation is traced twice, before and within the loop."""
    traces = 0

    def counted(p, x):
        nonlocal traces
        traces += 1
        return explain(p, x)

    run = jax.jit(lambda p, x, key: evaluation.randomization(counted, p, x, key=key))
    floats = {name: p[name] for name in ("a", "b")}
    found = run(floats, x, jax.random.key(2))
    assert traces == 2
    want = evaluation.randomization(explain, floats, x, key=jax.random.key(2))
    np.testing.assert_allclose(found.values, want.values, rtol=1e-9)
    traces = 0
    run(floats, x + 1, jax.random.key(3))
    assert traces == 0


def test_how_a_randomization_reads_and_looks():
    """A line for each stage; the plot starts from 1."""
    values = jnp.array([[1.0, 0.5], [0.25, -0.25]])
    found = evaluation.Randomization(values, ("head", "conv"), True)
    assert [line.split() for line in str(found).splitlines()[2:]] == [
        ["head", "0.750", "0.500", "1.000"],
        ["conv", "0.000", "-0.250", "0.250"],
    ]
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="extra `eval` not installed")
    pyplot.switch_backend("agg")
    axes = found.plot(label="lrp")
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 1], [1, 0.75], [2, 0]])
    alone = evaluation.Randomization(values, ("head", "conv"), False).plot()
    np.testing.assert_allclose(alone.lines[0].get_xydata(), [[0, 0.75], [1, 0]])
    pyplot.close("all")


def test_errors(p, x):
    """What is wrong with which argument; not finite relevance raises, and is NaN under jit."""
    wrong = np.array(x)
    wrong[2, 1] = np.inf
    for measure in ("spearman", "pearson", "cosine", "top_k", "same_sign"):
        function = getattr(evaluation, measure)
        with pytest.raises(relax.ArgumentError, match=f"{measure}: .*not finite in 1 of 4"):
            function(x, wrong)
        found = jax.jit(function)(x, wrong)
        np.testing.assert_array_equal(np.isnan(found), [False, False, True, False])
    make = lambda explain=explain, p=p, **options: evaluation.randomization(
        explain, p, x, **{"key": jax.random.key(0)} | options
    )
    vanishes = lambda p, x: x / jnp.where(p["w"][0] == 1, 1, 0)
    for call, words in (
        (lambda: evaluation.spearman(x, x[:2]), r"shapes \(4, 6\) and \(2, 6\)"),
        (lambda: evaluation.spearman(x[0], x[0]), r"shape \(6,\)"),
        (lambda: evaluation.top_k(x, x, k=7), "k=7, and a sample has 6"),
        (lambda: evaluation.same_sign(x, x, k=0), "k=0"),
        (lambda: evaluation.ssim(x, x), "at least 11 x 11"),
        (lambda: evaluation.ssim(np.ones((1, 11, 10)), np.ones((1, 11, 10))), "at least 11"),
        (lambda: evaluation.agreement({}), "no relevances"),
        (lambda: evaluation.agreement({"a": x, "b": x[:2]}), r"'b' has shape \(2, 6\)"),
        (lambda: evaluation.agreement({"a": x, "b": wrong}), "'b'.*not finite"),
        (lambda: evaluation.agreement({"a": x}, "kendall"), "no measure 'kendall'.*'spearman'"),
        (lambda: make(similarity="kendall"), "no measure 'kendall'"),
        (lambda: make(draw="uniform"), "draw='uniform'"),
        (lambda: make(draw=lambda key, leaf: leaf[:1]), "made shape"),
        (lambda: make(p={"n": 3}, explain=lambda p, x: x), "no leaf of the parameters"),
        (lambda: make(order=[]), "`order` is empty"),
        (lambda: make(order="a"), "expected a list of globs"),
        (lambda: make(lambda p, x: wrong), "not finite in 1 of 4"),
        (
            lambda: make(vanishes, {"w": jnp.array([1.0, 2.0])}, draw=lambda key, leaf: leaf + 1),
            "with 'w' randomized, the similarity is not finite",
        ),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()
    with pytest.raises(relax.UnmatchedSelectorError, match=r"'b/kernle'(.|\n)*b/kernel"):
        make(order=["b/kernle"])
    with pytest.raises(relax.UnmatchedSelectorError, match=r"'a/bias' matches no .* left"):
        make(order=["a", "a/bias"])
