"""relax.sweep: many values in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from benchmarks import networks, sweep
from relax import rules


@pytest.fixture
def p(rng):
    return [jnp.asarray(rng.normal(size=shape)) for shape in ((6, 8), (8, 8), (8, 3))]


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(4, 6)))


def network(p, x):
    for w in p[:-1]:
        x = jax.jit(lambda x, w: jax.nn.gelu(x @ w) + 0.1)(x, w)
    return jnp.sin(x) @ p[-1]


def of_gamma(p, x):
    return lambda gamma: relax.lrp(network, rules.Gamma(gamma), target=1)(p, x)


GAMMAS = jnp.linspace(0, 1, 7)


@pytest.mark.more
@pytest.mark.parametrize(
    "batch_size", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (None, 7))]
)
def test_it_is_vmap(batch_size, p, x):
    """In values, structure and derivatives, whatever the size of the batches; under jit too."""

    def explain(gamma, target):
        found, latent = relax.lrp(network, rules.Gamma(gamma), target=target, at="dense*")(p, x)
        return {"found": found, "latent": latent, "constant": jnp.arange(3), "gamma": (gamma,)}

    targets = jnp.arange(7) % 3
    swept = relax.sweep(explain, batch_size=batch_size)
    want = jax.vmap(explain)(GAMMAS, targets)
    for got in (swept(GAMMAS, targets), jax.jit(swept)(GAMMAS, targets)):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), got, want
        )


@pytest.mark.more
def test_derivatives_of_what_is_swept_and_of_what_is_not(p, x):
    """Against the sum over separate runs."""
    total = lambda r: jnp.sum(r**3)
    of_sweep = lambda p, gammas: total(relax.sweep(of_gamma(p, x), batch_size=3)(gammas))
    apart = lambda p, gammas: sum(total(of_gamma(p, x)(gammas[i])) for i in range(4))
    got, want = (jax.jit(jax.grad(f, (0, 1)))(p, GAMMAS[:4]) for f in (of_sweep, apart))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), got, want)


@pytest.mark.more
def test_under_vmap_and_with_custom_derivatives(p, x):
    """Around it a batch; a relu keeps its own derivative at zero."""
    one = lambda x: relax.sweep(of_gamma(p, x), batch_size=2)(GAMMAS)
    got = jax.jit(jax.vmap(one))(x[:, None])
    one = jax.jit(one)
    for i in range(4):
        np.testing.assert_allclose(got[i], one(x[i : i + 1]), rtol=1e-9, atol=1e-12)
    slopes = jax.grad(lambda s: relax.sweep(lambda s: jax.nn.relu(s), batch_size=1)(s).sum())
    np.testing.assert_array_equal(slopes(jnp.zeros(3)), 0)


def test_the_forward_pass_stands_outside_of_the_loop(p, x):
    """What does not depend on the values is not in the body of the loop over batches."""
    program = jax.make_jaxpr(relax.sweep(of_gamma(p, x), batch_size=2))(GAMMAS)
    (loop,) = [e for e in program.eqns if e.primitive.name == "scan"]
    names = lambda eqns: [e.primitive.name for e in eqns]
    inside = names(loop.params["jaxpr"].jaxpr.eqns)
    everything = str(program)
    assert everything.count(" erf") + everything.count(" tanh") + everything.count("erfc") > 0
    assert not {"erf", "erfc", "tanh", "sin"} & set(inside)
    assert "dot_general" in inside


@pytest.mark.more
def test_thirty_two_gammas_of_vgg16_cost_a_third_of_separate_runs():
    """FLOPs of sweeps of gammas, targets and channels, at most (2 + K) / 2K of K runs."""
    count = 32
    with jax.enable_x64(False):
        function, params, x = networks.shapes("VGG16", 32)
        for one, values in sweep.sweeps(function, params, x, count).values():
            assert sweep.ratio(one, values, params, x) <= (2 + count) / (2 * count)


def test_a_sweep_makes_no_copies_of_large_weights():
    """For each gamma a product of its own, not a weight of its own."""
    shapes = jax.ShapeDtypeStruct((4096, 64), float), jax.ShapeDtypeStruct((1, 4096), float)

    def swept(w, x):
        return relax.sweep(lambda g: relax.lrp(lambda x: x @ w, rules.Gamma(g))(x))(jnp.ones(64))

    memory = jax.jit(swept).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * (4096 * 64 * 8) / 4


@pytest.mark.parametrize("shape", [(7, 2), (2,)])
@pytest.mark.parametrize("rectify", [False, True])
def test_one_large_weight_under_gamma(shape, rectify, rng):
    """A traced gamma takes two products there; the same relevance as a number of Python's."""
    w, b = (
        jnp.asarray(rng.normal(size=(4096, 2))),
        jnp.asarray(rng.normal(size=(1,) * len(shape[1:]) + (2,))),
    )
    x = jnp.asarray(rng.normal(size=(*shape[:-1], 4096)))
    f = lambda x: (jax.nn.relu(x) if rectify else x) @ w + b
    got = jax.jit(lambda g: relax.lrp(f, rules.Gamma(g))(x))(0.3)
    np.testing.assert_allclose(got, relax.lrp(f, rules.Gamma(0.3))(x), rtol=1e-8, atol=1e-12)


def test_dtypes_are_those_of_vmap(p, x):
    """A weakly typed value does not widen half precision, in batches as little as at once."""
    p, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (p, x))
    values = jnp.arange(4) * 0.5
    explain = lambda t: relax.lrp(network, target=0)(p, x * t)
    for size in (None, 2):
        assert relax.sweep(explain, batch_size=size)(values).dtype == jnp.bfloat16


def test_errors():
    for size in (0, -1, 2.5):
        with pytest.raises(relax.ArgumentError, match="batch_size"):
            relax.sweep(jnp.sin, batch_size=size)
    for args, words in (
        ((), "no arrays"),
        ((jnp.ones(3), jnp.ones(4)), r"\(3,\), \(4,\)"),
        ((1.0,), r"\(\)"),
        ((jnp.ones((0, 2)),), "no value"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            relax.sweep(lambda *a: a)(*args)
