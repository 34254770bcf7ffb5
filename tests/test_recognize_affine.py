"""Dense layers and convolutions however they are written, with whatever bias and BatchNorm follows.

Oracles: a naive rule on the layer's dense matrix, which is its Jacobian, and the layer that was
merged by hand.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import relax
from relax import rules, select

# Small functions that end in a sigmoid or a softmax are explained as they are.
pytestmark = pytest.mark.filterwarnings("ignore:What is explained is a probability")

EPSILON = 1e-6
RULES = {
    "epsilon": rules.Epsilon(0.1),
    "z_plus": rules.ZPlus(),
    "alpha_beta": rules.AlphaBeta(2.0, 1.0),
    "gamma": rules.Gamma(0.5),
    "z_box": rules.ZBox(-3.0, 4.0),
    "w_square": rules.WSquare(),
    "flat": rules.Flat(),
}

SPLITTING = ("epsilon", "z_plus", "alpha_beta", "gamma")
MATRIX = ("alpha_beta", "gamma", "z_box")  # all parts of the weight, boxes of size one
FIELD = ("alpha_beta", "z_box", "flat")  # and the receptive field
FOLDED = ("alpha_beta", "gamma", "z_box", "w_square")  # all that reads the folded weight

# Compiled once for all rules and without optimization: these tests are many and small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def explain(fun, names, *args, assign=lambda rule: rule):
    """Relevance of a function under several rules."""
    each = [relax.lrp(fun, assign(RULES[name])) for name in names]
    found = quick(lambda *args: [explained(*args) for explained in each])(*args)
    return dict(zip(names, found, strict=True))


def stabilized(z, epsilon=EPSILON):
    return z + epsilon * np.where(z < 0, -1, 1)


def naive(name, w, b, x, relevance):
    """The rules of the papers on a dense matrix: ``w[k, j]`` leads from input j to output k."""
    p, n = lambda a: np.maximum(a, 0), lambda a: np.minimum(a, 0)

    def share(numerator, denominator, epsilon=EPSILON):
        return (numerator * (relevance / stabilized(denominator, epsilon))[:, None]).sum(0)

    if name == "epsilon":
        return share(x * w, w @ x + b, 0.1)
    if name in ("z_plus", "alpha_beta"):
        above, below = p(x) * p(w) + n(x) * n(w), p(x) * n(w) + n(x) * p(w)
        positive = share(above, above.sum(1) + p(b))
        return positive if name == "z_plus" else 2 * positive - share(below, below.sum(1) + n(b))
    if name == "gamma":
        z, u, v = w @ x + b, w + 0.5 * p(w), w + 0.5 * n(w)
        above, below = p(x) * u + n(x) * v, p(x) * v + n(x) * u
        share_above = (z > 0) / stabilized(above.sum(1) + b + 0.5 * p(b))
        share_below = (z < 0) / stabilized(below.sum(1) + b + 0.5 * n(b))
        return (relevance * share_above) @ above + (relevance * share_below) @ below
    if name == "z_box":
        numerator = x * w + 3.0 * p(w) - 4.0 * n(w)
        return share(numerator, numerator.sum(1))
    if name == "w_square":
        return share(w**2, (w**2).sum(1) + b**2)
    return share(1.0 * (w != 0), 1.0 * (w != 0).sum(1))


def check_against_matrix(fun, x, names=RULES):
    """Relevance of an affine function equals the naive rule on its matrix, for every rule."""
    seed = np.random.default_rng(7).normal(size=jax.eval_shape(fun, x).shape)

    @quick
    def evaluate(x):
        each = [relax.lrp(fun, RULES[name], target=lambda _: seed)(x) for name in names]
        return fun(x), jax.jacrev(fun)(x), each

    z, w, each = evaluate(jnp.asarray(x))
    w, x = np.asarray(w).reshape(z.size, x.size), np.asarray(x)
    b = np.asarray(z).ravel() - w @ x.ravel()
    b = np.where(np.abs(b) < 1e-12, 0.0, b)
    for name, ours in zip(names, each, strict=True):
        expected = naive(name, w, b, x.ravel(), seed.ravel()).reshape(x.shape)
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-10, err_msg=name)


def kinds(fun, *args):
    """The kinds of a function's layers that are not mere moves of data."""
    return [row.kind for row in relax.layers(fun)(*args)]


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape))


# Matrix products


def contract(lhs_axes, rhs_axes, lhs_batch=(), rhs_batch=()):
    return functools.partial(
        lax.dot_general, dimension_numbers=((lhs_axes, rhs_axes), (lhs_batch, rhs_batch))
    )


DOTS = {
    "vector by vector": (lambda x, w: x @ w, (4,), (4,)),
    "vector by matrix": (lambda x, w: x @ w, (4,), (4, 3)),
    "matrix by vector": (lambda x, w: w @ x, (4,), (3, 4)),
    "batch": (lambda x, w: x @ w, (2, 4), (4, 3)),
    "batch, weight first": (lambda x, w: w @ x, (4, 2), (3, 4)),
    "batch, weight transposed": (lambda x, w: x @ w.T, (2, 4), (3, 4)),
    "two batch axes": (lambda x, w: x @ w, (2, 3, 4), (4, 3)),
    "batch to one output": (lambda x, w: x @ w, (2, 4), (4,)),
    "tensordot of two axes": (lambda x, w: jnp.tensordot(x, w, 2), (2, 3, 4), (3, 4, 2)),
    "outer product": (lambda x, w: jnp.einsum("bi,o->bio", x, w), (2, 3), (4,)),
    "einsum bi,io->bo": (lambda x, w: jnp.einsum("bi,io->bo", x, w), (2, 4), (4, 3)),
    "einsum io,bi->ob": (lambda x, w: jnp.einsum("io,bi->ob", w, x), (2, 4), (4, 3)),
    "einsum oi,bi->bo": (lambda x, w: jnp.einsum("oi,bi->bo", w, x), (2, 4), (3, 4)),
    "einsum bti,io->obt": (lambda x, w: jnp.einsum("bti,io->obt", x, w), (2, 3, 4), (4, 3)),
    "einsum bit,oi->bot": (lambda x, w: jnp.einsum("bit,oi->bot", x, w), (2, 4, 3), (3, 4)),
    "to heads": (lambda x, w: jnp.einsum("btd,dhk->bthk", x, w), (2, 3, 4), (4, 2, 3)),
    "from heads": (lambda x, w: jnp.einsum("bthk,hkd->btd", x, w), (2, 3, 2, 3), (2, 3, 4)),
    "per head": (lambda x, w: jnp.einsum("bthk,hkm->bthm", x, w), (2, 2, 3, 4), (3, 4, 2)),
    "per head, weight first": (lambda x, w: jnp.einsum("hkm,bhk->bmh", w, x), (2, 3, 4), (3, 4, 2)),
    "per sample": (lambda x, w: jnp.einsum("bi,bio->bo", x, w), (2, 4), (2, 4, 3)),
    "token mixing": (lambda x, w: jnp.einsum("btc,ts->bsc", x, w), (2, 4, 3), (4, 3)),
    "two batch axes in the weight": (
        contract((1,), (2,), (0, 2), (1, 0)),
        (2, 4, 3),
        (3, 2, 4, 2),
    ),
    "vmap over experts": (jax.vmap(lambda x, w: x @ w), (3, 2, 4), (3, 4, 2)),
    "vmap over samples": (jax.vmap(lambda x, w: w @ x, (0, None)), (2, 4), (3, 4)),
    "vmap to the last axis": (jax.vmap(lambda x, w: w @ x, (2, None), 1), (4, 3, 2), (2, 4)),
}


