"""DeepLIFT: the sum is what the output gained since the baseline; Captum's records."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from reference_models import MODELS, load

import relax
from relax import methods

load = functools.cache(load)
close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
SHAPES = {
    "kernel": (3, 3, 2, 4),
    "a": (16, 5),
    "b": (5, 5),
    "c": (5, 3),
    "cell": (8, 20),
    "q": (6, 6),
    "k": (6, 6),
    "v": (6, 6),
    "head": (6, 3),
}
INPUTS = {"cnn": (4, 4, 4, 2), "residual": (4, 16), "lstm": (4, 6, 3), "attention": (4, 5, 6)}


@pytest.fixture
def p(rng):
    return {n: jnp.asarray(rng.normal(size=s)) / 2 for n, s in SHAPES.items()}


def cnn(p, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=numbers)
    h = jax.nn.relu(h + 0.1)
    window = (1, 2, 2, 1)
    h = lax.reduce_window(h, -jnp.inf, lax.max, window, window, "VALID")
    return jnp.tanh(h.reshape(-1, 16) @ p["a"]) @ p["c"]


def residual(p, x):
    h = jax.nn.relu(x @ p["a"] - 0.2)
    h = h + jax.nn.gelu(h @ p["b"])
    return (h + jax.nn.sigmoid(h @ p["b"])) @ p["c"]


def lstm(p, x):
    def step(carry, x):
        h, c = carry
        gates = jnp.concatenate([x, h], 1) @ p["cell"]
        i, f, g, o = jnp.split(gates, 4, 1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    start = jnp.zeros((x.shape[0], 5))
    (h, _), _ = lax.scan(step, (start, start), x.swapaxes(0, 1))
    return h @ p["c"]


def attention(p, x):
    scores = jnp.einsum("nqd,nkd->nqk", x @ p["q"], x @ p["k"])
    y = x + jnp.einsum("nqk,nkd->nqd", jax.nn.softmax(scores), x @ p["v"])
    y = y - y.mean(-1, keepdims=True)
    y = y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
    return y.sum(1) @ p["head"]


NETWORKS = {"cnn": cnn, "residual": residual, "lstm": lstm, "attention": attention}
TOLERANCE = {"attention": 1e-3}  # the norm is integrated by points
every = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "residual" else ()) for n in NETWORKS]
)


@every
def test_completeness(name, p, rng):
    """To a baseline of its own for each sample, and to one that is no zero for all."""
    fun = NETWORKS[name]
    x, start = (jnp.asarray(rng.normal(size=INPUTS[name])) for _ in range(2))
    for baseline in (start, start[:1], 0.0):
        explain = jax.jit(methods.deeplift_rescale(fun, baseline=baseline, target=1))
        found = explain(p, x)
        lost = fun(p, x) - fun(p, jnp.broadcast_to(baseline, x.shape))
        total = np.asarray(found).reshape(len(x), -1).sum(1)
        largest = np.abs(lost[:, 1]).max()
        assert largest > 0.01
        np.testing.assert_allclose(total, lost[:, 1], atol=TOLERANCE.get(name, 1e-6) * largest)


CHOICES = {
    "largest": lambda x: x.max(1, keepdims=True),
    "smallest": lambda x: x.min(1, keepdims=True),
    "of two": lambda x: jnp.maximum(x[:, :2], x[:, 2:4]),
    "smaller of two": lambda x: jnp.minimum(x[:, :2], x[:, 2:4]),
    "so far": lambda x: lax.cummax(x, axis=1),
    "min-pool": lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 3), (1, 2), "VALID"),
    "masked": lambda x: jnp.where(jnp.arange(5)[None] < 3, x, -jnp.inf).max(1, keepdims=True),
    "product": lambda x: x[:, :2] * x[:, 2:4],
    "square": lambda x: x[:, :2] * x[:, :2],
    "quotient": lambda x: x[:, :2] / (4 + jnp.tanh(x[:, 2:4])),
    "gated": lambda x: jax.nn.sigmoid(x[:, :2]) * jnp.tanh(x[:, 2:4]),
    "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.sin(x) * x)(x),
}
ALIKE = ("smallest", "smaller of two", "so far", "gated", "square")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in ALIKE else ()) for n in CHOICES],
)
def test_completeness_of_layers(name, p, rng):
    """Between dense layers; the winner need not be the same at x and at the baseline."""
    fun = lambda x: CHOICES[name](x @ p["a"])
    x, start = (jnp.asarray(rng.normal(size=(6, 16))) for _ in range(2))
    found = methods.deeplift_rescale(fun, baseline=start)(x)
    lost = (fun(x) - fun(start)).sum(1)
    np.testing.assert_allclose(found.sum(1), lost, atol=1e-6, rtol=1e-6)
    assert np.abs(lost).max() > 0.1


def test_products_give_shapley_values():
    """Of two factors: each takes the mean of the other at x and at the baseline."""
    f = lambda x: x[:, :1] * x[:, 1:]
    x, start = jnp.array([[3.0, 5.0]]), jnp.array([[1.0, 2.0]])
    found = methods.deeplift_rescale(f, baseline=start)(x)
    close(found, [[(3 - 1) * (5 + 2) / 2, (5 - 2) * (3 + 1) / 2]])


def test_slope_where_nothing_changes():
    """An input that is its baseline has no relevance, and no NaN or derivative of one."""
    f = lambda x: jnp.tanh(x).sum(1)
    x = jnp.array([[0.5, 1.0]])
    found = methods.deeplift_rescale(f, baseline=jnp.array([[0.5, 0.0]]))(x)
    close(found, [[0.0, np.tanh(1.0)]])
    slope = jax.grad(lambda x: methods.deeplift_rescale(f, baseline=x)(x + 1e-7).sum())(x)
    assert jnp.isfinite(slope).all()


@every
def test_a_shared_baseline_is_evaluated_once(name, p, rng):
    """As one row: the numbers of a baseline for each sample, for fewer FLOPs."""
    x = jnp.asarray(rng.normal(size=INPUTS[name]))
    x = jnp.concatenate([x] * 4)
    row = jnp.asarray(rng.normal(size=x.shape[1:]))
    shared = jax.jit(methods.deeplift_rescale(NETWORKS[name], baseline=row, target=0))
    whole = jnp.broadcast_to(row, x.shape)
    apart = jax.jit(methods.deeplift_rescale(NETWORKS[name], baseline=whole, target=0))
    close(shared(p, x), apart(p, x))
    products = {"cnn": "conv_general_dilated", "lstm": "dot_general"}.get(name, "dot_general")
    rows = lambda f: [
        e.invars[0].aval.shape
        for e in equations(jax.make_jaxpr(f)(p, x).jaxpr)
        if e.primitive.name == products
    ]
    of_one = lambda f: sum(1 in shape[:2] for shape in rows(f))
    assert of_one(shared) > of_one(apart)
    flops = lambda f: f.lower(p, x).compile().cost_analysis()["flops"]
    assert flops(shared) < flops(apart)


def equations(jaxpr):
    """Those of the programs inside as well."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            closed = getattr(inner, "jaxpr", inner)
            if hasattr(closed, "eqns"):
                yield from equations(closed)


