"""Moves, sums, pools and winners: relevance is gradient times input, and passes in both currencies.

All operations here are homogeneous of degree one, so relevance through them is x times the
gradient, whichever way it travels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import relax
from relax import rules, select

# Small functions that end in a sigmoid or a softmax are explained as they are.
pytestmark = pytest.mark.filterwarnings("ignore:What is explained is a probability")

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MATRIX = np.random.default_rng(1).normal(size=(4, 6))
MASK = np.random.default_rng(2).integers(0, 2, (4, 6)).astype(bool)
INDEX = np.array([2, 0, 2, 3])
MESH = Mesh(np.array(jax.devices()[:1]), ("device",))


def resize(method, shape=(7, 4), **options):
    return lambda x: jax.image.resize(x, shape, method, **options)


def image(function):
    """A function of (1, 8, 8, 3) from a matrix (24, 8)."""
    return lambda x: function(x.reshape(1, 8, 8, 3))


# All take a (4, 6) matrix of positive numbers.
MOVES = {
    "reshape": lambda x: x.reshape(3, 8),
    "ravel": lambda x: jnp.ravel(x, order="F"),
    "transpose": lambda x: x.T,
    "swapaxes": lambda x: jnp.swapaxes(x[None], 0, 2),
    "moveaxis": lambda x: jnp.moveaxis(x[..., None], -1, 0),
    "flip": lambda x: jnp.flip(x, 1),
    "reverse index": lambda x: x[::-1, ::-2],
    "roll": lambda x: jnp.roll(x, 2, axis=1),
    "rot90": lambda x: jnp.rot90(x),
    "squeeze": lambda x: jnp.squeeze(x[None]),
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (4, 3, 6)),
    "concatenate": lambda x: jnp.concatenate([x, 2 * x, MATRIX], axis=0),
    "stack": lambda x: jnp.stack([x, x[::-1]], axis=1),
    "hstack": lambda x: jnp.hstack([x, x]),
    "unstack": lambda x: sum(jnp.unstack(x, axis=1)[:3]),
    "split": lambda x: jnp.split(x, [2, 3], axis=1)[2],
    "array_split": lambda x: jnp.array_split(x, 4, axis=1)[1],
    "slice": lambda x: x[1:3, ::2],
    "lax.slice": lambda x: lax.slice(x, (1, 0), (4, 6), (2, 3)),
    "row": lambda x: x[2],
    "ellipsis": lambda x: x[..., -1],
    "boolean rows": lambda x: x[np.array([True, False, True, True])],
    "gather": lambda x: x[INDEX],
    "gather pairs": lambda x: x[INDEX, INDEX],
    "take": lambda x: jnp.take(x, INDEX, axis=1),
    "take_along_axis": lambda x: jnp.take_along_axis(x, np.argsort(MATRIX, 1), 1),
    "diagonal": lambda x: jnp.diagonal(x),
    "triangle": lambda x: jnp.tril(x),
    "diag": lambda x: jnp.diag(x[0]),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (1, 2), (2, 3)),
    "dynamic_slice of an index array": lambda x: lax.dynamic_slice_in_dim(x, jnp.asarray(1), 2),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, x[:1, :2], (2, 3)),
    "at set constant": lambda x: x.at[1].set(0.5),
    "at set itself": lambda x: x.at[jnp.array([0, 1])].set(2 * x[2:]),
    "at add": lambda x: x.at[INDEX].add(x),
    "at add constant": lambda x: x.at[0, 0].add(0.0),
    "at subtract": lambda x: x.at[INDEX, INDEX].subtract(0.1 * x[:, 0]),
    "scatter into zeros": lambda x: jnp.zeros((8, 6)).at[2 * np.arange(4)].set(x),
    "pad": lambda x: jnp.pad(x, ((1, 0), (2, 1))),
    "pad with edge": lambda x: jnp.pad(x, 1, mode="edge"),
    "pad reflecting": lambda x: jnp.pad(x, 2, mode="reflect"),
    "pad wrapping": lambda x: jnp.pad(x, 1, mode="wrap"),
    "pad negative and interior": lambda x: lax.pad(x, 0.0, ((-1, 0, 0), (0, 1, 2))),
    "repeat": lambda x: jnp.repeat(x, 2, axis=1),
    "repeat unevenly": lambda x: jnp.repeat(x, np.array([1, 0, 2, 1]), 0, total_repeat_length=4),
    "tile": lambda x: jnp.tile(x, (2, 1)),
    "kron with ones": lambda x: jnp.kron(x, jnp.ones((2, 1))),
    "where mask": lambda x: jnp.where(MASK, x, 0.0),
    "where of two": lambda x: jnp.where(MASK, x, 3 * x[::-1]),
    "lax.select": lambda x: lax.select(jnp.asarray(MASK), x, jnp.zeros_like(x)),
    "mask by product": lambda x: x * MASK,
    "cast": lambda x: x.astype(jnp.float32).astype(jnp.float64),
    "copy": lambda x: jnp.copy(x),
    "reduce_precision": lambda x: lax.reduce_precision(x, 11, 52),
    "sharding constraint": lambda x: lax.with_sharding_constraint(
        x, NamedSharding(MESH, PartitionSpec("device"))
    ),
    "device_put": lambda x: jax.device_put(x, jax.devices()[0]),
    "optimization_barrier": lambda x: lax.optimization_barrier((x, 2 * x))[1],
    "checkpoint_name": lambda x: checkpoint_name(x, "here"),
    "named_scope": lambda x: jax.named_scope("here")(lambda x: x[1:])(x),
    "jit": lambda x: jax.jit(lambda x: x[1:])(x),
    "vmap": lambda x: jax.vmap(lambda r: jnp.roll(r, 1))(x),
    "window view": lambda x: jnp.stack([x[:, i : i + 3] for i in range(4)], 1),
    "permutation of a batch": lambda x: x[jax.random.permutation(jax.random.key(0), 4)],
    "space to depth": lambda x: x.reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(6, 4),
}
SUMS = {
    "negative": lambda x: -x,
    "scaled": lambda x: 0.1 * x / 3,
    "sum": lambda x: x.sum(),
    "sum over an axis": lambda x: x.sum(0),
    "sum keepdims": lambda x: x.sum((0, 1), keepdims=True),
    "mean": lambda x: x.mean(-1),
    "mean keepdims": lambda x: x.mean(0, keepdims=True),
    "mean where": lambda x: jnp.mean(x, 1, where=MASK | (np.arange(6) == 0)),
    "nanmean": lambda x: x.mean() * jnp.ones(3),
    "average": lambda x: jnp.average(x, axis=0, weights=np.arange(1.0, 5)),
    "centering": lambda x: 2 * x - x.mean(1, keepdims=True),
    "difference": lambda x: jnp.diff(x, axis=1),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "cumsum reversed": lambda x: lax.cumsum(x, 0, reverse=True),
    "trace": lambda x: jnp.trace(x),
    "convex sum": lambda x: 0.3 * x[1:] + 0.7 * x[:-1],
    "python sum": lambda x: sum(x[i] for i in range(4)),
    "einsum with a constant": lambda x: jnp.einsum("ij,ij->i", x, MATRIX),
    "einsum with ones": lambda x: jnp.einsum("ij->j", x),
    "matrix of literals": lambda x: jnp.eye(4) @ x,
    "dot with arange": lambda x: x @ jnp.arange(6.0),
    "vdot": lambda x: jnp.vdot(x, MATRIX),
    "outer": lambda x: jnp.outer(x[0], np.arange(1.0, 3)),
    "triangular_solve": lambda x: jax.scipy.linalg.solve_triangular(
        np.tril(MATRIX[:, :4]) + 5 * np.eye(4), x, lower=True
    ),
    "segment_sum": lambda x: jax.ops.segment_sum(x, INDEX, 4),
    "real fft": lambda x: jnp.fft.irfft(jnp.fft.rfft(x, axis=1), n=6, axis=1),
    "fft": lambda x: jnp.fft.ifft(jnp.fft.fft(x)).real,
    "fft2": lambda x: jnp.real(jnp.fft.ifft2(jnp.fft.fft2(x))),
    "real part of fft": lambda x: jnp.fft.rfft(x).real,
    "fftshift": lambda x: jnp.fft.fftshift(x),
    "low pass": lambda x: jnp.fft.irfft(jnp.fft.rfft(x)[:, :2], n=6),
    "convolution by fft": lambda x: jax.scipy.signal.fftconvolve(x, MATRIX, "same"),
    "resize bilinear": resize("bilinear"),
    "resize nearest": resize("nearest"),
    "resize cubic": resize("cubic"),
    "resize lanczos": resize("lanczos3"),
    "resize down": resize("linear", (2, 3)),
    "resize down without antialias": resize("linear", (2, 3), antialias=False),
    "map_coordinates": lambda x: jax.scipy.ndimage.map_coordinates(
        x, [np.array([0.5, 2.2]), np.array([1.1, 3.9])], order=1
    ),
}
WINNERS = {
    "max": lambda x: x.max(1),
    "max keepdims": lambda x: x.max((0, 1), keepdims=True),
    "min": lambda x: x.min(0),
    "maximum of two": lambda x: jnp.maximum(x, 2 * x[::-1]),
    "minimum of two": lambda x: jnp.minimum(x[1:], x[:-1]),
    "maxout": lambda x: x.reshape(4, 3, 2).max(-1),
    "cummax": lambda x: lax.cummax(x, 1),
    "cummin": lambda x: lax.cummin(x, 0),
    "sort": lambda x: jnp.sort(x, axis=1),
    "sort descending": lambda x: jnp.sort(x, axis=0, descending=True),
    "sort by a key": lambda x: lax.sort_key_val(jnp.asarray(MATRIX), x)[1],
    "argsort": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "argmax": lambda x: x[jnp.arange(4), x.argmax(1)],
    "top_k": lambda x: lax.top_k(x, 3)[0],
    "top_k indices": lambda x: jnp.take_along_axis(x, lax.top_k(x, 2)[1], 1),
    "top_k mask": lambda x: jnp.where(x >= lax.top_k(x, 2)[0][:, 1:], x, 0.0),
    "median": lambda x: jnp.median(x, axis=1),
    "clamp": lambda x: lax.clamp(0.0, x, x[:, ::-1]),
    "range": lambda x: x.max(1) - 0.5 * x.min(1),
    "norm of one": lambda x: jnp.linalg.norm(x, ord=jnp.inf, axis=1),
    "segment_max": lambda x: jnp.zeros((4, 6)).at[INDEX].max(x),
}
IMAGES = {
    "avg_pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "avg_pool padded": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME"),
    "avg_pool padded, not counted": lambda x: nn.avg_pool(
        x, (3, 3), (2, 2), "SAME", count_include_pad=False
    ),
    "sum pool": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"),
    "max_pool": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "max_pool padded": lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
    "max_pool with uneven padding": lambda x: nn.max_pool(x, (3, 2), (2, 1), ((0, 1), (1, 0))),
    "min_pool": lambda x: lax.reduce_window(
        x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    ),
    "global average": lambda x: x.mean((1, 2)),
    "global average keepdims": lambda x: jnp.mean(x, axis=(1, 2), keepdims=True),
    "global max": lambda x: x.max((1, 2)),
    "global sum": lambda x: x.sum((1, 2)),
    "average by a convolution": lambda x: lax.conv_general_dilated(
        x,
        np.full((2, 2, 1, 3), 0.25),
        (1, 1),
        "VALID",
        feature_group_count=3,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "average by reshape": lambda x: x.reshape(1, 4, 2, 4, 2, 3).mean((2, 4)),
    "upsampling": lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2),
    "pixel shuffle": lambda x: (
        x[..., :1].reshape(1, 4, 2, 4, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(1, 4, 4, 4)
    ),
    "patches": lambda x: lax.conv_general_dilated_patches(
        x, (2, 2), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "crop and resize": lambda x: jax.image.resize(x[:, 1:5, 2:6], (1, 6, 6, 3), "bilinear"),
    "scale and translate": lambda x: jax.image.scale_and_translate(
        x, (1, 6, 6, 3), (1, 2), jnp.array([0.7, 0.8]), jnp.array([0.5, 0.2]), "linear"
    ),
}
OPERATIONS = MOVES | SUMS | WINNERS | {name: image(f) for name, f in IMAGES.items()}


def inputs(name, rng):
    """Positive and without ties."""
    shape = (24, 8) if name in IMAGES else (4, 6)
    values = rng.permutation(np.prod(shape)).reshape(shape) / np.prod(shape)
    return jnp.asarray(0.5 + values + 0.001 * rng.uniform(size=shape))


def pull_back(fun, x, cotangent):
    """As the transposed Jacobian of the function, by JAX."""
    return jax.vjp(fun, x)[1](cotangent)[0]


# Constants take part in these, or signs change within: nothing to conserve.
NOT_CONSERVING = ("concatenate", "at set constant", "clamp", "real part of fft")


@pytest.mark.parametrize("name", OPERATIONS)
def test_relevance_is_gradient_times_input_in_both_currencies(name, rng):
    """As coefficients; as relevance in front of a sigmoid; and conserved up to a Flat layer.

    One test a row, as compiling is what takes the time.
    """
    operation, x = OPERATIONS[name], inputs(name, rng)
    w = jnp.asarray(rng.uniform(0.5, 1.5, size=(x.shape[1], x.shape[1])))
    exact = {select.first: rules.Flat(0.0), select.affine: rules.Epsilon(0.0)}

    def squashed(y):
        return jnp.where(y == 0, 0, jax.nn.sigmoid(y))

    @quick
    def compare(x):
        y, pull_back = jax.vjp(operation, x)
        mask = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        share = jnp.where(y == 0, 0, jax.nn.sigmoid(y) / jnp.where(y == 0, 1, y))
        expected = x * pull_back(mask)[0], x * pull_back(share)[0]
        plain = relax.lrp(lambda x: (operation(x) * mask).sum(), rules.Epsilon(0.0))(x)
        carried = relax.lrp(lambda x: jax.nn.sigmoid(operation(x)), rules.Epsilon(0.0))(x)
        if name in NOT_CONSERVING:
            return plain, carried, expected, None
        between = lambda x: squashed(operation(x @ w)).sum()
        return plain, carried, expected, relax.value_and_lrp(between, exact)(x)

    plain, carried, expected, flat = compare(x)
    np.testing.assert_allclose(plain, expected[0], rtol=1e-9, atol=1e-12)
    # In relevance a linear layer divides once by its own output, stabilized with 1e-6.
    np.testing.assert_allclose(carried, expected[1], rtol=2e-4, atol=1e-6)
    if flat is not None:
        value, relevance = flat
        np.testing.assert_allclose(relevance.sum(), value, rtol=1e-4)
        # Flat gives every feature of a sample the same share.
        np.testing.assert_allclose(relevance, relevance[:, :1] * jnp.ones(x.shape), rtol=1e-9)


def dense(z, rng):
    return z @ jnp.asarray(rng.normal(size=(z.shape[1], 3)))


def shortcut(z, rng):
    return z + jax.nn.relu(z @ jnp.asarray(rng.normal(size=(z.shape[1], z.shape[1]))))


# Homogeneous steps from a matrix to a matrix.
STEPS = {
    "dense": dense,
    "shortcut": shortcut,
    "relu": lambda z, _: jax.nn.relu(z),
    "leaky": lambda z, _: jnp.where(z > 0, z, 0.1 * z),
    "abs": lambda z, _: jnp.abs(z),
    "double": lambda z, _: 2.0 * z,
    "gain": lambda z, rng: z * jnp.asarray(rng.normal(size=(1, z.shape[1]))),
    "transpose": lambda z, _: z.T,
    "roll": lambda z, _: jnp.roll(z, 1, axis=0),
    "twice": lambda z, _: jnp.concatenate([z, z[::-1]], axis=1)[:, :6],
    "pairs": lambda z, _: jnp.maximum(z, z[:, ::-1]),
    "sort": lambda z, _: jnp.sort(z, axis=1),
    "cumsum": lambda z, _: jnp.cumsum(z, axis=0),
    "center": lambda z, _: z - z.mean(0, keepdims=True),
    "average": lambda z, _: (z[:, None] + jnp.stack([z, z[::-1]], axis=1)).mean(1),
    "pad": lambda z, _: jnp.pad(z, ((0, 1), (1, 0)))[:5, :6],
    "at": lambda z, _: z.at[0].add(z[-1]),
    "branches": lambda z, rng: dense(jax.nn.relu(z), rng) - dense(z, rng),
    "checkpointed name": lambda z, _: checkpoint_name(z, "z"),
    "jit": lambda z, rng: jax.jit(lambda z: shortcut(z, rng))(z),
}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=7), st.booleans())
def test_any_homogeneous_network_is_gradient_times_input(names, squash):
    """Epsilon 0 and no biases: in either currency there is nothing but x times the gradient."""
    x = jnp.asarray(np.random.default_rng(5).normal(size=(3, 4)))

    def fun(x):
        rng = np.random.default_rng(6)
        for name in names:
            x = STEPS[name](x, rng)
        return x

    @quick
    def compare(x):
        y, pull_back = jax.vjp(fun, x)
        if not squash:
            return relax.lrp(fun, rules.Epsilon(0.0))(x), x * pull_back(jnp.ones_like(y))[0], y
        ours = relax.lrp(lambda x: jax.nn.sigmoid(fun(x)), rules.Epsilon(0.0))(x)
        return ours, x * pull_back(jax.nn.sigmoid(y) / y)[0], y

    ours, expected, y = compare(x)
    assume(not squash or np.abs(y).min() > 0.05)  # relevance of a zero has no gradient
    scale = np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, atol=(1e-4 if squash else 1e-9) * scale + 1e-12)


# Kinds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("avg_pool", "avg_pool"),
        ("avg_pool padded, not counted", "avg_pool"),
        ("max_pool", "max_pool"),
        ("global average", "mean"),
        ("mean", "mean"),
        ("sum", "mean"),
        ("max", "winner"),
        ("sort", "winner"),
        ("top_k", "winner"),
        ("cumsum", "linear"),
        ("einsum with a constant", "dense"),
    ],
)
def test_kinds_of_layers(name, kind, rng):
    """What selectors of `relax.select` speak of."""
    plan = relax.layers(OPERATIONS[name])(inputs(name, rng))
    assert [row.kind for row in plan if row.kind != "linear" or kind == "linear"] == [kind]


@pytest.mark.parametrize(
    "name", ["reshape", "concatenate", "gather", "pad", "copy", "at set itself"]
)
def test_moves_of_data_are_no_layers(name, rng):
    """They would only make the plan long."""
    kinds = {row.kind for row in relax.layers(OPERATIONS[name])(inputs(name, rng))}
    assert kinds <= {"linear"}  # the scales by two inside


def test_a_choice_that_the_input_makes_is_shown_as_a_winner(rng):
    """Where no rule for the whole can be known, the plan says that something was chosen."""
    x = inputs("sum", rng)
    chosen = lambda x: jnp.select([x < 0.8, x < 1.2], [jnp.full_like(x, 0.8), x], 1.2)
    assert [row.kind for row in relax.layers(chosen)(x)] == ["winner"]
    np.testing.assert_array_equal(relax.lrp(chosen)(x) != 0, (x >= 0.8) & (x < 1.2))
    assert not list(relax.layers(lambda x: jnp.where(MASK, x, 0.8))(x))  # the user's own mask


def test_a_residual_sum_is_a_sum(rng):
    """And the sum of a value with a constant is none."""
    x = inputs("sum", rng)
    assert [row.kind for row in relax.layers(lambda x: x[1:] + x[:-1])(x)] == ["sum"]
    assert "sum" not in [row.kind for row in relax.layers(lambda x: x + 1)(x)]


# What relevance does not pass


def test_stop_gradient_stops_relevance(rng):
    """A branch behind stop_gradient is a constant; it takes its share of the sum with it."""
    x = inputs("sum", rng)
    fun = lambda x: x + 3 * lax.stop_gradient(x)
    np.testing.assert_allclose(relax.lrp(fun, rules.Linear())(x), x, rtol=1e-12)
    with pytest.warns(relax.RelaxWarning, match="stop_gradient"):
        ours = relax.lrp(lambda x: lax.stop_gradient(x) * 2)(x)
    np.testing.assert_array_equal(ours, jnp.zeros_like(x))


@pytest.mark.parametrize(
    "name", ["where mask", "triangle", "slice", "at set constant", "pad negative and interior"]
)
def test_what_is_cut_off_gets_nothing(name, rng):
    """Entries that do not reach the output have no relevance, in both currencies."""
    operation, x = OPERATIONS[name], inputs(name, rng)
    reach = pull_back(operation, x, jnp.ones_like(operation(x))) != 0
    assert not reach.all()
    for explained in (relax.lrp(operation), relax.lrp(lambda x: jax.nn.sigmoid(operation(x)))):
        np.testing.assert_array_equal(explained(x) != 0, reach)


def test_constants_keep_their_share(rng):
    """Zero padding in front of a sigmoid: the half that a padded unit gives is not the input's."""
    x = inputs("pad", rng)
    relevance = relax.lrp(lambda x: jax.nn.sigmoid(jnp.pad(x, 1)))(x)
    np.testing.assert_allclose(relevance, jax.nn.sigmoid(x), rtol=1e-9)


