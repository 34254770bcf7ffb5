"""Keras models as JAX functions, against the models themselves and against bare JAX."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("keras", reason="extra `keras` not installed")

import keras
from adapter_network import EPS, bare, explained, is_a_jax_function, sample, weights

import relax
from relax import rules
from relax.adapters.keras import to_jax

layers = keras.layers
SINGLE = {"rtol": 1e-4, "atol": 1e-5}


def net(seed=0, ending=None):
    w = weights(seed)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, padding="same", name="conv"),
            layers.BatchNormalization(epsilon=EPS, name="norm"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(5, activation="relu", activity_regularizer="l2", name="hidden"),
            layers.Dense(3, activation=ending, name="head"),
        ],
        name="net",
    )
    for name, p in w.items():
        order = ("scale", "bias", "mean", "var") if name == "norm" else ("kernel", "bias")
        model.get_layer(name).set_weights([p[k] for k in order])
    return model


@pytest.fixture(autouse=True)
def _keras_promotes_ranks():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def model():
    """Not to be changed."""
    return net()


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(sample(), jnp.float32)


def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


def test_it_infers_and_explains_as_bare_jax(model, x):
    """Value of the model, relevance of the bare network, to rounding in float32."""
    f, params = to_jax(model)
    value, relevance = explained(f, params, x)
    want, want_relevance = explained(bare, weights(), sample())
    np.testing.assert_allclose(value, want, **SINGLE)
    np.testing.assert_allclose(relevance, want_relevance, **SINGLE)
    close(f(params, x), model(x, training=False))
    close(f(params, x), model.predict(np.asarray(x), verbose=0))


def test_params_and_layers_have_the_names_of_keras(model, x):
    """Statistics too; the state of Dropout's seed is no weight."""
    f, params = to_jax(model)
    assert set(params) == {
        *(
            f"net/{name}/{part}"
            for name in ("conv", "hidden", "head")
            for part in ("kernel", "bias")
        ),
        *(f"net/norm/{part}" for part in ("gamma", "beta", "moving_mean", "moving_variance")),
    }
    rows = list(relax.layers(f, {"hidden": rules.ZPlus()})(params, x))
    dense = [row for row in rows if row.kind in ("conv", "dense")]
    assert [row.path for row in dense] == ["net/conv", "net/hidden", "net/head"]
    assert [row.weight_path for row in dense] == [f"{row.path}/kernel" for row in dense]
    found = [row.path for row in rows if isinstance(row.rule, rules.ZPlus)]
    assert found == ["net/hidden"]
    with pytest.raises(relax.UnmatchedSelectorError, match="net/hidden"):
        relax.layers(f, {"hiden": rules.ZPlus()})(params, x)


def test_it_is_a_jax_function(model, x):
    (f, params), (_, other) = to_jax(model), to_jax(net(1))
    is_a_jax_function(f, params, x, other, rtol=1e-4)


def test_the_model_is_not_changed(x):
    """Neither its weights, nor its statistics, nor its seeds, also when it is told to train."""
    model = net()
    before = [np.array(v.value) for v in model.variables]
    losses = len(model.losses)
    for training in (False, True):
        f, params = to_jax(model, training=training)
        held = {name: np.array(a) for name, a in params.items()}
        np.testing.assert_array_equal(f(params, x), f(params, x))
        relax.lrp(f)(params, x)
        jax.tree.map(np.testing.assert_array_equal, params, held)
    assert len(model.losses) == losses
    for v, was in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v.value, was)


def test_training_uses_statistics_of_the_batch(model, x):
    """As the model told so, but for the mask of Dropout."""
    whole = keras.Sequential([keras.Input((6, 6, 2)), *model.layers[:4]])
    f, params = to_jax(whole, training=True)
    y = np.asarray(x, np.float64)
    y = np.asarray(bare_features(weights(), y))
    np.testing.assert_allclose(f(params, x), y, **SINGLE)
    g, params = to_jax(model, training=True)
    still, _ = to_jax(model)
    assert not np.allclose(g(params, x), still(params, x), rtol=0.1)


