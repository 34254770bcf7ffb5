"""LRP Toolbox, iNNvestigate and DeepExplain: relax gives their recorded numbers.

The record is for academic use and is not part of this repository; without it the module is
skipped. iNNvestigate and DeepExplain ran in float32, so they are met to that.

Two networks: a LeNet on digits, whose pools are sums times 0.5, or maxima, and three dense layers.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import methods, rules, select

FOLDER = Path(__file__).parents[2] / "shared" / "reference" / "seeds"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the record is not here")

AFFINE = select.dense | select.conv
TINY = 1e-16  # the stabilizer of the Toolbox
POOLED = (1, 2, 2, 1)


@functools.cache
def record(name):
    with np.load(FOLDER / f"{name}.npz") as stored:
        return dict(stored)


@functools.cache
def parameters(net):
    stored = record("toolbox")
    names = [f"{letter}{i}" for letter in "WB" for i in range(4) if f"{net}/W{i}" in stored]
    return {n: jnp.asarray(stored[f"{net}/{n}"]) for n in names}


def digits():
    return jnp.asarray(record("toolbox")["lenet/x"])


def sum_pool(x):
    return lax.reduce_window(x, 0.0, lax.add, POOLED, POOLED, "VALID") * 0.5


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, POOLED, POOLED, "VALID")


def windows(x):
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels)


def fair_max_pool(x):
    """Ties share, as in the Toolbox: the derivative of a maximum over axes is split."""
    return windows(x).max((2, 4))


@relax.custom_relprop
def spreading_max_pool(x):
    """As the Toolbox has it under Flat and WSquare: all of a window takes the same."""
    return fair_max_pool(x)


def _spread(_, relevance):
    return (jnp.repeat(jnp.repeat(relevance, 2, 1), 2, 2) / 4,)


spreading_max_pool.defrelprop(lambda x: (fair_max_pool(x), None), _spread)


def lenet(pool):
    def network(p, x):
        for i in range(4):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(x, p[f"W{i}"], (1, 1), "VALID", dimension_numbers=numbers)
            x = x + p[f"B{i}"][None, None, None]
            x = pool(jax.nn.relu(x)) if i < 3 else x
        return x.reshape(x.shape[0], -1)

    return network


POOLS = {"avg": sum_pool, "sum": sum_pool, "max": max_pool}


def dense_network(activation):
    def network(p, x):
        x = activation(x @ p["W0"] + p["B0"][None])
        x = activation(x @ p["W1"] + p["B1"][None])
        return x @ p["W2"] + p["B2"][None]

    return network


def error(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


def assigned(*entries):
    return relax.Composite(tuple(entries), strict=False)


def explained(fun, *entries, target="max", at=None):
    return jax.jit(relax.lrp(fun, assigned(*entries), target=target, at=at))


# The LRP Toolbox

ALPHA2 = rules.AlphaBeta(2.0, 1.0, epsilon=TINY)
ALPHA0 = rules.AlphaBeta(0.0, -1.0, epsilon=TINY)
PLUS, FLAT = rules.ZPlus(epsilon=TINY), rules.Flat(epsilon=TINY)
WW = rules.WSquare(epsilon=TINY, zero_bias=True)
# Its epsilon at a pool acts on the sum before it is halved; its alpha doubles relevance at pools.
TOOLBOX = {
    "simple": ((AFFINE, rules.Epsilon(TINY)),),
    "epsilon_1": ((AFFINE, rules.Epsilon(1.0)), (select.sums, rules.Epsilon(0.5))),
    "epsilon_0.01": ((AFFINE, rules.Epsilon(0.01)), (select.sums, rules.Epsilon(0.005))),
    "flat": ((AFFINE, FLAT), (select.sums, FLAT)),
    "ww": ((AFFINE, WW), (select.sums, FLAT)),
    "alphabeta_1": ((AFFINE, PLUS), (select.sums, PLUS)),
    "alphabeta_2": ((AFFINE, ALPHA2), (select.sums, ALPHA2)),
    "alphabeta_0": ((AFFINE, ALPHA0), (select.sums, ALPHA0)),
    "preset_alpha1_first_ww": ((select.first, WW), (AFFINE, PLUS)),
    "preset_alpha1_first_flat": ((select.first, FLAT), (AFFINE, PLUS)),
    "preset_lrpcmp_eps_alpha2": (
        (select.first, FLAT),
        ("conv#3", rules.Epsilon(0.1)),
        (AFFINE, ALPHA2),
        (select.sums, ALPHA2),
    ),
}
STARTS = {"argmax": "max", "full": None, "class3": 3}
NETS = {
    "lenet": lambda rule: lenet(sum_pool),
    "lenet_maxpool": lambda rule: lenet(
        spreading_max_pool if rule in ("flat", "ww") else fair_max_pool
    ),
    "xor": lambda rule: dense_network(jnp.tanh),
}
PLACES = {
    "xor": ("", "dense", "tanh", "dense#1", "tanh#1", "dense#2"),
    "lenet": (
        "",
        *(f"{kind}{n}" for n in ("", "#1", "#2") for kind in ("conv", "relu", "avg_pool")),
    ),
}


def toolbox_input(net):
    return jnp.asarray(record("toolbox")["xor/x" if net == "xor" else "lenet/x"])


def toolbox_parameters(net):
    return parameters("xor" if net == "xor" else "lenet")


TOOLBOX_CASES = [
    pytest.param(net, rule, marks=() if (net, rule) in FAST or net == "xor" else pytest.mark.slow)
    for FAST in [{("lenet", "epsilon_1"), ("lenet_maxpool", "flat")}]
    for net in NETS
    for rule in TOOLBOX
    if net == "lenet" or not rule.startswith("preset")
]


@pytest.mark.parametrize(("net", "rule"), TOOLBOX_CASES)
def test_toolbox(net, rule):
    """From the largest logit, from all, from class 3: all that is recorded for the input."""
    stored, seen = record("toolbox"), 0
    fun, p, x = NETS[net](rule), toolbox_parameters(net), toolbox_input(net)
    np.testing.assert_allclose(fun(p, x), stored[f"{net}/logits"], rtol=1e-9, atol=1e-9)
    for start, target in STARTS.items():
        want = stored.get(f"{net}/R_{start}/{rule}")
        if want is None:
            continue
        seen += start != "class3"
        got = explained(fun, *TOOLBOX[rule], target=target)(p, x)
        if not want.any():  # a sum of positive numbers hands nothing on by its negative ones
            assert (net, rule) == ("lenet", "alphabeta_0")
            assert not got.any()
        else:
            assert error(got, want) < 1e-8
    assert seen == (1 if rule.startswith("preset") else 2)


def test_nothing_of_the_toolbox_is_left_out():
    of_input = {k for k in record("toolbox") if "/R_" in k and "_layer" not in k}
    nets, starts = NETS, STARTS
    known = {f"{net}/R_{start}/{rule}" for net in nets for start in starts for rule in TOOLBOX}
    assert of_input <= known


AT_LAYERS = [
    pytest.param(net, rule, marks=() if net == "xor" or rule == "flat" else pytest.mark.slow)
    for net in PLACES
    for rule in TOOLBOX
    if not rule.startswith("preset") and (net, rule) != ("lenet", "alphabeta_0")
]


@pytest.mark.parametrize(("net", "rule"), AT_LAYERS)
def test_toolbox_at_layers(net, rule):
    """Relevance at the input of each module, which is what stands at the layer before it."""
    stored, places = record("toolbox"), PLACES[net]
    explain = explained(NETS[net](rule), *TOOLBOX[rule], at=[p for p in places if p])
    relevance, latent = explain(toolbox_parameters(net), toolbox_input(net))
    latent[""] = relevance
    assert set(places) <= set(latent)
    for number, place in enumerate(places):
        want = stored[f"{net}/R_argmax_layer/{rule}/{number}"]
        assert error(latent[place], want) < 1e-8, place


def test_ties_of_max_pools():
    """The winner here is the first of equals, there they share: it shows on a flat background."""
    want = record("toolbox")["lenet_maxpool/R_argmax/simple"]
    got = explained(lenet(max_pool), *TOOLBOX["simple"])(parameters("lenet"), digits())
    assert error(got, want) > 0.05
    np.testing.assert_allclose(got.sum((1, 2, 3)), want.sum((1, 2, 3)), rtol=0.05)


# iNNvestigate: its average pools are the Toolbox' sum pools, times 0.5

NO_BIAS = {"zero_bias": True}
FLAT_SUMS = {"avg": rules.Flat(), "max": None}


@dataclasses.dataclass(frozen=True)
class WholeBias(rules.AffineRule):
    """iNNvestigate's AlphaBeta: the whole bias, not its part of a sign, in both denominators."""

    alpha: Any = 1.0
    beta: Any = 0.0

    def relevance(self, layer, x, relevance):
        rising, falling = layer.positive().without_bias(), layer.negative().without_bias()
        above, below = jnp.maximum(x, 0), jnp.minimum(x, 0)

        def share(a, b):
            z = a.linear(above) + b.linear(below) + layer.bias
            s = relevance / jnp.where(z == 0, 1e-7, z)
            return above * a.transpose(s) + below * b.transpose(s)

        return self.alpha * share(rising, falling) - self.beta * share(falling, rising)


