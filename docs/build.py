"""Builds the documentation site, offline: python docs/build.py, or with --serve to look at it.

Zensical makes the pages from mkdocs.yml, strictly: a dead link or an unknown name is an error.
Around it this file does what it has no plugin for: notebooks become pages before, with the outputs
that are stored in them, and formulas become MathML after, so that reading them needs no script.
"""

from __future__ import annotations

import argparse
import base64
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def page_of_notebook(path: Path) -> str:
    """A notebook as Markdown; its pictures are written beside it."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                parts.append(_output(output, path, len(parts)))
    return "\n\n".join(parts) + "\n"


def _output(output: dict, path: Path, number: int) -> str:
    """One output of a cell, in its richest form that a page can show."""
    data = output.get("data", {})
    text = lambda kind: "".join(data[kind])
    if "image/png" in data:
        picture = path.with_name(f"{path.stem}_{number}.png")
        picture.write_bytes(base64.b64decode(text("image/png")))
        return f"![output]({picture.name})"
    if "text/html" in data:
        lines = [line for line in text("text/html").splitlines() if line.strip()]
        return "\n".join(['<div class="output">', *lines, "</div>"])
    plain = "".join(output["text"]) if "text" in output else text("text/plain")
    return f"```text\n{plain.rstrip()}\n```"


def staged(folder: Path) -> Path:
    """A copy of the pages with notebooks turned into pages, and the configuration for it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in (folder / "docs").rglob("*.ipynb"):
        path.with_suffix(".md").write_text(page_of_notebook(path), encoding="utf-8")
        path.unlink()
    for path in (folder / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"(\]\([\w./]+)\.ipynb\b", r"\1.md", text), encoding="utf-8")
    given = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace(".ipynb", ".md")
    settings = yaml.safe_load(given)
    (handler,) = (p["mkdocstrings"] for p in settings["plugins"] if isinstance(p, dict))
    python = handler["handlers"]["python"]
    python["paths"] = [str(ROOT / path) for path in python["paths"]]
    python["options"]["extensions"] = [str(ROOT / p) for p in python["options"]["extensions"]]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return folder / "mkdocs.yml"


def mathml(formula: str, display: bool) -> str:
    """LaTeX as MathML; a command that the converter does not know is an error."""
    from latex2mathml.converter import convert

    formula = formula.replace(r"\arg", r"\operatorname{arg}")  # which the converter does not know
    made = convert(formula, display="block" if display else "inline")
    if "\\" in html.unescape(made):
        raise ValueError(f"no MathML for {formula!r}: it became {made}")
    return made


def render_formulas(site: Path) -> int:
    """Replaces every formula in the pages of a site; returns how many there were."""
    count = 0
    for path in site.rglob("*.html"):
        text, found = FORMULA.subn(
            lambda match: mathml(html.unescape(match[2]), match[1] == "div"),
            path.read_text(encoding="utf-8"),
        )
        if found:
            path.write_text(text, encoding="utf-8")
        count += found
    return count


def main(arguments: list[str] | None = None) -> int:
    """Builds the site; returns 0 if there was nothing to complain about."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="serve the site on port 8000")
    options = parser.parse_args(arguments)
    config = staged(ROOT / "build" / "site")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(config)]
    done = subprocess.run(command)
    if done.returncode:
        return done.returncode
    site = ROOT / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(config.parent / "site", site)
    print(f"{render_formulas(site)} formulas, in {site}")
    if options.serve:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
        http.server.ThreadingHTTPServer(("localhost", 8000), handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
