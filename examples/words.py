"""From tokens, which are pieces of words and even of characters, to words that can be read."""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple


class Token(NamedTuple):
    """A piece of text and its relevance."""

    text: str
    relevance: float


class Word(NamedTuple):
    """A word with the space before it, its relevance, and the tokens that it was merged from."""

    text: str
    relevance: float
    tokens: tuple[Token, ...]


# Apostrophes and the points of numbers are inside a word if letters or digits follow.
_WORD = re.compile(r"\w+(?:['’]\w+|(?<=\d)[.,]\d+)*")
_JOINER = "\u200d"


def merge_words(pieces: Sequence[bytes], relevance: Sequence[float]) -> list[Word]:
    """Merges tokens into words; the relevance of a word is the sum of that of its tokens.

    Tokens belong together where a word or a character goes on from one to the next. Spaces belong
    to what follows them; punctuation and line breaks stay alone.

    Args:
        pieces: the bytes of each token; together they are a text in UTF-8.
        relevance: that of each token.

    Returns:
        The words. Their texts together are the text, with marks of replacement for bytes that are
        no UTF-8.
    """
    cuts = _cuts(b"".join(pieces))
    groups: list[list[tuple[bytes, float]]] = []
    place = 0
    for piece, share in zip(pieces, relevance, strict=True):
        if groups and (place not in cuts or not _join(groups[-1]).strip(b" ")):
            groups[-1].append((piece, float(share)))
        else:
            groups.append([(piece, float(share))])
        place += len(piece)
    return [
        Word(
            _decode(_join(group)),
            sum(share for _, share in group),
            tuple(Token(_decode(piece), share) for piece, share in group),
        )
        for group in groups
    ]


def visible(text: str) -> str:
    """The text with a sign for each line break, and one for all that controls a terminal."""
    shown = (c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    return "".join(shown).replace("\n", "⏎\n")


def _join(group: Sequence[tuple[bytes, float]]) -> bytes:
    return b"".join(piece for piece, _ in group)


def _decode(data: bytes) -> str:
    return data.decode(errors="replace")


def _cuts(data: bytes) -> set[int]:
    """The places in a text, counted in bytes, that are not inside a character or a word."""
    text = data.decode(errors="surrogateescape")  # A byte that is no UTF-8 is one character, too.
    sizes = (len(character.encode(errors="surrogateescape")) for character in text)
    places = list(itertools.accumulate(sizes, initial=0))
    attached = {i for i, c in enumerate(text) if unicodedata.category(c)[0] == "M" or c == _JOINER}
    letters = "".join("_" if i in attached else c for i, c in enumerate(text))
    inside = {i for word in _WORD.finditer(letters) for i in range(word.start() + 1, word.end())}
    return {place for i, place in enumerate(places) if i not in attached | inside}
