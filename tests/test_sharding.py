"""Sharded arrays on four devices: relevance is what one device gives, and stays where x is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import relax
from relax import composites, rules, select

RULES = {
    "Epsilon": rules.Epsilon(),
    "bias_share": rules.Epsilon(bias_share=1.0),
    "ZPlus": rules.ZPlus(),
    "AlphaBeta": rules.AlphaBeta(),
    "Gamma": rules.Gamma(),
    "Flat": rules.Flat(),
    "WSquare": rules.WSquare(),
    "ZBox": rules.ZBox(-3.0, 3.0),
    "sums": [(select.sums, rules.Norm()), composites.epsilon_plus_flat()],
}
SHAPES = {"w": (4, 6), "b": (6,), "v": (6, 3), "k": (3, 6, 6)}


@pytest.fixture
def params(rng):
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(4, 5, 4)))


def network(p, x):
    x = jnp.tanh(x @ p["w"] + p["b"].reshape(1, 1, -1))
    x = x + jax.nn.relu(
        lax.conv_general_dilated(x, p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    )
    return (x.mean(1) + x.max(1)) @ p["v"]


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_constraints_on_automatic_axes(name, params, x):
    """GSPMD shards the program; a sharding constraint is no obstacle."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("data"))
    model = lambda p, x: network(p, lax.with_sharding_constraint(x, sharding))
    explain = jax.jit(relax.lrp(model, RULES[name], target=1))
    got = explain(params, jax.device_put(x, sharding))
    assert got.sharding.is_equivalent_to(sharding, got.ndim)
    close(got, relax.lrp(network, RULES[name], target=1)(params, x))


FAST = ("Epsilon", "Flat", "sums")  # compiling for four devices takes its time
FIRST = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RULES]


@pytest.mark.parametrize("name", FIRST)
def test_explicit_axes_and_shard_map(name, params, x):
    """With sharding in the types, and mapped by hand over the devices."""
    explain = relax.lrp(network, RULES[name], target=1)
    expected = explain(params, x)
    with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))):
        sharded = jax.device_put(x, P("data"))
        got = explain(params, sharded)
        assert jax.typeof(got).sharding.spec == P("data", None, None)
        close(got, expected)
        specs = {"in_specs": (P(), P("data")), "out_specs": P("data")}
        close(jax.jit(jax.shard_map(explain, **specs))(params, sharded), expected)
        if name == "Flat":  # and without jit, where every operation is sent to the devices
            close(jax.shard_map(explain, **specs)(params, sharded), expected)


def test_latent_relevance_keeps_its_sharding(params, x):
    with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))):
        explain = relax.lrp(network, target=1, at="conv")
        _, latent = explain(params, jax.device_put(x, P("data")))
    assert latent["conv"].shape == (4, 5, 6)
    close(latent["conv"], relax.lrp(network, target=1, at="conv")(params, x)[1]["conv"])


def test_resharding_moves_data(params, x):
    """`reshard` hands relevance on as it is."""

    def model(p, x):
        return network(p, jax.sharding.reshard(x, P("data")))

    with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))):
        close(
            relax.lrp(model, rules.Flat())(params, x), relax.lrp(network, rules.Flat())(params, x)
        )
