"""Scores of faithfulness, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import evaluation, rules


@pytest.fixture
def p(rng):
    return {n: jnp.asarray(rng.normal(size=s)) for n, s in {"a": (24, 7), "b": (7, 3)}.items()}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(5, 4, 6)))


def network(p, x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ p["a"]) @ p["b"]


@pytest.mark.parametrize("n", [1, None])
def test_a_linear_function_is_explained_perfectly(n, p, x):
    """LRP-0 of a linear function tells what every subset does; its negative the opposite."""
    linear = lambda p, x: x.reshape(5, -1) @ p["a"] @ p["b"]
    score = evaluation.sensitivity_n(linear, p, x, key=jax.random.key(0), n=n, target=2)
    relevance = relax.lrp(linear, rules.Epsilon(0.0), target=2)(p, x)
    np.testing.assert_allclose(score(relevance), 1.0, rtol=1e-9)
    np.testing.assert_allclose(score(-3.0 * relevance), -1.0, rtol=1e-9)
    np.testing.assert_array_equal(score(jnp.zeros_like(x)), 0)
    np.testing.assert_array_equal(score(jnp.ones_like(x)), 0)  # every subset is as relevant


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_the_scale_does_not_matter(dtype, p, x):
    """Neither of relevance nor of the output: no square vanishes or overflows."""
    p, x = jax.tree.map(lambda a: a.astype(dtype), (p, x))
    score = evaluation.sensitivity_n(network, p, x, key=jax.random.key(0), target=0)
    relevance = relax.lrp(network, target=0)(p, x)
    want = score(relevance)
    assert float(jnp.abs(want).min()) > 0.1
    largest = 1e3 if dtype == jnp.float16 else 1e30
    for factor in (largest, 1 / largest):
        if dtype == jnp.float32:
            np.testing.assert_allclose(score(relevance * factor), want, rtol=1e-3)
        bounded = min(factor, 1e4)
        scaled = lambda p, x, f=bounded: network(p, x) * f
        again = evaluation.sensitivity_n(scaled, p, x, key=jax.random.key(0), target=0)
        np.testing.assert_allclose(
            again(relevance), want, rtol=0.1 if dtype == jnp.float16 else 1e-3
        )


TARGETS = {
    "none": (None, lambda z, z0: z.sum(-1)),
    "int": (1, lambda z, z0: z[:, 1]),
    "array": (jnp.array([0, 1, 2, 0, 1]), lambda z, z0: z[np.arange(5), [0, 1, 2, 0, 1]]),
    "max": ("max", lambda z, z0: z[np.arange(5), z0.argmax(-1)]),
    "callable": (
        lambda z: z * jnp.array([1.0, -1.0, 0.0])[None],
        lambda z, z0: z[:, 0] - z[:, 1],
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("grouped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_against_loops(target, grouped, p, x, rng):
    """Every subset by itself, and numpy's correlation. The subsets are those of the key."""
    given, chosen = TARGETS[target]
    baseline = rng.normal(size=(1, 4, 6))
    groups = np.arange(6)[None] // 2 + 10 if grouped else None
    labels = np.broadcast_to(groups, (4, 6)) if grouped else np.arange(24).reshape(4, 6)
    names = np.unique(labels)
    n = 1 if grouped else 5
    relevance = rng.normal(size=x.shape)
    key = jax.random.key(3)
    score = evaluation.sensitivity_n(
        network,
        p,
        x,
        key=key,
        n=n,
        subsets=30,
        baseline=baseline,
        groups=groups,
        target=given,
        batch_size=7,
    )(relevance)
    z = np.asarray(network(p, x))
    drops, sums = [], []
    for each in jax.random.split(key, 30):
        subset = names[np.asarray(jax.random.permutation(each, len(names)))[:n]]
        hit = np.isin(labels, subset)[None]
        changed = np.asarray(network(p, jnp.where(hit, baseline, x)))
        drops.append(chosen(z, z) - chosen(changed, z))
        sums.append((relevance * hit).sum((1, 2)))
    want = [np.corrcoef(np.array(sums)[:, i], np.array(drops)[:, i])[0, 1] for i in range(5)]
    np.testing.assert_allclose(score, want, rtol=1e-9)


