"""Attention rollout, against matrices that are multiplied in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import methods, select

close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
HEADS, TOKENS, WIDTH = 2, 5, 6
SHAPES = dict.fromkeys("qkvo", (2, WIDTH, WIDTH)) | {"up": (2, WIDTH, 8), "down": (2, 8, WIDTH)}


@pytest.fixture
def p(rng):
    found = {n: jnp.asarray(rng.normal(size=s)) / 2 for n, s in SHAPES.items()}
    table, head = rng.normal(size=(11, WIDTH)), rng.normal(size=(WIDTH, 3))
    return found | {"table": jnp.asarray(table), "head": jnp.asarray(head)}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(4, TOKENS, WIDTH)))


def split(x):
    return x.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)


def block(layer, x, nudge, causal):
    """A transformer block, and its attention; what is added to the attention is differentiated."""
    q, k, v = (split(x @ layer[n]) for n in "qkv")
    scores = q @ k.swapaxes(-1, -2) / 2
    if causal:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, -jnp.inf)
    weights = jax.nn.softmax(scores)
    attention = weights if nudge is None else weights + nudge
    mixed = (attention @ v).swapaxes(1, 2).reshape(x.shape)
    x = x + mixed @ layer["o"]
    return x + jax.nn.gelu(x @ layer["up"]) @ layer["down"], weights


def test_samples_that_do_not_stand_first():
    """jax.nn.dot_product_attention has its weights as (1, samples, heads, tokens, tokens)."""
    x = jax.random.normal(jax.random.key(0), (3, 5, 2, 4))
    f = lambda x: jax.nn.dot_product_attention(x, 2 * x, x).reshape(3, 5, 8)[:, -1]
    found = methods.attention_rollout(f, position=-1, weighted=False)(x)
    a = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", x, 2 * x) / 2).mean(1)
    mixed = a + jnp.broadcast_to(jnp.eye(5), a.shape)
    close(found, (mixed / mixed.sum(-1, keepdims=True))[:, -1], rtol=1e-6)


def test_weights_without_samples_are_refused():
    """Two heads are not two samples."""
    f = lambda x: (jax.nn.softmax(jnp.stack([x @ x.T, -x @ x.T])) @ x).sum(0)
    with pytest.raises(relax.ArgumentError, match="of which there are 5"):
        methods.attention_rollout(f, position=0)(jnp.ones((5, 3)))


def layers(p):
    return {n: p[n] for n in SHAPES}


def unrolled(p, x, nudges=(None, None), causal=False, position=0, every=None):
    for i in range(2):
        layer = {n: a[i] for n, a in layers(p).items()}
        x, weights = block(layer, x, nudges[i], causal)
        if every is not None:
            every.append(weights)
    return x[:, position] @ p["head"]


def scanned(p, x, causal=False, position=0):
    step = lambda x, layer: (block(layer, x, None, causal)[0], None)
    return lax.scan(step, x, layers(p))[0][:, position] @ p["head"]


def by_hand(p, x, mask, causal, position, weighted):
    """Matrices of all samples and layers, one by one."""
    every = []
    unrolled(p, x, causal=causal, position=position, every=every)
    zero = tuple(jnp.zeros_like(a) for a in every)
    total = lambda n: (unrolled(p, x, n, causal, position) * mask).sum()
    gradients = jax.grad(total)(zero)
    result = []
    for n in range(len(x)):
        whole = np.eye(TOKENS)
        for a, g in zip(every, gradients, strict=True):
            a, g = np.asarray(a[n]), np.asarray(g[n])
            if weighted:
                step = np.eye(TOKENS) + np.mean([np.maximum(g[h] * a[h], 0) for h in range(2)], 0)
            else:
                step = (np.eye(TOKENS) + np.mean([a[h] for h in range(2)], 0)) / 2
            whole = step @ whole
        result.append(whole[position])
    return np.array(result)


@pytest.mark.parametrize(
    ("causal", "weighted"),
    [
        (True, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        (False, False),
    ],
)
def test_against_numpy(causal, weighted, p, x):
    """One layer after the other, and as rounds of a scan; the last token of a causal model."""
    position = -1 if causal else 0
    mask = jax.nn.one_hot(jnp.array([0, 2, 1, 1]), 3)
    want = by_hand(p, x, mask, causal, position, weighted)
    for fun in (unrolled, scanned):
        f = functools.partial(fun, causal=causal, position=position)
        explain = methods.attention_rollout(
            f, position=position, weighted=weighted, target=jnp.array([0, 2, 1, 1])
        )
        close(jax.jit(explain)(p, x), want)
    if not weighted:  # shares of the tokens
        close(want.sum(1), 1)


@pytest.mark.slow
def test_targets(p, x):
    """Of a class it is the gradient of that class; without weighting of none."""
    logits = unrolled(p, x)
    best = methods.attention_rollout(unrolled, position=0, target="max")(p, x)
    close(best, by_hand(p, x, jax.nn.one_hot(logits.argmax(1), 3), False, 0, True))
    weights = jnp.array([[1.0, -2.0, 0.0]])
    by_callable = methods.attention_rollout(unrolled, position=0, target=lambda z: z * weights)
    close(by_callable(p, x), by_hand(p, x, jnp.broadcast_to(weights, (4, 3)), False, 0, True))
    plain = methods.attention_rollout(unrolled, position=0, weighted=False)
    close(
        plain(p, x), methods.attention_rollout(unrolled, position=0, weighted=False, target=1)(p, x)
    )
    tree = lambda p, x: {"z": unrolled(p, x), "class": unrolled(p, x).argmax(1)}
    of_z = methods.attention_rollout(tree, position=0, target=lambda v: v)(p, x)
    close(of_z, methods.attention_rollout(unrolled, position=0)(p, x))


@pytest.mark.slow
def test_one_sample_is_the_row_of_a_batch(p, x):
    batch = methods.attention_rollout(unrolled, position=2, target=1)(p, x)
    single = lambda p, x: unrolled(p, x[None])[0]
    at_head = methods.attention_rollout(single, position=2, target=1, batched=False)
    # The function itself adds an axis of samples, so the weights have one: heads and it are mixed.
    close(at_head(p, x[3]), batch[3])


def test_token_ids(p, rng):
    """The input may be ids: nothing is differentiated by it."""
    ids = jnp.asarray(rng.integers(0, 11, size=(4, TOKENS)))
    f = lambda p, ids: unrolled(p, p["table"][ids])
    explain = methods.attention_rollout(f, position=0, target=1)
    want = methods.attention_rollout(unrolled, position=0, target=1)(p, p["table"][ids])
    close(jax.jit(explain)(p, ids), want)


def test_some_layers_alone(p, x):
    """By path: of the last layer alone it is a row of its own matrix."""
    paths = [r.path for r in relax.layers(unrolled)(p, x) if r.kind == "softmax"]
    last = methods.attention_rollout(unrolled, position=1, weighted=False, at=paths[-1:])(p, x)
    every = []
    unrolled(p, x, every=every)
    close(last, (jnp.eye(TOKENS)[1][None] + every[1].mean(1)[:, 1]) / 2)


@pytest.mark.more
def test_errors(p, x):
    refused = functools.partial(pytest.raises, relax.ArgumentError)
    for position in (TOKENS, -TOKENS - 1):
        with refused(match=rf"position={position} is out of range: there are 5 tokens"):
            methods.attention_rollout(unrolled, position=position)(p, x)

    def cross(p, x):
        weights = jax.nn.softmax(x[:, :2] @ x.swapaxes(1, 2))
        return (weights @ x)[:, 0]

    with refused(
        match=r"(?s)has weights of shape \(4, 2, 5\).*cross-attention is left out by `at`"
    ):
        methods.attention_rollout(cross, position=0)(p, x)

    def shrinking(p, x):
        x = jax.nn.softmax(x @ x.swapaxes(1, 2)) @ x
        y = x[:, :3]
        return (jax.nn.softmax(y @ y.swapaxes(1, 2)) @ y)[:, 0]

    with refused(match=r"(?s)is over 3 tokens, and another over 5.*by `at`"):
        methods.attention_rollout(shrinking, position=0)(p, x)
    with refused(match=r"(?s)expected \(samples, heads, tokens, tokens\).*batched=False"):
        flat = lambda x: (jax.nn.softmax(x @ x.T) @ x)[0]
        methods.attention_rollout(flat, position=0)(x[0])
    for at in (select.attention, "nowhere"):
        with pytest.raises(relax.UnmatchedSelectorError):
            methods.attention_rollout(lambda p, x: x @ p["q"][0], position=0, at=at)(p, x)
