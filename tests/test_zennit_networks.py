"""Eleven whole networks against the relevances that Zennit 1.0.0 recorded for them.

A BatchNorm is always merged, so the numbers to meet are those with Zennit's canonizer, where there
are such. Zennit normalizes residual sums and average pools: ``sums=Norm()``.
"""

import contextlib
import functools

import jax
import numpy as np
import pytest
from reference_models import MODELS, load

import relax
from relax import composites, rules, select

SUMS = (select.sums, rules.Norm())


def single(rule, *before):
    """One rule for every affine layer, as Zennit's single-rule records have it."""
    return relax.Composite((*before, (select.affine, rule), SUMS), strict=False)


NORM = {"sums": rules.Norm()}
RULES = {
    "EpsilonGammaBox": composites.epsilon_gamma_box(**NORM),
    "EpsilonPlus": composites.epsilon_plus(**NORM),
    "EpsilonAlpha2Beta1": composites.epsilon_alpha2_beta1(**NORM),
    "EpsilonPlusFlat": composites.epsilon_plus_flat(**NORM),
    "EpsilonAlpha2Beta1Flat": composites.epsilon_alpha2_beta1_flat(**NORM),
    "GuidedBackprop": composites.guided_backprop(),
    "DeconvNet": composites.deconvnet(),
    "BetaSmooth": composites.beta_smooth(),
    "ExcitationBackprop": composites.excitation_backprop(**NORM),
    "Epsilon": single(rules.Epsilon()),
    "Epsilon_0.1": single(rules.Epsilon(0.1)),
    "ZPlus": single(rules.ZPlus()),
    "AlphaBeta_2_1": single(rules.AlphaBeta(2.0, 1.0)),
    "AlphaBeta_1_0": single(rules.AlphaBeta(1.0, 0.0)),
    "Gamma_0.25": single(rules.Gamma(0.25)),
    "Gamma_0.1": single(rules.Gamma(0.1)),
    "WSquare": single(rules.WSquare()),
    "Flat": single(rules.Flat()),
    "Norm": single(rules.Norm()),
    "ZBox": None,  # its box depends on the network
}

load = functools.cache(load)


def rule_for(name, data):
    if name != "ZBox":
        return RULES[name]
    box = rules.ZBox(float(data["zbox_low"]), float(data["zbox_high"]))
    return single(rules.Epsilon(), (select.first, box))


def recorded(name, data):
    return data.get(f"R/{name}@canonized", data.get(f"R/{name}"))


def error(got, expected):
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


def without_relu(network, name):
    """Rules that act on ReLUs alone say so where there is none, and take the gradient."""
    rectifying = name in ("GuidedBackprop", "DeconvNet", "BetaSmooth")
    if rectifying and network.startswith("mlp_"):
        return pytest.warns(relax.RelaxWarning, match="ReLU")
    return contextlib.nullcontext()


def relevance(network, name, dtype):
    data, params = load(network)
    params, x = jax.tree.map(lambda a: a.astype(dtype), (params, data["x"]))
    explain = relax.lrp(MODELS[network], rule_for(name, data), target=data["target"])
    with without_relu(network, name):
        result = jax.jit(explain)(params, x)
    assert result.dtype == dtype
    return result, recorded(name, data)


@pytest.mark.parametrize("network", MODELS)
def test_logits(network):
    """The networks written here are the recorded ones: logits and gradients agree."""
    data, params = load(network)
    logits, pull_back = jax.vjp(functools.partial(MODELS[network], params), data["x"])
    assert error(logits, data["logits"]) < 1e-12
    (grad,) = pull_back(jax.nn.one_hot(data["target"], logits.shape[-1]))
    assert error(grad, data["grad"]) < 1e-12


@pytest.mark.parametrize("network", MODELS)
def test_nothing_recorded_is_left_out(network):
    """Every LRP record of the file is compared by this module."""
    data, _ = load(network)
    stored = {key.removeprefix("R/").split("@")[0] for key in data if key.startswith("R/")}
    lrp = {name for name in stored if not name.startswith(("zennit.", "captum."))}
    assert lrp == set(RULES)


LONG = ("mlp_elu", "mlp_leaky", "mlp_sigmoid")  # as mlp_tanh and mlp_gelu


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in MODELS]
)
def test_float64(network, name):
    """relax and Zennit agree to 1e-9 of the largest relevance."""
    got, expected = relevance(network, name, np.float64)
    assert error(got, expected) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("network", MODELS)
def test_float32(network, name):
    """In float32 the error is that of float32; resnet_small has denominators near zero."""
    got, expected = relevance(network, name, np.float32)
    assert error(got, expected) < (5e-3 if network == "resnet_small" else 1e-4)
