"""Methods made of gradients: closed forms, their sums, the records of Zennit and Captum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_models import MODELS, load

import relax
from relax import methods, rules, select

load = functools.cache(load)
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
KEY = jax.random.key(1)


def error(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("f", "inner", "slope"),
    [
        (lambda x: jax.nn.relu(2 * x - 1), lambda x: 2 * x - 1, 2),
        (lambda x: jnp.tanh(1 - x / 2), lambda x: 1 - x / 2, -0.5),
        (lambda x: jax.nn.softplus(-x), lambda x: -x, -1),
        (jax.nn.softplus, lambda x: x, 1),
        (lambda x: x * jax.nn.sigmoid(1.7 * x), lambda x: x, 1),
        (lambda x: 3 * jnp.tanh(x), lambda x: x, 1),
    ],
)
def test_elrp_divides_by_what_the_nonlinearity_sees(f, inner, slope):
    """Also where a scale or a shift by constants is recognized as part of the activation."""
    x = jnp.array([3.0, -2.0, 0.7])
    z = inner(x)
    expected = x * slope * f(x) / (z + 0.1 * jnp.where(z < 0, -1, 1))
    np.testing.assert_allclose(methods.elrp(f, epsilon=0.1)(x), expected, rtol=1e-12)


def test_of_deepexplain():
    """Its own test, worked out by hand: a network of three ReLUs."""
    first, bias, last = jnp.eye(2), jnp.array([[-1.0, 0.0]]), jnp.array([[1.0], [-1.0]])
    f = lambda x: jax.nn.relu(jax.nn.relu(x @ first + bias) @ last)
    x = jnp.array([[-10.0, -5.0], [3.0, 1.0]])
    found = methods.integrated_gradients(f, steps=100, quadrature="right")(x)
    np.testing.assert_allclose(found, [[0, 0], [1.5, -0.5]], atol=0.02)
    np.testing.assert_allclose(methods.elrp(f)(x), [[0, 0], [3, -1]], atol=1e-3)
    # Without weights x - 1 is recognized as part of the activation.
    shifted = lambda x: jax.nn.relu(jax.nn.relu(x[:, :1] - 1) - jax.nn.relu(x[:, 1:]))
    np.testing.assert_allclose(methods.elrp(shifted)(x), [[0, 0], [3, -1]], atol=1e-3)
    close(methods.deeplift_rescale(f)(x), [[0, 0], [2, -1]])
    close(methods.occlusion(f)(x), [[0, 0], [1, -1]])
    close(methods.occlusion(f, window=2)(x), [[0, 0], [0.5, 0.5]])
    smallest = lambda x: x.min(1, keepdims=True)
    values = methods.shapley_sampling(smallest, key=KEY, permutations=2)
    close(values(jnp.array([[2.0, -2.0], [4.0, 2.0]])), [[0, -2], [1, 1]])


def test_gradients(rng):
    """Against jax.grad itself."""
    w, x = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(5, 4)))
    f = lambda x: jnp.sin(x @ w)
    grad = jax.grad(lambda x: f(x)[:, 1].sum())(x)
    close(methods.gradient(f, target=1)(x), grad)
    close(methods.saliency(f, target=1)(x), jnp.abs(grad))
    close(methods.gradient_x_input(f, target=1)(x), x * grad)
    close(methods.gradient(f, target=lambda z: z**2)(x), jax.grad(lambda x: (f(x) ** 2).sum())(x))


def test_controls(rng):
    """The input is the input; random numbers are standard normal, and of their key."""
    x = {"a": jnp.asarray(rng.normal(size=(100, 50))), "b": jnp.ones((3,))}
    f = lambda x: x["a"].sum()
    assert methods.input(f)(x)["a"] is x["a"]
    one, again = methods.random(f, key=KEY)(x), methods.random(f, key=KEY, target=2)(x)
    np.testing.assert_array_equal(one["a"], again["a"])
    other = methods.random(f, key=jax.random.key(2))(x)
    assert abs(np.corrcoef(one["a"].ravel(), other["a"].ravel())[0, 1]) < 0.05
    assert abs(float(one["a"].mean())) < 0.05
    assert abs(float(one["a"].std()) - 1) < 0.05


ORDERS = {"left": 1, "right": 1, "midpoint": 2, "trapezoid": 2}


@pytest.mark.parametrize(
    "quadrature",
    ["midpoint", *(pytest.param(q, marks=pytest.mark.slow) for q in ORDERS if q != "midpoint")],
)
def test_completeness_by_the_order(quadrature, rng):
    """Half the step, an error of half, or of a quarter."""
    w, x = jnp.asarray(rng.normal(size=(4, 3))) / 2, jnp.asarray(rng.normal(size=(5, 4)))
    start = jnp.asarray(rng.normal(size=(4,)))
    f = lambda x: jnp.tanh(x @ w) ** 2
    whole = f(x).sum(1) - f(jnp.broadcast_to(start, x.shape)).sum(1)

    def wrong(intervals):
        steps = intervals + (quadrature == "trapezoid")
        found = methods.integrated_gradients(
            f, baseline=start, steps=steps, quadrature=quadrature, batch_size=7
        )(x)
        return np.abs(found.sum(1) - whole).max()

    ratio = wrong(32) / wrong(64)
    np.testing.assert_allclose(ratio, 2 ** ORDERS[quadrature], rtol=0.1)


def test_gauss_legendre_is_exact_for_polynomials(rng):
    """n points, degree 2 n - 1: the gradient of a product of six factors has degree 5."""
    x, start = (jnp.asarray(rng.normal(size=(2, 6))) for _ in range(2))
    f = lambda x: x.prod(1)
    complete = lambda n: methods.integrated_gradients(
        f, baseline=start, steps=n, quadrature="gauss_legendre", batch_size=2
    )(x).sum(1)
    close(complete(3), f(x) - f(start))
    assert np.abs(complete(2) - (f(x) - f(start))).max() > 1e-3


@pytest.mark.slow
def test_batch_size_changes_nothing(rng):
    """Also where it does not divide the number of steps, or is larger."""
    w, x = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(5, 4)))
    f = lambda x: jnp.tanh(x @ w)
    for explain in (
        functools.partial(methods.integrated_gradients, steps=5),
        functools.partial(methods.smoothgrad, key=KEY, samples=5),
    ):
        want = explain(f)(x)
        for size in (2, 5, 9):
            close(explain(f, batch_size=size)(x), want)


@pytest.mark.slow
def test_many_steps_in_half_precision():
    """A sum of 1000 small numbers would stop growing in bfloat16."""
    x = jnp.ones((1, 2), jnp.bfloat16)
    found = methods.integrated_gradients(lambda x: x.sum(1), steps=1000, batch_size=10)(x)
    np.testing.assert_array_equal(found, 1)
    smooth = methods.smoothgrad(lambda x: x.sum(1), key=KEY, samples=1000, batch_size=10)(x)
    np.testing.assert_array_equal(smooth, 1)


def test_smoothgrad_against_a_loop(rng):
    """Its draws, in a loop: the range is of each sample and of each array of it."""
    xs = {"a": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=(3, 2, 2)))}
    f = lambda x: jnp.sin(x["a"].sum(1)) * jnp.cos(x["b"].sum((1, 2)))
    explain = methods.smoothgrad(f, key=KEY, samples=4, noise_level=0.3)
    got, total = explain(xs), dict.fromkeys(xs, 0)
    for key in jax.random.split(KEY, 4):
        noise = [
            jax.random.normal(k, v.shape)
            for k, v in zip(jax.random.split(key, 2), xs.values(), strict=True)
        ]
        moved = {}
        for (name, v), e in zip(xs.items(), noise, strict=True):
            width = [row.max() - row.min() for row in np.asarray(v)]
            sigma = 0.3 * np.array(width).reshape(3, *(1,) * (v.ndim - 1))
            moved[name] = v + sigma * e
        step = jax.grad(lambda x: f(x).sum())(moved)
        total = {n: total[n] + step[n] / 4 for n in xs}
    for name in xs:
        close(got[name], total[name])


@pytest.mark.slow
def test_smoothgrad_of_other_methods(rng):
    """Without noise it is the method; with it, that of another explanation."""
    w, x = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=(5, 4)))
    f = lambda x: jax.nn.relu(x @ w)
    by_lrp = functools.partial(relax.lrp, rules=rules.ZPlus())
    for inner in (methods.gradient, methods.guided_backprop, by_lrp):
        still = methods.smoothgrad(f, key=KEY, samples=2, stdev=0.0, explain=inner, target=1)(x)
        np.testing.assert_allclose(still, inner(f, target=1)(x), rtol=1e-6, atol=1e-9)
        noisy = methods.smoothgrad(f, key=KEY, samples=2, stdev=0.5, explain=inner, target=1)(x)
        assert np.abs(noisy - still).max() > 1e-3
    linear = methods.smoothgrad(lambda x: x @ w, key=KEY, stdev=jnp.ones((4,)), target=0)(x)
    close(linear, jnp.broadcast_to(w[:, 0], x.shape))


def test_zennit_smoothgrad(monkeypatch):
    """With the draws that Zennit had; its last iteration is without noise."""
    data, params = load("mlp")
    draws = jnp.concatenate([data["smoothgrad_noise"], jnp.zeros_like(data["x"])[None]])
    order = [jax.random.key_data(jax.random.split(k, 1)[0]) for k in jax.random.split(KEY, 8)]

    def recorded(key, shape, dtype):
        which = jnp.stack([(jax.random.key_data(key) == k).all() for k in order])
        return draws[jnp.argmax(which)].astype(dtype)

    monkeypatch.setattr(jax.random, "normal", recorded)
    explain = methods.smoothgrad(MODELS["mlp"], key=KEY, samples=8, target=data["target"])
    assert error(explain(params, jnp.asarray(data["x"])), data["R/zennit.SmoothGrad"]) < 1e-9


ALL = sorted(MODELS)
CAPTUM = ("mlp", "mlp_elu", "mlp_gelu", "mlp_leaky", "mlp_sigmoid", "mlp_tanh", "vgg_small")


@pytest.mark.parametrize(
    "network", [n if n == "mlp" else pytest.param(n, marks=pytest.mark.slow) for n in ALL]
)
def test_zennit(network):
    """Gradient, and integrated gradients by its right sum of 20 steps."""
    data, params = load(network)
    fun, x, target = MODELS[network], jnp.asarray(data["x"]), data["target"]
    want = data["R/zennit.Gradient"]
    close(want, data["R/zennit.SmoothGrad_0"])
    assert error(methods.gradient(fun, target=target)(params, x), want) < 1e-9
    explain = methods.integrated_gradients(
        fun, steps=20, quadrature="right", batch_size=20, target=target
    )
    assert error(jax.jit(explain)(params, x), data["R/zennit.IntegratedGradients"]) < 1e-9


RULES = {
    "gausslegendre": "gauss_legendre",
    "riemann_trapezoid": "trapezoid",
    "riemann_left": "left",
    "riemann_middle": "midpoint",
    "riemann_right": "right",
}


@pytest.mark.parametrize(
    "network", [n if n == "mlp_tanh" else pytest.param(n, marks=pytest.mark.slow) for n in CAPTUM]
)
def test_captum(network):
    """Its steps are rounded to float32, and the weights of its trapezoid add up to 0.98."""
    data, params = load(network)
    fun, x, target = MODELS[network], jnp.asarray(data["x"]), data["target"]
    for name, method in (
        ("Saliency", methods.saliency),
        ("InputXGradient", methods.gradient_x_input),
    ):
        assert error(method(fun, target=target)(params, x), data[f"R/captum.{name}"]) < 1e-9
    for name, quadrature in RULES.items():
        explain = methods.integrated_gradients(
            fun, steps=50, quadrature=quadrature, batch_size=25, target=target
        )
        got = jax.jit(explain)(params, x) * (0.98 if name == "riemann_trapezoid" else 1)
        assert error(got, data[f"R/captum.IntegratedGradients_{name}"]) < 1e-6
    if "R/captum.LRP" in data:
        composite = relax.Composite(((select.affine, rules.Epsilon(1e-9)),), strict=False)
        got = relax.lrp(fun, composite, target=target)(params, x)
        assert error(got, data["R/captum.LRP"]) < 1e-6


def test_errors(rng):
    """What is refused, and why."""
    x, f = jnp.ones((2, 3)), jnp.sum
    ig, smooth = methods.integrated_gradients, functools.partial(methods.smoothgrad, key=KEY)
    refused = functools.partial(pytest.raises, relax.ArgumentError)
    for steps in (0, -1, 2.0, True):
        with refused(match="steps=.*positive integer"):
            ig(f, steps=steps)
    with refused(match="quadrature='simpson': expected 'midpoint'"):
        ig(f, quadrature="simpson")
    with refused(match="needs both ends"):
        ig(f, steps=1, quadrature="trapezoid")
    with refused(match="batch_size=0: expected a positive integer"):
        ig(f, batch_size=0)(x)
    with refused(match=r"baseline of shape \(4,\) does not broadcast to x of shape \(2, 3\)"):
        ig(f, baseline=jnp.ones(4))(x)
    with refused(match="baseline has structure"):
        ig(f, baseline={"a": 0.0})(x)
    with refused(match="samples=0: expected a positive integer"):
        smooth(f, samples=0)
    with refused(match="batch_size=None"):
        smooth(f, batch_size=None)(x)
    with refused(match="x is a scalar, without an axis of samples: batched=False"):
        smooth(f)(1.0)
    with refused(match=r"(?s)each sample is one number.*batched=False; or give stdev"):
        smooth(f)(x[0])
    assert smooth(f, stdev=1.0)(x[0]).shape == (3,)
    with refused(match=r"(?s)dtype int.*needs floats.*relax\.lrp"):
        methods.gradient(f)(jnp.ones(3, int))
    with refused(match="holds no array"):
        methods.gradient(f)(())
    with refused(match="argnums=3 is out of range"):
        methods.gradient(f, argnums=3)(x)
    with pytest.raises(relax.TargetError, match="out of range"):
        methods.gradient(lambda x: x, target=3)(x)
    with pytest.raises(relax.TargetError, match="the only word known"):
        methods.gradient(lambda x: x, target="min")(x)