@pytest.mark.parametrize("name", DOTS)
def test_dot_of_every_layout_is_a_dense_layer_with_its_own_matrix(name, rng):
    """Any contraction with a constant is one dense layer, and each rule reads the right weights."""
    layer, x_shape, w_shape = DOTS[name]
    x, w = normal(rng, *x_shape), normal(rng, *w_shape)
    assert kinds(lambda x: layer(x, w), x) == ["dense"]
    check_against_matrix(lambda x: layer(x, w), x, MATRIX)


@pytest.mark.parametrize(
    "name", ["batch", "from heads", "to heads", "per head", "matrix by vector"]
)
def test_bias_of_the_output_features_is_merged(name, rng):
    """A bias belongs to the dense layer, whichever axes hold its features."""
    layer, x_shape, w_shape = DOTS[name]
    x, w = normal(rng, *x_shape), normal(rng, *w_shape)
    out = jax.eval_shape(layer, x, w).shape
    b = normal(rng, *out[-2:])
    assert kinds(lambda x: layer(x, w) + jnp.broadcast_to(b, out), x) == ["dense"]
    check_against_matrix(lambda x: layer(x, w) + jnp.broadcast_to(b, out), x, FOLDED)


@pytest.mark.parametrize("name", ["batch", "two batch axes"])
def test_parameters_may_be_arguments_or_closed_over(name, rng):
    """Relevance is the same whether the weight is an argument, closed over or a NumPy array."""
    layer, x_shape, w_shape = DOTS[name]
    x, w = normal(rng, *x_shape), normal(rng, *w_shape)
    argument = relax.lrp(lambda w, x: layer(x, w), rules.ZPlus())(w, x)
    closed = relax.lrp(lambda x: layer(x, w), rules.ZPlus())(x)
    array = np.asarray(w)
    constant = relax.lrp(lambda x: layer(x, array), rules.ZPlus())(x)
    np.testing.assert_array_equal(argument, closed)
    np.testing.assert_array_equal(argument, constant)


def weight_norm(p):
    return p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True) * p["g"][None]


COMPUTED = {
    "weight-normalized": lambda p, x: x @ weight_norm(p),
    "masked": lambda p, x: x @ (p["v"] * p["mask"]),
    "masked by where": lambda p, x: x @ jnp.where(p["mask"] > 0, p["v"], 0),
    "transposed": lambda p, x: x @ p["u"].T,
    "low rank added": lambda p, x: x @ (p["v"] + p["a"] @ p["u"][:, :2].T),
    "softmax of logits": lambda p, x: x @ jax.nn.softmax(p["v"], axis=0),
    "binarized": lambda p, x: x @ jnp.sign(p["v"]),
    "quantized": lambda p, x: x @ (p["q"].astype(x.dtype) * p["g"][None] / 127),
    "scaled": lambda p, x: x @ (p["v"] * 0.3),
    "indexed": lambda p, x: x @ p["stack"][1],
    "concatenated": lambda p, x: x @ jnp.concatenate([p["v"], p["u"].T], axis=1),
    "reshaped": lambda p, x: x @ p["v"].reshape(3, 4).T,
    "stopped": lambda p, x: x @ lax.stop_gradient(p["v"]),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_is_taken_as_it_comes_out(name, rng):
    """The rule acts on the weight that multiplies x, not on the parameters it is made of."""
    p = {
        "v": normal(rng, 4, 3),
        "g": normal(rng, 3),
        "u": normal(rng, 3, 4),
        "a": normal(rng, 4, 2),
        "stack": normal(rng, 2, 4, 3),
        "mask": jnp.asarray(rng.integers(0, 2, (4, 3)), jnp.float64),
        "q": jnp.asarray(rng.integers(-127, 127, (4, 3)), jnp.int8),
    }
    x = normal(rng, 2, 4)
    fun = lambda x: COMPUTED[name](p, x)
    assert kinds(fun, x) == ["dense"]
    check_against_matrix(fun, x, FOLDED)


def test_a_tied_weight_serves_two_layers_and_is_scaled_in_neither(rng):
    """Encoder and decoder share a weight: each layer is the naive rule on its own use of it."""
    w, scale, x = normal(rng, 4, 3), normal(rng, 3), normal(rng, 4)

    def fun(x):
        return w @ jnp.tanh((x @ w) * scale + 0.5 * scale)

    hidden = np.asarray(jnp.tanh((x @ w) * scale + 0.5 * scale))
    for name, ours in explain(fun, SPLITTING, x).items():
        middle = naive(name, np.asarray(w), np.zeros(4), hidden, np.asarray(fun(x)))
        folded = np.asarray(w * scale[None]).T
        expected = naive(name, folded, np.asarray(0.5 * scale), np.asarray(x), middle)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, err_msg=name)


# Convolutions


def conv(numbers, strides, padding="VALID", **options):
    return functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=numbers,
        **options,
    )


