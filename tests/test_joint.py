"""Dense layers of several inputs: however ``x w + h u + b`` is written, it is one layer.

Oracle: the product of ``[x, h]`` with one weight, under every rule for dense layers.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import rules, select

RULES = {
    "Epsilon": rules.Epsilon(0.1),
    "Epsilon 0": rules.Epsilon(0.0),
    "bias_share": rules.Epsilon(0.1, bias_share=0.7),
    "zero_bias": rules.Epsilon(0.1, zero_bias=True),
    "clip": rules.Epsilon(0.5, "clip"),
    "scale": rules.Epsilon(0.1, "scale"),
    "ZPlus": rules.ZPlus(0.1),
    "AlphaBeta": rules.AlphaBeta(2.0, 1.0, 0.1),
    "Gamma": rules.Gamma(0.3, 0.1),
    "TextbookGamma": rules.TextbookGamma(0.3, 0.1),
    "Flat": rules.Flat(),
    "WSquare": rules.WSquare(),
    "ZBox": rules.ZBox(-2.0, 2.0),
    "Linear": rules.Linear(),
    "Gradient": rules.Gradient(),
    "Mask": rules.Mask(np.linspace(0, 1, 6), rules.Epsilon(0.1)),
}
ACT = lambda i, g, o: jax.nn.sigmoid(i) * jnp.tanh(g) + o


@dataclasses.dataclass(frozen=True)
class Own(rules.AffineRule):
    """A user's rule: absolute contributions."""

    def relevance(self, layer, x, relevance):
        layer = layer.map(jnp.abs)
        return jnp.abs(x) * layer.transpose(relevance / (layer(jnp.abs(x)) + 0.1))


RULES["a user's own"] = Own()


def row(b):
    return b.reshape(1, -1)


def gates(z):
    return ACT(*jnp.split(z, 3, -1))


def concatenated(p, x, h):
    return gates(jnp.concatenate([x, h], -1) @ jnp.concatenate([p["w"], p["u"]]) + row(p["b"]))


def added(p, x, h):
    return gates(x @ p["w"] + h @ p["u"] + row(p["b"]))


def bias_first(p, x, h):
    return gates((x @ p["w"] + row(p["b"])) + h @ p["u"])


def two_biases(p, x, h):
    return gates((x @ p["w"] + row(p["b"] / 4)) + (h @ p["u"] + row(p["b"] * 0.75)))


def in_pieces(p, x, h):
    a = jnp.split(x @ p["w"] + row(p["b"]), 3, -1)
    return ACT(*(i + j for i, j in zip(a, jnp.split(h @ p["u"], 3, -1), strict=True)))


def in_slices(p, x, h):
    a, c = x @ p["w"] + row(p["b"]), h @ p["u"]
    return ACT(*(a[:, i : i + 2] + c[:, i : i + 2] for i in (0, 2, 4)))


def interleaved(p, x, h):
    """Each sum is used before the next is computed."""
    a, c = jnp.split(x @ p["w"] + row(p["b"]), 3, -1), jnp.split(h @ p["u"], 3, -1)
    opened = jax.nn.sigmoid(a[0] + c[0])
    signal = opened * jnp.tanh(a[1] + c[1])
    return signal + (a[2] + c[2])


def mapped(p, x, h):
    return jax.vmap(lambda x, h: gates(p["w"].T @ x + p["u"].T @ h + p["b"]))(x, h)


def cast(p, x, h):
    wide = lambda a: a.astype(jnp.float32).astype(jnp.float64)
    return gates(wide(x @ p["w"]) + (h @ p["u"] + row(p["b"])))


def subtracted(p, x, h):
    return gates(x @ p["w"] + h @ p["u"] - row(-p["b"]))


def three(p, x, h):
    return gates(x @ p["w"] + (h[:, :2] @ p["u"][:2] + h[:, 2:] @ p["u"][2:]) + row(p["b"]))


