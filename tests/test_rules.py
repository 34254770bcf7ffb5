"""Every rule against a naive reference, against the identities between rules, and conservation."""

import contextlib
import dataclasses
import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

import relax
from relax import rules, select

LOW = np.array([-1.5, -1.0, -2.0, -1.25, -3.0, -1.0])
HIGH = np.array([0.5, 1.0, 0.25, 2.0, 0.0, 1.5])

# id: the rule, its naive reference, and what the reference is to be told.
AFFINE = {
    "Epsilon": (rules.Epsilon(), naive.epsilon, {}),
    "Epsilon(0)": (rules.Epsilon(0.0), naive.epsilon, {"epsilon": 0.0}),
    "Epsilon(0.3)": (rules.Epsilon(0.3), naive.epsilon, {"epsilon": 0.3}),
    "Epsilon-zero_bias": (rules.Epsilon(zero_bias=True), naive.epsilon, {"zero_bias": True}),
    "Epsilon-bias_share": (
        rules.Epsilon(0.1, bias_share=0.4),
        naive.epsilon,
        {"epsilon": 0.1, "bias_share": 0.4},
    ),
    "Epsilon-bias_share-zero_bias": (
        rules.Epsilon(0.1, zero_bias=True, bias_share=1.0),
        naive.epsilon,
        {"epsilon": 0.1, "bias_share": 1.0, "zero_bias": True},
    ),
    "ZPlus": (rules.ZPlus(), naive.zplus, {}),
    "ZPlus(0.3)": (rules.ZPlus(0.3), naive.zplus, {"epsilon": 0.3}),
    "ZPlus-zero_bias": (rules.ZPlus(zero_bias=True), naive.zplus, {"zero_bias": True}),
    "ExcitationBackprop": (rules.ExcitationBackprop(), naive.zplus, {}),
    "AlphaBeta": (rules.AlphaBeta(), naive.alphabeta, {}),
    "AlphaBeta(1,0)": (rules.AlphaBeta(1.0, 0.0), naive.zplus, {}),
    "AlphaBeta(1.4,0.4)": (
        rules.AlphaBeta(1.4, 0.4, 0.2),
        naive.alphabeta,
        {"alpha": 1.4, "beta": 0.4, "epsilon": 0.2},
    ),
    "AlphaBeta-zero_bias": (
        rules.AlphaBeta(3.0, 2.0, zero_bias=True),
        naive.alphabeta,
        {"alpha": 3.0, "beta": 2.0, "zero_bias": True},
    ),
    "Gamma": (rules.Gamma(), naive.gamma, {}),
    "Gamma(3)": (rules.Gamma(3.0, 0.2), naive.gamma, {"gamma": 3.0, "epsilon": 0.2}),
    "Gamma-zero_bias": (rules.Gamma(zero_bias=True), naive.gamma, {"zero_bias": True}),
    "GeneralizedGamma": (rules.GeneralizedGamma(0.5), naive.gamma, {"gamma": 0.5}),
    "TextbookGamma": (rules.TextbookGamma(), naive.textbook_gamma, {}),
    "TextbookGamma-zero_bias": (
        rules.TextbookGamma(0.5, zero_bias=True),
        naive.textbook_gamma,
        {"gamma": 0.5, "zero_bias": True},
    ),
    "WSquare": (rules.WSquare(), naive.wsquare, {}),
    "WSquare-zero_bias": (
        rules.WSquare(0.1, zero_bias=True),
        naive.wsquare,
        {"zero_bias": True, "epsilon": 0.1},
    ),
    "Flat": (rules.Flat(), naive.flat, {}),
    "Flat(0.5)": (rules.Flat(0.5), naive.flat, {"epsilon": 0.5}),
    "ZBox": (rules.ZBox(-2.0, 3.0), naive.zbox, {"low": -2.0, "high": 3.0}),
    "ZBox-arrays": (
        rules.ZBox(LOW, HIGH, 0.1),
        naive.zbox,
        {"low": LOW, "high": HIGH, "epsilon": 0.1},
    ),
    "Norm": (rules.Norm(), naive.epsilon, {}),
    "Gradient": (rules.Gradient(), naive.gradient, {}),
}  # fmt: skip

STABILIZERS = {
    "clip": ("clip", naive.clip),
    "scale": ("scale", naive.scale),
    "callable": (lambda z, epsilon: z**2 + 2 * epsilon, lambda z, epsilon: z**2 + 2 * epsilon),
}


def everywhere(rule):
    """The rule for every affine layer, also those rules that are meant for others."""
    return [(select.affine, rule)]


@functools.partial(jax.jit, static_argnums=0)
def _relprop(function, rule, x, r):
    return relax.vrp(function, x, rules=everywhere(rule))[1](r)[0]


def relprop(function, rule, x, r):
    return np.asarray(_relprop(function, rule, x, r))