NHWC = ("NHWC", "HWIO", "NHWC")
CONVS = {
    "1-D": (conv(("NHC", "HIO", "NHC"), (1,)), (2, 6, 2), (3, 2, 3)),
    "1-D, strided and padded": (conv(("NHC", "HIO", "NHC"), (2,), "SAME"), (2, 7, 2), (3, 2, 3)),
    "1-D, causal and dilated": (
        conv(("NHC", "HIO", "NHC"), (1,), [(4, 0)], rhs_dilation=(2,)),
        (1, 7, 2),
        (3, 2, 3),
    ),
    "2-D": (conv(NHWC, (1, 1)), (2, 4, 4, 2), (3, 3, 2, 3)),
    "2-D, NCHW": (conv(("NCHW", "OIHW", "NCHW"), (1, 1), "SAME"), (2, 2, 4, 3), (3, 2, 3, 3)),
    "2-D, mixed layouts": (conv(("CHNW", "IWHO", "HNCW"), (1, 2)), (2, 4, 2, 5), (2, 3, 2, 3)),
    "2-D, uneven strides and padding": (
        conv(NHWC, (2, 1), [(1, 0), (2, 2)]),
        (1, 5, 4, 2),
        (3, 2, 2, 3),
    ),
    "2-D, dilated": (conv(NHWC, (1, 1), "SAME", rhs_dilation=(2, 2)), (1, 5, 5, 2), (3, 3, 2, 2)),
    "2-D, negative padding": (conv(NHWC, (1, 1), [(-1, 0), (0, -1)]), (1, 5, 5, 2), (3, 3, 2, 2)),
    "2-D, 1 x 1": (conv(NHWC, (1, 1)), (2, 2, 3, 4), (1, 1, 4, 3)),
    "2-D, grouped": (
        conv(NHWC, (1, 1), feature_group_count=2),
        (2, 4, 3, 4),
        (2, 2, 2, 6),
    ),
    "2-D, depthwise": (
        conv(NHWC, (2, 1), "SAME", feature_group_count=3),
        (2, 4, 4, 3),
        (3, 3, 1, 3),
    ),
    "2-D, depthwise with multiplier": (
        conv(NHWC, (1, 1), feature_group_count=3),
        (1, 4, 4, 3),
        (3, 3, 1, 6),
    ),
    "2-D, transposed": (
        functools.partial(lax.conv_transpose, strides=(2, 2), padding="SAME"),
        (1, 3, 3, 2),
        (3, 3, 2, 3),
    ),
    "2-D, transposed kernel": (
        functools.partial(
            lax.conv_transpose, strides=(2, 1), padding="VALID", transpose_kernel=True
        ),
        (1, 3, 3, 2),
        (3, 3, 3, 2),
    ),
    "2-D, both dilated": (
        conv(NHWC, (1, 1), [(2, 2), (1, 1)], lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
        (1, 3, 4, 2),
        (2, 2, 2, 2),
    ),
    "2-D, grouped batch": (
        conv(NHWC, (1, 1), batch_group_count=2),
        (4, 3, 3, 2),
        (2, 2, 2, 4),
    ),
    "2-D, local": (
        lambda x, w: lax.conv_general_dilated_local(
            x, w, (1, 1), "VALID", (2, 2), dimension_numbers=NHWC
        ),
        (1, 4, 4, 2),
        (3, 3, 8, 2),
    ),
    "3-D": (conv(("NDHWC", "DHWIO", "NDHWC"), (1, 2, 1)), (1, 3, 4, 3, 2), (2, 2, 2, 2, 2)),
    "3-D, grouped and padded": (
        conv(("NCDHW", "OIDHW", "NCDHW"), (1, 1, 1), "SAME", feature_group_count=2),
        (1, 2, 3, 2, 2),
        (4, 1, 2, 2, 2),
    ),
    "vmapped": (
        jax.vmap(lambda x, w: conv(NHWC, (1, 1))(x[None], w)[0], (0, None)),
        (2, 4, 4, 2),
        (3, 3, 2, 3),
    ),
    "vmapped over weights": (
        jax.vmap(conv(NHWC, (1, 1)), (None, 0)),
        (1, 4, 4, 2),
        (2, 3, 3, 2, 2),
    ),
    "vmapped over both": (jax.vmap(conv(NHWC, (1, 1))), (2, 1, 4, 4, 2), (2, 3, 3, 2, 2)),
    "jnp.convolve": (lambda x, w: jnp.convolve(x, w), (6,), (3,)),
    "input as the kernel": (
        lambda x, w: conv(NHWC, (1, 1))(w, x),
        (2, 2, 2, 3),
        (2, 4, 4, 2),
    ),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolution_of_every_shape_follows_its_own_matrix(name, rng):
    """Groups, strides, dilation, padding, layouts, 1-D to 3-D: each rule on the true weights."""
    layer, x_shape, w_shape = CONVS[name]
    x, w = normal(rng, *x_shape), normal(rng, *w_shape)
    fun = lambda x: layer(x, w)
    assert {"conv", "dense"} & set(kinds(fun, x))
    # The patches of a local convolution are values of their own: input rules share out to them.
    check_against_matrix(fun, x, SPLITTING if "local" in name else FIELD)


@st.composite
def contractions(draw):
    """A dot_general: shapes of both sides and the axes that are summed or shared."""
    count = draw(st.integers(0, 1))
    sizes = {"b": [2] * count, "c": draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))}
    free = st.lists(st.integers(1, 3), max_size=2)
    sides = []
    for own in (draw(free), draw(free)):
        axes = [("b", i) for i in range(len(sizes["b"]))]
        axes += [("c", i) for i in range(len(sizes["c"]))] + [("f", i) for i in range(len(own))]
        axes = draw(st.permutations(axes))
        place = lambda kind, axes=axes: [axes.index((kind, i)) for i in range(len(sizes[kind]))]
        shape = [(own if kind == "f" else sizes[kind])[i] for kind, i in axes]
        sides.append((shape, place("c"), place("b")))
    (lhs, lhs_contract, lhs_batch), (rhs, rhs_contract, rhs_batch) = sides
    return lhs, rhs, ((lhs_contract, rhs_contract), (lhs_batch, rhs_batch)), draw(st.booleans())


@settings(max_examples=6, deadline=None, derandomize=True)
@given(contractions())
def test_any_dot_general_follows_its_own_matrix(case):
    """Axes of all roles in any order on both sides, the input on either, a bias behind."""
    lhs, rhs, numbers, left = case
    rng = np.random.default_rng(0)
    x, w = normal(rng, *(lhs if left else rhs)), normal(rng, *(rhs if left else lhs))

    def fun(x):
        z = lax.dot_general(*((x, w) if left else (w, x)), numbers)
        return z + jnp.asarray(np.random.default_rng(1).normal(size=z.shape))

    check_against_matrix(fun, x, FOLDED)


@st.composite
def convolutions(draw):
    """A convolution of one or two dimensions with any layout, stride, padding and dilation."""
    n = draw(st.integers(1, 2))
    groups, per_group, out = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
    )
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(n))
    layouts = [draw(st.permutations("NC" + "HW"[:n])) for _ in range(2)]
    kernel = draw(st.permutations("OI" + "HW"[:n]))
    space, window = each(3, 4), each(1, 2)
    size = {"N": 2, "C": groups * per_group, **dict(zip("HW", space, strict=False))}
    taps = {"O": groups * out, "I": per_group, **dict(zip("HW", window, strict=False))}
    return {
        "x": [size[a] for a in layouts[0]],
        "w": [taps[a] for a in kernel],
        "window_strides": each(1, 2),
        "padding": [draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in range(n)],
        "lhs_dilation": each(1, 2),
        "rhs_dilation": each(1, 2),
        "feature_group_count": groups,
        "dimension_numbers": ("".join(layouts[0]), "".join(kernel), "".join(layouts[1])),
    }


@settings(max_examples=6, deadline=None, derandomize=True)
@given(convolutions())
def test_any_convolution_follows_its_own_matrix(case):
    """Whatever the layout, stride, padding, dilation and groups, a BatchNorm is folded in."""
    case = dict(case)
    rng = np.random.default_rng(0)
    x, w = normal(rng, *case.pop("x")), normal(rng, *case.pop("w"))
    axis = case["dimension_numbers"][2].index("C")

    def fun(x):
        z = lax.conv_general_dilated(x, w, **case)
        shape = [1] * z.ndim
        shape[axis] = z.shape[axis]
        scale, shift = np.random.default_rng(1).normal(size=(2, *shape))
        return z * jnp.asarray(scale) + jnp.asarray(shift)

    assert kinds(fun, x) == ["conv"]
    check_against_matrix(fun, x, FOLDED)


