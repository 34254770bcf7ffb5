"""The two primitives of our own: bit for bit the identity, and what they save in a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from relax._order import after, kept

BOTH = pytest.mark.parametrize(
    "function", [lambda x: after(x, jnp.cos(x)), kept], ids=["after", "kept"]
)
VALUES = jnp.array([[-0.0, 1.5, jnp.nan], [jnp.inf, -jnp.inf, 1e-310]])


@BOTH
@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, jax.jit, jax.vmap, jax.checkpoint],
    ids=["plain", "jit", "vmap", "checkpoint"],
)
def test_the_value_bit_for_bit(function, wrap):
    """Zeros of either sign, infinities, NaN and denormal numbers."""
    same = np.asarray(wrap(function)(VALUES)).view(np.int64)
    np.testing.assert_array_equal(same, np.asarray(VALUES).view(np.int64))


@BOTH
def test_derivatives_are_those_of_the_identity(function):
    """Forward, backward, transposed, twice, and in a scan."""
    x = jnp.arange(1.0, 4.0)
    cube = lambda x: jnp.sum(function(x) ** 3)
    np.testing.assert_allclose(jax.grad(cube)(x), 3 * x**2)
    np.testing.assert_allclose(jax.jit(jax.hessian(cube))(x), jnp.diag(6 * x))
    np.testing.assert_allclose(jax.jvp(function, (x,), (2 * x,))[1], 2 * x)
    loop = lambda x: jnp.sum(lax.scan(lambda x, _: (function(x) * x, None), x, None, 2)[0])
    np.testing.assert_allclose(jax.grad(loop)(x), 4 * x**3)


def test_a_value_that_all_samples_share_stays_one():
    """The token of a batch makes no batch of a weight; a batch of weights stays where it stands."""
    weight, tokens = jnp.ones((3, 4)), jnp.ones((5, 2))
    shared = jax.vmap(after, (None, 0), None)(weight, tokens)
    assert shared.shape == (3, 4)
    own = jax.vmap(after, (1, 0), 1)(weight, jnp.ones((4, 2)))
    np.testing.assert_array_equal(own, weight)
    assert after(weight, jnp.ones((0, 2))) is weight  # nothing has come back


@BOTH
@pytest.mark.parametrize("auto", [True, False], ids=["auto", "explicit"])
def test_devices_each_have_their_own(function, auto):
    """On a mesh the test is left out: it would send a number from one device to all."""
    kinds = (jax.sharding.AxisType.Auto if auto else jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((2,), ("i",), kinds, devices=jax.devices()[:2])
    x = jnp.arange(8.0).reshape(4, 2)
    sharded = jax.device_put(x, jax.NamedSharding(mesh, P("i")))
    compiled = jax.jit(lambda x: function(x) * 2).lower(sharded).compile()
    assert "all-" not in compiled.as_text()
    np.testing.assert_array_equal(compiled(sharded), 2 * x)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    np.testing.assert_array_equal(jax.jit(mapped)(sharded), x)


def memory(function, *args):
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_what_comes_after_is_not_made_before():
    """Of many sums that a chain needs one by one, one is there at a time."""
    x, w = jax.ShapeDtypeStruct((256, 256), jnp.float32), jnp.eye(256, dtype=jnp.float32)

    def chain(order):
        def run(x):
            message = jnp.tanh(x)
            for scale in range(2, 18):
                message = message / (1 + jnp.exp(order(x * scale, message) @ w))
            return message

        return run

    assert memory(chain(after), x) < 0.4 * memory(chain(lambda x, token: x), x)