def test_it_is_differentiable_and_swept(p, x):
    """By central differences through relevance and gamma; a sweep of gammas in one program."""
    score = evaluation.sensitivity_n(network, p, x, key=jax.random.key(0), target=0)
    of_gamma = lambda g: score(relax.lrp(network, rules.Gamma(g), target=0)(p, x)).mean()
    want = (of_gamma(0.3 + 1e-6) - of_gamma(0.3 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.grad(of_gamma))(0.3), want, rtol=1e-5)
    gammas = jnp.array([0.0, 0.3, 1.0])
    np.testing.assert_allclose(
        jax.jit(relax.sweep(of_gamma))(gammas), [of_gamma(g) for g in gammas], rtol=1e-9
    )


def test_its_derivative_under_jit():
    """In float32, where a compiler that computes a number twice may round it in two ways."""
    shapes = {"first": (12, 16), "second": (16, 16), "head": (16, 3)}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(0), 3), strict=True))
    p = {n: {"w": jax.random.normal(keys[n], s, jnp.float32)} for n, s in shapes.items()}
    x = jax.random.normal(jax.random.key(1), (8, 12), jnp.float32)

    def network(p, x):
        h = jax.nn.relu(x @ p["first"]["w"])
        return jax.nn.relu(h @ p["second"]["w"]) @ p["head"]["w"]

    key = jax.random.key(2)
    score = evaluation.sensitivity_n(network, p, x, key=key, n=3, target=0)
    relevance = relax.lrp(network, rules.Gamma(0.25), target=0)(p, x)
    slope = jax.grad(lambda r: score(r).mean())
    plain, compiled = slope(relevance), jax.jit(slope)(relevance)
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


def test_patches_cover_a_picture():
    """Each pixel is in one square; squares at the edge are smaller."""
    groups = evaluation.patches((5, 7, 3), 3)
    assert groups.shape == (5, 7, 1)
    sizes = np.bincount(groups.reshape(-1))
    np.testing.assert_array_equal(sizes, [9, 9, 3, 6, 6, 2])
    assert np.all(groups[3:, 6] == 5)
    assert evaluation.patches((5, 7), 3).shape == (5, 7)


def test_errors(p, x):
    """What is wrong with which argument."""
    make = lambda x=x, **options: evaluation.sensitivity_n(
        network, p, x, key=jax.random.key(0), **options
    )
    for call, words in (
        (lambda: make(x[0, 0]), r"shape \(6,\)"),
        (lambda: make(jnp.ones((2, 3), int)), "int"),
        (lambda: make(n=24), "n=24, and a sample has 24"),
        (lambda: make(n=0), "n=0"),
        (lambda: make(n=2.0), "n=2.0"),
        (lambda: make({"x": x}), "dict"),
        (lambda: make(x + 0j), "complex"),
        (
            lambda: evaluation.sensitivity_n(lambda x: x.sum(), x, key=jax.random.key(0)),
            r"output has shape \(\)",
        ),
        (lambda: make(subsets=1), "subsets=1"),
        (lambda: make(groups=np.ones((4, 6))), "integers"),
        (lambda: make(groups=np.ones((5, 6), int)), r"\(5, 6\) do not broadcast"),
        (lambda: make()(jnp.ones((5, 24))), r"\(5, 24\); x has \(5, 4, 6\)"),
        (lambda: evaluation.patches((3,), 2), "patches"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()
    with pytest.raises(relax.TargetError, match="out of range"):
        make(target=5)


def test_what_is_not_finite_and_other_baselines(p, x):
    """It raises, and is NaN under jit; the baseline is whatever a replacement may be."""
    make = lambda **more: evaluation.sensitivity_n(
        network, p, x, key=jax.random.key(0), target=0, **more
    )
    score, relevance = make(), np.array(x)
    relevance[3, 0, 0] = np.nan
    with pytest.raises(relax.ArgumentError, match=r"sensitivity_n: .*first in sample 3"):
        score(relevance)
    found = jax.jit(score)(relevance)
    np.testing.assert_array_equal(np.isnan(found), np.arange(5) == 3)
    mean = jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape)
    np.testing.assert_allclose(make(baseline="mean")(x), make(baseline=mean)(x), rtol=1e-9)
    drawn = make(baseline=evaluation.noise)(x)
    np.testing.assert_array_equal(drawn, make(baseline=evaluation.noise)(x))
    assert np.all(drawn != make(baseline="mean")(x))
