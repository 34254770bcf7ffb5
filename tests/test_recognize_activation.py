"""Activations, built in or hand-written, pass relevance unchanged; sums and reuse conserve it.

Oracle: the two-layer network in NumPy, where the relevance of the hidden layer is handed on as it
is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import rules, select

# Small functions that end in a sigmoid or a softmax are explained as they are.
pytestmark = pytest.mark.filterwarnings("ignore:What is explained is a probability")

EPSILON = 1e-6
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def dense(w, b, x, relevance):
    """LRP-epsilon of one dense layer, ``z = x w + b``."""
    z = x @ w + b
    return x * ((relevance / (z + EPSILON * np.where(z < 0, -1, 1))) @ w.T)


@pytest.fixture
def net(rng):
    """Weights of two dense layers with 6 hidden units, and four samples."""
    shapes = {"w1": (4, 6), "b1": (6,), "w2": (6, 3), "b2": (3,), "x": (4, 4), "alpha": (6,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def two_layers(act):
    def fun(p, x):
        h = x @ p["w1"] + p["b1"][None]
        return act(h, p) @ p["w2"] + p["b2"][None]

    return fun


def two_layer_lrp(act, p):
    h = p["x"] @ p["w1"] + p["b1"]
    a = np.asarray(act(jnp.asarray(h), p))
    y = a @ p["w2"] + p["b2"]
    return dense(p["w1"], p["b1"], p["x"], dense(p["w2"], p["b2"], a, y))


def check(act, p, name=None):
    """One activation layer between two dense ones, and the relevance of the oracle."""
    fun = two_layers(act)
    plan = relax.layers(fun)(p, p["x"])
    kinds = [row.kind for row in plan if row.kind != "linear"]  # selu ends in a literal scale
    assert kinds == ["dense", "activation", "dense"]
    if name is not None:
        assert plan[1].name == name
    ours = quick(relax.lrp(fun))(p, p["x"])
    np.testing.assert_allclose(ours, two_layer_lrp(act, p), rtol=1e-7, atol=1e-9)


def alone(function, **options):
    return lambda h, p: function(h, **options)


BUILT_IN = {
    "relu": alone(jax.nn.relu),
    "relu6": alone(jax.nn.relu6),
    "leaky_relu": alone(jax.nn.leaky_relu),
    "elu": alone(jax.nn.elu),
    "selu": alone(jax.nn.selu),
    "celu": alone(jax.nn.celu, alpha=0.7),
    "gelu": alone(jax.nn.gelu, approximate=True),
    "gelu exact": alone(jax.nn.gelu, approximate=False),
    "silu": alone(jax.nn.silu),
    "mish": alone(jax.nn.mish),
    "softplus": alone(jax.nn.softplus),
    "soft_sign": alone(jax.nn.soft_sign),
    "sigmoid": alone(jax.nn.sigmoid),
    "log_sigmoid": alone(jax.nn.log_sigmoid),
    "hard_sigmoid": alone(jax.nn.hard_sigmoid),
    "hard_silu": alone(jax.nn.hard_silu),
    "hard_tanh": alone(jax.nn.hard_tanh),
    "squareplus": alone(jax.nn.squareplus),
    "sparse_plus": alone(jax.nn.sparse_plus),
    "sparse_sigmoid": alone(jax.nn.sparse_sigmoid),
    "tanh": alone(jnp.tanh),
    "jax.nn.tanh": alone(jax.nn.tanh),
    "sin": alone(jnp.sin),
    "cos": alone(jnp.cos),
    "abs": alone(jnp.abs),
    "square": alone(jnp.square),
    "exp": alone(jnp.exp),
    "expm1": alone(jnp.expm1),
    "sinc": alone(jnp.sinc),
    "arctan": alone(jnp.arctan),
    "arcsinh": alone(jnp.arcsinh),
    "erf": alone(jax.scipy.special.erf),
    "logaddexp": lambda h, p: jnp.logaddexp(h, 0.0),
    "logistic": alone(lax.logistic),
    "clip": alone(jnp.clip, min=-0.5, max=1.0),
    "power": lambda h, p: h**3,
    "cube root": alone(jnp.cbrt),
    "where exp": lambda h, p: jnp.where(h > 0, h, jnp.exp(h)),
    "sinh": alone(jnp.sinh),
    "cosh": alone(jnp.cosh),
    "tan": lambda h, p: jnp.tan(0.1 * h),
    "arcsin": lambda h, p: jnp.arcsin(jnp.tanh(h)),
    "arccos": lambda h, p: jnp.arccos(jnp.tanh(h)),
    "arccosh": lambda h, p: jnp.arccosh(1 + h**2),
    "arctanh": lambda h, p: jnp.arctanh(0.9 * jnp.tanh(h)),
    "arctan2": lambda h, p: jnp.arctan2(h, 2.0),
    "exp2": alone(jnp.exp2),
    "log": lambda h, p: jnp.log(1 + h**2),
    "log1p": lambda h, p: jnp.log1p(h**2),
    "sqrt": lambda h, p: jnp.sqrt(1 + h**2) - 1,
    "rsqrt": lambda h, p: lax.rsqrt(1 + h**2),
    "power of a literal": lambda h, p: 1.5**h,
    "erfc": alone(jax.scipy.special.erfc),
    "erf_inv": lambda h, p: jax.scipy.special.erfinv(0.9 * jnp.tanh(h)),
    "lgamma": lambda h, p: jax.scipy.special.gammaln(h**2 + 0.5),
    "digamma": lambda h, p: jax.scipy.special.digamma(h**2 + 0.5),
    "bessel_i0e": alone(jax.scipy.special.i0e),
    "bessel_i1e": alone(jax.scipy.special.i1e),
    "remainder": lambda h, p: h + 0.1 * jnp.sin(lax.rem(h, 1.5)),
    "reciprocal": lambda h, p: 1 / (1 + jnp.abs(h)),
    "softplus by logaddexp2": lambda h, p: jnp.logaddexp2(h, 0.0),
    "log_sum of both signs": lambda h, p: jnp.log(jnp.exp(h) + jnp.exp(-h)),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_builtin_activation_is_one_layer_that_passes_relevance(name, net):
    """Whatever the primitives of an activation are, they are one region, and R goes through."""
    check(BUILT_IN[name], net)


@pytest.mark.parametrize(
    "name", ["relu", "relu6", "elu", "silu", "gelu", "softplus", "tanh", "sin"]
)
def test_an_activation_has_its_own_name(name, net):
    """The plan and the paths speak of gelu, not of eight primitives."""
    check(BUILT_IN[name], net, name)


HAND_WRITTEN = {
    "relu by maximum": lambda h, p: jnp.maximum(h, 0),
    "relu by maximum, swapped": lambda h, p: jnp.maximum(0.0, h),
    "relu by where": lambda h, p: jnp.where(h > 0, h, 0.0),
    "relu by product": lambda h, p: h * (h > 0),
    "relu by abs": lambda h, p: (h + jnp.abs(h)) / 2,
    "relu by clip": lambda h, p: h.clip(0),
    "relu of the negative": lambda h, p: -jnp.minimum(-h, 0),
    "leaky relu by where": lambda h, p: jnp.where(h >= 0, h, 0.1 * h),
    "leaky relu by maximum": lambda h, p: jnp.maximum(h, 0.1 * h),
    "leaky relu by sum": lambda h, p: jnp.maximum(h, 0) + 0.1 * jnp.minimum(h, 0),
    "elu by where": lambda h, p: jnp.where(h > 0, h, jnp.exp(jnp.minimum(h, 0)) - 1),
    "sigmoid": lambda h, p: 1 / (1 + jnp.exp(-h)),
    "sigmoid by exp": lambda h, p: jnp.exp(h) / (jnp.exp(h) + 1),
    "sigmoid by tanh": lambda h, p: 0.5 * (jnp.tanh(h / 2) + 1),
    "quick gelu": lambda h, p: h * jax.nn.sigmoid(1.702 * h),
    "gelu by tanh": lambda h, p: (
        0.5 * h * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    ),
    "gelu by erf": lambda h, p: h * 0.5 * (1.0 + lax.erf(h / np.sqrt(2.0))),
    "silu": lambda h, p: h / (1 + jnp.exp(-h)),
    "mish": lambda h, p: h * jnp.tanh(jnp.log(1 + jnp.exp(h))),
    "tanh by exp": lambda h, p: (jnp.exp(h) - jnp.exp(-h)) / (jnp.exp(h) + jnp.exp(-h)),
    "softplus": lambda h, p: jnp.log(1 + jnp.exp(h)),
    "stable softplus": lambda h, p: jnp.maximum(h, 0) + jnp.log1p(jnp.exp(-jnp.abs(h))),
    "squared relu": lambda h, p: jnp.square(jax.nn.relu(h)),
    "hard swish": lambda h, p: h * jnp.clip(h + 3, 0, 6) / 6,
    "snake": lambda h, p: h + jnp.sin(h) ** 2,
    "gaussian": lambda h, p: jnp.exp(-(h**2)),
    "laplace": lambda h, p: jnp.exp(-jnp.abs(h)),
    "functional residual": lambda h, p: h + jnp.tanh(h),
    "functional residual of relu": lambda h, p: h + jax.nn.relu(h),
    "prelu": lambda h, p: jnp.where(h > 0, h, p["alpha"][None] * h),
    "prelu by sum": lambda h, p: jax.nn.relu(h) - p["alpha"][None] * jax.nn.relu(-h),
    "prelu, one slope": lambda h, p: jnp.maximum(h, 0) + p["alpha"][0] * jnp.minimum(h, 0),
    "learned swish": lambda h, p: h * jax.nn.sigmoid(p["alpha"][None] * h),
    "learned snake": lambda h, p: h + jnp.sin(p["alpha"][None] * h) ** 2,
    "aconc": lambda h, p: (
        (h - p["alpha"] * h) * jax.nn.sigmoid(2 * (h - p["alpha"] * h)) + p["alpha"] * h
        if h.ndim == 1
        else jax.vmap(lambda r: HAND_WRITTEN["aconc"](r, p))(h)
    ),
    "polynomial": lambda h, p: 0.3 * h + 0.2 * h**2 - 0.1 * h**3,
    "rational": lambda h, p: (h + 0.5 * h**2) / (1 + jnp.abs(h)),
    "by lax.select": lambda h, p: lax.select(h > 0, h, jnp.zeros_like(h)),
    "by lax.max": lambda h, p: lax.max(h, jnp.zeros_like(h)),
    "leaky by jnp.select": lambda h, p: jnp.select([h < -1, h < 0], [0.1 * h, 0.2 * h], h),
    "sigmoid from the other side": lambda h, p: 1 - jax.nn.sigmoid(-h),
    "elu plus one": lambda h, p: jax.nn.elu(h) + 1,
    "softplus with a floor": lambda h, p: 1e-3 + jax.nn.softplus(h),
    "in float32": lambda h, p: jax.nn.gelu(h.astype(jnp.float32)).astype(h.dtype),
}


@pytest.mark.parametrize("name", [n for n in HAND_WRITTEN if n not in ("in float32",)])
def test_a_hand_written_activation_passes_relevance_like_a_builtin(name, net):
    """No list of names: what is a function of one value, element by element, is an activation."""
    act = HAND_WRITTEN[name]
    ours = quick(relax.lrp(two_layers(act)))(net, net["x"])
    np.testing.assert_allclose(ours, two_layer_lrp(act, net), rtol=1e-7, atol=1e-9)
    plan = relax.layers(two_layers(act))(net, net["x"])
    assert [row.kind for row in plan if row.kind == "dense"] == ["dense", "dense"]
    assert "product" not in [row.kind for row in plan]


def test_an_activation_computed_in_another_precision_is_still_one(net):
    """Casts to float32 and back are inside the region."""
    act = HAND_WRITTEN["in float32"]
    ours = relax.lrp(two_layers(act))(net, net["x"])
    np.testing.assert_allclose(ours, two_layer_lrp(act, net), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "softplus", "tanh", "elu"])
def test_half_precision_is_kept_without_warnings(name, dtype, net):
    """float16 has little room: no overflow while recognizing, relevance to its precision."""
    half = jax.tree.map(lambda a: jnp.asarray(a, dtype), net)
    ours = quick(relax.lrp(two_layers(BUILT_IN[name])))(half, half["x"])
    assert ours.dtype == dtype
    scale = np.abs(two_layer_lrp(BUILT_IN[name], net)).max()
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), two_layer_lrp(BUILT_IN[name], net), atol=0.1 * scale
    )


@pytest.mark.parametrize(
    "name",
    [
        "relu by maximum, swapped",
        "relu by where",
        "relu by lax.max",
        "relu by clip",
        "by lax.select",
    ],
)
def test_relu_is_known_however_it_is_written(name, net):
    """GuidedBackprop acts on ReLU alone, so it must be found by what it does."""
    act = HAND_WRITTEN[name.removeprefix("relu ") if "lax" in name else name]
    plan = relax.layers(two_layers(act), {select.relu: rules.GuidedBackprop()})(net, net["x"])
    assert isinstance(plan[1].rule, rules.GuidedBackprop)
    builtin = relax.lrp(two_layers(BUILT_IN["relu"]), relax.composites.guided_backprop())
    written = relax.lrp(two_layers(act), relax.composites.guided_backprop())
    np.testing.assert_allclose(
        written(net, net["x"]), builtin(net, net["x"]), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("scale", ["mean", "double", "scaled layer"])
def test_relu_behind_a_literal_scale_is_still_a_relu(scale, net):
    """Guided backpropagation rectifies there too, as it does behind the layer without the scale."""
    before = {
        "mean": lambda x: x.reshape(4, 2, 2).mean(1),
        "double": lambda x: 2.0 * x,
        "scaled layer": lambda x: 0.1 * (x @ net["w1"] + net["b1"][None]),
    }[scale]
    seed = lambda z: jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)
    guided = relax.composites.guided_backprop()
    ours = relax.lrp(lambda x: jax.nn.relu(before(x)), guided, target=seed)(net["x"])
    h, pull_back = jax.vjp(before, jnp.asarray(net["x"]))
    rectified = jnp.where(h > 0, jnp.maximum(seed(h), 0), 0)
    np.testing.assert_allclose(ours, pull_back(rectified)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["leaky_relu", "relu6", "elu", "gelu", "hard_tanh", "abs"])
def test_what_is_not_relu_is_not_taken_for_it(name, net):
    """A relative of ReLU is an activation, but not one that GuidedBackprop rectifies."""
    with pytest.raises(relax.UnmatchedSelectorError):
        relax.layers(two_layers(BUILT_IN[name]), {select.relu: rules.GuidedBackprop()})(
            net, net["x"]
        )


def test_dividing_by_a_layer_is_no_scale_of_it(net):
    """``alpha / z`` is a function of z, whatever alpha is; it does not fold into the weight."""
    w, b, alpha, x = net["w1"], net["b1"], net["alpha"], net["x"]
    fun = lambda x: alpha[None] / (x @ w + b[None])
    assert [row.kind for row in relax.layers(fun)(x)] == ["dense", "activation"]
    expected = dense(w, b, x, np.asarray(fun(x)))
    np.testing.assert_allclose(relax.lrp(fun)(x), expected, rtol=1e-7)


def test_a_rule_that_passes_a_coefficient_below_zero_is_heard_by_the_layer_before(net):
    """DeepLIFT's slope is not 0 at a ReLU that is off, if it is on at the reference."""
    w, x = jnp.asarray(net["w1"]), jnp.asarray(net["x"])
    chosen = {select.relu: rules.Rescale(1.0), select.dense: rules.Gamma(0.5)}
    ours = relax.lrp(lambda x: jax.nn.relu(x @ w), chosen)(x)
    z = x @ w
    slope = (jnp.maximum(z, 0) - 1) / (z - 1)
    expected = relax.lrp(lambda x: x @ w, rules.Gamma(0.5), target=lambda z: z * slope)(x)
    assert (np.asarray(z) < 0).any()
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