def lrp(function, given, x, **kwargs):
    return np.asarray(jax.jit(relax.lrp(function, given, **kwargs))(x))


def close(got, expected, tolerance=1e-12):
    expected = np.asarray(expected)
    assert np.shape(got) == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def row(b):
    return b.reshape(1, -1)


def layer(rng, inputs=6, outputs=5):
    """Random signed weight and bias."""
    return rng.normal(size=(inputs, outputs)), rng.normal(size=outputs)


def network(layers, first=lambda x: x):
    def apply(x):
        x = first(x)
        for w, b in layers[:-1]:
            x = jax.nn.relu(x @ w + row(b))
        w, b = layers[-1]
        return x @ w + row(b)

    return apply


# ---------------------------------------------------------------------- against naive references


@pytest.mark.parametrize("name", AFFINE)
def test_dense_layer(rng, name):
    """A rule on one dense layer, signed input, any relevance of the output."""
    rule, reference, told = AFFINE[name]
    w, b = layer(rng)
    x, r = rng.normal(size=(4, 6)), rng.normal(size=(4, 5))
    got = relprop(lambda x: x @ w + row(b), rule, x, r)
    close(got, naive.on_samples(reference, x, w, b, r, **told))


@pytest.mark.parametrize("name", AFFINE)
def test_dense_layer_without_bias(rng, name):
    """The same without a bias, on a single sample."""
    rule, reference, told = AFFINE[name]
    w, _ = layer(rng)
    x, r = rng.normal(size=6), rng.normal(size=5)
    close(relprop(lambda x: x @ w, rule, x, r), reference(x, w, np.zeros(5), r, **told))


@pytest.mark.parametrize("name", AFFINE)
def test_known_nonnegative_input(rng, name):
    """Behind a ReLU the shorter formulas give the same, also where the input is exactly zero."""
    rule, reference, told = AFFINE[name]
    w, b = layer(rng)
    x, r = np.abs(rng.normal(size=(4, 6))), rng.normal(size=(4, 5))
    x[:, ::3] = 0
    got = relprop(lambda x: jax.nn.relu(x) @ w + row(b), rule, x, r)
    close(got, naive.on_samples(reference, x, w, b, r, **told))


@pytest.mark.slow
@pytest.mark.parametrize("stabilizer", STABILIZERS)
@pytest.mark.parametrize(
    "name", ["Epsilon", "ZPlus", "AlphaBeta", "Gamma", "TextbookGamma", "WSquare", "Flat", "ZBox"]
)
def test_stabilizer(rng, name, stabilizer):
    """Clip, scale and callable stabilizers, with an epsilon large enough to be seen."""
    given_as, reference_of = STABILIZERS[stabilizer]
    _, reference, _ = AFFINE[name]
    rule = getattr(rules, name)(epsilon=0.7, stabilizer=given_as)
    w, b = layer(rng)
    x, r = rng.normal(size=(4, 6)), rng.normal(size=(4, 5))
    got = relprop(lambda x: x @ w + row(b), rule, x, r)
    close(got, naive.on_samples(reference, x, w, b, r, epsilon=0.7, stabilizer=reference_of))


