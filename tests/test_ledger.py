"""The account closes: for every layer, every cause, every rule, and for the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import relax
from benchmarks import loops
from benchmarks.counting import count
from relax import composites, rules, select

SHAPES = {
    "w": (4, 6),
    "b": (1, 6),
    "v": (6, 4),
    "c": (1, 4),
    "k": (3, 4, 5),
    "s": (1, 5),
    "h": (5, 3),
    "q": (4, 4),
    "u": (4, 16),
    "r": (4, 16),
    "g": (1, 16),
}


@pytest.fixture
def p(rng):
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


@pytest.fixture
def x(rng):
    return rng.normal(size=(2, 5, 4))


def feed_forward(p, x):
    return jnp.tanh(jax.nn.relu(x @ p["w"] + p["b"][None]) @ p["v"] + p["c"][None])


def convolutional(p, x):
    numbers = {"dimension_numbers": ("NWC", "WIO", "NWC")}
    z = lax.conv_general_dilated(x, p["k"], (1,), "SAME", **numbers) + p["s"][None]
    z = jax.nn.relu(z * jnp.linspace(0.5, -1, 5).reshape(1, 1, 5) + 0.3)
    z = lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID")
    return z.mean(1) @ p["h"]


def residual(p, x):
    return (x + feed_forward(p, x) + 0.7).sum(1)


def transformer(p, x):
    x = x + jnp.linspace(-1, 1, 20).reshape(1, 5, 4)
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    y = y * 1.5 + p["c"][None]
    scores = jnp.where(np.tri(5, dtype=bool)[None], (y @ p["q"]) @ y.swapaxes(1, 2), -jnp.inf)
    x = x + jax.nn.softmax(scores) @ y @ p["q"] + p["c"][None]
    return jax.nn.gelu(x) * jax.nn.sigmoid(x @ p["q"])


def recurrent(p, x):
    def step(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ p["u"] + h @ p["r"] + p["g"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.full((2, 4), 0.3)
    return lax.scan(step, (start, start), x.swapaxes(0, 1))[1].swapaxes(0, 1)


def branching(p, x):
    tall = lambda x: jax.nn.relu(x @ p["w"] + p["b"][None]) @ p["v"]
    return lax.cond(x.sum() > 0, tall, lambda x: x @ p["q"] + p["c"][None], x)


def rematerialized(p, x):
    return jax.checkpoint(functools.partial(feed_forward, p))(x)


NETWORKS = {
    f.__name__: f
    for f in (
        feed_forward,
        convolutional,
        residual,
        transformer,
        recurrent,
        branching,
        rematerialized,
    )
}
RULES = {
    "Epsilon": rules.Epsilon(0.1),
    "LRP-0": rules.Epsilon(0.0),
    "clip": rules.Epsilon(0.1, "clip"),
    "zero_bias": rules.Epsilon(0.1, zero_bias=True),
    "bias_share": rules.Epsilon(0.1, bias_share=0.3),
    "ZPlus": rules.ZPlus(0.1),
    "AlphaBeta": rules.AlphaBeta(2.0, 1.0, 0.1),
    "Gamma": rules.Gamma(0.3, 0.1),
    "TextbookGamma": rules.TextbookGamma(0.3, 0.1),
    "WSquare": rules.WSquare(0.1),
    "Flat": rules.Flat(0.1),
    "ZBox": rules.ZBox(-3.0, 3.0, 0.1),
    "Mask": {select.dense | select.conv: rules.Mask(0.4, rules.Epsilon(0.1))},
    "sums": composites.epsilon_plus(sums=rules.Epsilon(0.2)),
    "norms": relax.Composite(
        ((select.norm, rules.LayerNormRule(0.1)), *composites.attnlrp(0.1).entries), strict=False
    ),
    "elrp": [(select.activation, rules.Epsilon(1e-4)), composites.epsilon()],
    "attnlrp": composites.attnlrp(),
    "cp_lrp": composites.cp_lrp(0.1),
    "attnlrp_vit": composites.attnlrp_vit(),
    "arras_lstm": composites.arras_lstm(0.1, 0.5),
    "excitation_backprop": composites.excitation_backprop(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "gradient": rules.Gradient(),
}
QUICK = {"Gamma", "attnlrp"}  # with every network; these with one:
ONCE = {"Epsilon", "bias_share", "AlphaBeta", "Flat", "WSquare", "ZBox", "Mask", "sums", "gradient"}


def options(rule):
    return [(key, rule[key]) for key in rule] if isinstance(rule, dict) else rule


def is_quick(network, name):
    return name in QUICK or (network == "residual" and name in ONCE)


@pytest.mark.filterwarnings("ignore::relax.RelaxWarning")
@pytest.mark.parametrize(
    ("network", "name"),
    [
        pytest.param(n, r, marks=() if is_quick(n, r) else pytest.mark.slow)
        for n in NETWORKS
        for r in RULES
    ],
)
def test_in_and_absorbed_are_out(network, name, p, x):
    """Layer by layer and on the whole, to 1e-10; the relevance is that of lrp."""
    function, rule = NETWORKS[network], options(RULES[name])
    relevance, account = jax.jit(relax.ledger(function, rule, target=1))(p, x)
    expected = jax.jit(relax.lrp(function, rule, target=1))(p, x)
    np.testing.assert_allclose(relevance, expected, rtol=1e-9, atol=1e-12)
    size = max(1.0, *(float(np.abs(entry.out).max()) for entry in account))
    np.testing.assert_allclose(account.explained, function(p, x)[..., 1].sum(), rtol=1e-10)
    np.testing.assert_allclose(account.received, relevance.sum(), atol=1e-10 * size)
    assert abs(float(account.rounding)) < 1e-10 * size
    for entry in account:
        assert np.all(np.abs(entry.rounding) < 1e-10 * size), entry
        total = entry.into + sum(entry.absorbed.values())
        np.testing.assert_allclose(total, entry.out, atol=1e-10 * size)


def test_causes_by_their_formulas(p, x):
    """Bias and stabilizer of a dense layer, the softmax, a shift, and what no denominator takes."""
    x = x[0]
    w, b = p["w"], p["b"]
    z = x @ w + b
    sign = np.where(z < 0, -1, 1)
    _, account = relax.ledger(lambda x: x @ w + b, rules.Epsilon(0.1))(x)
    (dense,) = account
    s = z / (z + 0.1 * sign)
    np.testing.assert_allclose(dense.absorbed["bias"], (b * s).sum())
    np.testing.assert_allclose(dense.absorbed["stabilizer"], (0.1 * sign * s).sum())

    (_, account) = relax.ledger(jax.nn.softmax, target=0)(x)
    ((softmax,), weights) = (account, np.asarray(jax.nn.softmax(x)))
    explained = x * np.stack([jax.grad(lambda x: jax.nn.softmax(x)[0])(row) for row in x])
    np.testing.assert_allclose(softmax.absorbed["softmax"], weights[:, 0].sum() - explained.sum())

    (_, account) = relax.ledger(lambda x: jnp.tanh(x) + p["c"])(x)
    assert float(account.by_cause()["bias"]) == pytest.approx(5 * p["c"].sum(), rel=1e-4)

    negative = lambda x: jnp.abs(x) @ -jnp.abs(w)
    (_, account) = relax.ledger(negative, rules.ZPlus(0.0))(x)
    (dense,) = (entry for entry in account if entry.kind == "dense")
    np.testing.assert_allclose(dense.absorbed["dead"], negative(x).sum())
    assert float(dense.into) == 0


def test_a_network_that_conserves_keeps_nothing(p, x):
    """CP-LRP without biases."""
    bare = p | {name: 0 * p[name] for name in "bcsg"}

    def function(p, x):
        y = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        scores = (y @ p["q"]) @ y.swapaxes(1, 2)
        return x + jax.nn.gelu(jax.nn.softmax(scores) @ y @ p["w"]) @ p["v"]

    _, account = relax.ledger(function, composites.cp_lrp())(bare, x)
    assert max(abs(float(e.kept)) for e in account) < 1e-12
    assert str(account).count("\n") == 3  # the head of an empty table, and the sums


def test_rounds_of_a_scan_are_the_layers_of_the_loop(p, x):
    """One sum for each round."""

    def unrolled(p, x):
        h = jnp.full((2, 4), 0.3)
        for t in range(5):
            h = jnp.tanh(x[:, t] @ p["q"] + h @ p["q"] + p["c"])
        return h

    def scanned(p, x):
        step = lambda h, x: (jnp.tanh(x @ p["q"] + h @ p["q"] + p["c"]), None)
        return lax.scan(step, jnp.full((2, 4), 0.3), x.swapaxes(0, 1))[0]

    rule = rules.Epsilon(0.1)
    _, loop = relax.ledger(unrolled, rule)(p, x)
    _, scan = relax.ledger(scanned, rule)(p, x)
    (dense,) = (entry for entry in scan if entry.kind == "dense")
    each = [entry for entry in loop if entry.kind == "dense"]
    assert dense.out.shape == (5,)
    np.testing.assert_allclose(dense.out, [entry.out for entry in each], rtol=1e-10)
    stabilizers = [entry.absorbed["stabilizer"] for entry in each]
    np.testing.assert_allclose(dense.absorbed["stabilizer"], stabilizers, rtol=1e-10)
    (start,) = (entry for entry in scan if entry.path == "scan")
    first = each[0].absorbed["bias"] - dense.absorbed["bias"][0]
    np.testing.assert_allclose(start.absorbed["constant"], first, rtol=1e-9)


def test_one_account_for_each_sample_of_a_vmap(p, x):
    explain = relax.ledger(recurrent_single, rules.Epsilon(0.1))
    _, accounts = jax.jit(jax.vmap(explain, (None, 0)))(p, x)
    for i in range(2):
        _, own = explain(p, x[i])
        for both, one in zip(accounts, own, strict=True):
            np.testing.assert_allclose(both.out[i], one.out, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(accounts.received[i], own.received, rtol=1e-10)
        np.testing.assert_allclose(accounts.absorbed[i], own.absorbed, rtol=1e-10, atol=1e-12)
    assert np.abs(accounts.rounding).max() < 1e-10
    assert "explained" in str(accounts)


def recurrent_single(p, x):
    step = lambda h, x: (jnp.tanh(x @ p["q"] + h @ p["q"] + p["c"][0]), None)
    return lax.scan(step, jnp.zeros(4), x)[0]


def test_it_is_differentiable(p, x):
    """A penalty on what the biases keep, against differences."""

    def penalty(b):
        _, account = relax.ledger(feed_forward, rules.Epsilon(0.1))(p | {"b": b}, x)
        return account.by_cause()["bias"] ** 2

    direction = np.linspace(-1, 1, 6).reshape(1, 6)
    got = jnp.vdot(jax.jit(jax.grad(penalty))(p["b"]), direction)
    step = 1e-6 * direction
    expected = (penalty(p["b"] + step) - penalty(p["b"] - step)) / 2e-6
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def deep_convolutional(p, x):
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    for k, b in p["layers"]:
        x = jax.nn.relu(lax.conv_general_dilated(x, k, (1, 1), "SAME", **numbers) + b)
    return x.mean((1, 2)) @ p["head"]


def test_it_costs_no_more_than_twice_lrp():
    """Counted FLOPs of the compiled programs: transformer blocks, and convolutions."""
    function, params, tokens = loops.blocks(lambda step: step, depth=2, width=64, time=64)
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    kernels = [(shape(3, 3, i, 16), shape(1, 1, 1, 16)) for i in (3, 16, 16)]
    image, p = shape(2, 16, 16, 3), {"layers": kernels, "head": shape(16, 5)}
    for f, params_, x, name in (
        (function, params, tokens, "attnlrp"),
        (deep_convolutional, p, image, "epsilon_plus_flat"),
        (deep_convolutional, p, image, "Gamma"),
    ):
        cost = lambda g, params_=params_, x=x: count(g, params_, x).flops
        ratio = cost(relax.ledger(f, RULES[name])) / cost(relax.lrp(f, RULES[name]))
        assert ratio <= 2, name


def test_what_is_outside_of_the_target(p, x):
    function = lambda p, x: residual(p, x)
    _, account = relax.ledger(function, target=2)(p, x)
    value = function(p, x)
    np.testing.assert_allclose(account.outside, value.sum() - value[:, 2].sum(), rtol=1e-9)
    (relevance, chosen) = relax.ledger(function, target=lambda z: z * 0 + 1.0)(p, x)
    assert float(chosen.explained) == value.size
    assert abs(float(chosen.rounding)) < 1e-4  # a seed becomes a coefficient by the value
    assert relevance.shape == x.shape


@pytest.mark.parametrize("target", [None, lambda value: jax.tree.map(lambda z: 2 * z, value)])
def test_an_output_that_does_not_depend_on_the_input_is_a_constant(target, p, x):
    """Its relevance reaches no layer: it is kept at the output itself, and the account closes."""

    def f(p, x):
        z = x @ p["w"]
        return z, p["v"], jax.lax.stop_gradient(z), jnp.arange(3)

    relevance, account = relax.ledger(f, rules.Epsilon(0.0), target=target)(p, x)
    times = 1 if target is None else 2
    kept = times * (p["v"].sum() + (x @ p["w"]).sum())
    assert [(entry.path, entry.kind) for entry in account][-1] == ("output", "constant")
    np.testing.assert_allclose(account[-1].absorbed["constant"], kept)
    np.testing.assert_allclose(account[-1].into, 0)
    np.testing.assert_allclose(account.rounding, 0, atol=1e-12)
    np.testing.assert_allclose(account.received, times * (x @ p["w"]).sum())
    assert relevance.shape == x.shape
    _, account = relax.ledger(lambda p, x: x @ p["w"], target=target)(p, x)
    assert [entry.kind for entry in account] == ["dense"]


def test_tokens_auxiliary_outputs_and_rules_of_functions(rng):
    table, w = jnp.asarray(rng.normal(size=(7, 4))), rng.normal(size=(4, 3))
    model = lambda ids: ((table[ids] @ w).sum(0), ids.shape)
    ((relevance, account), aux) = relax.ledger(model, has_aux=True, target=1)(jnp.array([1, 2, 2]))
    assert (relevance.shape, aux) == ((3,), (3,))
    np.testing.assert_allclose(account.received, relevance.sum(), rtol=1e-6)

    halved = relax.custom_relprop(jnp.tanh)
    halved.defrelprop(lambda x: (jnp.tanh(x), None), lambda _, r: (r / 2,))
    _, account = relax.ledger(lambda x: halved(x) * 2.0)(rng.normal(size=3))
    (own,) = (entry for entry in account if entry.kind == "custom")
    np.testing.assert_allclose(own.absorbed["rule"], own.out / 2)


@dataclasses.dataclass(frozen=True)
class Halving(rules.AffineRule):
    """A user's rule that tells no causes."""

    def relevance(self, layer, x, relevance):
        return x * layer.transpose(relevance / layer(x)) / 2


