"""``at=``: relevance inside the network equals that of the rest of the network, taken alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import relax
from relax import rules, select

# Small functions that end in a sigmoid or a softmax are explained as they are.
pytestmark = pytest.mark.filterwarnings("ignore:What is explained is a probability")

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def params(rng):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / 2)
    return {
        "stem": {"kernel": normal(3, 3, 2, 4)},
        "norm": {"scale": normal(4)},
        "hidden": {"kernel": normal(4, 5)},
        "shared": {"kernel": normal(5, 5)},
        "head": {"kernel": normal(5, 3)},
    }


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(2, 6, 6, 2)))


def stem(p, x):
    with jax.named_scope("stem"):
        x = lax.conv_general_dilated(
            x, p["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    x = x * p["norm"]["scale"][None, None, None]
    with jax.named_scope("rectified"):
        x = jax.nn.relu(x)
    with jax.named_scope("pooled"):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def dense(p, name, x):
    with jax.named_scope(name):
        return x @ p[name]["kernel"]


def neck(p, x):
    with jax.named_scope("averaged"):
        x = x.mean((1, 2))
    return dense(p, "hidden", x)


def tail(p, h):
    h = jnp.tanh(h)
    h = h + dense(p, "shared", h)
    with jax.named_scope("late"):
        h = jax.nn.gelu(dense(p, "shared", h))
    return dense(p, "head", h)


def model(p, x):
    with jax.named_scope("Net"):
        return tail(p, neck(p, stem(p, x)))


LINEAR = {select.affine: rules.Epsilon(0.0)}
PATHS = {
    "stem": (2, 6, 6, 4),
    "rectified/relu": (2, 6, 6, 4),
    "pooled/reduce_window_max": (2, 3, 3, 4),
    "averaged/mean": (2, 4),
    "hidden": (2, 5),
    "head": (2, 3),
}


def test_latent_relevance_has_the_shape_of_the_layers_output(params, x):
    """Keys are full paths, values have the layer's output shape; relevance itself is unchanged."""
    names = list(PATHS)
    relevance, latent = quick(relax.lrp(model, at=names))(params, x)
    assert {path.removeprefix("Net/"): r.shape for path, r in latent.items()} == PATHS
    np.testing.assert_allclose(relevance, relax.lrp(model)(params, x), rtol=1e-12, atol=1e-14)


def test_sums_agree_layer_by_layer_on_a_network_without_bias(params, x):
    """What enters a layer leaves it: every cut through the network carries the output."""
    value, (relevance, latent) = quick(
        relax.value_and_lrp(model, LINEAR, target=1, at=list(PATHS))
    )(params, x)
    samples = lambda r: np.asarray(r).reshape(2, -1).sum(1)
    for path, r in latent.items():
        np.testing.assert_allclose(samples(r), value[:, 1], rtol=1e-9, err_msg=path)
    np.testing.assert_allclose(samples(relevance), value[:, 1], rtol=1e-9)


CHOSEN = [
    (select.first, rules.Flat()),
    ("late/shared", rules.AlphaBeta(2.0, 1.0)),
    (select.affine, rules.Gamma(0.5)),
]


@pytest.mark.parametrize("chosen", [None, CHOSEN], ids=["epsilon", "mixed"])
@pytest.mark.parametrize(
    ("path", "head", "rest"),
    [
        ("pooled/*", stem, lambda p, h: tail(p, neck(p, h))),
        ("hidden", lambda p, x: neck(p, stem(p, x)), tail),
    ],
)
def test_it_equals_the_relevance_of_the_second_half(path, head, rest, chosen, params, x):
    """The network in two functions: relevance of the second one's input."""
    chosen = rules.Epsilon() if chosen is None else chosen
    alone = rules.Epsilon() if chosen == rules.Epsilon() else CHOSEN[1:]
    (_, latent), expected = quick(
        lambda p, x: (
            relax.lrp(model, chosen, target=2, at=path)(p, x),
            relax.lrp(rest, alone, target=2)(p, head(p, x)),
        )
    )(params, x)
    (ours,) = latent.values()
    np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-12)


