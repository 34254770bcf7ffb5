"""Every rule under every transformation of JAX: one table.

The network has all kinds of layers and smooth and rectified activations; derivatives are those of
``sum(sin(R) * noise)`` and are compared with central differences in float64.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import rules, select

EPSILON = 0.05  # large enough to be seen in every number


def first(rule):
    return relax.Composite(((select.first, rule), (select.affine, rules.Epsilon(EPSILON))))


def at(selector, rule):
    return relax.Composite(((selector, rule), (select.affine, rules.Epsilon(EPSILON))))


CATALOG = {
    "default": rules.Epsilon(),
    "Epsilon": rules.Epsilon(EPSILON),
    "Epsilon(0)": rules.Epsilon(0.0),
    "Epsilon-clip": rules.Epsilon(EPSILON, "clip"),
    "Epsilon-scale": rules.Epsilon(EPSILON, "scale"),
    "Epsilon-zero_bias": rules.Epsilon(EPSILON, zero_bias=True),
    "Epsilon-bias_share": rules.Epsilon(EPSILON, bias_share=0.5),
    "Epsilon-activations": at(select.activation, rules.Epsilon(EPSILON)),
    "Norm": at(select.sums, rules.Norm(EPSILON)),
    "ZPlus": rules.ZPlus(EPSILON),
    "ExcitationBackprop": rules.ExcitationBackprop(EPSILON),
    "AlphaBeta": rules.AlphaBeta(2.0, 1.0, EPSILON),
    "Gamma": rules.Gamma(0.25, EPSILON),
    "GeneralizedGamma": rules.GeneralizedGamma(1.5, EPSILON, zero_bias=True),
    "TextbookGamma": rules.TextbookGamma(0.25, EPSILON),
    "WSquare": rules.WSquare(EPSILON),
    "WSquare-first": first(rules.WSquare(EPSILON)),
    "Flat": rules.Flat(EPSILON),
    "Flat-first": first(rules.Flat(EPSILON)),
    "ZBox": rules.ZBox(-3.0, 3.0, EPSILON),
    "ZBox-first": first(rules.ZBox(-2.0, 2.5, EPSILON)),
    "Pass": at(select.activation, rules.Pass()),
    "GuidedBackprop": at(select.activation, rules.GuidedBackprop()),
    "Deconvnet": at(select.activation, rules.Deconvnet()),
    "BetaSmooth": at(select.activation, rules.BetaSmooth(3.0)),
    "Rescale": at(select.activation, rules.Rescale(0.3)),
    "Linear": at(select.activation, rules.Linear()),
    "Winner": at(select.winner, rules.Winner()),
    "Gradient": rules.Gradient(),
    "Mask": first(rules.Mask(np.linspace(-0.5, 1.5, 5), rules.Gamma(0.25, EPSILON))),
}


def test_catalog_is_complete():
    """Every rule that relax exports stands in the table."""
    public = {getattr(rules, name) for name in rules.__all__}
    bases = {rules.Rule, rules.AffineRule, rules.ActivationRule, rules.ProductRule}
    bases |= {rules.SoftmaxRule, rules.NormalizationRule}
    known = {r for r in public if isinstance(r, type) and issubclass(r, rules.Rule)} - bases
    known -= {rules.Lookup}  # of integers, see test_tokens.py

    def inside(rule):
        if isinstance(rule, relax.Composite):
            return set().union(*(inside(r) for _, r in rule.entries))
        inner = inside(rule.rule) if isinstance(rule, rules.Mask) else set()
        return {type(rule)} | inner

    from test_table_transformer import CATALOG as OTHERS  # which imports this module

    assert known == set().union(*map(inside, (*CATALOG.values(), *OTHERS.values())))


def row(b):
    return b.reshape(1, 1, -1)


def net(p, x):
    """(N, 4, 3) -> (N, 3): dense-tanh, residual dense-GELU, conv-ReLU, mean and max, dense."""
    x = jnp.tanh(x @ p["w1"] + row(p["b1"]))
    x = x + jax.nn.gelu(x @ p["w2"] + row(p["b2"]))
    x = lax.conv_general_dilated(x, p["w3"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    x = jax.nn.relu(x + row(p["b3"]))
    x = jnp.concatenate([x.mean(axis=1), x.max(axis=1)], axis=-1)
    return x @ p["w4"] + p["b4"].reshape(1, -1)


SHAPES = {
    "w1": (3, 5), "b1": (5,), "w2": (5, 5), "b2": (5,), "w3": (3, 5, 6), "b3": (6,),
    "w4": (12, 3), "b4": (3,),
}  # fmt: skip
_random = np.random.default_rng(11)
PARAMS = {name: 0.6 * _random.normal(size=shape) for name, shape in SHAPES.items()}
X = _random.normal(size=(3, 4, 3))
NOISE = _random.normal(size=X.shape)


def relevance(rule, params, x):
    return relax.lrp(net, rule)(params, x)


def loss(rule, params, x):
    return jnp.sum(jnp.sin(relevance(rule, params, x)) * NOISE)


def as_arrays(rule):
    """The rule with all its hyper-parameters as arrays, so that they are traced."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), rule)