MODULES = {
    "Conv": (nn.Conv(3, (3, 3)), (2, 4, 4, 2)),
    "Conv, circular": (nn.Conv(3, (3, 3), padding="CIRCULAR"), (1, 4, 4, 2)),
    "Conv, reflecting": (nn.Conv(3, (3, 3), padding="REFLECT"), (1, 4, 4, 2)),
    "Conv, causal": (nn.Conv(3, (3,), padding="CAUSAL"), (2, 5, 2)),
    "Conv, no batch": (nn.Conv(3, (3, 3), strides=2), (5, 5, 2)),
    "Conv, many batch axes": (nn.Conv(3, (2, 2)), (2, 2, 3, 3, 2)),
    "ConvTranspose": (nn.ConvTranspose(3, (3, 3), strides=(2, 2)), (1, 3, 3, 2)),
    "ConvLocal": (nn.ConvLocal(2, (2, 2)), (1, 3, 3, 2)),
    "Dense": (nn.Dense(3), (2, 3, 4)),
    "DenseGeneral": (nn.DenseGeneral((2, 3), axis=(-2, -1)), (2, 2, 4)),
    "DenseGeneral, batch axis": (nn.DenseGeneral(3, axis=-1, batch_dims=(0,)), (2, 2, 4)),
    "Einsum": (nn.Einsum((3, 4, 2), "bhk,hkm->bhm"), (2, 3, 4)),
    "WeightNorm": (nn.WeightNorm(nn.Dense(3)), (2, 4)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_flax_module_is_one_affine_layer_with_its_bias(name, rng):
    """Every affine module of Flax follows its own matrix, bias included."""
    module, shape = MODULES[name]
    x = normal(rng, *shape)
    variables = module.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), variables)
    fun = lambda x: module.apply(variables, x)
    found = kinds(fun, x)
    assert len([kind for kind in found if kind in ("dense", "conv")]) == 1
    assert "scale_shift" not in found
    # A reflected pixel meets a unit several times: its true weight is a sum, not one of the kernel.
    linear = "reflecting" in name or "circular" in name
    check_against_matrix(fun, x, ["epsilon"] if linear else SPLITTING if "Local" in name else FIELD)


# Bias and inference BatchNorm


@pytest.fixture
def norm(rng):
    """BatchNorm of 3 channels; every second scale is negative."""
    return {
        "scale": jnp.asarray(rng.normal(size=3)) * jnp.array([1.0, -1.0, 1.0]),
        "bias": normal(rng, 3),
        "mean": normal(rng, 3),
        "var": jnp.asarray(rng.uniform(0.5, 2.0, size=3)),
    }


def row(a, z):
    """Per-channel numbers in the rank of ``z``, as rank promotion is an error here."""
    return a.reshape((1,) * (z.ndim - 1) + a.shape)


def inverse(n):
    return n["scale"] * lax.rsqrt(n["var"] + 1e-3)


def flax_style(z, n):
    y = z - row(n["mean"], z)
    factor = lax.rsqrt(row(n["var"], z) + 1e-3)
    factor *= row(n["scale"], z)
    y *= factor
    return y + row(n["bias"], z)


def keras_style(z, n):
    return z * row(inverse(n), z) + row(n["bias"] - n["mean"] * inverse(n), z)


def one_sample(z, n):
    """The first axes are reshaped away and come back."""
    flat = z.reshape(-1, 3)
    return flax_style(flat, n).reshape(z.shape)


def channels_first(z, n):
    order = (0, z.ndim - 1, *range(1, z.ndim - 1))
    first = jnp.transpose(z, order)
    shape = (1, 3) + (1,) * (z.ndim - 2)
    y = (first - n["mean"].reshape(shape)) * inverse(n).reshape(shape) + n["bias"].reshape(shape)
    return jnp.transpose(y, (0, *range(2, z.ndim), 1))


def split_channels(z, n):
    """Channels stand on two axes of which one has size one."""
    y = z.reshape(*z.shape[:-1], 1, 3)
    return keras_style(y, n).reshape(z.shape)


def cast(z, n):
    y = flax_style(z.astype(jnp.float64), n)
    return y.astype(z.dtype)


@jax.jit
def jitted(z, n):
    return flax_style(z, n)


WRITINGS = {
    "flax": flax_style,
    "keras": keras_style,
    "formula": lambda z, n: (
        (z - row(n["mean"], z)) / row(jnp.sqrt(n["var"] + 1e-3), z) * row(n["scale"], z)
        + row(n["bias"], z)
    ),
    "operands swapped": lambda z, n: (
        row(n["bias"], z)
        + row(n["scale"], z) * (lax.rsqrt(row(n["var"], z) + 1e-3) * (-row(n["mean"], z) + z))
    ),
    "subtracted": lambda z, n: row(n["bias"], z) - (row(n["mean"], z) - z) * row(inverse(n), z),
    "negated": lambda z, n: -(row(n["mean"], z) - z) * row(inverse(n), z) + row(n["bias"], z),
    "divided": lambda z, n: (z - row(n["mean"], z)) / row(1 / inverse(n), z) + row(n["bias"], z),
    "bias as a difference": lambda z, n: (
        z * row(inverse(n), z) - row(n["mean"] * inverse(n) - n["bias"], z)
    ),
    "two scales": lambda z, n: keras_style(
        2.0 * z, n | {"var": 4 * n["var"] + 3e-3, "mean": 2 * n["mean"]}
    ),
    "one sample": one_sample,
    "channels first": channels_first,
    "split channels": split_channels,
    "jitted": jitted,
    "wide": lambda z, n: (
        jnp.broadcast_to(row(inverse(n), z), z.shape) * (z - row(n["mean"], z)) + row(n["bias"], z)
    ),
    "vmapped": lambda z, n: jax.vmap(lambda y: flax_style(y, n))(z),
}

CORES = {
    "dense": (lambda x, w: x @ w, (2, 4), (4, 3)),
    "dense, tokens": (lambda x, w: jnp.einsum("bti,io->bto", x, w), (2, 2, 4), (4, 3)),
    "conv": (conv(NHWC, (1, 1), "SAME"), (2, 3, 3, 2), (3, 3, 2, 3)),
    "depthwise": (
        conv(NHWC, (1, 1), "SAME", feature_group_count=3),
        (2, 3, 3, 3),
        (3, 3, 1, 3),
    ),
}


def merged(core, w, b, n):
    """The oracle: BatchNorm folded into weight and bias by hand."""

    def fun(x):
        z = core(x, w * row(inverse(n), w))
        return z + row((b - n["mean"]) * inverse(n) + n["bias"], z)

    return fun


def assert_same_relevance(fun, oracle, x, names=RULES, rtol=1e-10, atol=1e-12):
    both = quick(lambda x: [[relax.lrp(f, RULES[n])(x) for n in names] for f in (fun, oracle)])
    for name, ours, expected in zip(names, *both(x), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("writing", WRITINGS)
def test_batchnorm_is_merged_however_it_is_written(writing, rng, norm):
    """One dense layer in the plan, and the relevance of the layer merged by hand, for each rule."""
    core, x_shape, w_shape = CORES["dense, tokens"]
    x, w, b = normal(rng, *x_shape), normal(rng, *w_shape), normal(rng, 3)

    def fun(x):
        z = core(x, w)
        return WRITINGS[writing](z + row(b, z), norm)

    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, merged(core, w, b, norm), x, FOLDED)


