"""A user's own rule on a whole function, under every transformation; fused attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import composites, rules, select


def close(got, expected, rtol=1e-10, atol=1e-12):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


@pytest.fixture
def scaled():
    """A function of two arguments whose rule gives the first 0.25 and the second 0.75."""

    @relax.custom_relprop
    def function(a, b):
        return a["x"] * b

    def fwd(a, b):
        return function(a, b), None

    def bwd(_, relevance):
        return {"x": 0.25 * relevance}, 0.75 * relevance

    function.defrelprop(fwd, bwd)
    return function


def test_the_rule_is_what_lrp_uses(scaled, rng):
    a, b, w = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(4, 2))
    model = lambda a, b: scaled({"x": a}, b) @ w
    expected = relax.lrp(lambda z: z @ w)(a * b)
    for explain in (lambda f: f, jax.jit, lambda f: jax.jit(jax.vmap(f))):
        r_a, r_b = explain(relax.lrp(model, argnums=(0, 1)))(a, b)
        close(r_a, 0.25 * expected, rtol=1e-6)
        close(r_b, 0.75 * expected, rtol=1e-6)
    (row, head) = relax.layers(model, argnums=(0, 1))(a, b)
    assert (row.kind, row.name, head.kind) == ("custom", "function", "dense")


def test_outside_of_lrp_it_is_the_function_itself(scaled, rng):
    """Value, derivatives of both modes, jit and vmap; no rule takes part."""
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    call = lambda a, b: scaled({"x": a}, b)
    close(call(a, b), a * b)
    close(jax.jit(call)(a, b), a * b)
    close(jax.vmap(call, in_axes=(0, None))(a, b[0]), a * b[0][None])
    close(jax.grad(lambda a: call(a, b).sum())(a), b)
    close(jax.jvp(lambda b: call(a, b), (b,), (a,))[1], a * a)
    close(jax.hessian(lambda a: call(a, a).sum())(a[0, :2]), 2 * np.eye(2))


def test_vmap_inside_of_the_function(scaled, rng):
    """Mapped over one argument; what the other gets is summed over the map."""
    a, b = rng.normal(size=(3, 4)), rng.normal(size=4)
    model = lambda a, b: jax.vmap(lambda a: scaled({"x": a}, b))(a)
    r_a, r_b = relax.lrp(model, argnums=(0, 1))(a, b)
    close(r_a, 0.25 * a * b[None])
    close(r_b, 0.75 * (a * b[None]).sum(0))


def test_only_what_is_explained_gets_relevance(scaled, rng):
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    close(relax.lrp(lambda b: scaled({"x": a}, b))(b), 0.75 * a * b)


def test_another_rule_by_name(scaled, rng):
    """{"function": Gradient()} looks through the function with JAX's derivative."""
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    got = relax.lrp(lambda b: scaled({"x": a}, b), {"function": rules.Gradient()})(b)
    close(got, a * a * b)


def test_the_derivative_of_its_relevance(rng):
    """Through residuals, exactly: finite differences."""

    @relax.custom_relprop
    def bent(x):
        return jnp.sin(x)

    bent.defrelprop(lambda x: (bent(x), x), lambda x, r: (r * jnp.tanh(x),))
    w, x = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    loss = lambda x: jnp.sum(jnp.cos(relax.lrp(lambda x: bent(x) @ w, rules.Epsilon(0.1))(x)))
    direction, step = rng.normal(size=x.shape), 1e-5
    expected = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    got = float(jnp.vdot(jax.grad(loss)(x), direction))
    assert got == pytest.approx(float(expected), rel=1e-6)