@pytest.mark.parametrize("name", [name for name in AFFINE if name != "Gradient"])
def test_network(rng, name):
    """Two hidden layers of ReLUs: coefficients, dead units and all, from the value itself."""
    rule, reference, told = AFFINE[name]
    if "arrays" in name:
        rule, told = rules.ZBox(-1.0, 2.0), {"low": -1.0, "high": 2.0}
    layers = [layer(rng, 6, 7), layer(rng, 7, 8), layer(rng, 8, 3)]
    x = rng.normal(size=(5, 6))
    got = lrp(network(layers), everywhere(rule), x)
    close(got, naive.mlp(reference, layers, x, **told), 1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("upper", ["Epsilon", "Gamma", "ZPlus", "AlphaBeta", "Flat"])
@pytest.mark.parametrize("name", [name for name in AFFINE if name != "Gradient"])
def test_first_layer(rng, name, upper):
    """Every rule below every kind of rule: the currencies are exchanged without loss."""
    rule, reference, told = AFFINE[name]
    above, above_reference, _ = AFFINE[upper]
    layers = [layer(rng, 6, 7), layer(rng, 7, 5), layer(rng, 5, 3)]
    x = rng.normal(size=(4, 6))
    got = lrp(network(layers), [(select.first, rule), (select.affine, above)], x)
    close(got, naive.mlp(reference, layers, x, upper=above_reference, **told), 1e-11)


@pytest.mark.parametrize(
    ("name", "explained"),
    [(n, e) for n in AFFINE for e in ("image", "kernel") if (n, e) != ("ZBox-arrays", "kernel")],
)
def test_convolution(rng, name, explained):
    """A padded, strided convolution, of either operand: the rule on its explicit matrix."""
    rule, reference, told = AFFINE[name]
    if name == "ZBox-arrays":  # a box of the image's shape
        low, high = rng.uniform(-2, 0, (5, 1)), rng.uniform(0, 2, (5, 1))
        rule, told = rules.ZBox(low, high), {}
        reference = lambda x, *rest: naive.zbox(
            x, *rest, low=np.tile(low, (2, 1, 3)).ravel(), high=np.tile(high, (2, 1, 3)).ravel()
        )
    image, kernel = rng.normal(size=(2, 5, 3)), rng.normal(size=(3, 3, 4))
    bias = rng.normal(size=(1, 1, 4))

    def conv(image, kernel):
        z = lax.conv_general_dilated(
            image, kernel, (2,), [(1, 2)], dimension_numbers=("NWC", "WIO", "NWC")
        )
        return z + bias

    if explained == "image":
        function, x = (lambda x: conv(x, kernel)), image
    else:
        function, x = (lambda w: conv(image, w)), kernel
    r = rng.normal(size=np.shape(function(x)))
    close(relprop(function, rule, x, r), naive.on_function(reference, function, x, r, **told))


def test_scale_stabilizer_of_convolution(rng):
    """The root mean square runs over space and channels of each sample, not over the batch."""
    image, kernel = rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 2, 4))
    image[1] *= 100
    conv = lambda x: lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    r = rng.normal(size=(3, 5, 4))
    got = relprop(conv, rules.Epsilon(0.5, stabilizer="scale"), image, r)
    expected = [
        naive.on_function(
            naive.epsilon, conv, one[None], s, epsilon=0.5, stabilizer=naive.scale
        )[0]
        for one, s in zip(image, r, strict=True)
    ]  # fmt: skip
    close(got, expected)


SUMS = {
    "Norm": (rules.Norm(), naive.epsilon, {}),
    "Epsilon": (rules.Epsilon(0.2), naive.epsilon, {"epsilon": 0.2}),
    "Epsilon-bias_share": (
        rules.Epsilon(0.2, bias_share=1.0),
        naive.epsilon,
        {"epsilon": 0.2, "bias_share": 1.0},
    ),
    "Linear": (rules.Linear(), naive.epsilon, {"epsilon": 0.0}),
    "ZPlus": (rules.ZPlus(), naive.zplus, {}),
    "AlphaBeta": (rules.AlphaBeta(), naive.alphabeta, {}),
    "Gamma": (rules.Gamma(0.5), naive.gamma, {"gamma": 0.5}),
    "WSquare": (rules.WSquare(0.2), naive.wsquare, {"epsilon": 0.2}),
    "Flat": (rules.Flat(0.2), naive.flat, {"epsilon": 0.2}),
    "Gradient": (rules.Gradient(), naive.gradient, {}),
}
SUM_LAYERS = {
    "sum": lambda x: x[:, :4] + x[:, 2:],
    "mean": lambda x: x.mean(axis=1),
    "avg_pool": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 2), "VALID") / 3,
    "padded avg_pool": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 2), "SAME") / 3,
}


@pytest.mark.parametrize("kind", SUM_LAYERS)
@pytest.mark.parametrize("name", SUMS)
def test_sums(rng, kind, name):
    """Rules assigned to residual sums, means and average pools: on their explicit matrix.

    To a bias share a sum is the product with two identities: all features take part.
    """
    rule, reference, told = SUMS[name]
    function = SUM_LAYERS[kind]
    x = rng.normal(size=(3, 6))
    r = rng.normal(size=function(x).shape)
    got = jax.jit(lambda x, r: relax.vrp(function, x, rules=[(select.sums, rule)])[1](r)[0])(x, r)
    if (kind, name) == ("sum", "Epsilon-bias_share"):
        w, b = naive.explicit(lambda x: function(x[None])[0], x[0])
        close(got, naive.on_samples(naive.epsilon_of_sum, x, w, b, r, **told))
    else:
        close(got, naive.on_function(reference, function, x, r, **told))


