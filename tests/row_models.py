"""The rows of a transformer, each written once over the operations of `row_layers`.

Values have shape ``(batch, time, feature)``, heads ``(batch, time, head, feature)``.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BATCH, TIME, WIDTH, HEADS, HIDDEN, EXPERTS = 2, 5, 8, 2, 12, 3
FEATURES = WIDTH // HEADS
CAUSAL = jnp.tril(jnp.ones((TIME, TIME), bool))
DISTANCE = jnp.arange(TIME)[:, None] - jnp.arange(TIME)[None]
WINDOW = (DISTANCE >= 0) & (DISTANCE < 3)


def split(x, heads=HEADS):
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge(x):
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def attention(
    ops, x, source=None, *, groups=HEADS, mask=None, bias=None, rotate=None, cap=None, norm=False
):
    """Attention of ``x`` to ``source``, or to itself."""
    source = x if source is None else source
    q, k, v = ops.linear("q", x), ops.linear("k", source), ops.linear("v", source)
    q, k, v = split(q), split(k, groups), split(v, groups)
    if norm:
        q, k = rms_norm(ops, q), rms_norm(ops, k)
    if rotate is not None:
        q, k = rotate(q), rotate(k)
    if groups != HEADS:
        k, v = (jnp.repeat(a, HEADS // groups, axis=2) for a in (k, v))
    scores = ops.product("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    if cap is not None:
        scores = cap * ops.activation("tanh", scores / cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    mixed = ops.weigh("bhqk,bkhd->bqhd", ops.softmax(scores), v)
    return ops.linear("o", merge(mixed))


def additive(ops, x):
    """Bahdanau's attention: scores are sums over a tanh, by no matrix product."""
    scores = ops.activation("tanh", ops.linear("q", x)[:, :, None] + ops.linear("k", x)[:, None])
    p = ops.softmax((scores * ops.array("scale")).sum(-1))
    return x + ops.weigh("bqk,bkd->bqd", p, ops.linear("v", x))


def pooled(ops, x):
    """One learned query for all heads, as of a Perceiver; keys take all of the scores."""
    k, v = split(ops.linear("k", x)), split(ops.linear("v", x))
    scores = jnp.einsum("hd,bkhd->bhk", ops.array("query"), k)
    return ops.linear("o", merge(ops.weigh("bhk,bkhd->bhd", ops.softmax(scores), v)))


def relative_keys(ops, x):
    """Transformer-XL's: queries meet keys, and positions."""
    q, k, v = (split(ops.linear(name, x)) for name in "qkv")
    of_keys = ops.product("bqhd,bkhd->bhqk", q, k)
    of_places = jnp.einsum("bqhd,khd->bhqk", q, ops.array("places"))
    weights = ops.softmax((of_keys + of_places) / math.sqrt(FEATURES))
    return ops.linear("o", merge(ops.weigh("bhqk,bkhd->bqhd", weights, v)))


def rms_norm(ops, x):
    return x * ops.held(lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6))


def grouped(ops, x):
    """Grouped queries by an einsum over groups; keys and values are not repeated."""
    q, k, v = ops.linear("q", x), split(ops.linear("k", x), 1), split(ops.linear("v", x), 1)
    q = q.reshape(*q.shape[:-1], 1, HEADS, FEATURES)
    scores = ops.product("bqghd,bkgd->bghqk", q, k) / math.sqrt(FEATURES)
    mixed = ops.weigh("bghqk,bkgd->bqghd", ops.softmax(scores), v)
    return ops.linear("o", mixed.reshape(x.shape))


def blocked(ops, x):
    """A sliding window in blocks: each block of two sees itself and the one before."""
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    q, k, v = (split(ops.linear(name, x)) for name in "qkv")
    blocks = lambda a: a.reshape(BATCH, 3, 2, HEADS, FEATURES)
    before = lambda a: jnp.pad(a, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))[:, :-1]
    both = lambda a: jnp.concatenate([before(blocks(a)), blocks(a)], axis=2)
    scores = ops.product("bnqhd,bnkhd->bnhqk", blocks(q), both(k)) / math.sqrt(FEATURES)
    seen = (jnp.arange(2)[:, None] + 2 >= jnp.arange(4)) & (
        (jnp.arange(3)[:, None] > 0) | (jnp.arange(4) > 1)
    ).reshape(3, 1, 1, 4)
    scores = jnp.where(seen, scores, -jnp.inf)
    mixed = ops.weigh("bnhqk,bnkhd->bnqhd", ops.softmax(scores), both(v))
    return ops.linear("o", mixed.reshape(BATCH, 6, WIDTH))[:, :TIME]


# Positions


def angles(start=0, time=TIME, features=FEATURES):
    frequency = 100.0 ** -(jnp.arange(0, features, 2) / features)
    return (start + jnp.arange(time))[:, None, None] * frequency


