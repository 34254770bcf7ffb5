"""Conditions: Mask without a rule at layers and named values, and PerRound in scans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import relax
from relax import composites, rules, select

RULES = {
    "epsilon": rules.Epsilon(0.01),
    "gamma": rules.Gamma(0.3),
    "zplus": rules.ZPlus(),
    "alphabeta": rules.AlphaBeta(2.0, 1.0),
    "flat": composites.epsilon_plus_flat(),
}
ROUNDS = 4


@pytest.fixture
def p(rng):
    shapes = {"stem": (5, 6), "hidden": (6, 4), "head": (4, 3)}
    p = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    return p | {"b": jnp.asarray(rng.normal(size=(1, 4)))}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(2, 5)))


@pytest.fixture
def mask(rng):
    return jnp.asarray(rng.uniform(size=(4,)))


def upper(p, h):
    return jnp.tanh(h) @ p["head"]


def lower(p, x):
    return jax.nn.relu(x @ p["stem"]) @ p["hidden"] + p["b"]


def network(p, x):
    return upper(p, lower(p, x))


def named(p, x):
    h = jax.nn.relu(lower(p, x))
    return upper(p, checkpoint_name(h, "concepts"))


def two_steps(p, x, mask, rule, head, stem):
    """The oracle: relevance of the hidden value, masked, handed to the lower half by hand."""
    h = stem(p, x)
    at_h = relax.lrp(lambda h: head(p, h), rule, target=1)(h)
    _, relprop = relax.vrp(lambda x: stem(p, x), x, rules=rule)
    return relprop(mask[None] * at_h)[0]


@pytest.mark.parametrize("name", ["epsilon", "gamma", "zplus", "alphabeta"])
def test_a_mask_alone_leaves_the_layer_its_rule(name, p, x, mask):
    """It is the mask in front of the rule that the layer has without it, by list or mapping."""
    rule = RULES[name]
    full = [("hidden", rules.Mask(mask, rule)), (select.affine, rule)]
    want = relax.lrp(network, full, target=1)(p, x)
    for conditioned in (
        [("hidden", rules.Mask(mask)), (select.affine, rule)],
        [(select.affine, rule), ("hidden", rules.Mask(mask))],
        [("hidden", rules.Mask(mask)), ("hidden", rule), (select.anything & select.affine, rule)],
        {"hidden": rules.Mask(mask), select.affine: rule},
    ):
        got = relax.lrp(network, conditioned, target=1)(p, x)
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_it_is_the_lower_half_of_the_masked_relevance(name, p, x, mask):
    """Against the network cut in two at the layer, and at a named value."""
    rule = RULES[name]
    entry = rule if isinstance(rule, relax.Composite) else (select.affine, rule)
    if name != "flat":  # cut in two, its upper half would have a first layer of its own
        got = relax.lrp(network, [("hidden", rules.Mask(mask)), entry], target=1)(p, x)
        want = two_steps(p, x, mask, rule, upper, lower)
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-12)
        stem = lambda p, x: jax.nn.relu(lower(p, x))
        got = relax.lrp(named, [("concepts", rules.Mask(mask)), entry], target=1)(p, x)
        want = two_steps(p, x, mask, rule, upper, stem)
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-12)
    whole = relax.lrp(named, entry if name == "flat" else rule, target=1)(p, x)
    each = lambda m: relax.lrp(named, [("concepts", rules.Mask(m)), entry], target=1)(p, x)
    np.testing.assert_allclose(jax.vmap(each)(jnp.eye(4)).sum(0), whole, rtol=1e-7, atol=1e-10)


def test_conditions_add_up(p, x, mask):
    """Two masks on one layer both hold; so do masks of two layers."""
    other = jnp.linspace(0, 1, 4)
    both = [("hidden", rules.Mask(mask)), ("hidden", rules.Mask(other))]
    want = relax.lrp(network, {"hidden": rules.Mask(mask * other)})(p, x)
    np.testing.assert_allclose(relax.lrp(network, both)(p, x), want, rtol=1e-12)
    nested = {"hidden": rules.Mask(mask, rules.Mask(other))}
    np.testing.assert_allclose(relax.lrp(network, nested)(p, x), want, rtol=1e-12)
    by_callable = lambda layer: (
        rules.Mask(mask * other) if select.predicate("hidden")(layer) else None
    )
    np.testing.assert_allclose(relax.lrp(network, by_callable)(p, x), want, rtol=1e-12)
    named_twice = [("concepts", rules.Mask(mask)), ("concepts", rules.Mask(other))]
    want = relax.lrp(named, {"concepts": rules.Mask(mask * other)})(p, x)
    np.testing.assert_allclose(relax.lrp(named, named_twice)(p, x), want, rtol=1e-12)
    stem = jnp.linspace(-1, 1, 6)
    got = relax.lrp(network, {"stem": rules.Mask(stem), "hidden": rules.Mask(mask)})(p, x)
    parts = lambda a, b: relax.lrp(network, {"stem": rules.Mask(a), "hidden": rules.Mask(b)})(p, x)
    units = [stem[i] * parts(jnp.eye(6)[i], mask) for i in range(6)]
    np.testing.assert_allclose(got, sum(units), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "selector",
    [select.activation, select.softmax, select.norm, select.product, select.sums, select.winner],
    ids=lambda s: s.name,
)
def test_at_layers_of_every_kind(selector, p, x):
    """A mask of two is twice the relevance below the layer; of zero none: nothing goes round it."""

    def function(x):
        h = jnp.tanh(x @ p["stem"])
        h = h / jnp.sqrt(1e-3 + (h * h).mean(-1, keepdims=True))
        h = jnp.maximum(h[:, :3], h[:, 3:])
        h = jax.nn.softmax(h)
        h = h * jnp.cumsum(h, -1)
        return h.sum(-1)

    plain = relax.lrp(function)(x)
    for factor in (2.0, 0.0):
        got = relax.lrp(function, {selector: rules.Mask(factor)})(x)
        np.testing.assert_allclose(got, factor * plain, rtol=1e-9, atol=1e-14)


def test_derivatives(p, x, mask):
    """Of a condition, by central differences; under jit, vmap, checkpoint."""

    def explained(p, m):
        return relax.lrp(jax.checkpoint(named), {"concepts": rules.Mask(m)}, target=0)(p, x)

    for which, at in ((0, p), (1, mask)):
        loss = lambda v, which=which: jnp.sum(
            explained(*((v, mask) if which == 0 else (p, v))) ** 2
        )
        step = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), at)
        moved = lambda t, at=at, step=step: jax.tree.map(lambda v, s, t=t: v + t * s, at, step)
        want = (loss(moved(1e-6)) - loss(moved(-1e-6))) / 2e-6
        slope = jax.jit(jax.grad(loss))(at)
        got = sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (slope, step)), strict=True))
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_account_says_what_a_mask_keeps(p, x, mask):
    for function, place in ((network, "hidden"), (named, "concepts")):
        relevance, latent = relax.lrp(function, at=place)(p, x)
        conditioned = {place: rules.Mask(mask)}
        received, account = relax.ledger(function, conditioned)(p, x)
        lost = jnp.sum((1 - mask[None]) * next(iter(latent.values())))
        np.testing.assert_allclose(account.by_cause()["mask"], lost, rtol=1e-9)
        np.testing.assert_allclose(account.rounding, 0, atol=1e-12)
        assert relevance.shape == received.shape
    assert "concepts" in str(account)


def test_at_shows_what_arrives_before_the_mask(p, x, mask):
    plain = relax.lrp(named, at="concepts")(p, x)[1]
    masked = relax.lrp(named, {"concepts": rules.Mask(mask)}, at="concepts")(p, x)[1]
    np.testing.assert_allclose(masked["concepts"], plain["concepts"])


# A value for each round of a scan


def step(h, w):
    return jnp.tanh(checkpoint_name(jax.nn.relu(h @ w), "inner")), None


def scanned(w, x):
    return jax.lax.scan(step, x, w)[0]


def unrolled(w, x):
    for i in range(ROUNDS):
        x = step(x, w[i])[0]
    return x


@pytest.fixture
def w(rng):
    return jnp.asarray(rng.normal(size=(ROUNDS, 5, 5)))


def test_a_hyper_parameter_for_each_round(w, x):
    """Against the loop written out, each layer with its own gamma; the gradient too."""
    gammas = jnp.linspace(0.1, 1.0, ROUNDS)

    def in_scan(gammas):
        return relax.lrp(scanned, rules.Gamma(rules.PerRound(gammas)), target=1)(w, x)

    def written_out(gammas):
        each = [(f"dense#{i}", rules.Gamma(gammas[i])) for i in range(ROUNDS)]
        return relax.lrp(unrolled, each, target=1)(w, x)

    np.testing.assert_allclose(in_scan(gammas), written_out(gammas), rtol=1e-9)
    np.testing.assert_allclose(jax.jit(in_scan)(gammas), written_out(gammas), rtol=1e-9)
    total = lambda f: lambda g: jnp.sum(f(g) ** 2)
    np.testing.assert_allclose(
        jax.grad(total(in_scan))(gammas), jax.grad(total(written_out))(gammas), rtol=1e-8
    )
    swept = jax.vmap(in_scan)(jnp.stack([gammas, 2 * gammas]))
    np.testing.assert_allclose(swept[1], written_out(2 * gammas), rtol=1e-9)


@pytest.mark.parametrize("place", ["dense", "inner"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "checkpoint"])
def test_a_mask_for_each_round(place, wrap, w, x, rng):
    masks = jnp.asarray(rng.uniform(size=(ROUNDS, 5)))
    each = [(f"dense#{i}", rules.Mask(masks[i])) for i in range(ROUNDS)]
    if place == "inner":  # behind the rectifier, which passes relevance unchanged
        assert relax.lrp(scanned, at="inner")(w, x)[1]["inner"].shape == (ROUNDS, 2, 5)
    want = relax.lrp(unrolled, each)(w, x)
    given = {place: rules.Mask(rules.PerRound(masks))}
    np.testing.assert_allclose(relax.lrp(wrap(scanned), given)(w, x), want, rtol=1e-9)
    _, account = relax.ledger(wrap(scanned), given)(w, x)
    np.testing.assert_allclose(account.rounding, 0, atol=1e-12)


def test_in_nested_scans_and_branches(w, x, rng):
    """Two axes of rounds, one inside of a cond."""
    gammas = jnp.asarray(rng.uniform(size=(3, ROUNDS)))

    def nested(w, x):
        def outer(h, scale):
            h = jax.lax.cond(scale > 0, lambda h: scanned(w, h), lambda h: h, h)
            return scale * h, None

        return jax.lax.scan(outer, x, jnp.array([0.5, 2.0, 1.5]))[0]

    def written_out(w, x):
        for scale in (0.5, 2.0, 1.5):
            x = scale * unrolled(w, x)
        return x

    each = [(f"dense#{i}", rules.Gamma(g)) for i, g in enumerate(gammas.reshape(-1))]
    got = relax.lrp(nested, rules.Gamma(rules.PerRound(gammas)))(w, x)
    np.testing.assert_allclose(got, relax.lrp(written_out, each)(w, x), rtol=1e-9)


def test_the_plan_shows_it(w, x):
    rule = rules.Gamma(rules.PerRound(np.ones(ROUNDS, np.float32)))
    assert "Gamma(PerRound(float32[4]))" in str(relax.layers(scanned, rule)(w, x))


def test_at_embeddings_and_functions_with_a_rule_of_their_own(p, x, mask):
    """Where no rule stands in front, the mask acts at the output; the account closes."""
    ids = jnp.array([[1, 2], [0, 4]])
    text = lambda p, ids: jnp.tanh(p["stem"][ids]).sum(1) @ p["hidden"]
    from_vectors = lambda v: jnp.tanh(v).sum(1) @ p["hidden"]
    features = jnp.linspace(-1, 1, 6)
    given = {select.embedding: rules.Mask(features)}
    at_vectors = relax.lrp(from_vectors)(p["stem"][ids])
    want = (features[None, None] * at_vectors).sum(-1)
    np.testing.assert_allclose(relax.lrp(text, given)(p, ids), want, rtol=1e-9)
    _, account = relax.ledger(text, given)(p, ids)
    np.testing.assert_allclose(account.rounding, 0, atol=1e-12)
    np.testing.assert_allclose(
        account.by_cause()["mask"], (at_vectors.sum() - want.sum()), rtol=1e-9
    )

    @relax.custom_relprop
    def doubled(h):
        return 2 * h

    doubled.defrelprop(lambda h: (2 * h, None), lambda _, relevance: (relevance,))
    own = lambda p, x: doubled(lower(p, x)) @ p["head"]
    plain = lambda p, x: (2 * lower(p, x)) @ p["head"]
    got = relax.lrp(own, {select.custom: rules.Mask(mask)})(p, x)
    want = relax.lrp(plain, {"hidden": rules.Mask(mask)})(p, x)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_values_of_one_name_are_told_apart(p, x, mask):
    """The label that `at=` shows names one of them again, also in the plan and in errors."""

    def twice(p, x):
        h = checkpoint_name(jax.nn.relu(x @ p["stem"]), "h")
        return checkpoint_name(jax.nn.relu(h @ p["hidden"]), "h") @ p["head"]

    both = relax.lrp(twice, at="h")(p, x)[1]
    assert list(both) == ["h", "h#1"]
    assert list(relax.lrp(twice, at="h#1")(p, x)[1]) == ["h#1"]
    assert list(relax.lrp(twice, at="h#0")(p, x)[1]) == ["h"]
    second = relax.lrp(twice, {"h#1": rules.Mask(mask)})(p, x)
    head = lambda h: h @ p["head"]
    stem = lambda x: jax.nn.relu(jax.nn.relu(x @ p["stem"]) @ p["hidden"])
    (want,) = relax.vrp(stem, x)[1](mask[None] * relax.lrp(head)(stem(x)))
    np.testing.assert_allclose(second, want, rtol=1e-7)
    plan = str(relax.layers(twice, {"h#1": rules.Mask(mask)})(p, x))
    assert "named value" in plan
    assert "Mask(float64[4])" in plan
    with pytest.raises(relax.UnmatchedSelectorError, match="'h#1'"):
        relax.lrp(twice, {"h#7": rules.Mask(mask)})(p, x)


# Errors


def test_errors(p, x, w, mask):
    """What, where, and what to do."""

    def inside(p, x):
        return jax.nn.relu(checkpoint_name(x @ p["hidden"].T, "middle") * p["s"])

    for explain in (
        relax.lrp(inside, at="middle"),
        relax.lrp(inside, {"middle": rules.Mask(1.0)}),
    ):
        with pytest.raises(relax.ArgumentError, match=r"middle.*test_conditions.py:\d+") as error:
            explain(p | {"s": jnp.full((1, 6), 2.0)}, x[:, :4])
        assert "Name the value behind it" in str(error.value)
    with pytest.raises(relax.UnmatchedSelectorError, match="without a rule"):
        relax.lrp(named, {"concepts": rules.Epsilon()})(p, x)
    with pytest.raises(relax.UnmatchedSelectorError, match="Nearest"):
        relax.lrp(named, {"concept": rules.Mask(mask)})(p, x)
    with pytest.raises(relax.RuleError, match=r"\(5,\).*\(2, 4\)"):
        relax.lrp(named, {"concepts": rules.Mask(jnp.ones(5))})(p, x)
    with pytest.raises(relax.RuleError, match="no scan"):
        relax.lrp(named, {"concepts": rules.Mask(rules.PerRound(mask))})(p, x)
    with pytest.raises(relax.RuleError, match=r"\(3,\).*scans of \(4,\)"):
        relax.lrp(scanned, rules.Gamma(rules.PerRound(jnp.ones(3))))(w, x)
    with pytest.raises(relax.RuleError, match="expected an array"):
        rules.Mask(lambda z: z)
    with pytest.raises(relax.HyperparameterError, match="at least 0"):
        rules.Gamma(rules.PerRound(-jnp.ones(3)))