ACTIVATIONS = {
    "relu": (jax.nn.relu, lambda x: x > 0),
    "leaky": (jax.nn.leaky_relu, lambda x: np.where(x >= 0, 1, 0.01)),
    "tanh": (jnp.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "sigmoid": (jax.nn.sigmoid, lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
    "silu": (
        jax.nn.silu,
        lambda x: 1 / (1 + np.exp(-x)) + x * np.exp(-x) / (1 + np.exp(-x)) ** 2,
    ),
}


def rescaled(phi, slope, x, r, reference=0.4):
    """DeepLIFT's coefficients multiply differences; relax hands on x c."""
    difference = x - reference
    quotient = (np.asarray(phi(x)) - np.asarray(phi(np.full_like(x, reference)))) / difference
    quotient = np.where(np.abs(difference) < 1e-5, slope((x + reference) / 2), quotient)
    return x * quotient * r / naive.clip(np.asarray(phi(x)), 1e-6)


ACTIVATION_RULES = {
    "Pass": (rules.Pass(), lambda phi, slope, x, r: r),
    "Linear": (
        rules.Linear(),
        lambda phi, slope, x, r: x * slope(x) * r / naive.clip(np.asarray(phi(x)), 1e-6),
    ),
    "Epsilon": (rules.Epsilon(0.1), lambda phi, slope, x, r: x * r / naive.additive(x, 0.1)),
    "Epsilon-bias_share": (rules.Epsilon(0.1, bias_share=1.0), lambda phi, slope, x, r: r),
    "Gradient": (rules.Gradient(), lambda phi, slope, x, r: slope(x) * r),
    "Rescale": (rules.Rescale(0.4), rescaled),
    "GuidedBackprop": (
        rules.GuidedBackprop(),
        lambda phi, slope, x, r: (x > 0) * naive.plus(r) if phi is jax.nn.relu else slope(x) * r,
    ),
    "Deconvnet": (
        rules.Deconvnet(),
        lambda phi, slope, x, r: naive.plus(r) if phi is jax.nn.relu else slope(x) * r,
    ),
    "BetaSmooth": (
        rules.BetaSmooth(3.0),
        lambda phi, slope, x, r: r / (1 + np.exp(-3 * x)) if phi is jax.nn.relu else slope(x) * r,
    ),
}


@pytest.mark.parametrize("phi", ACTIVATIONS)
@pytest.mark.parametrize("name", ACTIVATION_RULES)
def test_activation(rng, name, phi):
    """Rules for activations, from any relevance of the output."""
    rule, reference = ACTIVATION_RULES[name]
    phi, slope = ACTIVATIONS[phi]
    x, r = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    x[0, 0] = 0.4 + 1e-7  # within the range of the midpoint rule of Rescale
    useless = phi is not jax.nn.relu and name in ("GuidedBackprop", "Deconvnet", "BetaSmooth")
    with pytest.warns(relax.RelaxWarning, match="ReLU") if useless else contextlib.nullcontext():
        _, pull_back = relax.vrp(phi, x, rules=[(select.activation, rule)])
    close(pull_back(r)[0], reference(phi, slope, x, r), 1e-10 if name == "Rescale" else 1e-12)


@pytest.mark.parametrize("name", ["Epsilon", "ZPlus", "AlphaBeta", "TextbookGamma", "ZBox"])
@pytest.mark.parametrize("stabilizer", ["additive", "clip"])
def test_denominator_of_exactly_zero(name, stabilizer):
    """Its sign counts as +1, so the stabilizer never vanishes and never turns the relevance."""
    rule = getattr(rules, name)(epsilon=0.5, stabilizer=stabilizer)
    _, reference, _ = AFFINE[name]
    w = np.array([[1.0, -1.0], [1.0, -1.0]])
    x, r, told = np.array([1.0, -1.0]), np.array([2.0, 3.0]), {}
    if name in ("ZPlus", "AlphaBeta"):
        w = -np.abs(w)
        x = np.abs(x)
    if name == "ZBox":
        rule = rules.ZBox(0.0, 0.0, 0.5, stabilizer)
        told = {"low": 0.0, "high": 0.0}
    expected = reference(
        x, w, np.zeros(2), r, epsilon=0.5, stabilizer=getattr(naive, stabilizer), **told
    )
    close(relprop(lambda x: x @ w, rule, x, r), expected)
    assert name == "ZPlus" or np.abs(expected).max() > 0


@pytest.mark.parametrize("phi", ["tanh", "silu", "gelu", "elu", "soft_sign", "mish"])
def test_activation_at_zero(phi):
    """phi(x) / x has the limit phi'(0) there: relevance and its derivative are those nearby."""
    phi = getattr(jax.nn, phi)
    explain = lambda x: relax.lrp(lambda x: 2.0 * jnp.sum(phi(x) * np.array([1.0, 3.0])))(x)
    derivative = lambda x: np.diag(jax.jacrev(explain)(x))
    zero, near = np.zeros(2), np.full(2, 1e-7)
    close(explain(near) / 1e-7, derivative(zero), 1e-5)
    close(derivative(zero), derivative(near), 1e-5)
    assert np.abs(derivative(zero)).max() > 0.1


def test_winner(rng):
    """Relevance of a max-pool goes to the largest entry of the window."""
    x, r = rng.normal(size=(2, 6)), rng.normal(size=(2, 3))
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID")
    pairs = x.reshape(2, 3, 2)
    expected = (r[..., None] * (pairs == pairs.max(-1, keepdims=True))).reshape(2, 6)
    close(relax.vrp(pool, x)[1](r)[0], expected)


# ----------------------------------------------------------------------------------- identities


@pytest.fixture
def layers(rng):
    return [layer(rng, 6, 9), layer(rng, 9, 8), layer(rng, 8, 3)]


def without_bias(layers):
    return [(w, np.zeros_like(b)) for w, b in layers]


def unbiased(layers, first=lambda x: x):
    """The network without the additions, not with additions of zero."""

    def apply(x):
        x = first(x)
        for w, _ in layers[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ layers[-1][0]

    return apply


@pytest.mark.parametrize("biased", [False, True])
def test_epsilon_zero_is_gradient_times_input(rng, layers, biased):
    """On a network of ReLUs, with or without biases."""
    function = network(layers) if biased else unbiased(layers)
    x = rng.normal(size=(4, 6))
    gradient = jax.grad(lambda x: function(x)[:, 1].sum())(x)
    value_times = jax.vjp(function, x)[1](function(x) * 0 + np.array([[0, 1, 0]]))[0]
    close(value_times, gradient)
    close(lrp(function, rules.Epsilon(0.0), x, target=1), x * gradient)


def test_gamma_zero_is_epsilon(rng, layers):
    x = rng.normal(size=(4, 6))
    function = network(layers)
    close(lrp(function, rules.Gamma(0.0), x), lrp(function, rules.Epsilon(), x))
    close(lrp(function, rules.TextbookGamma(0.0), x), lrp(function, rules.Epsilon(), x))


def test_alpha_one_beta_zero_is_zplus(rng, layers):
    """Also where beta is an array, so that its term is not left out."""
    x = rng.normal(size=(4, 6))
    function = network(layers)
    expected = lrp(function, rules.ZPlus(), x)
    close(lrp(function, rules.AlphaBeta(1.0, 0.0), x), expected)
    close(lrp(function, rules.AlphaBeta(jnp.array(1.0), jnp.array(0.0)), x), expected)


@pytest.mark.parametrize("rule", [rules.Gamma, rules.TextbookGamma])
def test_large_gamma_tends_to_zplus(rng, layers, rule):
    """On non-negative inputs, for outputs that are rectified."""
    x = np.abs(rng.normal(size=(4, 6)))
    function = lambda x: jax.nn.relu(network(layers)(x))
    expected = lrp(function, rules.ZPlus(0.0), x)
    assert np.abs(expected).max() > 0
    error = [
        np.abs(lrp(function, rule(g, 0.0), x) - expected).max() / np.abs(expected).max()
        for g in (1e3, 1e6, 1e12)
    ]
    assert error[0] > error[1] > error[2]
    assert error[2] < 1e-9


def test_degenerate_box_is_epsilon(rng, layers):
    """The box [0, 0] is no box; a bias would cancel in it, so there is none."""
    x = rng.normal(size=(4, 6))
    function = unbiased(layers)
    close(lrp(function, rules.ZBox(0.0, 0.0), x), lrp(function, rules.Epsilon(), x))


def test_flat_is_wsquare_of_ones(rng):
    """Flat on any weight is WSquare on a weight of ones, true receptive fields included."""
    x, r = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 3, 4))

    def conv(kernel):
        return lambda x: lax.conv_general_dilated(
            x, kernel, (2,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
        )

    kernel = rng.normal(size=(3, 3, 4))
    of_ones = relprop(conv(np.ones_like(kernel)), rules.WSquare(), x, r)
    close(relprop(conv(kernel), rules.Flat(), x, r), of_ones)


@pytest.mark.slow
@pytest.mark.parametrize("name", AFFINE)
def test_mask_of_ones_is_the_rule(rng, name):
    """For one layer with any relevance of its output, and for the first layer of a network."""
    rule = AFFINE[name][0]
    layers = [layer(rng, 6, 4), layer(rng, 4, 3)]
    x, r = rng.normal(size=(2, 6)), rng.normal(size=(2, 4))
    one = lambda x: x @ layers[0][0] + row(layers[0][1])
    close(relprop(one, rules.Mask(np.ones((1, 4)), rule), x, r), relprop(one, rule, x, r))
    mask = rules.Mask(np.ones((1, 4)), rule)
    close(
        lrp(network(layers), [(select.first, mask)], x),
        lrp(network(layers), [(select.first, rule)], x),
    )


@pytest.mark.parametrize("name", AFFINE)
def test_mask_is_a_mask_of_the_relevance(rng, name):
    """Mask(m, rule) at relevance R is the rule at m R, per sample or for all."""
    rule = AFFINE[name][0]
    w, b = layer(rng)
    x, r = rng.normal(size=(4, 6)), rng.normal(size=(4, 5))
    one = lambda x: x @ w + row(b)
    for mask in (rng.uniform(size=(1, 5)), rng.uniform(size=(4, 5)), rng.uniform(size=5)):
        close(relprop(one, rules.Mask(mask, rule), x, r), relprop(one, rule, x, mask * r))


@pytest.mark.parametrize("name", [name for name in AFFINE if "Gradient" not in name])
def test_rules_are_linear_in_relevance(rng, name):
    """R of a sum of seeds is the sum of the R's."""
    rule = AFFINE[name][0]
    w, b = layer(rng)
    x, r, s = rng.normal(size=(4, 6)), rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    one = lambda x: x @ w + row(b)
    close(
        relprop(one, rule, x, 2 * r - s),
        2 * relprop(one, rule, x, r) - relprop(one, rule, x, s),
        1e-10,
    )


# --------------------------------------------------------------------------------- conservation


def dense_net(p, x, phi=jax.nn.relu):
    return phi(phi(x.reshape(x.shape[0], -1) @ p["w1"]) @ p["w2"]) @ p["w3"]


def conv(x, kernel, stride=1):
    return lax.conv_general_dilated(
        x, kernel, (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


def conv_net(p, x, phi=jax.nn.relu):
    return phi(conv(phi(conv(x, p["k1"], 2)), p["k2"])).reshape(x.shape[0], -1) @ p["head"]


def residual_net(p, x, phi=jax.nn.relu):
    x = phi(conv(x, p["k1"], 2))
    x = phi(x + conv(phi(conv(x, p["k2"])), p["k3"]))
    return x.reshape(x.shape[0], -1) @ p["head"]


def pooled_net(p, x, phi=jax.nn.relu):
    x = phi(conv(x, p["k1"]))
    x = lax.reduce_window(x, 0.0, lax.add, (1, 2, 1), (1, 2, 1), "VALID") / 2
    x = phi(conv(x, p["k2"]))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 1, 1), "VALID")
    return x.mean(axis=1) @ p["mean_head"]


@pytest.fixture
def weights(rng):
    shapes = {
        "w1": (96, 20), "w2": (20, 20), "w3": (20, 3), "k1": (3, 12, 8), "k2": (3, 8, 8),
        "k3": (3, 8, 8), "head": (32, 3), "mean_head": (8, 3),
    }  # fmt: skip
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


CONSERVING = {
    "Epsilon": rules.Epsilon(0.0),
    "ZPlus": rules.ZPlus(0.0),
    "AlphaBeta(2,1)": rules.AlphaBeta(2.0, 1.0, 0.0),
    "AlphaBeta(1,0)": rules.AlphaBeta(1.0, 0.0, 0.0),
    "Gamma": rules.Gamma(0.25, 0.0),
    "TextbookGamma": rules.TextbookGamma(0.25, 0.0),
    "WSquare": rules.WSquare(0.0),
    "Flat": rules.Flat(0.0),
    "ZBox": rules.ZBox(-3.0, 3.0, 0.0),
}
INPUT_RULES = ("WSquare", "Flat", "ZBox")


def phi_for(name):
    """AlphaBeta needs contributions of both signs to every output, so no unit may be dead."""
    return (lambda x: jax.nn.leaky_relu(x, 0.2)) if name == "AlphaBeta(2,1)" else jax.nn.relu


def conserved(function, given, x, tolerance=1e-10):
    value, relevance = jax.jit(relax.value_and_lrp(function, given))(x)
    axes = tuple(range(1, x.ndim))
    np.testing.assert_allclose(relevance.sum(axes), value.sum(-1), rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("net", [dense_net, conv_net])
@pytest.mark.parametrize("name", CONSERVING)
def test_conservation(rng, weights, name, net):
    """Without biases and stabilizers, every sample's relevance sums to its outputs."""
    x = rng.normal(size=(3, 8, 12))
    conserved(functools.partial(net, weights, phi=phi_for(name)), CONSERVING[name], x)


@pytest.mark.parametrize("net", [residual_net, pooled_net])
@pytest.mark.parametrize("name", CONSERVING)
def test_conservation_with_sums(rng, weights, name, net):
    """Residual sums, average and max-pooling conserve; input rules on the first layer."""
    x = rng.normal(size=(3, 8, 12))
    rule = CONSERVING[name]
    if name in INPUT_RULES:
        given = [(select.first, rule), (select.affine, rules.Epsilon(0.0))]
    else:
        given = rule
    conserved(functools.partial(net, weights, phi=phi_for(name)), given, x)


@pytest.mark.parametrize("name", ["ZPlus", "AlphaBeta(1,0)", "Gamma", "WSquare", "Flat"])
def test_conservation_of_rules_on_sums(rng, weights, name):
    """The same rules assigned to the sums themselves: rectified branches, so all are positive."""
    x = np.abs(rng.normal(size=(3, 8, 12)))
    function, rule = functools.partial(pooled_net, weights), CONSERVING[name]
    conserved(function, [(select.affine, rule), (select.sums, rule)], x)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.5])
@pytest.mark.parametrize("stabilizer", ["additive", "clip", "scale"])
def test_bias_share_one_conserves_exactly(rng, layers, epsilon, stabilizer):
    """With bias_share=1 the biases and the stabilizer absorb nothing."""
    x = rng.normal(size=(4, 6))
    rule = rules.Epsilon(epsilon, stabilizer, bias_share=1.0)
    function = network(layers)
    conserved(function, rule, x)
    with pytest.raises(AssertionError):
        conserved(function, rules.Epsilon(epsilon, stabilizer), x)


def test_bias_share_one_conserves_in_convolutions(rng, weights):
    """Equal shares run over the true receptive field at padded borders."""
    x, b = rng.normal(size=(3, 8, 12)), rng.normal(size=(1, 1, 8))

    def function(x):
        x = jax.nn.relu(conv(x, weights["k1"], 2) + b)
        return jax.nn.relu(conv(x, weights["k2"]) + b).reshape(x.shape[0], -1) @ weights["head"]

    conserved(function, rules.Epsilon(0.2, bias_share=1.0), x)


# -------------------------------------------------------------- any layout: the explicit matrix

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
PROPERTY_RULES = [
    name for name in AFFINE if "arrays" not in name and name not in ("Norm", "GeneralizedGamma")
]


def check_layer(data, rng, function, x):
    """A drawn rule on a drawn layer, on signed or rectified input, against the explicit matrix."""
    name = data.draw(st.sampled_from(PROPERTY_RULES), "rule")
    rule, reference, told = AFFINE[name]
    if data.draw(st.booleans(), "rectified"):
        x = np.abs(x)
        whole = lambda x: function(jax.nn.relu(x))
    else:
        whole = function
    r = rng.normal(size=function(x).shape)
    hypothesis.assume(r.size > 0)
    got = jax.jit(lambda x, r: relax.vrp(whole, x, rules=everywhere(rule))[1](r)[0])(x, r)
    expected = naive.on_function(reference, function, x, r, **told)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * (1 + np.abs(expected).max()))