def rotary_halves(x):
    """As Llama's: the first half of the features is rotated with the second."""
    cos, sin = (jnp.concatenate([f(angles())] * 2, axis=-1) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-b, a], axis=-1) * sin


def rotary_pairs(x):
    """As GPT-J's: neighbors are rotated."""
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = jnp.cos(angles()), jnp.sin(angles())
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def rotary_complex(x):
    """Neighbors are one complex number, and rotated by a product."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    z = lax.complex(pairs[..., 0], pairs[..., 1]) * jnp.exp(1j * angles())
    return jnp.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def rotary_partial(x):
    """Only a part of the features is rotated, as in GPT-NeoX."""
    a, b = x[..., :1], x[..., 1:2]
    cos, sin = jnp.cos(angles(features=2)), jnp.sin(angles(features=2))
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2:]], axis=-1)


def sinusoids():
    angle = angles(features=WIDTH)[:, 0]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def alibi():
    slopes = 2.0 ** -jnp.arange(1, HEADS + 1)
    return -slopes[:, None, None] * jnp.abs(DISTANCE)


def relative(ops):
    """T5's: a learned number for each bucket of distances."""
    buckets = jnp.minimum(jnp.abs(DISTANCE), 2) + 3 * (DISTANCE > 0)
    return ops.array("relative")[buckets].transpose(2, 0, 1)


def cached(ops, x, keys, values):
    """One step of decoding: a token joins the cache at its place and attends to what is there."""
    q, k, v = (split(ops.linear(name, x)) for name in "qkv")
    place = 3
    keys = lax.dynamic_update_slice(keys, k, (0, place, 0, 0))
    values = lax.dynamic_update_slice(values, v, (0, place, 0, 0))
    scores = ops.product("bqhd,bkhd->bhqk", q, keys) / math.sqrt(FEATURES)
    scores = jnp.where(jnp.arange(TIME) <= place, scores, -jnp.inf)
    mixed = ops.weigh("bhqk,bkhd->bqhd", ops.softmax(scores), values)
    return x + ops.linear("o", merge(mixed))


# Gates


def gated(activation):
    """SwiGLU, GEGLU, ReGLU."""

    def mlp(ops, x):
        hidden = ops.glu(ops.activation(activation, ops.linear("gate", x)), ops.linear("up", x))
        return x + ops.linear("down", hidden)

    return mlp


def gated_in_one(ops, x):
    """Gate and signal from one dense layer."""
    gate, up = jnp.split(ops.linear("both", x), 2, axis=-1)
    return ops.linear("down", ops.glu(ops.activation("silu", gate), up))


def glu(ops, x):
    """The first of its kind: a sigmoid is a gate and takes nothing."""
    gate = ops.activation("sigmoid", ops.linear("gate", x))
    return ops.linear("down", ops.gate(gate, ops.linear("up", x)))


def bilinear(ops, x):
    """Without an activation neither of the two is a gate."""
    return ops.linear(
        "down", ops.product("btf,btf->btf", ops.linear("gate", x), ops.linear("up", x))
    )


def squeeze_excite(ops, x):
    """Channels of an image, each scaled by a gate that sees all of it."""
    squeezed = ops.activation("relu", ops.linear("squeeze", x.mean((1, 2))))
    gate = ops.activation("sigmoid", ops.linear("excite", squeezed))
    return ops.linear("head", ops.gate(gate[:, None, None], x).mean((1, 2)))


# Mixtures of experts


def experts(ops, x):
    """All experts on all tokens: ``(batch, time, expert, feature)``."""
    hidden = ops.activation("silu", jnp.einsum("btd,edf->btef", x, ops.array("inner")))
    return jnp.einsum("btef,efd->bted", hidden, ops.array("outer"))


def router(ops, x):
    return ops.softmax(ops.linear("router", x))


def best(ops, x):
    """The two best experts and their weights, which add up to one."""
    chosen, index = lax.top_k(router(ops, x), 2)
    return chosen / ops.held(chosen.sum(-1, keepdims=True)), index


def soft_mixture(ops, x):
    return ops.weigh("bte,bted->btd", router(ops, x), experts(ops, x))


def mixture_of_outputs(ops, x):
    """top_k, and a gather of what the experts said."""
    chosen, index = best(ops, x)
    outputs = jnp.take_along_axis(experts(ops, x), index[..., None], axis=2)
    return x + ops.weigh("btk,btkd->btd", chosen, outputs)


def mixture_of_weights(ops, x):
    """top_k, and a gather of the experts' kernels."""
    chosen, index = best(ops, x)
    inner, outer = ops.array("inner")[index], ops.array("outer")[index]
    hidden = ops.activation("silu", jnp.einsum("btd,btkdf->btkf", x, inner))
    return ops.weigh("btk,btkd->btd", chosen, jnp.einsum("btkf,btkfd->btkd", hidden, outer))


