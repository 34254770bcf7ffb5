"""The cases of docs/cases: what their pages say is so. (tests/test_docs.py runs their snippets.)"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import rules, select

PAGES = Path(__file__).resolve().parents[1] / "docs" / "cases"
OUTPUTS, FEATURES, SAMPLES = 3, 4, 6


def test_every_page_is_in_the_index():
    """And every link of the index leads to a page."""
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in PAGES.glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == pages


@pytest.fixture
def p(rng):
    return {
        "hidden": {
            "kernel": jnp.asarray(rng.normal(size=(FEATURES, 8))),
            "bias": jnp.asarray(rng.normal(size=8)),
        },
        "head": {
            "kernel": jnp.asarray(rng.normal(size=(8, OUTPUTS))),
            "bias": jnp.asarray(rng.normal(size=OUTPUTS)),
        },
    }


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(SAMPLES, FEATURES)))


def dense(layer, x):
    y = x @ layer["kernel"]
    return y + jnp.broadcast_to(layer["bias"], y.shape)


def predict(p, x, phi=jax.nn.relu):
    return dense(p["head"], phi(dense(p["hidden"], x)))


RULES = {
    "LRP-0": rules.Epsilon(0.0),
    "epsilon": rules.Epsilon(0.1),
    "size": rules.Epsilon(0.1, stabilizer="scale"),
    "shared bias": rules.Epsilon(0.0, bias_share=1.0),
    "gamma": rules.Gamma(0.25),
    "zplus": rules.ZPlus(),
    "alpha beta": rules.AlphaBeta(2.0, 1.0),
    "flat": relax.composites.epsilon_plus_flat(),
}
# The others go the same way through the program.
SOME = [
    pytest.param(name, marks=() if name in ("size", "gamma", "flat") else pytest.mark.slow)
    for name in RULES
]


@pytest.mark.parametrize("rule", SOME)
def test_after_a_terminal_tanh_it_is_another_number(rule, p, x):
    """tanh(z)/z times the relevance before it, for each sample its own."""
    before, after = (
        relax.lrp(f, RULES[rule], target=1)(p, x)
        for f in (predict, lambda p, x: jnp.tanh(predict(p, x)))
    )
    z = np.asarray(predict(p, x))[:, 1:2]
    assert np.ptp(np.tanh(z) / z) > 0.1
    np.testing.assert_allclose(after, before * (np.tanh(z) / z), rtol=1e-9, atol=1e-12)


def test_a_saturated_tanh_has_relevance_and_no_gradient(p, x):
    """At z near 40 the derivative is exactly 0; the sum of relevance is the value."""
    bare = jax.tree.map(jnp.zeros_like, p)
    bare = {name: {"kernel": p[name]["kernel"], "bias": bare[name]["bias"]} for name in p}
    z = predict(bare, x)[0, 1]
    bounded = lambda x: jnp.tanh(predict(bare, x[None])[0] * (40 / z))
    assert not jax.grad(lambda x: bounded(x)[1])(x[0]).any()
    relevance = relax.lrp(bounded, rules.Epsilon(0.0), target=1)(x[0])
    np.testing.assert_allclose(relevance.sum(), 1.0, rtol=1e-9)
    gradient = {select.activation: rules.Gradient(), select.affine: rules.Epsilon(0.0)}
    assert not relax.lrp(bounded, gradient, target=1)(x[0]).any()


@pytest.mark.parametrize("rule", SOME)
def test_one_of_many_outputs(rule, p, x):
    """The same as a function that returns nothing else; for a batch, one for each sample."""
    alone = [
        relax.lrp(lambda p, x, k=k: predict(p, x)[:, k], RULES[rule])(p, x) for k in range(OUTPUTS)
    ]
    for k in range(OUTPUTS):
        chosen = relax.lrp(predict, RULES[rule], target=k)(p, x)
        np.testing.assert_allclose(chosen, alone[k], rtol=1e-9, atol=1e-12)
    labels = np.arange(SAMPLES) % OUTPUTS
    each = relax.lrp(predict, RULES[rule], target=labels)(p, x)
    want = [alone[k][i] for i, k in enumerate(labels)]
    np.testing.assert_allclose(each, want, rtol=1e-9, atol=1e-12)
    everything = relax.lrp(predict, RULES[rule])(p, x)
    np.testing.assert_allclose(everything, sum(map(np.asarray, alone)), rtol=1e-9, atol=1e-11)


def test_biases_keep_what_they_add(p, x):
    """Under LRP-0 a bias keeps b df/db: what of the prediction no feature has earned."""
    slope = jax.grad(lambda p: predict(p, x)[:, 1].sum())(p)
    bias = sum(float((p[name]["bias"] * slope[name]["bias"]).sum()) for name in p)
    relevance, account = relax.ledger(predict, rules.Epsilon(0.0), target=1)(p, x)
    value = float(predict(p, x)[:, 1].sum())
    np.testing.assert_allclose(relevance.sum(), value - bias, rtol=1e-9)
    np.testing.assert_allclose(account.by_cause()["bias"], bias, rtol=1e-9)
    shared = relax.lrp(predict, rules.Epsilon(0.0, bias_share=1.0), target=1)(p, x)
    np.testing.assert_allclose(shared.sum(1), predict(p, x)[:, 1], rtol=1e-9)


def test_zero_is_the_reference(p, x):
    """A feature of value 0 has relevance 0, unless the rule has another reference."""
    x = x.at[:, 2].set(0.0)
    for name in ("LRP-0", "epsilon", "gamma", "zplus", "alpha beta"):
        relevance = relax.lrp(predict, RULES[name], target=1)(p, x)
        assert not relevance[:, 2].any(), name
        assert jnp.abs(relevance).max() > 1e-3, name
    for name in ("shared bias", "flat"):
        assert relax.lrp(predict, RULES[name], target=1)(p, x)[:, 2].any(), name


def test_passing_the_scaler_moves_the_reference(p, x):
    """To the mean; as explained, scaled features have the same relevance."""
    mean, std = x.mean(0), x.std(0)
    along = lambda a, x: jnp.broadcast_to(a, x.shape)
    scaled = lambda x: (x - along(mean, x)) / along(std, x)
    raw = lambda p, x: predict(p, scaled(x))
    passing = [(select.preprocessing, rules.Pass()), rules.Epsilon(0.0)]
    want = relax.lrp(predict, rules.Epsilon(0.0), target=1)(p, scaled(x))
    for mine in (passing, relax.composites.epsilon(0.0)):
        np.testing.assert_allclose(relax.lrp(raw, mine, target=1)(p, x), want, rtol=1e-9)
    at_mean = relax.lrp(raw, passing, target=1)(p, x.at[:, 2].set(mean[2]))
    assert not at_mean[:, 2].any()
    offset = relax.lrp(raw, rules.Epsilon(0.0), target=1)(p, x)
    np.testing.assert_allclose(offset, want * x / (x - along(mean, x)), rtol=1e-8)


def test_a_reference_prediction(p, x):
    """It changes no feature under LRP-0; under ZPlus all features have the sign of what is left."""
    c = jnp.full((SAMPLES, OUTPUTS), 7.0)
    above = lambda p, x: predict(p, x) - c
    plain, moved = (relax.lrp(f, rules.Epsilon(0.0), target=1)(p, x) for f in (predict, above))
    np.testing.assert_allclose(moved, plain, rtol=1e-9, atol=1e-12)
    sign = jnp.broadcast_to(jnp.sign(above(p, x)[:, 1:2]), x.shape)
    assert {-1.0, 1.0} == set(np.unique(sign))
    relevance = relax.lrp(above, rules.ZPlus(), target=1)(p, x)
    assert (relevance * sign >= 0).all()
    assert (jnp.abs(relevance).max(1) > 1e-3).all()


def test_negative_relevance_is_of_the_value_not_of_the_slope():
    """w x for a linear function: a value below zero under a positive weight is negative."""
    w, x = jnp.array([2.0, -1.0, -0.5]), jnp.array([-1.0, 0.5, -0.5])
    relevance = relax.lrp(lambda w, x: x @ w, rules.Epsilon(0.0))(w, x)
    np.testing.assert_allclose(relevance, [-2.0, -0.5, 0.25], rtol=1e-12)


@pytest.mark.parametrize("rule", SOME)
@pytest.mark.parametrize("target", [None, "max", "labels"])
def test_a_batch_is_its_samples(rule, target, p, x):
    """One by one, in a batch, in a batch of one and under vmap."""
    labels = np.arange(SAMPLES) % OUTPUTS if target == "labels" else None
    batch = relax.lrp(predict, RULES[rule], target=target if labels is None else labels)(p, x)
    of = lambda i: target if labels is None else int(labels[i])
    for i in (0, 3):
        one = relax.lrp(predict, RULES[rule], target=of(i))
        np.testing.assert_allclose(one(p, x[i]), batch[i], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(one(p, x[i : i + 1])[0], batch[i], rtol=1e-9, atol=1e-12)
    if labels is None:
        mapped = jax.vmap(relax.lrp(predict, RULES[rule], target=target), (None, 0))(p, x)
        np.testing.assert_allclose(mapped, batch, rtol=1e-9, atol=1e-12)


def test_samples_that_are_mixed_explain_each_other(p, x):
    """Centered over the batch: only the whole batch adds up, and vmap does not mix."""
    bare = {name: layer | {"bias": 0 * layer["bias"]} for name, layer in p.items()}
    mixed = lambda p, x: predict(p, x - jnp.broadcast_to(x.mean(0, keepdims=True), x.shape))
    first = lambda z: jnp.zeros_like(z).at[0, 1].set(z[0, 1])
    relevance = relax.lrp(mixed, rules.Epsilon(0.0), target=first)(bare, x)
    assert (jnp.abs(relevance[1:]).max(1) > 1e-6).all()
    np.testing.assert_allclose(relevance.sum(), mixed(bare, x)[0, 1], rtol=1e-9)
    apart = relax.lrp(predict, rules.Epsilon(0.0), target=first)(bare, x)
    assert not apart[1:].any()


ACTIVATIONS = {
    # name: the function, whether phi(0) = 0, whether it rises everywhere
    "tanh": (jnp.tanh, True, True),
    "elu": (jax.nn.elu, True, True),
    "silu": (jax.nn.silu, True, False),
    "sigmoid": (jax.nn.sigmoid, False, True),
    "softplus": (jax.nn.softplus, False, True),
    "exp": (jnp.exp, False, True),
    "cos": (jnp.cos, False, False),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("x", [(1.0, 3.0), (3.0, 1.0), (1.0, 1.01)])
def test_signs_at_one_neuron(name, x):
    """x w phi(z)/z under Pass, and (phi(z) - phi(0))/z under Rescale: signs, if phi rises."""
    phi, at_zero, rises = ACTIVATIONS[name]
    w, x = {"in": jnp.array([[1.0], [-1.0]]), "out": jnp.array([[2.0]])}, jnp.array(x)
    f = lambda w, x: phi(x @ w["in"]) @ w["out"]
    (row,) = (row for row in relax.layers(f)(w, x) if row.kind == "activation")
    assert row.currency == ("coefficient" if at_zero else "relevance")
    share = np.asarray(x) * [1.0, -1.0]
    z, start = share.sum(), 2 * float(phi(jnp.zeros(())))
    value = float(f(w, x)[0])
    passed = relax.lrp(f, rules.Epsilon(0.0))(w, x)
    np.testing.assert_allclose(passed, share / z * value, rtol=1e-9)
    flips = value / z < 0
    assert bool((np.sign(passed) == -np.sign(share)).all()) == flips
    held = [(select.activation, rules.Rescale(0.0)), rules.Epsilon(0.0)]
    relevance, account = relax.ledger(f, held)(w, x)
    np.testing.assert_allclose(relevance, share / z * (value - start), rtol=1e-9)
    np.testing.assert_allclose(account.by_cause()["activation"], start, rtol=1e-9, atol=1e-12)
    if rises:
        np.testing.assert_array_equal(np.sign(relevance), np.sign(share))


def test_rescale_is_an_exact_rewriting(p, x):
    """A sigmoid under Rescale is a tanh with the half in the next bias; at tanh it is Pass."""
    half = {
        "hidden": jax.tree.map(lambda a: a / 2, p["hidden"]),
        "head": {
            "kernel": p["head"]["kernel"] / 2,
            "bias": p["head"]["bias"] + p["head"]["kernel"].sum(0) / 2,
        },
    }
    sigmoid, tanh = (lambda p, x, f=f: predict(p, x, f) for f in (jax.nn.sigmoid, jnp.tanh))
    np.testing.assert_allclose(tanh(half, x), sigmoid(p, x), rtol=1e-12)
    held = [(select.activation, rules.Rescale(0.0)), rules.Epsilon(0.0)]
    want = relax.lrp(tanh, rules.Epsilon(0.0), target=1)(half, x)
    np.testing.assert_allclose(relax.lrp(sigmoid, held, target=1)(p, x), want, rtol=1e-9)
    np.testing.assert_allclose(relax.lrp(tanh, held, target=1)(half, x), want, rtol=1e-9)
    assert not np.allclose(relax.lrp(sigmoid, rules.Epsilon(0.0), target=1)(p, x), want, rtol=0.1)


def test_negative_logits():
    """Positive is for the class under Epsilon; ZPlus shares a negative number, or 1 if told so."""
    w, x = jnp.array([[1.0, 0.5], [-1.0, 0.5]]), jnp.array([1.0, 3.0])
    f = lambda w, x: x @ w
    explain = lambda rule, target=0: relax.lrp(f, rule, target=target)(w, x)
    np.testing.assert_allclose(explain(rules.Epsilon(0.0)), [1.0, -3.0], rtol=1e-12)
    np.testing.assert_allclose(explain(rules.ZPlus(0.0)), [-2.0, 0.0], rtol=1e-12)
    one = lambda z: jnp.zeros_like(z).at[0].set(1.0)
    np.testing.assert_allclose(explain(rules.ZPlus(0.0), one), [1.0, 0.0], rtol=1e-12)


WORDS, WIDTH, HIDDEN = 12, 5, 7
IDS = np.array([[3, 7, 3, 9, 0, 0], [1, 2, 11, 4, 5, 6], [8, 0, 0, 0, 0, 0]])


@pytest.fixture
def text(rng):
    shapes = {"embedding": (WORDS, WIDTH), "hidden": (WIDTH, HIDDEN), "head": (HIDDEN, 2)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def classify(p, ids):
    there = (ids > 0)[..., None]
    h = jax.nn.relu(p["embedding"][ids] @ p["hidden"])
    total = jnp.where(jnp.broadcast_to(there, h.shape), h, 0.0).sum(-2)
    return (total / jnp.broadcast_to(there.sum(-2), total.shape)) @ p["head"]


def by_hand(p, ids, k):
    """LRP-0 of output k, token by token, neuron by neuron, feature by feature."""
    embedding, hidden, head = (np.asarray(p[name]) for name in ("embedding", "hidden", "head"))
    length = sum(1 for word in ids if word > 0)
    relevance = np.zeros(len(ids))
    for t, word in enumerate(ids):
        if word == 0:
            continue
        for j in range(HIDDEN):
            z = sum(embedding[word, i] * hidden[i, j] for i in range(WIDTH))
            if z > 0:
                relevance_of_neuron = z / length * head[j, k]
                for i in range(WIDTH):
                    relevance[t] += embedding[word, i] * hidden[i, j] / z * relevance_of_neuron
    return relevance


def test_relevance_of_words(text):
    """The sum over the features of their embedding, by hand; padding has exactly none."""
    relevance = relax.lrp(classify, rules.Epsilon(0.0), target=1)(text, jnp.asarray(IDS))
    want = [by_hand(text, ids, 1) for ids in IDS]
    np.testing.assert_allclose(relevance, want, rtol=1e-9, atol=1e-12)
    assert not np.asarray(relevance)[IDS == 0].any()
    value = classify(text, jnp.asarray(IDS))[:, 1]
    np.testing.assert_allclose(relevance.sum(1), value, rtol=1e-9)
    np.testing.assert_allclose(relevance[0, 0], relevance[0, 2], rtol=1e-12)  # the same word twice


@pytest.mark.parametrize("rule", SOME)
def test_padding_and_batches_do_not_matter(rule, text):
    """A sentence alone, unpadded, has the relevance that it has in a padded batch."""
    explain = relax.lrp(classify, RULES[rule], target=0)
    batch = explain(text, jnp.asarray(IDS))
    for ids, relevance in ((IDS[0], batch[0]), (IDS[2], batch[2])):
        short = jnp.asarray(ids[ids > 0])
        np.testing.assert_allclose(relevance[: len(short)], explain(text, short), rtol=1e-9)
        assert not relevance[len(short) :].any()


def test_ids_and_embeddings_agree(text):
    """As a float argument, and by ``at``: the features add up to the relevance of the ids."""
    ids = jnp.asarray(IDS)

    def from_embeddings(p, embedded):
        h = jax.nn.relu(embedded @ p["hidden"])
        there = jnp.broadcast_to((ids > 0)[..., None], h.shape)
        total = jnp.where(there, h, 0.0).sum(-2)
        return (total / there.sum(-2)) @ p["head"]

    relevance, latent = relax.lrp(classify, target=1, at="embed*")(text, ids)
    features = relax.lrp(from_embeddings, target=1)(text, text["embedding"][ids])
    np.testing.assert_allclose(features.sum(-1), relevance, rtol=1e-9, atol=1e-12)
    (inside,) = latent.values()
    np.testing.assert_allclose(inside, features, rtol=1e-9, atol=1e-12)


def test_a_difference_of_logits(text):
    """Under LRP-0 it has the difference of relevances."""
    ids = jnp.asarray(IDS)
    contrast = lambda p, ids: classify(p, ids)[..., 1] - classify(p, ids)[..., 0]
    got = relax.lrp(contrast, rules.Epsilon(0.0))(text, ids)
    one, other = (relax.lrp(classify, rules.Epsilon(0.0), target=k)(text, ids) for k in (1, 0))
    np.testing.assert_allclose(got, one - other, rtol=1e-9, atol=1e-12)
