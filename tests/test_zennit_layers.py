"""Single random layers against the relevances that Zennit recorded for them.

The record is our own, ``tests/data/zennit_layers.npz`` (see ``tests/record/zennit_layers.py``):
dense layers, convolutions and transposed convolutions in one to three dimensions, with various
strides, paddings, dilations and groups. Layouts are PyTorch's. The peers' record ``rules.npz`` has
the same conventions and is compared as
well where it is present.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import rules

OWN = Path(__file__).parent / "data" / "zennit_layers.npz"
SHARED = Path(__file__).parents[2] / "shared" / "reference" / "rules.npz"

RULES = {
    "epsilon": rules.Epsilon(1e-6),
    "epsilon1": rules.Epsilon(1.0),
    "norm": rules.Epsilon(1e-6),
    "zplus": rules.ZPlus(),
    "gamma.25": rules.Gamma(0.25),
    "gamma.5": rules.Gamma(0.5),
    "ab21": rules.AlphaBeta(2.0, 1.0),
    "ab10": rules.AlphaBeta(1.0, 0.0),
    "zbox": rules.ZBox(-3.0, 3.0),
    "wsquare": rules.WSquare(),
    "flat": rules.Flat(),
}
WITHOUT_ZERO_BIAS = ("norm", "zbox", "flat")  # the bias plays no part, or Zennit ignores the flag


def rule_for(name, zero_bias):
    rule = RULES[name]
    if not zero_bias or name in WITHOUT_ZERO_BIAS:
        return rule
    fields = {"zero_bias": True, "epsilon": rule.epsilon}
    fields |= {key: getattr(rule, key) for key in ("gamma", "alpha", "beta") if hasattr(rule, key)}
    return type(rule)(**fields)


def spread(value, dims):
    return list(value) if isinstance(value, (list, tuple)) else [value] * dims


def dense(x, weight, bias, _):
    z = x @ weight.T
    return z if bias is None else z + bias.reshape((1,) * (z.ndim - 1) + (-1,))


def conv(x, weight, bias, spec):
    """PyTorch's convolution; its transposed convolution as one of the dilated input."""
    dims = x.ndim - 2
    stride, padding, dilation = (spread(spec[k], dims) for k in ("stride", "padding", "dilation"))
    groups = spec["groups"]
    if spec["kind"].startswith("convT"):
        extra = spread(spec.get("output_padding", 0), dims)
        inputs, outputs, *kernel = weight.shape
        # in, out / groups -> out, in / groups, and flipped
        weight = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
        weight = weight.reshape(groups * outputs, inputs // groups, *kernel)
        weight = np.flip(weight, tuple(range(2, 2 + dims)))
        low = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        pads = [(a, a + e) for a, e in zip(low, extra, strict=True)]
        strides, dilated = [1] * dims, stride
    else:
        pads = [(p, p) for p in padding]
        strides, dilated = stride, [1] * dims
    z = lax.conv_general_dilated(
        x, weight, strides, pads, dilated, dilation, feature_group_count=groups
    )
    return z if bias is None else z + bias.reshape(1, -1, *(1,) * dims)


def layer_function(spec, weight, bias):
    apply = dense if spec["kind"] == "linear" else conv
    return lambda x: apply(x, weight, bias, spec)


def relevances(function, x, relevance_out, chosen):
    """One jitted call for all the chosen rules of a layer."""

    @jax.jit
    def run(x, relevance_out):
        def one(rule):
            _, relprop = relax.vrp(function, x, rules=rule)
            return relprop(relevance_out)[0]

        return [one(rule) for rule in chosen]

    return run(x, relevance_out)


def error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


with np.load(OWN) as stored:
    DATA = dict(stored)
META = json.loads(str(DATA["meta"]))
LAYERS = {spec["name"]: spec for spec in META["layers"]}
CASES = [
    pytest.param(name, index, id=f"{name}-{rule}{'-zero_bias' if zero_bias else ''}")
    for name, spec in LAYERS.items()
    for index, (rule, zero_bias) in enumerate(META["cases"][: spec["cases"]])
]


@functools.cache
def computed(name, rectified):
    """Relevances of a recorded layer under all rules, behind a ReLU if ``rectified``."""
    spec = LAYERS[name]
    x, weight, relevance_out = (DATA[f"{name}/{key}"] for key in ("x", "weight", "R_out"))
    function = layer_function(spec, weight, DATA.get(f"{name}/bias"))
    chosen = [rule_for(*case) for case in META["cases"][: spec["cases"]]]
    if rectified:
        return relevances(lambda x: function(jax.nn.relu(x)), x, relevance_out, chosen)
    return relevances(function, x, relevance_out, chosen)


def test_record_is_large_and_varied():
    """The record has all kinds of layers and no trivial case."""
    assert len(CASES) >= 262
    assert {spec["kind"] for spec in META["layers"]} == {
        "linear",
        *(f"conv{t}{d}d" for t in ("", "T") for d in (1, 2, 3)),
    }
    assert all(np.abs(result).max() > 0 for name in LAYERS for result in DATA[f"{name}/R"])


@pytest.mark.parametrize(("name", "index"), CASES)
def test_layer(name, index):
    """relax and Zennit agree on a single layer under an arbitrary relevance of its output."""
    got = computed(name, False)[index]
    assert error(got, DATA[f"{name}/R"][index]) < 1e-9


@pytest.mark.parametrize(
    ("name", "index"), [case for case in CASES if LAYERS[case.values[0]]["nonnegative"]]
)
def test_layer_known_nonnegative(name, index):
    """The shorter formulas for inputs known to be non-negative give the same, zeros included."""
    got = computed(name, True)[index]
    assert error(got, DATA[f"{name}/R"][index]) < 1e-9


@pytest.mark.skipif(not SHARED.exists(), reason="the peers' record rules.npz is not present")
def test_shared_record():
    """The peers' own record of 262 single layers."""
    with np.load(SHARED) as stored:
        data = dict(stored)
    wrong = {}
    for spec in json.loads(str(data["meta"])):
        key = spec["key"]
        function = layer_function(spec, data[f"{key}_w"], data.get(f"{key}_b"))
        rule = rule_for(spec["rule"], spec["zero_bias"])
        (got,) = relevances(function, data[f"{key}_x"], jnp.asarray(data[f"{key}_Ro"]), [rule])
        if not error(got, data[f"{key}_R"]) < 1e-9:
            wrong[key] = spec
    assert not wrong