def per_channel(operation):
    """The operation with a random vector along the channel axis."""

    def apply(z, axis, rng):
        shape = [1] * z.ndim
        shape[axis] = z.shape[axis]
        return operation(z, jnp.asarray(rng.normal(size=shape)))

    return apply


def moved(z, order, axis):
    return jnp.transpose(z, order), order.index(axis)


# Each takes and gives a value and the axis of its channels.
LINKS = {
    "add": per_channel(lambda z, a: z + a),
    "add first": per_channel(lambda z, a: a + z),
    "subtract": per_channel(lambda z, a: z - a),
    "subtract from": per_channel(lambda z, a: a - z),
    "multiply": per_channel(lambda z, a: z * a),
    "multiply first": per_channel(lambda z, a: a * z),
    "divide": per_channel(lambda z, a: z / a),
    "negate": lambda z, axis, rng: -z,
    "literal": lambda z, axis, rng: 0.5 * z,
    "literal shift": lambda z, axis, rng: z - 0.25,
    "jit": lambda z, axis, rng: jax.jit(lambda z: LINKS["multiply"](z, axis, rng))(z),
    "reverse axes": lambda z, axis, rng: moved(z, tuple(range(z.ndim))[::-1], axis),
    "rotate axes": lambda z, axis, rng: moved(z, (*range(1, z.ndim), 0), axis),
    "new axis": lambda z, axis, rng: (z[None], axis + 1),
    "last axis": lambda z, axis, rng: (z[..., None], axis),
    "merge the others": lambda z, axis, rng: (
        jnp.moveaxis(z, axis, -1).reshape(-1, z.shape[axis]),
        1,
    ),
}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(LINKS)), max_size=7))
def test_any_chain_that_stays_affine_per_channel_is_one_layer(names):
    """Adding, subtracting, scaling, dividing, moving: in any order one layer, with one matrix."""
    rng = np.random.default_rng(0)
    x, w = normal(rng, 2, 2, 3), normal(rng, 3, 2)

    def fun(x):
        vectors = np.random.default_rng(1)
        z, axis = x @ w, 2
        for name in (*names, "add"):
            z = LINKS[name](z, axis, vectors)
            if isinstance(z, tuple):
                z, axis = z
        return z

    assert kinds(fun, x) == ["dense"]
    check_against_matrix(fun, x, FOLDED)


@pytest.mark.parametrize("writing", ["flax", "keras", "channels first"])
@pytest.mark.parametrize("core", ["dense", "conv", "depthwise"])
def test_batchnorm_is_merged_into_every_kind_of_layer(core, writing, rng, norm):
    """Dense layers, convolutions and depthwise convolutions alike."""
    layer, x_shape, w_shape = CORES[core]
    if core == "dense" and writing == "channels first":
        writing = "one sample"
    x, w = normal(rng, *x_shape), normal(rng, *w_shape)
    fun = lambda x: WRITINGS[writing](layer(x, w), norm)
    assert kinds(fun, x) == ["conv" if "spec" in str(layer) or "conv" in str(layer) else "dense"]
    names = RULES if writing == "flax" else FOLDED
    assert_same_relevance(fun, merged(layer, w, jnp.zeros(3), norm), x, names)


@pytest.mark.parametrize("writing", ["flax", "keras", "formula"])
def test_batchnorm_behind_a_transposed_weight(writing, rng, norm):
    """The scale is folded along the right axis if the weight stands on the left."""
    w, x = normal(rng, 3, 4), normal(rng, 4, 2)
    fun = lambda x: WRITINGS[writing]((w @ x).T, norm)
    oracle = lambda x: merged(lambda x, v: x @ v, w.T, jnp.zeros(3), norm)(x.T)
    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, oracle, x)


def test_batchnorm_of_a_layer_with_two_feature_axes(rng):
    """Heads and head features have scales of their own; both fold."""
    w, x = normal(rng, 4, 2, 3), normal(rng, 2, 4)
    heads, features, b = normal(rng, 1, 2, 1), normal(rng, 1, 1, 3), normal(rng, 1, 2, 3)
    fun = lambda x: jnp.einsum("bi,ihk->bhk", x, w) * heads * features + b
    oracle = lambda x: jnp.einsum("bi,ihk->bhk", x, w * heads * features) + b
    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, oracle, x)


def test_a_scale_over_merged_feature_axes_folds(rng):
    """A reshape merges two feature axes before the scale and the shift."""
    w, x = normal(rng, 4, 2, 3), normal(rng, 2, 4)
    scale, b = normal(rng, 1, 6), normal(rng, 1, 6)
    fun = lambda x: jnp.einsum("bi,ihk->bhk", x, w).reshape(2, 6) * scale + b
    oracle = lambda x: x @ (w.reshape(4, 6) * scale) + b
    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, oracle, x)


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 1, 3, 1), (1, 1, 1, 2), (1, 2, 1, 2)])
def test_a_scale_over_a_part_of_a_feature_axis_folds(rng, shape):
    """Heads are split off the features, and scaled by head, in groups, or by feature."""
    w, x, scale = normal(rng, 4, 12), normal(rng, 2, 4), normal(rng, *shape)
    b = normal(rng, 1, 2, 3, 2)
    fun = lambda x: ((x @ w).reshape(2, 2, 3, 2) * scale + b).reshape(2, 12)
    spread = jnp.broadcast_to(scale, (1, 2, 3, 2)).reshape(1, 12)
    oracle = lambda x: x @ (w * spread) + b.reshape(1, 12)
    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, oracle, x)


def test_batchnorm_behind_a_pixel_shuffle_folds(rng, norm):
    """Channels become positions before the norm, which scales what is left of them."""
    kernel, x = normal(rng, 3, 3, 2, 12), normal(rng, 2, 4, 4, 2)
    gain, b = normal(rng, 1, 1, 1, 3), normal(rng, 1, 1, 1, 3)

    def shuffled(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        z = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return z.reshape(2, 4, 4, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 3)

    fun = lambda x: shuffled(x, kernel) * gain + b
    oracle = lambda x: shuffled(x, kernel * jnp.tile(gain, 4)) + b
    assert kinds(fun, x) == ["conv"]
    assert_same_relevance(fun, oracle, x)


def test_a_scale_behind_a_mix_of_samples_and_features_is_a_layer_of_its_own(rng):
    """Axes that no feature is left of: nothing to fold into, and nothing goes wrong."""
    w, x = normal(rng, 4, 6), normal(rng, 2, 4)
    scale, b = normal(rng, 1, 4), normal(rng, 1, 4)
    fun = lambda x: (x @ w).reshape(3, 4) * scale + b
    assert kinds(fun, x)[0] == "dense"
    assert "scale_shift" in kinds(fun, x)
    full = jnp.broadcast_to(scale, (3, 4)).reshape(2, 6)
    per_sample = lambda x: (
        jnp.einsum("bi,ij,bj->bj", x, w, full) + (b + 0 * full.reshape(3, 4)).reshape(2, 6)
    )
    rule = rules.Epsilon(0.0)  # the one rule for which merging makes no difference
    np.testing.assert_allclose(
        relax.lrp(fun, rule)(x), relax.lrp(per_sample, rule)(x), rtol=1e-10, atol=1e-12
    )


def test_batchnorm_behind_weights_with_a_batch_axis(rng):
    """Scales along a batch axis of the weight (one per expert) fold as well."""
    w, x = normal(rng, 3, 4, 2), normal(rng, 3, 2, 4)
    expert, b = normal(rng, 3, 1, 1), normal(rng, 3, 1, 2)
    fun = lambda x: jax.vmap(lambda x, w: x @ w)(x, w) * expert + b
    oracle = lambda x: jax.vmap(lambda x, w: x @ w)(x, w * expert) + b
    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, oracle, x)


