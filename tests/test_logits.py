"""A softmax or sigmoid at the end: what is said of it, and the function in front of it."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import rules

GENERATOR = np.random.default_rng(0)
W = jnp.asarray(GENERATOR.normal(size=(3, 4)))
X = jnp.asarray(GENERATOR.normal(size=(2, 3)))


def dense(w, x):
    return x @ w


ENDINGS = {
    "softmax": (jax.nn.softmax, lambda z: z),
    "softmax of a scale": (lambda z: jax.nn.softmax(2.5 * z), lambda z: 2.5 * z),
    "softmax, written out": (
        lambda z: (
            jnp.exp(z - z.max(-1, keepdims=True))
            / jnp.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)
        ),
        lambda z: z,
    ),
    "log_softmax": (jax.nn.log_softmax, lambda z: z),
    "sigmoid": (jax.nn.sigmoid, lambda z: z),
    "sigmoid of a scale": (lambda z: jax.nn.sigmoid(0.5 * z), lambda z: 0.5 * z),
    "sigmoid, written out": (lambda z: 1 / (1 + jnp.exp(-z)), lambda z: z),
    "one class": (lambda z: jax.nn.softmax(z)[:, 2], lambda z: z[:, 2]),
    "reshaped": (lambda z: jax.nn.sigmoid(z).T.reshape(2, 4), lambda z: z.T.reshape(2, 4)),
    "in half precision": (
        lambda z: jax.nn.softmax(z.astype(jnp.bfloat16)).astype(jnp.float32),
        lambda z: z.astype(jnp.bfloat16).astype(jnp.float32),
    ),
}
OTHERS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "a silu of another scale": lambda z: z * jax.nn.sigmoid(1.7 * z),
    "softplus": jax.nn.softplus,
    "logsumexp": lambda z: jax.nn.logsumexp(z, axis=-1),
    "an average of probabilities": lambda z: jax.nn.softmax(z).mean(0),
    "attention": lambda z: jax.nn.softmax(z @ z.T) @ z,
    "one minus": lambda z: 1 - jax.nn.sigmoid(z),
    "two over": lambda z: 2 / (1 + jnp.exp(-z)),
    "over two plus": lambda z: 1 / (2 + jnp.exp(-z)),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_function_in_front(name):
    """Its value and its relevance are those of the function written without the ending."""
    end, moved = ENDINGS[name]
    whole, plain = (lambda w, x: end(x @ w)), (lambda w, x: moved(x @ w))
    found = relax.logits(whole)(W, X)
    assert found.dtype == plain(W, X).dtype
    np.testing.assert_array_equal(found, plain(W, X))
    for rule in (rules.Epsilon(0.1), rules.ZPlus()):
        explain = lambda f, rule=rule: relax.lrp(f, rule)(W, X)
        np.testing.assert_allclose(explain(relax.logits(whole)), explain(plain), rtol=1e-6)
    jitted = jax.jit(relax.lrp(relax.logits(whole)))(W, X)
    np.testing.assert_allclose(jitted, relax.lrp(plain)(W, X), rtol=1e-6)


@pytest.mark.parametrize("name", ENDINGS)
def test_a_probability_is_warned_of(name):
    end, _ = ENDINGS[name]
    whole = lambda w, x: end(x @ w)
    for transform in (relax.lrp, relax.value_and_lrp):
        with pytest.warns(
            relax.RelaxWarning, match=r"(?s)a probability.*relax\.lrp\(relax\.logits"
        ):
            transform(whole)(W, X)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_probability_is_left_alone(name):
    whole = lambda w, x: OTHERS[name](x @ w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relax.lrp(whole)(W, X)
    with pytest.raises(relax.ArgumentError, match="no softmax, log_softmax or sigmoid"):
        relax.logits(whole)(W, X)


def test_the_warning_points_to_the_callers_line():
    with pytest.warns(relax.RelaxWarning) as caught:
        relax.lrp(lambda w, x: jax.nn.softmax(x @ w))(W, X)
    assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize("end", [jax.nn.softmax, jax.nn.log_softmax])
def test_a_softmax_over_one_entry_is_constant(end):
    """Dense(1) and a softmax: the gradient is zero, and it is said why."""
    f = lambda w, x: end(x @ w)
    w = W[:, :1]
    with pytest.warns(relax.RelaxWarning, match="The output is constant"):
        relevance = relax.lrp(f)(w, X)
    np.testing.assert_array_equal(jax.grad(lambda x: f(w, x).sum())(X), 0)
    np.testing.assert_allclose(relevance, 0, atol=1e-12)
    np.testing.assert_array_equal(relax.logits(f)(w, X), X @ w)


def test_only_the_outputs_that_are_probabilities_change():
    f = lambda w, x: {"p": jax.nn.softmax(x @ w), "z": jnp.tanh(x @ w)}
    found = relax.logits(f)(W, X)
    np.testing.assert_array_equal(found["p"], X @ W)
    np.testing.assert_array_equal(found["z"], jnp.tanh(X @ W))


def test_only_an_output_that_is_explained_is_warned_of():
    """Attention weights beside logits, and a probability beside features."""
    both = lambda w, x: (jax.nn.softmax(x @ w), x @ w)
    pick = lambda i: lambda value: [v if n == i else jnp.zeros_like(v) for n, v in enumerate(value)]
    for i in (0, 1):
        target = lambda value, i=i: tuple(pick(i)(value))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            relax.lrp(both, target=target)(W, X)
        assert len(caught) == (i == 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            jax.jit(relax.lrp(both, target=target))(W, X)  # not known before it runs


def test_the_auxiliary_output_stays():
    f = lambda w, x: (jax.nn.softmax(x @ w), {"hidden": x.sum(), "note": 3})
    value, aux = relax.logits(f, has_aux=True)(W, X)
    np.testing.assert_array_equal(value, X @ W)
    np.testing.assert_array_equal(aux["hidden"], X.sum())
    assert aux["note"] == 3


class Classifier(nn.Module):
    """A convolution in a loop, a BatchNorm, and a softmax at the end."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        kernel = self.param("loop", nn.initializers.normal(), (4, 4))
        x, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ kernel), None), x, None, length=2)
        return nn.softmax(nn.Dense(5)(x.mean((1, 2))))


def test_a_model_with_a_loop():
    """The parts in front are evaluated as they are, and gradients pass."""
    x = jnp.asarray(GENERATOR.normal(size=(2, 6, 6, 3)))
    model = Classifier()
    params = model.init(jax.random.key(0), x)
    z = relax.logits(model.apply)(params, x)
    np.testing.assert_allclose(jax.nn.softmax(z), model.apply(params, x), rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relevance = relax.lrp(relax.logits(model.apply), target="max")(params, x)
    assert relevance.shape == x.shape
    assert jnp.isfinite(relevance).all()
    paths = [entry.path for entry in relax.layers(relax.logits(model.apply))(params, x)]
    assert "Classifier/Conv_0" in paths, paths
    loss = lambda params: (relax.lrp(relax.logits(model.apply))(params, x) ** 2).sum()
    assert any(jnp.any(g != 0) for g in jax.tree.leaves(jax.grad(loss)(params)))
