"""Transformed functions of Haiku as JAX functions, against ``apply`` and against bare JAX."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("haiku", reason="extra `haiku` not installed")

import haiku as hk
from adapter_network import EPS, bare, explained, is_a_jax_function, sample, weights

import relax
from relax import rules
from relax.adapters.haiku import to_jax


def net(x, is_training):
    x = hk.Conv2D(4, 3, name="conv")(x)
    x = hk.BatchNorm(True, True, 0.9, eps=EPS, name="norm")(x, is_training)
    x = jax.nn.relu(x).mean((1, 2))
    x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
    return hk.Linear(3, name="head")(jax.nn.relu(hk.Linear(5, name="hidden")(x)))


def variables(seed=0):
    """The weights under Haiku's names; averages as in the state of its BatchNorm."""
    w = weights(seed)
    params = {
        name: {"w": jnp.asarray(w[name]["kernel"]), "b": jnp.asarray(w[name]["bias"])}
        for name in ("conv", "hidden", "head")
    }
    wide = {k: jnp.asarray(v).reshape(1, 1, 1, -1) for k, v in w["norm"].items()}
    params["norm"] = {"scale": wide["scale"], "offset": wide["bias"]}
    state = {
        f"norm/~/{name}_ema": {
            "counter": jnp.array(1 + seed, jnp.int32),
            "hidden": wide[name],
            "average": wide[name],
        }
        for name in ("mean", "var")
    }
    return params, state


@pytest.fixture(scope="module")
def transformed():
    return hk.transform_with_state(net)


@pytest.mark.parametrize("without_rng", [False, True])
def test_it_infers_and_explains_as_bare_jax(without_rng, transformed):
    """Value of ``apply``, relevance of the bare network; with rng and without."""
    given = hk.without_apply_rng(transformed) if without_rng else transformed
    x = jnp.asarray(sample())
    f, params = to_jax(given, *variables(), is_training=False)
    value, relevance = explained(f, params, x)
    want, want_relevance = explained(bare, weights(), x)
    np.testing.assert_allclose(value, want, rtol=1e-10)
    np.testing.assert_allclose(relevance, want_relevance, rtol=1e-8, atol=1e-10)
    applied, _ = transformed.apply(*variables(), None, x, False)
    np.testing.assert_array_equal(f(params, x), applied)


def test_layers_are_named_as_haiku_names_them(transformed):
    """And rules find them by name."""
    f, params = to_jax(transformed, *variables(), is_training=False)
    rows = list(relax.layers(f, {"hidden": rules.ZPlus()})(params, sample()))
    dense = [row for row in rows if row.kind in ("conv", "dense")]
    assert [row.path for row in dense] == ["conv", "hidden", "head"]
    assert [row.weight_path for row in dense] == [
        "params/conv/w",
        "params/hidden/w",
        "params/head/w",
    ]
    assert [row.path for row in rows if isinstance(row.rule, rules.ZPlus)] == ["hidden"]


def test_it_is_a_jax_function(transformed):
    """Of params and averages; the counters are integers, and not differentiated."""
    f, params = to_jax(transformed, *variables(), is_training=False)
    _, other = to_jax(transformed, *variables(1), is_training=False)
    floats = lambda tree: {
        "params": tree["params"],
        "state": {
            module: {k: a for k, a in parts.items() if k != "counter"}
            for module, parts in tree["state"].items()
        },
    }
    counters = {module: parts["counter"] for module, parts in params["state"].items()}

    def g(params, x):
        state = {
            module: {**parts, "counter": counters[module]}
            for module, parts in params["state"].items()
        }
        return f({"params": params["params"], "state": state}, x)

    is_a_jax_function(g, floats(params), jnp.asarray(sample()), floats(other))


def test_without_state_params_are_as_given(rng):
    """The names of Haiku's modules, and LRP-0 of a linear map by hand."""
    plain = hk.transform(
        lambda x: hk.Sequential([hk.Linear(3, name="a"), hk.Linear(2, name="b")])(x)
    )
    x = jnp.asarray(rng.normal(size=(5, 4)))
    given = plain.init(jax.random.key(0), x)
    f, params = to_jax(plain, given)
    assert jax.tree.structure(params) == jax.tree.structure(given)
    np.testing.assert_array_equal(f(params, x), plain.apply(given, None, x))
    slope = params["a"]["w"] @ params["b"]["w"][:, 1]
    relevance = relax.lrp(f, rules.Epsilon(0.0), target=1)(params, x)
    np.testing.assert_allclose(relevance, x * np.broadcast_to(slope, x.shape), rtol=1e-5)
    given["a"]["w"] = given["a"]["w"] * 0  # dicts of Haiku may be changed in place
    assert params["a"]["w"].any()