FORMS = [
    added,
    bias_first,
    two_biases,
    in_pieces,
    in_slices,
    interleaved,
    mapped,
    cast,
    subtracted,
    three,
]


@pytest.fixture
def p(rng):
    return {"w": rng.normal(size=(4, 6)), "u": rng.normal(size=(5, 6)), "b": rng.normal(size=6)}


@pytest.fixture
def xh(rng):
    return rng.normal(size=(3, 4)), rng.normal(size=(3, 5))


def explain(form, name):
    return relax.lrp(form, [(select.dense, RULES[name])], argnums=(1, 2))


IN_PIECES = (in_pieces, in_slices, interleaved)  # a mask would have their order


QUICK = ("bias_share", "AlphaBeta")  # with every form; every rule with one of them


def cases():
    for form in FORMS:
        for name in RULES:
            if form in IN_PIECES and name == "Mask":
                continue
            quick = name in QUICK or form is in_pieces
            marks = () if quick else pytest.mark.slow
            yield pytest.param(form, name, marks=marks, id=f"{form.__name__}-{name}")


@pytest.mark.parametrize(("form", "name"), list(cases()))
def test_equal_to_the_product_with_one_weight(form, name, p, xh):
    tolerance = 1e-5 if form is cast else 1e-9
    got = jax.jit(explain(form, name))(p, *xh)
    for a, b in zip(got, explain(concatenated, name)(p, *xh), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_it_is_one_layer(form, p, xh):
    plan = [r for r in relax.layers(form, argnums=(1, 2))(p, *xh) if r.kind != "product"]
    dense, *rest = plan
    assert dense.kind == "dense"
    assert not {r.kind for r in rest} & {"dense", "scale_shift"}
    assert [r.kind for r in rest].count("sum") == 1  # that of the gates


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (in_pieces, "bias_share"),
        pytest.param(added, "Gamma", marks=pytest.mark.slow),
        pytest.param(in_pieces, "Flat", marks=pytest.mark.slow),
        pytest.param(added, "ZBox", marks=pytest.mark.slow),
    ],
)
def test_derivatives_vmap_scan_and_checkpoint(form, name, p, xh):
    def loss(form):
        return lambda p, x, h: sum(jnp.sin(r).sum() for r in explain(form, name)(p, x, h))

    def scanned(form):
        def step(h, x):
            new = form(p, x, h)
            return jnp.concatenate([new, new, new[:, :1]], -1), new.sum()

        return lambda p, x, h: lax.scan(step, h, jnp.stack([x, 2 * x]))[1]

    several = (0, 1, 2)
    ways = {
        "grad": (lambda f: jax.grad(loss(f), several), xh),
        "vmap": (
            lambda f: jax.vmap(jax.grad(loss(f), several), (None, 0, 0)),
            tuple(jnp.stack([a, -a]) for a in xh),
        ),
        "scan": (lambda f: jax.grad(loss(scanned(f)), several), xh),
        "checkpoint": (lambda f: jax.grad(loss(jax.checkpoint(f)), several), xh),
    }
    for way, (made, arguments) in ways.items():
        got = jax.jit(made(form))(p, *arguments)
        expected = jax.jit(made(concatenated))(p, *arguments)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10, err_msg=way)


