"""The rules of transformers under every transformation of JAX: `test_table.py`, continued.

The network has attention, two norms, a gated layer, a squeeze-and-excite gate and a function with a
rule of its own. Derivatives are compared with central differences in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_table import EPSILON, as_arrays, check_gradient, close, derivative

import relax
from relax import composites, rules, select


def at(*entries):
    return relax.Composite((*entries, (select.affine, rules.Epsilon(EPSILON))))


CATALOG = {
    "default": rules.Epsilon(EPSILON),
    "attnlrp": composites.attnlrp(EPSILON),
    "attnlrp(0)": composites.attnlrp(),
    "cp_lrp": composites.cp_lrp(EPSILON),
    "attnlrp_vit": composites.attnlrp_vit(0.25, 0.05),
    "Uniform": at((select.product, rules.Uniform())),
    "SignalTakeAll": at((select.product, rules.SignalTakeAll(("softmax", "unit", "activation")))),
    "Left": at((select.product, rules.Left())),
    "Right": at((select.product, rules.Right())),
    "Jacobian": at((select.softmax, rules.Jacobian())),
    "Constant": at((select.softmax, rules.Constant())),
    "Identity": at((select.norm, rules.Identity())),
    "LayerNormRule": at((select.norm, rules.LayerNormRule(EPSILON))),
    "Epsilon-norm": at((select.norm, rules.Epsilon(EPSILON))),
    "Linear-norm": at((select.norm, rules.Linear())),
    "Gradient-softmax": at((select.softmax, rules.Gradient())),
    "Gradient-norm": at((select.norm, rules.Gradient())),
    "Gradient-product": at((select.product & "dot_general", rules.Gradient())),
    "Flat above": at(("w5", rules.Flat(EPSILON))),
    "Mask": at((select.norm, rules.Mask(np.linspace(-0.5, 1.5, 5), rules.Linear()))),
    "Custom": at((select.custom, rules.Custom(coefficients=True))),
}


@relax.custom_relprop
def smooth(x):
    return x * jnp.tanh(x)


def _smooth_fwd(x):
    return smooth(x), x


def _smooth_bwd(x, coefficient):
    return (0.5 * coefficient * jnp.tanh(x),)


smooth.defrelprop(_smooth_fwd, _smooth_bwd, coefficients=True)


def row(b):
    return b.reshape(1, 1, -1)


def norm(x):
    deviation = jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return (x - x.mean(-1, keepdims=True)) / deviation


def net(p, x):
    """(N, 4, 3) -> (N, 3)."""
    x = x @ p["w1"] + row(p["b1"])
    y = norm(x) * row(p["g"]) + row(p["b2"])
    scores = (y @ p["q"]) @ jnp.swapaxes(y @ p["k"], 1, 2)
    scores = jnp.where(np.tri(4, dtype=bool)[None], scores, -jnp.inf)
    x = x + jax.nn.softmax(scores) @ (y @ p["v"])
    y = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3)
    x = x + (jax.nn.silu(y @ p["w2"]) * (y @ p["w3"])) @ p["w4"]
    x = smooth(x) * jax.nn.sigmoid(x.mean(1, keepdims=True) @ p["w6"])
    return x.mean(1) @ p["w5"]


SHAPES = {
    "w1": (3, 5), "b1": (5,), "g": (5,), "b2": (5,), "q": (5, 4), "k": (5, 4), "v": (5, 5),
    "w2": (5, 6), "w3": (5, 6), "w4": (6, 5), "w6": (5, 5), "w5": (5, 3),
}  # fmt: skip
_random = np.random.default_rng(12)
PARAMS = {name: 0.7 * _random.normal(size=shape) for name, shape in SHAPES.items()}
X = _random.normal(size=(3, 4, 3))
NOISE = _random.normal(size=X.shape)


def relevance(rule, params, x):
    return relax.lrp(net, rule)(params, x)


def loss(rule, params, x):
    return jnp.sum(jnp.sin(relevance(rule, params, x)) * NOISE)


compiled = jax.jit(relevance)
compiled_loss = jax.jit(loss)
compiled_gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


@functools.cache
def plain(name):
    return np.asarray(compiled(as_arrays(CATALOG[name]), PARAMS, X))


@functools.cache
def gradients(name):
    return compiled_gradient(as_arrays(CATALOG[name]), PARAMS, X)


table = pytest.mark.parametrize("name", CATALOG)


def test_the_network_has_all_kinds_of_layers():
    kinds = {row.kind for row in relax.layers(net)(PARAMS, X)}
    assert kinds >= {"dense", "normalization", "product", "softmax", "custom", "sum", "mean"}
    assert not kinds & {"winner", "unsupported"}


@table
def test_plain_and_jit(name):
    result = relevance(CATALOG[name], PARAMS, X)
    assert result.shape == X.shape
    assert np.isfinite(result).all()
    assert np.abs(result).max() > 1e-3
    close(plain(name), result)


@pytest.mark.slow
@table
def test_vmap_over_samples(name):
    """Samples one by one under vmap or all at once: the same."""
    one = lambda x: relevance(CATALOG[name], PARAMS, x[None])[0]
    close(jax.jit(jax.vmap(one))(X), plain(name))


QUICK = ("attnlrp", "cp_lrp", "attnlrp_vit", "Uniform", "LayerNormRule", "Identity", "Custom")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CATALOG]
)
def test_grad_of_input_and_parameters(name):
    rule, gradient = as_arrays(CATALOG[name]), gradients(name)
    check_gradient(lambda x: compiled_loss(rule, PARAMS, x), X, gradient[2])
    check_gradient(lambda p: compiled_loss(rule, p, X), PARAMS, gradient[1])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
        for n, r in CATALOG.items()
        if jax.tree.leaves(r)
    ],
)
def test_grad_and_vmap_of_hyperparameters(name):
    """Along random directions; and a sweep of all at once against each setting alone."""
    rule = as_arrays(CATALOG[name])
    check_gradient(lambda r: compiled_loss(r, PARAMS, X), rule, gradients(name)[0])
    swept = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), rule)
    got = jax.jit(jax.vmap(relevance, in_axes=(0, None, None)))(swept, PARAMS, X)
    close(got[0], plain(name))
    close(got[1], compiled(jax.tree.map(lambda a: 0.5 * a, rule), PARAMS, X))


@pytest.mark.slow
@table
def test_inside_scan_and_checkpoint(name):
    """lrp in the body of lax.scan under jax.checkpoint, and all gradients of the loss."""

    def scanned_loss(rule, params, xs):
        @jax.checkpoint
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
def test_second_derivative(name):
    """The Hessian of the loss along two directions, against differences of its gradient."""
    rule = as_arrays(CATALOG[name])
    v, u = np.random.default_rng(5).normal(size=(2, *X.shape))
    gradient = lambda x: compiled_gradient(rule, PARAMS, x)[2]
    _, forward = jax.jvp(gradient, (X,), (v,))
    expected = derivative(lambda x: jnp.vdot(gradient(x), u), X, v)
    assert float(jnp.vdot(forward, u)) == pytest.approx(expected, rel=1e-4, abs=1e-6)