compiled = jax.jit(relevance)
compiled_loss = jax.jit(loss)
compiled_gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


@functools.cache
def plain(name):
    """Relevance with nothing else applied; that jit makes no difference is for `test_jit`."""
    return np.asarray(compiled(as_arrays(CATALOG[name]), PARAMS, X))


@functools.cache
def gradients(name):
    """Gradients of the loss with respect to rule, parameters and input."""
    return compiled_gradient(as_arrays(CATALOG[name]), PARAMS, X)


def close(got, expected, tolerance=1e-9):
    expected = np.asarray(expected)
    assert np.shape(got) == expected.shape
    limit = tolerance * max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(got, expected, rtol=0, atol=limit)


def derivative(function, at, direction, step=2e-5):
    """Central difference of fourth order along a direction of a pytree."""
    moved = lambda t: function(jax.tree.map(lambda a, d: a + t * d, at, direction))
    near, far = moved(step) - moved(-step), moved(2 * step) - moved(-2 * step)
    return float((8 * near - far) / (12 * step))


def check_gradient(function, at, gradient):
    """Against central differences along random directions."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = jax.tree.map(lambda a, rng=rng: rng.normal(size=np.shape(a)), at)
        expected = derivative(function, at, direction)
        got = sum(
            float(np.vdot(g, d))
            for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-7)


table = pytest.mark.parametrize("name", CATALOG)
with_hyper = pytest.mark.parametrize("name", [n for n, r in CATALOG.items() if jax.tree.leaves(r)])


@table
def test_plain_and_jit(name):
    """Relevance is finite, of the input's shape and dtype, not nothing, and the same under jit.

    Hyper-parameters may be known while tracing or arguments themselves.
    """
    result = relevance(CATALOG[name], PARAMS, X)
    assert result.shape == X.shape
    assert result.dtype == X.dtype
    assert np.isfinite(result).all()
    assert np.abs(result).max() > 1e-3
    close(jax.jit(relax.lrp(net, CATALOG[name]))(PARAMS, X), result)
    close(plain(name), result)


@table
def test_vmap_over_samples(name):
    """Samples one by one under vmap or all at once: the same."""
    one = lambda x: relevance(CATALOG[name], PARAMS, x[None])[0]
    close(jax.jit(jax.vmap(one))(X), plain(name))


@pytest.mark.slow
@table
def test_vmap_over_params(name):
    """An ensemble: two sets of parameters under vmap, against each alone."""
    other = jax.tree.map(lambda a: 0.9 * a, PARAMS)
    both = jax.tree.map(lambda *a: np.stack(a), PARAMS, other)
    rule = as_arrays(CATALOG[name])
    swept = jax.jit(jax.vmap(lambda p: relevance(rule, p, X)))(both)
    close(swept[0], plain(name))
    close(swept[1], compiled(rule, other, X))


@with_hyper
def test_vmap_over_hyperparameters(name):
    """A sweep over all hyper-parameters at once, against each setting alone."""
    factors = np.array([1.0, 0.5, 1.7])
    base = as_arrays(CATALOG[name])
    swept = jax.tree.map(lambda a: jnp.stack([a * f for f in factors]), base)
    got = jax.jit(jax.vmap(relevance, in_axes=(0, None, None)))(swept, PARAMS, X)
    close(got[0], plain(name))
    for i, factor in enumerate(factors):
        alone = jax.tree.map(lambda a, f=factor: a * f, base)
        close(got[i], compiled(alone, PARAMS, X))


@table
def test_grad_of_input(name):
    rule = as_arrays(CATALOG[name])
    check_gradient(lambda x: compiled_loss(rule, PARAMS, x), X, gradients(name)[2])


@table
def test_grad_of_params(name):
    """All parameters along random directions, and each array alone."""
    rule, gradient = as_arrays(CATALOG[name]), gradients(name)[1]
    check_gradient(lambda p: compiled_loss(rule, p, X), PARAMS, gradient)
    for key, value in PARAMS.items():
        alone = lambda a, key=key: compiled_loss(rule, PARAMS | {key: a}, X)
        check_gradient(alone, value, gradient[key])


@with_hyper
def test_grad_of_hyperparameters(name):
    """Each leaf of the rule alone."""
    rule, gradient = as_arrays(CATALOG[name]), gradients(name)[0]
    leaves, tree = jax.tree.flatten(rule)
    for i, leaf in enumerate(leaves):
        alone = lambda a, i=i: compiled_loss(
            jax.tree.unflatten(tree, [*leaves[:i], a, *leaves[i + 1 :]]), PARAMS, X
        )
        check_gradient(alone, leaf, jax.tree.leaves(gradient)[i])


@pytest.mark.slow
@with_hyper
def test_hyperparameters_matter(name):
    """At least one of them has a derivative: the test above is not one of zeros."""
    assert any(np.abs(leaf).max() > 1e-8 for leaf in jax.tree.leaves(gradients(name)[0]))


@pytest.mark.slow
@table
def test_inside_scan(name):
    """lrp in the body of lax.scan, sample by sample, and all gradients of the loss."""

    def scanned_loss(rule, params, xs):
        def step(total, sample):
            x, noise = sample
            r = relevance(rule, params, x[None])[0]
            return total + jnp.sum(jnp.sin(r) * noise), r

        return lax.scan(step, 0.0, (xs, NOISE))

    gradient = jax.jit(jax.grad(scanned_loss, argnums=(0, 1, 2), has_aux=True))
    grads, result = gradient(as_arrays(CATALOG[name]), PARAMS, X)
    close(result, plain(name))
    jax.tree.map(close, grads, gradients(name))


@pytest.mark.slow
@table
def test_inside_checkpoint(name):
    """lrp under jax.checkpoint: the value and all gradients of the loss are the same."""
    rule = as_arrays(CATALOG[name])
    remat = jax.checkpoint(relevance)

    def remat_loss(*args):
        r = remat(*args)
        return jnp.sum(jnp.sin(r) * NOISE), r

    gradient = jax.jit(jax.grad(remat_loss, argnums=(0, 1, 2), has_aux=True))
    grads, result = gradient(rule, PARAMS, X)
    close(result, plain(name))
    jax.tree.map(close, grads, gradients(name))


@pytest.mark.slow
@table
def test_jacfwd_is_jacrev(name):
    """Forward and reverse mode agree on the derivative of relevance."""
    function = lambda x: relevance(CATALOG[name], PARAMS, x)
    x = X[:1]
    close(jax.jit(jax.jacfwd(function))(x), jax.jit(jax.jacrev(function))(x))


@pytest.mark.slow
@table
def test_second_derivative(name):
    """The Hessian of the loss along two directions, against differences of its gradient."""
    rule = as_arrays(CATALOG[name])
    rng = np.random.default_rng(5)
    v, u = rng.normal(size=(2, *X.shape))
    gradient = lambda x: compiled_gradient(rule, PARAMS, x)[2]
    _, forward = jax.jvp(gradient, (X,), (v,))
    expected = derivative(lambda x: jnp.vdot(gradient(x), u), X, v)
    assert float(jnp.vdot(forward, u)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@table
def test_no_recompilation(name):
    """Other parameters, inputs, targets and hyper-parameters: traced once, compiled once."""
    traces = 0

    def counted(p, x):
        nonlocal traces
        traces += 1
        return net(p, x)

    @jax.jit
    def explain(rule, params, x, target):
        return relax.lrp(counted, rule, target=target)(params, x)

    half = lambda tree: jax.tree.map(lambda a: a * 0.5, tree)
    rule = as_arrays(CATALOG[name])
    one = explain(rule, PARAMS, X, jnp.array([0, 1, 2]))
    two = explain(half(rule), half(PARAMS), half(X), jnp.array([2, 2, -1]))
    assert traces == 1
    assert np.abs(one - two).max() > 0


def test_no_recompilation_with_a_closed_rule():
    """jit(lrp(f, rule)) as the front page shows it is traced once, too."""
    traced = []

    def counted(p, x):
        traced.append(1)
        return net(p, x)

    explain = jax.jit(relax.lrp(counted, rules.Gamma(0.25)))
    explain(PARAMS, X)
    once = len(traced)
    explain(jax.tree.map(lambda a: 2 * a, PARAMS), X + 1)
    assert len(traced) == once > 0


def test_rules_of_equal_structure_share_a_program():
    """Python numbers in a rule that is an argument of jit are traced, not compiled in."""
    traced = []

    def counted(*args):
        traced.append(1)
        return relevance(*args)

    explain = jax.jit(counted)
    results = [explain(rules.Gamma(g), PARAMS, X) for g in (0.0, 0.5, 2.0)]
    assert len(traced) == 1
    for g, result in zip((0.0, 0.5, 2.0), results, strict=True):
        close(result, relevance(rules.Gamma(g), PARAMS, X))


@table
def test_rule_is_a_pytree(name):
    """A rule survives flattening, and its leaves are its hyper-parameters."""
    rule = CATALOG[name]
    leaves, tree = jax.tree.flatten(rule)
    assert jax.tree.unflatten(tree, leaves) == rule or name == "Mask"
    if isinstance(rule, rules.Rule):
        fixed = {f.name for f in dataclasses.fields(rule) if f.metadata.get("static")}
        swept = [f.name for f in dataclasses.fields(rule) if f.name not in fixed]
        assert leaves == [getattr(rule, field) for field in swept]


# --------------------------------------------------------------- control flow inside the function

STACK = {"w": 0.5 * _random.normal(size=(3, 5, 5)), "b": 0.3 * _random.normal(size=(3, 5))}
AFFINE_ONLY = [
    name
    for name, rule in CATALOG.items()
    if isinstance(rule, rules.AffineRule) and name not in ("WSquare", "Flat", "ZBox")
]


def block(x, p):
    return jnp.tanh(x @ p["w"] + p["b"].reshape(1, -1)), None


def deep(stack, x):
    for i in range(3):
        x, _ = block(x, jax.tree.map(lambda a, i=i: a[i], stack))
    return x


def scanned(stack, x):
    return lax.scan(block, x, stack)[0]


def rematerialized(stack, x):
    for i in range(3):
        x = jax.checkpoint(lambda x, p: block(x, p)[0])(x, jax.tree.map(lambda a, i=i: a[i], stack))
    return x


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [scanned, rematerialized])
@pytest.mark.parametrize("name", AFFINE_ONLY)
def test_layers_inside_control_flow(name, wrapped):
    """Layers inside scan and checkpoint: relevance and its gradients as of the plain loop."""
    rule = as_arrays(CATALOG[name])
    x = np.random.default_rng(3).normal(size=(2, 5))

    def total(function):
        def run(rule, stack):
            r = relax.lrp(function, rule)(stack, x)
            return jnp.sum(jnp.sin(r)), r

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(rule, STACK)

    jax.tree.map(close, total(wrapped), total(deep))