def flash_attention(q, k, v, size=4):
    """Causal attention in blocks of keys, with its own derivative, that holds no T x T matrix."""
    time, width = q.shape

    def forward(q, k, v):
        def step(carry, block):
            top, total, out = carry
            start, k, v = block
            scores = q @ k.T / np.sqrt(width)
            keep = start + np.arange(size)[None] <= np.arange(time)[:, None]
            scores = jnp.where(keep, scores, -1e30)
            new_top = jnp.maximum(top, scores.max(-1))
            p, fade = jnp.exp(scores - new_top[:, None]), jnp.exp(top - new_top)
            out = out * fade[:, None] + p @ v
            return (new_top, total * fade + p.sum(-1), out), None

        blocks = (jnp.arange(0, time, size), k.reshape(-1, size, width), v.reshape(-1, size, width))
        start = (jnp.full(time, -1e30), jnp.zeros(time), jnp.zeros((time, width)))
        (top, total, out), _ = lax.scan(step, start, blocks)
        return out / total[:, None], top + jnp.log(total)

    @jax.custom_vjp
    def attend(q, k, v):
        return forward(q, k, v)[0]

    def fwd(q, k, v):
        out, logsum = forward(q, k, v)
        return out, (q, k, v, out, logsum)

    def bwd(saved, c):
        q, k, v, out, logsum = saved
        delta = (c * out).sum(-1)

        def step(c_q, block):
            start, k, v = block
            keep = start + np.arange(size)[None] <= np.arange(time)[:, None]
            scores = q @ k.T / np.sqrt(width)
            p = jnp.where(keep, jnp.exp(scores - logsum[:, None]), 0)
            c_scores = p * (c @ v.T - delta[:, None]) / np.sqrt(width)
            return c_q + c_scores @ k, (c_scores.T @ q, p.T @ c)

        blocks = (jnp.arange(0, time, size), k.reshape(-1, size, width), v.reshape(-1, size, width))
        c_q, (c_k, c_v) = lax.scan(step, jnp.zeros_like(q), blocks)
        return c_q, c_k.reshape(k.shape), c_v.reshape(v.shape)

    attend.defvjp(fwd, bwd)
    return attend(q, k, v)


fused = relax.custom_relprop(lambda q, k, v: flash_attention(q, k, v))
fused.defrelprop(
    lambda q, k, v: jax.vjp(flash_attention, q, k, v),
    lambda pull_back, c: tuple(
        share * part for share, part in zip((0.25, 0.25, 0.5), pull_back(c), strict=True)
    ),
    coefficients=True,
)


def model(attention, w, x):
    q, k, v = (x @ w[name] for name in "qkv")
    return (x + attention(q, k, v) @ w["o"]).mean(0) @ w["head"]


def open_attention(q, k, v):
    time, width = q.shape
    scores = jnp.where(np.tri(time, dtype=bool), q @ k.T / np.sqrt(width), -jnp.inf)
    return jax.nn.softmax(scores) @ v


