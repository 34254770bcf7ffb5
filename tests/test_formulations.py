"""Operations in formulations that are fast on a CPU: equal to JAX's own, whatever their shapes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import relax
from relax import _formulations, rules

LAYOUTS = {
    1: (("NWC", "WIO", "NWC"), ("NCW", "OIW", "NCW"), ("NCW", "WIO", "NWC")),
    2: (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("CNHW", "HWIO", "NHWC")),
}
SIZES = (9, 8)


@dataclasses.dataclass(frozen=True)
class Conv:
    window: int
    stride: int
    padding: object
    dilation: int = 1
    grouped: bool = True
    layout: int = 0
    dims: int = 2

    def arrays(self, channels=3):
        """Input and kernel, in the layout."""
        generator = np.random.default_rng(0)
        x = generator.normal(size=(2, *SIZES[: self.dims], channels))
        shape = (self.window,) * self.dims
        shape += (1, channels) if self.grouped else (channels, 4)
        w = generator.normal(size=shape)
        names = LAYOUTS[self.dims][self.layout]
        canonical = LAYOUTS[self.dims][0]
        order = lambda plain, wanted: [plain.index(letter) for letter in wanted]
        return (
            jnp.asarray(x.transpose(order(canonical[0], names[0]))),
            jnp.asarray(w.transpose(order(canonical[1], names[1]))),
        )

    def __call__(self, x, w):
        names = LAYOUTS[self.dims][self.layout]
        return lax.conv_general_dilated(
            x,
            w,
            (self.stride,) * self.dims,
            self.padding if isinstance(self.padding, str) else [self.padding] * self.dims,
            rhs_dilation=(self.dilation,) * self.dims,
            dimension_numbers=names,
            feature_group_count=x.shape[names[0].index("C")] if self.grouped else 1,
        )


ALL = [
    Conv(window, stride, padding, dilation)
    for window, stride, padding, dilation in itertools.product(
        (2, 3, 5), (1, 2, 3), ("SAME", "VALID", (2, 1)), (1, 2)
    )
    if (window - 1) * dilation < min(SIZES) and (dilation == 1 or stride < 3)
]
CONVS = [
    *(
        pytest.param(conv, marks=() if n % 6 == 0 else pytest.mark.slow)
        for n, conv in enumerate(ALL)
    ),
    *(Conv(3, 2, "SAME", layout=layout, dims=n) for layout in (1, 2) for n in (1, 2)),
    *(Conv(k, k, "VALID", grouped=False, layout=n) for k in (2, 3) for n in (0, 1, 2)),
    *(Conv(2, 2, "VALID", grouped=False, layout=n, dims=1) for n in (0, 1, 2)),
]


def formulated(function, *args):
    """The last equation of a function, in its formulation; it must have one."""
    equation = jax.make_jaxpr(function)(*args).eqns[-1]
    formulation = _formulations._FORMULATIONS[equation.primitive]
    assert formulation(equation.params, *args) is not None
    return lambda *args: formulation(equation.params, *args)


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_a_convolution_and_its_transposes(conv):
    """Value, both transposes, and the derivative of a transpose by the weight."""
    x, w = conv.arrays()
    own = formulated(conv, x, w)
    z, back = jax.vjp(conv, x, w)
    z_own, back_own = jax.vjp(own, x, w)
    np.testing.assert_allclose(z_own, z, rtol=1e-12, atol=1e-12)
    c = jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)
    for mine, jax_own in zip(back_own(c), back(c), strict=True):
        np.testing.assert_allclose(mine, jax_own, rtol=1e-12, atol=1e-12)
    transpose = lambda f: lambda w: jnp.sin(jax.linear_transpose(lambda x: f(x, w), x)(c)[0]).sum()
    want = jax.grad(transpose(conv))(w)
    np.testing.assert_allclose(jax.grad(transpose(own))(w), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(2, 2, "VALID"), (3, 2, "SAME"), (3, 1, "SAME"), (2, 3, "VALID"), (3, 3, "SAME")],
)
@pytest.mark.parametrize("ties", [False, True])
def test_a_max_pool_and_its_gradient(window, stride, padding, ties):
    """Of equal values the first takes all, as in JAX; twice differentiable."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *SIZES, 3)))
    x = jnp.maximum(jnp.round(x), 0) if ties else x
    pool = lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), padding
    )
    own = formulated(pool, x)
    y, back = jax.vjp(pool, x)
    y_own, back_own = jax.vjp(own, x)
    np.testing.assert_array_equal(y_own, y)
    c = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    np.testing.assert_allclose(back_own(c)[0], back(c)[0], rtol=1e-12, atol=1e-12)
    change = lambda f: jax.jvp(f, (x,), (jnp.sin(x),))[1]
    np.testing.assert_allclose(change(own), change(pool), rtol=1e-12)
    if not ties:
        check_grads(lambda x: jax.grad(lambda x: (own(x) ** 3).sum())(x), (x,), 1)


