"""Integer tokens get relevance of their own shape: that of the first float made of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import relax
from relax import rules

VOCABULARY, WIDTH = 11, 6
IDS = jnp.array([[1, 5, 3, 0], [7, 5, 0, 0]])


@pytest.fixture
def table(rng):
    return jnp.asarray(rng.normal(size=(VOCABULARY, WIDTH)))


@pytest.fixture
def head(rng):
    return jnp.asarray(rng.normal(size=(WIDTH, 3)))


def by_words(head, words):
    return jnp.tanh(words @ head).sum(-2)


LOOKUPS = {
    "index": lambda table, ids: table[ids],
    "take": lambda table, ids: jnp.take(table, ids, axis=0),
    "take clip": lambda table, ids: jnp.take(table, ids, axis=0, mode="clip"),
    "one-hot": lambda table, ids: jax.nn.one_hot(ids, VOCABULARY, dtype=table.dtype) @ table,
    "comparison": lambda table, ids: (
        (ids[..., None] == jnp.arange(VOCABULARY)[None, None]).astype(table.dtype) @ table
    ),
    "reshaped": lambda table, ids: table[ids.reshape(-1)].reshape(*ids.shape, WIDTH),
    "transposed": lambda table, ids: table[ids.T].swapaxes(0, 1),
}


@pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=LOOKUPS.keys())
def test_relevance_of_ids_is_that_of_the_words(lookup, table, head):
    """The oracle explains the looked-up vectors themselves and sums over their features."""
    rule = rules.Epsilon(0.01)
    product = lookup in (LOOKUPS["one-hot"], LOOKUPS["comparison"])  # a dense layer of its own
    chosen = [(relax.select.first, rules.Epsilon(0.0)), ("*", rule)] if product else rule
    whole = lambda table, ids: by_words(head, lookup(table, ids))
    got = jax.jit(relax.lrp(whole, chosen, target=1))(table, IDS)
    words = relax.lrp(lambda e: by_words(head, e), rule, target=1)(table[IDS])
    assert got.shape == IDS.shape
    np.testing.assert_allclose(got, words.sum(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", [rules.Flat(), rules.ZPlus(), rules.Gamma(0.3)])
def test_other_currencies(rule, table, head):
    """Flat hands relevance, not a coefficient, to the words; the ids get the same sums."""
    whole = lambda table, ids: by_words(head, table[ids])
    got = relax.lrp(whole, rule, target=0)(table, IDS)
    words = relax.lrp(lambda e: by_words(head, e), rule, target=0)(table[IDS])
    np.testing.assert_allclose(got, words.sum(-1), rtol=1e-10, atol=1e-12)


def test_a_mask_of_the_ids_gives_padding_exactly_zero(table, head):
    """Comparing ids with one number makes a mask, which carries no relevance."""

    def masked(table, ids):
        words = jnp.where((ids != 0)[..., None], table[ids], 0)
        count = (ids != 0).sum(-1, keepdims=True).astype(words.dtype)
        return jnp.tanh(words @ head).sum(-2) / count

    relevance = relax.lrp(masked, rules.Epsilon(0.01), target=2)(table, IDS)
    assert np.all(np.asarray(relevance)[np.asarray(IDS) == 0] == 0)
    assert np.all(np.asarray(relevance)[np.asarray(IDS) != 0] != 0)


def test_single_sample_batch_and_vmap_agree(table, head):
    whole = lambda table, ids: by_words(head, table[ids])
    explain = relax.lrp(whole, rules.Epsilon(0.01), target=0)
    batch = explain(table, IDS)
    np.testing.assert_allclose(batch[1], explain(table, IDS[1]), rtol=1e-12)
    np.testing.assert_allclose(batch, jax.vmap(explain, (None, 0))(table, IDS), rtol=1e-12)


@pytest.mark.more
def test_linen_embed_and_latent_relevance():
    """nn.Embed as it is; at= gives the relevance behind the look-up's first layer."""

    class Text(nn.Module):
        @nn.compact
        def __call__(self, ids):
            words = nn.Embed(VOCABULARY, WIDTH, name="embed")(ids)
            return nn.Dense(3, name="head")(nn.gelu(nn.Dense(8, name="hidden")(words)).mean(1))

    model = Text()
    variables = model.init(jax.random.key(0), IDS)
    relevance, latent = relax.lrp(model.apply, target=1, at="hidden")(variables, IDS)
    assert relevance.shape == IDS.shape
    assert {path: r.shape for path, r in latent.items()} == {"Text/hidden": (2, 4, 8)}
    np.testing.assert_allclose(relevance.sum(), model.apply(variables, IDS)[:, 1].sum(), rtol=1e-4)


