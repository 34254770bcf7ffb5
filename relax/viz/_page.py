"""Texts with relevance as one page of HTML that needs no other file."""

from __future__ import annotations

import html
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import count
from relax.viz._colors import Scale, hexadecimal, ink
from relax.viz._text_bars import amount, bar_color, largest_rows, one_line, same_pieces, share

if TYPE_CHECKING:
    from relax.viz._text import Text

_BARS = 20  # rem, all bars of a row together
_TIP = 'tabindex="0" data-tip="{}"'  # Shown at once, and by touch; that needs the style sheet.


def page(
    title: str,
    texts: Mapping[str, Text | Mapping[str, Text]],
    *,
    about: str = "",
    insert: str = "",
    ends: tuple[str, str] = ("speaks against", "speaks for"),
    rows: int = 24,
) -> str:
    """A page of HTML with a text for each rule, a legend, and numbers where the mouse is.

    Args:
      title: what is explained.
      texts: the name of each rule, and its text; or several texts of the same pieces by name, of
        which bars stand side by side.
      about: what explains it, small.
      insert: HTML of your own below that, which is not escaped.
      ends: the words at the ends of the legend.
      rows: of a comparison; of more pieces than these the most relevant.

    Returns:
      The page, to be written to a file in UTF-8.

    Raises:
      ArgumentError: there is no text, or texts that stand side by side have other pieces.

    Example:
      >>> from relax import viz
      >>> t = viz.text(["Not", " bad"], [-1.0, 2.0])
      >>> viz.page("Is it good?", {"epsilon": t}).startswith("<!DOCTYPE html>")
      True
    """
    if not texts:
        raise ArgumentError("page: there is no text.")
    count("rows", rows)
    sections, scales = [], []
    for name, shown in texts.items():
        if isinstance(shown, Mapping):
            sections.append(_comparison(name, shown, rows))
            scales += [text.scale for text in shown.values()]
        else:
            sections.append(_section(name, shown))
            scales.append(shown.scale)
    return _PAGE.substitute(
        title=html.escape(title),
        about=f'<p class="small">{html.escape(about)}</p>' if about else "",
        insert=insert,
        low=html.escape(ends[0] if scales[0].symmetric else "none"),
        high=html.escape(ends[1]),
        scale=_gradient(scales[0]),
        texts="\n".join(sections),
    )


def text_element(text: Text, tip: str) -> str:
    """A text as an element of HTML; ``tip`` is the attribute with the numbers of a piece."""
    out, grounds = [], text.scale(text.relevance)
    for i, (piece, ground) in enumerate(zip(text.pieces, grounds, strict=True)):
        parts = text.parts[i] if len(text.parts[i]) > 1 else ()
        numbers = [(one_line(piece), text.relevance[i]), *((repr(t), r) for t, r in parts)]
        lines = "\n".join(f"{t}  {amount(r, text.scale.limit)}" for t, r in numbers)
        made = i >= len(text.pieces) - text.generated
        space, rest = split_space(piece)
        out.append(
            f'{space}<span style="background:{hexadecimal(ground)};'
            f"color:{hexadecimal(ink(ground))};border-radius:0.2rem;padding:0.15rem 0.1rem"
            f'{";border-bottom:3px solid #444444" if made else ""}" '
            f"{tip.format(html.escape(lines))}>{html.escape(rest)}</span>"
        )
    if text.answer:
        space, rest = split_space(text.answer)
        frame = "border:2px solid #444444;border-radius:0.2rem;padding:0.1rem 0.2rem"
        out.append(f'{space}<b style="{frame}">{html.escape(rest)}</b>')
    return (
        '<div style="background:#ffffff;color:#222222;font:1.1rem/1.9 system-ui,sans-serif;'
        'overflow-wrap:anywhere;padding:0.4rem 0.6rem;white-space:pre-wrap">'
        f"{''.join(out)}</div>"
    )


def split_space(piece: str) -> tuple[str, str]:
    """The spaces before a piece, and the rest; spaces alone are the rest."""
    rest = piece.lstrip(" ") or piece
    return piece[: len(piece) - len(rest)], rest


def _section(name: str, text: Text) -> str:
    limit = text.scale.limit
    low = "\N{PLUS-MINUS SIGN}" if text.scale.symmetric else ""
    return _SECTION.substitute(
        name=f"<h2>{html.escape(name)}</h2>" if name else "",
        text=text_element(text, _TIP),
        total=amount(float(text.relevance.sum()), limit),
        limit=low + amount(limit, limit).lstrip("+"),
    )


def _comparison(name: str, texts: Mapping[str, Text], rows: int) -> str:
    shown = same_pieces(texts)
    names = "".join(f'<th colspan="2">{html.escape(heading)}</th>' for heading in texts)
    lines = [f"<tr><th></th>{names}</tr>"]
    chosen = largest_rows(shown, rows)
    for i in chosen:
        cells = [f"<td><code>{html.escape(one_line(shown[0].pieces[i]))}</code></td>"]
        for text in shown:
            width = f"{_BARS / len(shown) * share(text, i):.2f}rem"
            cells.append(
                f"<td>{amount(text.relevance[i], text.scale.limit)}</td>"
                f'<td><i style="width:{width};background:{hexadecimal(bar_color(text, i))}"></i>'
                "</td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    left = len(shown[0].pieces) - len(chosen)
    more = f'\n<p class="small">and {left} of less relevance</p>' if left else ""
    return _COMPARISON.substitute(name=html.escape(name), rows="\n".join(lines), more=more)


def _gradient(scale: Scale) -> str:
    places = np.linspace(0, len(scale.table) - 1, 17).astype(int)
    return ", ".join(hexadecimal(scale.table[i]) for i in places)


_SECTION = string.Template("""<section>
$name
$text
<p class="small">The sum is $total; full color at $limit.</p>
</section>""")

_COMPARISON = string.Template("""<section>
<h2>$name</h2>
<table>
$rows
</table>$more
</section>""")

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { background: #ffffff; color: #222222; font: 1rem/1.5 system-ui, sans-serif; }
main { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
h2 { font: bold 0.9rem ui-monospace, monospace; margin: 2rem 0 0; }
table { margin-top: 0.5rem; }
code { white-space: pre; }
td { padding-right: 0.8rem; }
td:first-child { text-align: right; }
th { padding-left: 1rem; text-align: left; }
td:nth-child(even) { padding-left: 1rem; text-align: right; }
i { background: #c8c8c8; display: block; height: 0.7rem; }
section > div { margin: 0.5rem -0.6rem 0; }
[data-tip] { position: relative; }
[data-tip]:hover::after, [data-tip]:focus::after {
  background: #222222; border-radius: 0.3rem; color: #ffffff; content: attr(data-tip);
  font: 0.85rem/1.4 ui-monospace, monospace; left: 0; padding: 0.3rem 0.6rem; position: absolute;
  top: 100%; white-space: pre; z-index: 1;
}
.small { color: #5f5f5f; font-size: 0.85rem; margin: 0.3rem 0; }
.legend { align-items: center; display: flex; gap: 0.6rem; margin-top: 2rem; }
.legend span {
  background: linear-gradient(to right, $scale);
  border: 1px solid #bfbfbf; height: 0.8rem; width: 12rem;
}
</style>
</head>
<body>
<main>
<h1>$title</h1>
$about
$insert
$texts
<p class="small legend">$low <span></span> $high</p>
</main>
</body>
</html>
""")
