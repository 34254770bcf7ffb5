"""What all composites share: preprocessing inside the model, and the exactness of sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import composites, rules, select

NAMES = [name for name in composites.__all__ if name != "Composite"]
MODIFIED_GRADIENTS = ("guided_backprop", "deconvnet", "beta_smooth")
FOR_TEXT = ("attnlrp", "cp_lrp")  # what is added to an embedding is a position, and has its share


def network(params, x):
    kernel, weight = params
    numbers = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(x).mean((1, 2)) @ weight


@pytest.fixture
def params(rng):
    return rng.normal(size=(3, 3, 3, 4)), rng.normal(size=(4, 5))


WRITINGS = {
    "scale, shift": lambda x: x / 127.5 - 1.0,
    "shift, scale": lambda x: (x - 127.5) / 127.5,
    "per channel": lambda x: (x - np.array([120.0, 110, 100]).reshape(1, 1, 1, 3)) / 60.0,
    "a batch norm": lambda x: (
        x * jnp.array([0.02, -0.01, 0.03]).reshape(1, 1, 1, 3) + jnp.ones((1, 1, 1, 3))
    ),
    "mean picture, channels first": lambda x: (
        x.transpose(0, 3, 1, 2) - jnp.linspace(90, 140, 48).reshape(1, 3, 4, 4)
    ).transpose(0, 2, 3, 1),
}


@pytest.mark.parametrize("writing", WRITINGS)
@pytest.mark.parametrize("name", [n for n in NAMES if n not in MODIFIED_GRADIENTS + FOR_TEXT])
def test_preprocessing_inside_the_model_makes_no_difference(rng, params, name, writing):
    """Raw pixels get the relevance of the preprocessed ones."""
    prepare, rule = WRITINGS[writing], getattr(composites, name)()
    pixels = rng.uniform(0, 255, size=(2, 4, 4, 3))
    inside = relax.lrp(lambda p, x: network(p, prepare(x)), rule, target=1)(params, pixels)
    outside = relax.lrp(network, rule, target=1)(params, prepare(pixels))
    np.testing.assert_allclose(inside, outside, rtol=1e-9, atol=1e-12)


def test_preprocessing_ends_at_the_first_layer(rng, params):
    """A batch norm further up, which no layer precedes directly, is none."""

    def model(params, x):
        x = lax.conv_general_dilated(
            x - 0.5, params[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x) * params[2] + params[3]
        return x.mean((1, 2)) @ params[1]

    more = (*params, rng.normal(size=(1, 1, 1, 4)), rng.normal(size=(1, 1, 1, 4)))
    plan = relax.layers(model, composites.epsilon_plus())(more, rng.normal(size=(2, 4, 4, 3)))
    rule_of = [type(row.rule) for row in plan if row.kind == "scale_shift"]
    assert rule_of == [rules.Pass, rules.Linear]
    found = relax.layers(model, [(select.preprocessing, rules.Pass())])(more, np.ones((2, 4, 4, 3)))
    assert [row.kind for row in found if isinstance(row.rule, rules.Pass)] == [
        "scale_shift",
        "activation",
    ]


@pytest.mark.parametrize("ending", ["sum", "mean", "dense"])
def test_relevance_given_from_outside_is_conserved_exactly(rng, ending):
    """`vrp` on a network that ends in a sum or mean loses nothing on becoming a coefficient."""
    v, w = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    ends = {
        "sum": lambda x: x @ v + x @ w,
        "mean": lambda x: (x @ v).reshape(-1, 4, 2).mean(-1),
        "dense": lambda x: jax.nn.relu(x @ v) @ w.T,
    }
    value, relprop = relax.vrp(ends[ending], rng.normal(size=(3, 6)), rules=rules.Epsilon(0.0))
    given = rng.normal(size=value.shape)
    np.testing.assert_allclose(relprop(given)[0].sum(-1), given.sum(-1), rtol=0, atol=1e-10)
