"""What the examples about text print, and the pages that they write."""

import functools
import html.parser
import re

import numpy as np
import pytest

pytest.importorskip("rich", reason="extra `examples` not installed")

from relax import viz
from text_output import after_start, comparable, print_colored, print_likely, write_page

START = "<|endoftext|>"
plain = functools.partial(viz.text, tokenizer="plain")


class PageReader(html.parser.HTMLParser):
    """The text of a page, and the tips of its words, as a browser would show them."""

    def __init__(self):
        super().__init__()
        self.text, self.tips, self.tags = "", [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.tips += [value for name, value in attrs if name == "data-tip"]

    def handle_data(self, data):
        self.text += data


def test_the_start_neither_sets_the_scale_nor_is_left_out_of_the_sum():
    shown = after_start(plain, [START, " a", " b", " c"], np.array([-9.0, -1.0, 0.5, 2.0]))
    assert shown.scale.limit == 2.0
    assert shown.relevance.sum() == -7.5
    assert shown.pieces[0] == START


def test_texts_to_compare_have_one_limit():
    """The largest of a word in any of them; words are summed first."""
    rows = {"de": np.array([1.0, 2.0, -1.0]), "en": np.array([0.5, -2.0, 0.0])}
    by_letter = comparable(plain, ["a", "b", " c"], rows)
    by_word = comparable(functools.partial(plain, by_word=True), ["a", "b", " c"], rows)
    assert [*by_letter] == [*by_word] == ["de", "en"]
    assert {text.scale.limit for text in by_letter.values()} == {2.0}
    assert {text.scale.limit for text in by_word.values()} == {3.0}


@pytest.fixture
def terminal(monkeypatch):
    """Nothing that is set on this machine decides about colors."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


def test_colors_are_for_terminals_that_want_them(terminal, capsys):
    shown = plain([" a", "[b]", "\n", "d"], [-1.0, 0.5, 0.1, 0.2], answer=" c")
    red = plain(["x"], [1.0])  # rich keeps the codes of a color that it has printed

    def printed(text):
        print_colored(text.ansi(newline="⏎"))
        return capsys.readouterr().out

    assert printed(shown) == " a[b]⏎\nd c\n"
    terminal.setenv("FORCE_COLOR", "1")
    assert "48;5;" in printed(shown)
    terminal.setenv("COLORTERM", "truecolor")
    assert "48;2;158;1;23" in printed(red)
    terminal.setenv("NO_COLOR", "1")
    assert "48;" not in printed(shown)
    assert printed(red) == "x\n"


def test_a_terminal_cannot_be_controlled(terminal, capsys):
    """Codes in a text are shown, where there are colors too."""
    terminal.setenv("FORCE_COLOR", "1")
    print_colored(plain(["a\x1b[31m\r b", "\x9b2J"], [1.0, -1.0]).ansi())
    out = capsys.readouterr().out
    assert re.sub("\x1b\\[[0-9;]*m", "", out) == "a␛[31m␍ b\ufffd2J\n"
    assert "\x1b[31m" not in out


def test_likely_answers_are_printed(capsys):
    print_likely([("' Paris'", 0.982), ("' the'", 0.003)])
    assert capsys.readouterr().out == "  98.2%  ' Paris'\n   0.3%  ' the'\n"


def test_the_page_shows_words_as_they_are(tmp_path):
    """Nothing that a text contains is taken for HTML, or for a name in the template."""
    pieces = ['<script src="x">', " &amp;", " '\"$title", " ${name}</u>"]
    shown = plain(pieces, [1.0, -0.5, 0.25, 2.0], generated=1, answer=" <b>")
    output, reader = tmp_path / "page.html", PageReader()
    write_page(output, "<h1>$scale", "&lt;", [("'</td>'", 0.5)], {"<rule>": shown})
    reader.feed(output.read_text("utf-8"))
    for text in ("<h1>$scale", "&lt;", "'</td>'", "<rule>", "50.0%"):
        assert text in reader.text
    assert """<script src="x"> &amp; '"$title ${name}</u> <b>""" in reader.text
    assert "script" not in reader.tags
    assert reader.tips == [
        '<script src="x">  +1.00',
        "&amp;  -0.50",
        "'\"$title  +0.25",
        "${name}</u>  +2.00",
    ]


def test_texts_side_by_side_have_a_row_for_every_word(tmp_path):
    """However many: a page has room."""
    pieces = [f"w{i} " for i in range(60)]
    rows = {"de": np.arange(60.0), "en": np.arange(60.0)[::-1]}
    output, reader = tmp_path / "page.html", PageReader()
    write_page(output, "title", "about", [("de", 1.0)], {"rule": comparable(plain, pieces, rows)})
    page = output.read_text("utf-8")
    reader.feed(page)
    found = re.findall(r"w(\d+)\+(\d+)\.00\+(\d+)\.00", "".join(reader.text.split()))
    assert found == [(str(i), str(i), str(59 - i)) for i in range(60)]
    assert not any(word in page for word in ("http", "src=", "href=", "url(", "@import"))
