"""Perceptrons of scikit-learn as JAX functions, against scikit-learn and against sums by hand."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="extra `sklearn` not installed")

from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)

import relax
from relax import rules, select
from relax.adapters.sklearn import feature_names, to_jax

SAMPLES, FEATURES = 40, 4
# Soon content with itself, so that it stops after a dozen epochs without a warning.
HASTY = {"hidden_layer_sizes": (7, 5), "tol": 1e9, "max_iter": 30, "random_state": 0}
ACTIVATIONS = {
    "identity": lambda z: z,
    "logistic": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
}
KINDS = {
    "one output": (MLPRegressor, lambda y: y[:, 0]),
    "three outputs": (MLPRegressor, lambda y: y),
    "binary": (MLPClassifier, lambda y: np.where(y[:, 0] > 0, "yes", "no")),
    "multiclass": (MLPClassifier, lambda y: y.argmax(1)),
    "multilabel": (MLPClassifier, lambda y: (y > 0).astype(int)),
}


@pytest.fixture
def x(rng):
    """Four features in very different units."""
    return rng.normal(size=(SAMPLES, FEATURES)) * [1.0, 20.0, 0.1, 3.0] + [0.5, 100.0, -0.3, 2.0]


@pytest.fixture
def y(rng):
    return rng.normal(size=(SAMPLES, 3))


@pytest.fixture
def standard(x):
    return (x - x.mean(0)) / x.std(0)


def values(mlp, x):
    """What stands in front of each layer and behind each kernel, by hand."""
    h, found = x, []
    for number, (kernel, bias) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True)):
        z = h @ kernel + bias
        found.append((h, z))
        h = ACTIVATIONS[mlp.activation](z) if number < len(mlp.coefs_) - 1 else z
    return found


def lrp_0(mlp, x, relevance, linear=None):
    """LRP-0, one sample and one layer at a time; activations pass it.

    ``linear``: what x is without the offset of a scaler, which keeps its own share.
    """
    rows = []
    for number, (sample, r) in enumerate(zip(x, relevance, strict=True)):
        found = values(mlp, sample)
        if linear is not None:
            found[0] = linear[number], found[0][1]
        for (h, z), kernel in zip(found[::-1], mlp.coefs_[::-1], strict=True):
            shares = np.zeros(len(h))
            for i in range(len(h)):
                for j in range(len(z)):
                    if z[j] != 0:
                        shares[i] += h[i] * kernel[i, j] * r[j] / z[j]
            r = shares
        rows.append(r)
    return np.array(rows)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_predicts_and_explains_as_by_hand(kind, activation, standard, y):
    """The value, the probabilities, and LRP-0 in loops; one sample is as in a batch."""
    make, target = KINDS[kind]
    mlp = make(activation=activation, **HASTY).fit(standard, target(y))
    f, params = to_jax(mlp)
    z = values(mlp, standard)[-1][1]
    value = f(params, standard)
    np.testing.assert_allclose(value, z, rtol=1e-11, atol=1e-13)
    assert value.dtype == np.float64
    if make is MLPRegressor:
        np.testing.assert_allclose(np.squeeze(value), mlp.predict(standard), rtol=1e-11, atol=1e-13)
    else:
        of_two = kind == "binary"
        index = (np.asarray(value) > 0).astype(int) if of_two else np.asarray(value).argmax(1)
        if kind != "multilabel":
            np.testing.assert_array_equal(mlp.classes_[index.reshape(-1)], mlp.predict(standard))
        p = to_jax(mlp, output="probability")[0](params, standard)
        np.testing.assert_allclose(p, mlp.predict_proba(standard), rtol=1e-11, atol=1e-13)
    explain = relax.lrp(f, rules.Epsilon(0.0))
    relevance = explain(params, standard)
    np.testing.assert_allclose(relevance, lrp_0(mlp, standard, z), rtol=1e-7, atol=1e-9)
    for number in (0, 3):
        np.testing.assert_allclose(f(params, standard[number]), value[number], rtol=1e-11)
        np.testing.assert_allclose(
            explain(params, standard[number]), relevance[number], rtol=1e-7, atol=1e-9
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_relevance_is_conserved(activation, standard, y):
    """Without biases it sums to the output; with them the ledger tells where the rest is."""
    mlp = MLPRegressor(activation=activation, **HASTY).fit(standard, y)
    f, params = to_jax(mlp)
    bare = {name: layer | {"bias": 0 * layer["bias"]} for name, layer in params.items()}
    relevance = relax.lrp(f, rules.Epsilon(0.0), target=1)(bare, standard)
    np.testing.assert_allclose(relevance.sum(1), f(bare, standard)[:, 1], rtol=1e-8, atol=1e-10)
    relevance, account = relax.ledger(f, rules.Epsilon(0.0), target=1)(params, standard)
    kept = account.by_cause()
    bias = kept.pop("bias")
    assert abs(bias) > 1e-3
    np.testing.assert_allclose(list(kept.values()), 0, atol=1e-8)
    explained = f(params, standard)[:, 1].sum()
    np.testing.assert_allclose(relevance.sum() + bias, explained, rtol=1e-8)


@pytest.mark.parametrize("output", ["logits", "logit"])
def test_both_spellings_of_logits(output, standard, y):
    """They are the default of a classifier."""
    mlp = MLPClassifier(**HASTY).fit(standard, y.argmax(1))
    (f, params), (default, _) = to_jax(mlp, output=output), to_jax(mlp)
    np.testing.assert_array_equal(f(params, standard), default(params, standard))


def test_of_two_classes_there_is_one_logit(standard, y):
    """It is the log of the odds of the second class."""
    mlp = MLPClassifier(**HASTY).fit(standard, np.where(y[:, 0] > 0, "yes", "no"))
    f, params = to_jax(mlp)
    no, yes = mlp.predict_proba(standard).T
    logit = f(params, standard)
    assert logit.shape == (SAMPLES, 1)
    np.testing.assert_allclose(logit[:, 0], np.log(yes / no), rtol=1e-10)
    chosen = relax.lrp(f, target=0)(params, standard)
    np.testing.assert_array_equal(chosen, relax.lrp(f)(params, standard))
    with pytest.raises(relax.TargetError, match="out of range"):
        relax.lrp(f, target=1)(params, standard)


def test_poisson(standard, y):
    """Predicts the exponential; its logarithm can be explained."""
    if "loss" not in MLPRegressor().get_params():
        pytest.skip("this version of scikit-learn has no Poisson loss")
    mlp = MLPRegressor(loss="poisson", **HASTY).fit(standard, np.exp(y[:, 0]))
    f, params = to_jax(mlp)
    log, _ = to_jax(mlp, output="log")
    predicted = mlp.predict(standard)[:, None]
    np.testing.assert_allclose(f(params, standard), predicted, rtol=1e-11)
    np.testing.assert_allclose(log(params, standard), np.log(predicted), rtol=1e-9, atol=1e-12)
    z = values(mlp, standard)[-1][1]
    relevance = relax.lrp(log, rules.Epsilon(0.0))(params, standard)
    np.testing.assert_allclose(relevance, lrp_0(mlp, standard, z), rtol=1e-7, atol=1e-9)


SCALERS = {
    "standard": StandardScaler(),
    "only mean": StandardScaler(with_std=False),
    "only std": StandardScaler(with_mean=False),
    "neither": StandardScaler(with_mean=False, with_std=False),
    "minmax": MinMaxScaler((-1.0, 3.0)),
    "maxabs": MaxAbsScaler(),
    "robust": RobustScaler(),
    "no center": RobustScaler(with_centering=False),
    "no scale": RobustScaler(with_scaling=False),
    "two": make_pipeline(RobustScaler(), "passthrough", MinMaxScaler()),
    "none": None,
}


@pytest.mark.parametrize("scaler", SCALERS)
def test_scalers_are_part_of_the_function(scaler, x, y):
    """As predicted by the pipeline; relevance against the perceptron alone, on scaled features."""
    pipeline = make_pipeline(SCALERS[scaler], MLPRegressor(activation="tanh", **HASTY)).fit(x, y)
    f, params = to_jax(pipeline)
    z = pipeline.predict(x)
    np.testing.assert_allclose(f(params, x), z, rtol=1e-9, atol=1e-11)
    scale = (lambda x: x) if scaler == "none" else pipeline[:-1].transform
    offset = scale(np.zeros((1, FEATURES)))
    alone = lrp_0(pipeline[-1], scale(x), z)
    relevance = relax.lrp(f, rules.Epsilon(0.0))(params, x)
    want = lrp_0(pipeline[-1], scale(x), z, linear=scale(x) - offset)
    np.testing.assert_allclose(relevance, want, rtol=1e-6, atol=1e-9)
    if offset.any():  # a scale alone is part of the first layer
        passed = {select.preprocessing: rules.Pass(), select.affine: rules.Epsilon(0.0)}
        relevance = relax.lrp(f, passed)(params, x)
    np.testing.assert_allclose(relevance, alone, rtol=1e-6, atol=1e-9)


def test_units_and_order_of_the_features_do_not_matter(x, y):
    """The same measured in thousandths and in another order has the same relevance."""
    order, units = np.array([2, 0, 3, 1]), np.array([1.0, 1e-3, 1e3, 1e2])
    pipeline = make_pipeline(StandardScaler(), MLPRegressor(**HASTY)).fit(x, y)
    other = make_pipeline(StandardScaler(), MLPRegressor(**HASTY)).fit((x * units)[:, order], y)
    mlp = other[-1]
    mlp.coefs_ = [pipeline[-1].coefs_[0][order], *pipeline[-1].coefs_[1:]]
    mlp.intercepts_ = pipeline[-1].intercepts_
    for mine in (rules.Epsilon(0.0), relax.composites.epsilon_plus()):
        want, got = (
            relax.lrp(f, mine, target=2)(params, data)
            for (f, params), data in (
                (to_jax(pipeline), x),
                (to_jax(other), (x * units)[:, order]),
            )
        )
        np.testing.assert_allclose(got, want[:, order], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler(), RobustScaler(), None])
@pytest.mark.parametrize("inside", [True, False])
def test_a_transformed_target_is_in_its_own_units(scaler, inside, x, y):
    """As predicted; relevance is that of the inner network times the scale."""
    y = y[:, 0] * 1000 + 5000
    mlp = MLPRegressor(activation="tanh", **HASTY)
    if inside:
        model = TransformedTargetRegressor(make_pipeline(StandardScaler(), mlp), transformer=scaler)
    else:
        model = make_pipeline(StandardScaler(), TransformedTargetRegressor(mlp, transformer=scaler))
    model.fit(x, y)
    f, params = to_jax(model)
    np.testing.assert_allclose(f(params, x)[:, 0], model.predict(x), rtol=1e-9)
    inner = model if inside else model[-1]
    only = inner.regressor_ if inside else make_pipeline(model[0], inner.regressor_)
    g, inner_params = to_jax(only)
    ends = inner.transformer_.inverse_transform(np.array([[0.0], [1.0]]))
    scale = float(np.ravel(ends)[1] - np.ravel(ends)[0])
    want = relax.lrp(g, rules.Epsilon(0.0))(inner_params, x)
    got = relax.lrp(f, rules.Epsilon(0.0))(params, x)
    np.testing.assert_allclose(got, np.asarray(want) * scale, rtol=1e-7, atol=1e-7)


def test_layers_are_named(x, y):
    """As in params; the scaler is preprocessing, and the first layer is the perceptron's."""
    model = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), MLPRegressor(**HASTY)), transformer=StandardScaler()
    ).fit(x, y)
    f, params = to_jax(model)
    plan = relax.layers(f, {select.first: rules.Flat(), select.preprocessing: rules.Pass()})
    rows = list(plan(params, x))
    assert [row.path for row in rows] == ["scaler0", "layer0", "relu", "layer1", "relu#1", "layer2"]
    assert [type(row.rule).__name__ for row in rows[:2]] == ["Pass", "Flat"]
    assert {name: set(arrays) for name, arrays in params.items()} == {
        "scaler0": {"center", "scale"},
        **{f"layer{number}": {"kernel", "bias"} for number in range(3)},
        "target": {"center", "scale"},
    }
    by_path = {"layer0/kernel": rules.ZPlus(), "layer[12]": rules.Gamma(0.1)}
    found = [type(row.rule).__name__ for row in relax.layers(f, by_path)(params, x)]
    assert found == ["Linear", "ZPlus", "Pass", "Gamma", "Pass", "Gamma"]