@pytest.mark.slow
def test_another_argument_of_samples(p, rng):
    """It has an axis of samples as well, so that the baseline cannot be a batch of one."""
    x, y = (jnp.asarray(rng.normal(size=(4, 16))) for _ in range(2))
    start = jnp.full_like(x, 0.5)
    together = lambda x, y: lax.concatenate([x, y], 1)  # refuses another number of samples
    for mix in (lambda x, y: x * y, lambda x, y: together(x, y)[:, 8:24]):
        f = lambda p, y, x, mix=mix: jnp.tanh(mix(x, y) @ p["a"]) @ p["c"]
        shared = methods.deeplift_rescale(f, baseline=0.5, target=1)(p, y, x)
        close(shared, methods.deeplift_rescale(f, baseline=start, target=1)(p, y, x))


def test_targets(p, rng):
    """A callable says what is explained; its difference is what the sum is."""
    x, start = (jnp.asarray(rng.normal(size=(4, 16))) for _ in range(2))
    target = lambda z: z**2 * jnp.array([[1.0, 0.0, -1.0]])
    explain = methods.deeplift_rescale(residual, baseline=start, target=target)
    lost = target(residual(p, x)).sum(1) - target(residual(p, start)).sum(1)
    close(explain(p, x).sum(1), lost, rtol=1e-6)