@dataclasses.dataclass(frozen=True)
class FastPlus(rules.AffineRule):
    """Its z_plus_fast: ZPlus where inputs are nonnegative, which the pixels are not."""

    def relevance(self, layer, x, relevance):
        rising = layer.positive().without_bias()
        z = rising.linear(x)
        return x * rising.transpose(relevance / jnp.where(z == 0, 1e-7, z))


def lrp_by(*rule, target="max"):
    entries = [e if isinstance(e, tuple) else (AFFINE, e) for e in rule]
    return lambda f, pool: relax.lrp(f, assigned(*entries), target=target)


def by(method, **settings):
    return lambda f, pool: method(f, **({"target": "max"} | settings))


LAST, FIRST = ("conv#3", rules.Epsilon(0.1)), (select.first, rules.Flat())
INNVESTIGATE = {
    "gradient": by(methods.gradient),
    "gradient.baseline": by(methods.gradient),
    "input_t_gradient": by(methods.gradient_x_input),
    "deconvnet": by(methods.deconvnet),
    "guided_backprop": by(methods.guided_backprop),
    "integrated_gradients,steps=64": by(
        methods.integrated_gradients, steps=64, quadrature="left", batch_size=8
    ),
    "lrp.z": lrp_by(rules.Epsilon(0.0)),
    "lrp.epsilon": lrp_by(rules.Epsilon(1e-7)),
    "lrp.epsilon,epsilon=1.0": lrp_by(rules.Epsilon(1.0)),
    "lrp.epsilon,epsilon=0.1,bias=False": lrp_by(rules.Epsilon(0.1, zero_bias=True)),
    "lrp.w_square": lrp_by(WW),
    "lrp.flat": lrp_by(rules.Flat()),
    "lrp.alpha_2_beta_1_IB": lrp_by(rules.AlphaBeta(2.0, 1.0, zero_bias=True)),
    "lrp.alpha_1_beta_0_IB": lrp_by(rules.AlphaBeta(1.0, 0.0, zero_bias=True)),
    "lrp.z_plus": lrp_by(rules.ZPlus(zero_bias=True)),
    "deep_taylor": lambda f, pool: methods.deep_taylor(f, sums=FLAT_SUMS[pool], target="max"),
    "deep_taylor.bounded,low=-1.0,high=1.0": lambda f, pool: methods.deep_taylor_bounded(
        f, low=-1.0, high=1.0, sums=FLAT_SUMS[pool], target="max"
    ),
    "index_3": lrp_by(rules.Epsilon(0.1), target=3),
    "index_arange": lrp_by(rules.Epsilon(0.1), target=np.arange(10)),
    "all_lrp.epsilon,epsilon=0.1": lrp_by(rules.Epsilon(0.1), target=None),
    "lrp.alpha_beta,alpha=3.0,beta=2.0": lrp_by(WholeBias(3.0, 2.0)),
    "lrp.alpha_2_beta_1": lrp_by(WholeBias(2.0, 1.0)),
    "lrp.alpha_1_beta_0": lrp_by(WholeBias(1.0, 0.0)),
    "lrp.z_plus_fast": lrp_by(FastPlus()),
    "lrp.sequential_preset_a": lrp_by(LAST, WholeBias(1.0, 0.0)),
    "lrp.sequential_preset_b": lrp_by(LAST, WholeBias(2.0, 1.0)),
    "lrp.sequential_preset_a_flat": lrp_by(LAST, FIRST, WholeBias(1.0, 0.0)),
    "lrp.sequential_preset_b_flat": lrp_by(LAST, FIRST, WholeBias(2.0, 1.0)),
    "lrp.sequential_preset_b_flat_until_idx,until_layer_idx=2": lrp_by(
        LAST, FIRST, ("conv#1", rules.Flat()), WholeBias(2.0, 1.0)
    ),
}


