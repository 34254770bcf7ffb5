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


fused = relax.custom_relprop(flash_attention)
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

    def closing(p, x):
        scaled = relax.custom_relprop(lambda x: x * p)
        scaled.defrelprop(lambda x: (x * p, None), lambda _, r: (r,))
        return scaled(x)

    with pytest.raises(relax.ArgumentError, match="closes over"):
        jax.jit(closing)(jnp.ones(2), jnp.ones(2))
    with pytest.raises(relax.ArgumentError, match="closes over"):
        relax.lrp(closing)(jnp.ones(2), jnp.ones(2))


def test_selectors_find_it(scaled, rng):
    a = rng.normal(size=(3, 4))
    assert [row.kind for row in relax.layers(lambda a: scaled({"x": a}, a))(a)] == ["custom"]
    got = relax.lrp(lambda a: scaled({"x": a}, a), [(select.custom, rules.Linear())])(a)
    close(got, 2 * a * a)
