"""Every method on one network: under every transform of JAX, in every type, and its errors.

What each method computes is checked in the files beside this one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import relax
from relax import methods

SHAPES = {"w": (4, 4), "q": (4, 4), "v": (4, 3)}
KEY = jax.random.key(3)


def network(p, x):
    """Attention between ReLUs; takes samples, and one without an axis of them."""
    h = jax.nn.relu(x @ p["w"])
    weights = jax.nn.softmax(h @ p["q"] @ jnp.swapaxes(h, -1, -2))
    return jax.nn.relu(h + weights @ h).sum(-2) @ p["v"]


@pytest.fixture
def p(rng):
    return {n: jnp.asarray(rng.normal(size=s)) / 2 for n, s in SHAPES.items()}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(4, 3, 4)))


def patterns(f):
    """Of the network, from random samples; one has no pattern of its own, as it moves nothing."""
    rng = np.random.default_rng(1)
    p = {n: jnp.asarray(rng.normal(size=s)) / 2 for n, s in SHAPES.items()}
    found = methods.fit_patterns(network, p, data=[jnp.asarray(rng.normal(size=(50, 3, 4)))])
    return functools.partial(f, patterns=found)


def with_batch(method, **settings):
    """A method that is told whether there is an axis of samples."""
    return lambda f, batched=True, **k: method(f, batched=batched, **settings, **k)


def without(method, **settings):
    """A method to which that is all the same."""
    return lambda f, batched=True, **k: method(f, **settings, **k)


METHODS = {
    "gradient": without(methods.gradient),
    "saliency": without(methods.saliency),
    "gradient_x_input": without(methods.gradient_x_input),
    "integrated_gradients": without(methods.integrated_gradients, steps=3, batch_size=2),
    "smoothgrad": with_batch(methods.smoothgrad, key=KEY, samples=3, batch_size=2),
    "deeplift_rescale": with_batch(methods.deeplift_rescale, baseline=0.1),
    "occlusion": with_batch(methods.occlusion, window=2, strides=1, batch_size=4),
    "shapley_sampling": with_batch(
        methods.shapley_sampling, key=KEY, permutations=3, groups=np.arange(3)[:, None]
    ),
    "guided_backprop": without(methods.guided_backprop),
    "deconvnet": without(methods.deconvnet),
    "excitation_backprop": without(methods.excitation_backprop),
    "deep_taylor": without(methods.deep_taylor),
    "deep_taylor_bounded": without(methods.deep_taylor_bounded, low=-3.0, high=3.0),
    "elrp": without(methods.elrp, epsilon=0.1),
    "pattern_net": without(patterns(methods.pattern_net)),
    "pattern_attribution": without(patterns(methods.pattern_attribution)),
    "attention_rollout": with_batch(methods.attention_rollout, position=1),
    "random": without(methods.random, key=KEY),
    "input": without(methods.input),
}
every = pytest.mark.parametrize("name", METHODS)


def quickly(*names):
    """Every method, all but the named ones behind `slow`: compiling takes its time."""
    slow = lambda n: () if n in names else pytest.mark.slow
    return pytest.mark.parametrize("name", [pytest.param(n, marks=slow(n)) for n in METHODS])


close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10)


def test_the_table_is_complete():
    """No method is left out; `fit_patterns` is none, it makes what two of them need."""
    assert {*METHODS, "fit_patterns"} == set(methods.__all__)


@quickly("gradient", "deeplift_rescale", "occlusion", "elrp", "pattern_net", "random")
def test_jit_aux_and_argnums(name, p, x):
    """Plain, compiled, with an auxiliary output, and as a tuple of arguments: the same numbers."""
    method, target = METHODS[name], jnp.array([0, 2, 1, 2])
    plain = method(network, target=target)(p, x)
    assert plain.dtype == x.dtype
    assert plain.shape == ((4, 3) if name == "attention_rollout" else x.shape)
    assert float(jnp.abs(plain).max()) > 1e-3
    both = lambda p, x: (network(p, x), {"sum": x.sum(), "name": "aux"})

    @jax.jit
    def compiled(p, x):
        relevance, aux = method(both, target=target, has_aux=True)(p, x)
        one = method(network, target=target, argnums=(1,))(p, x)
        assert aux["name"] == "aux"
        return relevance, aux["sum"], one

    relevance, total, one = compiled(p, x)
    close(relevance, plain)
    close(total, x.sum())
    # Rollout is of tokens, whatever the argument.
    close(one if name == "attention_rollout" else one[0], plain)


@quickly("gradient", "deeplift_rescale", "attention_rollout")
def test_vmap_of_single_samples(name, p, x):
    """The rows of a batch, one by one, without an axis of samples."""
    method = METHODS[name]
    one = method(network, batched=False, target=2)
    mapped = jax.jit(jax.vmap(one, (None, 0)))(p, x)
    if name in ("smoothgrad", "random"):  # draws in the shape of what they are given
        close(mapped, jnp.stack([one(p, row) for row in x]))
    else:
        close(mapped, jax.jit(method(network, target=2))(p, x))


@quickly("deeplift_rescale", "pattern_attribution")
def test_derivatives(name, p, x):
    """Along a direction, against differences: nothing is detached."""
    method = METHODS[name]
    rng = np.random.default_rng(2)
    direction = jnp.asarray(rng.normal(size=x.shape))

    @jax.jit
    def loss(x):
        return (jnp.sin(method(network, target=1)(p, x)) ** 2).sum()

    step = 1e-6
    want = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    if name == "random":
        assert float(want) == 0
        return
    slope = (jax.grad(loss)(x) * direction).sum()
    np.testing.assert_allclose(slope, want, rtol=1e-5)


@quickly("integrated_gradients", "occlusion", "attention_rollout")
def test_half_precision(name, p, x):
    """bfloat16 in, bfloat16 out, and no further off than its 8 bits explain."""
    method = METHODS[name]
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (p, x))
    explain = jax.jit(method(network, target=1))
    got = explain(*half)
    if name == "attention_rollout":
        assert got.dtype == jnp.float32
    else:
        assert got.dtype == jnp.bfloat16
    assert jnp.isfinite(got).all()
    if name in ("random", "smoothgrad"):  # other draws in another type
        return
    want = explain(*jax.tree.map(lambda a: a.astype(jnp.float64), half))
    error = jnp.abs(got.astype(want.dtype) - want).max() / jnp.abs(want).max()
    assert float(error) < 0.08


@quickly("saliency", "shapley_sampling")
def test_two_devices(name, p, x):
    """Samples spread over devices: the same numbers."""
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    explain = jax.jit(METHODS[name](network, target="max"))
    spread = jax.device_put(x, NamedSharding(mesh, P("data")))
    close(explain(p, spread), explain(p, x))


@quickly("gradient", "deeplift_rescale", "shapley_sampling", "attention_rollout", "random")
def test_traced_once(name, p, x):
    """Other numbers are no new program."""
    traces = []

    def counted(p, x):
        traces.append(1)
        return network(p, x)

    explain = jax.jit(METHODS[name](counted, target=1))
    explain(p, x)
    before = len(traces)
    explain(p, 2 * x)
    assert len(traces) == before
    assert (before == 0) == (name in ("random", "input"))


SEVERAL = [n for n in METHODS if n not in ("occlusion", "shapley_sampling", "attention_rollout")]


@pytest.mark.parametrize(
    "name", [n if n in SEVERAL[:4] else pytest.param(n, marks=pytest.mark.slow) for n in SEVERAL]
)
def test_several_arguments(name, p, x):
    """As arguments or as one tree: the same, in the structure of what is explained."""
    y = x[:, ::-1] / 3
    method = METHODS[name]
    apart = method(lambda p, x, y: network(p, x + y), argnums=(1, 2), target=0)
    tree = method(lambda p, xs: network(p, xs["a"] + xs["b"]), target=0)
    got, want = jax.jit(lambda: (apart(p, x, y), tree(p, {"a": x, "b": y})))()
    assert isinstance(got, tuple)
    for one, other in zip(got, (want["a"], want["b"]), strict=True):
        assert one.shape == x.shape
        close(one, other)
    if name == "integrated_gradients":
        alone = method(network, target=0)(p, x + y)
        close(got[0] + got[1], alone)  # the way of the sum is the sum of the ways


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL[:6])
def test_targets_of_a_pytree(name, p, x):
    """A value that is a tree, with integers in it, and a callable that chooses from it."""
    method = METHODS[name]
    tree = lambda p, x: {"z": network(p, x), "class": network(p, x).argmax(-1)}
    chosen = lambda value: {
        "z": value["z"] * jnp.array([1.0, -2.0, 0.0])[None],
        "class": jnp.zeros_like(value["class"]),
    }
    weighed = lambda p, x: network(p, x)[:, :2] * jnp.array([[1.0, -2.0]])
    got = method(tree, target=chosen)(p, x)
    want = method(weighed)(p, x)
    close(got, want)


INTEGERS = [n for n in METHODS if n != "attention_rollout"]


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_refused(name, p):
    """Numbers that have no derivative; the error says what to do instead."""
    ids = jnp.zeros((2, 3, 4), int)
    with pytest.raises(relax.ArgumentError, match=r"this method needs floats|is an integer array"):
        METHODS[name](network, target=0)(p, ids)


@pytest.mark.slow
def test_word_for_the_class():
    """`"max"` is the class of the unchanged input, also where a changed one is of another."""
    f = lambda x: jnp.stack([x[:, 0] * x[:, 1], 1 - x[:, 0]], -1)  # at (2, 1), then at (0, .)
    x = jnp.array([[2.0, 1.0]])
    for explain in (
        functools.partial(methods.integrated_gradients, steps=4),
        methods.occlusion,
        methods.deeplift_rescale,
        functools.partial(methods.shapley_sampling, key=KEY),
        functools.partial(methods.smoothgrad, key=KEY, samples=4, stdev=5.0),
    ):
        close(explain(f, target="max")(x), explain(f, target=0)(x))


@every
def test_nothing_to_explain(name, p):
    """An argument without an array, and an array without samples."""
    with pytest.raises(relax.RelaxError):
        METHODS[name](lambda p, x: jnp.ones(3))(p, None)


EMPTY = [n for n in METHODS if n not in ("attention_rollout", "pattern_net", "pattern_attribution")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in EMPTY[7:] else ()) for n in EMPTY]
)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty_arrays(name, shape):
    """No samples, or samples of nothing: as much relevance."""
    w = jnp.ones((shape[1], 2))
    method = METHODS[name]
    if name == "shapley_sampling":
        method = with_batch(methods.shapley_sampling, key=KEY)
    got = method(lambda x: jax.nn.relu(x @ w))(jnp.zeros(shape))
    assert got.shape == shape


@pytest.mark.slow
def test_nan_stays_in_its_sample(p, x):
    """A sample that holds NaN makes no other one NaN."""
    for name in ("gradient", "integrated_gradients", "deeplift_rescale", "occlusion", "elrp"):
        explain = jax.jit(METHODS[name](network, target=1))
        got = explain(p, x.at[2, 0, 0].set(jnp.nan))
        assert jnp.isnan(got[2]).any()
        close(got[jnp.array([0, 1, 3])], explain(p, x)[jnp.array([0, 1, 3])])