def bare_features(w, x):
    """In front of Dropout, with mean and variance of the batch."""
    y = jax.lax.conv_general_dilated(
        x, w["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    along = lambda a: np.broadcast_to(a, y.shape)
    y = np.asarray(y) + along(w["conv"]["bias"])
    y = (y - along(y.mean((0, 1, 2)))) / np.sqrt(along(y.var((0, 1, 2))) + EPS)
    y = y * along(w["norm"]["scale"]) + along(w["norm"]["bias"])
    return np.maximum(y, 0).mean((1, 2))


def test_a_model_that_trains_on(x):
    """fit() gives the buffers of the weights away; ours are copies. New weights are read."""
    model = net()
    f, params = to_jax(model)
    before = np.array(f(params, x))
    model.compile("sgd", "mse", jit_compile=True)
    model.fit(np.asarray(x), np.ones((4, 3)), epochs=1, verbose=0)
    np.testing.assert_array_equal(f(params, x), before)
    _, trained = to_jax(model)
    close(f(trained, x), model(x, training=False))
    assert not np.allclose(f(trained, x), before, rtol=1e-3)


@pytest.mark.parametrize("output", ["logits", "logit"])
def test_a_softmax_at_the_end(x, output):
    """output="logits" is what goes into it; the probability is warned of."""
    model = net(ending="softmax")
    f, params = to_jax(model)
    g, _ = to_jax(model, output=output)
    np.testing.assert_allclose(g(params, x), bare(weights(), sample()), **SINGLE)
    np.testing.assert_allclose(f(params, x), jax.nn.softmax(g(params, x)), rtol=1e-5)
    want = relax.lrp(bare, target=1)(weights(), sample())
    np.testing.assert_allclose(relax.lrp(g, target=1)(params, x), want, **SINGLE)
    with pytest.warns(relax.RelaxWarning, match="probability"):
        relax.lrp(f, target=1)(params, x)
    plain, params = to_jax(net(), output=output)
    with pytest.raises(relax.ArgumentError, match="no softmax"):
        plain(params, x)


def test_several_inputs_and_outputs(rng):
    """As a list and as a dict, with ids among them."""
    a, ids = keras.Input((3,), name="a"), keras.Input((4,), dtype="int32", name="ids")
    words = layers.GlobalAveragePooling1D()(layers.Embedding(9, 5, name="embed")(ids))
    h = layers.Concatenate()([layers.Dense(5, name="dense")(a), words])
    outputs = {"one": layers.Dense(2, name="one")(h), "two": layers.Dense(3, name="two")(h)}
    given = {
        "a": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
        "ids": jnp.asarray(rng.integers(0, 9, (2, 4)), jnp.int32),
    }
    for inputs, x in (({"a": a, "ids": ids}, given), ([a, ids], [given["a"], given["ids"]])):
        model = keras.Model(inputs, outputs)
        f, params = to_jax(model)
        close(f(params, x), model(x))
        two = lambda params, x, f=f: f(params, x)["two"]
        relevance = jax.jit(relax.lrp(two, rules.Epsilon(0.0), target=1))(params, x)
        assert jax.tree.structure(relevance) == jax.tree.structure(x)
        shares = jax.tree.leaves(relevance)
        assert [r.shape for r in shares] == [(2, 3), (2, 4)]
        total = sum(np.asarray(r).sum(1) for r in shares)  # all biases are zero
        np.testing.assert_allclose(total, f(params, x)["two"][:, 1], rtol=1e-4, atol=1e-5)


def test_a_layer_and_models_of_your_own(rng):
    """Several positional inputs; names that are there twice; nested models; a mask."""

    class Mine(keras.Model):
        def __init__(self):
            super().__init__(name="mine")
            self.first, self.second = (layers.Dense(3, name="same") for _ in range(2))
            self.inner = keras.Sequential([layers.Dense(2, name="deep")], name="inner")

        def call(self, a, b, training=False):
            return self.inner(self.first(a) * 2 + self.second(b))

    model = Mine()
    a, b = (jnp.asarray(rng.normal(size=(2, 4)), jnp.float32) for _ in range(2))
    with pytest.raises(relax.ArgumentError, match=r"`mine` is not built.*\n.*model\(x\)"):
        to_jax(model)
    want = model(a, b)
    f, params = to_jax(model)
    close(f(params, a, b), want)
    assert {"mine/same/kernel", "mine/same#1/kernel", "mine/inner/deep/bias"} <= set(params)
    rows = [row for row in relax.layers(f)(params, a, b) if row.kind == "dense"]
    assert [row.weight_path for row in rows if "#1" in row.weight_path] == ["mine/same#1/kernel"]
    assert "mine/inner/deep" in [row.path for row in rows]
    dense = layers.Dense(2, name="alone")
    dense.build((None, 4))
    f, params = to_jax(dense)
    close(f(params, a), dense(a))
    lstm = layers.LSTM(3, name="lstm")
    x = jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32)
    mask = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])
    want = lstm(x, mask=mask)
    f, params = to_jax(lstm)
    close(f(params, x, mask=mask), want)
    relevance = jax.jit(relax.lrp(f))(params, x, mask=mask)
    assert not np.asarray(relevance)[1, 3:].any()
    assert np.abs(relevance[0]).min() > 0


