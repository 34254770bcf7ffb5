"""Scans over layers and checkpoints as the frameworks write them, against a loop."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import relax
from relax import composites, rules

DEPTH, WIDTH = 3, 4
RULES = {
    "ZPlus": rules.ZPlus(),
    "attnlrp": composites.attnlrp(),
}


def rest(x, dense):
    return x + jax.nn.gelu(dense(x))


def loop(kernels, biases, x):
    """The oracle: bare JAX, layer by layer."""
    for i in range(DEPTH):
        x = rest(x, lambda x, i=i: x @ kernels[i] + biases[i].reshape(1, -1))
    return x


def by_nnx(remat):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            return rest(x, self.dense)

    class Net(nnx.Module):
        def __init__(self, rngs):
            make = nnx.vmap(Block, in_axes=(0,), out_axes=0)
            self.blocks = nnx.split_rngs(splits=DEPTH)(make)(rngs)

        def __call__(self, x):
            run = lambda x, block: block(x)
            run = nnx.remat(run) if remat else run
            return nnx.scan(run, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    dense = state["blocks"]["dense"]
    function = lambda state, x: nnx.merge(graph, state)(x)
    return function, state, dense["kernel"][...], dense["bias"][...]


def by_haiku(remat):
    def network(x):
        block = lambda x: rest(x, hk.Linear(WIDTH))
        return hk.experimental.layer_stack(DEPTH)(hk.remat(block) if remat else block)(x)

    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), jnp.ones((2, WIDTH)))
    (own,) = params.values()
    return model.apply, params, own["w"], own["b"]


def by_equinox(remat):
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(WIDTH, WIDTH, key=key))
    arrays, static = eqx.partition(make(jax.random.split(jax.random.key(0), DEPTH)), eqx.is_array)

    def function(arrays, x):
        def step(x, layer):
            return rest(x, jax.vmap(eqx.combine(layer, static))), None

        step = eqx.filter_checkpoint(step) if remat else step
        return lax.scan(step, x, arrays)[0]

    return function, arrays, arrays.weight.swapaxes(1, 2), arrays.bias


@pytest.mark.parametrize(
    "remat",
    [
        pytest.param(False, id="plain", marks=pytest.mark.slow),
        pytest.param(True, id="checkpoint"),
    ],
)
@pytest.mark.parametrize("made", [by_nnx, by_haiku, by_equinox], ids=lambda f: f.__name__)
def test_equal_to_a_loop_over_the_layers(made, remat, rng):
    x = jnp.asarray(rng.normal(size=(2, WIDTH)))
    with jax.numpy_rank_promotion("allow"):
        function, params, kernels, biases = made(remat)
        for name, rule in RULES.items():
            score = lambda f, r=rule: lambda *a: jnp.sin(relax.lrp(f, r)(*a)).sum()
            got = jax.jit(relax.lrp(function, rule))(params, x)
            expected = relax.lrp(lambda x: loop(kernels, biases, x), rule)(x)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=name)
            slope = jax.jit(jax.grad(score(function), 1))(params, x)
            oracle = jax.grad(score(lambda x: loop(kernels, biases, x)))(x)
            np.testing.assert_allclose(slope, oracle, rtol=1e-4, atol=1e-5, err_msg=name)


def test_shardings_survive_a_scan(rng):
    """The batch stays where it is, through a scan over layers under checkpoint."""
    mesh = jax.make_mesh((4,), ("data",))
    sharding = NamedSharding(mesh, P("data"))
    kernels = jnp.asarray(rng.normal(size=(DEPTH, WIDTH, WIDTH)))
    x = jax.device_put(jnp.asarray(rng.normal(size=(8, WIDTH))), sharding)

    def function(w, x):
        step = jax.checkpoint(lambda x, w: (x + jnp.tanh(x @ w), None))
        return lax.scan(step, x, w)[0]

    explain = jax.jit(relax.lrp(function, rules.ZPlus()))
    got = explain(kernels, x)
    assert got.sharding.is_equivalent_to(sharding, got.ndim)
    alone = relax.lrp(function, rules.ZPlus())(kernels, np.asarray(x))
    np.testing.assert_allclose(got, alone, rtol=1e-10)