@pytest.mark.parametrize("behind", ["tanh", "identity", "relu"])
def test_a_max_pool_of_what_is_fused_into_it(behind):
    """A scale and a shift, which XLA rounds in two ways where it computes them twice."""
    functions = {"tanh": np.tanh, "identity": lambda z: z, "relu": lambda z: np.maximum(z, 0)}
    scale, shift = np.linspace(0.3, 1.7, 4), np.linspace(0.1, 0.9, 4)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 4))

    def pool(x):
        z = x * scale.reshape(1, 1, 1, 4) + shift.reshape(1, 1, 1, 4)
        z = {"tanh": jnp.tanh, "identity": lambda z: z, "relu": jax.nn.relu}[behind](z)
        return lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    z = x * scale + shift
    y = functions[behind](z)
    largest = y.reshape(2, 3, 2, 3, 2, 4).max((2, 4)).repeat(2, 1).repeat(2, 2)
    want = np.where(y == largest, y, 0) * x * scale / z
    explain = jax.jit(relax.lrp(pool, rules.Epsilon(0.0)))
    np.testing.assert_allclose(explain(jnp.asarray(x)), want, rtol=1e-9, atol=1e-12)


def test_a_max_pool_hides_no_nan():
    """What comes back to a window with a NaN reaches it."""
    x = jnp.ones((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    gradient = jax.grad(lambda x: jnp.tanh(formulated(pool, x)(x)).sum())(x)
    assert jnp.isnan(gradient[0, 1, 1, 0])
    assert jnp.isfinite(gradient[0, 2:, 2:]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"lhs_dilation": (2, 2), "padding": [(1, 1), (1, 1)]},
        {"feature_group_count": 1},
        {"precision": lax.Precision.HIGHEST},
        {"window_strides": (1, 1), "feature_group_count": 1},
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(change):
    """No formulation: dilated inputs, all channels together, a wanted precision."""
    x = jnp.ones((1, 8, 8, 3), jnp.float32)
    groups = change.get("feature_group_count", 3)
    w = jnp.ones((3, 3, 3 // groups, 3), jnp.float32)
    given = {"window_strides": (2, 2), "padding": "SAME", "feature_group_count": 3} | change
    strides, padding = given.pop("window_strides"), given.pop("padding")
    conv = lambda x, w: lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **given
    )
    equation = jax.make_jaxpr(conv)(x, w).eqns[-1]
    assert _formulations._convolution(equation.params, x, w) is None


@pytest.mark.parametrize(
    ("size", "window", "groups", "out"),
    [(2, 3, 3, 3), (1, 3, 3, 3), (1, 2, 1, 4), (4, 2, 1, 0), (0, 2, 1, 4)],
)
def test_where_no_window_has_a_place(size, window, groups, out, monkeypatch):
    """An empty result, as JAX has it."""
    x, w = jnp.ones((2, size, size, 3)), jnp.ones((window, window, 3 // groups, out))
    stride = 1 if groups > 1 else window

    def apply(w, x):
        names = ("NHWC", "HWIO", "NHWC")
        z = lax.conv_general_dilated(
            x, w, (stride,) * 2, "VALID", dimension_numbers=names, feature_group_count=groups
        )
        y = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "VALID")
        return z.sum() + y.sum()

    found = relax.lrp(apply, rules.ZPlus())(w, x)
    monkeypatch.setattr(_formulations, "_FORMULATIONS", {})
    np.testing.assert_array_equal(found, relax.lrp(apply, rules.ZPlus())(w, x))


def network(p, x):
    """Patches, a depthwise convolution with a BatchNorm, max-pools, and a dense layer."""
    names = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, p["patch"], (2, 2), "VALID", dimension_numbers=names)
    x = lax.conv_general_dilated(
        jax.nn.relu(x), p["depth"], (1, 1), "SAME", dimension_numbers=names, feature_group_count=4
    )
    x = jax.nn.relu6(x * p["scale"][None, None, None] + p["shift"][None, None, None])
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
    return x.reshape(x.shape[0], -1) @ p["dense"]


@pytest.fixture
def case():
    generator = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(generator.normal(size=shape))
    p = {"patch": make(2, 2, 3, 4), "depth": make(3, 3, 1, 4), "scale": make(4)}
    p |= {"shift": make(4), "dense": make(36, 3)}
    return p, make(2, 12, 12, 3)


@pytest.mark.parametrize(
    "rule",
    [rules.Epsilon(0.1), rules.ZPlus(), rules.AlphaBeta(), rules.Gamma(), rules.Flat()],
    ids=lambda rule: type(rule).__name__,
)
def test_relevance_is_that_of_the_originals(rule, case, monkeypatch):
    """Plain, jitted, and over a batch of inputs by vmap; derivatives by central differences.

    The derivative of JAX's own max-pool is no oracle: in float64 it may take another entry.
    """
    p, x = case
    explain = lambda p, x: relax.lrp(network, rule, target=1)(p, x)
    every = lambda: (
        jax.jit(explain)(p, x),
        jax.vmap(lambda x: explain(p, x[None])[0])(x),
        jax.vmap(lambda x: explain(p, x[None]))(x[:0]),
    )
    fast = every()
    with monkeypatch.context() as patch:
        patch.setattr(_formulations, "_FORMULATIONS", {})
        plain = every()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), fast, plain)

    explain = jax.jit(explain)
    loss = lambda p, x: jnp.sum(jnp.sin(explain(p, x)))
    generator = np.random.default_rng(1)
    along = jax.tree.map(lambda a: jnp.asarray(generator.normal(size=a.shape)), (p, x))
    moved = lambda step: jax.tree.map(lambda a, b: a + step * b, (p, x), along)
    ahead, behind = moved(1e-6), moved(-1e-6)
    slopes = jax.tree.map(lambda g, d: jnp.sum(g * d), jax.grad(loss, (0, 1))(p, x), along)
    want = (loss(*ahead) - loss(*behind)) / 2e-6
    np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), want, rtol=1e-6)
    _, slope = jax.jvp(explain, (p, x), along)
    want = (explain(*ahead) - explain(*behind)) / 2e-6
    np.testing.assert_allclose(slope, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["shard_map", "auto", "explicit"])
def test_over_devices(kind, case):
    """The batch over two devices, by each of JAX's ways."""
    p, x = case
    explain = relax.lrp(network, rules.ZPlus(), target=1)
    explicit = kind == "explicit"
    types = (jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("i",), types, devices=jax.devices()[:2])
    sharded = jax.device_put(x, jax.NamedSharding(mesh, P("i")))
    over = explain
    if kind == "shard_map":
        over = jax.shard_map(explain, mesh=mesh, in_specs=(P(), P("i")), out_specs=P("i"))
    with jax.set_mesh(mesh):
        found = jax.jit(over)(p, sharded)
    np.testing.assert_allclose(found, explain(p, x), rtol=1e-10, atol=1e-12)


def test_they_serve_a_cpu_only(case, monkeypatch):
    """Elsewhere XLA gets the originals: there are as many convolutions as the network has."""
    p, x = case
    single = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
    program = lambda: str(jax.make_jaxpr(relax.lrp(network, target=0))(*single((p, x))))
    assert "conv_general_dilated" not in program()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert program().count("conv_general_dilated[") >= 4
