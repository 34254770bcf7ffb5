"""Recurrent networks of six frameworks, as they are, under the rules of Arras et al.

Oracles: cells whose gradient times input is LRP-0 (`recurrent_cells`), and the numbers that the
authors' own code gives for their trained bi-LSTM, where its record is at hand.
"""

from pathlib import Path

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from jax import lax
from recurrent_cells import gru, lstm, simple, unrolled, zeros

import relax
from relax import composites, rules

ARRAS = composites.arras_lstm(0.0)
IN, HIDDEN, TIME = 3, 5, 6


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(2, TIME, IN)), jnp.float32)


def wide(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)


def joined(parts, names, kind="kernel"):
    return jnp.concatenate([parts[name][kind] for name in names], -1)


def linen_lstm(x):
    """`nn.LSTMCell` and `nn.OptimizedLSTMCell` have the same parameters."""
    for cell in (nn.LSTMCell(HIDDEN), nn.OptimizedLSTMCell(HIDDEN)):
        model = nn.RNN(cell)
        params = model.init(jax.random.key(0), x)
        (own,) = params["params"].values()
        biased = jax.tree.map(lambda a: a + 0.1 if a.ndim == 1 else a, own)
        params = {"params": dict.fromkeys(params["params"], biased)}
        p = {
            "w": joined(biased, ("ii", "if", "ig", "io")),
            "u": joined(biased, ("hi", "hf", "hg", "ho")),
            "b": joined(biased, ("hi", "hf", "hg", "ho"), "bias"),
        }
        yield model.apply, params, lstm, p, {}


def linen_gru(x):
    model = nn.RNN(nn.GRUCell(HIDDEN))
    params = model.init(jax.random.key(0), x)
    (own,) = params["params"].values()
    p = {
        "w": joined(own, ("ir", "iz", "in")),
        "u": joined(own, ("hr", "hz", "hn")),
        "b": joined(own, ("ir", "iz", "in"), "bias"),
        "c": jnp.concatenate([jnp.zeros(2 * HIDDEN), own["hn"]["bias"]]),
    }
    yield model.apply, params, gru, p, {}


def linen_simple(x):
    model = nn.RNN(nn.SimpleCell(HIDDEN))
    params = model.init(jax.random.key(0), x)
    (own,) = params["params"].values()
    p = {"w": own["i"]["kernel"], "u": own["h"]["kernel"], "b": own["i"]["bias"]}
    yield model.apply, params, simple, p, {}


def nnx_cells(x):
    for made, cell in ((nnx.LSTMCell, lstm), (nnx.OptimizedLSTMCell, lstm)):
        module = nnx.RNN(made(IN, HIDDEN, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(module)
        own = module.cell
        if made is nnx.LSTMCell:
            w = [getattr(own, n).kernel[...] for n in ("ii", "if_", "ig", "io")]
            u = [getattr(own, n).kernel[...] for n in ("hi", "hf", "hg", "ho")]
            b = [getattr(own, n).bias[...] for n in ("hi", "hf", "hg", "ho")]
            p = dict(zip("wub", (jnp.concatenate(a, -1) for a in (w, u, b)), strict=True))
        else:
            p = {
                "w": own.dense_i.kernel[...],
                "u": own.dense_h.kernel[...],
                "b": own.dense_h.bias[...],
            }
        yield (lambda s, x, graph=graph: nnx.merge(graph, s)(x)), state, cell, p, {}


def equinox_cells(x):
    for made, cell in ((eqx.nn.LSTMCell, lstm), (eqx.nn.GRUCell, gru)):
        module = made(IN, HIDDEN, key=jax.random.key(1), dtype=jnp.float32)
        arrays, static = eqx.partition(module, eqx.is_array)

        def run(arrays, x, static=static, cell=cell):
            module = eqx.combine(arrays, static)

            def step(carry, x):
                carry = module(x, carry)
                return carry, carry[0] if cell is lstm else carry

            h = jnp.zeros(HIDDEN, x.dtype)
            start = (h, h) if cell is lstm else h
            return jax.vmap(lambda x: lax.scan(step, start, x)[1])(x)

        p = {"w": module.weight_ih.T, "u": module.weight_hh.T, "b": module.bias}
        if cell is lstm:
            yield run, arrays, cell, p, {"order": "ifgo"}
        else:
            p["c"] = jnp.concatenate([jnp.zeros(2 * HIDDEN), module.bias_n])
            yield run, arrays, cell, p, {}


def haiku_cells(x):
    for unroll in (hk.dynamic_unroll, hk.static_unroll):

        def network(x, unroll=unroll):
            core = hk.LSTM(HIDDEN)
            return unroll(core, x, core.initial_state(x.shape[0]), time_major=False)[0]

        model = hk.without_apply_rng(hk.transform(network))
        params = model.init(jax.random.key(0), x)
        own = params["lstm/linear"]
        forget = jnp.repeat(jnp.array([0.0, 0.0, 1.0, 0.0]), HIDDEN)
        p = {"w": own["w"][:IN], "u": own["w"][IN:], "b": own["b"] + forget}
        yield model.apply, params, lstm, p, {"order": "igfo"}


def haiku_gru(x):
    def network(x):
        core = hk.GRU(HIDDEN)
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)[0]

    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), x)
    turn = lambda a: jnp.concatenate(
        [a[..., HIDDEN : 2 * HIDDEN], a[..., :HIDDEN], a[..., 2 * HIDDEN :]], -1
    )
    own = {name: turn(params["gru"][name]) for name in ("w_i", "w_h", "b")}
    p = {"w": own["w_i"], "u": own["w_h"], "b": own["b"], "c": jnp.zeros(3 * HIDDEN)}
    yield model.apply, params, gru, p, {"reset_after": False, "update_new": True}