def mixture_of_logits(ops, x):
    """As Mixtral's: the softmax is over the chosen logits."""
    chosen, index = lax.top_k(ops.linear("router", x), 2)
    outputs = jnp.take_along_axis(experts(ops, x), index[..., None], axis=2)
    return ops.weigh("btk,btkd->btd", ops.softmax(chosen), outputs)


def mixture_by_scatter(ops, x):
    """The chosen weights are written into a row of zeros."""
    chosen, index = best(ops, x)
    b, t = jnp.arange(BATCH)[:, None, None], jnp.arange(TIME)[None, :, None]
    dense = jnp.zeros((BATCH, TIME, EXPERTS)).at[b, t, index].set(chosen)
    return ops.weigh("bte,bted->btd", dense, experts(ops, x))


def mixture_of_sigmoids(ops, x):
    """The router's scores are gates in [0, 1]."""
    chosen, index = lax.top_k(ops.activation("sigmoid", ops.linear("router", x)), 2)
    outputs = jnp.take_along_axis(experts(ops, x), index[..., None], axis=2)
    return ops.gate(chosen[..., None], outputs).sum(2)


def switch(ops, x):
    """One-hot dispatch to the best expert, which has room for four tokens."""
    tokens = x.reshape(-1, WIDTH)
    probability = router(ops, tokens)
    one_hot = jax.nn.one_hot(jnp.argmax(probability, axis=-1), EXPERTS, dtype=x.dtype)
    place = (jnp.cumsum(one_hot, axis=0) * one_hot).sum(-1) - 1
    slots = one_hot[..., None] * jax.nn.one_hot(place.astype(int), 4, dtype=x.dtype)[:, None]
    rows = jnp.einsum("nes,nd->esd", slots, tokens)
    hidden = ops.activation("silu", jnp.einsum("esd,edf->esf", rows, ops.array("inner")))
    outputs = jnp.einsum("esf,efd->esd", hidden, ops.array("outer"))
    combine = slots * probability.max(-1)[:, None, None]
    return x + ops.weigh("nes,esd->nd", combine, outputs).reshape(x.shape)


def sorted_mixture(dot):
    """Tokens sorted by expert, products of unequal groups, and sums back to their places."""

    def mixture(ops, x):
        tokens = x.reshape(-1, WIDTH)
        chosen, index = best(ops, tokens)
        order = jnp.argsort(index.reshape(-1))
        sizes = jnp.bincount(index.reshape(-1), length=EXPERTS).astype(jnp.int32)
        rows = tokens[order // 2]
        hidden = ops.activation("silu", dot(rows, ops.array("inner"), sizes))
        outputs = dot(hidden, ops.array("outer"), sizes)
        weighed = ops.weigh("n,nd->nd", chosen.reshape(-1)[order], outputs)
        return jnp.zeros_like(tokens).at[order // 2].add(weighed).reshape(x.shape)

    return mixture


def gathered_dot(rows, kernels, sizes):
    """What ``ragged_dot`` computes, by a gather of kernels."""
    owner = jnp.repeat(jnp.arange(EXPERTS), sizes, total_repeat_length=len(rows))
    return jnp.einsum("nd,ndf->nf", rows, kernels[owner])


ATTENTION = dict.fromkeys("qkvo", (WIDTH, WIDTH))
ONE_GROUP = ATTENTION | {"k": (WIDTH, FEATURES), "v": (WIDTH, FEATURES)}
GATED = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
MIXTURE = {"router": (WIDTH, EXPERTS)}
VOCABULARY = 11
IDS = jnp.array([[1, 5, 3, 7, 2], [7, 5, 9, 0, 0]])
KERNELS = {"inner": (EXPERTS, WIDTH, HIDDEN), "outer": (EXPERTS, HIDDEN, WIDTH)}
TEXT = ATTENTION | GATED | {"head": (WIDTH, 3)}


# Texts; token 0 is padding


def language(ops, x, ids):
    """Logits of the next token at every position, from words; the table is tied."""
    seen = (ids != 0)[:, None, None] & jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
    x = x + attention(ops, rms_norm(ops, x), mask=seen)
    x = gated("silu")(ops, x)
    return ops.attend(rms_norm(ops, x))


def classifier(ops, x, ids):
    """Logits of three classes, from the mean of all words that are no padding."""
    real = ids != 0
    x = x + attention(ops, x, mask=real[:, None, None])
    x = jnp.where(real[..., None], x, 0).sum(1) / real.sum(-1, keepdims=True)
    return ops.linear("head", x)


def vectors(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))