# A user's own activation


@jax.custom_jvp
def own_jvp(h):
    return h * jax.nn.sigmoid(1.5 * h)


own_jvp.defjvp(lambda primals, tangents: (own_jvp(*primals), 100.0 * tangents[0]))


@jax.custom_vjp
def own_vjp(h):
    return jnp.where(h > 0, h, 0.2 * h)


own_vjp.defvjp(lambda h: (own_vjp(h), None), lambda _, g: (100.0 * g,))


@jax.jit
def own_jit(h):
    return jax.jit(jnp.tanh)(h) * jax.jit(lambda a: 1 + a**2)(h)


def own_scope(h):
    with jax.named_scope("Own"):
        gate = jax.nn.sigmoid(h)
        with jax.named_scope("Inner"):
            return gate * h


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def own_slope(h, slope):
    return jnp.where(h > 0, h, slope * h)


own_slope.defjvp(lambda slope, primals, tangents: (own_slope(primals[0], slope), 7 * tangents[0]))

OWN = {
    "custom_jvp": lambda h, p: own_jvp(h),
    "custom_vjp": lambda h, p: own_vjp(h),
    "nested jit": lambda h, p: own_jit(h),
    "named_scope": lambda h, p: own_scope(h),
    "custom_jvp with static argument": lambda h, p: own_slope(h, 0.3),
    "vmapped": lambda h, p: jax.vmap(jax.vmap(own_jvp))(h),
    "vectorized": lambda h, p: jnp.vectorize(own_jit)(h),
    "jit of custom_jvp of jit": lambda h, p: jax.jit(lambda a: own_jvp(own_jit(a)))(h),
}


