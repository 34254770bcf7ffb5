"""One small network in bare JAX, which the tests of the adapters build in each framework."""

import jax
import jax.numpy as jnp
import numpy as np

import relax
from relax import rules, select

EPS = 1e-3
SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "norm": {"scale": (4,), "bias": (4,), "mean": (4,), "var": (4,)},
    "hidden": {"kernel": (4, 5), "bias": (5,)},
    "head": {"kernel": (5, 3), "bias": (3,)},
}
RULES = [
    (select.first, rules.ZBox(-4.0, 4.0)),
    ("*hidden*", rules.Gamma(0.25)),
    (select.dense, rules.Epsilon(0.1)),
]


def weights(seed=0):
    rng = np.random.default_rng(seed)
    positive = ("scale", "var")
    draw = lambda name, shape: (
        rng.uniform(0.5, 2.0, shape) if name in positive else rng.normal(size=shape)
    )
    return {
        layer: {name: draw(name, shape) for name, shape in parts.items()}
        for layer, parts in SHAPES.items()
    }


def sample(count=4):
    return np.random.default_rng(1).normal(size=(count, 6, 6, 2)).clip(-4, 4)


def bare(w, x):
    """Convolution, BatchNorm by its statistics, mean over the picture, two dense layers."""
    along = lambda a, y: jnp.broadcast_to(a, y.shape)
    c, n = w["conv"], w["norm"]
    y = jax.lax.conv_general_dilated(
        x, c["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = y + along(c["bias"], y)
    y = (y - along(n["mean"], y)) * along(n["scale"] / jnp.sqrt(n["var"] + EPS), y)
    y = jax.nn.relu(y + along(n["bias"], y)).mean((1, 2))
    for name in ("hidden", "head"):
        y = y @ w[name]["kernel"]
        y = y + along(w[name]["bias"], y)
        y = jax.nn.relu(y) if name == "hidden" else y
    return y


def explained(f, params, x, chosen=RULES):
    """Value, and relevance of output 1, under rules that tell the layers apart."""
    return jax.jit(relax.value_and_lrp(f, chosen, target=1))(params, x)


def is_a_jax_function(f, params, x, other, rtol=1e-9):
    """Under jit, vmap and grad; read from params alone; traced once for both params."""
    traced = []

    def counted(params, x):
        traced.append(1)
        return f(params, x)

    explain = jax.jit(relax.lrp(counted, target=1))
    want, once = explain(params, x), len(traced)
    tolerance = {"rtol": rtol, "atol": rtol * float(jnp.abs(want).max())}
    changed = explain(other, x)
    explain(params, x + 1)
    assert len(traced) == once
    assert not np.allclose(changed, want, rtol=0.1)
    afresh = jax.jit(relax.lrp(f, target=1))
    np.testing.assert_allclose(afresh(other, x), changed, **tolerance)
    each = jax.jit(jax.vmap(relax.lrp(f, target=1), (None, 0)))(params, x[:, None])
    np.testing.assert_allclose(each[:, 0], want, **tolerance)

    @jax.jit
    def around(x, step):
        one = lambda x: f(params, x)[:, 1].sum()
        return (jax.grad(one)(x) * step).sum(), one(x + step) - one(x - step)

    step = np.random.default_rng(2).normal(size=x.shape).astype(x.dtype) * 1e-3
    slope, rise = around(x, step)
    np.testing.assert_allclose(2 * slope, rise, rtol=2e-2)
    through = jax.jit(jax.grad(lambda p: (relax.lrp(f, target=1)(p, x) ** 2).sum()))(params)
    leaves = jax.tree.leaves(through)
    assert len(leaves) == len(jax.tree.leaves(params))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert sum(bool(np.any(leaf != 0)) for leaf in leaves) > len(leaves) / 2