def keras_cells(x):
    layers = keras.layers
    for unroll in (False, True):
        for made, cell, how in (
            (layers.LSTM(HIDDEN, return_sequences=True, unroll=unroll), lstm, {"order": "ifgo"}),
            (layers.GRU(HIDDEN, return_sequences=True, unroll=unroll), gru, {}),
            (
                layers.GRU(HIDDEN, return_sequences=True, unroll=unroll, reset_after=False),
                gru,
                {"reset_after": False},
            ),
            (layers.SimpleRNN(HIDDEN, return_sequences=True, unroll=unroll), simple, {}),
        ):
            model = keras.Sequential([keras.Input((TIME, IN)), made])
            values = [v.value for v in model.trainable_variables]
            others = [v.value for v in model.non_trainable_variables]
            w, u, b = values
            p = {"w": w, "u": u, "b": b}
            if cell is gru:  # in the order z, r, n
                turn = lambda a: jnp.concatenate(
                    [a[..., HIDDEN : 2 * HIDDEN], a[..., :HIDDEN], a[..., 2 * HIDDEN :]], -1
                )
                both = b if b.ndim == 2 else jnp.stack([b, jnp.zeros_like(b)])
                p = {"w": turn(w), "u": turn(u), "b": turn(both[0]), "c": turn(both[1])}
            run = lambda p, x, model=model, others=others: model.stateless_call(p, others, x)[0]
            yield run, values, cell, p, how


FRAMEWORKS = [
    linen_lstm,
    linen_gru,
    linen_simple,
    nnx_cells,
    equinox_cells,
    haiku_cells,
    haiku_gru,
    keras_cells,
]


LONG = (linen_simple, nnx_cells, haiku_gru)


@pytest.mark.parametrize(
    "framework",
    [pytest.param(f, marks=pytest.mark.slow if f in LONG else ()) for f in FRAMEWORKS],
    ids=lambda made: made.__name__,
)
def test_cells_of_every_framework(framework, x):
    """Each output of each step, by a random seed; the frameworks compute in float32."""
    with jax.numpy_rank_promotion("allow"):
        compare(framework, x)


def compare(framework, x):
    seed = np.random.default_rng(1).normal(size=(2, TIME, HIDDEN))
    for run, params, cell, p, how in framework(x):
        p, precise = wide(p), wide(x)
        start = zeros(precise, HIDDEN, cell.__name__)
        oracle = lambda x, cell=cell, p=p, start=start, how=how: unrolled(cell, p, start, x, **how)
        np.testing.assert_allclose(run(params, x), oracle(precise), rtol=1e-4, atol=1e-5)
        expected = precise * jax.grad(lambda x, oracle=oracle: (oracle(x) * seed).sum())(precise)
        seeded = lambda p, x, run=run: (lambda h: h * seed.astype(h.dtype))(run(p, x))
        got = jax.jit(relax.lrp(seeded, ARRAS))(params, x)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def bare(cell, **how):
    """A cell of plain JAX in a scan, its gates and activations as users write them."""

    def step(p):
        def run(carry, x):
            if cell is lstm:
                h, c = carry
                i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"].reshape(1, -1), 4, -1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h
            h = jnp.tanh(x @ p["w"] + carry @ p["u"] + p["b"].reshape(1, -1))
            return h, h

        return run

    def network(p, x):
        start = zeros(x, p["u"].shape[0], cell.__name__)
        return lax.scan(step(p), start, x.swapaxes(0, 1), **how)[1].swapaxes(0, 1)

    return network