def test_nothing_of_innvestigate_is_left_out():
    stored = {k.split("/", 1)[1] for k in record("innvestigate") if "/" in k}
    assert stored - {"logits"} == set(INNVESTIGATE)


QUICK = ("gradient", "deep_taylor", "lrp.sequential_preset_b_flat")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in INNVESTIGATE]
)
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_innvestigate(pool, name):
    want = record("innvestigate")[f"{pool}/{name}"]
    got = jax.jit(INNVESTIGATE[name](lenet(POOLS[pool]), pool))(parameters("lenet"), digits())
    # A left sum begins at 0, where whole windows of a max-pool are equal; the denominators of
    # z_plus_fast cancel.
    loose = {"integrated_gradients,steps=64": 2e-4, "lrp.z_plus_fast": 1e-3}
    assert error(got, want) < loose.get(name, 1e-5)


# DeepExplain

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
}
RIGHT = {"quadrature": "right", "batch_size": 10}
DEEPEXPLAIN = {
    "saliency": methods.saliency,
    "grad*input": methods.gradient_x_input,
    "intgrad": functools.partial(methods.integrated_gradients, steps=100, **RIGHT),
    "intgrad,steps=50,baseline=-1": functools.partial(
        methods.integrated_gradients, steps=50, baseline=-1.0, **RIGHT
    ),
    "elrp": methods.elrp,
    "elrp,epsilon=1.0": functools.partial(methods.elrp, epsilon=1.0),
    "occlusion": methods.occlusion,
    "occlusion,window_shape=(4, 4, 1),step=4": functools.partial(
        methods.occlusion, window=4, batch_size=8
    ),
    "deeplift": methods.deeplift_rescale,
    "deeplift,baseline=-1": functools.partial(methods.deeplift_rescale, baseline=-1.0),
    "deeplift,baseline=0.5": functools.partial(methods.deeplift_rescale, baseline=0.5),
    "shapley_sampling,samples=200": functools.partial(
        methods.shapley_sampling, key=jax.random.key(0), permutations=200
    ),
}
OF_DEEPEXPLAIN = {"lenet_sum", "lenet_max", *(f"xor_{a}" for a in ACTIVATIONS)}


