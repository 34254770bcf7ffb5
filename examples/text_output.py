"""What the examples about text share: what they print, and the page that they write."""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text

from relax import viz


def print_likely(likely: Sequence[tuple[str, float]]) -> None:
    """Prints the answers that a network thinks likely, each with how probable it is."""
    for answer, probability in likely:
        print(f"{probability:7.1%}  {answer}")


def print_colored(codes: str) -> None:
    """Prints text with codes of a terminal, in the colors that it has: a file gets only the text.

    A terminal whose user has set ``NO_COLOR`` gets no colors either.
    """
    Console(highlight=False, soft_wrap=True).print(Text.from_ansi(codes))


def after_start(
    make: Callable[..., viz.Text], pieces: Sequence[str] | Sequence[bytes], relevance: np.ndarray
) -> viz.Text:
    """A text whose colors do not depend on its first piece, a mark that no reader has written.

    Networks attend to it where they look for nothing in the text, so that it may hold many times
    the relevance of a word.

    Args:
        make: ``relax.viz.text``, with options.
        pieces: what is read; two or more.
        relevance: that of each.
    """
    limit = viz.color_limit(make(pieces[1:], relevance[1:]).relevance, percentile=100)
    return make(pieces, relevance, limit=limit)


def comparable(
    make: Callable[..., viz.Text],
    pieces: Sequence[str] | Sequence[bytes],
    rows: Mapping[str, np.ndarray],
) -> dict[str, viz.Text]:
    """One text with several relevances, by name, in colors with one limit for all.

    Args:
        make: ``relax.viz.text``, with options.
        pieces: what is read.
        rows: name to the relevance of each piece.
    """
    shares = [make(pieces, row).relevance for row in rows.values()]
    limit = viz.color_limit(*shares, percentile=100)
    return {name: make(pieces, row, limit=limit) for name, row in rows.items()}


def write_page(
    path: Path,
    title: str,
    caption: str,
    likely: Sequence[tuple[str, float]],
    texts: Mapping[str, viz.Text | Mapping[str, viz.Text]],
) -> None:
    """Writes a page of HTML, as ``relax.viz.page`` makes it, with a table of likely answers.

    Args:
        path: of the file.
        title: what is explained.
        caption: what explains it, and announces the answers.
        likely: the answers, each with how probable it is.
        texts: as in ``relax.viz.page``; where texts stand side by side, every word has a row.

    Raises:
        OSError: the file cannot be written.
    """
    rows = "\n".join(
        f'<tr><td>{share:.1%}</td><td style="text-align:left"><code>{html.escape(answer)}</code>'
        f'</td><td><i style="width:{10 * share:.2f}rem"></i></td></tr>'
        for answer, share in likely
    )
    table = f"<table>\n{rows}\n</table>"
    groups = ([t] if isinstance(t, viz.Text) else t.values() for t in texts.values())
    longest = max(len(text.pieces) for group in groups for text in group)
    page = viz.page(title, texts, about=caption, insert=table, rows=longest)
    path.write_text(page, encoding="utf-8")