@pytest.fixture
def p(rng):
    return {
        "w": rng.normal(size=(IN, 4 * HIDDEN)),
        "u": rng.normal(size=(HIDDEN, 4 * HIDDEN)) / 2,
        "b": rng.normal(size=4 * HIDDEN),
    }


def naive_lstm(p, x, seed, epsilon, factor):
    """The loop of Arras et al. in numpy: relevance of x (time, in) from that of the last state."""
    w, u, b = (np.asarray(p[n]) for n in "wub")
    time, n = x.shape[0], u.shape[0]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    h, c, z = np.zeros((time + 1, n)), np.zeros((time + 1, n)), np.zeros((time, 4 * n))
    for t in range(time):
        z[t] = x[t] @ w + h[t - 1] @ u + b
        i, f, g, o = np.split(z[t], 4)
        c[t] = sigmoid(f) * c[t - 1] + sigmoid(i) * np.tanh(g)
        h[t] = sigmoid(o) * np.tanh(c[t])

    def linear(inputs, weight, bias, out, relevance, units):
        s = np.where(out >= 0, 1, -1)
        numerator = weight * inputs[:, None] + factor * (bias + epsilon * s) / units
        return (numerator / (out + epsilon * s) * relevance).sum(1)

    r_x, r_h, r_c = np.zeros_like(x), np.asarray(seed) * h[time - 1], np.zeros(n)
    signal, eye, nothing = slice(2 * n, 3 * n), np.eye(n), np.zeros(n)
    for t in reversed(range(time)):
        i, f, g, _ = np.split(z[t], 4)
        r_c = r_c + r_h
        r_g = linear(sigmoid(i) * np.tanh(g), eye, nothing, c[t], r_c, 2 * n)
        r_c = linear(sigmoid(f) * c[t - 1], eye, nothing, c[t], r_c, 2 * n)
        units = x.shape[1] + n
        own = (b[signal], z[t, signal], r_g, units)
        r_x[t] = linear(x[t], w[:, signal], *own)
        r_h = linear(h[t - 1], u[:, signal], *own)
    return r_x


@pytest.mark.parametrize("epsilon", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_the_loop_of_arras(epsilon, factor, p, rng):
    x, seed = rng.normal(size=(TIME, IN)), rng.normal(size=HIDDEN)
    network = lambda p, x: bare(lstm)(p, x[None])[0, -1] * seed
    explain = relax.lrp(network, composites.arras_lstm(epsilon, factor))
    expected = naive_lstm(p, x, seed, epsilon, factor)
    np.testing.assert_allclose(jax.jit(explain)(p, x), expected, rtol=1e-9, atol=1e-12)


REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "lstm"
recorded = pytest.mark.skipif(not REFERENCE.exists(), reason="the record is not beside the project")


def scanned(w, x):
    """The bi-LSTM of Arras et al. with lax.scan."""

    def encode(side, x):
        def step(carry, x):
            h, c = carry
            z = x @ w[f"Wxh_{side}"].T + w[f"bxh_{side}"] + h @ w[f"Whh_{side}"].T
            i, g, f, o = jnp.split(z + w[f"bhh_{side}"], 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        (h, _), _ = lax.scan(step, (jnp.zeros(60), jnp.zeros(60)), x)
        return h

    return encode("Left", x) @ w["Why_Left"].T + encode("Right", x[::-1]) @ w["Why_Right"].T


class Bidirectional(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x):
        cell = lambda name: nn.OptimizedLSTMCell(60, param_dtype=jnp.float64, name=name)
        head = lambda name: nn.Dense(5, use_bias=False, name=name)
        left = nn.RNN(cell("Left"))(x)[-1]
        right = nn.RNN(cell("Right"), reverse=True, keep_order=True)(x)[0]
        return head("Why_Left")(left) + head("Why_Right")(right)


def carried_over(w):
    """The weights in the names of `nn.OptimizedLSTMCell`."""
    params = {}
    for side in ("Left", "Right"):
        blocks = lambda a: dict(zip("igfo", np.split(a, 4), strict=True))
        wx, wh = blocks(w[f"Wxh_{side}"]), blocks(w[f"Whh_{side}"])
        b = blocks(w[f"bxh_{side}"] + w[f"bhh_{side}"])
        inputs = {f"i{g}": {"kernel": wx[g].T} for g in "igfo"}
        params[side] = inputs | {f"h{g}": {"kernel": wh[g].T, "bias": b[g]} for g in "igfo"}
        params[f"Why_{side}"] = {"kernel": w[f"Why_{side}"].T}
    return {"params": params}


SENTENCES = [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 9))]
RECORDED = [(0.0, 0.0), (0.001, 0.0), (0.01, 0.0), (0.0, 1.0), (0.001, 1.0)]  # epsilon, factor


