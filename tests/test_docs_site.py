"""The documentation site: nothing is left out, no link is dead, every public name is on a page."""

import base64
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
from pathlib import Path

import pytest

import relax

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SETTINGS = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def without_code(text):
    """The text of a page without its blocks and its inline code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()$]", "", code.group()), text)


def anchors(text):
    """The headings of a page as the site and GitHub name them."""
    for heading in re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE):
        plain = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def test_every_page_is_in_the_navigation():
    """And nothing else is."""
    listed = re.findall(r"([\w./-]+\.(?:md|ipynb))$", SETTINGS.split("\nnav:")[1], re.MULTILINE)
    there = [path.relative_to(DOCS).as_posix() for path in (*PAGES, *DOCS.rglob("*.ipynb"))]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize(
    "index", sorted(DOCS.rglob("README.md")), ids=lambda path: path.parent.name
)
def test_an_index_names_every_page_of_its_folder(index):
    """A folder may also have links elsewhere."""
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index.read_text(encoding="utf-8")))
    assert {path.name for path in index.parent.glob("*.md")} - {"README.md"} <= linked


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda path: path.name
)
def test_links_lead_somewhere(path):
    """To a file of the repository, from a page of the site to one of the site; to its heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        if path.is_relative_to(DOCS):
            assert found.is_relative_to(DOCS), f"{target} is not on the site"
            assert found.is_file(), f"{target} is a folder"
        if anchor:
            assert anchor in set(anchors(found.read_text(encoding="utf-8"))), target


def public():
    """Every public name, with its module."""
    for name in relax.__all__:
        if not inspect.ismodule(getattr(relax, name)):
            yield f"relax.{name}"
        elif name != "adapters":
            yield from names_of(f"relax.{name}")
    yield from names_of("relax.cli")
    for found in pkgutil.iter_modules(importlib.import_module("relax.adapters").__path__):
        if not found.name.startswith("_"):
            yield from names_of(f"relax.adapters.{found.name}")


def names_of(module):
    return [f"{module}.{name}" for name in importlib.import_module(module).__all__]


def test_every_public_name_is_on_a_page():
    """Once, and no name that there is not."""
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: ([\w.]+)$", pages, flags=re.MULTILINE)
    assert sorted(shown) == sorted({*public()} - {"relax.__version__"})


@pytest.fixture(scope="module")
def build():
    """The script that makes the site."""
    pytest.importorskip("yaml", reason="extra `docs` not installed")
    pytest.importorskip("latex2mathml", reason="extra `docs` not installed")
    spec = importlib.util.spec_from_file_location("build", DOCS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def formulas(text):
    """Displayed and inline formulas, as LaTeX."""
    displayed = re.findall(r"\$\$(.*?)\$\$", text, flags=re.DOTALL)
    rest = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return displayed + re.findall(r"\$([^$\s](?:[^$\n]*[^$\s])?)\$", rest)


def test_every_formula_becomes_mathml(build):
    """Of the pages and of the docstrings; an unknown command would stand in the page as it is."""
    texts = [without_code(path.read_text(encoding="utf-8")) for path in PAGES]
    for name in public():
        module, _, item = name.rpartition(".")
        texts.append(inspect.getdoc(getattr(importlib.import_module(module), item)) or "")
    found = [formula for text in texts for formula in formulas(text)]
    assert len(found) > 100
    assert all(build.mathml(formula, display=True).startswith("<math") for formula in found)
    with pytest.raises(ValueError, match=r"no MathML for '\\\\unheard"):
        build.mathml(r"\unheard{x}", display=False)


def test_formulas_in_a_page(build, tmp_path):
    """Displayed and inline, with escaped signs; everything else stays."""
    page = tmp_path / "deep" / "index.html"
    page.parent.mkdir()
    page.write_text(
        '<p>$5 <span class="arithmatex">\\(a &lt; b\\)</span></p>'
        '<div class="arithmatex">\\[c\n= d\\]</div><pre>\\(e\\)</pre>'
    )
    assert build.render_formulas(tmp_path) == 2
    text = page.read_text()
    inline, block = re.findall(r"<math.*?</math>", text, flags=re.DOTALL)
    assert "&lt;" in inline or "&#x0003C;" in inline
    assert 'display="inline"' in inline
    assert 'display="block"' in block
    assert text.startswith("<p>$5 <math")
    assert text.endswith("<pre>\\(e\\)</pre>")


def test_a_notebook_becomes_a_page(build, tmp_path):
    """Text, code, and what it printed, showed and drew; a cell that is empty is left out."""
    picture = b"\x89PNG..."
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]},
        {"output_type": "display_data", "data": {
            "image/png": base64.b64encode(picture).decode(), "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {
            "text/html": ["<table>\n", "\n", "</table>"], "text/plain": "table"}},
        {"output_type": "execute_result", "data": {"text/plain": ["(3, ", "4)"]}},
    ]  # fmt: skip
    cells = [
        {"cell_type": "markdown", "source": ["# Digits\n", "\n", "Text."]},
        {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": outputs},
        {"cell_type": "code", "source": [], "outputs": []},
    ]
    path = tmp_path / "digits.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    page = build.page_of_notebook(path)
    (name,) = re.findall(r"!\[output\]\((\S+)\)", page)
    assert (tmp_path / name).read_bytes() == picture
    assert page == (
        "# Digits\n\nText.\n\n```python\nx = 1\nx\n```\n\n```text\none\ntwo\n```\n\n"
        f"![output]({name})\n\n"
        '<div class="output">\n<table>\n</table>\n</div>\n\n```text\n(3, 4)\n```\n'
    )


@pytest.mark.slow
def test_pictures_of_the_idea(tmp_path):
    """The script draws what the page shows."""
    pytest.importorskip("matplotlib", reason="extra `viz` not installed")
    pytest.importorskip("sklearn", reason="extra `sklearn` not installed")
    spec = importlib.util.spec_from_file_location("draw_idea", DOCS / "draw_idea.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import jax

    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        spec.loader.exec_module(module)  # its arrays are of single precision, as those of a script
        assert module.main(["--output", str(tmp_path)]) == 0
    page = (DOCS / "idea.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(idea/(\w+\.png)\)", page))
    assert {path.name for path in tmp_path.iterdir()} == shown