def test_a_mask_with_minus_infinity_makes_no_nan(rng):
    """Masking before an exponential: masked entries have no relevance, the rest theirs."""
    x = inputs("sum", rng)
    fun = lambda x: jnp.exp(jnp.where(MASK, x, -jnp.inf)).sum(1)
    relevance = relax.lrp(fun)(x)
    assert np.isfinite(relevance).all()
    np.testing.assert_allclose(relevance, jnp.where(MASK, jnp.exp(x), 0), rtol=1e-6)


def test_a_value_of_zero_in_front_of_a_linear_layer(rng):
    """A zero pixel has no relevance as a coefficient, and no NaN either."""
    x = inputs("sum", rng).at[1, 2].set(0.0)
    for name in ("cumsum", "fft", "max"):
        relevance = relax.lrp(lambda x, f=OPERATIONS[name]: jax.nn.sigmoid(f(x)))(x)
        assert np.isfinite(relevance).all(), name


# Rules on sums and pools


def test_norm_on_an_average_pool_matches_its_formula(rng):
    """Zennit's Norm: x_j / (sum x + eps) R, here in the units of the mean."""
    x = inputs("sum", rng)
    fun = lambda x: x.reshape(4, 3, 2).mean(-1) ** 2
    z = np.asarray(x).reshape(4, 3, 2).mean(-1)
    expected = np.asarray(x) * np.repeat(z**2 / (z + 0.25) / 2, 2, axis=1)
    ours = relax.lrp(fun, {select.sums: rules.Norm(0.25)})(x)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_a_sum_can_get_epsilon(rng):
    """Arras' rule for sums: x / (x + y + eps sign) R."""
    x, y = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5))
    z = np.asarray(jnp.tanh(x) + y**2)
    share = z / (z + 0.1 * np.where(z < 0, -1, 1))
    explained = relax.lrp(
        lambda x, y: jnp.tanh(x) + y**2, {select.sums: rules.Epsilon(0.1)}, argnums=(0, 1)
    )
    first, second = explained(x, y)
    np.testing.assert_allclose(first, np.tanh(x) * share, rtol=1e-9)
    np.testing.assert_allclose(second, np.asarray(y) ** 2 * share, rtol=1e-9)