@recorded
@pytest.mark.parametrize(("epsilon", "factor"), RECORDED)
@pytest.mark.parametrize(
    "sentence", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 9))]
)
def test_numbers_of_the_authors(epsilon, factor, sentence):
    """To 1e-9, by lax.scan and by `nn.RNN(nn.OptimizedLSTMCell)` with the weights carried over."""
    w = dict(np.load(REFERENCE / "weights.npz"))
    arrays = np.load(REFERENCE / "expected_arrays.npz")
    x, ending = arrays[f"s{sentence}_x"], f"_eps{epsilon}_bf{factor}_Rx"
    names = [n for n in arrays if n.startswith(f"s{sentence}_") and n.endswith(ending)]
    targets = jnp.array([int(name.split("_")[1][1:]) for name in names])
    expected = np.stack([arrays[name] for name in names])
    scale = np.abs(expected).max((1, 2), keepdims=True)
    rule = composites.arras_lstm(epsilon, factor)
    for function, params in ((scanned, w), (Bidirectional().apply, carried_over(w))):
        explain = lambda t, f=function, p=params: relax.lrp(f, rule, target=t)(p, x)
        got = jax.jit(jax.vmap(explain))(targets)
        np.testing.assert_allclose(got / scale, expected / scale, atol=1e-9)


def step_by_step(p, carry, x):
    h, c = carry
    i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"].reshape(1, -1), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def in_scan(p, x, carry):
    return lax.scan(lambda c, x: (step_by_step(p, c, x), None), carry, x.swapaxes(0, 1))[0][0]


def in_loop(p, x, carry):
    for t in range(x.shape[1]):
        carry = step_by_step(p, carry, x[:, t])
    return carry[0]


@pytest.fixture
def start(rng):
    return rng.normal(size=(1, HIDDEN)), rng.normal(size=(1, HIDDEN))


def test_the_bias_factor_conserves(p, start, rng):
    """With factor 1 the relevance of the input and of the first state is the output, exactly."""
    x = rng.normal(size=(1, TIME, IN))
    explain = relax.value_and_lrp(in_scan, composites.arras_lstm(0.01, 1.0), argnums=(1, 2))
    value, relevance = jax.jit(explain)(p, x, start)
    total = sum(float(r.sum()) for r in jax.tree.leaves(relevance))
    assert total == pytest.approx(float(value.sum()), rel=1e-10)


SEQUENCES = {
    "bidirectional": lambda p, x: bare(lstm)(p, x) + bare(lstm, reverse=True)(p, x),
    "stacked": lambda p, x: bare(lstm)(dict(p, w=p["s"]), bare(lstm)(p, x)),
    "reversed": bare(lstm, reverse=True),
    "unrolled by four": bare(lstm, unroll=4),
}


def looped(p, x, reverse=False):
    return unrolled(lstm, p, zeros(x, HIDDEN, "lstm"), x, reverse)