@pytest.mark.slow
def test_ids_with_a_mask_of_their_own(rng):
    """Embedding(mask_zero=True) in front of a recurrent layer: padding has no relevance."""
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True, name="embed"),
            layers.GRU(3, name="gru"),
            layers.Dense(2, name="head"),
        ]
    )
    ids = jnp.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    f, params = to_jax(model)
    close(f(params, ids), model(ids))
    relevance = relax.lrp(f, target=1)(params, ids)
    assert not np.asarray(relevance)[0, 3:].any()
    assert np.abs(relevance[1]).min() > 0


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_mixed_precision(policy, rng):
    """The casts of the policy are those of the model; params stay wide."""
    mine = keras.dtype_policies.DTypePolicy(policy)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu", dtype=mine)])
    alone = layers.Dense(3, dtype=mine)
    alone.build((None, 4))
    x = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    for each in (model, alone):  # of a layer alone, stateless_call would cast nothing
        f, params = to_jax(each)
        value = f(params, x)
        assert value.dtype == policy.removeprefix("mixed_")
        np.testing.assert_array_equal(value, each(x))
        assert {a.dtype.name for a in params.values()} == {"float32"}
        assert relax.lrp(f)(params, x).dtype == jnp.float32


def test_errors(model, x):
    """What is wrong, and what to do."""
    f, params = to_jax(model)
    fewer = {name: a for name, a in params.items() if name != "net/head/bias"}
    more = params | {"net/head/bais": params["net/head/bias"]}
    other = params | {"net/head/bias": jnp.zeros(4)}
    counts = params | {"net/head/bias": jnp.zeros(3, jnp.int32)}
    nothing = params | {"net/head/bias": None}
    for call, words in (
        (lambda: to_jax(keras.Sequential([layers.Dense(2)])), r"is not built.*\n.*keras.Input"),
        (lambda: to_jax(layers.Dense(2)), "Dense `dense.*` is not built"),
        (lambda: to_jax(jnp.sin), r"is no keras.Model or keras.Layer.\n.*f\(params, x\)"),
        (lambda: to_jax(model, output="probability"), 'expected "value" or "logits"'),
        (lambda: f(list(params.values()), x), "params is a list; expected the dict"),
        (lambda: f(fewer, x), r"params lacks `net/head/bias`.\n  It has .*net/head/kernel"),
        (lambda: f(more, x), r"`net/head/bais`, which is no weight.*\n.*net/head/bias"),
        (lambda: f(other, x), r"'net/head/bias'\] has shape \(4,\); the model has \(3,\)"),
        (lambda: f(counts, x), r"'net/head/bias'\] is of int32; the model has float32"),
        (lambda: f(nothing, x), r"'net/head/bias'\] is a NoneType; expected an array .*\(3,\)"),
        (lambda: f({}, x), r"params lacks `.*`.\n  It has nothing\."),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()


def test_layers_that_are_built_late():
    """A model that says it is built, and makes a weight when it is called."""

    class Late(keras.Model):
        def __init__(self):
            super().__init__(name="late")
            self.dense = layers.Dense(2)

        def build(self, shape):
            self.built = True

        def call(self, x):
            return self.dense(x)

    late = Late()
    late.build((None, 3))
    f, params = to_jax(late)
    with pytest.raises(relax.ArgumentError, match=r"Late `late` is not built"):
        f(params, jnp.ones((2, 3), jnp.float32))


def test_another_backend(monkeypatch):
    """What to set, and how a model gets here."""
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(relax.ArgumentError, match=r"(?s)Keras runs on torch.*KERAS_BACKEND=jax"):
        to_jax(net)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "words"), [("numpy", "runs on numpy"), ("torch", "torch")])
def test_another_backend_for_real(backend, words):
    """On numpy, and on one that may not be installed."""
    code = (
        "import relax\n"
        "from relax.adapters.keras import to_jax\n"
        "try: to_jax(None)\n"
        "except (ImportError, relax.ArgumentError) as error: found = str(error)\n"
        f"raise SystemExit({words!r} not in found or 'KERAS_BACKEND=jax' not in found)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"KERAS_BACKEND": backend}
    )


def test_without_keras_the_error_names_the_extra(monkeypatch):
    with monkeypatch.context() as here:
        here.setitem(sys.modules, "keras", None)
        with pytest.raises(ImportError, match=r"relax-lrp\[keras\]"):
            to_jax(None)

    class NoBackend:
        def find_spec(self, name, *_):
            if name == "keras":
                raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr(sys, "meta_path", [NoBackend(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"wants tensorflow.*\n.*KERAS_BACKEND=jax"):
        to_jax(None)