def test_custom_relprop_is_a_layer_of_its_own(p, rng):
    """Its own relevance is no difference: it is integrated as any other function of several."""

    @relax.custom_relprop
    def smooth(x):
        return 0.1 * x**3 + x

    smooth.defrelprop(lambda x: (smooth(x), None), lambda _, relevance: (relevance,))
    x, start = (jnp.asarray(rng.normal(size=(4, 16))) for _ in range(2))
    got = methods.deeplift_rescale(lambda x: smooth(x @ p["a"]), baseline=start)(x)
    plain = lambda x: (0.1 * (x @ p["a"]) ** 3 + x @ p["a"]).sum(1)
    np.testing.assert_allclose(got.sum(1), plain(x) - plain(start), rtol=1e-6)


CAPTUM = ("mlp", "mlp_elu", "mlp_leaky", "mlp_sigmoid", "mlp_tanh")


def error(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=() if n == "mlp_elu" else pytest.mark.slow) for n in CAPTUM]
)
def test_captum(network):
    data, params = load(network)
    explain = methods.deeplift_rescale(MODELS[network], target=data["target"])
    assert error(explain(params, jnp.asarray(data["x"])), data["R/captum.DeepLift"]) < 1e-9


def test_captum_does_not_know_gelu():
    """It takes its gradient there, so that its sum is not the difference, as ours is."""
    data, params = load("mlp_gelu")
    fun, x, target = MODELS["mlp_gelu"], jnp.asarray(data["x"]), data["target"]
    want = data["R/captum.DeepLift"]
    close(methods.gradient_x_input(fun, target=target)(params, x), want)
    logit = lambda x: np.take_along_axis(np.asarray(fun(params, x)), target[:, None], 1)[:, 0]
    lost = logit(x) - logit(jnp.zeros_like(x))
    assert np.abs(want.sum(1) - lost).max() > 0.01
    close(methods.deeplift_rescale(fun, target=target)(params, x).sum(1), lost)


@pytest.mark.slow
def test_captum_max_pools():
    """Where its rule is in force; where it is lost, its sum is off, and ours is not."""
    data, params = load("vgg_small")
    fun, x, target = MODELS["vgg_small"], jnp.asarray(data["x"]), data["target"]
    explain = functools.partial(methods.deeplift_rescale, fun, target=target)
    start = jnp.asarray(data["deeplift_baseline"])
    got = jax.jit(explain(baseline=start))(params, x)
    assert error(got, data["R/captum.DeepLift_spaced"]) < 1e-9
    logit = lambda x: np.take_along_axis(np.asarray(fun(params, x)), target[:, None], 1)[:, 0]
    lost = logit(x) - logit(jnp.zeros_like(x))
    assert np.abs(data["R/captum.DeepLift"].sum((1, 2, 3)) - lost).max() > 1e-3
    np.testing.assert_allclose(explain()(params, x).sum((1, 2, 3)), lost, atol=1e-6)


def test_errors(p):
    x = jnp.ones((2, 16))
    refused = functools.partial(pytest.raises, relax.ArgumentError)
    with refused(match="does not broadcast to x"):
        methods.deeplift_rescale(residual, baseline=jnp.ones(3))(p, x)
    branch = lambda x: lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, x)
    with refused(match=r"(?s)which branch of a cond.*test_methods_deeplift\.py.*integrated_grad"):
        methods.deeplift_rescale(branch)(x)
    inside = lambda x: lax.scan(lambda x, _: (branch(x), None), x, length=2)[0]
    with refused(match="which branch of a cond"):
        methods.deeplift_rescale(inside)(x)
    known = lambda flag, x: lax.cond(flag, jnp.tanh, jnp.sin, x)
    close(methods.deeplift_rescale(known)(jnp.array(True), x), jnp.tanh(x))
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("i",), devices=jax.devices()[:2], axis_types=auto)
    spec = jax.sharding.PartitionSpec("i")
    mapped = jax.shard_map(jnp.tanh, mesh=mesh, in_specs=spec, out_specs=spec)
    with refused(match=r"(?s)`tanh` stands in a shard_map.*integrated_gradients"):
        methods.deeplift_rescale(mapped)(x)
    with pytest.raises(relax.TargetError, match="out of range"):
        methods.deeplift_rescale(residual, target=3)(p, x)
    with pytest.raises(relax.ArgumentError, match="needs floats"):
        methods.deeplift_rescale(residual)(p, jnp.ones((2, 16), int))


