"""Relevance of pieces of text as rows: a name, a number, and a bar of block characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import count

if TYPE_CHECKING:
    from relax.viz._text import Text

_BAR = 24
_BARS = 40  # all bars of a row together
_STRONG = 0.7  # Bars show how much by their length, so that their color need not be full.


def text_bars(texts: Mapping[str, Text], rows: int = 16, *, ansi: bool = False) -> str:
    """The same text under several rules: a row for each piece, with a number and a bar for each.

    Args:
      texts: name to text. Bars compare within a text, and across texts if these share a ``limit``.
      rows: of more pieces than these only those most relevant in a text have a row.
      ansi: whether the bars have colors of a terminal.

    Raises:
      ArgumentError: there is no text, or their pieces differ.

    Example:
      >>> from relax import viz
      >>> pieces = ["Not", " bad"]
      >>> two = {"first": viz.text(pieces, [1, -2]), "second": viz.text(pieces, [4, 1])}
      >>> print(viz.text_bars(two))
           first                        second
      Not  +1.00  ██████████            +4.00  ████████████████████
      bad  -2.00  ████████████████████  +1.00  █████
    """
    shown = same_pieces(texts)
    chosen = largest_rows(shown, count("rows", rows))
    names = [one_line(shown[0].pieces[i]) for i in chosen]
    broad = max(cells(name) for name in names)
    lines = [" " * (broad - cells(name)) + name for name in names]
    length = min(_BARS // len(shown), _BAR)
    head = " " * broad
    for heading, text in zip(texts, shown, strict=True):
        numbers = [amount(text.relevance[i], text.scale.limit) for i in chosen]
        digits = max(len(n) for n in numbers)
        room = max(digits + 2 + length, cells(heading))
        head += "  " + heading + " " * (room - cells(heading))
        for row, (i, written) in enumerate(zip(chosen, numbers, strict=True)):
            bar = "█" * round(length * share(text, i))
            colored = f"\x1b[38;2;{_code(text, i)}m{bar}\x1b[0m" if ansi and bar else bar
            rest = " " * (room - digits - 2 - len(bar))
            lines[row] += f"  {written:>{digits}}  {colored}{rest}"
    left = len(shown[0].pieces) - len(chosen)
    above = [head] if any(texts) else []
    below = [f"and {left} of less relevance"] if left else []
    return "\n".join(line.rstrip() for line in (*above, *lines, *below))


def same_pieces(texts: Mapping[str, Text]) -> list[Text]:
    """The texts, of which the pieces are the same.

    Raises:
      ArgumentError: they are not, or there is none.
    """
    shown = list(texts.values())
    if not shown:
        raise ArgumentError("There is no text.")
    for name, text in texts.items():
        if text.pieces != shown[0].pieces:
            raise ArgumentError(
                f"The pieces of {name!r} are not those of {next(iter(texts))!r}; rows side by side "
                "are of the same text, cut into the same pieces."
            )
    return shown


def largest_rows(texts: Sequence[Text], rows: int) -> list[int]:
    """The numbers of the pieces most relevant in one of the texts, in the order of the text."""
    sizes = np.max([np.abs(text.relevance) / text.scale.limit for text in texts], axis=0)
    return sorted(np.argsort(-sizes, kind="stable")[:rows].tolist())


def amount(relevance: float, limit: float) -> str:
    """Relevance with its sign, in a form that suits the largest of its neighbors."""
    return f"{relevance:+.2f}" if 0.1 <= limit < 1e4 else f"{relevance:+.1e}"


def share(text: Text, i: int) -> float:
    """The magnitude of a piece as a part of the limit, up to 1."""
    return float(min(abs(text.relevance[i]) / text.scale.limit, 1.0))


def bar_color(text: Text, i: int) -> np.ndarray:
    """The color of a bar, which tells its sign."""
    return text.scale(np.array(np.sign(text.relevance[i]) * _STRONG * text.scale.limit))


def one_line(piece: str) -> str:
    """A piece in one line, without the space before it; spaces alone in quotes."""
    shown = piece.replace("\n", "⏎").replace("\t", "⇥").strip(" ")
    return shown or repr(piece)


def _code(text: Text, i: int) -> str:
    return ";".join(str(int(c)) for c in bar_color(text, i))


def cells(name: str) -> int:
    """How many cells of a terminal a name takes."""
    wide = {"W": 2, "F": 2}
    return sum(
        0 if unicodedata.category(c)[0] == "M" else wide.get(unicodedata.east_asian_width(c), 1)
        for c in name
    )
