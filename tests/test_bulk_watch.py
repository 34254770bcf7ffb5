"""What is seen of a run: a line a minute to the log, a bar on a terminal, a summary."""

import logging
import sys

import pytest

from relax.bulk import _watch
from relax.bulk._watch import Summary, Watch


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(_watch.time, "monotonic", lambda: now[0])
    return now


def test_a_line_a_minute(clock, caplog):
    caplog.set_level(logging.INFO, "relax.bulk")
    with Watch(400, leads=True) as watch:
        for _ in range(13):
            clock[0] += 10
            watch.add(20)
    assert [record.getMessage() for record in caplog.records] == [
        "120 of 400 samples, 2.0 a second, 140 s left",
        "240 of 400 samples, 2.0 a second, 80 s left",
    ]
    assert watch.seconds == 130
    assert watch.done == 260


def test_nothing_done_yet(clock, caplog):
    """The first call may compile for long, and its samples be those of another process."""
    caplog.set_level(logging.INFO, "relax.bulk")
    with Watch(8, leads=True) as watch:
        clock[0] += 61
        watch.add(0)
    assert "0 of 8 samples, 0.0 a second" in caplog.text


def test_other_processes_are_quiet(clock, caplog, capsys):
    caplog.set_level(logging.INFO, "relax.bulk")
    with Watch(4, leads=False) as watch:
        clock[0] += 1000
        watch.add(4)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch, caplog, capsys):
    pytest.importorskip("rich")
    caplog.set_level(logging.INFO, "relax.bulk")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Watch(8, leads=True) as watch:
        watch.add(6)
        watch._bar.refresh()
    assert "6/8 samples" in capsys.readouterr().err
    assert not caplog.records


def test_the_summary():
    bad = tuple((i, "is not finite") for i in range(12))
    text = str(Summary("s.zarr", 100, 50, 4.0, 20.0, 15.0, bad))
    assert text.splitlines()[:3] == [
        "s.zarr: 100 samples, 50 of them explained now in 4.0 s (12.5 a second)",
        "explained 20, received 15, absorbed 5 (25.0%)",
        "12 bad samples:",
    ]
    assert text.splitlines()[-1] == "  and 2 more, in Store(...).bad"
    assert Summary("s.zarr", 3, 0, 0.0, 0.0, 0.0, ()).rate == 0.0
