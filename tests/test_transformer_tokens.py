"""Transformers from token ids: relevance per word, padding, and which output is explained.

Oracle: the relevance of the looked-up words by hand (`row_layers`), summed over their features.
"""

import functools
import warnings

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_models as models
from flax import nnx
from jax import lax
from jax.extend import core
from row_layers import COMPOSITES, FRAMEWORKS, AttnLRP, Bare, by_hand, error, weights
from row_models import IDS, TEXT, TIME, VOCABULARY, WIDTH

import relax

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import haiku as hk
    import keras

kinds = pytest.mark.parametrize("kind", COMPOSITES)
frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)
PADDED = np.asarray(IDS) == 0


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Model authors add arrays of lower rank; that is their affair."""
    with jax.numpy_rank_promotion("allow"):
        yield


DENSE = weights(TEXT)
ARRAYS = {"embed": weights({"embed": (VOCABULARY, WIDTH)}, seed=3)["embed"]}
TABLE = ARRAYS["embed"]
WORDS = TABLE[IDS]
attnlrp = relax.composites.attnlrp()


def on_ids(body):
    return lambda ops, ids: body(ops, ops.embed(ids), ids)


@functools.cache
def built(framework, name):
    """A text model of a framework, from ids."""
    body = on_ids(getattr(models, name))
    return FRAMEWORKS[framework](body, DENSE, ARRAYS)


def words_by_hand(kind, name, target=1):
    body = lambda ops, x: getattr(models, name)(ops, x, IDS)
    return by_hand(kind, body, DENSE, ARRAYS, (WORDS,), target)[0]


# Tokens


@pytest.mark.parametrize(
    ("framework", "kind"), [(f, "attn") for f in FRAMEWORKS] + [("bare", "cp"), ("linen", "cp")]
)
def test_a_language_model_with_a_tied_table(framework, kind):
    """The framework's own embedding, used twice: only the look-up hands relevance to the ids."""
    explain = relax.lrp(built(framework, "language"), COMPOSITES[kind](), target=1)
    relevance = jax.jit(explain)(IDS)
    assert relevance.shape == IDS.shape
    assert error(relevance, words_by_hand(kind, "language").sum(-1)) < 1e-10


@frameworks
def test_padding_has_exactly_nothing(framework):
    """The classifier masks it in attention and in the mean; everything else has relevance."""
    value, relevance = jax.jit(
        relax.value_and_lrp(built(framework, "classifier"), relax.composites.cp_lrp(), target=1)
    )(IDS)
    assert error(relevance, words_by_hand("cp", "classifier").sum(-1)) < 1e-10
    np.testing.assert_array_equal(relevance[PADDED], 0)
    assert np.all(relevance[~PADDED] != 0)
    np.testing.assert_allclose(relevance.sum(-1), value[:, 1], rtol=1e-10)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_relevance_of_words(framework):
    """``at="embed*"`` has the shape (batch, time, feature), and adds up to that of the ids."""
    explain = relax.lrp(built(framework, "classifier"), attnlrp, target=1, at="embed*")
    relevance, latent = jax.jit(explain)(IDS)
    (words,) = latent.values()
    assert words.shape == WORDS.shape
    assert error(words, words_by_hand("attn", "classifier")) < 1e-10
    np.testing.assert_allclose(words.sum(-1), relevance, rtol=1e-10, atol=1e-12)


def haiku_by(style):
    look_up = lambda ids: hk.Embed(VOCABULARY, WIDTH, lookup_style=style, name="embed")(ids)
    layer = hk.without_apply_rng(hk.transform(look_up))
    return functools.partial(layer.apply, {"embed": {"embeddings": TABLE}})


def nnx_embed(ids):
    layer = nnx.Embed(VOCABULARY, WIDTH, dtype=jnp.float64, rngs=nnx.Rngs(0))
    layer.embedding.set_value(TABLE)
    return layer(ids)


def keras_embed(**options):
    layer = keras.layers.Embedding(VOCABULARY, WIDTH, dtype="float64", **options)
    layer.build()
    layer.set_weights([TABLE])
    return layer


