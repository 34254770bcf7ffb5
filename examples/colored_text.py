"""Relevance as the color behind each word, in a terminal and as a page of HTML."""

import html
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_hex
from rich.style import Style
from rich.text import Text

from heatmap import RELEVANCE, color_limit
from words import Word, visible

ROWS = 16
_BAR = 24
_BARS = 40  # All bars of a row together.
_BAR_LIMIT = 1.5  # Bars show their size by length, so that their color need not be full.


class Passage(NamedTuple):
    """A text that a model has read, word by word, and what it went on with.

    Attributes:
        start: the mark at which the text begins and which no reader sees, if there is one. It may
            hold many times the relevance of a word, so that no color depends on it.
        words: what was given.
        generated: what the model itself has added, up to the answer.
        answer: the last token, which nothing follows, so that it has no relevance.
        scale: the limit of several passages that are to be compared.
    """

    start: Word | None
    words: Sequence[Word]
    generated: Sequence[Word] = ()
    answer: str = ""
    scale: float | None = None

    @property
    def limit(self) -> float:
        """The relevance, of either sign, that gets the full color: the largest of a word."""
        if self.scale is not None:
            return self.scale
        shares = [word.relevance for word in (*self.words, *self.generated)]
        return color_limit(np.array(shares), percentile=100)

    @property
    def total(self) -> float:
        """The relevance of the words and of the start."""
        return sum(word.relevance for word in (*self.marks, *self.words, *self.generated))

    @property
    def marks(self) -> Sequence[Word]:
        """The start, if there is one."""
        return () if self.start is None else (self.start,)


def comparable(passages: Mapping[str, Passage]) -> dict[str, Passage]:
    """The passages with one limit for all, that of the one which has the largest."""
    limit = max(passage.limit for passage in passages.values())
    return {name: passage._replace(scale=limit) for name, passage in passages.items()}


def colors(relevance: float, limit: float) -> tuple[str, str]:
    """The color behind a word, and black or white for the word itself, as "#rrggbb".

    Red speaks for the answer, blue against it, white is zero; beyond the limit nothing changes.
    """
    share = min(max(relevance / limit, -1.0), 1.0)
    red, green, blue, _ = RELEVANCE(0.5 + 0.5 * share)
    is_light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.55
    return to_hex((red, green, blue)), "#000000" if is_light else "#ffffff"


def number(relevance: float, limit: float) -> str:
    """Relevance with its sign, in a form that suits the largest of its neighbors."""
    return f"{relevance:+.2f}" if 0.1 <= limit < 1e4 else f"{relevance:+.1e}"


def colored_text(passage: Passage) -> Text:
    """The words and the answer for a terminal; what the model has added is underlined."""
    text = Text()
    for words, underline in ((passage.words, False), (passage.generated, True)):
        for word in words:
            ground, letters = colors(word.relevance, passage.limit)
            style = Style(color=letters, bgcolor=ground, underline=underline)
            text.append(visible(word.text), style)
    return text.append(visible(passage.answer), Style(bold=True, underline=True))


def bars(passage: Passage, rows: int = ROWS) -> Text:
    """A row for the start and for each word, in the order of the text, with number and bar.

    Args:
        passage: the words.
        rows: of more words than these only the most relevant have a row.
    """
    return _rows([passage], rows, _BAR)