@pytest.fixture
def weights(rng):
    shapes = dict.fromkeys("qkvo", (4, 4)) | {"head": (4, 3)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_attnlrp_through_a_fused_kernel(weights, rng):
    """The kernel's own VJP with scaled coefficients is AttnLRP of the attention written out."""
    x = rng.normal(size=(12, 4))
    rule = composites.attnlrp()
    explain = lambda attention: relax.lrp(functools.partial(model, attention), rule, target=1)
    close(jax.jit(explain(fused))(weights, x), explain(open_attention)(weights, x), rtol=1e-9)
    batch = rng.normal(size=(3, 12, 4))
    mapped = jax.jit(jax.vmap(explain(fused), in_axes=(None, 0)))(weights, batch)
    each = [explain(open_attention)(weights, x) for x in batch]
    close(mapped, np.stack(each), rtol=1e-9)


def test_a_fused_kernel_needs_no_square_matrix(weights, rng):
    """No array of T x T elements stands in the program, forwards or backwards."""
    time = 64
    x = jax.ShapeDtypeStruct((time, 4), jnp.float64)

    def largest(attention):
        explain = relax.lrp(functools.partial(model, attention), composites.attnlrp(), target=1)
        text = jax.jit(explain).lower(weights, x).as_text()
        return f"{time}x{time}x" in text

    assert not largest(fused)
    assert largest(open_attention)


def test_errors_of_a_rule():
    @relax.custom_relprop
    def bare(x):
        return x

    with pytest.raises(relax.ArgumentError, match="defrelprop"):
        bare(jnp.ones(2))
    bare.defrelprop(lambda x: (x, None), lambda _, r: r)
    with pytest.raises(relax.RelaxError, match="tuple of 1"):
        relax.lrp(bare)(jnp.ones(2))
    bare.defrelprop(lambda x: (x, None), lambda _, r: (r[:1],))
    with pytest.raises(relax.RuleError, match="shape"):
        relax.lrp(bare)(jnp.ones(2))


def test_errors_of_what_does_not_fit():
    """Structures, pairs, and values of an outer trace: each is named."""

    @relax.custom_relprop
    def product(d):
        return d["a"] * d["b"]

    d = {"a": jnp.ones(2), "b": jnp.ones(2)}
    product.defrelprop(lambda d: (product(d), None), lambda _, r: ({"a": r, "c": r},))
    with pytest.raises(relax.ArgumentError, match="structure"):
        relax.lrp(product)(d)
    product.defrelprop(lambda d: product(d), lambda _, r: (d,))
    with pytest.raises(relax.ArgumentError, match="pair"):
        relax.lrp(product)(d)
    product.defrelprop(lambda d: ((product(d), 0), None), lambda _, r: (d,))
    with pytest.raises(relax.ArgumentError, match="returns"):
        relax.lrp(product)(d)
    with pytest.raises(relax.ArgumentError, match=r"no array.\n.*nondiff_argnums"):
        product("relu")
    by_keyword = relax.custom_relprop(lambda x, *, power: x**power)
    by_keyword.defrelprop(lambda x: (x, None), lambda _, r: (r,))
    with pytest.raises(relax.ArgumentError, match="power by keyword only"):
        by_keyword(jnp.ones(2), power=2)
    far = relax.custom_relprop(lambda x: x, nondiff_argnums=(3,))
    far.defrelprop(lambda x: (x, None), lambda _, r: (r,))
    with pytest.raises(relax.ArgumentError, match="has 1 arguments"):
        far(jnp.ones(2))


def test_a_wrong_rule_does_not_disturb_the_function_itself():
    """What is wrong with it is said where it is used: under lrp."""
    wrong = relax.custom_relprop(jnp.sin)
    wrong.defrelprop(lambda x: 1 / 0, lambda _, r: (r,))
    close(jax.grad(wrong)(0.3), np.cos(0.3))
    with pytest.raises(ZeroDivisionError):
        relax.lrp(lambda x: wrong(x) * 2.0)(jnp.ones(2))


def closing(p, q, r, x):
    """Function, forward rule and backward rule close over one parameter each."""
    inner = relax.custom_relprop(lambda x: jnp.tanh(x @ p))
    inner.defrelprop(lambda x: (jnp.tanh(x @ p), x * q), lambda s, c: ((c @ p.T) * s * r,))
    return inner(x)


@pytest.mark.parametrize(
    "way",
    [
        lambda f: f,
        jax.jit,
        lambda f: lambda p, q, r, x: jax.vmap(lambda x: f(p, q, r, x))(x),
        lambda f: lambda p, q, r, x: lax.scan(lambda c, _: (f(p, q, r, c), None), x, None, 2)[0],
        jax.checkpoint,
    ],
    ids=["plain", "jit", "vmap", "scan", "checkpoint"],
)
def test_it_may_close_over_parameters(way, rng):
    """As the layers of a jitted model do; the relevance is differentiable in all three."""
    p, q, r = rng.normal(size=(4, 4)), rng.normal(), rng.normal()
    x = rng.normal(size=(3, 4))
    explicit = relax.custom_relprop(lambda p, q, r, x: jnp.tanh(x @ p))
    explicit.defrelprop(
        lambda p, q, r, x: (jnp.tanh(x @ p), (x * q, p, r)),
        lambda s, c: (None, None, None, (c @ s[1].T) * s[0] * s[2]),
    )

    def loss(function):
        explain = relax.lrp(way(function))
        return lambda *args: jnp.sin(jax.jit(explain)(*args)).sum()

    arguments = (0, 1, 2, 3)
    for got, expected in zip(
        jax.tree.leaves(jax.value_and_grad(loss(closing), arguments)(p, q, r, x)),
        jax.tree.leaves(jax.value_and_grad(loss(explicit), arguments)(p, q, r, x)),
        strict=True,
    ):
        close(got, expected, rtol=1e-9)


def test_it_may_not_close_over_what_is_explained(rng):
    x = rng.normal(size=4)
    with pytest.raises(relax.ArgumentError, match=r"closes over.*test_custom_relprop\.py"):
        relax.lrp(lambda x: closing(jnp.eye(4), x, 1.0, jnp.ones(4)))(x)


def test_arguments_by_keyword_and_those_that_are_no_arrays(rng):
    """As jax.custom_vjp: keywords, defaults, nondiff_argnums in front of the residuals."""

    @functools.partial(relax.custom_relprop, nondiff_argnums=(0, 2))
    def applied(function, x, name="square", factor=2.0):
        return factor * function(x)

    def fwd(function, x, name="square", factor=2.0):
        return applied(function, x, name, factor), factor

    def bwd(function, name, factor, relevance):
        assert (function, name) == (jnp.square, "square")
        return relevance * factor, None

    applied.defrelprop(fwd, bwd)
    x = rng.normal(size=3)
    for call in (
        lambda x: applied(jnp.square, x, "square", 3.0),
        lambda x: applied(jnp.square, factor=3.0, x=x),
        lambda x: applied(function=jnp.square, x=x, name="square", factor=jnp.float64(3)),
    ):
        close(call(x), 3 * x**2)
        close(jax.grad(lambda x, call=call: call(x).sum())(x), 6 * x)
        close(jax.jit(relax.lrp(call))(x), 9 * x**2)


def test_results_that_carry_no_relevance_are_there_for_others(rng):
    """A mask, an index, and a value that is read as a constant."""

    @relax.custom_relprop
    def parts(x):
        return 2 * x, x > 0, jnp.argmax(x), jnp.abs(x)

    parts.defrelprop(lambda x: (parts(x), None), lambda _, r: (r[0],))
    x = rng.normal(size=5)

    def function(x):
        y, mask, best, size = parts(x)
        return jnp.where(mask, y, 0.0) + y[best] + y / lax.stop_gradient(size)

    expected = relax.lrp(
        lambda x: (
            jnp.where(x > 0, 2 * x, 0.0)
            + (2 * x)[jnp.argmax(x)]
            + 2 * x / lax.stop_gradient(jnp.abs(x))
        )
    )(x)
    close(jax.jit(relax.lrp(function))(x), expected)


def test_under_a_named_axis(rng):
    """Collectives of a vmap around it, as under jax.custom_vjp."""
    centered = relax.custom_relprop(lambda x: x - lax.pmean(x, "i"))
    centered.defrelprop(lambda x: (centered(x), None), lambda _, r: (r,))
    x = rng.normal(size=(4, 3))
    function = lambda x: jax.vmap(centered, axis_name="i")(x)
    close(function(x), x - x.mean(0, keepdims=True))
    close(jax.jit(relax.lrp(function))(x), x - x.mean(0, keepdims=True))


def test_residuals_that_are_no_arrays_and_the_order_of_fixed_arguments(rng):
    @functools.partial(relax.custom_relprop, nondiff_argnums=(2, 0))
    def summed(a, x, b, scale=1.0):
        return scale * x.sum(0)

    def bwd(a, b, residuals, r):
        count, name = residuals
        assert (a, b, count, name) == ("a", "b", 3, "rows")
        return jnp.broadcast_to(r / count, (count, *r.shape)), None

    summed.defrelprop(lambda a, x, b, s: (s * x.sum(0), (x.shape[0], "rows")), bwd)
    x = rng.normal(size=(3, 4))
    got = jax.jit(relax.lrp(lambda x: summed("a", x, "b")))(x)
    close(got, np.broadcast_to(x.sum(0) / 3, x.shape))


def test_a_forward_rule_of_another_shape(rng):
    other = relax.custom_relprop(lambda x: x)
    other.defrelprop(lambda x: (x.sum(0), None), lambda _, r: (r,))
    with pytest.raises(relax.ArgumentError, match=r"returned a value of shape \(4,\)"):
        relax.lrp(other)(rng.normal(size=(3, 4)))


def test_nesting_costs_no_more_than_its_depth():
    """Each function is traced once for its value and once for its rule, however deep."""
    traced = []

    def nested(depth):
        def function(x):
            traced.append(depth)
            return jnp.sin(nested(depth - 1)(x)) if depth else x

        block = relax.custom_relprop(function)
        block.defrelprop(lambda x: (block(x), None), lambda _, r: (r,))
        return block

    relax.lrp(nested(8))(jnp.ones(3))
    assert traced.count(0) <= 8


def test_selectors_find_it(scaled, rng):
    a = rng.normal(size=(3, 4))
    assert [row.kind for row in relax.layers(lambda a: scaled({"x": a}, a))(a)] == ["custom"]
    got = relax.lrp(lambda a: scaled({"x": a}, a), [(select.custom, rules.Linear())])(a)
    close(got, 2 * a * a)
