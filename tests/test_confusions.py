"""Programs that look like something else, and others that do not look like what they are.

Each is compared with the same function written another way, or with its formula.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import relax
from relax import composites, rules

# Small functions that end in a sigmoid or a softmax are explained as they are.
pytestmark = pytest.mark.filterwarnings("ignore:What is explained is a probability")

ATTN, CP = composites.attnlrp(), composites.cp_lrp()
_random = np.random.default_rng(4)
X = _random.normal(size=(6, 8))
W, W2 = (_random.normal(size=(8, 8)) / 3 for _ in range(2))
H = np.array([[1.0, 2.0, -3.0]])


def close(got, expected, rtol=1e-9, atol=1e-11):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


def attend_and_more(x):
    """A softmax whose maximum and sum are returned as well, as a flash attention does."""
    h = x @ W
    m = lax.stop_gradient(h.max(-1, keepdims=True))
    e = jnp.exp(h - m)
    s = e.sum(-1, keepdims=True)
    return (e / s) @ W2, (jnp.log(s) + m, e)


def norm_and_more(x):
    v = jnp.mean(x * x, -1, keepdims=True)
    return (x * lax.rsqrt(v + 1e-6)) @ W, jnp.log(v) + 1


def merged_and_more(x):
    h = x @ W
    return jax.nn.relu(h * W2[:1] + W2[1:2]), h * 2


@pytest.mark.parametrize(
    "rule", [ATTN, CP, rules.ZPlus(), rules.Flat()], ids=["attn", "cp", "zplus", "flat"]
)
@pytest.mark.parametrize("function", [attend_and_more, norm_and_more, merged_and_more])
def test_what_is_not_explained_changes_nothing(function, rule):
    """Auxiliary outputs and unused lines are no readers."""
    alone = relax.lrp(lambda x: function(x)[0], rule, target=0)(X)
    relevance, aux = jax.jit(relax.lrp(function, rule, target=0, has_aux=True))(X)
    close(relevance, alone)
    jax.tree.map(close, aux, function(X)[1])
    (value, aux), relevance = relax.value_and_lrp(function, rule, target=0, has_aux=True)(X)
    close(relevance, alone)
    close(value, function(X)[0])


def test_unused_lines_under_rules_that_replay_a_layer():
    def function(x):
        v = x.var(-1, keepdims=True)
        _ = jnp.log(v) + 1
        return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(v + 1e-6)

    for rule in (rules.Identity(), rules.LayerNormRule(), rules.Epsilon()):
        assert np.isfinite(relax.lrp(function, [("*", rule)])(X)).all()


SAME = {  # pairs of writings of one function
    "sigmoid shares, computed twice": (
        lambda x: jax.nn.sigmoid(x) / jax.nn.sigmoid(x).sum(-1, keepdims=True),
        lambda x: (lambda s: s / s.sum(-1, keepdims=True))(jax.nn.sigmoid(x)),
    ),
    "reciprocal of a second exp": (
        lambda x: jnp.exp(x) * (1 / jnp.exp(x).sum(-1, keepdims=True)),
        jax.nn.softmax,
    ),
    "by the mean": (
        lambda x: jnp.exp(x) / jnp.exp(x).mean(-1, keepdims=True) / x.shape[-1],
        jax.nn.softmax,
    ),
    "a power": (
        lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.power(np.e, x)),
        jax.nn.softmax,
    ),
    "a times 1 / b": (
        lambda x: (x @ W) * (1 / (jnp.abs(x) @ W2**2)),
        lambda x: (x @ W) / (jnp.abs(x) @ W2**2),
    ),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("rule", [ATTN, CP], ids=["attn", "cp"])
def test_two_writings_of_one_function(name, rule):
    one, other = SAME[name]
    for x in (X,) if "1 / b" in name else (H, X):
        close(relax.lrp(one, rule, target=0)(x), relax.lrp(other, rule, target=0)(x))


def test_what_is_multiplied_is_no_part_of_a_softmax():
    """SoftPool: exp(x) x is a product; the sum that divides takes nothing."""
    pool = lambda x: (jnp.exp(x) * x).sum(-1) / jnp.exp(x).sum(-1)
    assert "softmax" not in [row.kind for row in relax.layers(pool)(H)]
    assert np.abs(relax.lrp(pool, ATTN)(H)).max() > 1e-3


def test_a_softmax_over_one_entry():
    """A single key: all its weight, and nothing in the logit."""
    one = lambda x: jax.nn.softmax(x[:, :1] @ W[:1, :1]) * x[:, :1]
    assert [row.kind for row in relax.layers(one)(X)].count("softmax") == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.tanh(x) / jnp.linalg.norm(x),
        lambda x: jax.nn.gelu(x) * lax.rsqrt((x * x).mean(-1, keepdims=True)),
        lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x)) / jnp.linalg.norm(jnp.sqrt(jnp.abs(x))),
    ],
)
def test_an_activation_in_front_of_a_norm_passes_relevance(function):
    """The statistic takes nothing, the activation passes all: R is the value, one by one."""
    close(relax.lrp(function, ATTN)(H), function(H), rtol=1e-6)


@pytest.mark.parametrize(
    "pooled",
    [
        lambda x: nn.gelu((x @ W).mean(0)),
        lambda x: jnp.tanh(x.mean(0)),
        lambda x: jax.nn.relu(x.max(0)),
        lambda x: nn.LayerNorm().apply({"params": {"scale": W[0], "bias": W[1]}}, x.mean(0)),
    ],
)
@pytest.mark.parametrize("norm", [nn.LayerNorm(), nn.RMSNorm()], ids=["layer", "rms"])
def test_a_norm_behind_pooled_and_bent_features(pooled, norm):
    """What went through a reduction and a nonlinearity is a value like any other."""
    params = norm.init(jax.random.key(0), jnp.ones(8))
    function = lambda x: norm.apply(params, pooled(x)) @ W2
    assert "normalization" in [row.kind for row in relax.layers(function)(X)]
    y = pooled(X)
    wide = relax.lrp(lambda y: norm.apply(params, y) @ W2, ATTN)(y[None])[0]
    got = relax.lrp(function, ATTN, at="*")(X)[1]
    before = relax.lrp(pooled, ATTN, target=lambda _: wide)(X)
    close(relax.lrp(function, ATTN)(X), before, rtol=1e-5, atol=1e-7)
    assert got


COSINES = {
    "norms times": lambda a, b, n: (a @ b) * (n(a) * n(b)),
    "one by one": lambda a, b, n: (a @ b) * n(a) * n(b),
    "of sums": lambda a, b, n: (a * b).sum() * n(a) * n(b),
    "joint": lambda a, b, n: (a @ b) * lax.rsqrt((a @ a) * (b @ b)),
}


@pytest.mark.parametrize("name", COSINES)
def test_cosine_similarity_holds_its_norms(name):
    """However the inverse norms are multiplied in; the same as dividing by them."""
    inverse = lambda v: lax.rsqrt((v * v).sum())
    form = COSINES[name]
    got = relax.lrp(lambda x: form(x[0] @ W, x[1] @ W2, inverse), ATTN)(X[:2])
    norm = lambda v: jnp.sqrt((v * v).sum())
    divided = lambda a, b: (a @ b) / (norm(a) * norm(b))
    close(got, relax.lrp(lambda x: divided(x[0] @ W, x[1] @ W2), ATTN)(X[:2]))


def test_attention_weights_multiply_a_signal_in_the_unit_interval():
    """Multiple instances: sum a_i p_i; the probabilities are no gates of the attention."""
    mil = lambda x: jax.nn.softmax(x @ W[:, 0]) @ jax.nn.sigmoid(x @ W[:, 1])
    doubled = lambda x: jax.nn.softmax(x @ W[:, 0]) @ (2 * jax.nn.sigmoid(x @ W[:, 1])) / 2
    for rule in (ATTN, CP):
        close(relax.lrp(mil, rule)(X), relax.lrp(doubled, rule)(X))
    assert np.abs(relax.lrp(mil, CP)(X)).max() > 1e-3


def test_a_classifier_that_ends_in_a_softmax_is_no_attention():
    """Under cp_lrp only the softmax of an attention is constant."""
    classifier = lambda x: jax.nn.softmax(jax.nn.relu(x @ W) @ W2)
    close(relax.lrp(classifier, CP, target=1)(X), relax.lrp(classifier, ATTN, target=1)(X))
    attend = lambda x: jax.nn.softmax((x @ W) @ x.T) @ (x @ W2)
    plan = {row.kind: type(row.rule) for row in relax.layers(attend, CP)(X)}
    assert plan["softmax"] is rules.Constant
