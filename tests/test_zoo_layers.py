"""Layers of Flax, Equinox and Haiku: none is missing from the zoos, and each is explained.

Oracles: the namespaces of the frameworks; gradient times input, which LRP-0 is wherever a layer is
linear piece by piece; sums that must be equal.
"""

import functools
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from benchmarks.zoos import Case, Model
from relax import composites, rules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Haiku imports of JAX is deprecated
    from benchmarks.zoos import _layers, equinox, haiku, linen, nnx

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks, about themselves

ZOOS = {"flax.linen": linen, "flax.nnx": nnx, "equinox": equinox, "haiku": haiku}
LARGE = haiku._LARGE  # they take minutes: `python -m benchmarks coverage --zoo haiku` has them
PIECEWISE_LINEAR = frozenset(
    {"dense", "conv", "scale_shift", "sum", "mean", "avg_pool", "max_pool", "linear", "winner"}
)
# One of each kind, among them what once was not recognized: a mean over what is not masked.
FAST = {
    "flax.linen": ("Conv: circular", "Embed", "LayerNorm: masked"),
    "flax.nnx": ("MultiHeadAttention: a step with a cache", "LoRA: of a layer", "WeightNorm"),
    "equinox": ("AdaptiveMaxPool1d", "MLP: by a scan", "RMSNorm"),
    "haiku": ("VanillaRNN: in dynamic_unroll", "MaxPool: overlapping", "BatchNorm"),
}


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Frameworks add biases of lower rank; that is their affair."""
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def cases(zoo):
    return {case.name: case for case in ZOOS[zoo].cases(small=False)}


def every():
    for zoo in ZOOS:
        for name, case in cases(zoo).items():
            fast = name in FAST[zoo]
            if name.partition(":")[0] not in LARGE and not case.reason:
                marks = () if fast else pytest.mark.slow
                yield pytest.param(zoo, name, id=f"{zoo}-{name}", marks=marks)


@pytest.mark.parametrize("zoo", ZOOS)
def test_no_layer_is_missing(zoo):
    """Every class of the namespace has an example; none of the interfaces and containers does."""
    found = cases(zoo)
    missing = [name for name, case in found.items() if "_absent" in case.build.__qualname__]
    assert missing == []
    assert sum(bool(case.reason) for case in found.values()) == (5 if zoo == "flax.linen" else 0)
    assert set(FAST[zoo]) <= set(found)
    known = {name.partition(":")[0] for name in found}
    assert known.isdisjoint({"Module", "RNNCellBase", "RNNCore", "StatefulLayer", "Dict", "List"})
    expected = {
        "flax.linen": {
            "Dense",
            "ConvLocal",
            "SpectralNorm",
            "MGUCell",
            "Fp8Einsum",
            "SelfAttention",
        },
        "flax.nnx": {"Linear", "LoRA", "WeightNorm", "Bidirectional", "MultiHeadAttention"},
        "equinox": {"AdaptivePool", "Shared", "RotaryPositionalEmbedding", "BatchNorm", "MLP"},
        "haiku": {"Conv3DLSTM", "SNParamsTree", "ResNet200", "VectorQuantizerEMA", "ResetCore"},
    }
    assert expected[zoo] <= known


@pytest.mark.parametrize("zoo", ZOOS)
def test_few_of_them_are_the_plainest(zoo):
    """One use of each class, the same as among all, and no large network."""
    few = list(ZOOS[zoo].cases(small=True))
    classes = [case.name.partition(":")[0] for case in few]
    assert len(set(classes)) == len(classes)
    assert {case.name for case in few} <= set(cases(zoo))
    assert set(classes) == {name.partition(":")[0] for name in cases(zoo)} - LARGE


def test_a_new_layer_is_a_case_that_fails():
    """A class that the table lacks; what cannot be called, or only raises, is none."""

    class Base:
        def __call__(self, x):
            raise NotImplementedError

    class Params(dict):
        pass

    class New(Base):
        def __call__(self, x):
            return x

    space = types.SimpleNamespace(Base=Base, New=New, _Private=New, Params=Params, number=3)
    assert _layers.classes(space, Base) == {"New"}
    build = lambda: Model(lambda params, x: x, {}, 1.0)
    table = {"Old": {"": build, "in another way": build}}
    found = list(_layers.listed("zoo", {"New", "Old"}, table, False))
    assert [case.name for case in found] == ["New", "Old", "Old: in another way"]
    assert all(isinstance(case, Case) and case.zoo == "zoo" for case in found)
    with pytest.raises(LookupError, match="no New"):
        found[0].build()
    few = list(_layers.listed("zoo", {"Old"}, table, True))
    assert [case.name for case in few] == ["Old"]
    assert list(_layers.listed("zoo", {"Old"}, table, True, {"Old"})) == []


def test_products_of_float8_are_left_out_for_a_reason():
    """Before it was an error, small relevance was zero without a word."""
    left_out = [case for case in cases("flax.linen").values() if case.reason]
    assert all("float8" in case.reason and "Fp8" in case.name for case in left_out)
    for case in left_out:
        f, params, x = case.build()[:3]
        for rule in (rules.Epsilon(), rules.ZPlus()):
            with pytest.raises(
                relax.UnsupportedOperationError, match=r"(?s)float8.*dot_general_cls"
            ):
                relax.lrp(f, rule)(params, x)
        with pytest.raises(relax.UnsupportedOperationError, match="float8"):
            relax.layers(f)(params, x)


@pytest.mark.parametrize(("zoo", "name"), list(every()))
def test_layer(zoo, name):
    """The value is the framework's, relevance is finite, and the account is closed."""
    f, params, x = cases(zoo)[name].build()[:3]
    leaves = jax.tree.leaves(jax.eval_shape(f, params, x))
    target = 0 if len(leaves) == 1 and leaves[0].ndim else None

    @jax.jit
    def everything(params, x):
        value, relevance = relax.value_and_lrp(f, target=target)(params, x)
        plus = relax.lrp(f, composites.epsilon_plus(), target=target)(params, x)
        zero, account = relax.ledger(f, rules.Epsilon(0.0), target=target)(params, x)
        return value, relevance, plus, zero, account

    value, relevance, plus, zero, account = everything(params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-4, atol=1e-5
        ),
        value,
        f(params, x),
    )
    for found in (relevance, plus, zero):
        assert all(np.isfinite(np.asarray(a, np.float64)).all() for a in jax.tree.leaves(found))
        assert any(np.any(np.asarray(a) != 0) for a in jax.tree.leaves(found))
    sums = [abs(float(account.explained)), *(float(np.abs(e.out).max()) for e in account)]
    assert abs(float(account.rounding)) <= 1e-4 * max(sums)
    plan = relax.layers(f)(params, x)
    floats = all(jnp.issubdtype(a.dtype, jnp.floating) for a in jax.tree.leaves(x))
    linear = all(row.kind in PIECEWISE_LINEAR or row.name == "relu" for row in plan)
    if floats and linear:
        check_gradient_times_input(f, params, x, target, zero)


def check_gradient_times_input(f, params, x, target, zero):
    def explained(x):
        value = f(params, x)
        parts = [value[..., 0]] if target == 0 else jax.tree.leaves(value)
        return sum(part.sum() for part in parts if jnp.issubdtype(part.dtype, jnp.floating))

    expected = jax.tree.map(jnp.multiply, x, jax.grad(explained)(x))
    for got, want in zip(jax.tree.leaves(zero), jax.tree.leaves(expected), strict=True):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        loose = 1e-2 if "bfloat16" in str(jax.make_jaxpr(f)(params, x)) else 1e-4
        np.testing.assert_allclose(got, want, atol=loose * np.abs(want).max(), rtol=loose)
