"""Occlusion and Shapley values, against loops over windows and over all orders."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_models import MODELS, load

import relax
from relax import evaluation, methods

load = functools.cache(load)
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
KEY = jax.random.key(1)


def error(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(2, 5, 7, 3)))


@pytest.fixture
def network(rng):
    w = jnp.asarray(rng.normal(size=(105, 4))) / 5
    return jax.jit(lambda x: jnp.tanh(x.reshape(-1, 105) @ w))


def by_hand(f, x, start, window, strides):
    """Window after window; the last of an axis is cut off."""
    sample = x.shape[1:]
    lost, counts = np.zeros(x.shape), np.zeros(sample)
    reach = []
    for n, size, step in zip(sample, window, strides, strict=True):
        places = [0]
        while places[-1] + size < n:
            places.append(places[-1] + step)
        reach.append(places)
    for corner in itertools.product(*reach):
        box = tuple(slice(c, c + size) for c, size in zip(corner, window, strict=True))
        changed = np.array(x)
        changed[(slice(None), *box)] = np.broadcast_to(start, x.shape)[(slice(None), *box)]
        counts[box] += 1
        difference = np.asarray(f(x) - f(changed))
        inside = math.prod(np.zeros(sample)[box].shape)
        lost[(slice(None), *box)] += difference.reshape(-1, 1, 1, 1) / inside
    return lost / counts


WINDOWS = {
    "each": (None, None, (1, 1, 1), (1, 1, 1)),
    "whole": ((5, 7, 3), None, (5, 7, 3), (5, 7, 3)),
    "odd": (3, None, (3, 3, 3), (3, 3, 3)),
    "overlap": ((2, 3), (1, 2), (2, 3, 3), (1, 2, 3)),
    "channels": ((4, 4, 1), (3, 4), (4, 4, 1), (3, 4, 1)),
    "an axis": ((2,), 1, (2, 7, 3), (1, 1, 3)),
    "larger": ((9, 2, 2), (5, 2, 1), (5, 2, 2), (5, 2, 1)),
}
SLOW = ("whole", "an axis", "larger")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in WINDOWS]
)
def test_occlusion_against_a_loop(case, network, x, rng):
    window, strides, sizes, steps = WINDOWS[case]
    start = rng.normal(size=(5, 7, 3))
    explain = methods.occlusion(
        network, window=window, strides=strides, baseline=start, batch_size=4, target=2
    )
    want = by_hand(lambda x: network(x)[:, 2], x, start, sizes, steps)
    close(jax.jit(explain)(x), want)


@pytest.mark.slow
def test_occlusion_of_a_series_and_of_rows(rng):
    """An int is of both axes of two, and one sample is the row of a batch."""
    w, x = jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.normal(size=(2, 4, 3)))
    f = lambda x: jnp.sin(x.reshape(-1, 12) @ w)
    batch = methods.occlusion(f, window=2, strides=1, target=0)(x)
    close(batch, methods.occlusion(f, window=(2, 2), strides=(1, 1), target=0)(x))
    one = methods.occlusion(lambda x: f(x)[0], window=2, strides=1, batched=False, target=0)
    close(one(x[1]), batch[1])
    tree = methods.occlusion(lambda x: f(x["a"]), window=2, strides=1, target=0)
    close(tree({"a": x})["a"], batch)


TILES = {"mlp": 3, "mlp_tanh": 3, "conv1d": (4,), "vgg_small": (4, 4), "bn_conv": (4, 4)}


@pytest.mark.parametrize(
    "network", [n if n[:3] == "mlp" else pytest.param(n, marks=pytest.mark.slow) for n in TILES]
)
def test_zennit(network):
    """Zennit gives each element the remaining logit; ours is the loss, shared by the window.

    Inverted, the tile is set to 0: logit - size * R. As it is by default, all but the tile is: that
    is 0 occluded by x.
    """
    data, params = load(network)
    fun, x, target = MODELS[network], jnp.asarray(data["x"]), data["target"]
    explain = functools.partial(
        methods.occlusion, fun, window=TILES[network], batch_size=4, target=target
    )
    logit = lambda x: np.take_along_axis(np.asarray(fun(params, x)), target[:, None], 1).reshape(
        3, *(1,) * (x.ndim - 1)
    )
    size = 3 if x.ndim == 2 else 4 ** (x.ndim - 2) * x.shape[-1]
    kept = logit(x) - size * explain()(params, x)
    assert error(kept, data["R/zennit.Occlusion_invert"]) < 1e-9
    nothing = jnp.zeros_like(x)
    alone = logit(nothing) - size * explain(baseline=x)(params, nothing)
    assert error(alone, data["R/zennit.Occlusion"]) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "mlp_gelu"])
def test_captum_ablates_features(network):
    data, params = load(network)
    explain = methods.occlusion(MODELS[network], batch_size=12, target=data["target"])
    got = explain(params, jnp.asarray(data["x"]))
    assert error(got, data["R/captum.FeatureAblation"]) < 1e-9


def all_orders(f, x, start, groups):
    """Shapley values of one sample by definition."""
    names = np.unique(groups)
    values, orders = np.zeros(x.shape), list(itertools.permutations(names))
    for order in orders:
        now = np.array(start)
        before = f(now)
        for name in order:
            now[groups == name] = x[groups == name]
            after = f(now)
            values[groups == name] += (after - before) / (groups == name).sum() / len(orders)
            before = after
    return values


def test_shapley_against_all_orders(rng):
    """Each order by itself, and together they come near the mean over all 24."""
    w, x = jnp.asarray(rng.normal(size=(3, 4, 2))), jnp.asarray(rng.normal(size=(2, 4, 2)))
    start = rng.normal(size=(4, 2))
    groups = np.array([7, 3, 9, -1])[:, None]
    f = jax.jit(lambda x: jnp.tanh(jnp.einsum("nij,kij->nk", x, w)).prod(1))
    whole = np.broadcast_to(groups, (4, 2))
    want = np.stack(
        [all_orders(lambda v: float(f(v[None])[0]), row, start, whole) for row in np.asarray(x)]
    )
    sample = lambda n: methods.shapley_sampling(
        f, key=KEY, permutations=n, baseline=start, groups=groups, batch_size=5
    )
    got = {n: jax.jit(sample(n))(x) for n in (1, 3, 400)}
    lost = f(x) - f(jnp.broadcast_to(start, x.shape))
    for n in got:  # exactly, for any number of orders
        close(got[n].sum((1, 2)), lost)
    assert np.abs(got[400] - want).max() < 0.05 * np.abs(want).max()
    assert np.abs(got[400] - want).max() < np.abs(got[1] - want).max() / 4
    assert (got[1] == got[1][..., :1]).all()  # a group shares equally


def test_two_reversed_orders_are_all_orders_of_two(rng):
    """And for any number of features exact where at most two interact."""
    x = jnp.asarray(rng.normal(size=(3, 4)))
    f = lambda x: x[:, 0] * x[:, 1] + x[:, 2] * x[:, 3] + x[:, 0]
    want = np.stack(
        [
            all_orders(lambda v: float(f(v[None])[0]), row, np.zeros(4), np.arange(4))
            for row in np.asarray(x)
        ]
    )
    close(methods.shapley_sampling(f, key=KEY, permutations=2)(x), want)
    one = methods.shapley_sampling(f, key=KEY, permutations=1)(x)
    assert np.abs(one - want).max() > 0.1
    additive = lambda x: jnp.sin(x).sum(1)
    close(methods.shapley_sampling(additive, key=KEY, permutations=1)(x), jnp.sin(x))


@pytest.mark.slow
def test_shapley_of_patches(x, network):
    """With the groups of the evaluation, and of one sample."""
    groups = evaluation.patches((5, 7, 3), 3)
    explain = functools.partial(
        methods.shapley_sampling, key=KEY, permutations=2, groups=groups, target=1
    )
    got = explain(network)(x)
    close(got.sum((1, 2, 3)), network(x)[:, 1] - network(jnp.zeros_like(x))[:, 1])
    assert (got == got[..., :1]).all()
    one = explain(lambda x: network(x)[0], batched=False)(x[1])
    close(one, got[1])


@pytest.mark.slow
def test_small_differences_in_half_precision():
    """What a pixel adds to a large sum is not lost in rounding the sum of the others."""
    x = jnp.ones((1, 4, 4), jnp.bfloat16)
    f = lambda x: x.reshape(1, 16)  # added up here: 257 of 256 would be 256
    scaled = lambda x: f(x) * jnp.full((1, 16), 17, jnp.bfloat16)
    np.testing.assert_array_equal(methods.occlusion(scaled)(x), 17)
    values = methods.shapley_sampling(scaled, key=KEY, permutations=2)(x)
    np.testing.assert_array_equal(values, 17)


def test_errors():
    x, f = jnp.ones((2, 3, 3)), lambda x: x.sum((1, 2))
    refused = functools.partial(pytest.raises, relax.ArgumentError)
    shapley = functools.partial(methods.shapley_sampling, key=KEY)
    for window in (0, -1, 1.5, (2, 0), (1, 1, 1), np.array(2.0)):
        with refused(match=r"window=.*positive integer.*has shape \(3, 3\)"):
            methods.occlusion(f, window=window)(x)
    with refused(match="strides='ab': expected a positive integer"):
        methods.occlusion(f, strides="ab")(x)
    with refused(match=r"strides=2 with a window of 1 skips features"):
        methods.occlusion(f, window=1, strides=2)(x)
    for method in (methods.occlusion, shapley):
        with refused(match="batch_size=0: expected a positive integer"):
            method(f, batch_size=0)(x)
        with refused(match="does not broadcast to x"):
            method(f, baseline=jnp.ones(4))(x)
        with refused(match=r"(?s)x holds 2 arrays.*one after the other"):
            method(lambda x: f(x[0] + x[1]))((x, x))
        with refused(match="x has shape .*expected an axis of samples"):
            method(lambda x: x)(1.0)
        with refused(match=r"(?s)The value has shape \(\) and x \(2, 3, 3\).*batched=False"):
            method(jnp.sum)(x)
    with refused(match="permutations=0: expected a positive integer"):
        shapley(f, permutations=0)
    with refused(match="groups have dtype float"):
        shapley(f, groups=np.ones(3))(x)
    with refused(match=r"groups of shape \(4,\) do not broadcast"):
        shapley(f, groups=np.arange(4))(x)