LOOKUPS = {
    "index": lambda ids: TABLE[ids],
    "take": lambda ids: jnp.take(TABLE, ids, axis=0),
    "take_along_axis": lambda ids: jnp.take_along_axis(TABLE[None], ids[..., None], axis=1),
    "one-hot matmul": lambda ids: jax.nn.one_hot(ids, VOCABULARY, dtype=float) @ TABLE,
    "one-hot einsum": lambda ids: jnp.einsum(
        "btv,vd->btd", jax.nn.one_hot(ids, VOCABULARY, dtype=float), TABLE
    ),
    "scaled": lambda ids: TABLE[ids] / 8 * 8,
    "linen": functools.partial(nn.Embed(VOCABULARY, WIDTH).apply, {"params": {"embedding": TABLE}}),
    "nnx": nnx_embed,
    "haiku": haiku_by("ARRAY_INDEX"),
    "haiku, one-hot": haiku_by("ONE_HOT"),
    "keras": keras_embed(),
    "keras, mask_zero": keras_embed(mask_zero=True),
    "equinox": lambda ids: jax.vmap(jax.vmap(eqx.nn.Embedding(weight=TABLE)))(ids),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_every_look_up_is_the_same(name):
    """In front of a transformer, words of a table and of a one-hot product alike."""
    ops = Bare(DENSE, ARRAYS)
    function = lambda ids: models.classifier(ops, LOOKUPS[name](ids), ids)
    relevance = jax.jit(relax.lrp(function, attnlrp, target=1))(IDS)
    assert error(relevance, words_by_hand("attn", "classifier").sum(-1)) < 1e-10
    np.testing.assert_array_equal(relevance[PADDED], 0)


def test_keras_hands_its_own_mask_on():
    """``mask_zero=True`` masks padding in Keras' attention, without a mask in the call."""
    embed = keras_embed(mask_zero=True)
    attend = keras.layers.MultiHeadAttention(2, 4, use_bias=False, dtype="float64")
    attend.build(*2 * [(None, 5, WIDTH)])

    def model(ids):
        words = embed(ids)
        return attend(words, words)[:, 0]

    relevance = jax.jit(relax.lrp(model, attnlrp, target=1))(IDS)
    np.testing.assert_array_equal(relevance[PADDED], 0)
    assert np.all(relevance[~PADDED] != 0)


def test_ids_and_their_types():
    """BERT's: words, types and positions are looked up; each of the explained has its own part."""
    types = jnp.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    tables = weights({"types": (2, WIDTH), "positions": (5, WIDTH)}, seed=7)
    ops = Bare(DENSE, ARRAYS)

    def parts(ids, types):
        return TABLE[ids], tables["types"][types]

    def model(words, of_types, ids):
        return models.classifier(ops, words + of_types + tables["positions"], ids)

    whole = lambda ids, types: model(*parts(ids, types), ids)
    got = jax.jit(relax.lrp(whole, attnlrp, argnums=(0, 1), target=1))(IDS, types)
    body = lambda ops, words, of_types: models.classifier(
        ops, words + of_types + tables["positions"], IDS
    )
    expected = by_hand("attn", body, DENSE, ARRAYS, parts(IDS, types))
    for r, own in zip(got, expected, strict=True):
        assert error(r, own.sum(-1)) < 1e-10


# Which output


def single(position, token, row=0):
    """The relevance by hand of one logit of one position of one text."""
    return _single(position % TIME, token, row)


@jax.jit
def _single(position, token, row):
    ops = AttnLRP(DENSE, ARRAYS)
    one = lambda x: models.language(ops, x, IDS)[row, position, token]
    return (WORDS * jax.grad(one)(WORDS)).sum(-1)


def language(framework="bare"):
    return built(framework, "language")


@pytest.mark.parametrize("framework", ["bare", "linen"])
def test_the_next_token(framework):
    """Explain what comes after the last word: by a function of the logits."""
    model = language(framework)
    function = lambda ids: model(ids)[:, -1]
    best = int(jnp.argmax(jax.jit(function)(IDS)[0]))
    own = single(-1, best)[:1]
    for target in ("max", best):
        relevance = jax.jit(relax.lrp(function, attnlrp, target=target))(IDS[:1])
        assert error(relevance, own) < 1e-10


@pytest.mark.parametrize("framework", ["bare", "nnx"])
def test_one_position_among_many(framework):
    """What comes later has exactly nothing; a callable target chooses to within its exchange."""
    model = language(framework)
    by_function = jax.jit(relax.lrp(lambda ids: model(ids)[:, 2], attnlrp, target=4))(IDS)
    own = single(2, 4) + single(2, 4, row=1)
    assert error(by_function, own) < 1e-10
    np.testing.assert_array_equal(by_function[:, 3:], 0)
    chosen = lambda z: jnp.zeros_like(z).at[:, 2, 4].set(z[:, 2, 4])
    by_callable = jax.jit(relax.lrp(model, attnlrp, target=chosen))(IDS)
    assert error(by_callable, own) < 1e-4
    np.testing.assert_array_equal(by_callable[:, 3:], 0)


def test_a_position_for_each_text():
    """The last word that is no padding, chosen by a gather."""
    last = jnp.array([4, 2])
    model = language()
    function = lambda ids: jnp.take_along_axis(model(ids), last[:, None, None], axis=1)[:, 0]
    relevance = jax.jit(relax.lrp(function, attnlrp, target=jnp.array([3, 6])))(IDS)
    assert error(relevance, single(4, 3) + single(2, 6, row=1)) < 1e-10
    np.testing.assert_array_equal(relevance[PADDED], 0)


@pytest.mark.parametrize("framework", ["bare", "haiku"])
def test_a_contrast(framework):
    """One token rather than another: R of the one, minus R of the other."""
    model = language(framework)
    function = lambda ids: model(ids)[:1, -1]
    sign = (jnp.arange(VOCABULARY) == 3) * 1.0 - (jnp.arange(VOCABULARY) == 8) * 1.0
    contrast = jax.jit(relax.lrp(function, attnlrp, target=lambda z: z * sign))(IDS)
    own = single(-1, 3) - single(-1, 8)
    assert error(contrast, own) < 1e-4
    difference = jax.jit(relax.lrp(lambda ids: function(ids) @ sign, attnlrp))(IDS)
    assert error(difference, own) < 1e-10


@pytest.mark.parametrize("framework", ["bare", "equinox"])
def test_several_targets_over_one_forward_pass(framework):
    """``vmap`` of relprop: the forward pass is not repeated for each target."""
    model = language(framework)
    value, relprop = relax.vrp(lambda ids: model(ids)[0, -1], IDS, rules=attnlrp)
    targets = jnp.array([1, 4, 7])
    seeds = value * (jnp.arange(VOCABULARY)[None] == targets[:, None])
    (relevances,) = jax.jit(jax.vmap(relprop))(seeds)
    for relevance, token in zip(relevances, (1, 4, 7), strict=True):
        assert error(relevance, single(-1, token)) < 1e-4

    def both(ids):
        value, relprop = relax.vrp(lambda ids: model(ids)[0, -1], ids, rules=attnlrp)
        return jax.vmap(lambda t: relprop(value * (jnp.arange(VOCABULARY) == t))[0])(targets)

    exps = [e for e in equations(jax.make_jaxpr(both)(IDS).jaxpr) if e.primitive is lax.exp_p]
    assert {e.outvars[0].aval.shape for e in exps} == {(2, 2, 5, 5)}  # those of one forward pass


def equations(jaxpr):
    """All equations, those inside of calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@kinds
@pytest.mark.parametrize("framework", ["bare", "linen"])
def test_a_chain_of_generated_tokens(framework, kind):
    """Rules are linear in R: one backward pass from all tokens is the sum of single ones."""
    model = language(framework)
    chain = jnp.arange(1, 4)  # the words that the model is held to have generated
    positions = jnp.arange(TIME - 1)

    def generated(ids, which):
        logits = model(ids)[0, :-1]
        return jnp.where(which, logits[positions, ids[0, 1:]], 0).sum()

    whole = jnp.isin(positions + 1, chain)
    explain = jax.jit(relax.lrp(generated, COMPOSITES[kind](), argnums=0))
    singles = [explain(IDS, positions + 1 == place) for place in chain]
    assert error(explain(IDS, whole), sum(singles)) < 1e-10
    if kind == "attn":
        own = sum(single(int(place) - 1, int(IDS[0, place])) for place in chain)
        assert error(explain(IDS, whole), own) < 1e-10


# What is no text


FLOATS = IDS.astype(float)


@pytest.mark.parametrize("framework", ["bare", "linen", "nnx", "equinox", "haiku"])
def test_floats_where_ids_are_expected(framework):
    """The model's own error; the one that relax adds nothing to."""
    model = built(framework, "classifier")
    with pytest.raises((TypeError, ValueError), match=r"(?i)integer"):
        relax.lrp(model, target=1)(FLOATS)


@pytest.mark.parametrize("look_up", ["keras", "cast"])
def test_floats_that_the_model_takes_for_ids(look_up):
    """No relevance can reach them: a warning, not silent zeros."""
    taken = LOOKUPS | {"cast": lambda ids: TABLE[ids.astype(int)]}
    with pytest.warns(relax.RelaxWarning, match="all relevance is zero"):
        relax.lrp(lambda ids: taken[look_up](ids).sum((1, 2)))(FLOATS)


def test_ids_outside_of_the_vocabulary():
    """What the model makes of them: the nearest word, nan, or nothing."""
    ids = jnp.array([[1, 5, VOCABULARY + 3, 7]])
    function = lambda mode: lambda ids: jnp.take(TABLE, ids, axis=0, mode=mode).sum(-1).sum(-1)
    clipped = relax.lrp(function("clip"))(ids)
    np.testing.assert_allclose(clipped, TABLE[jnp.clip(ids, 0, VOCABULARY - 1)].sum(-1))
    filled = relax.lrp(function("fill"))(ids)
    np.testing.assert_array_equal(np.isnan(filled), [[False, False, True, False]])
    nothing = relax.lrp(lambda ids: TABLE.at[ids].get(mode="fill", fill_value=0).sum((1, 2)))(ids)
    np.testing.assert_allclose(nothing, jnp.where(ids < VOCABULARY, clipped, 0))
    one_hot = relax.lrp(lambda ids: LOOKUPS["one-hot matmul"](ids).sum((1, 2)), attnlrp)(ids)
    np.testing.assert_allclose(one_hot, nothing, rtol=1e-10)


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox", "haiku", "keras"])
def test_frameworks_outside_of_the_vocabulary(framework):
    """Relevance is nan exactly where the words are; no error, no other number."""
    ids = IDS.at[0, 2].set(VOCABULARY + 3)
    ops = lambda ops, ids: ops.embed(ids)
    embed = FRAMEWORKS[framework](ops, {}, ARRAYS)
    words = embed(ids)
    relevance = relax.lrp(embed)(ids)
    np.testing.assert_allclose(relevance, words.sum(-1), rtol=1e-12)


@pytest.mark.parametrize("framework", ["bare", "linen", "nnx"])
def test_an_empty_sequence(framework):
    """Nothing in, relevance of nothing out."""
    ids = jnp.zeros((2, 0), jnp.int32)
    value, relevance = relax.value_and_lrp(language(framework), attnlrp, target=1)(ids)
    assert value.shape == (2, 0, VOCABULARY)
    assert relevance.shape == (2, 0)


@kinds
def test_an_empty_sequence_of_words(kind):
    """The same from vectors."""
    words, ids = jnp.zeros((2, 0, WIDTH)), jnp.zeros((2, 0), jnp.int32)
    model = functools.partial(models.language, Bare(DENSE, ARRAYS))
    explain = relax.value_and_lrp(model, COMPOSITES[kind](), argnums=0, target=1)
    value, relevance = jax.jit(explain)(words, ids)
    assert value.shape == (2, 0, VOCABULARY)
    assert relevance.shape == words.shape


@pytest.mark.parametrize("fill", [-jnp.inf, jnp.finfo(float).min], ids=["-inf", "finite"])
@kinds
def test_a_text_of_nothing_but_padding(kind, fill):
    """The row is what the model makes of it, and the other rows never notice."""

    def model(ids):
        x, seen = TABLE[ids], (ids != 0)[:, None]
        p = jax.nn.softmax(jnp.where(seen, x @ x.swapaxes(1, 2), fill))
        return (p @ x)[:, 0]

    ids = IDS.at[1].set(0)
    explain = relax.value_and_lrp(model, COMPOSITES[kind](), target=1)
    value, relevance = jax.jit(explain)(ids)
    _, alone = jax.jit(explain)(ids[:1])
    np.testing.assert_allclose(relevance[:1], alone, rtol=1e-10)
    finite = np.isfinite(fill)
    assert np.isfinite(value[1]).all() == finite
    assert np.isfinite(relevance[1]).all() == finite