@pytest.mark.parametrize("name", OWN)
def test_a_users_own_activation_is_judged_by_what_it_computes(name, net):
    """Wrong derivatives of the user's, jit, vmap and scopes do not reach the relevance."""
    act = OWN[name]
    ours = quick(relax.lrp(two_layers(act)))(net, net["x"])
    np.testing.assert_allclose(ours, two_layer_lrp(act, net), rtol=1e-7, atol=1e-9)


def test_a_named_scope_is_the_path_of_an_activation(net):
    """Rules address it by that."""
    plan = relax.layers(two_layers(OWN["named_scope"]), {"Own*": rules.Gradient()})(net, net["x"])
    assert plan[1].path.startswith("Own")
    assert isinstance(plan[1].rule, rules.Gradient)


# Values at which an activation is special


@pytest.mark.parametrize(
    "name", ["relu", "gelu", "silu", "tanh", "elu", "softplus", "sigmoid", "cos"]
)
def test_a_hidden_unit_at_zero_passes_finite_relevance(name, net):
    """At h = 0 there is nothing to divide: the limit of phi(h) / h, or relevance itself."""
    p = net | {"w1": np.zeros((4, 6)), "b1": np.zeros(6)}
    ours = relax.lrp(two_layers(BUILT_IN[name]))(p, p["x"])
    assert np.isfinite(ours).all()
    # With relevance as the currency the layer in front absorbs it all: its weights are zero.
    np.testing.assert_array_equal(ours, np.zeros((4, 4)))


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "cos", "exp"])
def test_relevance_at_zero_is_kept_where_the_activation_is_not_zero(name):
    """phi(0) != 0: relevance passes even where x = 0, as it would be lost as a coefficient."""
    fun = lambda x: BUILT_IN[name](x, None)
    x = jnp.array([0.0, 0.5])
    np.testing.assert_allclose(relax.lrp(fun)(x), fun(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "slope"), [("tanh", 1.0), ("gelu", 0.5), ("silu", 0.5), ("sin", 1)]
)
def test_the_coefficient_at_zero_is_the_slope(name, slope):
    """c_x = c_y phi'(0) at x = 0, seen through a value that both branches share."""
    fun = lambda x: BUILT_IN[name](x * 3.0 + 0.0, None)
    tiny = relax.lrp(fun, target=jnp.ones_like)(jnp.array([1e-9]))
    np.testing.assert_allclose(tiny, [1.0], rtol=1e-6)
    second = lambda t: relax.lrp(fun)(t[None])[0]
    np.testing.assert_allclose(jax.grad(second)(0.0), 3 * slope, rtol=1e-9)