def test_max_pool_gives_all_to_the_winner(rng):
    """One pixel of each window has the relevance of the window."""
    x = inputs("max_pool", rng)
    operation = image(IMAGES["max_pool"])
    relevance = np.asarray(relax.lrp(operation)(x)).reshape(8, 8, 3)
    windows = relevance.reshape(4, 2, 4, 2, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 4)
    assert ((windows != 0).sum(1) == 1).all()
    np.testing.assert_allclose(np.sort(windows.sum(1)), np.sort(operation(x).ravel()), rtol=1e-12)


def test_global_average_pooling_is_linear_and_no_statistic(rng):
    """A reduction alone is linear: relevance of a mean is that of its parts."""
    x = inputs("global average", rng)
    w = jnp.asarray(rng.normal(size=(3, 2)))
    fun = lambda x: x.reshape(1, 8, 8, 3).mean((1, 2)) @ w
    ours = relax.lrp(fun, rules.Epsilon(0.0))(x)
    np.testing.assert_allclose(ours.sum(), fun(x).sum(), rtol=1e-9)
    np.testing.assert_allclose(ours, x * jax.grad(lambda x: fun(x).sum())(x), rtol=1e-9)


def test_zero_minus_a_value_is_its_negative(rng):
    """Also where relevance travels as relevance: the sign of a coefficient is not that of R."""
    w, x = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    flat = [(select.dense, rules.Flat())]
    for zero in (0.0, jnp.zeros((2, 4))):
        got = relax.lrp(lambda x, zero=zero: (zero - x) @ w, flat)(x)
        np.testing.assert_allclose(got, relax.lrp(lambda x: (-x) @ w, flat)(x), rtol=1e-12)