def side_by_side(passages: Mapping[str, Passage], rows: int = ROWS) -> Text:
    """As ``bars``, of the same words in several passages, whose names stand above.

    Args:
        passages: name to passage; their colors and bars compare if they are ``comparable``.
        rows: of more words than these only those most relevant in a passage have a row.
    """
    length = min(_BARS // len(passages), _BAR)
    return _rows([*passages.values()], rows, length, [*passages])


def _rows(
    passages: Sequence[Passage], rows: int, length: int, headings: Sequence[str] = ()
) -> Text:
    columns = _chosen(passages, rows)
    width = max(len(_name(word)) for word in columns[0])
    text = Text()
    if headings:
        above = "".join(f"  {heading:>8}  {'':{length}}" for heading in headings)
        text.append(f"{'':{width}}{above}".rstrip() + "\n", Style(bold=True))
    for row in zip(*columns, strict=True):
        text.append(f"{_name(row[0]):>{width}}")
        for word, passage in zip(row, passages, strict=True):
            bar = "█" * round(length * _share(word, passage))
            text.append(f"  {number(word.relevance, passage.limit):>8}  ")
            text.append(f"{bar:{length}}", Style(color=_bar_color(word)))
        text.rstrip()
        text.append("\n")
    left = len(passages[0].words) + len(passages[0].generated) - rows
    return text.append(f"and {left} of less relevance\n" if left > 0 else "")


def _chosen(passages: Sequence[Passage], rows: int) -> list[list[Word]]:
    """Of each passage the start and the words that have a row, the same in all."""
    columns = [[*passage.words, *passage.generated] for passage in passages]
    sizes = [max(abs(word.relevance) for word in row) for row in zip(*columns, strict=True)]
    largest = sorted(sorted(range(len(sizes)), key=lambda i: -sizes[i])[:rows])
    return [
        [*passage.marks, *(column[i] for i in largest)]
        for passage, column in zip(passages, columns, strict=True)
    ]


def _share(word: Word, passage: Passage) -> float:
    return min(abs(word.relevance) / passage.limit, 1.0)


def _bar_color(word: Word) -> str:
    return colors(np.sign(word.relevance), _BAR_LIMIT)[0]


def html_page(
    title: str,
    about: str,
    probabilities: Sequence[tuple[str, float]],
    passages: Mapping[str, Passage | Mapping[str, Passage]],
) -> str:
    """A page that needs no other file; the number of a word shows where the mouse is.

    Args:
        title: what is explained.
        about: what explains it, small.
        probabilities: the tokens that might come next, each with how probable it is.
        passages: for the name of each rule, the words and their relevance; or several passages of
            the same words, of which bars stand side by side.
    """
    return _PAGE.substitute(
        title=html.escape(title),
        about=html.escape(about),
        scale=", ".join(colors(share, 1.0)[0] for share in np.linspace(-1, 1, 13)),
        probabilities="\n".join(
            f"<tr><td>{share:.1%}</td><td><code>{html.escape(token)}</code></td>"
            f'<td><i style="width: {10 * share:.2f}rem"></i></td></tr>'
            for token, share in probabilities
        ),
        passages="\n".join(
            _section(name, shown) if isinstance(shown, Passage) else _comparison(name, shown)
            for name, shown in passages.items()
        ),
    )


def _section(name: str, passage: Passage) -> str:
    limit = passage.limit
    given = "".join(_span(word, limit) for word in passage.words)
    added = "".join(_span(word, limit) for word in passage.generated)
    space, answer = _split(passage.answer)
    start = "".join(
        f"The start of the text, {html.escape(_name(mark))}, has "
        f"{number(mark.relevance, limit)}; the sum is "
        for mark in passage.marks
    )
    return _SECTION.substitute(
        name=html.escape(name),
        text=f"{given}<u>{added}</u>{space}" + (f"<b>{html.escape(answer)}</b>" if answer else ""),
        start=start or "The sum is ",
        total=number(passage.total, limit),
        limit=number(limit, limit).lstrip("+"),
    )


def _comparison(name: str, passages: Mapping[str, Passage]) -> str:
    columns = [[*passage.words, *passage.generated] for passage in passages.values()]
    names = "".join(f'<th colspan="2">{html.escape(heading)}</th>' for heading in passages)
    lines = [f"<tr><th></th>{names}</tr>"]
    for row in zip(*columns, strict=True):
        cells = [f"<td><code>{html.escape(_name(row[0]))}</code></td>"]
        for word, passage in zip(row, passages.values(), strict=True):
            width = f"{_BARS / len(passages) / 2 * _share(word, passage):.2f}rem"
            cells.append(
                f"<td>{number(word.relevance, passage.limit)}</td>"
                f'<td><i style="width: {width}; background: {_bar_color(word)}"></i></td>'
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return _COMPARISON.substitute(name=html.escape(name), rows="\n".join(lines))


def _span(word: Word, limit: float) -> str:
    ground, letters = colors(word.relevance, limit)
    parts = [f"{_name(word)}  {number(word.relevance, limit)}"]
    if len(word.tokens) > 1:
        parts += [f"{visible(t.text)!r}  {number(t.relevance, limit)}" for t in word.tokens]
    tip = html.escape("\n".join(parts)).replace("\n", "&#10;")
    space, shown = _split(word.text)
    return (
        f'{space}<span tabindex="0" style="background: {ground}; color: {letters}" '
        f'data-tip="{tip}">{html.escape(shown)}</span>'
    )


def _split(text: str) -> tuple[str, str]:
    """The spaces before a text, and the rest; spaces alone are the rest."""
    shown = visible(text)
    rest = shown.lstrip(" ") or shown
    return shown[: len(shown) - len(rest)], rest


def _name(word: Word) -> str:
    """The word in one line, without the space before it; spaces alone in quotes."""
    shown = visible(word.text).replace("\n", "").strip(" ")
    return shown or repr(word.text)


_SECTION = string.Template("""<section>
<h2>$name</h2>
<p class="text">$text</p>
<p class="small">$start$total;
full color at ±$limit.</p>
</section>""")

_COMPARISON = string.Template("""<section>
<h2>$name</h2>
<table class="bars">
$rows
</table>
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
code { white-space: pre; }
td { padding-right: 0.8rem; }
td:first-child { text-align: right; }
.bars { margin-top: 0.5rem; }
.bars th { padding-left: 1rem; text-align: left; }
.bars td:nth-child(even) { padding-left: 1rem; text-align: right; }
i { background: #c8c8c8; display: block; height: 0.7rem; }
.small { color: #666666; font-size: 0.85rem; margin: 0.3rem 0; }
.text {
  font-size: 1.3rem; line-height: 2; margin: 0.5rem 0;
  overflow-wrap: anywhere; white-space: pre-wrap;
}
.text u { text-decoration: none; }
.text u span { border-bottom: 3px solid #444444; }
.text b { border: 2px solid #444444; border-radius: 0.2rem; padding: 0.1rem 0.2rem; }
.text span { border-radius: 0.2rem; padding: 0.15rem 0.1rem; position: relative; }
.text span:hover::after, .text span:focus::after {
  background: #222222; border-radius: 0.3rem; color: #ffffff; content: attr(data-tip);
  font: 0.85rem/1.4 ui-monospace, monospace; left: 0; padding: 0.3rem 0.6rem; position: absolute;
  top: 100%; white-space: pre; z-index: 1;
}
.legend { align-items: center; display: flex; gap: 0.6rem; margin-top: 2rem; }
.legend span { background: linear-gradient(to right, $scale); height: 0.8rem; width: 12rem; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="small">$about</p>
<table>
$probabilities
</table>
$passages
<p class="small legend">speaks against <span></span> speaks for</p>
</main>
</body>
</html>
""")