# Sums, reuse, depth


def test_a_residual_sum_shares_in_proportion(net):
    """y = x + f(x): each branch gets relevance in proportion to what it adds."""
    w1, w2, x = net["w1"], net["w2"] @ np.ones((3, 4)), net["x"]

    def fun(x):
        return x + jax.nn.relu(x @ w1) @ w2

    branch = np.maximum(x @ w1, 0) @ w2
    y = x + branch
    hidden = dense(w2, 0, np.maximum(x @ w1, 0), branch)  # R_branch = y * branch / y
    expected = x + dense(w1, 0, x, hidden)
    np.testing.assert_allclose(relax.lrp(fun)(x), expected, rtol=1e-8, atol=1e-10)
    assert y.shape == expected.shape
    seed = np.ones_like(y)
    ours = relax.lrp(fun, target=lambda z: seed)(x)
    hidden = dense(w2, 0, np.maximum(x @ w1, 0), seed * branch / y)
    expected = seed * x / y + dense(w1, 0, x, hidden)
    np.testing.assert_allclose(ours, expected, rtol=1e-4)  # exchanged once, epsilon 1e-6


def test_a_layer_used_twice_is_two_layers(net):
    """The same module on two levels: two rows of the plan, two oracles in a row."""
    w, b, x = net["w1"][:, :4], net["b1"][:4], net["x"]

    def block(x):
        with jax.named_scope("shared"):
            return x @ w + b[None]

    fun = lambda x: block(jnp.tanh(block(x)))
    plan = relax.layers(fun)(x)
    assert [row.path for row in plan if row.kind == "dense"] == ["shared", "shared#1"]
    a = np.tanh(x @ w + b)
    expected = dense(w, b, x, dense(w, b, a, a @ w + b))
    np.testing.assert_allclose(relax.lrp(fun)(x), expected, rtol=1e-8)


