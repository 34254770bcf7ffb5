"""From the pieces of any tokenizer to text, and from pieces to words that can be read."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import reals

Tokenizer = Literal["auto", "plain", "bytes", "sentencepiece", "byte_level", "wordpiece"]
Pieces = Sequence[str] | Sequence[bytes]

# Scripts without spaces between words: there a piece is the best word that is known.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W{_UNSPACED}]"
# Apostrophes and the points of numbers are inside a word if letters or digits follow.
_WORD = re.compile(rf"{_LETTER}+(?:['’]{_LETTER}+|(?<=\d)[.,]\d+)*")
_JOINER = "\u200d"
_SKIN = range(0x1F3FB, 0x1F400)  # tones of skin belong to the emoji before them
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # how SentencePiece writes a byte without a piece
# Before these WordPiece had no space in the text, most likely; after the others neither.
_CLOSING = re.compile(r"[.,!?;:%)\]}’'…]+")
_OPENING = re.compile(r"[(\[{]")
_CONTRACTED = ("s", "t", "d", "m", "re", "ve", "ll")


class Group(NamedTuple):
    """Pieces that are shown as one: their text, and which of them there are."""

    text: str
    members: tuple[int, ...]


def words(
    pieces: Pieces, relevance: Any, *, tokenizer: Tokenizer = "auto"
) -> tuple[list[str], np.ndarray]:
    """Merges the pieces of a tokenizer into words; a word has the sum of their relevance.

    Pieces belong together where a word or a character goes on from one to the next. Spaces belong
    to what follows them; punctuation and line breaks stay alone. In scripts without spaces, such as
    Chinese or Thai, pieces stay as they are.

    Args:
      pieces: as the tokenizer writes them (``convert_ids_to_tokens``), or the bytes of each.
      relevance: ``(pieces,)``, or ``(pieces, features)``, of which the sum is taken.
      tokenizer: how spaces and bytes are written. ``"sentencepiece"``: ``▁`` for a space,
        ``<0xE2>`` for a byte; ``"byte_level"``: ``Ġ`` for a space, as GPT-2; ``"wordpiece"``:
        ``##`` for no space, as BERT, where the spaces at punctuation are guessed; ``"bytes"``;
        ``"plain"``: they are the text. ``"auto"`` finds out, and takes pieces that hold a space as
        plain.

    Returns:
      The words, whose texts together are the text, and their relevance, ``(words,)``.

    Raises:
      ArgumentError: there is not one number for each piece, or a piece is of another kind.

    Example:
      >>> from relax import viz
      >>> viz.words(["▁Rel", "ev", "ance", "▁flows", "."], [0.5, 0.25, 0.25, 2.0, 0.0])
      (['Relevance', ' flows', '.'], array([1., 2., 0.]))
      >>> viz.words(["un", "##like", "##ly"], [1.0, 2.0, -1.0])[0]
      ['unlikely']
    """
    data, r = read(pieces, relevance, tokenizer)
    groups = grouped(data, by_word=True)
    return [group.text for group in groups], summed(groups, r)


def read(pieces: Pieces, relevance: Any, tokenizer: Tokenizer) -> tuple[list[bytes], np.ndarray]:
    """The bytes of each piece, with its space, and the relevance of each, ``(pieces,)``."""
    r = reals("The relevance", relevance)
    if r.ndim == 2:
        r = r.sum(-1)
    if r.ndim != 1:
        raise ArgumentError(
            f"The relevance has shape {r.shape}; expected (pieces,) or (pieces, features). Draw a "
            "batch text by text."
        )
    if isinstance(pieces, (str, bytes)) or len(pieces) != len(r):
        what = "one text" if isinstance(pieces, (str, bytes)) else f"{len(pieces)} pieces"
        raise ArgumentError(
            f"There are {what} for {len(r)} numbers; expected a list of pieces, one for each. "
            "Special pieces such as <s> count, or leave their relevance out too."
        )
    return _as_bytes(list(pieces), tokenizer), r


def grouped(data: Sequence[bytes], *, by_word: bool, own: int = 0) -> list[Group]:
    """Pieces that must be shown together: those of a character, and of a word if wanted.

    The last ``own`` of them make no words with those before.
    """
    whole = b"".join(data)
    cuts = _cuts(whole, by_word)
    apart = sum(len(piece) for piece in data[: len(data) - own]) if own else -1
    if apart in _cuts(whole, by_word=False):
        cuts.add(apart)
    groups: list[list[int]] = []
    place = 0
    for i, piece in enumerate(data):
        before = b"".join(data[j] for j in groups[-1]) if groups else b""
        blank = by_word and before != b"" and not before.strip(b" ") and place != apart
        if groups and (place not in cuts or (blank and piece)):
            groups[-1].append(i)
        else:
            groups.append([i])
        place += len(piece)
    return [
        Group(b"".join(data[i] for i in group).decode(errors="replace"), tuple(group))
        for group in groups
    ]


def summed(groups: Sequence[Group], relevance: np.ndarray) -> np.ndarray:
    """Relevance of each group."""
    return np.array([relevance[list(group.members)].sum() for group in groups])


def _cuts(data: bytes, by_word: bool) -> set[int]:
    """The places in a text, counted in bytes, that are not inside a character or a word."""
    text = data.decode(errors="surrogateescape")  # A byte that is no UTF-8 is one character, too.
    sizes = (len(character.encode(errors="surrogateescape")) for character in text)
    places = list(itertools.accumulate(sizes, initial=0))
    inside = {i for i, c in enumerate(text) if i and _attached(text[i - 1], c)}
    if by_word:
        letters = list(text)
        for i in sorted(inside):  # for the words an accent is the letter that it is on
            letters[i] = letters[i - 1]
        for word in _WORD.finditer("".join(letters)):
            inside.update(range(word.start() + 1, word.end()))
    return {place for i, place in enumerate(places) if i not in inside}


def _attached(before: str, c: str) -> bool:
    """Whether a character is a part of the one before it, for the eye."""
    mark = unicodedata.category(c)[0] == "M" or c == _JOINER or ord(c) in _SKIN
    return mark or before == _JOINER


def _as_bytes(pieces: list[Any], tokenizer: Tokenizer) -> list[bytes]:
    kinds = {type(piece) for piece in pieces}
    if not kinds <= {str, np.str_} and not kinds <= {bytes, np.bytes_}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ArgumentError(
            f"The pieces are {names}; expected all str or all bytes. Of ids make pieces first: "
            "tokenizer.convert_ids_to_tokens(ids), or [tokenizer.decode([i]) for i in ids]."
        )
    if tokenizer == "auto":
        tokenizer = "bytes" if kinds <= {bytes, np.bytes_} else _recognized(pieces)
    if tokenizer not in _READERS:
        raise ArgumentError(
            f"tokenizer={tokenizer!r}; expected one of auto, {', '.join(_READERS)}."
        )
    if (tokenizer == "bytes") != (kinds <= {bytes, np.bytes_}):
        raise ArgumentError(f"tokenizer={tokenizer!r} does not go with pieces of this type.")
    return _READERS[tokenizer](pieces)


def _recognized(pieces: list[str]) -> Tokenizer:
    """How pieces are written. A tokenizer that marks spaces leaves none."""
    if any(" " in piece for piece in pieces):
        return "plain"
    if any(c in piece for piece in pieces for c in "ĠĊ"):
        return "byte_level"
    if any("▁" in piece or _BYTE.fullmatch(piece) for piece in pieces):
        return "sentencepiece"
    if any(re.match(r"##[^\s#]", piece) for piece in pieces):
        return "wordpiece"
    return "plain"


def _encode(text: str) -> bytes:
    return text.encode(errors="replace")  # half of a surrogate pair is no character


def _plain(pieces: list[str]) -> list[bytes]:
    return [_encode(piece) for piece in pieces]


def _sentencepiece(pieces: list[str]) -> list[bytes]:
    data = []
    for piece in pieces:
        byte = _BYTE.fullmatch(piece)
        data.append(bytes.fromhex(byte[1]) if byte else _encode(piece.replace("▁", " ")))
    data[0] = data[0].removeprefix(b" ")  # SentencePiece begins every text with a space
    return data


def _byte_level(pieces: list[str]) -> list[bytes]:
    """Each byte is a character: itself if it can be printed, else the next one from 256 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    table = {chr(byte): bytes([byte]) for byte in printed}
    table |= {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
    return [b"".join(table.get(c) or _encode(c) for c in piece) for piece in pieces]


def _wordpiece(pieces: list[str]) -> list[bytes]:
    data: list[bytes] = []
    for i, piece in enumerate(pieces):
        before = pieces[i - 1] if i else ""
        goes_on = len(piece) > 2 and piece.startswith("##")
        contracted = before in ("'", "’") and piece in _CONTRACTED
        close = bool(_CLOSING.fullmatch(piece)) and not (
            piece in ("'", "’") and (i + 1 == len(pieces) or pieces[i + 1] not in _CONTRACTED)
        )
        bare = i == 0 or goes_on or contracted or close or bool(_OPENING.fullmatch(before))
        data.append(_encode((piece[2:] if goes_on else piece) if bare else " " + piece))
    return data


_READERS: dict[str, Callable[[list[Any]], list[bytes]]] = {
    "plain": _plain,
    "bytes": lambda pieces: [bytes(piece) for piece in pieces],
    "sentencepiece": _sentencepiece,
    "byte_level": _byte_level,
    "wordpiece": _wordpiece,
}
