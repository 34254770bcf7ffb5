"""The tokenizer of a language model, made of its vocabulary.

A text is cut at spaces, digits and punctuation; its bytes are written as letters, one for each; and
neighbors are merged in the order in which training found the pairs (byte-level BPE, Radford et al.,
2019). Any text comes back to the byte from its tokens.
"""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def make_tokenizer(
    vocabulary: Sequence[str], merges: Iterable[tuple[str, str]], special: Iterable[str] = ()
) -> Tokenizer:
    """A tokenizer of SmolLM2's kind: each digit is a token of its own.

    Args:
        vocabulary: the tokens in the order of their ids, their bytes written as letters.
        merges: the pairs that become one token, the most frequent first.
        special: the tokens that control the model; a text may contain them as they are.
    """
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(ids, list(merges)))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return tokenizer


def _byte_of_letter() -> dict[str, int]:
    """Bytes that print stand for themselves, the others for the letters from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_of_letter()


def token_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> list[bytes]:
    """What each token stands for: bytes, as a character may be split over several tokens."""
    return [bytes(_BYTES[letter] for letter in tokenizer.id_to_token(int(i))) for i in ids]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token alone as text, with marks of replacement where it is part of a character."""
    return token_bytes(tokenizer, [token])[0].decode(errors="replace")