def test_it_is_a_jax_function(standard, y):
    """Under jit, vmap and grad; of whole numbers too."""
    mlp = MLPRegressor(activation="tanh", **HASTY).fit(standard, y)
    f, params = to_jax(mlp)
    explain = relax.lrp(f, target=0)
    want = explain(params, standard)
    np.testing.assert_allclose(jax.jit(explain)(params, standard), want, rtol=1e-9)
    each = jax.vmap(explain, (None, 0))(params, standard)
    np.testing.assert_allclose(each, want, rtol=1e-9)
    slope = jax.grad(lambda p: f(p, standard)[:, 0].sum())(params)
    np.testing.assert_allclose(slope["layer2"]["bias"], [SAMPLES, 0, 0], rtol=1e-12)
    whole = np.arange(4)
    np.testing.assert_allclose(explain(params, whole), explain(params, whole * 1.0), rtol=1e-9)


def test_params_are_copies(standard, y):
    """Training that goes on in place changes nothing."""
    mlp = MLPRegressor(**HASTY).partial_fit(standard, y)
    f, params = to_jax(mlp)
    before, held = np.array(f(params, standard)), mlp.coefs_[0]
    mlp.partial_fit(standard, y)
    assert mlp.coefs_[0] is held
    np.testing.assert_array_equal(f(params, standard), before)
    assert not np.allclose(mlp.predict(standard), before, rtol=1e-6)


