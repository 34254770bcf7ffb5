"""The column `cost` of docs/methods.md: FLOPs of the compiled program by those of the gradient."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cost import network, shapes

from relax import methods

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
COSTS = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| `([^`]+)` \|", PAGE, flags=re.MULTILINE))
KEY = jax.random.key(0)
# All of a loop at a time: the compiler counts the body of a loop once.
SIZES = {"steps": 6, "samples": 6, "windows": 16, "orders": 1, "groups": 16, "batch": 2}
REGIONS = np.arange(1024).reshape(32, 32, 1) // 64
SETTINGS = {
    "integrated_gradients": {"steps": 6, "batch_size": 6},
    "smoothgrad": {"key": KEY, "samples": 6, "batch_size": 6},
    "occlusion": {"window": 8, "batch_size": 16},
    "shapley_sampling": {"key": KEY, "permutations": 1, "groups": REGIONS, "batch_size": 17},
    "random": {"key": KEY},
}


def block(p, x):
    """Attention, for rollout."""
    weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", x @ p["q"], x @ p["k"]))
    x = x + jnp.einsum("nqk,nkd->nqd", weights, x @ p["v"])
    return jax.nn.relu(x @ p["up"])[:, 0] @ p["down"]


def shapes_of_block():
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    wide = {"up": shape(64, 256), "down": shape(256, 10)}
    return dict.fromkeys("qkv", shape(64, 64)) | wide, shape(2, 32, 64)


def flops(function, arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis().get("flops", 0.0)


@functools.cache
def of_gradient(fun, arguments):
    return flops(methods.gradient(fun, target=0), arguments())


def patterned(method):
    def explain(fun, target):
        return lambda p, x, patterns: method(fun, patterns=patterns, target=target)(p, x)

    return explain


def test_every_method_has_a_price():
    assert set(COSTS) == set(methods.__all__) - {"fit_patterns"}


HEAVY = (
    "smoothgrad",
    "occlusion",
    "deep_taylor",
    "deep_taylor_bounded",
    "pattern_net",
    "deconvnet",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in COSTS]
)
def test_price(name):
    """To 6 percent of what the page says, in numbers of gradients."""
    fun, arguments, extra = network, shapes, ()
    explain = functools.partial(getattr(methods, name), **SETTINGS.get(name, {}))
    if name == "attention_rollout":
        fun, arguments = block, shapes_of_block
        explain = functools.partial(explain, position=0)
    if name.startswith("pattern_"):
        fit = lambda p, x: methods.fit_patterns(network, p, data=[x])
        explain, extra = patterned(explain), (jax.eval_shape(fit, *shapes()),)
    counted = flops(explain(fun, target=0), (*arguments(), *extra))
    told = eval(COSTS[name], {}, SIZES)
    np.testing.assert_allclose(counted / of_gradient(fun, arguments), told, rtol=0.06, atol=0.02)
