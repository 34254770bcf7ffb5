"""README.md and every page of docs/ do what they say: their snippets run and print what is shown.

The python blocks of a page are one program. What they have printed since the block of text before
must be the next block of text, to the letter, but for ``...``, which stands for anything within its
line. A first line ``<!-- needs: torch torchax -->`` skips a page without these packages, and
``<!-- slow -->`` leaves it to the slow tests.
"""

import contextlib
import io
import re
import sys
import types
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def directives(text):
    """The comments in the first lines of a page: what it needs, and whether it is slow."""
    head = re.match(r"(<!--.*?-->\n)*", text).group()
    needs = re.findall(r"<!-- needs: (.*?) -->", head)
    return " ".join(needs).split(), "<!-- slow -->" in head


def programs():
    """Each page with python in it, as an argument of the test below."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        if "```python" in text:
            _, slow = directives(text)
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(path, marks=marks, id=path.relative_to(ROOT).as_posix())


def run(text, name):
    """What each block of text says, and what was printed before it; last, what no block says."""
    module = sys.modules["page"] = types.ModuleType("page")  # dataclasses look their module up
    module.__dict__["__name__"] = "page"
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            for kind, block in BLOCK.findall(text):
                if kind == "python":
                    exec(compile(block, name, "exec"), module.__dict__)
                elif kind == "text":
                    yield block, printed.getvalue()
                    printed.seek(0)
                    printed.truncate()
        yield "", printed.getvalue()
    finally:
        del sys.modules["page"]
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("path", [*programs()])
def test_a_page_prints_what_it_says(path, tmp_path, monkeypatch):
    """As a user runs it: in float32, anywhere, broadcasting as NumPy does."""
    text = path.read_text(encoding="utf-8")
    needs, _ = directives(text)
    for package in needs:
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        for said, printed in run(text, path.name):
            pattern = "[^\n]*".join(map(re.escape, said.split("...")))
            if not re.fullmatch(pattern, printed):
                assert printed == said


def test_no_snippet_is_overlooked():
    """Each fence stands at the beginning of its line, names its language, and is closed.

    Code of other systems cannot run; it stands in docs/migrating alone and is marked ``py``.
    """
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        fences = re.findall(r"^[ >*-]*```.*$", text, flags=re.MULTILINE)
        opening, closing = fences[::2], fences[1::2]
        assert all(re.fullmatch(r"```\w+( .*)?", fence) for fence in opening), path
        assert closing == ["```"] * len(opening), path
        python = [fence for fence in opening if fence.startswith("```py")]
        others = {"```py"} if path.parent.name == "migrating" else set()
        assert set(python) <= {"```python"} | others, path
