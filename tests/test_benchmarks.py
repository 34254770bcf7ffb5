"""The benchmarks: their command line, their tables, and that what they count is what XLA counts."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

import relax
from benchmarks import compile, memory, networks, passes, stacks
from benchmarks.__main__ import NAMES, main
from benchmarks.counting import compilations, count, gradient_times_input
from benchmarks.report import Table, progress
from benchmarks.throughput import Race


def test_without_a_name_they_are_listed(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)


def test_an_unknown_one_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        main(["speed"])
    assert refused.value.code == 2
    assert "passes" in capsys.readouterr().err


def test_a_table_is_written_as_it_was_added(tmp_path, capsys):
    """As Markdown and JSON, labels to the left, numbers rounded in the text only."""
    table = Table("costs", "What it costs", "python -m benchmarks costs", ("of", "a", "b"))
    table.add("first", 1.23456, None)
    table.add("second", 7, 0.5)
    assert "first" in capsys.readouterr().out
    table.save(tmp_path)
    assert (tmp_path / "costs.md").read_text() == (
        "What it costs (`python -m benchmarks costs`):\n\n"
        "| of | a | b |\n| --- | ---: | ---: |\n| first | 1.23 | - |\n| second | 7 | 0.50 |\n"
    )
    record = json.loads((tmp_path / "costs.json").read_text())
    assert record["rows"] == [["first", 1.23456, None], ["second", 7, 0.5]]
    assert record["machine"]["jax"] == jax.__version__


@pytest.fixture
def growing():
    """A table of two lines over powers of two; one point is missing."""
    columns = ("size", "of", "a", "b")
    table = Table("grow", "What grows", "python -m benchmarks grow", columns, labels=2, axis="size")
    for size in (2, 4, 16):
        table.add(size, "first", 1.0 * size, 0.5)
        table.add(size, "second", None if size == 4 else 2.0, 0.25)
    return table


def test_a_table_with_an_axis_is_drawn_as_lines(growing, tmp_path):
    """A panel for each column of numbers, a line for each label; a dash is a gap."""
    pytest.importorskip("matplotlib")
    panels = growing.figure().axes
    assert [panel.get_title() for panel in panels] == ["a", "b"]
    assert all(panel.get_xscale() == "log" and not panel.patches for panel in panels)
    first, second = panels[0].lines
    assert [first.get_label(), second.get_label()] == ["first", "second"]
    assert list(first.get_xdata()) == [2, 4, 16]
    assert list(first.get_ydata()) == [2.0, 4.0, 16.0]
    assert [math.isnan(y) for y in second.get_ydata()] == [False, True, False]
    growing.save(tmp_path)
    assert (tmp_path / "grow.png").read_bytes().startswith(b"\x89PNG")


def test_an_axis_is_logarithmic_where_all_doubles(growing):
    pytest.importorskip("matplotlib")
    growing.add(10, "first", 1.0, 1.0)
    assert {panel.get_xscale() for panel in growing.figure().axes} == {"linear"}


def test_a_table_says_which_columns_are_drawn(growing):
    """Here one: of bars those that there are."""
    pytest.importorskip("matplotlib")
    growing.plot = ("b",)
    assert [panel.get_title() for panel in growing.figure().axes] == ["b"]
    growing.axis, growing.plot = None, ("a",)
    (panel,) = growing.figure().axes
    assert [bar.get_width() for bar in panel.patches] == [2.0, 2.0, 4.0, 16.0, 2.0]
    names = [text.get_text() for text in panel.get_yticklabels()]
    assert names == ["2, first", "2, second", "4, first", "16, first", "16, second"]


def test_progress_is_no_part_of_the_output(capsys):
    progress("VGG16: gradient")
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == "VGG16: gradient\n"


def test_counts_of_a_product():
    """2 n^3 FLOPs, and 8 n^2 bytes of output beside few temporaries; twice that for a gradient."""
    n = 64
    matrix = jax.ShapeDtypeStruct((n, n), jnp.float64)
    cost = count(lambda a, b: a @ b, matrix, matrix)
    assert cost.flops == pytest.approx(2 * n**3, rel=0.01)
    assert cost.memory == cost.temporaries + 8 * n**2
    assert cost.compile > 0
    gradient = count(gradient_times_input(lambda p, x: jnp.tanh(x @ p) @ p), matrix, matrix)
    assert 3 < gradient.flops / cost.flops < 4.5


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_give_logits(name):
    """All have a thousand of them, whatever the size of the picture and the batch."""
    with jax.enable_x64(False):
        function, params, x = networks.shapes(name, 64, batch=2)
        value = jax.eval_shape(function, params, x)
    assert value.shape == (2, 1000)
    if name in networks.PICTURES:
        assert x.shape == (2, 64, 64, 3)


def test_a_network_of_sequences_takes_their_length():
    with jax.enable_x64(False):
        function, params, x = networks.shapes("Llama, 4 blocks", batch=2, length=16)
        assert x.shape == (2, 16, 512)
        assert jax.eval_shape(function, params, x).shape == (2, 1000)


def test_drawn_parameters_keep_the_size_of_what_they_carry():
    """Kernels are He-scaled, scales and variances one, biases and means zero."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    shapes = {"kernel": shape(3, 3, 64, 32), "scale": shape(8), "var": shape(8), "bias": shape(8)}
    drawn = networks.draw({"layer": shapes}, jnp.bfloat16)["layer"]
    assert jax.tree.map(lambda a: (a.shape, a.dtype.name), drawn) == {
        name: (one.shape, "bfloat16") for name, one in shapes.items()
    }
    assert float(drawn["kernel"].std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert drawn["scale"].min() == drawn["var"].max() == 1
    assert not drawn["bias"].any()


@pytest.mark.parametrize("name", ["epsilon", "epsilon_plus"])
def test_streamed_samples_take_the_memory_of_a_batch(name):
    """Temporaries do not grow from 32 to 128 samples; without streams they are four times more."""
    with jax.enable_x64(False):
        streams, whole = [], []
        for number in (32, 128):
            function, params, x = stacks.residual(3, channels=8, size=16, batch=number)
            explain = passes.explained(function, name)
            streams.append(count(memory.streamed(explain), params, x).temporaries)
            whole.append(count(explain, params, x).temporaries)
    assert streams[1] == pytest.approx(streams[0], rel=0.1)
    assert whole[1] / whole[0] == pytest.approx(4, rel=0.1)


def test_streamed_relevance_is_that_of_the_batch():
    function, params, x = stacks.residual(3, channels=4, size=8, batch=6)
    params, x = networks.draw((params, x))
    explain = passes.explained(function, "epsilon_plus")
    found = jax.jit(memory.streamed(explain, 4))(params, x)
    assert jnp.allclose(found, explain(params, x), atol=1e-5)


def test_compilations_are_counted():
    """A new function is one, its second call is none; nothing is counted outside of the block."""
    function = jax.jit(lambda x: 3 * x + 1)
    x = jnp.ones(3)
    with compilations() as first:
        function(x)
    with compilations() as second:
        function(x)
    jax.jit(lambda x: 5 * x)(x)
    assert (len(first), len(second)) == (1, 0)


def test_a_second_call_compiles_nothing():
    """Relevance without jit is traced anew, but what it is made of is compiled once."""
    function, params, x = stacks.perceptron(3, width=7, batch=5)
    params, x = networks.draw((params, x))
    explain = relax.lrp(function, relax.composites.epsilon(), target=0)
    counted = [compile.call(explain, params, x)[1] for _ in range(2)]
    assert counted[0] >= 1
    assert counted[1] == 0


def test_what_does_not_fit_into_memory_drops_out():
    """It has no times, and no ratio; another error is raised."""

    def too_large(x):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def wrong(x):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    x = jnp.ones(3)
    race = Race({"gradient": lambda x: 2 * x, "large": too_large, "other": jnp.sin}, x)
    race.repeat(2)
    assert {name: len(times) for name, times in race.times.items()} == {"gradient": 2, "other": 2}
    assert race.ratio("large", "gradient") is None
    assert race.ratio("gradient", "gradient") == 1
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        Race({"wrong": wrong}, x).repeat(1)
