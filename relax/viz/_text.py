"""Relevance as the color behind each piece of a text: for terminals, notebooks and web pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import count
from relax.viz._colors import Colors, Scale, Symmetric, ink
from relax.viz._page import page, split_space, text_element
from relax.viz._text_bars import text_bars
from relax.viz._text_figure import text_figure
from relax.viz._words import Pieces, Tokenizer, grouped, read, summed

# What controls a terminal, or is no character of HTML, is replaced by its picture.
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_CONTROL |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_LEVELS = np.array([0, 95, 135, 175, 215, 255])  # of red, green and blue, of 256 colors


@dataclass(frozen=True, repr=False, eq=False)
class Text:
    """A text whose pieces have relevance; made by `text`.

    ``str(text)`` is the plain text; a notebook shows it in color, and so does rich.

    Attributes:
      pieces: what is colored, in order; with the answer they are the text.
      relevance: of each piece, ``(pieces,)``.
      scale: what makes colors of it; ``scale.limit`` is the magnitude of the full color.
      parts: what each piece was merged from: texts, and the relevance of each.
      generated: how many pieces at the end are the model's own; they are underlined.
      answer: what the model says then, in a frame; it has no relevance.
    """

    pieces: tuple[str, ...]
    relevance: np.ndarray
    scale: Scale
    parts: tuple[tuple[tuple[str, float], ...], ...]
    generated: int = 0
    answer: str = ""

    def __str__(self) -> str:
        return "".join(self.pieces) + self.answer

    def __repr__(self) -> str:
        return f"<Text of {len(self.pieces)} pieces, relevance {self.relevance.sum():+.4g}>"

    def ansi(self, *, colors: Literal["true", "256"] = "true", newline: str = "") -> str:
        """The text with colors of a terminal: ``print(text.ansi())``.

        Args:
          colors: ``"true"``, or ``"256"`` for terminals that have no more.
          newline: what is written before a line break, such as ``"⏎"``, to show its color.

        Raises:
          ArgumentError: there are no such colors.
        """
        if colors not in ("true", "256"):
            raise ArgumentError(f'ansi(colors={colors!r}): expected "true" or "256".')
        code = _true_color if colors == "true" else _256_color
        styles = []
        for i, ground in enumerate(self._grounds()):
            line = ";4" if i >= len(self.pieces) - self.generated else ""
            styles.append(f"38;{code(ink(ground))};48;{code(ground)}{line}")
        out = []
        for piece, style in zip((*self.pieces, self.answer), (*styles, "1;4"), strict=True):
            space, rest = split_space(piece.replace("\n", newline + "\n"))
            # The color ends before a line does: terminals would paint the rest of the line.
            rows = rest.split("\n")
            out.append(space + "\n".join(f"\x1b[{style}m{r}\x1b[0m" if r else "" for r in rows))
        return "".join(out)

    def html(self) -> str:
        """An element of HTML, with the number of each piece where the mouse is.

        Its text is exactly ``str(text)``. It needs no style sheet and no script.
        """
        return text_element(self, 'title="{}"')

    def _repr_html_(self) -> str:
        return self.html()

    def __rich__(self) -> Any:
        from rich.text import Text as Colored

        return Colored.from_ansi(self.ansi())

    def figure(self, *, columns: int = 80) -> Any:
        """The text as a figure of matplotlib: ``t.figure().savefig("text.pdf")``.

        Args:
          columns: letters in a line.

        Raises:
          ArgumentError: that is no positive number.
          ImportError: matplotlib is not installed.
        """
        return text_figure(self, columns)

    def save(self, path: str | Path, *, title: str = "Relevance") -> None:
        """Writes a page of HTML that needs no other file; see `page`.

        Raises:
          ArgumentError: the name does not end in ``.html``.
          OSError: the file cannot be written.
        """
        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise ArgumentError(f"save: {str(path)!r} does not end in .html.")
        Path(path).write_text(page(title, {"": self}), encoding="utf-8")

    def bars(self, rows: int = 16, *, ansi: bool = False) -> str:
        """A row for each piece, in the order of the text: name, number and bar, as plain text.

        Args:
          rows: of more pieces than these only the most relevant have a row.
          ansi: whether the bars have colors of a terminal.
        """
        return text_bars({"": self}, rows, ansi=ansi)

    def _grounds(self) -> list[np.ndarray]:
        return [*self.scale(self.relevance)]


def text(
    pieces: Pieces,
    relevance: Any,
    *,
    by_word: bool = False,
    tokenizer: Tokenizer = "auto",
    generated: int = 0,
    answer: str = "",
    percentile: float = 100,
    symmetric: Symmetric = True,
    colors: Colors = None,
    limit: float | None = None,
) -> Text:
    """A text with the color of relevance behind each piece: red speaks for the output.

    Letters are black or white, whichever can be read. Pieces that share a character, as those of a
    byte-level tokenizer may, are shown as one.

    Args:
      pieces: as the tokenizer writes them, or the bytes of each, or plain strings; see `words`.
      relevance: ``(pieces,)``, or ``(pieces, features)``, of which the sum is taken.
      by_word: whether pieces are merged into words.
      tokenizer: how spaces and bytes are written in the pieces; see `words`.
      generated: how many pieces at the end are the model's own; they are underlined, and make no
        words with those before them.
      answer: what the model says then, such as the token whose logit is explained. It stands behind
        the text in a frame, and has no relevance.
      percentile, symmetric, colors, limit: as in `heatmap`; nothing is clipped by default.

    Returns:
      A `Text`: ``print(t.ansi())``, ``t.html()``, ``t.save("t.html")``; notebooks show it.

    Raises:
      ArgumentError: there is not one number for each piece, or as `heatmap`.

    Example:
      >>> from relax import viz
      >>> t = viz.text(["▁Not", "▁b", "ad", "!"], [-1.0, 2.0, 1.0, 0.25], by_word=True)
      >>> print(t)
      Not bad!
      >>> print(t.bars())
      Not  -1.00  ████████
      bad  +3.00  ████████████████████████
        !  +0.25  ██
    """
    data, each = read(pieces, relevance, tokenizer)
    own = count("generated", generated) if generated else 0
    groups = grouped(data, by_word=by_word, own=own)
    r = summed(groups, each)
    return Text(
        tuple(group.text.translate(_CONTROL) for group in groups),
        r,
        Scale(r, percentile=percentile, symmetric=symmetric, colors=colors, limit=limit),
        tuple(tuple((_shown(data[i]), float(each[i])) for i in g.members) for g in groups),
        sum(group.members[0] >= len(each) - own for group in groups),
        answer.translate(_CONTROL),
    )


def _shown(piece: bytes) -> str:
    return piece.decode(errors="replace").translate(_CONTROL)


def _true_color(color: np.ndarray) -> str:
    return "2;" + ";".join(str(int(c)) for c in color)


def _256_color(color: np.ndarray) -> str:
    red, green, blue = np.abs(_LEVELS[None] - color.astype(int)[:, None]).argmin(1)
    return f"5;{16 + 36 * red + 6 * green + blue}"
