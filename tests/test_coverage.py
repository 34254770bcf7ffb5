"""The coverage benchmark: what is planted is found, and every model of Keras is enumerated."""

import inspect
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import planted_zoo
import pytest
from isolated_tasks import task

import relax
from benchmarks import coverage, zoos
from benchmarks.__main__ import main
from benchmarks.examined import examine
from benchmarks.isolated import Died, Worker
from benchmarks.zoos import Case, Model
from benchmarks.zoos.parameters import drawn, tokens

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras

    import benchmarks.zoos.keras_applications as applications

KERAS = ("keras.applications", "keras_hub")


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (2, 4))


@pytest.fixture(autouse=True)
def _rank_promotion():
    """Frameworks add biases of lower rank; that is their affair."""
    with jax.numpy_rank_promotion("allow"):
        yield


def linear(params, x):
    return x @ params["w"]


@pytest.fixture
def weight():
    return {"w": jax.random.normal(jax.random.key(2), (4, 3))}


def test_a_sound_model_has_no_faults():
    """Two layers of weights and a rectifier; epsilon costs what the gradient does."""
    found = examine(planted_zoo.sound())
    assert found.faults == []
    assert found.inputs == "8x64"
    assert found.layers == 3
    assert found.forward < 1e-6
    assert found.default == found.composite == 1
    assert found.account < 1e-5
    assert found.flops == pytest.approx(1, abs=0.05)
    assert found.compile > 0


def test_the_share_of_relevance_that_is_not_zero(weight, x):
    """A feature without weight has none."""
    weight["w"] = weight["w"].at[1].set(0)
    found = examine(Model(linear, weight, x))
    assert found.faults == []
    assert found.default == 0.75


def test_relevance_that_is_not_finite_is_a_fault(weight, x):
    """The value is as wrong as that of f, so that alone is none."""
    weight["w"] = weight["w"].at[0].set(jnp.nan)
    found = examine(Model(linear, weight, x))
    assert found.forward == 0
    assert "relevance is not finite" in found.faults
    assert "relevance under epsilon_plus_flat is not finite" in found.faults


def test_relevance_that_is_zero_is_a_fault(weight, x):
    found = examine(Model(lambda p, x: jax.lax.stop_gradient(x) @ p["w"] + 0 * x[:, :3], weight, x))
    assert "relevance is zero everywhere" in found.faults


def test_an_entry_is_explained_that_is_not_zero(weight, x):
    """The first one is dead, and its relevance is zero; the largest one has some."""
    weight["w"] = weight["w"].at[:, 0].set(0)
    assert not relax.lrp(linear, target=0)(weight, x).any()
    found = examine(Model(linear, weight, x))
    assert (found.faults, found.default) == ([], 1)


@pytest.mark.parametrize(
    ("spoil", "difference"),
    [
        (lambda value: 1.001 * value, 1e-3),
        (lambda value: value.at[1, 2].set(jnp.nan), np.inf),
        (lambda value: value.at[1, 2].set(jnp.inf), np.inf),
        (lambda value: value[:, :2], np.inf),
        (lambda value: value.astype(jnp.float32), np.inf),
    ],
    ids=["other", "nan", "infinite", "shape", "dtype"],
)
def test_another_value_than_that_of_f_is_a_fault(spoil, difference, monkeypatch, weight, x):
    """As if the program of relevance had it."""
    assert examine(Model(linear, weight, x)).forward < 1e-12
    spoiled(monkeypatch, spoil)
    found = examine(Model(linear, weight, x))
    assert found.forward == pytest.approx(difference)
    assert [fault[:35] for fault in found.faults] == ["the value differs from that of f by"]


def spoiled(monkeypatch, spoil):
    """Values of the program of relevance are what ``spoil`` makes of them."""
    whole = relax.value_and_lrp

    def wrong(*args, **kwargs):
        explain = whole(*args, **kwargs)
        return lambda *args: (spoil(explain(*args)[0]), explain(*args)[1])

    monkeypatch.setattr(relax, "value_and_lrp", wrong)


@pytest.mark.parametrize(
    ("also", "fault"),
    [(0.0, None), (1e-3, "the value differs from that of f by 1.0e-03, in float64 by 1.0e-03")],
)
def test_a_value_that_float32_leaves_open_is_compared_in_float64(also, fault, monkeypatch):
    """As of a network so deep that rounding is magnified; ``also``: the error in float64."""

    def spoil(value):
        return value * (1 + (1e-3 if value.dtype == jnp.float32 else also))

    def build(dtype):
        params = {"w": jax.random.normal(jax.random.key(2), (4, 3), dtype)}
        return Model(linear, params, jax.random.normal(jax.random.key(1), (2, 4), dtype))

    spoiled(monkeypatch, spoil)
    model = build(jnp.float32)._replace(double=lambda: build(jnp.float64))
    found = examine(model)
    assert found.forward == pytest.approx(1e-3, rel=1e-3)
    assert found.double == pytest.approx(also)
    assert found.faults == ([fault] if fault else [])
    result = coverage.row(Case("planted", "Deep", lambda: model), found)[-1]
    assert result == (fault or "explained; in float64 the value differs by 0.0e+00")


