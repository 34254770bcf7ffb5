"""Explains why a small transformer fills in a chemical reaction as it does.

    python examples/reaction.py
    python examples/reaction.py --rules attnlrp,cp_lrp --output amide.html
    python examples/reaction.py --reaction "CC(=O)Cl.CCN>>CCNC(C)=O" --mask 15 --against O
    python examples/reaction.py --reaction "CCOC(=O)c1ccccc1.O.[Na+].[MASK]>>O=C(O)c1ccccc1"

The network is the ALBERT of RXNMapper, unmodified Flax (see reaction_albert.py); all that relax
needs is one line, in ``explain``. A reaction is SMILES, ``reactants>>product``, with one token
masked. Each token has its relevance for the logit of what is filled in, or for the difference of
two logits (``--against``); red speaks for the answer, blue against it. The network has marks of its
own at both ends; they and the biases take relevance as well, so that no sum is quite the logit.

Without arguments the reaction is an amide coupling, and the question is what the amide was made of:
the acid (O) or its chloride (Cl)? Both are common, and give the same product. It was the acid, for
there is a carbodiimide (``N=C=N``), which couples acids with amines and which a chloride does not
need. Indeed, without it the network says Cl:

    python examples/reaction.py --against O --reaction \\
        "ClCCl.NCc1ccccc1.O=C([MASK])c1ccccc1>>O=C(NCc1ccccc1)c1ccccc1"

The packages that it needs beside relax, and the weights (3 MB), come with

    pip install "relax-lrp[examples]" && pip install --no-deps rxnmapper
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import relax
    from command_line import (
        InputError,
        add_output,
        add_rules,
        check_output,
        make_rules,
        run_command,
    )
    from reaction_albert import END, MASK, START, ReactionModel, WeightsError, load
    from relax import viz
    from smiles import ARROW, split_molecules, split_tokens
    from text_output import after_start, print_colored, print_likely, write_page
    from torch_checkpoint import CheckpointError
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"reaction.py: error: the package {missing.name!r} is missing: "
        'pip install "relax-lrp[examples]"',
        file=sys.stderr,
    )
    sys.exit(2)

REACTION = "CCN=C=NCCCN(C)C.ClCCl.NCc1ccccc1.O=C(O)c1ccccc1>>O=C(NCc1ccccc1)c1ccccc1"
MASKED, AGAINST = "36", "Cl"
RULES = ("attnlrp",)
ROWS = 9
CAPTION = "The ALBERT of RXNMapper. The tokens likely to stand where the mask is:"


class Question(NamedTuple):
    """What is explained.

    Attributes:
        tokens: what the network reads, with its own marks at both ends.
        position: where the mask is.
        target: the id of the token whose logit is explained.
        against: the id of the token whose logit is subtracted, if there is one.
        value: the logit, or the difference.
        text: all that in words.
        answer: the token whose logit is explained.
        likely: the tokens that may be filled in, the most probable first, with probability.
    """

    tokens: list[str]
    position: int
    target: int
    against: int | None
    value: float
    text: str
    answer: str
    likely: list[tuple[str, float]]


def mask_token(reaction: str, which: str | None) -> list[str]:
    """The tokens of a reaction, one of them masked.

    Args:
        reaction: SMILES, in which ``[MASK]`` may stand for a token.
        which: the token to mask: its number, from 1 on, or the token itself if there is one such.

    Raises:
        InputError: that is no reaction, or does not have one mask.
    """
    tokens = split_tokens(reaction)
    if tokens.count(ARROW) != 1:
        raise InputError(f"{reaction!r} is no reaction, reactants{ARROW}product")
    if which is not None:
        tokens[_find_token(tokens, which)] = MASK
    if (count := tokens.count(MASK)) != 1:
        raise InputError(f"one token has to be masked, with {MASK} or with --mask, not {count}")
    return tokens


def _find_token(tokens: Sequence[str], which: str) -> int:
    if which.isascii() and which.isdecimal() and 1 <= int(which) <= len(tokens):
        return int(which) - 1
    places = [place for place, token in enumerate(tokens) if token == which]
    if len(places) == 1:
        return places[0]
    if places:
        numbers = ", ".join(str(place + 1) for place in places)
        raise InputError(f"--mask {which!r} may be any of the tokens {numbers}")
    raise InputError(f"--mask {which!r} is none of the {len(tokens)} tokens, by number or text")


def ask(
    model: ReactionModel, tokens: Sequence[str], target: str | None, against: str | None
) -> Question:
    """Lets the model fill in the mask, and asks why it did so.

    Args:
        model: the network, its variables and its tokens.
        tokens: those of the reaction, one of them masked.
        target: the token to explain, in the place of the most probable one.
        against: the token whose logit is subtracted.

    Raises:
        InputError: the network does not know a token, or target and against are the same, or the
            reaction is too long.
    """
    read = [START, *tokens, END]
    room = model.network.config.context
    if len(read) > room:
        raise InputError(f"{len(tokens)} tokens are too many: at most {room - 2}")
    position = read.index(MASK)
    logits = jax.jit(model.network.apply)(model.variables, encode(model, read)[None])[0, position]
    logits, probabilities = np.asarray(logits), np.asarray(jax.nn.softmax(logits))
    order = np.argsort(-probabilities)

    chosen = int(order[0]) if target is None else int(encode(model, [target])[0])
    other = None if against is None else int(encode(model, [against])[0])
    if other == chosen:
        raise InputError(f"{against!r} against itself leaves nothing to explain")
    text = f"{model.tokens[chosen]!r}, whose logit is"
    if other is not None:
        text = f"{model.tokens[chosen]!r} against {against!r}, whose logits differ by"
    return Question(
        tokens=read,
        position=position,
        target=chosen,
        against=other,
        value=float(logits[chosen] - (0 if other is None else logits[other])),
        text=text,
        answer=model.tokens[chosen],
        likely=[(model.tokens[i], float(probabilities[i])) for i in order[:5]],
    )


def encode(model: ReactionModel, tokens: Sequence[str]) -> np.ndarray:
    """The ids of tokens.

    Raises:
        InputError: the network does not know one of them.
    """
    ids = {token: number for number, token in enumerate(model.tokens)}
    for token in tokens:
        if token not in ids:
            raise InputError(f"{token!r} is none of the {len(ids)} tokens that the network knows")
    return np.array([ids[token] for token in tokens])


def explain(rules: Any, model: ReactionModel, question: Question) -> np.ndarray:
    """Relevance of each token for a logit or for a difference of two.

    Args:
        rules: any rule or composite of relax.
        model: the network and its variables.
        question: what is explained.

    Returns:
        An array ``(position,)``.
    """
    position, chosen, other = question.position, question.target, question.against

    def target(logits: jax.Array) -> jax.Array:
        seed = jnp.zeros_like(logits).at[0, position, chosen].set(logits[0, position, chosen])
        if other is not None:
            seed = seed.at[0, position, other].set(-logits[0, position, other])
        return seed

    ids = encode(model, question.tokens)[None]
    relevance = relax.lrp(model.network.apply, rules, target=target)
    return np.asarray(jax.jit(relevance)(model.variables, ids)[0])


def by_token(question: Question, relevance: np.ndarray) -> viz.Text:
    """What the network has read, token by token, and what it fills in."""
    return _text(question.tokens, relevance, answer=f"  {MASK} is {question.answer}")


def by_molecule(question: Question, relevance: np.ndarray) -> viz.Text:
    """As ``by_token``, molecule by molecule; a molecule has the relevance of its tokens."""
    end = len(question.tokens) - 1
    inner = split_molecules(question.tokens[1:end])
    parts = [slice(0, 1), *(slice(p.start + 1, p.stop + 1) for p in inner), slice(end, end + 1)]
    texts = ["".join(question.tokens[part]) for part in parts]
    sums = np.array([relevance[part].sum() for part in parts])
    return _text(texts, sums, answer=f"  {MASK} is {question.answer}")


def numbered(question: Question, relevance: np.ndarray) -> viz.Text:
    """The tokens, each with its number, as ``--mask`` takes it."""
    start, *tokens = question.tokens
    return _text([start, *(f"{t} {i}" for i, t in enumerate(tokens, 1))], relevance)


def _text(pieces: Sequence[str], relevance: np.ndarray, **options: Any) -> viz.Text:
    make = functools.partial(viz.text, tokenizer="plain", **options)
    return after_start(make, pieces, relevance)


def run(arguments: argparse.Namespace) -> None:
    """Fills in, explains, writes.

    Raises:
        InputError: an argument names something that does not exist or cannot be used.
        WeightsError: the network cannot be loaded.
        CheckpointError: its file cannot be read.
    """
    start = time.perf_counter()
    reaction, mask, against = arguments.reaction, arguments.mask, arguments.against
    if reaction is None:
        reaction = REACTION
        if mask is None:
            mask = MASKED
            against = AGAINST if arguments.target is against is None else against
    tokens = mask_token(reaction, mask)
    check_output(arguments.output, ".html")
    rules = {name: make_rules(name) for name in arguments.rules}

    model = load()
    question = ask(model, tokens, arguments.target, against)
    print(f"{''.join(tokens)} is filled in with")
    print_likely(question.likely)
    print(f"\nrelevance for {question.text} {question.value:.3f}")

    shown = {}
    for name, rule in rules.items():
        lap = time.perf_counter()
        relevance = explain(rule, model, question)
        seconds = time.perf_counter() - lap
        text, molecules = by_token(question, relevance), by_molecule(question, relevance)
        shown |= {name: text, f"{name}, molecule by molecule": molecules}
        print(f"\n{name} sums to {relevance.sum():.3g}  ({seconds:.1f} s)\n")
        largest = numbered(question, relevance).bars(ROWS, ansi=True)
        print_colored("\n\n".join([text.ansi(), molecules.bars(ansi=True), largest]))
    title = f"Relevance for {question.text} {question.value:.3f}"
    write_page(arguments.output, title, CAPTION, question.likely, shown)
    print(f"\n{arguments.output} written after {time.perf_counter() - start:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reaction.py",
        description="Explain why a small transformer fills in a chemical reaction as it does.",
    )
    parser.add_argument(
        "--reaction",
        metavar="SMILES",
        help=f"reactants>>product; {MASK} may stand for a token (default: {REACTION})",
    )
    parser.add_argument(
        "--mask",
        metavar="POSITION_OR_TOKEN",
        help="the token to mask: its number, from 1 on, or the token if there is only one such "
        f"(default: {MASKED} of the default reaction)",
    )
    parser.add_argument(
        "--target",
        metavar="TOKEN",
        help="the token to explain (default: the most probable one)",
    )
    parser.add_argument(
        "--against",
        metavar="TOKEN",
        help="explain why the target rather than this token: the difference of their logits "
        f"(default: {AGAINST} for the default reaction, mask and target)",
    )
    add_rules(parser, RULES)
    add_output(parser, "reaction.html", "HTML", "page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when the page was written, 2 and a line on stderr when not."""
    return run_command(_parser(), run, argv, WeightsError, CheckpointError)


if __name__ == "__main__":
    sys.exit(main())