def permuted(data, labels, name):
    return "".join(data.draw(st.permutations(labels), name))


@pytest.mark.slow
@PROPERTY
@given(st.data())
def test_any_convolution(data):
    """All strides, paddings, dilations, groups and layouts, biased or not, of either operand."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    dims = data.draw(st.integers(1, 2), "dims")
    each = lambda low, high, name: [
        data.draw(st.integers(low, high), f"{name}{i}") for i in range(dims)
    ]
    kernel = each(1, 3, "kernel")
    dilation, stride, inner = each(1, 2, "dilation"), each(1, 3, "stride"), each(1, 2, "inner")
    padding = [
        (data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(dims)
    ]  # fmt: skip
    groups = data.draw(st.integers(1, 3), "groups")
    inputs, outputs = (groups * data.draw(st.integers(1, 2)) for _ in range(2))
    batch = data.draw(st.integers(1, 2), "batch")
    sizes = [
        max(size, -(-(d * (k - 1) + 1 - low - high - 1) // i) + 1)
        for size, d, k, i, (low, high) in zip(
            each(2, 5, "size"), dilation, kernel, inner, padding, strict=True
        )
    ]
    spatial = "HW"[:dims]
    layout = (permuted(data, "NC" + spatial, "x"), permuted(data, "OI" + spatial, "w"),
              permuted(data, "NC" + spatial, "z"))  # fmt: skip
    size_of = {"N": batch, "C": inputs, "O": outputs, "I": inputs // groups}
    image = rng.normal(size=[size_of.get(a) or sizes[spatial.index(a)] for a in layout[0]])
    weight = rng.normal(size=[size_of.get(a) or kernel[spatial.index(a)] for a in layout[1]])
    biased = data.draw(st.booleans(), "biased")
    bias = rng.normal(size=[outputs if a == "C" else 1 for a in layout[2]])

    def conv(image, weight):
        z = lax.conv_general_dilated(
            image, weight, stride, padding, inner, dilation, layout, feature_group_count=groups
        )
        return z + bias if biased else z

    if data.draw(st.booleans(), "of the kernel"):
        check_layer(data, rng, lambda w: conv(image, w), weight)
    else:
        check_layer(data, rng, lambda x: conv(x, weight), image)


@pytest.mark.slow
@PROPERTY
@given(st.data())
def test_any_dense_layer(data):
    """All einsum layouts: batch, contracted, free and shared axes in any order, on either side."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    counts = [data.draw(st.integers(low, 2)) for low in (0, 1, 0)] + [data.draw(st.integers(0, 1))]
    names = iter("abcdefgh")
    batch, inner, free, shared = ("".join(itertools.islice(names, n)) for n in counts)
    size = {label: data.draw(st.integers(1, 3), label) for label in batch + inner + free + shared}
    x_axes = permuted(data, batch + inner + shared, "x")
    w_axes = permuted(data, inner + free + shared, "w")
    z_axes = permuted(data, batch + free + shared, "z")
    x, w = (rng.normal(size=[size[a] for a in axes]) for axes in (x_axes, w_axes))
    bias = rng.normal(size=[size[a] if a in free + shared else 1 for a in z_axes])
    biased = data.draw(st.booleans(), "biased")
    swapped = data.draw(st.booleans(), "swapped")

    def dense(x):
        if swapped:
            z = jnp.einsum(f"{w_axes},{x_axes}->{z_axes}", w, x)
        else:
            z = jnp.einsum(f"{x_axes},{w_axes}->{z_axes}", x, w)
        return z + bias if biased else z

    check_layer(data, rng, dense, x)