def recorded_by_deepexplain(net):
    """Which of them for which network; of DeepLIFT on max-pools there is none."""
    dense_only = ("occlusion", "deeplift,baseline=0.5", "shapley_sampling,samples=200")
    lenet_only = [n for n in DEEPEXPLAIN if "baseline=-1" in n or "window" in n]
    left_out = dense_only if net.startswith("lenet") else lenet_only
    if net == "lenet_max":
        left_out = [n for n in DEEPEXPLAIN if n in left_out or n.startswith("deeplift")]
    return [n for n in DEEPEXPLAIN if n not in left_out]


EACH = [
    pytest.param(net, name, marks=pytest.mark.slow if slow else ())
    for net in sorted(OF_DEEPEXPLAIN)
    for name in recorded_by_deepexplain(net)
    for slow in [net[:5] == "lenet" or (net != "xor_softplus" and name not in ("elrp", "deeplift"))]
]


def test_nothing_of_deepexplain_is_left_out():
    keys = {k for k in record("deepexplain") if k.split("/", 1)[1] not in ("x", "ys", "logits")}
    assert keys == {f"{net}/{n}" for net in OF_DEEPEXPLAIN for n in recorded_by_deepexplain(net)}


@pytest.mark.parametrize(("net", "name"), EACH)
def test_deepexplain(net, name):
    stored = record("deepexplain")
    want = stored[f"{net}/{name}"]
    kind, of = net.split("_")
    fun = lenet(POOLS[of]) if kind == "lenet" else dense_network(ACTIVATIONS[of])
    x = digits() if kind == "lenet" else jnp.asarray(stored[f"{net}/x"])
    # From a baseline of 0 an empty background stands at kinks: float32 as there, or it differs.
    dtype = jnp.float32 if name == "intgrad" else jnp.float64
    p, x = jax.tree.map(lambda a: a.astype(dtype), (parameters(kind), x))
    chosen = np.argmax(stored[f"{net}/ys"], -1)
    got = jax.jit(DEEPEXPLAIN[name](fun, target=chosen))(p, x)
    if "shapley" in name:  # both are random
        assert error(got, want) < 0.03
    else:
        assert error(got, want) < (1e-4 if "elrp" in name or name == "intgrad" else 1e-5)