def test_dtypes(standard, y):
    """Float32, unless jax holds float64 and scikit-learn does."""
    of = lambda a: {leaf.dtype.name for leaf in jax.tree.leaves(to_jax(a)[1])}
    wide = MLPRegressor(**HASTY).fit(standard, y)
    narrow = MLPRegressor(**HASTY).fit(standard.astype(np.float32), y)
    assert of(wide) == {"float64"}
    assert of(narrow) == {"float32"}
    with jax.enable_x64(False):
        assert of(wide) == {"float32"}
        f, params = to_jax(wide)
        np.testing.assert_allclose(
            f(params, standard), wide.predict(standard), rtol=1e-4, atol=1e-5
        )


def test_names_of_features(x, y):
    """Those of the data frame, through pipelines; otherwise scikit-learn's own."""
    mlp = MLPRegressor(**HASTY)
    pipeline = make_pipeline(StandardScaler(), mlp)
    assert feature_names(pipeline.fit(x, y)) == ["x0", "x1", "x2", "x3"]
    assert feature_names(pipeline) == list(pipeline[0].get_feature_names_out())
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(x, columns=["age", "income", "debt", "children"])
    skipping = make_pipeline(None, "passthrough", mlp)
    for model in (mlp, pipeline, skipping, TransformedTargetRegressor(pipeline)):
        model.fit(frame, y)
        assert feature_names(model) == list(frame)
        f, params = to_jax(model)
        np.testing.assert_allclose(f(params, frame.to_numpy()), model.predict(frame), rtol=1e-9)


