"""Tables and numbers as a notebook shows them, and as rich prints them in a terminal."""

from __future__ import annotations

import html
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

_BLOCKS = "▁▂▃▄▅▆▇█"


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    caption: str = "",
    note: str = "",
    shades: Sequence[Sequence[float | None]] | None = None,
) -> str:
    """A table that needs no style sheet: its colors are those of the page, be it light or dark.

    Args:
      columns, rows: text, which is escaped.
      right: the columns that stand to the right, such as numbers.
      caption: above the table; ``note``: below it, line by line as it is.
      shades: of each cell, from -1, blue, to 1, red; None for none.
    """
    # Frontends center or right-align cells, each its own way, so every side is said. Only the class
    # is told apart, so two tables of a page share a style or do not meet.
    name = "-".join(["relax", *map(str, sorted(right))])
    sides = "".join(
        f".{name} tr>:nth-child({i + 1}){{text-align:right!important}}" for i in sorted(right)
    )
    style = (
        f".{name}{{border-collapse:collapse;color:inherit;font-variant-numeric:tabular-nums}}"
        f".{name} th,.{name} td{{border:0;padding:.2em .8em .2em 0;text-align:left!important;"
        "vertical-align:top}"
        f".{name} thead{{border-bottom:1px solid rgba(128,128,128,.6)}}"
        f".{name} caption{{caption-side:top;color:inherit;opacity:.75;text-align:left}}{sides}"
    )
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = []
    for i, row in enumerate(rows):
        cells = (
            f"<td{_shade(shades[i][j]) if shades else ''}>{html.escape(cell)}</td>"
            for j, cell in enumerate(row)
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    below = f"<pre>{html.escape(note)}</pre>" if note else ""
    return (
        f'<div style="overflow-x:auto"><style>{style}</style><table class="{name}">{above}'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{below}</div>"
    )


def _shade(share: float | None) -> str:
    """Translucent, so that letters of either color can be read on it."""
    if share is None or not np.isfinite(share):
        return ""
    color = "214,69,65" if share > 0 else "52,120,198"
    return f' style="background:rgba({color},{0.5 * min(abs(share), 1):.2f})"'


def html_lines(lines: str) -> str:
    """Text in lines as it is."""
    return f"<pre>{html.escape(lines)}</pre>"


def rich_lines(lines: str) -> Any:
    """Text in lines as it is, for rich, which would take brackets for markup."""
    from rich.text import Text

    return Text(lines)


def rich_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    caption: str = "",
    note: str = "",
    shades: Sequence[Sequence[float | None]] | None = None,
) -> Any:
    """The same as a table of rich, which comes with whoever asks for it.

    Nothing in a cell is markup, so layers may be called ``[head]``; where there is no room cells
    are broken, and nothing of them is cut.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        side = "right" if i in right else "left"
        table.add_column(Text(column, overflow="fold"), justify=side, overflow="fold")
    for i, row in enumerate(rows):
        shade = shades[i] if shades else (None,) * len(row)
        cells = (Text(cell, _style(share)) for cell, share in zip(row, shade, strict=True))
        table.add_row(*cells)
    # Not the title of the table, which is broken where that is narrow.
    parts = (Text(caption) if caption else None, table, Text(note) if note else None)
    return Group(*(part for part in parts if part is not None))


def _style(share: float | None) -> str:
    if share is None or not np.isfinite(share) or abs(share) < 0.25:
        return ""
    return ("bold " if abs(share) > 0.6 else "") + ("red" if share > 0 else "blue")


def sparkline(values: Any) -> str:
    """Numbers as blocks of a terminal, the least and the largest as low and high as they go."""
    x = np.asarray(values, np.float64)
    finite = x[np.isfinite(x)]
    if not finite.size:
        return "?" * x.size
    low, span = finite.min(), np.ptp(finite)
    places = np.rint((x - low) / (span or 1.0) * (len(_BLOCKS) - 1))
    return "".join(_BLOCKS[int(p)] if np.isfinite(p) else "?" for p in places)


def html_curve(x: Any, y: Any, error: Any = None, *, label: str) -> str:
    """A line, with a band of ``error`` around it, as a small picture in the color of the text."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    error = np.zeros_like(y) if error is None else np.asarray(error, np.float64)
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(error)
    x, y, error = x[good], y[good], error[good]
    if len(x) < 2:
        return html_lines(label)
    width, height, edge = 240.0, 80.0, 3.0
    low, high = (y - error).min(), (y + error).max()
    across = edge + (width - 2 * edge) * (x - x[0]) / ((x[-1] - x[0]) or 1.0)
    up = lambda v: height - edge - (height - 2 * edge) * (v - low) / ((high - low) or 1.0)
    points = lambda xs, ys: " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
    band = points(np.r_[across, across[::-1]], np.r_[up(y + error), up(y - error)[::-1]])
    return (
        f'<div><svg width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{html.escape(label)}" style="color:inherit">'
        f'<polygon points="{band}" fill="currentColor" opacity=".2"/>'
        f'<polyline points="{points(across, up(y))}" fill="none" stroke="currentColor" '
        f'stroke-width="1.5"/></svg>{html_lines(label)}</div>'
    )