def test_random_numbers_are_the_same_at_every_call(transformed):
    """Of one key; keyword arguments of a call go first."""
    x, key = jnp.asarray(sample()), jax.random.key(0)
    f, params = to_jax(transformed, *variables(), rng=key, is_training=True)
    value = f(params, x)
    np.testing.assert_array_equal(value, f(params, x))
    np.testing.assert_array_equal(value, transformed.apply(*variables(), key, x, True)[0])
    still, _ = transformed.apply(*variables(), key, x, False)
    np.testing.assert_array_equal(f(params, x, is_training=False), still)
    assert not np.allclose(value, still, rtol=0.1)
    relevance = relax.lrp(f, target=1)(params, x, is_training=False)
    want = relax.lrp(bare, target=1)(weights(), x)
    np.testing.assert_allclose(relevance, want, rtol=1e-7, atol=1e-9)
    no_key, _ = to_jax(transformed, *variables(), is_training=True)
    with pytest.raises(ValueError, match="PRNGKey"):
        no_key(params, x)


def test_recurrent_nets_and_ids(rng):
    """An LSTM unrolled by a scan over embedded ids: the relevance of each id."""

    def words(ids):
        core = hk.LSTM(4, name="core")
        x = hk.Embed(9, 3, name="embed")(ids)
        out, _ = hk.dynamic_unroll(core, x, core.initial_state(len(ids)), time_major=False)
        return hk.Linear(2, name="head")(out[:, -1])

    plain = hk.without_apply_rng(hk.transform(words))
    ids = jnp.asarray(rng.integers(0, 9, (2, 5)))
    f, params = to_jax(plain, plain.init(jax.random.key(0), ids))
    np.testing.assert_array_equal(f(params, ids), plain.apply(params, ids))
    relevance = jax.jit(relax.lrp(f, target=1))(params, ids)
    assert relevance.shape == ids.shape
    assert (jnp.abs(relevance) > 0).any()


def test_a_compiled_apply_is_as_good(transformed):
    """The signature tells whether it takes rng."""
    x = jnp.asarray(sample())
    compiled = jax.jit(transformed.apply, static_argnames="is_training")
    f, params = to_jax(
        hk.TransformedWithState(transformed.init, compiled), *variables(), is_training=False
    )
    np.testing.assert_allclose(f(params, x), bare(weights(), x), rtol=1e-10)


def test_errors(transformed):
    """What is wrong, and what to do."""
    params, state = variables()
    plain = hk.transform(lambda x: hk.Linear(2)(x))
    x = jnp.ones((2, 3))

    def two():
        linear = hk.Linear(3)
        return linear, {"once": linear, "double": lambda x: 2 * linear(x)}

    several = hk.multi_transform(two)
    f, _ = to_jax(transformed, params, state, is_training=False)
    for call, words in (
        (lambda: to_jax(jnp.sin, params), r"no transformed function.\n.*hk.transform"),
        (lambda: to_jax(several, params), r"MultiTransformed .*\n.*hk.Transformed\(net.init"),
        (lambda: to_jax(transformed, params), r"the function has state.*\n.*net.init\(key, x\)"),
        (lambda: to_jax(plain, params, state), "the function has none"),
        (
            lambda: to_jax(hk.without_apply_rng(plain), params, rng=jax.random.key(0)),
            "without_apply_rng took it away",
        ),
        (lambda: f(params, x), r'\{"params": ..., "state": ...\}'),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()
    chosen = hk.Transformed(several.init, several.apply["double"])  # the remedy of the error
    given = several.init(jax.random.key(0), x)
    f, held = to_jax(chosen, given)
    np.testing.assert_allclose(f(held, x), 2 * several.apply["once"](given, None, x), rtol=1e-12)


def test_without_haiku_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "haiku", None)
    with pytest.raises(ImportError, match=r"relax-lrp\[haiku\]"):
        to_jax(None, {})