def test_two_branches_with_a_shared_weight(net):
    """Siamese branches: what each of them gives is added up; their last layers are one."""
    w1, w2, x = net["w1"], net["w2"], net["x"]
    tower = lambda x: jax.nn.relu(x @ w1) @ w2
    fun = lambda x: tower(x) + tower(2 * x[::-1])
    rule = rules.Epsilon(0.0)
    first = relax.lrp(lambda x: tower(x), rule)(x)
    second = relax.lrp(lambda x: tower(2 * x), rule)(x[::-1])[::-1]
    np.testing.assert_allclose(relax.lrp(fun, rule)(x), first + second, rtol=1e-8)


def test_the_same_activation_read_twice(net):
    """A hidden value with two readers collects relevance from both."""
    w1, w2, v, x = net["w1"], net["w2"], net["w2"][::-1].copy(), net["x"]

    def fun(x):
        h = jnp.tanh(x @ w1)
        return h @ w2 + jax.nn.gelu(h @ v)

    h = np.tanh(x @ w1)
    branch = np.asarray(jax.nn.gelu(jnp.asarray(h @ v)))
    hidden = dense(w2, 0, h, h @ w2) + dense(v, 0, h, branch)
    np.testing.assert_allclose(relax.lrp(fun)(x), dense(w1, 0, x, hidden), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("act", ["relu", "gelu", "tanh"])
def test_a_stack_of_residual_blocks_conserves_relevance(act, rng):
    """Eight blocks: relevance at the input sums up to the output, not to 2^8 times that."""
    depth = 8
    ws = jnp.asarray(rng.normal(size=(depth, 2, 6, 6)) / 3)
    x = jnp.asarray(rng.normal(size=(2, 6)))
    head = jnp.asarray(rng.normal(size=(6, 3)))

    def fun(ws, x):
        for i in range(depth):
            x = x + BUILT_IN[act](x @ ws[i, 0], None) @ ws[i, 1]
        return x @ head

    value, relevance = quick(relax.value_and_lrp(fun, rules.Epsilon(0.0), target=1))(ws, x)
    np.testing.assert_allclose(relevance.sum(-1), value[:, 1], rtol=1e-8)


def test_a_convolutional_resnet_conserves_relevance(rng):
    """Post-activation blocks with projection shortcuts, max pooling and a mean, no biases."""
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / 3)
    conv = lambda x, w, s=1: lax.conv_general_dilated(
        x, w, (s, s), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    blocks = [(normal(3, 3, 4, 4), normal(3, 3, 4, 4), None) for _ in range(3)]
    blocks.append((normal(3, 3, 4, 8), normal(3, 3, 8, 8), normal(1, 1, 4, 8)))
    stem, head = normal(3, 3, 2, 4), normal(8, 3)

    def fun(x):
        x = jax.nn.relu(conv(x, stem))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for first, second, shortcut in blocks:
            stride = 1 if shortcut is None else 2
            branch = conv(jax.nn.relu(conv(x, first, stride)), second)
            x = jax.nn.relu(branch + (x if shortcut is None else conv(x, shortcut, stride)))
        return x.mean((1, 2)) @ head

    x = normal(1, 8, 8, 2)
    value, relevance = quick(relax.value_and_lrp(fun, rules.Epsilon(0.0), target=2))(x)
    np.testing.assert_allclose(relevance.sum(), value[0, 2], rtol=1e-9)
    gradient = quick(jax.grad(lambda x: fun(x)[0, 2]))(x)
    np.testing.assert_allclose(relevance, x * gradient, rtol=1e-7, atol=1e-12)


def test_relu_network_at_epsilon_zero_is_gradient_times_input(net):
    """The oldest identity of LRP, on a network without biases."""
    p = net | {"b1": np.zeros(6), "b2": np.zeros(3)}
    fun = functools.partial(two_layers(BUILT_IN["relu"]), p)
    ours = relax.lrp(fun, rules.Epsilon(0.0))(p["x"])
    expected = p["x"] * jax.grad(lambda x: fun(x).sum())(p["x"])
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_pre_activation_blocks_with_an_identity_shortcut_keep_their_batchnorm(rng):
    """``x + relu(bn(x))``: the BatchNorm is a layer, and its shift absorbs what it adds."""
    scale, shift = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5))
    x = jnp.asarray(rng.normal(size=5))
    fun = lambda x: x + jax.nn.relu(x * scale + shift)
    plan = relax.layers(fun)(x)
    assert [row.kind for row in plan] == ["scale_shift", "activation", "sum"]
    active = x * scale + shift > 0
    expected = x + jnp.where(active, x * scale, 0)
    np.testing.assert_allclose(
        relax.lrp(fun, {select.scale_shift: rules.Linear()})(x), expected, rtol=1e-9
    )