def test_errors(x, y):
    """What is wrong, and what to do."""
    mlp, other = MLPRegressor(**HASTY), MLPRegressor(**HASTY)  # a pipeline fits in place
    fitted = MLPRegressor(**HASTY).fit(x, y)
    two_steps = make_pipeline(StandardScaler(), PolynomialFeatures(), other).fit(x, y)
    search = GridSearchCV(mlp, {"alpha": [1.0]}, cv=2).fit(x, y)
    logs = TransformedTargetRegressor(mlp, func=np.log, inverse_func=np.exp)
    logs.fit(x, np.exp(y))
    twice = TransformedTargetRegressor(
        TransformedTargetRegressor(mlp, transformer=StandardScaler()), transformer=StandardScaler()
    ).fit(x, y)
    clipped = make_pipeline(MinMaxScaler(clip=True), MLPRegressor(**HASTY)).fit(x, y)
    f, params = to_jax(fitted)
    for call, words in (
        (lambda: to_jax(mlp), r"MLPRegressor is not fitted.\n.*fit\(x, y\)"),
        (lambda: to_jax(make_pipeline(StandardScaler(), fitted)), "StandardScaler is not fitted"),
        (lambda: to_jax(make_pipeline(StandardScaler(), mlp)), "is not fitted"),
        (lambda: to_jax(TransformedTargetRegressor(mlp)), "is not fitted"),
        (lambda: feature_names(mlp), "is not fitted"),
        (lambda: to_jax(RandomForestRegressor()), "a RandomForestRegressor is no MLP"),
        (lambda: to_jax(search), "a GridSearchCV .*\n.*best_estimator_"),
        (lambda: to_jax(make_pipeline(StandardScaler())), "a StandardScaler is no MLP"),
        (lambda: to_jax(f), "a function is no MLP"),
        (lambda: to_jax(two_steps), r"(?s)`polynomialfeatures`.*Polynomial.*pipeline\[2:\]"),
        (lambda: to_jax(clipped), "MinMaxScaler that clips"),
        (lambda: to_jax(logs), r"a FunctionTransformer; expected .*\n.*regressor_"),
        (lambda: to_jax(twice), "twice"),
        (lambda: to_jax(fitted, output="logits"), 'this MLPRegressor has "prediction"'),
        (lambda: f(params, x[:, :3]), r"shape \(40, 3\); expected \(4,\) or \(samples, 4\)"),
        (lambda: f(params, 1.0), r"shape \(\)"),
        (lambda: relax.lrp(f)(params, [1, 2, 3, 4]), r"holds 1, .*\n +Give numpy\.asarray of it"),
        (lambda: f({}, x), "params lacks `layer0`"),
        (lambda: f(params | {"layer0": None}, x), r"params\['layer0'\] is a NoneType"),
        (lambda: f(params | {"scaler0": {}}, x), "has `scaler0`, which is no weight"),
        (
            lambda: f(params | {"layer0": params["layer1"]}, x),
            r"\['layer0'\]\['bias'\] has shape",
        ),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()
    behind, behind_params = to_jax(two_steps[2:])  # the remedy that the error gives
    transformed = two_steps[:2].transform(x)
    np.testing.assert_allclose(behind(behind_params, transformed), two_steps.predict(x), rtol=1e-9)
    assert to_jax(search.best_estimator_)[1].keys() == params.keys()
    classifier = MLPClassifier(**HASTY).fit(x, y.argmax(1))
    with pytest.raises(relax.ArgumentError, match='"logits" or "probability"'):
        to_jax(classifier, output="prediction")


def test_scikit_learn_is_needed_only_for_its_models(monkeypatch):
    """Importing relax and its adapters does not import it; without it the error names the extra."""
    code = "import sys, relax.adapters.sklearn; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(ImportError, match=r"relax-lrp\[sklearn\]"):
        to_jax(SimpleNamespace())