ORACLES = {
    "bidirectional": lambda p, x: looped(p, x) + looped(p, x, True),
    "stacked": lambda p, x: looped(dict(p, w=p["s"]), looped(p, x)),
    "reversed": lambda p, x: looped(p, x, True),
    "unrolled by four": looped,
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize(
    "steps", [[1, 3], *(pytest.param(s, marks=pytest.mark.slow) for s in ([5], list(range(6))))]
)
def test_any_subset_of_time_steps_as_target(name, steps, p, rng):
    """In one pass; what comes later than the last step of a forward network gets nothing."""
    p["s"] = rng.normal(size=(HIDDEN, 4 * HIDDEN))
    x, mask = rng.normal(size=(2, TIME, IN)), np.zeros((1, TIME, 1))
    mask[:, steps] = 1
    target = lambda h: h * mask
    got = jax.jit(relax.lrp(lambda p, x: target(SEQUENCES[name](p, x)), ARRAS))(p, x)
    expected = x * jax.grad(lambda x: target(ORACLES[name](p, x)).sum())(x)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    by_target = relax.lrp(SEQUENCES[name], ARRAS, target=target)(p, x)
    np.testing.assert_allclose(by_target, expected, rtol=1e-4, atol=1e-5)
    if name in ("stacked", "unrolled by four"):
        np.testing.assert_array_equal(got[:, max(steps) + 1 :], 0)


def test_latent_relevance_has_the_time_in_front(p, rng):
    """Of the cell's sum, step by step."""
    x = rng.normal(size=(2, TIME, IN))
    network = lambda p, x: bare(lstm)(p, x)[:, -1]
    relevance, latent = jax.jit(relax.lrp(network, ARRAS, at="add*"))(p, x)
    (cell,) = latent.values()
    assert (relevance.shape, cell.shape) == (x.shape, (TIME, 2, HIDDEN))
    np.testing.assert_allclose(cell[-1], network(p, x), rtol=1e-9)


DIFFERENTIATED = {
    "Epsilon": rules.Epsilon(0.1),
    "ZPlus": rules.ZPlus(0.1),
    "Gamma": rules.Gamma(0.3, 0.1),
    "arras_lstm": composites.arras_lstm(0.1, 0.5),
}


@pytest.mark.more
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "arras_lstm" else pytest.mark.slow) for n in DIFFERENTIATED],
)
def test_derivatives_through_a_recurrent_network(name, p, start, rng):
    """Of the relevance, through all parameters: a loop unrolled by hand, and differences."""
    x = rng.normal(size=(1, 4, IN))

    def loss(function):
        explain = relax.lrp(function, DIFFERENTIATED[name], argnums=(1, 2))
        return lambda *args: sum(jnp.sin(r).sum() for r in jax.tree.leaves(explain(*args)))

    arguments, several = (p, x, start), (0, 1, 2)
    got = jax.jit(jax.value_and_grad(loss(in_scan), several))(*arguments)
    expected = jax.jit(jax.value_and_grad(loss(in_loop), several))(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)
    along = jax.tree.map(lambda a: rng.normal(size=a.shape), arguments)
    move = lambda s: jax.tree.map(lambda a, d: a + s * d, arguments, along)
    run = jax.jit(loss(in_scan))
    difference = (run(*move(1e-6)) - run(*move(-1e-6))) / 2e-6
    leaves = zip(jax.tree.leaves(got[1]), jax.tree.leaves(along), strict=True)
    np.testing.assert_allclose(sum(jnp.vdot(a, d) for a, d in leaves), difference, rtol=1e-4)