def test_derivative_against_differences(p, xh, rng):
    """The rule's own parameters included."""

    def loss(epsilon, x):
        explain = relax.lrp(in_pieces, rules.Epsilon(epsilon), argnums=(1, 2))
        return sum(jnp.sin(r).sum() for r in explain(p, x, xh[1]))

    point = (0.3, xh[0])
    along = (0.7, rng.normal(size=xh[0].shape))
    move = lambda step: jax.tree.map(lambda a, d: a + step * d, point, along)
    expected = (loss(*move(1e-5)) - loss(*move(-1e-5))) / 2e-5
    _, got = jax.jvp(loss, point, along)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_what_is_no_such_layer(p, xh):
    """Another reader in between, a result that the other layer needs, convolutions, one input."""
    w, u = p["w"], p["u"]
    square = np.linspace(-1, 1, 36).reshape(6, 6)

    def kinds(function):
        return [r.kind for r in relax.layers(function, argnums=(0, 1))(*xh)]

    def residual(x, h):
        z = x @ w + h @ u * 0
        return z + jax.nn.relu(z) @ square

    assert kinds(residual).count("dense") >= 2
    needs = lambda x, h: (lambda z: z + jnp.tanh(z + h @ u) @ square)(x @ w)
    assert kinds(needs).count("sum") == 1
    one = lambda x, h: (lambda z: z[:, :3] + z[:, 3:])(x @ w) + h[:, :3]
    assert kinds(one) == ["dense", "sum", "sum"]
    gated = lambda x, h: x @ w + jax.nn.sigmoid(h @ u) * (h @ u)
    assert "sum" in kinds(gated)
    image = np.ones((1, 6, 6, 2))
    kernel = np.ones((3, 3, 2, 2)) / 7
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    conv = lambda x: lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **numbers)
    assert [r.kind for r in relax.layers(lambda x: conv(x) + conv(2 * x))(image)].count("sum") == 1


def test_low_rank_adaptation_is_the_layer_it_adapts(rng):
    """``x w + (x a) b`` conserves as the merged weight does, and keeps its two paths."""
    w, a, b = rng.normal(size=(5, 4)), rng.normal(size=(5, 2)), rng.normal(size=(2, 4))
    x = rng.normal(size=(3, 5))
    adapted = lambda x: x @ w + (x @ a) @ b
    close = lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-9)
    for rule in (rules.Epsilon(0.0), rules.Linear()):
        close(relax.lrp(adapted, rule)(x), relax.lrp(lambda x: x @ (w + a @ b), rule)(x))


def test_names_of_all_its_weights(rng):
    """Selectors find it by any; it is called what its parts have in common."""

    class Cell(nn.Module):
        @nn.compact
        def __call__(self, x, h):
            return jnp.tanh(nn.Dense(4, name="ii")(x) + nn.Dense(4, name="hi")(h))

    model = Cell()
    x, h = rng.normal(size=(2, 3)), rng.normal(size=(2, 4))
    params = model.init(jax.random.key(0), x, h)
    (dense, _) = relax.layers(model.apply, argnums=(1, 2))(params, x, h)
    assert dense.path == "Cell"
    assert dense.weight_path == "params/ii/kernel, params/hi/kernel"
    assert dense.in_shapes == ((2, 3), (2, 4))
    for name in ("ii", "params/hi/kernel", "Cell", "hi"):
        chosen = relax.layers(model.apply, {name: rules.ZPlus()}, argnums=(1, 2))(params, x, h)
        assert chosen[0].rule == rules.ZPlus()
    _, latent = relax.lrp(model.apply, at="hi", argnums=(1, 2))(params, x, h)
    np.testing.assert_allclose(latent["Cell"], model.apply(params, x, h), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_half_precision(dtype, p, xh):
    narrow = jax.tree.map(lambda a: jnp.asarray(a, dtype), (p, *xh))
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
    for name in ("Epsilon", "ZPlus"):
        got = explain(added, name)(*narrow)
        expected = explain(added, name)(*wide)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a.astype(np.float32), b, atol=0.06 * np.abs(b).max())


def test_the_order_of_statements_does_not_matter(p, xh):
    """One of the parts is read elsewhere, before or behind the sum."""
    square = np.linspace(-1, 1, 36).reshape(6, 6)

    def before(x, h):
        a = x @ p["w"]
        s = jnp.tanh(a)
        return jnp.tanh(a + h @ p["u"]) @ square + s

    def behind(x, h):
        a = x @ p["w"]
        z = jnp.tanh(a + h @ p["u"])
        return z @ square + jnp.tanh(a)

    for name in ("Epsilon", "ZPlus", "Flat"):
        both = [
            relax.lrp(f, [(select.dense, RULES[name])], argnums=(0, 1))(*xh)
            for f in (before, behind)
        ]
        for a, b in zip(*both, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)
    counts = [
        [row.kind for row in relax.layers(f, argnums=(0, 1))(*xh)].count("dense")
        for f in (before, behind)
    ]
    assert counts == [2, 2]