def test_nnx_embed():
    class Text(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
            self.head = nnx.Linear(WIDTH, 3, use_bias=False, rngs=rngs)

        def __call__(self, ids):
            return self.head(self.embed(ids).mean(1))

    model = Text(nnx.Rngs(0))
    relevance = relax.lrp(model, rules.Epsilon(0.0), target=1)(IDS)
    np.testing.assert_allclose(relevance.sum(-1), model(IDS)[:, 1], rtol=1e-5)


def test_derivative_with_respect_to_the_embedding(table, head):
    """Relevance of ids is differentiable in the table, checked by finite differences."""
    weights = jnp.arange(1.0, 9.0).reshape(IDS.shape)

    def loss(table):
        whole = lambda table, ids: by_words(head, table[ids])
        return jnp.sum(weights * relax.lrp(whole, rules.Epsilon(0.1), target=0)(table, IDS))

    direction = jnp.cos(jnp.arange(table.size, dtype=table.dtype)).reshape(table.shape)
    step = 1e-6
    difference = (loss(table + step * direction) - loss(table - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(table), direction), difference, rtol=1e-6)


def test_ids_and_a_float_together(table, head):
    """Several explained arguments of both kinds, in one call."""

    def f(table, ids, extra):
        return by_words(head, table[ids]) + extra @ head

    extra = jnp.ones((2, WIDTH))
    ids_relevance, extra_relevance = relax.lrp(f, rules.Epsilon(0.0), argnums=(1, 2), target=0)(
        table, IDS, extra
    )
    assert ids_relevance.shape == IDS.shape
    assert extra_relevance.shape == extra.shape
    total = ids_relevance.sum() + extra_relevance.sum()
    np.testing.assert_allclose(total, f(table, IDS, extra)[:, 0].sum(), rtol=1e-10)


POSITIONS = jnp.arange(4)
PARTLY = {
    "looked up one by one": lambda table, ids: jax.vmap(
        lambda one: jax.vmap(lambda k: table[k])(one)
    )(ids),
    "by position and token": lambda table, ids: jnp.stack([table, 2 * table, -table, table + 1])[
        POSITIONS[None], ids
    ],
    "behind a token that is always there": lambda table, ids: table[
        jnp.concatenate([jnp.zeros_like(ids[:, :1]), ids], axis=1)
    ][:, 1:],
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("lookup", PARTLY.values(), ids=PARTLY.keys())
def test_the_token_takes_all_that_reaches_a_look_up(lookup, dtype, table, head):
    """An index may hold more than the token: a position, a constant. They take no share."""
    table, head = table.astype(dtype), head.astype(dtype)
    whole = lambda table, ids: by_words(head, lookup(table, ids))
    got = relax.lrp(whole, rules.Epsilon(0.01), target=1)(table, IDS)
    words = relax.lrp(lambda e: by_words(head, e), rules.Epsilon(0.01), target=1)
    expected = words(lookup(table, IDS)).sum(-1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_equinox_embedding_under_vmap(rng):
    """The idiom of Equinox: a look-up of one token, mapped."""
    import equinox as eqx

    embed = eqx.nn.Embedding(VOCABULARY, WIDTH, key=jax.random.key(0))
    f = lambda ids: jax.vmap(embed)(ids).sum()
    np.testing.assert_allclose(relax.lrp(f)(IDS[0]), embed.weight[IDS[0]].sum(-1), rtol=1e-6)
