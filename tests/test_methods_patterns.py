"""Patterns of neurons, against covariances written out, and what is propagated along them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import methods

close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
SHAPES = {
    "k": (3, 3, 2, 4),
    "b": (4,),
    "w": (36, 6),
    "c": (6,),
    "v": (6, 3),
    "scale": (4,),
    "mean": (4,),
}


@pytest.fixture
def p(rng):
    return {n: jnp.asarray(rng.normal(size=s)) / 2 for n, s in SHAPES.items()}


@pytest.fixture
def x(rng):
    mixing = rng.normal(size=(50, 50)) / 5
    return jnp.asarray((1 + rng.normal(size=(90, 50)) @ mixing).reshape(90, 5, 5, 2))


def conv(p, x, padding="VALID"):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, p["k"], (1, 1), padding, dimension_numbers=numbers)


def network(p, x):
    h = jax.nn.relu(conv(p, x) + p["b"][None, None, None]).reshape(len(x), -1)
    return jax.nn.relu(h @ p["w"] + p["c"][None]) @ p["v"]


def by_hand(x, w, on):
    """cov(x, y) / var(y) of each neuron over the rows where it is on."""
    x, w, on = map(np.asarray, (x, w, on))
    found = np.zeros(w.shape)
    for j in range(w.shape[1]):
        rows = x[on[:, j]]
        if len(rows) == 0:
            continue
        y = rows @ w[:, j]
        spread = ((y - y.mean()) ** 2).mean()
        centered = (rows - rows.mean(0, keepdims=True)) * (y - y.mean())[:, None]
        found[:, j] = centered.mean(0) / spread if spread > 0 else 0
    return found


def windows(x):
    """All windows of three by three as rows, ``(samples * places, 18)``."""
    x = np.asarray(x)
    rows = [x[:, i : i + 3, j : j + 3].reshape(len(x), -1) for i in range(3) for j in range(3)]
    return np.concatenate(rows)


def test_against_covariances(p, x):
    """A convolution by its windows, a rectified layer where it is on, the last one everywhere."""
    found = methods.fit_patterns(network, p, data=[x])
    assert set(found) == {"conv", "dense", "dense#1"}
    rows, kernel = windows(x), np.asarray(p["k"]).reshape(18, 4)
    on = rows @ kernel + np.asarray(p["b"])[None] > 0
    close(found["conv"].reshape(18, 4), by_hand(rows, kernel, on))
    h = jax.nn.relu(conv(p, x) + p["b"][None, None, None]).reshape(len(x), -1)
    z = h @ p["w"] + p["c"][None]
    close(found["dense"], by_hand(h, p["w"], z > 0))
    close(found["dense#1"], by_hand(jax.nn.relu(z), p["v"], np.ones((90, 3), bool)))


def test_weights_times_patterns(p, x):
    """Of each neuron they add up to 1; a neuron that is never on has none."""
    p["c"] = p["c"].at[2].set(-1e3)
    found = methods.fit_patterns(network, p, data=[x])
    for path, name in (("conv", "k"), ("dense", "w"), ("dense#1", "v")):
        total = np.asarray(found[path] * p[name]).reshape(-1, p[name].shape[-1]).sum(0)
        close(total, np.where(np.arange(len(total)) == 2, 0, 1) if path == "dense" else 1)
    assert not found["dense"][:, 2].any()


@pytest.mark.parametrize("sizes", [(40, 40, 10), pytest.param((1, 89), marks=pytest.mark.slow)])
def test_batches(sizes, p, x):
    """In batches, also with a short last one, from any iterable: as all at once."""
    want = methods.fit_patterns(network, p, data=[x])
    ends = np.cumsum((0, *sizes))
    batches = (x[a:b] for a, b in itertools.pairwise(ends))
    found = methods.fit_patterns(network, p, data=batches)
    for path in want:
        np.testing.assert_allclose(found[path], want[path], rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_float32_keeps_its_digits(p, x):
    """Of pixels around 100, in batches: the sums are of differences from means."""
    low, many = jax.tree.map(lambda a: a.astype(jnp.float32), (p, x)), [30, 30, 30]
    data = list(jnp.split(low[1] + 100, np.cumsum(many)[:-1]))
    linear = lambda p, x: conv(p, x)
    found = methods.fit_patterns(linear, low[0], data=data)["conv"]
    want = methods.fit_patterns(linear, p, data=[x])["conv"]
    assert np.abs(found - want).max() < 5e-3 * np.abs(want).max()


def test_padding_does_not_count(p, x):
    """Each weight has the covariance of the places at which it saw a pixel."""
    found = methods.fit_patterns(lambda p, x: conv(p, x, "SAME"), p, data=[x])["conv"]
    y = np.asarray(conv(p, x, "SAME"))
    for i, j in ((0, 0), (1, 1), (2, 1)):
        rows = slice(max(0, i - 1), 5 + min(0, i - 1)), slice(max(0, j - 1), 5 + min(0, j - 1))
        outs = slice(max(0, 1 - i), 5 - max(0, i - 1)), slice(max(0, 1 - j), 5 - max(0, j - 1))
        seen = np.asarray(x)[:, rows[0], rows[1], 1].ravel()
        out = y[:, outs[0], outs[1], 3].ravel()
        cov = np.mean((seen - seen.mean()) * (out - out.mean()))
        close(found[i, j, 1, 3], cov / out.var())


def test_batch_norm_is_part_of_the_weights(p, x):
    """Merged: a scale of the weight divides the pattern."""
    scale = p["scale"][None, None, None]
    normed = lambda p, x: (conv(p, x) - p["mean"][None, None, None]) * scale
    found = methods.fit_patterns(normed, p, data=[x])["conv"]
    plain = methods.fit_patterns(conv, p, data=[x])["conv"]
    close(found * scale, plain)


@pytest.mark.slow
def test_inside_of_checkpoints(p, x):
    """A body of its own, where values have the numbers of others outside."""

    def remat(p, x):
        body = jax.checkpoint(lambda h: jax.nn.relu(h @ p["w"] + p["c"][None]))
        h = jax.nn.relu(conv(p, x) + p["b"][None, None, None]).reshape(len(x), -1)
        return body(h) @ p["v"]

    want = methods.fit_patterns(network, p, data=[x])
    found = methods.fit_patterns(remat, p, data=[x])
    assert len(found) == 3
    for got, expected in zip(found.values(), want.values(), strict=True):
        close(got, expected)


def test_the_example_of_the_paper(rng):
    """Signal along (1, 0), a distractor along (1, 1): the weight is (1, -1), the pattern (1, 0)."""
    signal, distractor = rng.normal(size=(2, 5000))
    signal = signal[:, None] * np.array([[1.0, 0.0]])
    distractor = 3 * distractor[:, None] * np.array([[1.0, 1.0]])
    x, w = jnp.asarray(signal + distractor), jnp.array([[1.0], [-1.0]])
    f = lambda w, x: x @ w
    found = methods.fit_patterns(f, w, data=[x])
    np.testing.assert_allclose(found["dense"], [[1], [0]], atol=0.1)
    estimated = methods.pattern_net(f, patterns=found)(w, x)
    assert np.abs(np.asarray(estimated) - signal).mean() < 0.1
    np.testing.assert_allclose(methods.gradient(f)(w, x)[0], [1, -1])


def test_propagation(p, x):
    """Back along patterns, or patterns times weights, by hand; relevance is conserved."""
    found = methods.fit_patterns(network, p, data=[x])
    z1 = conv(p, x) + p["b"][None, None, None]
    h1 = jax.nn.relu(z1).reshape(len(x), -1)
    z2 = h1 @ p["w"] + p["c"][None]
    value = network(p, x)
    start = np.zeros(value.shape)
    start[:, 1] = value[:, 1]
    for method, times in ((methods.pattern_net, False), (methods.pattern_attribution, True)):
        weigh = lambda path, name, t=times: np.asarray(found[path] * (p[name] if t else 1))
        r = start @ weigh("dense#1", "v").T * np.asarray(z2 > 0)
        r = (r @ weigh("dense", "w").T).reshape(z1.shape) * np.asarray(z1 > 0)
        kernel = {"k": jnp.asarray(weigh("conv", "k"))}
        (want,) = jax.vjp(lambda x, k=kernel: conv(k, x), x)[1](jnp.asarray(r))
        got = jax.jit(method(network, patterns=found, target=1))(p, x)
        close(got, want)
    flat, linear = x.reshape(len(x), -1)[:, :36], lambda p, x: x @ p["w"] @ p["v"]
    of_linear = methods.fit_patterns(linear, p, data=[flat])
    got = methods.pattern_attribution(linear, patterns=of_linear, target=0)(p, flat)
    close(got.sum(1), linear(p, flat)[:, 0])


def test_other_arguments(p, x):
    """What is no array is passed as it is; auxiliary output is left alone."""
    switched = lambda p, training, name, x: network(p, x) if not training else name * 2
    found = methods.fit_patterns(switched, p, False, "name", data=[x])
    want = methods.fit_patterns(network, p, data=[x])
    both = lambda p, x: (network(p, x), "aux")
    for one in (found, methods.fit_patterns(both, p, data=[x], has_aux=True)):
        jax.tree.map(close, one, want)


def test_errors(p, x):
    refused = functools.partial(pytest.raises, relax.ArgumentError)
    with refused(match=r"(?s)data holds no batch.*iterator that was used"):
        methods.fit_patterns(network, p, data=[])
    with refused(match="no dense layer and no convolution"):
        methods.fit_patterns(lambda x: jnp.tanh(x), data=[x])
    loop = lambda w, x: lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=2)[0]
    with refused(match=r"(?s)has no pattern: it stands in a scan.*test_methods_patterns\.py"):
        methods.fit_patterns(loop, jnp.eye(3), data=[jnp.ones((2, 3))])
    cell = lambda w, x: jnp.tanh(x @ w + jnp.sin(x) @ w.T)
    with refused(match="has no pattern: it adds up several inputs"):
        methods.fit_patterns(cell, jnp.eye(3), data=[jnp.ones((2, 3))])
    found = methods.fit_patterns(network, p, data=[x])
    del found["dense"]
    for method in (methods.pattern_net, methods.pattern_attribution):
        with refused(match=r"(?s)no pattern of the dense layer.*there are: 'conv', 'dense#1'"):
            method(network, patterns=found)(p, x)
        with refused(match="there are: none"):
            method(network, patterns={})(p, x)