@dataclasses.dataclass(frozen=True)
class Telling(Halving):
    """The same, which tells what its bias keeps."""

    def absorbed(self, layer, x, out):
        return {"bias": jnp.sum(layer.bias * out.relevance / out.value) / 2}


def test_what_a_rule_does_not_tell_is_its_own(p, x):
    """Under `rule`, not under rounding; also inside of a mask."""
    dense = lambda x: x @ p["w"] + p["b"]
    for rule in (Halving(), Telling(), rules.Gradient(), rules.Mask(0.4, rules.Gradient())):
        _, account = relax.ledger(dense, {"dense": rule})(x[0])
        (entry,) = account
        assert float(entry.rounding) == 0
        kept = entry.absorbed["rule"] + entry.absorbed["bias"] + entry.absorbed["mask"]
        np.testing.assert_allclose(kept, entry.out - entry.into)
        assert abs(float(entry.absorbed["rule"])) > 1e-3
        assert (float(entry.absorbed["bias"]) != 0) == isinstance(rule, Telling)


def test_as_text_and_as_html(p, x):
    _, account = relax.ledger(transformer, composites.attnlrp(), target=1)(p, x)
    head, _, *rows, explained, outside = str(account).splitlines()
    assert head.split() == ["path", "kind", "rule", "out", "in", "absorbed", "by", "where"]
    kept = [abs(float(e.kept)) for e in account]
    assert rows[0].split()[0] == account[int(np.argmax(kept))].path
    assert "test_ledger.py:" in rows[0]
    assert explained.startswith("explained ")
    assert "softmax" in explained
    assert "rounding" in outside
    page = account._repr_html_()
    assert page.count("<tr>") == len(rows) + 1
    assert "<script" not in page
    traced = []
    jax.jit(lambda x: traced.append(str(relax.ledger(jnp.tanh)(x)[1])))(x)
    assert traced == ["<account of 1 places, traced>"]


