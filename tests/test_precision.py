"""Half precision, and exact zeros: finite everywhere, and as close as the type allows.

How close that is, the model itself says: with every parameter and input of the float32 model
changed at random by at most one rounding of the half type, ``finfo(dtype).eps / 2`` relative, the
relevance moves by some amount. Half precision rounds after every operation, too, so ``ROUNDINGS``
such changes are allowed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_table_transformer as transformer
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
# float16, whose range is the smaller one; bfloat16 among the slow tests
narrowest = pytest.mark.parametrize(
    "dtype",
    [pytest.param(d, marks=() if d == jnp.float16 else pytest.mark.slow) for d in HALF],
    ids=lambda dtype: dtype.__name__,
)


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


@functools.cache
def programs(network, name):
    """Relevance under a rule, and its largest change by single roundings of the given size."""
    rule = (COMPOSITES | SINGLE)[name]()

    def explain(params, x):
        return relax.lrp(network, rule, target="max")(params, x)

    @jax.jit
    def reference(params, x, eps):
        leaves, tree = jax.tree.flatten((params, x))

        def changed(key):
            keys = jax.random.split(key, len(leaves))
            draw = lambda k, a: jax.random.uniform(k, a.shape, a.dtype, -1, 1)
            moved = [a * (1 + eps * draw(k, a)) for k, a in zip(keys, leaves, strict=True)]
            return explain(*jax.tree.unflatten(tree, moved))

        expected = explain(params, x)
        draws = jax.vmap(changed)(jax.random.split(jax.random.key(0), DRAWS))
        return expected, jnp.abs(draws - expected[None]).max()

    return jax.jit(explain), reference


@narrowest
@pytest.mark.parametrize("network", [mlp, pytest.param(conv_net, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", COMPOSITES | SINGLE)
def test_half_precision(name, network, dtype):
    """In half types relevance is finite and as close to float32 as single roundings allow."""
    explain, reference = programs(network, name)
    eps = np.float32(jnp.finfo(dtype).eps / 2)
    for scale in (1e-3, 1.0, 1e3):
        x = scale * np.random.default_rng(6).normal(size=(3, 8, 4))
        rounded = cast((half_params(scale), x), dtype)
        got = explain(*rounded)
        assert got.dtype == dtype
        assert jnp.isfinite(got).all()
        expected, moved = reference(*cast(rounded, jnp.float32), eps)
        error = jnp.abs(got.astype(jnp.float32) - expected).max()
        # Below its smallest normal number the type itself loses digits.
        assert 0 < error <= ROUNDINGS * moved + x.size * float(jnp.finfo(dtype).tiny)


@narrowest
@pytest.mark.parametrize("name", [*SINGLE, "BetaSmooth", "Rescale", "Mask"])
def test_half_precision_with_wider_hyperparameters(name, dtype):
    """Hyper-parameters may have a wider type than the model; the relevance has the model's."""
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
    **{name: getattr(rules, name)() for name in WITH_EPSILON},
    **{f"{name}(epsilon=0)": getattr(rules, name)(epsilon=0.0) for name in WITH_EPSILON},
    **{
        f"{name} {stabilizer}": getattr(rules, name)(stabilizer=stabilizer)
        for name in ("Epsilon", "ZPlus", "Gamma")
        for stabilizer in ("clip", "scale")
    },
    **{
        f"{upper} over {name}": relax.Composite(
            ((select.first, getattr(rules, name)()), (select.affine, getattr(rules, upper)()))
        )
        for upper, name in (
            ("Flat", "Epsilon"),
            ("Flat", "ZPlus"),
            ("Flat", "AlphaBeta"),
            ("Flat", "Gamma"),
            ("WSquare", "Epsilon"),
            ("ZBox", "Epsilon"),
        )
    },
    "Epsilon shares everything": rules.Epsilon(bias_share=1.0),
    **{
        f"{rule!r} on {selector.name}": relax.Composite(((selector, rule),))
        for selector, rule in (
            (select.sums, rules.Norm()),
            (select.sums, rules.Flat()),
            (select.activation, rules.Epsilon(0.0)),
        )
    },
    **{
        name: CATALOG[name]
        for name in CATALOG
        if not isinstance(CATALOG[name], rules.AffineRule)  # those that name their layers
    },
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


def check_zeros(explain):
    """``explain`` gives gradients and relevance; all are finite in every situation."""
    noise = np.random.default_rng(1).normal(size=X.shape)
    wrong = []
    for situation, params, x in zeros():
        gradients, result = explain(params, x, noise)
        if not np.isfinite(result).all():
            wrong.append(f"{situation}: relevance")
        if not all(np.isfinite(g).all() for g in jax.tree.leaves(gradients)):
            wrong.append(f"{situation}: derivative")
    assert not wrong