@pytest.mark.more
def test_convolutional_lstm(rng):
    """Linen's and Keras': gates held, LRP-0 by the gradient of the cell with its gates held."""
    x = jnp.asarray(rng.normal(size=(1, 3, 5, 5, 2)), jnp.float32)
    cell = nn.ConvLSTMCell(3, (3, 3))
    model = nn.RNN(cell)
    params = model.init(jax.random.key(0), x)
    (own,) = params["params"].values()

    def oracle(x):
        conv = lambda a, k: (
            lax.conv_general_dilated(
                a, k["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            + k["bias"].reshape(1, 1, 1, -1)
        )
        h = c = jnp.zeros((1, 5, 5, 3), x.dtype)
        passes = lambda z: z * lax.stop_gradient(jnp.tanh(z) / z)
        for t in range(x.shape[1]):
            i, g, f, o = jnp.split(conv(x[:, t], own["ih"]) + conv(h, own["hh"]), 4, -1)
            gate = lambda z: lax.stop_gradient(jax.nn.sigmoid(z))
            c = gate(f + 1) * c + gate(i) * passes(g)
            h = gate(o) * passes(c)
        return h

    np.testing.assert_allclose(model.apply(params, x)[:, -1], oracle(x), rtol=1e-4, atol=1e-5)
    expected = x * jax.grad(lambda x: oracle(x).sum())(x)
    got = relax.lrp(lambda p, x: model.apply(p, x)[:, -1], ARRAS)(params, x)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.more
def test_a_linear_state_space_model_is_its_gradient(rng):
    """S4 with a diagonal complex state, as a scan, an associative scan and a convolution."""
    a = 0.9 * np.exp(1j * rng.uniform(0, 3, size=4))
    b, c = rng.normal(size=4) + 1j * rng.normal(size=4), rng.normal(size=4) + 0j
    x = rng.normal(size=8)

    def by_scan(x):
        step = lambda h, x: (a * h + b * x, jnp.sum(c * h).real)
        return lax.scan(step, jnp.zeros(4, complex), x)[1]

    def by_associative_scan(x):
        def combine(first, second):
            return first[0] * second[0], second[0] * first[1] + second[1]

        _, h = lax.associative_scan(combine, (jnp.tile(a, (8, 1)), x[:, None] * b[None]))
        return jnp.roll((h * c[None]).sum(-1).real, 1).at[0].set(0)

    powers = np.array([(c * a**t * b).sum().real for t in range(8)])
    by_fft = lambda x: (
        jnp.roll(jnp.fft.irfft(jnp.fft.rfft(x, 16) * jnp.fft.rfft(powers, 16), 16)[:8], 1)
        .at[0]
        .set(0)
    )
    np.testing.assert_allclose(by_associative_scan(x), by_scan(x), rtol=1e-9)
    np.testing.assert_allclose(by_fft(x), by_scan(x), rtol=1e-9)
    seed = rng.normal(size=8)
    for form in (by_scan, by_associative_scan, by_fft):
        got = relax.lrp(lambda x, form=form: form(x) * seed)(x)
        expected = x * jax.grad(lambda x: (by_scan(x) * seed).sum())(x)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.more
def test_minimal_gru_as_scan_and_as_associative_scan(rng):
    """Gates that depend on the input alone: z takes nothing, in either order of computation."""
    w, v = rng.normal(size=(IN, 4)), rng.normal(size=(IN, 4))
    x = rng.normal(size=(TIME, IN))

    def by_scan(x):
        z, n = jax.nn.sigmoid(x @ w), x @ v
        step = lambda h, zn: (((1 - zn[0]) * h + zn[0] * zn[1]),) * 2
        return lax.scan(step, jnp.zeros(4), (z, n))[1]

    def by_associative_scan(x):
        z, n = jax.nn.sigmoid(x @ w), x @ v
        combine = lambda f, s: (f[0] * s[0], s[0] * f[1] + s[1])
        return lax.associative_scan(combine, (1 - z, z * n))[1]

    def oracle(x):
        z, h, states = lax.stop_gradient(jax.nn.sigmoid(x @ w)), jnp.zeros(4), []
        for t in range(TIME):
            h = (1 - z[t]) * h + z[t] * (x[t] @ v)
            states.append(h)
        return jnp.stack(states)

    expected = x * jax.grad(lambda x: oracle(x).sum())(x)
    for form in (by_scan, by_associative_scan):
        np.testing.assert_allclose(form(x), oracle(x), rtol=1e-9)
        np.testing.assert_allclose(relax.lrp(form, ARRAS)(x), expected, rtol=1e-9, atol=1e-12)


def test_selective_scan(rng):
    """Mamba: the decay, which lies in [0, 1], is a gate; step size, input and read-out share."""
    names = {"dt": (IN, IN), "b": (IN, 4), "c": (IN, 4)}
    p = {name: rng.normal(size=shape) for name, shape in names.items()} | {
        "log_a": rng.normal(size=(IN, 4)),
        "d": rng.normal(size=(1, IN)),
    }
    x = rng.normal(size=(TIME, IN))

    def mamba(p, x, dt=jax.nn.softplus, hold=lambda v: v, half=lambda v: v):
        delta, b, c = dt(x @ p["dt"]), x @ p["b"], x @ p["c"]

        def step(h, inputs):
            x, delta, b, c = inputs
            decay = hold(jnp.exp(delta[:, None] * -jnp.exp(p["log_a"])))
            h = decay * h + half(half(delta[:, None] * b[None]) * x[:, None])
            return h, half(h @ c)

        _, y = lax.scan(step, jnp.zeros((IN, 4)), (x, delta, b, c))
        return y + p["d"] * x

    plan = relax.layers(mamba, ARRAS)(p, x)
    gated = [row for row in plan if row.kind == "product"]
    assert len(gated) == 4
    # a product that halves is one whose gradient is halved; a gate is held
    halved = lambda v: v / 2 + lax.stop_gradient(v / 2)
    passing = lambda z: z * lax.stop_gradient(jax.nn.softplus(z) / z)
    oracle = lambda x: mamba(p, x, passing, lax.stop_gradient, halved).sum()
    got = jax.jit(relax.lrp(mamba, ARRAS))(p, x)
    np.testing.assert_allclose(got, x * jax.grad(oracle)(x), rtol=1e-8, atol=1e-10)
