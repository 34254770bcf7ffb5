"""Rules of products: shares of R by explicit formulas, what is a gate, one head of attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import composites, rules, select


def close(got, expected, rtol=1e-10, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


SHARES = {
    "Uniform": (rules.Uniform(), (0.5, 0.5)),
    "Left": (rules.Left(), (1.0, 0.0)),
    "Right": (rules.Right(), (0.0, 1.0)),
    "SignalTakeAll": (rules.SignalTakeAll(), (0.5, 0.5)),  # none of the two is a gate
}
PRODUCTS = {
    "elementwise": (lambda a, b: a * b, (3, 4), (3, 4)),
    "broadcast": (lambda a, b: a * b, (3, 4), (3, 1)),
    "matrices": (lambda a, b: a @ b, (3, 4), (4, 2)),
    "einsum": (lambda a, b: jnp.einsum("bqd,bkd->bqk", a, b), (2, 3, 4), (2, 5, 4)),
    "convolution": (lambda a, b: jnp.convolve(a, b), (5,), (3,)),
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", SHARES)
def test_shares_of_a_product(rng, name, product):
    """R_a = share of a times (a dy/da) R / y, summed: written out by the Jacobian."""
    rule, shares = SHARES[name]
    function, shape_a, shape_b = PRODUCTS[product]
    a, b = rng.normal(size=shape_a), rng.normal(size=shape_b)
    y = function(a, b)
    given = rng.normal(size=y.shape)
    _, relprop = relax.vrp(function, a, b, rules=[(select.product, rule)])
    for argument, (got, share) in enumerate(zip(relprop(given), shares, strict=True)):
        jacobian = jax.jacobian(function, argument)(a, b)
        x = (a, b)[argument]
        flat = np.asarray(jacobian).reshape(y.size, x.size)
        expected = share * x.ravel() * (flat.T @ (given / y).ravel())
        close(got, expected.reshape(x.shape), rtol=1e-8)


def test_a_value_times_itself_passes_relevance(rng):
    """x . x as a matrix product: half and half of the same value."""
    x = rng.normal(size=(3, 4))
    for rule, _ in SHARES.values():
        gram = lambda x: jnp.einsum("bi,bi->b", x, x)
        got = relax.lrp(gram, [(select.product, rule)])(x)
        close(got.sum(), gram(x).sum())


@pytest.mark.parametrize(
    "gate",
    {
        "sigmoid": jax.nn.sigmoid,
        "hard sigmoid": jax.nn.hard_sigmoid,
        "by hand": lambda z: 1 / (1 + jnp.exp(-z)),
        "by tanh": lambda z: 0.5 * (jnp.tanh(z / 2) + 1),
        "clipped": lambda z: jnp.clip(0.2 * z + 0.5, 0.0, 1.0),
        "one minus": lambda z: 1 - jax.nn.sigmoid(z),
        "exp of a negative": lambda z: jnp.exp(-jax.nn.softplus(z)),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("order", [0, 1])
def test_a_gate_in_the_unit_interval_takes_nothing(rng, gate, order):
    """Known from the program, whichever side it stands on, and through moves and casts."""
    x = rng.normal(size=(2, 6))
    w, v = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))

    def function(x):
        opened = gate[1](x @ w).reshape(5, 2).astype(np.float32).astype(np.float64).reshape(2, 5)
        return opened * (x @ v) if order else (x @ v) * opened

    close(relax.lrp(function, rules.Epsilon(0.0))(x), signal(function, gate[1](x @ w), v, x), 1e-6)


def signal(function, opened, v, x):
    return x * ((opened) @ v.T)


ROUTERS = {
    "largest of sigmoids": lambda z: lax.top_k(jax.nn.sigmoid(z), 3)[0],
    "sorted sigmoids": lambda z: jnp.sort(jax.nn.sigmoid(z), axis=-1),
    "their mean": lambda z: jax.nn.sigmoid(z).mean(-1, keepdims=True),
    "their shares": lambda z: (lambda g: g / g.sum(-1, keepdims=True))(jax.nn.sigmoid(z)),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_sigmoids_stay_gates_on_their_way(name, rng):
    """Chosen, sorted, averaged or divided by their sum, they lie in [0, 1] and take nothing."""
    x, w, v = rng.normal(size=(2, 6)), rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    route = ROUTERS[name]
    got = relax.lrp(lambda x: route(x @ w) * (x @ v), rules.Epsilon(0.0))(x)
    opened = np.broadcast_to(route(x @ w), (2, 3))
    close(got, x * (opened @ v.T))


def test_a_reduction_of_one_value_is_no_statistic_of_another(rng):
    """tanh of a sum, times something else: a product like any other."""
    x, w = rng.normal(size=(3, 4)), rng.normal(size=(4, 4))
    function = lambda x: jnp.tanh((x * x[::-1]).sum(-1, keepdims=True)) * (x @ w)
    shared = relax.layers(function)(x)[-1]
    assert shared.kind == "product"
    whole = relax.lrp(function, composites.attnlrp())(x)
    half = relax.lrp(lambda y: jnp.tanh((x * x[::-1]).sum(-1, keepdims=True)) * (y @ w) / 2)(x)
    assert np.abs(whole - 2 * half).max() > 1e-3
    close(whole.sum(), np.asarray(function(x)).sum())


def test_what_counts_as_a_gate_can_be_chosen(rng):
    """Softmax weights and the activated one of two, only where they are named."""
    x, w, v = rng.normal(size=(3, 4)), rng.normal(size=(4, 4)), rng.normal(size=(4, 4))
    attend = lambda x: jax.nn.softmax(x @ w @ x.T) @ (x @ v)
    swiglu = lambda x: jax.nn.silu(x @ w) * (x @ v)
    both = {select.softmax: rules.Constant(), select.dense: rules.Epsilon(0.0)}
    for function, gates, held in (
        (attend, ("softmax",), jax.nn.softmax(x @ w @ x.T)),
        (swiglu, ("activation",), jax.nn.silu(x @ w)),
    ):
        mine = [(select.product, rules.SignalTakeAll(gates))]
        mine += [item for item in both.items() if function is attend or item[0] is select.dense]
        weights = lambda y, h=held, f=function: h @ (y @ v) if f is attend else h * (y @ v)
        close(relax.lrp(function, mine)(x), x * jax.vjp(weights, x)[1](np.ones((3, 4)))[0])
        unit = relax.lrp(function, [(select.dense, rules.Epsilon(0.0))])(x)
        assert np.abs(unit - relax.lrp(function, mine)(x)).max() > 1e-3


def test_a_denominator_takes_nothing_under_any_rule(rng):
    x, w, v = rng.normal(size=(3, 4)), rng.normal(size=(4, 2)), rng.uniform(1, 2, size=(4, 2))
    function = lambda x: (x @ w) / (jnp.abs(x) @ v)
    expected = x * ((1 / (np.abs(x) @ v)) @ w.T)
    for rule, _ in SHARES.values():
        mine = [(select.product, rule), (select.dense, rules.Epsilon(0.0))]
        close(relax.lrp(function, mine)(x), expected)


def test_squeeze_and_excite_is_a_gate(rng):
    """Halved, relevance would go through sigmoid(z) / z near z = 0 and explode."""
    x, w = rng.uniform(0, 1, size=(2, 5, 4)), 1e-9 * rng.normal(size=(4, 4))
    excite = lambda x: x * jax.nn.sigmoid(x.mean(1, keepdims=True) @ w)
    got = relax.lrp(excite)(x)
    close(got, excite(x))


def test_attnlrp_of_one_head_is_its_gradient_with_scaled_coefficients(rng):
    """A quarter on q and k, half on v: the identity that fused kernels rely on."""
    q, k, v = (rng.normal(size=(6, 4)) for _ in range(3))
    mask = np.tri(6, dtype=bool)

    def head(q, k, v):
        return jax.nn.softmax(jnp.where(mask, q @ k.T / 2, -jnp.inf)) @ v

    seed = rng.normal(size=(6, 4))
    scaled = lambda *a: head(*a) * seed
    got = relax.lrp(scaled, composites.attnlrp(), argnums=(0, 1, 2))(q, k, v)
    gradients = jax.vjp(head, q, k, v)[1](seed)
    for r, x, c, share in zip(got, (q, k, v), gradients, (0.25, 0.25, 0.5), strict=True):
        close(r, x * share * c, rtol=1e-12, atol=1e-13)
    # and against the formulas, element by element
    p = np.asarray(jax.nn.softmax(jnp.where(mask, q @ k.T / 2, -jnp.inf)))
    r_out = np.asarray(head(q, k, v)) * seed
    c_out = seed
    r_v = 0.5 * np.einsum("ij,jd,id->jd", p, v, c_out)
    r_p = 0.5 * np.einsum("ij,jd,id->ij", p, v, c_out)
    r_l = np.where(mask, q @ k.T / 2, 0) * (r_p - p * r_p.sum(-1, keepdims=True))
    share = r_l / np.where(mask, q @ k.T, 1)
    r_q = 0.5 * np.einsum("id,jd,ij->id", q, k, share)
    assert r_out.shape == (6, 4)
    close(got[2], r_v)
    close(got[0], r_q)


def test_cp_lrp_conserves_without_biases(rng):
    """Attention weights and gates are constants; nothing is lost."""
    x = rng.normal(size=(5, 4))
    w = {name: rng.normal(size=(4, 4)) for name in "qkvogud"}

    def block(x):
        norm = lambda x: x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
        y = norm(x)
        a = jax.nn.softmax((y @ w["q"]) @ (y @ w["k"]).T) @ (y @ w["v"])
        x = x + a @ w["o"]
        y = norm(x)
        return x + (jax.nn.silu(y @ w["g"]) * (y @ w["u"])) @ w["d"]

    value, relevance = relax.value_and_lrp(block, composites.cp_lrp(), target=1)(x)
    close(relevance.sum(), value[:, 1].sum())


@dataclasses.dataclass(frozen=True)
class Thirds(rules.ProductRule):
    """A user's own rule: a third to the left, the rest to the right."""

    left: float = 1 / 3

    def relevance(self, layer, x, relevance):
        a, b = x
        y = layer(x)
        share = relevance / y
        return self.left * a * (share @ b.T), (1 - self.left) * b * (a.T @ share)


def test_a_rule_of_ones_own_for_products(rng):
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
    r = jax.jit(relax.lrp(jnp.matmul, [(select.product, Thirds())], argnums=(0, 1)))(a, b)
    close(r[0].sum(), (a @ b).sum() / 3)
    close(r[1].sum(), (a @ b).sum() * 2 / 3)


def test_wrong_gates():
    with pytest.raises(relax.HyperparameterError, match="unit, softmax, activation"):
        rules.SignalTakeAll(("sigmoid",))
    with pytest.raises(relax.HyperparameterError):
        rules.SignalTakeAll("unit")


def test_a_signal_of_zero_keeps_the_relevance_it_was_given():
    """As relevance it passes a gate unchanged, so that sharing biases conserves exactly."""
    gate = np.linspace(-1, 1, 3)
    function = lambda c, a: jax.nn.sigmoid(a) * c + jnp.tanh(a)
    explain = relax.lrp(function, relax.composites.arras_lstm(0.1, 1.0), argnums=(0, 1))
    for state in (np.zeros(3), np.ones(3)):
        total = sum(float(r.sum()) for r in explain(state, gate))
        assert total == pytest.approx(float(function(state, gate).sum()), rel=1e-10)
