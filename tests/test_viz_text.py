"""Text with relevance: every tokenizer's pieces, sums, colors, and that no character is lost."""

import html.parser
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import relax
from relax import viz

SENTENCE = "Don't panic: 3.14 is π, naïve é 👩🏽‍💻 日本語 ok.\n  End!"
ANSI = re.compile("\x1b\\[[0-9;]*m")
PIECES = st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=6), min_size=1)
ANY_PIECES = st.lists(st.text(max_size=4), min_size=1)


class Reader(html.parser.HTMLParser):
    """The text of an element, and attributes of each span."""

    def __init__(self, page):
        super().__init__()
        self.text, self.spans, self.open = "", [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "span":
            self.spans.append(dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def byte_level(text, sizes):
    """As GPT-2 writes the bytes of a text, cut into pieces of these sizes."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, more = {}, 256
    for byte in range(256):
        letters[byte] = chr(byte) if byte in printed else chr(more)
        more += byte not in printed
    whole = "".join(letters[byte] for byte in text.encode())
    cuts = np.cumsum(sizes)
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def test_byte_level_pieces_of_any_size(rng):
    """However the bytes are cut: the text is the text, and no character is broken."""
    for _ in range(20):
        sizes = rng.integers(1, 4, 15)
        pieces = byte_level(SENTENCE, sizes)
        assert "Ġ" in "".join(pieces)
        relevance = rng.normal(size=len(pieces))
        for by_word in (False, True):
            shown = viz.text(pieces, relevance, by_word=by_word)
            assert str(shown) == SENTENCE
            assert "\ufffd" not in "".join(shown.pieces)
            np.testing.assert_allclose(shown.relevance.sum(), relevance.sum())
        data = [bytes(p) for p in (SENTENCE.encode()[i : i + 2] for i in range(0, 80, 2)) if p]
        assert str(viz.text(data, np.ones(len(data)))) == SENTENCE


def test_words_of_single_characters():
    """Each by itself as a piece: words, numbers, emoji and Chinese are cut where a reader would."""
    found, relevance = viz.words(list(SENTENCE), np.ones(len(SENTENCE)), tokenizer="plain")
    assert found == [
        *["Don't", " panic", ":", " 3.14", " is", " π", ",", " naïve", " é", " 👩🏽‍💻", " 日"],
        *["本", "語", " ok", ".", "\n", "  End", "!"],
    ]
    np.testing.assert_array_equal(relevance, [len(word) for word in found])


@pytest.mark.parametrize(
    ("tokenizer", "pieces", "words"),
    [
        ("sentencepiece", ["▁Hel", "lo", "▁", "wor", "ld", "!"], ["Hello", " world", "!"]),
        ("sentencepiece", ["▁caf", "<0xC3>", "<0xA9>", "<0x0A>", "▁x"], ["café", "\n", " x"]),
        ("sentencepiece", ["<s>", "▁I"], ["<s>", " I"]),
        ("byte_level", ["caf", "Ã", "©", "Ġau", "Ċ"], ["café", " au", "\n"]),
        ("wordpiece", ["[CLS]", "un", "##like", "##ly", "."], ["[CLS]", " unlikely", "."]),
        ("wordpiece", ["don", "'", "t", "(", "a", "##b", ")"], ["don't", " (", "ab", ")"]),
        ("wordpiece", ["hello", "world", ",", "it"], ["hello", " world", ",", " it"]),
        ("bytes", [b"\xf0\x9f", b"\x98\x80", b" a", b"b"], ["😀", " ab"]),
        ("plain", ["##", " heading", " ▁ Ġ"], ["##", " heading", " ▁ Ġ"]),
        ("plain", [" isn", "'t", " 'so", "'"], [" isn't", " 'so", "'"]),
        ("plain", [" ", "1", "8", "8", "9", ".", " ", "3", ".", "1"], [" 1889", ".", " 3.1"]),
        ("plain", ["a", "\n", "\n", "  ", " b", "  "], ["a", "\n", "\n", "   b", "  "]),
        ("plain", ["caf", "e", "\u0301", "s"], ["cafe\u0301s"]),
        ("plain", ["<|endoftext|>", "The"], ["<|endoftext|>", "The"]),
    ],
)
def test_each_way_of_writing_pieces(tokenizer, pieces, words):
    """Named, and found out where the pieces tell; special pieces stay as they are."""
    relevance = 2.0 ** np.arange(len(pieces))
    found, sums = viz.words(pieces, relevance, tokenizer=tokenizer)
    assert found == words
    assert sums.sum() == relevance.sum()
    if tokenizer != "wordpiece" or any(piece.startswith("##") for piece in pieces):
        again = viz.words(pieces, relevance)
        assert again[0] == found
        np.testing.assert_array_equal(again[1], sums)


@given(
    ANY_PIECES, st.sampled_from(["plain", "sentencepiece", "byte_level", "wordpiece"]), st.data()
)
def test_words_conserve_relevance(pieces, tokenizer, data):
    """Whole numbers, so that sums are exact; of any pieces, control characters among them."""
    relevance = data.draw(st.lists(st.integers(-9, 9), min_size=len(pieces), max_size=len(pieces)))
    found, sums = viz.words(pieces, relevance, tokenizer=tokenizer)
    assert sums.sum() == sum(relevance)
    assert len(found) == len(sums) <= len(pieces)
    if tokenizer == "plain":
        assert "".join(found).encode(errors="replace") == "".join(pieces).encode(errors="replace")


@given(text=st.text(min_size=1), data=st.data())
def test_words_lose_neither_text_nor_relevance(text, data):
    """However the bytes of a text are cut; a cut may be inside a character."""
    encoded = text.encode()
    places = st.sets(st.integers(1, max(len(encoded) - 1, 1)))
    cuts = [0, *sorted(p for p in data.draw(places) if p < len(encoded)), len(encoded)]
    pieces = [encoded[a:b] for a, b in itertools.pairwise(cuts)]
    relevance = 2.0 ** -np.arange(len(pieces))
    own = data.draw(st.integers(0, len(pieces)))
    found, sums = viz.words(pieces, relevance)
    shown = viz.text(pieces, relevance, by_word=True, generated=own)
    assert "".join(found) == text
    np.testing.assert_allclose(sums.sum(), relevance.sum())
    assert [r for parts in shown.parts for _, r in parts] == relevance.tolist()
    assert sum(len(parts) for parts in shown.parts[len(shown.parts) - shown.generated :]) <= own
    np.testing.assert_allclose([sum(r for _, r in p) for p in shown.parts], shown.relevance)


@given(PIECES)
def test_ansi_without_colors_and_html_are_the_text(pieces):
    """Stripped of its codes, and as a parser reads it, the text is exactly that of the pieces."""
    relevance = np.arange(len(pieces)) - 1.0
    shown = viz.text(pieces, relevance, tokenizer="plain")
    whole = "".join(pieces)
    assert str(shown) == whole
    for colors in ("true", "256"):
        assert ANSI.sub("", shown.ansi(colors=colors)) == whole
    read = Reader(shown.html())
    assert read.text == whole
    assert read.open == []
    assert len(read.spans) == len(shown.pieces)


def test_nothing_controls_the_terminal_or_the_page():
    """Codes, tags and entities in the pieces are shown, not obeyed."""
    hostile = [
        "\x1b[31m",
        "\r",
        "\x00",
        "\x7f\x9b",
        "<script>alert(1)</script>",
        '" onload="',
        "&lt;",
    ]
    shown = viz.text(hostile, np.ones(7), tokenizer="plain")
    stripped = ANSI.sub("", shown.ansi())
    assert stripped == '␛[31m␍␀␡\ufffd<script>alert(1)</script>" onload="&lt;'
    read = Reader(shown.html())
    assert read.text == stripped
    assert all(set(span) == {"style", "title"} for span in read.spans)
    page = viz.page("<b>", {"<i>": shown}, about="<u>")
    assert not re.search("<(script|b|u|i)>", page)


def contrast(style):
    """WCAG 2: of the letters of a style on its ground."""
    ground, letters = (
        np.array(list(bytes.fromhex(h))) / 255
        for h in re.match(r"background:#(\w{6});color:#(\w{6})", style).groups()
    )
    light = []
    for c in (ground, letters):
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        light.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(light) / min(light)


@pytest.mark.parametrize("colors", ["blue_red", "cyan_orange", "PiYG", "jet"])
def test_letters_can_be_read_on_every_color(colors):
    """A contrast of at least 4.5 to 1, the bound of WCAG 2 AA; grounds are the heatmap's colors."""
    if colors in ("PiYG", "jet"):
        pytest.importorskip("matplotlib", reason="extra `viz` not installed")
    relevance = np.arange(-128, 129)
    shown = viz.text(["x"] * 257, relevance, colors=colors, tokenizer="plain")
    styles = [span["style"] for span in Reader(shown.html()).spans]
    assert min(contrast(style) for style in styles) >= 4.5
    grounds = [list(bytes.fromhex(style[12:18])) for style in styles]
    np.testing.assert_array_equal(
        grounds, viz.heatmap(relevance[None], limit=128, colors=colors)[0]
    )


def test_codes_of_a_terminal():
    """True colors written out; 256 colors are the nearest; a color ends before its line does."""
    shown = viz.text(["a", " b\n\nc"], [-1.0, 1.0])
    blue, red = "38;2;255;255;255;48;2;2;68;190", "38;2;255;255;255;48;2;158;1;23"
    letter = lambda code, c: f"\x1b[{code}m{c}\x1b[0m"
    want = letter(blue, "a") + " " + letter(red, "b") + "\n\n" + letter(red, "c")
    assert shown.ansi() == want
    assert ANSI.sub("", shown.ansi(newline="⏎")) == "a b⏎\n⏎\nc"
    ends = viz.text(["a"], [1.0], colors=["#000000", "#5f87ff"]).ansi(colors="256")
    assert ends == "\x1b[38;5;16;48;5;69ma\x1b[0m"  # 69 is #5f87ff
    underlined = viz.text(["a", "b"], [1, 1], generated=1).ansi()
    assert underlined.index(";4m") > underlined.index("a")


def test_rows_of_bars():
    """The largest have rows, in the order of the text; Chinese is two cells wide."""
    pieces = ["a", " 日本", " longer", "\n", " "]
    shown = viz.text(pieces, [0.5, -4.0, 2.0, 0.0, -0.1], tokenizer="plain")
    lines = shown.bars().split("\n")
    assert lines == [
        "     a  +0.50  " + "█" * 3,
        "  日本  -4.00  " + "█" * 24,
        "longer  +2.00  " + "█" * 12,
        "     ⏎  +0.00",
        "   ' '  -0.10  █",
    ]
    assert shown.bars(rows=2).split("\n")[2] == "and 3 of less relevance"
    assert ANSI.sub("", shown.bars(ansi=True)) == shown.bars()
    assert "38;2;" in shown.bars(ansi=True)
    both = viz.text_bars({"first": shown, "second": viz.text(pieces, [8, 0, 0, 0, 0])})
    assert both.split("\n")[0].split() == ["first", "second"]
    assert both.split("\n")[1].count("█") == 2 + 20
    tiny = viz.text(["a"], [2e-5]).bars()
    assert "+2.0e-05" in tiny


def test_a_page_holds_every_text(tmp_path):
    """Sections with sums, comparisons with bars; saved, it is read back."""
    one = viz.text(["Not", " bad"], [-1.0, 3.0])
    other = viz.text(["Not", " bad"], [0.5, 0.25])
    page = viz.page("Title & more", {"epsilon": one, "both": {"a": one, "b": other}}, insert="<hr>")
    for words in ("Title &amp; more", "<h2>epsilon</h2>", "The sum is +2.00", "±3.00", "<hr>"):
        assert words in page
    assert re.findall(r"width:([\d.]+)rem;b", page) == ["3.33", "10.00", "10.00", "5.00"]
    assert "linear-gradient(to right, #0244be" in page
    one.save(tmp_path / "t.html", title="Saved")
    saved = (tmp_path / "t.html").read_text(encoding="utf-8")
    shown = Reader(one.html())
    assert one._repr_html_() == one.html()
    assert "2 pieces" in repr(one)
    tips = [span["title"] for span in shown.spans]
    assert tips == ["Not  -1.00", "bad  +3.00"]
    body = saved.split("<section>")[1].split("</section>")[0]
    own = Reader(body)
    assert shown.text in own.text
    assert [span["data-tip"] for span in own.spans] == tips  # no title, which would be a second tip
    assert {span["tabindex"] for span in own.spans} == {"0"}
    assert [span["style"] for span in own.spans] == [span["style"] for span in shown.spans]
    assert "[data-tip]:focus::after" in saved
    tip = Reader(viz.text(["▁a", "b"], [1, 2], by_word=True).html()).spans[0]["title"]
    assert tip == "ab  +3.00\n'a'  +1.00\n'b'  +2.00"


def test_a_page_needs_no_other_file():
    """Nothing in it is fetched from anywhere."""
    page = viz.page("title", {"epsilon": viz.text(["a"], [1.0])}, about="about")
    assert not any(word in page for word in ("http", "src=", "href=", "url(", "@import"))


def test_the_answer_stands_behind_the_text():
    """In a frame, without a number, in bars, sums and colors as if it were not there."""
    pieces, relevance = ["It", " is"], [-1.0, 2.0]
    plain, shown = viz.text(pieces, relevance), viz.text(pieces, relevance, answer=" <b>\x1b ")
    assert str(shown) == "It is <b>␛ "
    assert ANSI.sub("", shown.ansi()) == str(shown)
    assert shown.ansi() == plain.ansi() + " \x1b[1;4m<b>␛ \x1b[0m"
    read = Reader(shown.html())
    assert read.text == str(shown)
    assert read.spans == Reader(plain.html()).spans
    assert "solid" in shown.html().split("<b ")[1]
    assert shown.bars() == plain.bars()
    assert "The sum is +1.00" in viz.page("", {"": shown})


def test_the_model_s_own_pieces_make_no_words_with_those_given():
    """Neither letters nor spaces go on over the edge, but a character stays whole."""
    words = lambda pieces, own: viz.text(
        pieces, np.ones(len(pieces)), by_word=True, tokenizer="bytes", generated=own
    )
    shown = words([b"Mon", b"day", b"s"], 2)
    assert shown.pieces == ("Mon", "days")
    assert shown.generated == 1
    assert words([b"a", b" ", b"b"], 1).pieces == ("a", " ", "b")
    assert words([b"a", b" ", b"b"], 2).pieces == ("a", " b")
    assert words([b"\xc3", b"\xa9", b"t"], 2).pieces == ("ét",)


def test_features_are_summed_and_limits_shared(rng):
    """Relevance of embeddings is summed; with one limit two texts have the same colors."""
    relevance = rng.normal(size=(3, 8))
    want = viz.text(["a", "b", "c"], relevance.sum(-1)).html()
    assert viz.text(["a", "b", "c"], relevance).html() == want
    half = viz.text(["a"], [1.0], limit=2.0).html()
    assert half.split("color")[0] in viz.text(["a", "b"], [1.0, 2.0]).html()
    zero = viz.text(["a", "b"], [0, 0])
    assert zero.html().count("background:#ffffff") == 3


T = viz.text(["a", "b"], [1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: viz.text(["a"], [1.0, 2.0]), "1 pieces for 2 numbers"),
        (lambda: viz.text("ab", [1.0, 2.0]), "one text"),
        (lambda: viz.text([1, 2], [1.0, 2.0]), "convert_ids_to_tokens"),
        (lambda: viz.text(["a", b"b"], [1.0, 2.0]), "bytes, str"),
        (lambda: viz.text(["a"], [np.nan]), "no number"),
        (lambda: viz.text(["a"], [[[1.0]]]), "text by text"),
        (lambda: viz.text([], []), "nothing to draw"),
        (lambda: viz.text(["a"], [1.0], tokenizer="bpe"), "byte_level, wordpiece"),
        (lambda: viz.text(["a"], [1.0], tokenizer="bytes"), "does not go with"),
        (lambda: viz.text(["a"], [1.0], generated=-1), "generated=-1"),
        (lambda: viz.text(["a"], [-1.0], symmetric=False), "one-sided"),
        (lambda: T.ansi(colors="16"), "16"),
        (lambda: T.save("t.pdf"), ".html"),
        (lambda: T.bars(0), "rows=0"),
        (lambda: T.figure(columns=0), "columns=0"),
        (lambda: viz.text_bars({}), "no text"),
        (lambda: viz.text_bars({"x": T, "y": viz.text(["a"], [1.0])}), "pieces of 'y'"),
        (lambda: viz.page("", {}), "no text"),
    ],
)
def test_errors(call, words):
    """What is wrong with which argument, and what to do."""
    if "columns" in words:
        pytest.importorskip("matplotlib", reason="extra `viz` not installed")
    with pytest.raises(relax.ArgumentError, match=words):
        call()
