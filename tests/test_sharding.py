"""Sharded arrays on four devices: relevance is what one device gives, and stays where x is."""

import subprocess
import sys

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
SOME = [
    pytest.param(n, marks=() if n in ("ZPlus", "Flat", "bias_share") else pytest.mark.slow)
    for n in RULES
]
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


@pytest.mark.parametrize("name", SOME)
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


@pytest.mark.more
def test_resharding_moves_data(params, x):
    """`reshard` hands relevance on as it is."""

    def model(p, x):
        return network(p, jax.sharding.reshard(x, P("data")))

    with jax.set_mesh(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))):
        close(
            relax.lrp(model, rules.Flat())(params, x), relax.lrp(network, rules.Flat())(params, x)
        )


def block(p, x, add_up):
    """A feed-forward block whose hidden features are spread over devices by ``add_up``."""
    h = x @ p["w"] + p["b"].reshape(1, 1, -1)
    mean = add_up(h.sum(-1, keepdims=True)) / 8
    h = (h - mean) / jnp.sqrt(add_up(((h - mean) ** 2).sum(-1, keepdims=True)) / 8 + 1e-5)
    e = jnp.exp(h)
    h = jax.nn.relu(h) * (e / add_up(e.sum(-1, keepdims=True)))
    return x + jnp.tanh(add_up(h @ p["v"]) + p["c"].reshape(1, 1, -1))


BLOCK = {"w": (4, 8), "b": (8,), "v": (8, 4), "c": (4,)}
BLOCK_SPECS = {"w": P(None, "model"), "b": P("model"), "v": P("model", None), "c": P(None)}