def zero_loss(rule, params, x, noise):
    r = relax.lrp(net, rule)(params, x)
    return jnp.sum(jnp.sin(r) * noise), r


LONG_ZEROS = list(ZERO_RULES)[1::2]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LONG_ZEROS else ()) for n in ZERO_RULES],
)
def test_zeros(name):
    """Relevance of zeros is finite, and so are its derivatives."""
    fixed = functools.partial(zero_loss, ZERO_RULES[name])
    check_zeros(jax.jit(jax.grad(fixed, argnums=(0, 1), has_aux=True)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in ZERO_RULES if "=0)" not in name and jax.tree.leaves(ZERO_RULES[name])]
)
def test_zeros_with_traced_hyperparameters(name):
    """The same with the rule as an argument, and an epsilon of zero that only the data knows."""
    gradient = jax.jit(jax.grad(zero_loss, argnums=(0, 1, 2), has_aux=True))
    traced = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), ZERO_RULES[name])

    def nullified(path, leaf):
        return leaf * (jax.tree_util.keystr(path[-1:]) != ".epsilon")

    check_zeros(functools.partial(gradient, traced))
    check_zeros(functools.partial(gradient, jax.tree_util.tree_map_with_path(nullified, traced)))


@narrowest
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


@narrowest
@pytest.mark.parametrize("name", WITH_EPSILON)
def test_any_seed_on_zeros_in_half_precision(name, dtype):
    """Relevance that arrives at outputs that are exactly zero: s = R / epsilon is huge."""
    w = np.random.default_rng(2).normal(size=(32, 16))
    r = cast(np.full((2, 16), 100.0), dtype)
    for x in (np.zeros((2, 32)), np.full((2, 32), 1e-7)):
        function = lambda x: x @ jnp.asarray(w, dtype)
        _, relprop = relax.vrp(function, cast(x, dtype), rules=getattr(rules, name)())
        assert jnp.isfinite(relprop(r)[0]).all()


@half
def test_a_rule_of_ones_own_on_zeros_in_half_precision(dtype):
    """A user's rule divides by 1e-6 as well, and does not have to think of the type."""

    @dataclasses.dataclass(frozen=True)
    class Own(rules.AffineRule):
        epsilon: float = 1e-6

        def relevance(self, layer, x, relevance):
            return x * layer.transpose(relevance / rules.stabilize(layer(x), self.epsilon))

    explain = jax.jit(relax.lrp(net, Own()))
    for _, params, x in zeros():
        assert jnp.isfinite(explain(*cast((params, x), dtype))).all()
    _, relprop = relax.vrp(lambda x: x @ jnp.ones((4, 3), dtype), jnp.zeros(4, dtype), rules=Own())
    assert jnp.isfinite(relprop(jnp.full(3, 100, dtype))[0]).all()


# ----------------------------------------------------------------------------------- transformers


@narrowest
@pytest.mark.parametrize(
    "name", ["default", "attnlrp(0)", "cp_lrp", "attnlrp_vit", "LayerNormRule"]
)
def test_a_transformer_in_half_precision(name, dtype):
    """Attention, norms and gates: finite, and as close to float32 as single roundings allow."""
    rule = transformer.CATALOG[name]
    explain = jax.jit(lambda p, x: relax.lrp(transformer.net, rule)(p, x))
    params, x = cast((transformer.PARAMS, transformer.X), dtype)
    got = explain(params, x)
    assert got.dtype == dtype
    assert jnp.isfinite(got).all()
    wide = cast((params, x), jnp.float32)
    expected = explain(*wide)
    leaves, tree = jax.tree.flatten(wide)
    eps, rng = float(jnp.finfo(dtype).eps), np.random.default_rng(0)
    moved = 0.0
    for _ in range(DRAWS):
        changed = [
            a * (1 + eps * rng.uniform(-1, 1, size=a.shape)).astype(np.float32) for a in leaves
        ]
        moved = max(
            moved, float(jnp.abs(explain(*jax.tree.unflatten(tree, changed)) - expected).max())
        )
    assert float(jnp.abs(got.astype(jnp.float32) - expected).max()) <= ROUNDINGS * moved


@half
def test_large_logits_in_half_precision(dtype):
    """Scores near the end of float16's range, and masks beyond it: no NaN."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)) * 60, dtype)
    keep = np.tri(6, dtype=bool)

    def attend(x):
        scores = jnp.where(keep, x @ x.T, jnp.finfo(dtype).min)
        return jax.nn.softmax(scores) @ x

    for rule in (composites.attnlrp(), composites.cp_lrp(), rules.Epsilon()):
        assert jnp.isfinite(jax.jit(relax.lrp(attend, rule))(x)).all()