def test_two_batchnorms_and_a_layer_scale_behind_one_layer(rng, norm):
    """All that stays affine is one layer."""
    w, x, gain = normal(rng, 4, 3), normal(rng, 2, 4), normal(rng, 1, 3)
    fun = lambda x: keras_style(flax_style(x @ w, norm), norm) * gain
    once = lambda z: keras_style(flax_style(z, norm), norm) * gain
    shift = once(jnp.zeros((1, 3)))
    scale = once(jnp.ones((1, 3))) - shift
    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, lambda x: x @ (w * scale) + shift, x)


@pytest.mark.parametrize("module", ["conv", "dense"])
def test_flax_batchnorm_after_a_module_is_merged(module, rng, norm):
    """Flax's own BatchNorm, with parameters and statistics as they are."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Conv(3, (3, 3)) if module == "conv" else nn.Dense(3)
            x = layer(x)
            return nn.BatchNorm(use_running_average=True, epsilon=1e-3)(x)

    x = normal(rng, *((1, 4, 4, 2) if module == "conv" else (2, 4)))
    variables = Block().init(jax.random.key(0), x)
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), variables)
    variables["params"]["BatchNorm_0"] = {k: norm[k] for k in ("scale", "bias")}
    variables["batch_stats"]["BatchNorm_0"] = {k: norm[k] for k in ("mean", "var")}
    (weights,) = [v for k, v in variables["params"].items() if k != "BatchNorm_0"]
    core = CORES[module][0]
    fun = lambda x: Block().apply(variables, x)
    assert kinds(fun, x) == [module]
    assert_same_relevance(fun, merged(core, weights["kernel"], weights["bias"], norm), x)


def test_casts_between_layer_and_batchnorm_do_not_part_them(rng, norm):
    """A float32 layer whose BatchNorm is computed in float64 is still one layer."""
    w, x = normal(rng, 4, 3).astype(jnp.float32), normal(rng, 2, 4).astype(jnp.float32)
    fun = lambda x: cast(x @ w, norm)
    oracle = merged(lambda x, v: x @ v, w.astype(jnp.float64), jnp.zeros(3), norm)
    assert kinds(fun, x) == ["dense"]
    expected = explain(oracle, RULES, x.astype(jnp.float64))
    for name, ours in explain(fun, RULES, x).items():
        assert ours.dtype == x.dtype
        np.testing.assert_allclose(ours, expected[name], rtol=2e-4, atol=1e-5, err_msg=name)


def test_float32_batchnorm_inside_a_bfloat16_network(rng, norm):
    """The usual mixed precision: bfloat16 layers, float32 BatchNorm, one merged layer."""
    half, single = jnp.bfloat16, jax.tree.map(lambda a: a.astype(jnp.float32), norm)
    w, x = normal(rng, 4, 3).astype(half), normal(rng, 2, 4).astype(half)
    fun = lambda x: flax_style((x @ w).astype(jnp.float32), single).astype(half)
    oracle = merged(lambda x, v: x @ v, w.astype(jnp.float64), jnp.zeros(3), norm)
    assert kinds(fun, x) == ["dense"]
    expected = explain(oracle, RULES, x.astype(jnp.float64))
    for name, ours in explain(fun, RULES, x).items():
        assert ours.dtype == half
        wide = np.asarray(ours, np.float64)
        np.testing.assert_allclose(wide, expected[name], rtol=0.05, atol=0.05, err_msg=name)


def test_a_single_sample_is_treated_as_a_batch_is(rng, norm):
    """The batch axis that a model adds and takes away again changes nothing."""
    core, x_shape, w_shape = CORES["conv"]
    x, w = normal(rng, *x_shape), normal(rng, *w_shape)

    def single(x):
        return keras_style(core(x[None], w), norm)[0]

    batched = lambda x: keras_style(core(x, w), norm)
    each, together = [explain(single, RULES, sample) for sample in x], explain(batched, RULES, x)
    for name in RULES:
        ours = jnp.stack([found[name] for found in each])
        np.testing.assert_allclose(ours, together[name], rtol=1e-10, atol=1e-12, err_msg=name)


def shifted(z, w):
    """A bias behind a transpose: features first, then the batch."""
    return jnp.moveaxis(z, -1, 0) + w[0, 0].sum(0)[:, None, None, None]


BATCHES = {
    "dense": lambda x, w: x @ w[0, 0],
    "bias": lambda x, w: x @ w[0, 0] + w[0, 0].sum(0)[None, None, None],
    "bias behind a transpose": lambda x, w: shifted(x @ w[0, 0], w),
    "conv": lambda x, w: conv(NHWC, (1, 1))(x, w),
    "conv, batch last": lambda x, w: conv(("NHWC", "HWIO", "CHWN"), (1, 1))(x, w),
    "conv, bias behind a transpose": lambda x, w: shifted(conv(NHWC, (1, 1))(x, w), w),
}


@pytest.mark.parametrize("name", BATCHES)
def test_samples_of_a_batch_do_not_mix_in_the_stabilizer(name, rng):
    """Relative to the size of z means of the sample's own z, wherever the batch axis stands."""
    x, w = normal(rng, 3, 4, 4, 2), normal(rng, 2, 2, 2, 3)
    x = x * jnp.array([0.01, 1.0, 100.0])[:, None, None, None]
    explained = relax.lrp(lambda x: BATCHES[name](x, w), rules.Epsilon(0.3, stabilizer="scale"))
    together, apart = quick(
        lambda x: (explained(x), jnp.concatenate([explained(x[i : i + 1]) for i in range(3)]))
    )(x)
    np.testing.assert_allclose(together, apart, rtol=1e-9)


def test_batchnorm_after_vmapped_layers_is_merged(rng, norm):
    """Equinox and Haiku users write one sample and vmap."""
    w, x, b = normal(rng, 4, 3), normal(rng, 2, 4), normal(rng, 3)

    def fun(x):
        return jax.vmap(lambda x: flax_style(w.T @ x + b, norm))(x)

    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, merged(lambda x, v: x @ v, w, b, norm), x)


def test_the_network_between_two_merged_layers(rng, norm):
    """Conv, BatchNorm, ReLU twice: the network of merged layers has the same relevance."""
    core = CORES["conv"][0]
    x, w1, w2 = normal(rng, 1, 4, 4, 2), normal(rng, 3, 3, 2, 3), normal(rng, 3, 3, 3, 3)
    other = norm | {"scale": -norm["scale"]}

    def fun(x):
        h = jax.nn.relu(flax_style(core(x, w1), norm))
        return jax.nn.relu(keras_style(core(h, w2), other)).sum()

    def oracle(x):
        h = jax.nn.relu(merged(core, w1, jnp.zeros(3), norm)(x))
        return jax.nn.relu(merged(core, w2, jnp.zeros(3), other)(h)).sum()

    assert kinds(fun, x)[:4] == ["conv", "activation", "conv", "activation"]
    assert_same_relevance(fun, oracle, x)