def last_axis(v, z):
    return v[: z.shape[-1]].reshape((1,) * (z.ndim - 1) + (-1,))


STEPS = {
    "shift": lambda z, v: z + last_axis(v, z),
    "minus": lambda z, v: z - last_axis(v, z),
    "taken from": lambda z, v: last_axis(v, z) - z,
    "scale": lambda z, v: z * last_axis(v, z),
    "divide": lambda z, v: z / (last_axis(v, z) + 3),
    "negate": lambda z, v: -z,
    "literal": lambda z, v: z * 1.7,
    "reshape": lambda z, v: z.reshape((z.shape[0], 2, -1) if z.ndim == 2 else (z.shape[0], -1)),
    "transpose": lambda z, v: jnp.moveaxis(z, -1, 0),
}


@PROPERTY
@given(st.data())
def test_any_chain(data):
    """BatchNorms, scales, shifts and moves behind a layer, in any order, are merged with it.

    The steps end in a shift with a weight, so that the whole of the chain is one layer; a chain
    that cannot be merged into the kernel would show as a layer of its own.
    """
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    steps = data.draw(st.lists(st.sampled_from(list(STEPS)), max_size=4), "steps")
    values = rng.normal(size=(6, 12))
    w = rng.normal(size=(3, 4))

    def function(x):
        z = x @ w
        for step, v in zip(steps, values, strict=False):
            z = STEPS[step](z, v)
        return STEPS["shift"](z, values[-1])

    x = rng.normal(size=(2, 3))
    plan = relax.layers(function)(x)
    hypothesis.assume([layer.kind for layer in plan] == ["dense"])
    check_layer(data, rng, function, x)