@pytest.mark.more
def test_the_double_of_an_architecture_is_the_same_in_float64():
    """Of MobileNet: value for value, to what float32 can tell; parameters by parameters."""
    (case,) = (case for case in applications.cases(True) if case.name == "MobileNet")
    model = case.build()
    double = model.double()
    floats = {a.dtype for a in jax.tree.leaves(double.params)} - {np.dtype(np.uint32)}  # seeds
    assert floats == {np.dtype(np.float64)}
    assert keras.config.floatx() == "float32"
    single, exact = model.f(model.params, model.x), double.f(double.params, double.x)
    assert exact.dtype == np.float64
    np.testing.assert_allclose(single, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


def test_a_value_that_is_not_finite_where_f_is_not_either_is_the_same(weight, x):
    found = examine(Model(lambda params, x: x @ params["w"] / 0.0, weight, x))
    assert found.forward == 0
    assert found.faults


def test_a_plan_with_an_unsupported_operation_is_a_fault():
    """Each check that needs it says so; the error is named."""
    found = examine(planted_zoo.refused())
    assert found.layers is None
    assert found.default is None
    start = "UnsupportedOperationError: cannot propagate relevance through `qr`"
    assert [fault.partition(": ")[0] for fault in found.faults] == ["plan", "default", "account"]
    assert all(start in fault for fault in found.faults)


def test_a_function_that_raises_is_a_fault(x):
    found = examine(Model(lambda params, x: x @ params, jnp.ones((3, 3)), x))
    assert len(found.faults) == 1
    assert found.faults[0].startswith("f: TypeError")


@pytest.mark.parametrize("place", ["layer", "whole"])
def test_an_open_account_is_a_fault(place, monkeypatch, weight, x):
    """A thousandth that one layer hands on without having been given it; or that nobody has."""
    ledger = relax.ledger

    def wrong(*args, **kwargs):
        explain = ledger(*args, **kwargs)

        def explained(*args):
            relevance, account = explain(*args)
            if place == "whole":
                account.received = 1.001 * account.received
            else:
                account._sums = tuple(
                    {name: total * (1.001 if name == "in" else 1) for name, total in sums.items()}
                    for sums in account._sums
                )
            return relevance, account

        return explained

    assert examine(Model(linear, weight, x)).account < 1e-6
    monkeypatch.setattr(relax, "ledger", wrong)
    found = examine(Model(linear, weight, x))
    assert found.account == pytest.approx(1e-3, rel=0.2)
    (fault,) = found.faults
    assert fault.startswith("the account is open by 1.0e-03 at ")


def test_tokens_are_held_against_the_gradient_of_their_table():
    """An embedding and a dense layer: two products against two, and no product for the tokens."""
    table, head = jax.random.split(jax.random.key(0))
    params = {
        "table": jax.random.normal(table, (7, 8)),
        "head": jax.random.normal(head, (8, 3)),
    }
    f = lambda params, ids: params["table"][ids] @ params["head"]
    found = examine(Model(f, params, tokens((2, 5), 7)))
    assert found.faults == []
    assert found.inputs == "2x5 tokens"
    assert found.default == 1
    assert 0.5 < found.flops < 2


def test_drawn_parameters_are_none_of_those_they_start_from():
    """Constants are redrawn, scales stay positive; what is random, and integers, are kept."""
    old = {
        "bias": jnp.zeros(500),
        "scale": jnp.ones(500),
        "kernel": jax.random.normal(jax.random.key(0), (3, 3)),
        "count": jnp.zeros(2, jnp.int32),
    }
    new = drawn(old)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(
        lambda a: (a.shape, a.dtype), old
    )
    assert new["kernel"] is old["kernel"]
    assert new["count"] is old["count"]
    assert float(new["bias"].std()) == pytest.approx(0.1, rel=0.1)
    assert 0.5 <= float(new["scale"].min()) < 0.6 < 1.4 < float(new["scale"].max()) <= 1.5
    assert all(jnp.array_equal(new[name], drawn(old)[name]) for name in old)


def test_a_worker_keeps_its_process_and_replaces_it_when_it_died():
    """Also when it takes too long or has grown; an error of the function leaves it alone."""
    with Worker(task, seconds=20) as worker:
        first, value = worker("double", 21)
        assert value == 42
        with pytest.raises(RuntimeError, match="ValueError: no such size"):
            worker("raise", "no such size")
        assert worker("double", 1)[0] == first
        with pytest.raises(Died, match="ended with code 3"):
            worker("exit", 3)
        second, value = worker("double", 4)
        assert (second != first, value) == (True, 8)
    hurried = Worker(task, seconds=0.5)
    with hurried, pytest.raises(Died, match=r"longer than 0\.5 seconds"):
        hurried("sleep", 60)
    with Worker(task, seconds=20, gigabytes=0.1) as worker:
        assert worker("grow", 150)[0] != worker("double", 1)[0]


def test_a_worker_does_not_count_the_memory_of_its_parent():
    """Linux hands on the peak of the process that starts another."""
    taken = bytearray(400 * 2**20)
    with Worker(task, seconds=20, gigabytes=0.3) as worker:
        assert worker("double", 1)[0] == worker("double", 2)[0]
    assert len(taken) == 400 * 2**20


def test_the_command_reports_each_outcome(tmp_path, monkeypatch, capfd):
    """What fails, what cannot be built, what kills its process; the rest goes on after it."""
    monkeypatch.setattr(coverage, "ZOOS", {"planted": "planted_zoo"})
    with pytest.raises(SystemExit, match="3 models are not explained"):
        main(["coverage", "--small", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "coverage_planted.json").read_text())["rows"]
    assert [row[0] for row in rows] == ["Sound", "Refused", "Absent", "Crash", "After", "Abstract"]
    results = {row[0]: row[-1] for row in rows}
    assert results["Sound"] == results["After"] == "explained"
    assert "UnsupportedOperationError" in results["Refused"]
    assert results["Absent"] == "build: ValueError: no such size"
    assert results["Crash"] == "the process ended with code 3"
    assert results["Abstract"] == "left out: a base class"
    sums = json.loads((tmp_path / "coverage.json").read_text())
    assert sums["rows"] == [["planted", 6, 2, 3, 1]]
    assert "Refused" in capfd.readouterr().out


def test_models_are_chosen_by_name(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(coverage, "ZOOS", {"planted": "planted_zoo"})
    monkeypatch.setattr(coverage, "examined", lambda *args: coverage.Examined(layers=3))
    main(["coverage", "--model", "*a*e", "--model", "So*", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "coverage_planted.json").read_text())["rows"]
    assert [row[0] for row in rows] == ["Sound", "Large"]
    capfd.readouterr()


def test_two_cases_of_one_name_are_refused(monkeypatch):
    twice = Case("planted", "Sound", planted_zoo.sound)
    monkeypatch.setattr(planted_zoo, "cases", lambda small: [twice, twice])
    with pytest.raises(ValueError, match="several cases are called Sound"):
        coverage.cases("planted_zoo", True)


def test_every_model_of_keras_applications_is_a_case():
    """Oracle: what is capitalized there is a model, and nothing else is."""
    names = {name for name in dir(keras.applications) if name[0].isupper()}
    found = coverage.cases(zoos.ZOOS["keras.applications"], False)
    assert {case.name for case in found} == names
    assert len(names) >= 38
    small = {case.name for case in coverage.cases(zoos.ZOOS["keras.applications"], True)}
    assert small == applications.SMALL


def test_every_backbone_of_keras_hub_is_a_case():
    """Oracle: the classes whose names end so, or whose base's does; base classes have a reason."""
    hub = pytest.importorskip("keras_hub")
    found = coverage.cases(zoos.ZOOS["keras_hub"], False)
    names = {name for name in dir(hub.models) if name.endswith("Backbone")}
    others = {name for name in dir(hub.models) if name.endswith("Encoder")}
    of = lambda name: [base.__name__ for base in getattr(hub.models, name).__mro__]
    assert {case.name for case in found} == names | {n for n in others if "Backbone" in of(n)}
    assert {"CLIPTextEncoder", "SigLIPVisionEncoder"} <= {case.name for case in found}
    without = [case.name for case in found if case.reason]
    assert all(inspect.getmodule(getattr(hub.models, name)) is not None for name in without)
    assert {"Backbone", "FeaturePyramidBackbone"} <= set(without)


def test_a_keras_model_is_a_function_of_its_variables():
    """As the model itself with the same variables; it is not changed, and trains on nothing."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    y = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs))
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(y))
    before = [np.asarray(v.value) for v in model.variables]
    f, params = applications.stateless(model)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    value = f(params, x)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.value)
    for path, array in params.items():
        (variable,) = (v for v in model.variables if v.path == path.partition(":")[2])
        variable.assign(array)
    np.testing.assert_allclose(value, model(x, training=False), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("zoo", KERAS)
def test_the_small_ones_are_explained(zoo):
    """Each in this process, at single precision, as the command does it."""
    pytest.importorskip("keras_hub" if zoo == "keras_hub" else "keras")
    with jax.enable_x64(False):
        for case in coverage.cases(zoos.ZOOS[zoo], True):
            found = coverage.examine_case(zoos.ZOOS[zoo], case.name, True)
            assert found.faults == [], case.name


def test_a_framework_that_is_not_installed_is_a_row(monkeypatch, tmp_path, capsys):
    """Of a package that nobody has; a module of our own that is missing is an error."""
    here = tmp_path / "zoo_without_framework.py"
    here.write_text("def cases(small):\n    import no_such_framework\n    yield\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(zoos.ZOOS, "keras_hub", "zoo_without_framework")
    assert main(["coverage", "--zoo", "keras_hub", "--output", str(tmp_path)]) == 0
    assert "left out: no_such_framework is not installed" in capsys.readouterr().out
    with pytest.raises(ModuleNotFoundError, match="no_such_zoo"):
        coverage.cases("benchmarks.no_such_zoo", True)
