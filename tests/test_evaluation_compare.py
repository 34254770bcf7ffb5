"""Tables of methods over a data set, and the loop with its bar."""

import builtins
import dataclasses
import functools
import io
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import relax
from relax import evaluation


@pytest.fixture
def p(rng):
    return {n: jnp.asarray(rng.normal(size=s)) for n, s in {"a": (6, 7), "b": (7, 3)}.items()}


@pytest.fixture
def batches(rng):
    return [jnp.asarray(rng.normal(size=(n, 6))) for n in (4, 4, 2)]


def network(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


METHODS = {
    "gradient": lambda p, x: jax.grad(lambda x: network(p, x)[:, 1].sum())(x),
    "input": lambda p, x: x,
    "constant": lambda p, x: jnp.ones_like(x),
}
MEASURES = functools.partial(evaluation.faithfulness, target=1, n=2, subsets=20, replacement=0.5)


def test_compare_against_loops(p, batches):
    """Each method on each batch by itself, with the key of the batch; a constant has no area."""
    key = jax.random.key(4)
    table = evaluation.compare(METHODS, network, p, batches, key=key, measures=MEASURES)
    assert table.methods == tuple(METHODS)
    assert list(table.scores) == ["ABPC", "MoRF", "LeRF", "sensitivity-n"]
    assert table.samples == 10

    @jax.jit
    def alone(x, relevance, own):
        common = {"target": 1, "replacement": 0.5}
        morf, lerf = (
            evaluation.perturbation(network, p, x, relevance=relevance, order=o, **common).area()
            for o in ("morf", "lerf")
        )
        score = evaluation.sensitivity_n(
            network, p, x, key=jax.random.split(own)[1], n=2, subsets=20, target=1, baseline=0.5
        )
        return jnp.stack([lerf - morf, morf, lerf, score(relevance)])

    for row, method in enumerate(METHODS.values()):
        parts = [
            alone(x, method(p, x), jax.random.fold_in(key, number))
            for number, x in enumerate(batches)
        ]
        want = np.concatenate(parts, 1)
        found = np.stack([table.scores[name][row] for name in table.scores])
        np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(table.mean("MoRF")[row], want[1].mean())
        np.testing.assert_allclose(table.error("MoRF")[row], want[1].std(ddof=1) / np.sqrt(10))
    np.testing.assert_array_equal(table.scores["ABPC"][2], 0)


def test_the_function_is_traced_once_a_shape_and_shared_by_the_methods(p, batches):
    """Not once a method or a batch; what does not depend on an explanation is computed once."""
    traces, runs = 0, 0

    def count(_):
        nonlocal runs
        runs += 1

    def counted(p, x):
        nonlocal traces
        traces += 1
        return network(p, x)

    def measures(fun, p, x, *, relevance, key):
        start = fun(p, x)[:, 0]
        jax.debug.callback(count, start.sum())
        return {"score": start * relevance[:, 0]}

    compare = functools.partial(evaluation.compare, key=jax.random.key(0), measures=measures)
    table = compare(METHODS, counted, p, batches[:2])
    jax.effects_barrier()
    assert (traces, runs) == (1, 2)
    want = network(p, batches[1])[:, 0] * batches[1][:, 0]
    np.testing.assert_allclose(table.scores["score"][1, 4:], want, rtol=1e-9)
    compare(METHODS, counted, p, batches)
    assert traces == 3  # another call, and there a batch of another size


def test_labels_come_with_the_batches(p, batches):
    """A tuple is the last arguments, the very last is explained; the measures see all of them."""
    f = lambda p, labels, x: jnp.take_along_axis(network(p, x), labels[:, None], 1)[:, 0]
    method = lambda p, labels, x: jax.grad(lambda x: f(p, labels, x).sum())(x) * x

    def measures(fun, p, labels, x, *, relevance, key):
        masks = (jnp.arange(6) < 3)[None] & (labels >= 0)[:, None]
        curve = evaluation.deletion(fun, p, labels, x, relevance=relevance)
        return {"start": curve.values[:, 0], "mass": evaluation.inside_mass(relevance, masks)}

    labels = [jnp.arange(len(x)) % 3 for x in batches]
    pairs = list(zip(labels, batches, strict=True))
    table = evaluation.compare(
        {"gi": method}, f, p, pairs, key=jax.random.key(0), measures=measures
    )
    want = [np.asarray(network(p, x))[np.arange(len(x)), y] for y, x in pairs]
    np.testing.assert_allclose(table.scores["start"][0], np.concatenate(want), rtol=1e-9)
    positive = [np.maximum(np.asarray(method(p, y, x)), 0) for y, x in pairs]
    mass = np.concatenate([r[:, :3].sum(1) / r.sum(1) for r in positive])
    np.testing.assert_allclose(table.scores["mass"][0], mass, rtol=1e-9)


@pytest.mark.more
def test_evaluate_batches(p, batches):
    """Results one after the other, curves too; a key for each batch; compiled once a shape."""
    traces = 0

    def measure(p, x, *, key):
        nonlocal traces
        traces += 1
        curve = evaluation.perturbation(network, p, x, order="random", target=0, key=key)
        return {"curve": curve, "x": x}

    found = evaluation.evaluate_batches(measure, p, batches, key=jax.random.key(7))
    assert traces == 2
    np.testing.assert_array_equal(found["x"], np.concatenate(batches))
    want = [
        evaluation.perturbation(
            network, p, x, order="random", target=0, key=jax.random.fold_in(jax.random.key(7), i)
        )
        for i, x in enumerate(batches)
    ]
    np.testing.assert_allclose(
        found["curve"].values, np.concatenate([c.values for c in want]), rtol=1e-9
    )
    np.testing.assert_array_equal(found["curve"].fractions, want[0].fractions)
    evaluation.evaluate_batches(measure, p, batches, key=jax.random.key(8))
    assert traces == 2
    plain = evaluation.evaluate_batches(lambda x: (x.sum(1),), iter(batches))
    np.testing.assert_allclose(plain[0], np.concatenate(batches).sum(1), rtol=1e-12)


def without_samples(batches, numbers):
    """The same batches, and what is left of each."""
    place = np.cumsum([0, *map(len, batches)])
    keep = [~np.isin(np.arange(a, b), numbers) for a, b in itertools.pairwise(place)]
    return [x[jnp.asarray(k)] for x, k in zip(batches, keep, strict=True)]


@pytest.mark.more
def test_evaluate_batches_tells_what_is_not_finite(p, batches):
    """The numbers of the samples; the others are as without them, and the mean is theirs."""

    def measure(p, x):
        curve = evaluation.deletion(network, p, x, relevance=x, target=0)
        hits = evaluation.pointing_game(x, jnp.ones(x.shape, bool))
        return {"curve": curve, "hits": hits}

    spoiled = [batches[0], batches[1].at[1, 2].set(np.nan), batches[2].at[0, 0].set(np.inf)]
    with pytest.warns(relax.RelaxWarning, match=r"2 of 10 samples are not finite: 5, 8\.") as told:
        found = evaluation.evaluate_batches(measure, p, spoiled)
    assert told[0].filename == __file__
    want = evaluation.evaluate_batches(measure, p, without_samples(batches, [5, 8]))
    good = np.delete(np.arange(10), [5, 8])
    np.testing.assert_allclose(found["curve"].values[good], want["curve"].values, rtol=1e-9)
    np.testing.assert_allclose(found["curve"].mean(), want["curve"].mean(), rtol=1e-9)
    assert repr(found["curve"]).replace("8 of 10", "8") == repr(want["curve"])
    np.testing.assert_array_equal(np.isnan(found["hits"]), np.isin(np.arange(10), [5, 8]))
    np.testing.assert_array_equal(found["hits"][good], 1)
    with pytest.warns(relax.RelaxWarning, match=r"8 of 8 .*: 0, 1, 2, 3, 4 and 3 more\."):
        evaluation.evaluate_batches(lambda x: x[:, 0] * jnp.nan, batches[:2])


SPOILED = {
    "gradient": METHODS["gradient"],
    "low": lambda p, x: jnp.where(x[:, :1] == 7.0, jnp.nan, x),
    "high": lambda p, x: jnp.where(x[:, :1] == 8.0, jnp.inf, x * x),
}


def test_compare_leaves_out_for_all_methods_what_is_not_finite_for_one(p, batches):
    """The table is that of the other samples; who failed where is told; x itself may be NaN."""
    make = functools.partial(evaluation.compare, key=jax.random.key(1), measures=MEASURES)
    spoiled = [
        batches[0].at[2, 0].set(7.0),
        batches[1].at[3, 0].set(8.0).at[0, 0].set(7.0),
        batches[2].at[1, 4].set(np.nan),
    ]
    with pytest.warns(relax.RelaxWarning) as told:
        table = make(SPOILED, network, p, spoiled)
    (one,) = told
    assert one.filename == __file__
    assert str(one.message).splitlines() == [
        "compare: 4 of 10 samples are left out for all methods, so that these stay paired. What "
        "is not finite:",
        "  'gradient': relevance of sample 9",
        "  'low': relevance of samples 2, 4, 9",
        "  'high': relevance of samples 7, 9",
    ]
    assert (table.samples, table.left_out) == (6, (2, 4, 7, 9))
    want = make(SPOILED, network, p, without_samples(batches, [2, 4, 7, 9]))
    assert want.left_out == ()
    for name, score in want.scores.items():
        np.testing.assert_allclose(table.scores[name], score, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(table.mean(name), want.mean(name), rtol=1e-9, atol=1e-12)
    assert table.sorted_by("MoRF").left_out == (2, 4, 7, 9)


def test_a_score_that_is_not_finite_leaves_out_its_sample(p, batches):
    """Not only the relevance; the measure is named, and the scores of the others stay paired."""

    def measures(fun, p, x, *, relevance, key):
        return {"sum": relevance.sum(1), "log": jnp.log(relevance[:, 0] + 1)}

    methods = {"x": lambda p, x: x, "ones": lambda p, x: jnp.ones_like(x)}
    data = [jnp.abs(x) for x in batches]
    data[1] = data[1].at[2, 0].set(-1.0)
    make = lambda data: evaluation.compare(
        methods, network, p, data, key=jax.random.key(0), measures=measures
    )
    with pytest.warns(relax.RelaxWarning, match=r"1 of 10 (.|\n)*\n  'x': log of sample 6$"):
        table = make(data)
    assert table.left_out == (6,)
    want = make(without_samples(data, [6]))
    for name in ("sum", "log"):
        np.testing.assert_allclose(table.scores[name], want.scores[name], rtol=1e-12)


def test_a_method_that_is_never_finite_is_a_row_of_nan(p, batches):
    """It voids nobody else's row, and adds to no reason; even if a measure gives it numbers."""
    measures = lambda fun, p, x, relevance, key: {
        "count": (relevance > 0).sum(1),
        "first": relevance[:, 0],
    }
    make = functools.partial(evaluation.compare, key=jax.random.key(0), measures=measures)
    broken = {"nan": lambda p, x: x * jnp.nan}
    with pytest.warns(
        relax.RelaxWarning, match=r"No sample is left out.*\n  'nan': relevance of ev"
    ):
        table = make(broken | METHODS, network, p, batches)
    want = make(METHODS, network, p, batches)
    assert (table.samples, table.left_out) == (10, ())
    for name in ("count", "first"):
        assert np.isnan(table.scores[name][0]).all()
        np.testing.assert_array_equal(table.scores[name][1:], want.scores[name])
    spoiled = [batches[0].at[1, 0].set(7.0), *batches[1:]]
    with pytest.warns(relax.RelaxWarning, match=r"1 of 10(.|\n)*'low': relevance of sample 1"):
        table = make(broken | SPOILED, network, p, spoiled)
    assert table.left_out == (1,)
    assert np.isfinite(table.mean("first")[1:]).all()
    opposed = {
        "a": lambda p, x: x.at[0].set(jnp.nan),
        "b": lambda p, x: x.at[1:].set(jnp.nan),
    }
    with pytest.warns(relax.RelaxWarning, match="4 of 4 samples are left out"):
        table = make(opposed, network, p, batches[:1])
    assert np.isnan(table.mean("first")).all()
    assert "0 of 4 samples (without 0, 1, 2, 3)" in str(table)


@pytest.fixture
def table():
    scores = {
        "ABPC": np.array([[1.0, 3.0], [4.0, 4.0], [np.nan, 1.0]]),
        "MoRF": np.array([[0.25, 0.25], [0.5, 1.0], [0.25, 0.25]]),
    }
    return evaluation.Table(("lrp", "a|b", "broken"), scores, {"lrp": 1, "a|b": 24.5}, ("MoRF",))


def test_how_a_table_reads(table):
    """Means, standard errors, costs, the best in bold; what is not a number stays visible."""
    assert [line.split() for line in str(table).splitlines()] == [
        ["method", "ABPC", "↑", "MoRF", "↓", "gradients"],
        ["------", "---------", "----------", "---------"],
        ["lrp", "2", "±", "1", "0.25", "±", "0", "1"],
        ["a|b", "4", "±", "0", "0.75", "±", "0.2", "24.5"],
        ["broken", "nan", "±", "nan", "0.25", "±", "0"],
        ["2", "samples,", "mean", "±", "standard", "error"],
    ]
    assert table.markdown().splitlines() == [
        "| method | ABPC ↑ | MoRF ↓ | gradients |",
        "| --- | ---: | ---: | ---: |",
        "| lrp | 2 ± 1 | **0.25** ± 0 | 1 |",
        r"| a\|b | **4** ± 0 | 0.75 ± 0.2 | 24.5 |",
        "| broken | nan ± nan | **0.25** ± 0 |  |",
    ]
    assert "<td>a|b</td><td>4 ± 0</td>" in table._repr_html_()
    assert table.sorted_by("ABPC").methods == ("a|b", "lrp", "broken")
    assert table.sorted_by("MoRF").methods == ("lrp", "broken", "a|b")
    np.testing.assert_array_equal(
        table.sorted_by("ABPC").scores["MoRF"], table.scores["MoRF"][[1, 0, 2]]
    )
    single = evaluation.Table(("lrp",), {"ABPC": np.array([[2.0]])})
    assert str(single).splitlines()[2].split() == ["lrp", "2"]
    assert np.isnan(single.error("ABPC")).all()
    assert "<caption>2 samples, mean" in table._repr_html_()
    some = dataclasses.replace(table, left_out=(4, 1))
    count = "2 of 4 samples (without 4, 1)"
    assert str(some).splitlines()[-1] == f"{count}, mean ± standard error"
    assert some.markdown() == f"{table.markdown()}\n\n{count}"
    assert f"<caption>{count}, mean" in some._repr_html_()
    with pytest.raises(relax.ArgumentError, match="no measure 'AOPC' in the table, but 'ABPC', "):
        table.mean("AOPC")


def test_how_a_table_looks(table):
    """The best on top, its length the mean."""
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="extra `eval` not installed")
    pyplot.switch_backend("agg")
    axes = table.plot("MoRF")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["lrp", "broken", "a|b"]
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.25, 0.75]
    assert axes.get_xlabel() == "MoRF (lower is better)"
    assert "higher" in table.plot().get_xlabel()
    some = dataclasses.replace(table, left_out=(4,)).plot("MoRF")
    assert some.get_xlabel() == "MoRF (lower is better, 2 of 3 samples (without 4))"
    pyplot.close("all")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def without(monkeypatch, package):
    """As if a package were not installed."""
    real = builtins.__import__

    def imported(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", imported)


def test_the_bar_is_seen_on_a_terminal_only(monkeypatch):
    """The items are the same in any case; elsewhere nothing is written."""
    pytest.importorskip("rich", reason="extra `eval` not installed")
    monkeypatch.setenv("TERM", "xterm")
    for stream, show, seen in (
        (Terminal(), None, True),
        (Terminal(), False, False),
        (io.StringIO(), None, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(evaluation.progress([3, 1, 2], "sorting", show=show)) == [3, 1, 2]
        assert ("sorting" in stream.getvalue()) == seen
        assert ("3/3" in stream.getvalue()) == seen
        assert (stream.getvalue() == "") != seen
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(evaluation.progress(iter("ab"), "letters")) == ["a", "b"]
    assert "letters" in sys.stderr.getvalue()


def test_extras_that_are_not_installed(monkeypatch, table):
    """No bar without rich, unless it is asked for; a plot says what it needs."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    without(monkeypatch, "rich")
    assert list(evaluation.progress([1])) == [1]
    assert sys.stderr.getvalue() == ""
    with pytest.raises(ImportError, match=r'needs rich(.|\n)*"relax-lrp\[eval\]"'):
        list(evaluation.progress([1], show=True))
    without(monkeypatch, "matplotlib")
    with pytest.raises(ImportError, match=r'needs matplotlib(.|\n)*"relax-lrp\[eval\]"'):
        table.plot()


def test_errors(p, batches):
    """What is wrong, and with which method."""
    make = lambda methods=METHODS, data=batches, **options: evaluation.compare(
        methods, network, p, data, **{"key": jax.random.key(0), "measures": MEASURES} | options
    )
    one = lambda fun, p, x, relevance, key: {"all": relevance.sum()}
    for call, words in (
        (lambda: make({}), "no methods"),
        (lambda: make(data=[]), "no batch"),
        (lambda: make(data=3), "no iterable"),
        (lambda: make(data=[()]), "empty tuple"),
        (lambda: make(cost={"lrp": 1.0}), r"\['lrp'\], which is no method"),
        (lambda: make({"less": lambda p, x: x[:, :2]}), r"'less'.*\(4, 2\); x has \(4, 6\)"),
        (lambda: make(measures=one), r"'all' has shape \(\)"),
        (lambda: evaluation.evaluate_batches(lambda x: x, []), "no batch"),
        (lambda: evaluation.evaluate_batches(lambda x: x), "no iterable"),
        (lambda: evaluation.evaluate_batches(jnp.sum, batches), "one number"),
        (lambda: evaluation.evaluate_batches(lambda x: None, batches), "no array"),
        (lambda: evaluation.evaluate_batches(lambda x: (x, x.T[:, :2]), batches), "shapes"),
    ):
        with pytest.raises(relax.ArgumentError, match=words):
            call()
