"""Derivatives of relevance, against finite differences of Zennit's own relevances.

The record is ours, ``tests/data/zennit_gradient.json`` (see ``tests/record/zennit_gradient.py``).
It holds as well what `torch.autograd` gives through Zennit: it is right for the input if relevance
starts with the logit, and silently wrong or missing everywhere else.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import rules

RECORD = json.loads((Path(__file__).parent / "data" / "zennit_gradient.json").read_text())
ARRAYS = jax.tree.map(
    np.asarray, RECORD, is_leaf=lambda x: isinstance(x, list) and x and not isinstance(x[0], dict)
)
RULES = {
    "epsilon": rules.Epsilon(0.1),
    "zplus": rules.ZPlus(),
    "gamma": rules.Gamma(0.25),
    "alphabeta": rules.AlphaBeta(2.0, 1.0),
}


def network(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"].T + layer["b"][None])
    return x @ layers[-1]["w"].T + layers[-1]["b"][None]


def relevance(rule, start, layers, x):
    target = 1 if start == "logit" else lambda z: jnp.zeros_like(z).at[:, 1].set(1.0)
    return relax.lrp(network, rule, target=target)(layers, x)


@pytest.mark.parametrize("case", RECORD["cases"])
def test_derivatives_of_relevance(case):
    """Relevance to 1e-6 as Zennit's; its derivatives as the differences of Zennit's relevances."""
    name, start = case.split(", ")
    layers, x, recorded = ARRAYS["layers"], ARRAYS["x"], ARRAYS["cases"][case]
    found = relevance(RULES[name], start, layers, x)
    np.testing.assert_allclose(found, recorded["relevance"], rtol=1e-6, atol=1e-9)
    loss = lambda layers, x: jnp.sum(ARRAYS["direction"] * relevance(RULES[name], start, layers, x))
    by_layers, by_x = jax.jit(jax.grad(loss, (0, 1)))(layers, x)
    along = lambda slopes, steps: sum(
        np.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (slopes, steps)), strict=True)
    )
    for slopes, steps, which in ((by_x, "step", "x"), (by_layers, "steps", "parameters")):
        want = recorded[which]["difference"]
        np.testing.assert_allclose(along(slopes, ARRAYS[steps]), want, rtol=1e-5, atol=1e-8)


def test_what_autograd_gives_through_zennit():
    """As docs/training.md says: right in 4 of 16 cases, silently wrong or nothing in the others."""
    outcomes = []
    for case, recorded in RECORD["cases"].items():
        for which in ("x", "parameters"):
            given, want = recorded[which]["autograd"], recorded[which]["difference"]
            right = isinstance(given, float) and abs(given - want) < 1e-5 * abs(want)
            assert right == (which == "x" and case.endswith("logit"))
            outcomes.append("right" if right else "wrong" if isinstance(given, float) else given)
    assert outcomes.count("right") == 4
