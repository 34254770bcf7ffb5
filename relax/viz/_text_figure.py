"""Text with relevance as a figure of matplotlib: for papers, as PDF or PNG, without TeX."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from relax.viz._arrays import count, extra
from relax.viz._canvas import INK, Canvas, plain_text
from relax.viz._colors import hexadecimal, ink
from relax.viz._text_bars import cells

if TYPE_CHECKING:
    from relax.viz._text import Text

# Inches.
_CELL = 0.1  # of a letter; all are equally wide
_LINE = 0.3
_MARGIN = 0.12

_SIZE = _CELL * 72 / 0.602  # points at which a letter of the font is so wide


class Box(NamedTuple):
    """A stretch of a piece in one line: which piece, where it begins, and what is written."""

    piece: int
    row: int
    column: int
    text: str


@plain_text
def text_figure(text: Text, columns: int) -> Any:
    """The text in lines of at most ``columns`` letters, with the color of relevance behind it."""
    boxes, rows = laid_out((*text.pieces, text.answer), count("columns", columns))
    width = max([columns // 2, *(box.column + cells(box.text) for box in boxes)])
    canvas = Canvas(2 * _MARGIN + width * _CELL, 2 * _MARGIN + rows * _LINE)
    panel = canvas.axes(_MARGIN, _MARGIN, width * _CELL, rows * _LINE)
    panel.set_axis_off()
    panel.set_xlim(0, width)
    panel.set_ylim(rows, 0)
    rectangle = extra("matplotlib.patches").Rectangle
    own = len(text.pieces)
    grounds = [*text.scale(text.relevance), np.full(3, 255, np.uint8)]
    for box in boxes:
        ground, answer = grounds[box.piece], box.piece == own
        wide = cells(box.text)
        frame = {"edgecolor": INK, "linewidth": 1.2} if answer else {}
        panel.add_patch(
            rectangle(
                (box.column, box.row + 0.1), wide, 0.8, facecolor=hexadecimal(ground), **frame
            )
        )
        if own - text.generated <= box.piece < own:
            ends = [box.column + 0.08, box.column + wide - 0.08]
            panel.plot(ends, [box.row + 0.93] * 2, color=INK, linewidth=1.4)
        panel.text(
            box.column + wide / 2,
            box.row + 0.5,
            box.text,
            ha="center",
            va="center_baseline",
            family="monospace",
            fontsize=_SIZE,
            fontweight="bold" if answer else "normal",
            color=hexadecimal(ink(ground)),
        )
    return canvas.figure


def laid_out(pieces: tuple[str, ...], columns: int) -> tuple[list[Box], int]:
    """Where each piece stands, and how many rows there are; a word is not broken if it fits."""
    boxes: list[Box] = []
    word: list[tuple[int, str]] = []
    row = column = 0

    def flush() -> None:
        nonlocal row, column
        if column and column + sum(cells(part) for _, part in word) > columns:
            row, column = row + 1, 0
        for i, part in word:
            boxes.append(Box(i, row, column, part))
            column += cells(part)
        word.clear()

    for i, piece in enumerate(pieces):
        for part in re.findall(r"\n| +|[^\n ]+", piece.replace("\t", "    ")):
            blank = part.isspace()
            if blank:
                flush()
            if part == "\n":
                row, column = row + 1, 0
            elif blank and piece.strip(" "):
                column += len(part) if column else 0  # no line begins with a space
            else:
                word.append((i, part))
    flush()
    return boxes, row + 1