def test_a_softmax_in_pieces_is_refused(p):
    """Exponentials that are divided by their sum only further on."""

    def pieces(x):
        e = jnp.exp(x - x.max(1, keepdims=True))
        return (e @ p["a"]) / e.sum(1, keepdims=True)

    with pytest.raises(relax.ArgumentError, match=r"(?s)softmax in pieces.*integrated_gradients"):
        methods.deeplift_rescale(pieces)(jnp.arange(32.0).reshape(2, 16) / 9)


def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def no_guard(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(x):
    logs = jax.nn.log_softmax(x)
    return -(jnp.exp(logs) * logs).sum(1)


KEPT = jnp.array([[True, True, False, True]])
SOFTMAXES = {
    "softmax": jax.nn.softmax,
    "first axis": lambda x: jax.nn.softmax(x.T, axis=0).T,
    "both axes": lambda x: jax.nn.softmax(x, axis=(0, 1)),
    "scaled": lambda x: jax.nn.softmax(x / jnp.sqrt(2.0)),
    "masked": lambda x: jax.nn.softmax(jnp.where(KEPT, x, -jnp.inf)),
    "nearly masked": lambda x: jax.nn.softmax(jnp.where(KEPT, x, -1e30)),
    "no stop_gradient": no_guard,
    "log": jax.nn.log_softmax,
    "log by hand": lambda x: x - jax.nn.logsumexp(x, axis=1, keepdims=True),
    "exp of log": lambda x: jnp.exp(jax.nn.log_softmax(x)),
    "entropy": entropy,
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=1),
    "logsumexp of all": lambda x: jax.nn.logsumexp(x, keepdims=True),
}
SLOW = ("first axis", "both axes", "nearly masked", "no stop_gradient", "exp of log", "scaled")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SOFTMAXES]
)
def test_softmax_at_any_distance(name, rng):
    """The sum is the difference however far apart scores are."""
    f = SOFTMAXES[name]
    x, start = (jnp.asarray(rng.normal(size=(3, 4))) for _ in range(2))
    w = jnp.asarray(rng.normal(size=f(x).shape))
    explain = jax.jit(lambda x, y: methods.deeplift_rescale(lambda x: f(x) * w, baseline=y)(x))
    for far in (1.0, 50.0, 1000.0):
        found = explain(far * x, far * start)
        lost = ((f(far * x) - f(far * start)) * w).sum()
        close(found.sum(), lost, atol=1e-9 * far)
        assert far > 1 or np.abs(found).max() > 0.01


@pytest.mark.parametrize("shift", [0.0, -300.0])
def test_softmax_by_hand(shift, rng):
    """By the formula of the docstring, and the same whatever is added to all scores."""
    z, z0 = rng.normal(size=4), rng.normal(size=4)
    p, p0 = (np.exp(a) / np.exp(a).sum() for a in (z, z0))
    mean = (p - p0) / np.log(p / p0)
    explain = lambda f: methods.deeplift_rescale(f, baseline=jnp.asarray(z0)[None])
    found = explain(lambda x: jax.nn.logsumexp(x, axis=1))(jnp.asarray(z + shift)[None])
    close(found[0], mean / mean.sum() * (z + shift - z0))
    found = explain(lambda x: jax.nn.softmax(x)[:, 1])(jnp.asarray(z + shift)[None])
    change = -mean[1] * mean / mean.sum() * (z + shift - z0)
    change[1] += mean[1] * (z + shift - z0)[1]
    close(found[0], change)


def test_masked_scores_have_no_relevance():
    """Minus infinity at x and at the baseline, in the layer and before it."""
    x = jnp.array([[100.0, -50.0, 7.0, 3.0]])
    inside = methods.deeplift_rescale(SOFTMAXES["masked"], target=0)(x)
    assert inside[0, 2] == 0
    short = methods.deeplift_rescale(jax.nn.softmax, target=0)(x[:, [0, 1, 3]])
    close(inside[:, [0, 1, 3]], short)
    close(short.sum(), 1 - 1 / 3, atol=1e-9)


def exponentials(z):
    return jnp.exp(z - jax.lax.stop_gradient(z.max(1, keepdims=True)))


def something_added(z):
    e = exponentials(z)
    return e / (1e-9 + e.sum(1, keepdims=True))


def weighted(z):
    e = exponentials(z)
    return e / (e * jnp.arange(1.0, 5.0)[None]).sum(1, keepdims=True)


