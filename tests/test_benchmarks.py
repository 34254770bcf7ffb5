"""The benchmarks: their command line, their tables, and that what they count is what XLA counts."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import networks
from benchmarks.__main__ import NAMES, main
from benchmarks.counting import count, gradient_times_input
from benchmarks.report import Table


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


def test_counts_of_a_product():
    """2 n^3 FLOPs, and 8 n^2 bytes of output beside few temporaries; twice that for a gradient."""
    n = 64
    matrix = jax.ShapeDtypeStruct((n, n), jnp.float64)
    cost = count(lambda a, b: a @ b, matrix, matrix)
    assert cost.flops == pytest.approx(2 * n**3, rel=0.01)
    assert cost.memory >= 8 * n**2
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