# What is not merged


def test_batchnorm_after_a_pooling_is_a_layer_of_its_own(rng, norm):
    """It has no kernel to go into: by default it is linear, and rules reach it as scale_shift."""
    x = normal(rng, 2, 4, 4, 3)

    def fun(x):
        return flax_style(nn.max_pool(x, (2, 2), (2, 2)), norm)

    assert kinds(fun, x) == ["max_pool", "scale_shift"]
    pooled, pull_back = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    linear = row(inverse(norm), pooled) * pooled
    default = x * pull_back(linear / pooled)[0]
    np.testing.assert_allclose(relax.lrp(fun, rules.Linear())(x), default, rtol=1e-9)
    # Under z+ a feature's own contribution counts where it is positive, next to a positive bias.
    shift = row(norm["bias"] - norm["mean"] * inverse(norm), pooled)
    plus = jnp.maximum(linear, 0)
    share = plus / stabilized(plus + jnp.maximum(shift, 0)) * fun(x)
    expected = pull_back(share)[0]
    chosen = {select.scale_shift: rules.ZPlus()}
    np.testing.assert_allclose(relax.lrp(fun, chosen)(x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("writing", ["flax", "keras", "formula", "subtracted", "one sample"])
def test_batchnorm_after_a_relu_follows_its_diagonal_matrix(writing, rng, norm):
    """Pre-activation networks: BatchNorm on its own obeys every affine rule."""
    x = normal(rng, 2, 3) + 0.1
    fun = lambda x: WRITINGS[writing](x, norm)
    assert kinds(fun, x) == ["scale_shift"]
    check_against_matrix(fun, x)
    behind = lambda x: WRITINGS[writing](jax.nn.relu(x), norm)
    assert kinds(behind, x) == ["activation", "scale_shift"]


def test_batchnorm_before_a_layer_is_not_merged_into_it(rng, norm):
    """Merging goes backwards only: a BatchNorm in front of a convolution keeps its own rule."""
    w, x = normal(rng, 3, 2), normal(rng, 2, 3)
    fun = lambda x: keras_style(x, norm) @ w
    assert kinds(fun, x) == ["scale_shift", "dense"]
    z = np.asarray(keras_style(x, norm))
    relevance = relax.lrp(fun, {select.dense: rules.ZPlus()})(x)
    for i in range(2):
        middle = naive("z_plus", np.asarray(w).T, np.zeros(2), z[i], z[i] @ np.asarray(w))
        expected = np.asarray(x)[i] * np.asarray(inverse(norm)) * middle / z[i]
        np.testing.assert_allclose(relevance[i], expected, rtol=1e-9)


def unfoldable(rng, kind):
    """A scale that no kernel can hold: it varies over positions, samples or mixed axes."""
    w = normal(rng, 4, 3)
    shape = {"position": (1, 2, 1), "sample": (2, 1, 1), "all": (2, 2, 3)}[kind]
    scale = normal(rng, *shape)
    return w, scale


@pytest.mark.parametrize("kind", ["position", "sample", "all"])
def test_a_scale_that_no_weight_can_hold_is_not_merged(kind, rng):
    """Relevance passes such a scale unchanged, and the rule sees the weights without it."""
    w, scale = unfoldable(rng, kind)
    x = normal(rng, 2, 2, 4)
    fun = lambda x: (x @ w) * scale
    assert kinds(fun, x) == ["dense", "linear"]
    for name, ours in explain(fun, RULES, x).items():
        for index in np.ndindex(2, 2):
            relevance = np.asarray(fun(x))[index]
            sample = np.asarray(x)[index]
            expected = naive(name, np.asarray(w).T, np.zeros(3), sample, relevance)
            np.testing.assert_allclose(ours[index], expected, rtol=1e-9, err_msg=name)


def test_a_bias_that_varies_over_positions_is_merged_all_the_same(rng):
    """A shift needs no folding: position embeddings after a patch projection are its bias."""
    w, x, b = normal(rng, 4, 3), normal(rng, 2, 2, 4), normal(rng, 1, 2, 3)
    fun = lambda x: x @ w + b
    assert kinds(fun, x) == ["dense"]
    check_against_matrix(fun, x)


def test_a_scale_computed_from_another_argument_still_folds(rng):
    """Conditional scales per feature: another input than the explained one makes them."""
    w, c, x = normal(rng, 4, 3), normal(rng, 2), normal(rng, 2, 4)
    v = normal(rng, 2, 3)
    fun = lambda c, x: (x @ w) * jnp.tanh(c @ v)[None] + (c @ v)[None]
    oracle = lambda c, x: x @ (w * jnp.tanh(c @ v)[None]) + (c @ v)[None]
    assert kinds(fun, c, x) == ["dense"]
    ours, expected = explain(fun, FOLDED, c, x), explain(oracle, FOLDED, c, x)
    for name in FOLDED:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-10, err_msg=name)


def test_a_layer_with_two_readers_ends_where_they_part(rng):
    """A scale on one of two branches belongs to that branch alone."""
    w, x = normal(rng, 4, 3), normal(rng, 4)
    scale, shift = normal(rng, 3), normal(rng, 3)

    def fun(x):
        z = x @ w
        return jax.nn.relu(z * scale + shift) + z

    z, scale_, shift_ = np.asarray(x @ w), np.asarray(scale), np.asarray(shift)
    active = z * scale_ + shift_ > 0
    relevance = z * (1 + scale_ * active)  # the shift absorbs its part in the linear branch
    assert kinds(fun, x) == ["dense", "scale_shift", "activation", "sum"]
    assign = lambda rule: {select.dense: rule, select.scale_shift: rules.Linear()}
    for name, ours in explain(fun, RULES, x, assign=assign).items():
        expected = naive(name, np.asarray(w).T, np.zeros(3), np.asarray(x), relevance)
        np.testing.assert_allclose(ours, expected, rtol=1e-9, err_msg=name)


def test_an_affine_function_with_two_readers_of_its_input_is_no_activation(rng):
    """``z + z * gamma + beta`` is ``z * (1 + gamma) + beta``: the shift absorbs in both."""
    gamma, beta, x = normal(rng, 3), normal(rng, 3), normal(rng, 3)
    together = relax.lrp(lambda x: x * (1 + gamma) + beta)(x)
    apart = relax.lrp(lambda x: x + x * gamma + beta)(x)
    np.testing.assert_allclose(apart, together, rtol=1e-9)


def test_a_layer_that_is_also_an_output_ends_there(rng):
    """What the function returns is a value of its own, not the inside of a layer."""
    w, x, b = normal(rng, 4, 3), normal(rng, 4), normal(rng, 3)

    def fun(x):
        z = x @ w
        return z, jax.nn.relu(z * b)

    ours = relax.lrp(fun, {select.dense: rules.ZPlus()})(x)
    z = np.asarray(x @ w)
    relevance = z + np.asarray(jax.nn.relu(z * np.asarray(b)))
    expected = naive("z_plus", np.asarray(w).T, np.zeros(3), np.asarray(x), relevance)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_two_layers_in_a_row_stay_two(rng):
    """A product of two matrices is two layers, each under its own rule."""
    w, v, x = normal(rng, 4, 3), normal(rng, 3, 2), normal(rng, 4)
    fun = lambda x: (x @ w) @ v
    assert kinds(fun, x) == ["dense", "dense"]
    middle = naive("z_plus", np.asarray(v).T, np.zeros(2), np.asarray(x @ w), np.asarray(fun(x)))
    expected = naive("z_plus", np.asarray(w).T, np.zeros(3), np.asarray(x), middle)
    np.testing.assert_allclose(relax.lrp(fun, rules.ZPlus())(x), expected, rtol=1e-9)


def test_a_literal_scale_before_a_nonlinearity_belongs_to_that(rng):
    """The minus in ``exp(-z)`` must not turn the signs that a rule splits."""
    w, b, x = normal(rng, 4, 3), normal(rng, 3), normal(rng, 4)
    by_hand = lambda x: 1 / (1 + jnp.exp(-(x @ w + b)))
    builtin = lambda x: jax.nn.sigmoid(x @ w + b)
    assert kinds(by_hand, x) == ["dense", "activation"]
    assert_same_relevance(by_hand, builtin, x, rtol=1e-9)


def test_an_affine_function_of_the_sum_of_two_layers_merges_into_neither(rng):
    """BatchNorm behind a residual sum is a scale_shift of its own."""
    w, v, x = normal(rng, 4, 3), normal(rng, 4, 3), normal(rng, 2, 4)
    n = {"scale": jnp.ones(3), "bias": jnp.ones(3), "mean": jnp.ones(3), "var": jnp.ones(3)}
    fun = lambda x: flax_style(jnp.tanh(x @ w) + x @ v, n)
    assert kinds(fun, x) == ["dense", "activation", "dense", "sum", "scale_shift"]


def test_batchnorm_in_training_mode_is_not_taken_for_a_constant_scale(rng):
    """Statistics of the batch depend on the input: a normalization, not a merge."""
    x, w = normal(rng, 4, 4), normal(rng, 4, 3)

    def fun(x):
        z = x @ w
        centered = z - z.mean(0, keepdims=True)
        return centered * lax.rsqrt((centered**2).mean(0, keepdims=True) + 1e-3)

    assert kinds(fun, x) == ["dense", "normalization"]


IN_BETWEEN = {
    "checkpoint_name": lambda z: checkpoint_name(z, "hidden"),
    "barrier": lax.optimization_barrier,
    "crop of positions": lambda z: z[:, 1:],
    "reversed positions": lambda z: z[:, ::-1],
}


@pytest.mark.parametrize("name", IN_BETWEEN)
def test_what_does_nothing_to_features_does_not_part_layer_and_batchnorm(name, rng):
    """Names, barriers and crops between a layer and its norm."""
    w, x = normal(rng, 4, 3), normal(rng, 2, 3, 4)
    gain, b = normal(rng, 1, 1, 3), normal(rng, 1, 1, 3)
    between = IN_BETWEEN[name]
    fun = lambda x: between(x @ w) * gain + b
    oracle = lambda x: between(x) @ (w * gain[0]) + b
    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, oracle, x)


