"""Half precision, and exact zeros: finite everywhere, and as close as the type allows.

How close that is, the model itself says: with every parameter and input of the float32 model
changed at random by at most one rounding of the half type, ``finfo(dtype).eps / 2`` relative, the
relevance moves by some amount. Half precision rounds after every operation, too, so ``ROUNDINGS``
such changes are allowed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_table import CATALOG, PARAMS, X, net

import relax
from relax import composites, rules, select

HALF = (jnp.bfloat16, jnp.float16)
ROUNDINGS = 4
DRAWS = 12

COMPOSITES = {name: getattr(composites, name) for name in composites.__all__ if name != "Composite"}
SINGLE = {
    name: getattr(rules, name)
    for name in (
        "Epsilon", "ZPlus", "AlphaBeta", "Gamma", "TextbookGamma", "WSquare", "Flat", "ZBox",
    )
}  # fmt: skip

half = pytest.mark.parametrize("dtype", HALF, ids=lambda dtype: dtype.__name__)


def shift(z, b):
    return z + b.reshape((1,) * (z.ndim - 1) + b.shape)


def mlp(p, x):
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(shift(x @ p["w1"], p["b1"]))
    x = jax.nn.relu(shift(x @ p["w2"], p["b2"]))
    return shift(x @ p["w3"], p["b3"])


def conv_net(p, x):
    conv = lambda x, w: lax.conv_general_dilated(
        x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    pool = functools.partial(
        lax.reduce_window, window_dimensions=(1, 2, 1), window_strides=(1, 2, 1), padding="VALID"
    )
    x = jax.nn.relu(shift(conv(x, p["k1"]), p["c1"]))
    x = pool(x, -jnp.inf, lax.max)
    x = x + jax.nn.relu(shift(conv(x, p["k2"]), p["c2"]))
    x = pool(x, 0.0, lax.add) / 2
    return shift(x.reshape(x.shape[0], -1) @ p["w4"], p["b4"])


def half_params(scale):
    """He-scaled, with biases for inputs of that scale; a third of the hidden units are dead."""
    rng = np.random.default_rng(4)
    shapes = {"w1": (32, 24), "w2": (24, 16), "w3": (16, 4), "k1": (3, 4, 8), "k2": (3, 8, 8),
              "w4": (16, 4)}  # fmt: skip
    params = {
        name: rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
        for name, shape in shapes.items()
    }
    for name, weight in (("b1", "w1"), ("b2", "w2"), ("b3", "w3"), ("c1", "k1"), ("c2", "k2"),
                         ("b4", "w4")):  # fmt: skip
        params[name] = 0.1 * scale * rng.normal(size=shapes[weight][-1])
        if name not in ("b3", "b4"):
            params[name][::3] = -50 * scale
    return params


def cast(tree, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def check_half(network, rule, dtype, scale):
    """Relevance in a half type is finite and within the bound of that in float32."""
    rng = np.random.default_rng(6)
    params, x = cast((half_params(scale), scale * rng.normal(size=(3, 8, 4))), dtype)
    explain = lambda p, x: relax.lrp(network, rule, target="max")(p, x)
    got = jax.jit(explain)(params, x)
    assert got.dtype == dtype
    assert jnp.isfinite(got).all()

    params, x = cast((params, x), jnp.float32)
    eps = float(jnp.finfo(dtype).eps) / 2

    def changed(key):
        leaves, tree = jax.tree.flatten((params, x))
        keys = jax.random.split(key, len(leaves))
        noise = [jax.random.uniform(k, a.shape, a.dtype, -1, 1) for k, a in zip(keys, leaves)]  # noqa: B905
        moved = [a * (1 + eps * n) for a, n in zip(leaves, noise, strict=True)]
        return explain(*jax.tree.unflatten(tree, moved))

    @jax.jit
    def reference():
        keys = jax.random.split(jax.random.key(0), DRAWS)
        return explain(params, x), jax.vmap(changed)(keys)

    expected, draws = reference()
    moved = jnp.abs(draws - expected[None]).max()
    absolute = float(jnp.finfo(dtype).tiny) * x.size  # below it, the type itself loses digits
    error = jnp.abs(got.astype(jnp.float32) - expected).max()
    assert moved > 0
    assert error <= ROUNDINGS * moved + absolute


@half
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("network", [mlp, conv_net])
@pytest.mark.parametrize("name", COMPOSITES)
def test_half_precision_of_composites(name, network, scale, dtype):
    check_half(network, COMPOSITES[name](), dtype, scale)


@half
@pytest.mark.parametrize("network", [mlp, conv_net])
@pytest.mark.parametrize("name", SINGLE)
def test_half_precision_of_rules(name, network, dtype):
    check_half(network, SINGLE[name](), dtype, 1.0)


@half
@pytest.mark.parametrize("name", CATALOG)
def test_half_precision_with_wider_hyperparameters(name, dtype):
    """Hyper-parameters of float64 leave the dtype of the relevance alone."""
    rule = cast(CATALOG[name], jnp.float64)
    result = jax.jit(lambda r, p, x: relax.lrp(net, r)(p, x))(rule, *cast((PARAMS, X), dtype))
    assert result.dtype == dtype
    assert jnp.isfinite(result).all()


# ---------------------------------------------------------------------------------- exact zeros

WITH_EPSILON = (
    "Epsilon",
    "ZPlus",
    "AlphaBeta",
    "Gamma",
    "TextbookGamma",
    "WSquare",
    "Flat",
    "ZBox",
)
ZERO_RULES = {
    **{name: CATALOG[name] for name in CATALOG},
    **{name: getattr(rules, name)() for name in WITH_EPSILON},
    **{f"{name}(epsilon=0)": getattr(rules, name)(epsilon=0.0) for name in WITH_EPSILON},
    **{
        f"{name} clip": getattr(rules, name)(stabilizer="clip")
        for name in ("Epsilon", "ZPlus", "Gamma")
    },
    **{
        f"{name} scale": getattr(rules, name)(stabilizer="scale")
        for name in ("Epsilon", "ZPlus", "Gamma")
    },
    **{
        f"{upper} over {name}": relax.Composite(
            ((select.first, getattr(rules, name)()), (select.affine, getattr(rules, upper)()))
        )
        for name in ("Epsilon", "ZPlus", "AlphaBeta", "Gamma")
        for upper in ("Flat", "WSquare", "ZBox")
    },
    "Epsilon shares everything": rules.Epsilon(bias_share=1.0),
    "Norm on sums": relax.Composite(((select.sums, rules.Norm()),)),
    "Flat on sums": relax.Composite(((select.sums, rules.Flat()),)),
    "Epsilon(0) on activations": relax.Composite(((select.activation, rules.Epsilon(0.0)),)),
}


def zeros():
    """Parameters and inputs with zeros in one place or another."""
    nothing = jax.tree.map(np.zeros_like, PARAMS)
    unbiased = {k: np.zeros_like(a) if k.startswith("b") else a for k, a in PARAMS.items()}
    weightless = {k: np.zeros_like(a) if k.startswith("w") else a for k, a in PARAMS.items()}
    yield "zero input", PARAMS, 0 * X
    yield "zero input, no biases", unbiased, 0 * X
    yield "zero weights", weightless, X
    yield "zero parameters", nothing, X
    yield "zero everything", nothing, 0 * X
    yield "dead ReLUs", PARAMS | {"b3": np.full_like(PARAMS["b3"], -100.0)}, X
    yield "dead ReLUs, no biases", unbiased | {"b3": np.full_like(PARAMS["b3"], -100.0)}, X
    sparse = X * (np.arange(3) == 1).reshape(1, 1, 3)
    yield "sparse input", PARAMS, sparse
    yield "one empty sample", unbiased, X * np.array([1, 0, 1]).reshape(3, 1, 1)


@pytest.mark.parametrize("traced", [False, True], ids=["numbers", "traced"])
@pytest.mark.parametrize("name", ZERO_RULES)
def test_zeros(name, traced):
    """Relevance of zeros is finite, and so are its derivatives, hyper-parameters traced or not."""
    rule = ZERO_RULES[name]
    if traced and not jax.tree.leaves(rule):
        rule = relax.Composite(((select.affine, rules.Epsilon()),))

    def run(rule, params, x, noise):
        r = relax.lrp(net, rule)(params, x)
        return jnp.sum(jnp.sin(r) * noise), r

    noise = np.random.default_rng(1).normal(size=X.shape)
    if traced:
        compiled = jax.jit(jax.grad(run, argnums=(0, 1, 2), has_aux=True))
        rule = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), rule)
        explain = functools.partial(compiled, rule)
    else:
        fixed = lambda params, x, noise: run(rule, params, x, noise)
        explain = jax.jit(jax.grad(fixed, argnums=(0, 1), has_aux=True))
    wrong = []
    for situation, params, x in zeros():
        gradients, result = explain(params, x, noise)
        if not np.isfinite(result).all():
            wrong.append(f"{situation}: relevance")
        if not all(np.isfinite(g).all() for g in jax.tree.leaves(gradients)):
            wrong.append(f"{situation}: derivative")
    assert not wrong


@half
@pytest.mark.parametrize("name", ZERO_RULES)
def test_zeros_in_half_precision(name, dtype):
    """Relevance of zeros is finite in half types, where 1 / epsilon may exceed the range."""
    explain = jax.jit(relax.lrp(net, ZERO_RULES[name]))
    wrong = [
        situation
        for situation, params, x in zeros()
        if not jnp.isfinite(explain(*cast((params, x), dtype))).all()
    ]
    assert not wrong


@half
@pytest.mark.parametrize("name", WITH_EPSILON)
def test_any_seed_on_zeros_in_half_precision(name, dtype):
    """Relevance that arrives at outputs that are exactly zero: s = R / epsilon is huge."""
    w = np.random.default_rng(2).normal(size=(32, 16))
    r = cast(np.full((2, 16), 100.0), dtype)
    for x in (np.zeros((2, 32)), np.full((2, 32), 1e-7)):
        function = lambda x: x @ jnp.asarray(w, dtype)
        _, relprop = relax.vrp(function, cast(x, dtype), rules=getattr(rules, name)())
        assert jnp.isfinite(relprop(r)[0]).all()