def inside(check, over_layers=False):
    """The block, tensor parallel over two devices and its batch over two more."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {"in_specs": (BLOCK_SPECS, P("data")), "out_specs": P("data"), "check_vma": check}
    body = lambda p, x: block(p, x, lambda v: lax.psum(v, "model"))
    mapped = jax.shard_map(body, mesh=mesh, **specs)
    if not over_layers:
        return mapped
    return lambda p, x: lax.scan(lambda x, _: (jax.checkpoint(mapped)(p, x), None), x, None, 2)[0]


INSIDE = {
    **RULES,
    "Epsilon 0.1": rules.Epsilon(0.1),
    "share": rules.Epsilon(0.1, bias_share=0.5),
    "attnlrp": composites.attnlrp(),
    "cp_lrp": composites.cp_lrp(),
}


@pytest.fixture
def block_params(rng):
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in BLOCK.items()}


QUICK = ("Epsilon 0.1", "share", "AlphaBeta", "Flat", "attnlrp", "cp_lrp")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in INSIDE],
)
def test_shard_map_inside_of_the_function(name, block_params, x):
    """A layer is the sum over all devices, and so are softmax and normalization."""
    whole = lambda p, x: block(p, x, lambda v: v)
    expected = jax.jit(relax.lrp(whole, INSIDE[name]))(block_params, x)
    for check in (True, False):
        got = jax.jit(relax.lrp(inside(check), INSIDE[name]))(block_params, x)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
    kinds = lambda f: [row.kind for row in relax.layers(f, INSIDE[name])(block_params, x)]
    assert kinds(inside(True)) == kinds(whole)


@pytest.mark.more
@pytest.mark.parametrize(
    "name",
    [
        "attnlrp",
        pytest.param("share", marks=pytest.mark.slow),
        pytest.param("Gamma", marks=pytest.mark.slow),
    ],
)
def test_derivatives_and_vmap_through_a_shard_map(name, block_params, x):
    whole = lambda p, x: block(p, x, lambda v: v)

    def loss(function):
        return lambda p, x: jnp.sin(relax.lrp(function, INSIDE[name])(p, x)).sum()

    for way in (jax.grad, lambda f, n: jax.vmap(jax.grad(f, n), (None, 0))):
        batch = x if way is jax.grad else jnp.stack([x, 2 * x])
        expected = jax.jit(way(loss(whole), (0, 1)))(block_params, batch)
        got = jax.jit(way(loss(inside(True)), (0, 1)))(block_params, batch)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.more
def test_shard_map_in_a_scan_under_checkpoint(block_params, x):
    whole = lambda p, x: block(p, block(p, x, lambda v: v), lambda v: v)
    got = jax.jit(relax.lrp(inside(True, over_layers=True), rules.Gamma()))(block_params, x)
    np.testing.assert_allclose(got, relax.lrp(whole, rules.Gamma())(block_params, x), rtol=1e-9)


CELLS = {
    "spread over samples": lambda p, x, h, s: jnp.tanh(x @ p["a"] + h @ p["k"] + p["c"]),
    "bias first": lambda p, x, h, s: jnp.tanh((x @ p["a"] + p["c"]) + h @ p["k"]),
    "spread over features": lambda p, x, h, s: jnp.tanh(s(x @ p["a"] + h @ p["k"]) + p["c"]),
    "one sum each": lambda p, x, h, s: jnp.tanh(s(x @ p["a"]) + s(h @ p["k"]) + p["c"]),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    "rule",
    [
        "share",
        "ZPlus",
        *(pytest.param(r, marks=pytest.mark.slow) for r in ("Epsilon 0.1", "Gamma")),
    ],
)
def test_a_recurrent_cell_over_devices(name, rule, rng):
    """One layer of two inputs, its bias and the sum over devices included."""
    mesh = jax.make_mesh((4,), ("m",), axis_types=(AxisType.Auto,))
    p = {"a": rng.normal(size=(4, 6)), "k": rng.normal(size=(8, 6)), "c": rng.normal(size=(1, 6))}
    x, h = rng.normal(size=(4, 4)), rng.normal(size=(4, 8))
    over_features = name in ("spread over features", "one sum each")
    add_up = lambda v: lax.psum(v, "m") if over_features else v
    own = P(None, "m") if over_features else P("m")
    weights = {"a": P("m"), "k": P("m"), "c": P()} if over_features else P()
    mapped = jax.shard_map(
        lambda p, x, h: CELLS[name](p, x, h, add_up),
        mesh=mesh,
        in_specs=(weights, own, own),
        out_specs=P() if over_features else P("m"),
    )
    whole = lambda p, x, h: CELLS[name](p, x, h, lambda v: v)
    got = jax.jit(relax.lrp(mapped, INSIDE[rule], argnums=(1, 2)))(p, x, h)
    expected = relax.lrp(whole, INSIDE[rule], argnums=(1, 2))(p, x, h)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.more
def test_the_first_use_may_stand_inside_of_a_mesh():
    """In a process of its own: what relax loads on first use does not see the user's mesh."""
    code = """
import jax, jax.numpy as jnp, relax
from jax.sharding import AxisType, PartitionSpec as P
mesh = jax.make_mesh((4,), ("m",), axis_types=(AxisType.Auto,))
f = relax.lrp(jnp.tanh)
print(jax.shard_map(f, mesh=mesh, in_specs=P("m"), out_specs=P("m"))(jnp.arange(4.0))[0])
with jax.set_mesh(mesh):
    print(relax.lrp(jnp.tanh)(jnp.arange(4.0))[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0.0", "0.0"], done.stderr


def test_moves_between_devices(x):
    """all_gather, ppermute, all_to_all and reduce_scatter hand relevance on; pmean shares it."""
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))

    def body(x):
        x = lax.ppermute(x, "i", [(i, (i + 1) % 4) for i in range(4)])
        every = lax.all_gather(x, "i", tiled=True)
        own = lax.psum_scatter(every * lax.axis_index("i"), "i", tiled=True)
        turned = lax.all_to_all(x.reshape(1, 4, 5), "i", 1, 0, tiled=True).reshape(1, 5, 4)
        return own + turned * lax.pmean(x, "i")

    mapped = jax.shard_map(body, mesh=mesh, in_specs=P("i"), out_specs=P("i"))

    def oracle(x):
        x = jnp.roll(x, 1, 0)
        return 6 * x + x.reshape(4, 4, 5).swapaxes(0, 1).reshape(4, 5, 4) * x.mean(0, keepdims=True)

    close(jax.jit(mapped)(x), oracle(x))
    close(jax.jit(relax.lrp(mapped, rules.Epsilon()))(x), relax.lrp(oracle, rules.Epsilon())(x))


@pytest.mark.more
def test_names_of_mapped_axes(rng):
    """Collectives under vmap, around lrp and inside of the function."""
    w, x = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(5, 4)))

    def one(x):
        z = x @ w
        z = (z - lax.pmean(z, "i")) / jnp.sqrt(lax.pmean(z**2, "i") + 1e-3)
        return z + lax.all_gather(jnp.tanh(x @ w), "i").sum(0)

    def oracle(x):
        z = x @ w
        centered = z - z.mean(0, keepdims=True)
        z = centered / jnp.sqrt((z**2).mean(0, keepdims=True) + 1e-3)
        return z + jnp.tanh(x @ w).sum(0, keepdims=True)

    for rule in (rules.Epsilon(0.1), rules.ZPlus()):
        expected = relax.lrp(oracle, rule)(x)
        close(relax.lrp(lambda x: jax.vmap(one, axis_name="i")(x), rule)(x), expected)
        close(jax.jit(jax.vmap(relax.lrp(one, rule), axis_name="i"))(x), expected)


def test_latent_relevance_inside_of_a_shard_map_is_refused(block_params, x):
    with pytest.raises(relax.ArgumentError, match=r"inside of a shard_map.*test_sharding\.py"):
        relax.lrp(inside(True), at="tanh")(block_params, x)