def test_as_a_picture(p, x):
    """A bar for each layer, the output on top, each cause in its own color."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="extra `examples` not installed")
    plt.switch_backend("agg")
    _, account = relax.ledger(transformer, composites.attnlrp(), target=1)(p, x)
    axes = account.plot()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"handed on", "softmax", "bias"} <= set(labels)
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names.index("gelu") < names.index("softmax") < names.index("layer_norm")
    plt.close(axes.figure)
    few = account.plot(largest=2)
    shown = [text.get_text() for text in few.get_yticklabels()]
    most = sorted(account, key=lambda entry: -abs(float(entry.kept)))[:2]
    assert sorted(shown) == sorted(entry.path for entry in most)
    plt.close(few.figure)


def test_of_tokens(rng):
    """The look-up hands all that arrives to the ids, in a batch and for each sample of a vmap."""
    table, w = jnp.asarray(rng.normal(size=(7, 6))), jnp.asarray(rng.normal(size=(6, 4)))
    network = lambda ids: jnp.tanh(table[ids]).mean(1) @ w
    ids = jnp.array([[1, 2, 3], [0, 4, 4]])
    relevance, account = relax.ledger(network, rules.Epsilon(0.1), target=1)(ids)
    np.testing.assert_allclose(account.rounding, 0, atol=1e-12)
    np.testing.assert_allclose(account.received, relevance.sum(), rtol=1e-12)
    (embedding,) = [entry for entry in account if entry.kind == "embedding"]
    np.testing.assert_allclose(embedding.into, relevance.sum(), rtol=1e-12)
    one = jax.vmap(lambda ids: relax.ledger(network, rules.Epsilon(0.1), target=1)(ids[None])[1])
    np.testing.assert_allclose(one(ids).rounding, 0, atol=1e-12)


def test_inside_of_a_shard_map_is_refused(x):
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(jnp.tanh, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    with pytest.raises(relax.ArgumentError, match="shard_map"):
        relax.ledger(mapped)(x)


@pytest.mark.parametrize("look_up", ["gather", "one_hot"])
def test_ids_that_join_the_tokens_keep_theirs(rng, look_up):
    """The mark at the start is no part of the input: what speaks for it stands in the account."""
    p = {"e": jnp.asarray(rng.normal(size=(10, 4))), "w": jnp.asarray(rng.normal(size=(4, 3)))}

    def network(p, ids):
        every = jnp.concatenate([jnp.array([1]), ids])
        x = p["e"][every] if look_up == "gather" else jax.nn.one_hot(every, 10) @ p["e"]
        return (jax.nn.relu(x) @ p["w"]).sum(0)

    ids = jnp.array([3, 4, 5])
    relevance, account = relax.ledger(network, rules.Epsilon(0.0), target=1)(p, ids)
    each = np.maximum(p["e"], 0) @ p["w"][:, 1]
    np.testing.assert_allclose(relevance, each[3:6], rtol=1e-12)
    (embedding,) = [entry for entry in account if entry.kind == "embedding"]
    np.testing.assert_allclose(embedding.absorbed["constant"], each[1], rtol=1e-12)
    np.testing.assert_allclose(account.rounding, 0, atol=1e-12)
