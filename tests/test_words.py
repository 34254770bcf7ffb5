"""The words of the language model example: from tokens to words, and from words to a picture."""

import html.parser
import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rich", reason="extra `examples` not installed")
pytest.importorskip("matplotlib", reason="extra `examples` not installed")

from rich.console import Console

from colored_text import Passage, bars, colored_text, colors, html_page
from words import Token, Word, merge_words, visible

START = "<|endoftext|>"


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["The", " E", "iffel", " Tower", ","], ["The", " Eiffel", " Tower", ","]),
        ([" isn", "'t", " 'so", "'"], [" isn't", " 'so", "'"]),
        ([" ", "1", "8", "8", "9", ".", " ", "3", ".", "1"], [" 1889", ".", " 3.1"]),
        (["a", "\n", "\n", "  ", " b", "  "], ["a", "\n", "\n", "   b", "  "]),
        (["caf", "e", "\u0301", "s"], ["cafe\u0301s"]),
        ([START, "The"], [START, "The"]),
        ([], []),
    ],
)
def test_tokens_are_merged_to_words(tokens, words):
    merged = merge_words([token.encode() for token in tokens], [1.0] * len(tokens))
    assert [word.text for word in merged] == words
    assert [token.text for word in merged for token in word.tokens] == tokens
    assert [word.relevance for word in merged] == [len(word.tokens) for word in merged]


def test_a_character_may_be_split_over_tokens():
    (word,) = merge_words([b" Z\xc3", b"\xbcrich"], [0.5, 0.25])
    assert word == Word(" Zürich", 0.75, (Token(" Z\ufffd", 0.5), Token("\ufffdrich", 0.25)))


@given(text=st.text(), data=st.data())
def test_words_lose_neither_text_nor_relevance(text, data):
    """However a text is cut into tokens; a cut may be inside a character."""
    encoded = text.encode()
    places = st.sets(st.integers(1, max(len(encoded) - 1, 1)))
    cuts = [0, *sorted(p for p in data.draw(places) if p < len(encoded)), len(encoded)]
    pieces = [encoded[a:b] for a, b in itertools.pairwise(cuts) if a < b]
    relevance = [2.0**-number for number in range(len(pieces))]
    words = merge_words(pieces, relevance)
    assert "".join(word.text for word in words) == text
    assert [t.relevance for word in words for t in word.tokens] == relevance
    np.testing.assert_allclose(sum(word.relevance for word in words), sum(relevance))


def test_a_terminal_cannot_be_controlled():
    assert visible("a\x1b[31m\r b\n\tc") == "a\ufffd[31m\ufffd b⏎\n\tc"


def passage(*words, generated=(), answer=" Paris"):
    """Of texts and numbers, each word one token."""

    def word(text, relevance):
        return Word(text, relevance, (Token(text, relevance),))

    rest = [word(*pair) for pair in generated]
    return Passage(word(START, -9.0), [word(*pair) for pair in words], rest, answer)


def test_red_is_for_and_blue_against():
    def channels(relevance):
        ground, letters = colors(relevance, 2.0)
        return [int(ground[i : i + 2], 16) for i in (1, 3, 5)], letters

    ground, letters = channels(0.0)
    assert min(ground) > 250
    assert letters == "#000000"
    (red, _, blue), letters = channels(2.0)
    assert red > 2 * blue
    assert letters == "#ffffff"
    (red, _, blue), letters = channels(-2.0)
    assert blue > 2 * red
    assert letters == "#ffffff"
    assert channels(5.0) == channels(2.0)


def test_the_start_neither_sets_the_scale_nor_is_left_out_of_the_sum():
    shown = passage((" a", -1.0), (" b", 0.5), generated=[(" c", 2.0)])
    assert shown.limit == 2.0
    assert shown.total == -7.5


def render(*texts, **options):
    file = io.StringIO()
    console = Console(file=file, soft_wrap=True, highlight=False, **options)
    for text in texts:
        console.print(text)
    return file.getvalue()


def test_colors_are_for_terminals_that_want_them(monkeypatch):
    shown = passage((" a", -1.0), ("[b]", 0.5), answer=" c")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert render(colored_text(shown)) == " a[b] c\n"
    assert "48;5;" in render(colored_text(shown), force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;5;" not in render(colored_text(shown), force_terminal=True)


def test_only_the_most_relevant_words_have_a_bar():
    shown = passage((" a", -1.0), (" b", 0.1), ("\n", 0.5), (" ", 2.0))
    lines = bars(shown, rows=3).plain.splitlines()
    assert [line.split()[0] for line in lines] == [START, "a", "⏎", "'", "and"]
    assert [line.count("█") for line in lines] == [24, 12, 6, 24, 0]
    assert "-1.00" in lines[1]


class PageReader(html.parser.HTMLParser):
    """The text of the page, and the tips of its words, as a browser would show them."""

    def __init__(self):
        super().__init__()
        self.text, self.tips, self.tags = "", [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.tips += [value for name, value in attrs if name == "data-tip"]

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_words_as_they_are():
    """Nothing that a text contains is taken for HTML, or for a name in the template."""
    hostile = [('<script src="x">', 1.0), (" &amp;", -0.5), (" '\"$title", 0.25)]
    shown = passage(*hostile, generated=[(" ${name}</u>", 2.0)], answer=" <b>")
    reader = PageReader()
    reader.feed(html_page("<h1>$scale", "&lt;", [("'</td>'", 0.5)], {"<rule>": shown}))
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


def test_the_page_needs_no_other_file():
    page = html_page("title", "about", [], {"epsilon": passage((" a", 1.0))})
    assert not any(word in page for word in ("http", "src=", "href=", "url(", "@import"))
