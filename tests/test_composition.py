"""lrp among JAX's other transforms: of itself, in loops, exported, differentiated twice."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import export, lax

import relax
from relax import composites, rules

RULES = {
    "Epsilon": rules.Epsilon(0.1),
    "ZPlus": rules.ZPlus(0.1),
    "Gamma": rules.Gamma(0.3, 0.1),
    "attnlrp": composites.attnlrp(),
}


@pytest.fixture
def p(rng):
    return {
        "w": rng.normal(size=(4, 6)),
        "b": rng.normal(size=(1, 6)),
        "v": rng.normal(size=(6, 3)),
    }


@pytest.fixture
def x(rng):
    return rng.normal(size=(2, 4))


def network(p, x):
    return jnp.tanh(x @ p["w"] + p["b"]) @ p["v"]


def test_lrp_of_lrp_of_a_rectifier_network(p, x):
    """Under LRP-0 its relevance is x times a constant, and so its own explanation."""
    plain = lambda x: jax.nn.relu(x @ p["w"]) @ p["v"]
    once = relax.lrp(plain, rules.Epsilon(0.0), target=1)
    twice = jax.jit(relax.lrp(once, rules.Epsilon(0.0)))
    np.testing.assert_allclose(twice(x), once(x), rtol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_lrp_of_lrp_is_finite_and_compiles(name, p, x):
    once = lambda x: relax.lrp(network, RULES[name], target=1)(p, x)
    assert np.isfinite(jax.jit(relax.lrp(once, rules.Epsilon(0.1)))(x)).all()


@pytest.mark.parametrize("name", ["ZPlus", pytest.param("Epsilon", marks=pytest.mark.slow)])
def test_jacobians_and_hessians_of_relevance(name, p, x):
    """Forward and reverse mode agree; the Hessian is symmetric, and that of differences."""
    explain = lambda x: relax.lrp(network, RULES[name])(p, x)
    forward, reverse = jax.jit(jax.jacfwd(explain))(x), jax.jit(jax.jacrev(explain))(x)
    np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-12)
    score = lambda x: jnp.sin(explain(x)).sum()
    hessian = jax.jit(jax.hessian(score))(x).reshape(8, 8)
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-8, atol=1e-10)
    step = 1e-5 * np.eye(8)[3].reshape(2, 4)
    difference = (jax.grad(score)(x + step) - jax.grad(score)(x - step)) / 2e-5
    np.testing.assert_allclose(hessian[3], difference.ravel(), rtol=1e-5, atol=1e-7)


@pytest.mark.more
def test_vmap_around_and_inside(p, x):
    one = lambda x: network(p, x[None])[0]
    inner = relax.lrp(jax.vmap(one), rules.ZPlus())
    np.testing.assert_allclose(jax.vmap(inner)(x[None])[0], inner(x), rtol=1e-10)
    np.testing.assert_allclose(jax.vmap(relax.lrp(one, rules.ZPlus()))(x), inner(x), rtol=1e-10)


def test_explanations_along_a_training_run(p, x):
    """lrp inside of the scan that trains: the relevance after every step."""
    optimizer, y = optax.sgd(0.1), jnp.ones((2, 3))
    loss = lambda p: ((network(p, x) - y) ** 2).mean()

    def step(carry, _):
        p, state = carry
        updates, state = optimizer.update(jax.grad(loss)(p), state)
        p = optax.apply_updates(p, updates)
        return (p, state), relax.lrp(network, rules.ZPlus(), target=0)(p, x)

    start = jax.tree.map(jnp.asarray, p)
    (last, _), path = jax.jit(lambda p: lax.scan(step, (p, optimizer.init(p)), None, 5))(start)
    assert path.shape == (5, 2, 4)
    final = relax.lrp(network, rules.ZPlus(), target=0)(last, x)
    np.testing.assert_allclose(path[-1], final, rtol=1e-9)
    assert float(loss(last)) < float(loss(start))


def test_exported_and_loaded(p, x):
    """Saved as bytes, loaded, and called."""
    explain = jax.jit(relax.lrp(network, rules.Gamma(), target=1))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (p, x))
    loaded = export.deserialize(export.export(explain)(*shapes).serialize())
    np.testing.assert_allclose(loaded.call(p, x), explain(p, x), rtol=1e-10)


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), name="conv")(x)))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return nn.Dense(3)(nn.LayerNorm()(nn.gelu(nn.Dense(8)(x))))


class Attending(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        y = nn.RMSNorm()(x)
        x = x + nn.Dense(8)(nn.silu(nn.Dense(8)(y)) * nn.Dense(8)(y))
        return nn.Dense(3)(x.mean(1))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(8))(x)[:, -1])


SYMBOLIC = {
    "convolutional": (Convolutional(), "b, 6, 6, 2", composites.epsilon_plus_flat()),
    "box": (Convolutional(), "b, 6, 6, 2", composites.epsilon_gamma_box(-3.0, 3.0)),
    "attention": (Attending(), "b, t, 8", composites.attnlrp()),
    "recurrent": (Recurrent(), "b, 5, 4", composites.arras_lstm()),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ("convolutional", "attention") else pytest.mark.slow)
        for n in SYMBOLIC
    ],
)
def test_exported_for_any_batch(name, rng):
    """Symbolic sizes: one program, called with several; the plan is that of sizes in numbers."""
    model, sizes, rule = SYMBOLIC[name]
    symbolic = jax.ShapeDtypeStruct(export.symbolic_shape(sizes), jnp.float32)
    shape = lambda b, t: tuple({"b": b, "t": t}.get(n) or int(n) for n in sizes.split(", "))
    params = model.init(jax.random.key(0), jnp.ones(shape(1, 2), jnp.float32))
    with jax.numpy_rank_promotion("allow"):
        explain = jax.jit(relax.lrp(model.apply, rule, target=1))
        exported = export.export(explain)(params, symbolic)
        loaded = export.deserialize(exported.serialize())
        for b, t in ((1, 5), (4, 3)):
            x = jnp.asarray(rng.normal(size=shape(b, t)), jnp.float32)
            found = loaded.call(params, x)
            np.testing.assert_allclose(found, explain(params, x), rtol=1e-3, atol=1e-5)


def test_shapes_without_numbers(p, x):
    shape = jax.eval_shape(relax.lrp(network, rules.ZPlus()), p, x)
    assert (shape.shape, shape.dtype) == (x.shape, x.dtype)


def test_relevance_of_parameters(p, x):
    """argnums=0: every weight and bias has its share of each product; together the output."""
    dense = lambda p, x: x @ p["w"] + p["b"]
    relevance = relax.lrp(dense, rules.Epsilon(0.0), argnums=0)(p, x)
    assert jax.tree.map(jnp.shape, relevance) == jax.tree.map(jnp.shape, p)
    np.testing.assert_allclose(relevance["w"], p["w"] * x.sum(0)[:, None], rtol=1e-9)
    np.testing.assert_allclose(relevance["b"], 2 * p["b"], rtol=1e-9)
    total = sum(float(r.sum()) for r in jax.tree.leaves(relevance))
    assert total == pytest.approx(float(dense(p, x).sum()))


def bilrp(embed, x, y):
    """Relevance of pairs of features for the product of two embeddings."""
    parts = lambda x: jax.vmap(lambda k: relax.lrp(embed, rules.Gamma(0.1), target=k)(x))
    each = jnp.arange(embed(x).shape[-1])
    return jnp.einsum("ki,kj->ij", parts(x)(each), parts(y)(each))


def test_bilrp(p, rng):
    """Eberle et al. 2020: of a linear embedding it is x w w^T y; it conserves the similarity."""
    x, y = rng.normal(size=4), rng.normal(size=4)
    linear = lambda x: x @ p["w"]
    both = bilrp(linear, x, y)
    positive = lambda x: jax.nn.relu(jnp.abs(x) @ jnp.abs(p["w"]))
    np.testing.assert_allclose(bilrp(positive, x, y).sum(), positive(x) @ positive(y), rtol=1e-5)
    assert both.shape == (4, 4)
    np.testing.assert_allclose(both.sum(), linear(x) @ linear(y), rtol=1e-4)