@pytest.mark.parametrize(
    ("function", "assign"),
    [
        (lambda x: x.mean(-1), [(select.sums, rules.Norm(0.1, "scale"))]),
        (lambda x: x + jnp.roll(x, 1, -1), [(select.sums, rules.Norm(0.1, "scale"))]),
        (jnp.tanh, [(select.activation, rules.Epsilon(0.1, "scale"))]),
    ],
    ids=["mean", "sum", "activation"],
)
def test_scale_stabilizer_of_what_has_no_weights(rng, function, assign):
    """The root mean square runs over the last axis, so samples do not mix, mapped or not."""
    x = rng.normal(size=(2, 3, 4, 5))
    explain = relax.lrp(function, assign)
    close(jax.vmap(explain)(x), explain(x))


def test_a_rule_with_a_word_for_a_field():
    """A string is part of the program, as if it were `static`."""

    @dataclasses.dataclass(frozen=True)
    class Chosen(rules.AffineRule):
        part: str = "positive"
        epsilon: float = 1e-6

        def relevance(self, layer, x, relevance):
            layer = getattr(layer, self.part)()
            return x * layer.transpose(relevance / rules.stabilize(layer(x), self.epsilon))

    w, x = np.array([[1.0, -2.0], [-3.0, 4.0]]), np.array([1.0, 2.0])
    explain = jax.jit(lambda rule: relax.lrp(lambda x: x @ w, rule)(x))
    np.testing.assert_allclose(explain(Chosen()), [-5.0, 6.0], rtol=1e-5)
    assert jax.tree.leaves(Chosen()) == [1e-6]


def test_little_that_speaks_against_is_not_lost():
    """In float32: z- has a pass of its own, since z - z+ is rounding where z- is far smaller.

    docs/decisions/0012: by the difference all of -beta R would be lost here.
    """
    w, x = jnp.array([[1.0], [-1e-5]], jnp.float32), jnp.array([1000.0, 1.0], jnp.float32)
    assert x @ w - x @ jnp.maximum(w, 0) == 0
    rule = rules.AlphaBeta(2.0, 1.0, epsilon=0.0)
    # behind a rectifier, so that x is known to be non-negative
    explain = relax.lrp(lambda w, x: jax.nn.relu(x) @ w, rule, target=jnp.ones_like)
    np.testing.assert_allclose(explain(w, x), [2.0, -1.0], rtol=1e-6)
