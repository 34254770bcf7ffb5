"""Where relevance goes that does not arrive: an account of a transformer, layer by layer.

What reaches the input, and what softmax, biases and stabilizers keep, add up to the value.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import composites


@pytest.fixture
def params(rng):
    shapes = dict.fromkeys(("q", "k", "v", "out", "head"), (4, 4)) | {"b": (1, 4), "c": (1, 4)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def block(p, x):
    y = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    with jax.named_scope("scores"):
        scores = (y @ p["q"]) @ (y @ p["k"]).T
    with jax.named_scope("weights"):
        weights = jax.nn.softmax(scores)
    with jax.named_scope("out"):
        z = (weights @ (y @ p["v"])) @ p["out"] + p["b"]
    with jax.named_scope("head"):
        return (x + z).mean(0, keepdims=True) @ p["head"] + p["c"]


def test_attnlrp_accounts_for_every_bit(params, rng):
    """value = relevance of x + softmax + both biases, each from the latent relevance alone."""
    x = rng.normal(size=(5, 4))
    value = block(params, x)
    relevance, latent = relax.lrp(block, composites.attnlrp(), at="*")(params, x)
    at = lambda end: next(np.asarray(r).sum() for path, r in latent.items() if path.endswith(end))
    weights_out = next(r for path, r in latent.items() if path.endswith("weights/softmax"))
    scores_out = next(r for path, r in latent.items() if path == "scores/dot_general")
    kept_by_softmax = float(weights_out.sum() - scores_out.sum())
    head = np.asarray(jax.grad(lambda p: block(p, x).sum())(params)["c"])
    kept_by_head = float((head * params["c"]).sum())
    gradient = jax.grad(lambda b: block(params | {"b": b}, x).sum())(params["b"])
    kept_by_out = float((gradient * params["b"]).sum())
    assert at("head") == pytest.approx(float(value.sum()), rel=1e-12)
    assert abs(kept_by_softmax) > 1e-2
    total = float(relevance.sum()) + kept_by_softmax + kept_by_head + kept_by_out
    assert total == pytest.approx(float(value.sum()), abs=1e-10)


def test_cp_lrp_loses_to_biases_alone(params, rng):
    """Without the softmax's share; and without biases nothing at all."""
    x = rng.normal(size=(5, 4))
    explain = relax.value_and_lrp(block, composites.cp_lrp())
    value, relevance = explain(params, x)
    assert abs(float(value.sum() - relevance.sum())) > 1e-2
    bare = params | {"b": 0 * params["b"], "c": 0 * params["c"]}
    value, relevance = explain(bare, x)
    assert float(relevance.sum()) == pytest.approx(float(value.sum()), abs=1e-10)
