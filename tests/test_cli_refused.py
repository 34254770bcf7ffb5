"""What the command line refuses, and how."""

import sys
import traceback
import warnings
from pathlib import Path

import pytest

pytest.importorskip("click", reason="extra `cli` not installed")
pytest.importorskip("PIL", reason="extra `cli` not installed")
pytest.importorskip("matplotlib", reason="extra `cli` not installed")

from cli_calls import call, folder, here
from click.testing import CliRunner

from relax.cli import InputError, _methods, main
from relax.cli._app import app

__all__ = ["folder", "here"]  # fixtures

REFUSED = [
    (("explain", "no.png", "--model", "net.py:whole"), ["no.png"]),
    (("explain", "text.png", "--model", "net.py:whole"), ["text.png", "Pillow"]),
    (("explain", "no.npy", "--model", "net.py:table"), ["no.npy"]),
    (("explain", "x.npy", "--model", "net.py:whole"), ["(4,)", "(6, 8, 3)"]),
    (("explain", "x.npy", "--model", "net.py:table"), ["relevance.npz"]),
    (("explain", "a.png", "--model", "net.py:table"), ["(4,)", ".npy"]),
    (("explain", "a.png", "--model", "net.py:pair"), ["--input-size"]),
    (("explain", "a.png", "--model", "net.py:pair", "--input-size", "5"), ["(1, 5, 5, 3)"]),
    (("explain", "a.png", "--model", "net.py:deep"), ["(1, 6, 8, 3)", "(1, classes)"]),
    (("explain", "a.png", "--model", "net.py:who"), ["'who'", "whole"]),
    (("explain", "a.png", "--model", "net.py:constant"), ["int", "(f, params)"]),
    (("explain", "a.png", "--model", "net.py:broken"), ["RuntimeError: no weights at all"]),
    (("explain", "a.png", "--model", "empty.py:f"), ["ZeroDivisionError"]),
    (("explain", "a.png", "--model", "no.py:f"), ["no.py"]),
    (("explain", "a.png", "--model", "no_such_module:f"), ["no_such_module"]),
    (("explain", "a.png", "--model", "net"), ["FILE.py:NAME", ".keras"]),
    (("explain", "a.png", "--model", "no.keras"), ["no.keras"]),
    (("explain", "a.png", "--model", "text.txt"), ["text.txt"]),
    (("explain", "a.png", "--model", "net.py:whole", "--weights", "w.h5"), ["keras.applications"]),
    (("explain", "a.png", "--model", "net.py:whole", "--target", "cot"), ["'cot'", "cat"]),
    (("explain", "a.png", "--model", "net.py:whole", "--target", "3"), ["0 to 2"]),
    (("explain", "a.png", "--model", "net.py:whole", "--rules", "epsilom"), ["epsilon"]),
    (("explain", "a.png", "--model", "net.py:whole", "--rules", "Gamma(a=1)"), ["Gamma", "'a'"]),
    (("explain", "a.png", "--model", "net.py:whole", "--rules", "Gamma(-1)"), ["at least"]),
    (("explain", "a.png", "--model", "net.py:whole", "--method", "gradent"), ["Gradient"]),
    (("explain", "a.png", "--model", "net.py:whole", "--method", "random(1)"), ["by name"]),
    (("explain", "a.png", "--model", "net.py:whole", "--method", "pattern_net"), ["patterns"]),
    (("explain", "a.png", "--model", "net.py:whole", "-o", "x.jpg"), ["x.jpg", ".png or .npz"]),
    (("explain", "a.png", "--model", "net.py:whole", "-o", "no/x.png"), ["folder"]),
    (("explain", "a.png", "--model", "net.py:whole", "--std", "0"), ["--std 0"]),
    (("explain", "a.png", "--model", "net.py:whole", "--mean", "1,2"), ["2 numbers", "3 channels"]),
    (("plan", "--model", "net.py:pair"), ["--shape"]),
    (("plan", "--model", "net.py:pair", "--shape", "6,x"), ["'6,x'"]),
    (("compare", "a.png", "--model", "net.py:whole", "--rules", "epsilon", "--rules", "epsilon"),
     ["epsilon", "twice"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "parts"), REFUSED, ids=[" ".join(w[1:]) for w, _ in REFUSED])
def test_what_is_refused(words, parts):
    """One line on stderr, exit status 2, no traceback, nothing written."""
    for name in ("relevance.png", "compare.png", "x.jpg"):
        Path(name).unlink(missing_ok=True)
    status, out, err = call(*words)
    assert status == 2
    assert out == ""
    assert err.startswith("relax: error: ")
    assert len(err.strip().splitlines()) == 1
    assert [part for part in parts if part not in err] == []
    assert not any(Path(name).exists() for name in ("relevance.png", "compare.png", "x.jpg"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("explan",), "explan"),
        (("explain",), "PICTURE"),
        (("compare",), "PICTURES"),
        (("explain", "a.png", "--rules", "epsilon", "--method", "gradient"), "--rules"),
        (("explain", "a.png", "--input-size", "6x8x3"), "224x320"),
        (("explain", "a.png", "--mean", "a"), "'a'"),
        (("explain", "a.png", "--top-k", "0"), "0"),
        (("plan", "--target", "3"), "--account"),
    ],
)
def test_wrong_words_show_the_usage(words, part):
    status, _, err = call(*words)
    assert status == 2
    assert err.startswith("Usage: python -m relax")
    assert part in err


@pytest.mark.parametrize(
    "text",
    [
        "epsilon(__import__('os').system('touch hacked'))",
        "epsilon(open('hacked', 'w'))",
        "epsilon(sums=Norm(open('hacked', 'w')))",
        "epsilon(**{'epsilon': 1})",
        "epsilon(1",
        "epsilon(x for x in [1])",
        "(1)",
        "epsilon(sums=Model())",
    ],
)
def test_options_are_read_and_never_run(text):
    """Only literals and rules stand in parentheses."""
    with pytest.raises(InputError, match=r"parentheses|expected NAME"):
        _methods.by_rules(text, lambda: (0.0, 1.0))
    assert not Path("hacked").exists()


def test_debug_shows_the_traceback():
    """What the user's code raised is the cause."""
    words = ["explain", "a.png", "--model", "net.py:broken", "--debug"]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, InputError)
    text = "".join(traceback.format_exception(found.exception))
    assert 'raise RuntimeError("no weights' in text


def test_warnings_are_lines():
    """On stderr, without a place in the code of relax."""
    Path("noisy.py").write_text(
        "import warnings\nfrom net import whole\ndef noisy():\n"
        "    warnings.warn('two\\nlines')\n    return whole()\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status, _, err = call("explain", "a.png", "--model", "noisy.py:noisy", "-o", "n.npz")
    assert status == 0
    assert err == "relax: warning: two lines\n"


def test_main_returns_the_status(monkeypatch, capsys):
    """0 and 2; without click one line that says what to install."""
    assert main(["--version"]) == 0
    assert main(["explain", "no.png", "--model", "net.py:whole"]) == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "relax.cli._app", None)
    monkeypatch.delitem(sys.modules, "relax.cli._app")
    monkeypatch.setitem(sys.modules, "click", None)
    assert main([]) == 2
    assert 'pip install "relax-lrp[cli]"' in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    status, _, err = call("explain", "a.png", "--model", "net.py:whole")
    assert status == 2
    assert 'pip install "relax-lrp[cli]"' in err
