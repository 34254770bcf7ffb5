"""What a language model goes on with after a text, and the logits that say so."""

from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from byte_level_bpe import token_text
from command_line import InputError
from smollm2 import START, LanguageModel

ENDS = (START, "<|im_end|>")


class Seed(NamedTuple):
    """A logit to explain: that of a token, at the position before it; negative is against it."""

    position: int
    token: int
    sign: float = 1.0


class Question(NamedTuple):
    """What is explained.

    Attributes:
        ids: the tokens that the network reads, ``(position,)``.
        given: how many of them are the prompt and the mark before it.
        seeds: the logits that are explained.
        value: their sum, each with its sign.
        text: all that in words.
        answer: the last of the explained tokens.
        likely: the tokens that may follow the prompt, the most probable first, with probability.
    """

    ids: np.ndarray
    given: int
    seeds: list[Seed]
    value: float
    text: str
    answer: str
    likely: list[tuple[str, float]]


def ask(
    model: LanguageModel, prompt: str, target: str | None, against: str | None, count: int
) -> Question:
    """Lets the model go on with the prompt, and asks why it did so.

    Args:
        model: the network, its variables and its tokenizer.
        prompt: the text that it reads.
        target: the token to explain, in the place of the most probable one.
        against: the token whose logit is subtracted.
        count: how many tokens are generated and explained; one if target or against are given.

    Raises:
        InputError: target or against are no token, or the same, or the text is too long.
    """
    ids = np.array(model.tokenizer.encode(START + prompt).ids)
    given, room = len(ids), model.network.config.context
    if given + count > room:
        raise InputError(f"{given} tokens and {count} more are too many: at most {room}")
    ids, logits = generate(model, ids, count)
    probabilities = np.asarray(jax.nn.softmax(logits[0]))

    def name(token: int) -> str:
        return repr(token_text(model.tokenizer, token))

    chosen = [int(token) for token in ids[given:]]
    if target is not None:
        chosen = [find_token(target, model.tokenizer, logits[0])]
    seeds = [Seed(given - 1 + step, token) for step, token in enumerate(chosen)]
    written = model.tokenizer.decode(chosen, skip_special_tokens=False)
    text = f"{written!r}, {len(chosen)} tokens whose logits sum to"
    if len(chosen) == 1:
        text = f"{name(chosen[0])}, whose logit is"
    if against is not None:
        other = find_token(against, model.tokenizer, logits[0])
        if other == chosen[0]:
            raise InputError(f"{name(other)} against itself leaves nothing to explain")
        seeds.append(Seed(given - 1, other, -1.0))
        text = f"{name(chosen[0])} against {name(other)}, whose logits differ by"
    return Question(
        ids=ids[: given - 1 + len(chosen)],
        given=given,
        seeds=seeds,
        value=float(sum(s.sign * logits[s.position - given + 1, s.token] for s in seeds)),
        text=text,
        answer=token_text(model.tokenizer, chosen[-1]),
        likely=[(name(int(i)), float(probabilities[i])) for i in np.argsort(-probabilities)[:5]],
    )


def generate(model: LanguageModel, ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Adds the most probable token, again and again.

    Args:
        model: the network and its variables.
        ids: the tokens at the beginning, ``(position,)``.
        count: how many are added, at least one; fewer if the model ends its text.

    Returns:
        All tokens, ``(position + count,)``, and the logits from which each that is new was chosen,
        ``(count, vocabulary)``.
    """
    forward = jax.jit(model.network.apply)
    ends = [model.tokenizer.token_to_id(end) for end in ENDS]
    # The network looks only back, so that it can be compiled once, for the final length.
    padded = np.pad(ids, (0, count))
    rows = []
    for end in range(len(ids), len(padded)):
        rows.append(np.asarray(forward(model.variables, padded[None])[0, end - 1]))
        padded[end] = rows[-1].argmax()
        if padded[end] in ends:
            break
    return padded[: len(ids) + len(rows)], np.stack(rows)


def find_token(text: str, tokenizer: Tokenizer, logits: np.ndarray) -> int:
    """The token that a user means by a text; the space before a word may be left out.

    Raises:
        InputError: the text is several tokens, which are listed, or none.
    """
    spellings = [tokenizer.encode(spelling).ids for spelling in (text, f" {text}")]
    single = [ids[0] for ids in spellings if len(ids) == 1]
    if not text or not single:
        parts = ", ".join(repr(token_text(tokenizer, token)) for token in spellings[0])
        raise InputError(f"{text!r} is not one token but {parts or 'none'}")
    return max(single, key=lambda token: logits[token])