def test_reversed_features_are_not_scaled_by_one_anothers_scale(rng):
    """The scale behind stays a layer of its own; nothing is folded the wrong way round."""
    w, x, gain = normal(rng, 4, 3), normal(rng, 2, 4), normal(rng, 1, 3)
    fun = lambda x: (x @ w)[:, ::-1] * gain
    for rule in (rules.Epsilon(0.0), rules.Flat()):
        expected = relax.lrp(lambda x: (x @ w)[:, ::-1], rule, target=lambda z: fun(x))(x)
        np.testing.assert_allclose(relax.lrp(fun, rule)(x), expected, rtol=1e-9)


def padded(x):
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def valid(x, kernel, padding="VALID"):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers)


PADDED = {
    "pad": (lambda x, k1, k2: valid(padded(x), k1), lambda x, k1, k2: valid(x, k1, "SAME")),
    "pad, then cast": (
        lambda x, k1, k2: valid(padded(x).astype(jnp.float32).astype(jnp.float64), k1),
        lambda x, k1, k2: valid(x.astype(jnp.float32).astype(jnp.float64), k1, "SAME"),
    ),
    "one pad for two": (
        lambda x, k1, k2: (lambda q: valid(q, k1) + valid(q, k2))(padded(x)),
        lambda x, k1, k2: valid(x, k1, "SAME") + valid(x, k2, "SAME"),
    ),
    "one pad, also read by a pool": (
        lambda x, k1, k2: (lambda q: valid(q, k1) + q[:, 1:-1, 1:-1, :1])(padded(x)),
        lambda x, k1, k2: valid(x, k1, "SAME") + x[..., :1],
    ),
}


@pytest.mark.parametrize("name", PADDED)
def test_beyond_the_border_is_nothing_however_it_is_padded(name, rng):
    """Rules that ignore the input give nothing to padding, whoever else reads it."""
    x, k1, k2 = normal(rng, 2, 4, 4, 2), normal(rng, 3, 3, 2, 3), normal(rng, 3, 3, 2, 3)
    fun, oracle = PADDED[name]
    assert_same_relevance(
        lambda x: fun(x, k1, k2), lambda x: oracle(x, k1, k2), x, rtol=1e-6, atol=1e-7
    )


def test_a_pad_of_samples_is_no_part_of_the_layer(rng):
    """A token shift pads along the axis of tokens, which the product does not contract."""
    x, w = normal(rng, 3, 4), normal(rng, 4, 2)
    fun = lambda x: jnp.pad(x, ((1, 0), (0, 0)))[:-1] @ w
    for name in ("flat", "w_square", "z_box"):
        got = relax.lrp(fun, RULES[name])(x)
        np.testing.assert_allclose(got[:-1], relax.lrp(lambda x: x @ w, RULES[name])(x[:-1]))
        np.testing.assert_array_equal(got[-1], 0)


def test_a_padded_convolution_keeps_its_own_name():
    """The layer is named by its convolution, not by the padding in front of it."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (3, 3), padding="VALID")(padded(x))

    x = jnp.ones((1, 4, 4, 2))
    variables = Model().init(jax.random.key(0), x)
    assert [row.path for row in relax.layers(Model().apply)(variables, x)] == ["Model/Conv_0"]


def test_a_ragged_product_is_a_dense_layer_with_a_weight_for_each_group(rng):
    """Rows sorted by expert: the same as looking up the weight of each row."""
    w, x, gain, b = normal(rng, 3, 4, 5), normal(rng, 6, 4), normal(rng, 1, 5), normal(rng, 1, 5)
    sizes = jnp.array([2, 3, 1])
    of_row = np.repeat(np.arange(3), np.asarray(sizes))
    fun = lambda x: lax.ragged_dot(x, w, sizes) * gain + b
    oracle = lambda x: jnp.einsum("ri,rio->ro", x, w[of_row] * gain[None]) + b
    assert kinds(fun, x) == ["dense"]
    assert_same_relevance(fun, oracle, x)