def test_an_inner_value_that_is_also_an_output_closes_the_region(net):
    """The gate is returned as well; its relevance is added to that of the product."""
    w1, x = net["w1"], net["x"]

    def fun(x):
        h = x @ w1
        gate = jax.nn.sigmoid(h)
        return jnp.exp(gate), gate

    h = x @ w1
    gate = 1 / (1 + np.exp(-h))
    expected = dense(w1, 0, x, np.exp(gate) + gate)
    np.testing.assert_allclose(relax.lrp(fun)(x), expected, rtol=1e-7)


@pytest.mark.parametrize("kind", ["glu", "swiglu"])
def test_a_gate_made_of_another_projection_is_a_product_not_an_activation(kind, net):
    """A sigmoid takes nothing of the product; a SiLU half, which passes through it."""
    gate = {"glu": jax.nn.sigmoid, "swiglu": jax.nn.silu}[kind]
    x, w, v = net["x"], net["w1"], net["w1"][::-1]
    fun = lambda x: gate(x @ w) * (x @ v)
    assert "product" in [row.kind for row in relax.layers(fun)(x)]
    value = np.asarray(fun(x))
    if kind == "glu":
        expected = dense(v, 0, x, value)
    else:
        expected = dense(w, 0, x, value / 2) + dense(v, 0, x, value / 2)
    np.testing.assert_allclose(relax.lrp(fun)(x), expected, rtol=1e-5, atol=1e-8)


SMOOTH = ["gelu", "log_sigmoid", "mish", "silu", "soft_sign", "softplus", "sparse_plus"]
PIECEWISE = ["celu", "elu", "hard_sigmoid", "hard_swish", "hard_tanh", "relu", "relu6", "selu"]


@pytest.mark.parametrize("name", [*SMOOTH, *PIECEWISE])
def test_the_derivative_at_zero_is_that_of_jax(name):
    """Also of an activation that is smooth there and written with a maximum, as softplus is."""
    phi = getattr(jax.nn, name)
    ones = lambda z: jnp.ones_like(z)
    x = jnp.array([0.0, 3.0, -3.0, 6.0, 1.0])  # where some of them have a kink
    found = relax.lrp(phi, rules.Gradient(), target=ones)(x[:1])
    np.testing.assert_allclose(found, [jax.grad(phi)(0.0)], rtol=1e-6)
    between = x + 0.1
    found = relax.lrp(phi, rules.Gradient(), target=ones)(between)
    np.testing.assert_allclose(found, jax.vmap(jax.grad(phi))(between), rtol=1e-6)