def test_the_last_layer_has_the_relevance_of_the_target(params, x):
    """At the output it is the value where the target says, zero elsewhere."""
    value, (_, latent) = relax.value_and_lrp(model, target=1, at="head")(params, x)
    np.testing.assert_allclose(latent["Net/head"], value * np.array([[0.0, 1, 0]]), rtol=1e-12)
    seed = jnp.ones((2, 3))
    _, latent = relax.lrp(model, target=lambda z: seed, at="head")(params, x)
    np.testing.assert_allclose(latent["Net/head"], seed, rtol=1e-5)


def test_every_use_of_a_layer_has_a_key_of_its_own(params, x):
    """A glob that matches several layers gives them all; #1 gives one."""
    _, both = relax.lrp(model, at="shared*")(params, x)
    assert list(both) == ["Net/shared", "Net/late/shared"]
    _, one = relax.lrp(model, at="late/shared")(params, x)
    np.testing.assert_array_equal(one["Net/late/shared"], both["Net/late/shared"])
    fun = lambda p, x: dense(p, "shared", jnp.tanh(dense(p, "shared", x)))
    h = jnp.ones((2, 5))
    _, latent = relax.lrp(fun, at="shared")(params, h)
    assert list(latent) == ["shared", "shared#1"]
    _, second = relax.lrp(fun, at="shared#1")(params, h)
    assert list(second) == ["shared#1"]
    np.testing.assert_array_equal(second["shared#1"], latent["shared#1"])


def test_layers_are_addressed_by_weight_path_as_well(params, x):
    """And their key is the layer's path."""
    _, by_weight = relax.lrp(model, at="hidden/kernel")(params, x)
    _, by_path = relax.lrp(model, at="Net/hidden")(params, x)
    assert list(by_weight) == list(by_path) == ["Net/hidden"]
    np.testing.assert_array_equal(by_weight["Net/hidden"], by_path["Net/hidden"])


def test_several_globs_may_overlap(params, x):
    """Each layer appears once."""
    _, latent = relax.lrp(model, at=["Net/hidden", "hidden", "*idden", "head"])(params, x)
    assert list(latent) == ["Net/hidden", "Net/head"]


def test_an_empty_list_is_a_dictionary_without_entries(params, x):
    """The structure of the result depends on `at`, not on what it matches."""
    relevance, latent = relax.lrp(model, at=[])(params, x)
    assert latent == {}
    np.testing.assert_array_equal(relevance, relax.lrp(model)(params, x))


def test_the_merged_batchnorm_belongs_to_the_layer(params, x):
    """The output of a layer is that after its scale: relevance there is that of the ReLU."""
    _, latent = relax.lrp(model, at=["stem", "rectified/relu"])(params, x)
    np.testing.assert_allclose(latent["Net/stem"], latent["Net/rectified/relu"], rtol=1e-12)


def test_relevance_that_travels_as_relevance(params, x):
    """Above a Flat layer in the middle and in front of a sigmoid it is relevance all the same."""

    def squashed(p, x):
        return jax.nn.sigmoid(tail(p, jax.nn.sigmoid(neck(p, stem(p, x)))))

    chosen = {"shared": rules.Flat(0.0), select.affine: rules.Epsilon(0.0)}
    names = ["hidden", "sigmoid", "shared", "head", "pooled/*"]
    value, (_, latent) = relax.value_and_lrp(squashed, chosen, at=names)(params, x)
    # The square behind a residual sum loses nothing; exchanges are stabilized with 1e-6.
    for path, r in latent.items():
        if "shared" in path:
            continue  # one branch of two
        total = np.asarray(r).reshape(2, -1).sum(1)
        np.testing.assert_allclose(total, value.sum(1), rtol=1e-3, err_msg=path)


def test_under_jit_and_vmap(params, x):
    """The dictionary is a pytree: jit returns it, vmap batches every entry."""
    explained = relax.lrp(model, at=["hidden", "pooled/*"], target=0)
    plain = explained(params, x)
    jitted = jax.jit(explained)(params, x)
    single = lambda x: jax.tree.map(lambda r: r[0], explained(params, x[None]))
    batched = jax.vmap(single)(x)
    for other in (jitted, batched):
        assert jax.tree.structure(other) == jax.tree.structure(plain)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), other, plain
        )