LIKE_SOFTMAX = {
    "something added": something_added,
    "weighted": weighted,
    "maximum stays": lambda z: jnp.log(jnp.exp(z - z.max(1, keepdims=True)).sum(1)),
    "twice minus": lambda z: 2 * z - jnp.log(jnp.exp(z).sum(1, keepdims=True)),
    "no exponential": lambda z: z / jnp.exp(z).sum(1, keepdims=True),
    "one more": lambda z: jnp.log(1 + jnp.exp(z).sum(1)),
}
QUICK = ("something added", "maximum stays", "twice minus")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in LIKE_SOFTMAX],
)
def test_what_only_looks_like_a_softmax(name, rng):
    """It is integrated, so near by its sum is right; far off it is finite."""
    f, order = LIKE_SOFTMAX[name], 3 * jnp.arange(4.0)[None]  # one is the largest all along
    x, start = (order + jnp.asarray(rng.normal(size=(3, 4))) / 2 for _ in range(2))
    found = methods.deeplift_rescale(f, baseline=start)(x)
    close(found.sum(), (f(x) - f(start)).sum(), rtol=1e-4, atol=1e-6)
    if name in ("something added", "weighted"):  # the maximum is that of each point
        assert jnp.isfinite(methods.deeplift_rescale(f, baseline=-300 * start)(300 * x)).all()


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16],
    ids=["single", "half"],
)
def test_attention_without_a_scale(dtype, rng):
    """Scores of hundreds; in half precision up to its rounding."""

    def f(x):
        scores = jnp.einsum("nqd,nkd->nqk", x, x)
        return jnp.einsum("nqk,nkd->nqd", jax.nn.softmax(scores), x).sum((1, 2))

    x, start = (jnp.asarray(rng.normal(size=(2, 5, 6)) * 8, dtype) for _ in range(2))
    found = methods.deeplift_rescale(f, baseline=start)(x)
    lost = np.asarray(f(x) - f(start), float)
    rounding = float(jnp.finfo(dtype).eps) * np.abs(np.asarray(found, float)).sum((1, 2))
    assert found.dtype == dtype
    total = np.asarray(found, float).sum((1, 2))
    assert (np.abs(total - lost) <= 4 * rounding).all()


def test_quotients_of_many_decades():
    """The product of a and 1 / b: each takes the mean of the other; exact however b changes."""
    f = lambda x: x[:, :1] / (1 + jnp.exp(x[:, 1:]))
    x, start = jnp.array([[3.0, 12.0]]), jnp.array([[3.0, -12.0]])
    found = methods.deeplift_rescale(f, baseline=start)(x)
    close(found, [[0, (f(x) - f(start))[0, 0]]])
    g = lambda x: x[:, :1] / x[:, 1:]  # stretched over three denominators
    a, b, a0, b0 = 2.0, np.array([1e-6, 3.0, -2.0]), -1.0, np.array([5.0, 1e4, 0.5])
    row = lambda a, b: jnp.asarray(np.append(a, b))[None]
    found = methods.deeplift_rescale(g, baseline=row(a0, b0))(row(a, b))
    close(found[0, 0], (a - a0) * (1 / b + 1 / b0).sum() / 2)
    close(found[0, 1:], (a + a0) / 2 * (1 / b - 1 / b0))
    alone = methods.deeplift_rescale(lambda x: x / x, baseline=2.0)(jnp.array([[3.0]]))
    close(alone, [[0.0]])


STEEP = {
    "norm": lambda x: norm(x),
    "rms": lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "norm" else pytest.mark.slow) for n in STEEP]
)
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_steep_layers(name, start, rng):
    """From a baseline of 0 a norm turns within a thousandth of the way: points stand there."""
    x, w = jnp.asarray(rng.normal(size=(5, 16))), jnp.asarray(rng.normal(size=(16, 2)))
    f = lambda x: STEEP[name](x) @ w
    start = start * jnp.asarray(rng.normal(size=x.shape))
    found = methods.deeplift_rescale(f, baseline=start)(x)
    lost = (f(x) - f(start)).sum(1)
    np.testing.assert_allclose(found.sum(1), lost, atol=2e-3 * np.abs(lost).max())
    fine = methods.integrated_gradients(f, baseline=start, steps=20000, batch_size=500)(x)
    np.testing.assert_allclose(found, fine, atol=2e-3 * np.abs(fine).max())