def test_every_block_of_a_deep_network_is_treated_alike(rng):
    """Two parallel layers in each of many blocks, behind a dense embedding; a recurrence too."""
    a, b, c, d, e = rng.normal(size=(5, 4, 4)) / 2
    x = rng.normal(size=(3, 4))

    def deep(x, depth):
        z = x @ e
        for _ in range(depth):
            z = z + (jnp.tanh(z @ a) @ b + jnp.tanh(z @ c) @ d)
        return z

    for depth in (1, 4, 12):
        plan = relax.layers(lambda x, depth=depth: deep(x, depth))(x)
        assert [len(row.in_shapes) for row in plan if row.kind == "dense"].count(2) == depth

    xs, rule = rng.normal(size=(14, 4)), rules.Epsilon(0.1)
    step = lambda y, x: y + (x @ a + jnp.tanh(y) @ b)

    def loop(xs):
        y = xs[0] @ c
        for x in xs[1:]:
            y = step(y, x)
        return y

    scan = lambda xs: lax.scan(lambda y, x: (step(y, x), None), xs[0] @ c, xs[1:])[0]
    np.testing.assert_allclose(relax.lrp(scan, rule)(xs), relax.lrp(loop, rule)(xs), rtol=1e-10)


def test_what_follows_any_output_is_behind_a_layer(p, xh):
    """No hidden layer is taken for the first."""
    square = np.linspace(-1, 1, 36).reshape(6, 6)

    def function(x, h):
        a = x @ p["w"]
        z = jnp.tanh(a + h @ p["u"])
        return jnp.tanh(jnp.tanh(a) @ square) * 2 + z

    plan = relax.layers(function, argnums=(0, 1))(*xh)
    assert [row.first for row in plan if row.kind == "dense"] == [True, False]


def test_relevance_at_a_layer_of_several_outputs_is_that_of_all(p, xh):
    """Side by side, in a scan behind its axis."""
    _, at = relax.lrp(in_pieces, rules.Epsilon(0.1), argnums=(1, 2), at="dense")(p, *xh)
    _, of_one = relax.lrp(added, rules.Epsilon(0.1), argnums=(1, 2), at="dense")(p, *xh)
    np.testing.assert_allclose(at["dense"], of_one["dense"], rtol=1e-10)

    model = nn.RNN(nn.OptimizedLSTMCell(5))
    x = jnp.linspace(-1, 1, 36, dtype=jnp.float32).reshape(2, 6, 3)
    params = model.init(jax.random.key(0), x)
    (name,) = params["params"]
    rule = relax.composites.arras_lstm(0.0)
    _, at = relax.lrp(model.apply, rule, at=f"params/{name}/*")(params, x)
    (gates,) = at.values()
    assert gates.shape == (6, 2, 20)
    i, f, g, o = jnp.split(gates, 4, -1)
    assert float(jnp.abs(g).max()) > 0
    for gate in (i, f, o):
        np.testing.assert_array_equal(gate, 0)


def test_it_answers_to_the_scopes_of_its_parts(p, xh):
    def function(x, h):
        with jax.named_scope("inner/A"):
            a = x @ p["w"]
        with jax.named_scope("inner/C"):
            c = h @ p["u"]
        return jnp.tanh(a + c)

    for name in ("A", "inner/C", "inner", "inner/*"):
        plan = relax.layers(function, {name: rules.ZPlus()}, argnums=(0, 1))(*xh)
        assert plan[0].rule == rules.ZPlus()