def test_concept_relevance_swept_over_channels(params, x):
    """Masking one unit of a hidden layer at a time: what they give at the input adds up."""
    explained = lambda m: relax.lrp(
        model, [("hidden", rules.Mask(m, rules.Epsilon())), (select.affine, rules.Epsilon())]
    )(params, x)
    parts = quick(jax.vmap(explained))(jnp.eye(5))
    np.testing.assert_allclose(parts.sum(0), relax.lrp(model)(params, x), rtol=1e-8, atol=1e-12)


def test_with_aux_several_arguments_and_value(params, x):
    """Where `at` stands in the result of each transform."""
    fun = lambda x, y: (tail(params, neck(params, stem(params, x)) + y), {"aux": y})
    y = jnp.ones((2, 5))
    out = relax.lrp(fun, argnums=(0, 1), at="hidden", has_aux=True)(x, y)
    ((first, second), latent), aux = out
    assert first.shape == x.shape
    assert second.shape == y.shape
    assert list(latent) == ["hidden"]
    assert list(aux) == ["aux"]
    (value, aux), (relevance, latent) = relax.value_and_lrp(fun, at="head", has_aux=True)(x, y)
    assert value.shape == latent["head"].shape == (2, 3)
    assert relevance.shape == y.shape


def test_a_layer_that_does_not_see_the_explained_input_is_a_miss(params, x):
    """Its relevance would always be zero; the message offers what there is."""
    fun = lambda x, y: tail(params, neck(params, stem(params, x)) + y)
    with pytest.raises(relax.UnmatchedSelectorError, match="hidden"):
        relax.lrp(fun, at="hidden")(x, jnp.ones((2, 5)))


@pytest.mark.parametrize("at", ["nowhere", ["head", "nowhere"], "Net", "hidden#1"])
def test_unmatched_raises(at, params, x):
    """One miss among several is an error as well, also under jit."""
    with pytest.raises(relax.UnmatchedSelectorError, match="matches no layer"):
        relax.lrp(model, at=at)(params, x)
    with pytest.raises(relax.UnmatchedSelectorError):
        jax.jit(relax.lrp(model, at=at))(params, x)


def test_latent_relevance_is_differentiable(params, x):
    """A loss on relevance inside the network has the gradient of the second half."""
    loss = lambda p: jnp.sum(relax.lrp(model, at="hidden")(p, x)[1]["Net/hidden"] ** 2)

    def oracle(p):
        return jnp.sum(relax.lrp(tail)(p, neck(p, stem(p, x))) ** 2)

    ours, expected = quick(jax.grad(loss))(params), quick(jax.grad(oracle))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10), ours, expected
    )


def test_values_named_by_checkpoint_name(rng):
    """Relevance at a named value is that of the layer that made it; in a scan one a round."""
    w, v = rng.normal(size=(4, 4)), rng.normal(size=(4, 3))
    x = rng.normal(size=(2, 4))

    def function(x):
        with jax.named_scope("block"):
            h = checkpoint_name(jnp.tanh(x @ w), "hidden")
        return h @ v

    _, at = jax.jit(relax.lrp(function, at=("hidden", "*/tanh")))(x)
    np.testing.assert_array_equal(at["block/hidden"], at["block/tanh"])

    def scanned(x):
        step = lambda x, _: (checkpoint_name(jnp.tanh(x @ w), "state"), None)
        return lax.scan(jax.checkpoint(step), x, None, 3)[0] @ v

    _, at = relax.lrp(scanned, at="state")(x)
    assert at["state"].shape == (3, 2, 4)
    np.testing.assert_allclose(
        at["state"][-1],
        relax.vrp(lambda h: h @ v, scanned_state(w, x))[1](scanned(x))[0],
        rtol=1e-5,
    )
    with pytest.raises(relax.UnmatchedSelectorError, match="'state'"):
        relax.lrp(scanned, at="stat")(x)


def scanned_state(w, x):
    for _ in range(3):
        x = jnp.tanh(x @ w)
    return x