COMPLEX = {
    "sigmoid of a magnitude": lambda x, w: jax.nn.sigmoid(jnp.abs(jnp.fft.rfft(x))).sum(-1),
    "magnitude, dense": lambda x, w: jnp.abs(jnp.fft.rfft(x)) @ w.real,
    "Fourier layer": lambda x, w: jnp.fft.irfft(jnp.fft.rfft(x) @ w),
}


@pytest.mark.parametrize("rule", [rules.Epsilon(0.0), rules.Flat(0.0), rules.WSquare(0.0)])
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_values_conserve(name, rule, rng):
    """The relevance of a complex value is real, whichever way it travels."""
    w = rng.normal(size=(5, 5)) + 1j * rng.normal(size=(5, 5))
    function = lambda x: COMPLEX[name](x, w)
    x = rng.normal(size=(3, 8))
    given = function(x)
    got = relax.lrp(function, rule)(x)
    assert not jnp.iscomplexobj(got)
    np.testing.assert_allclose(got.sum(), given.sum(), rtol=1e-10)


def test_each_output_of_a_barrier_is_its_own_operand(rng):
    """A barrier ties values in time, not in relevance: the weights of a layer stay weights."""
    w, b, x = rng.normal(size=(4, 3)), rng.normal(size=(2, 3)), rng.normal(size=(2, 4))

    def tied(w, x):
        w, x = lax.optimization_barrier((w, x))
        z, c = lax.optimization_barrier((x @ w, b))
        return z + c

    assert "sum" not in [row.kind for row in relax.layers(tied)(w, x)]
    rule = rules.Epsilon(0.0)
    expected = relax.lrp(lambda w, x: x @ w + b, rule)(w, x)
    np.testing.assert_allclose(relax.lrp(tied, rule)(w, x), expected, rtol=1e-12)
