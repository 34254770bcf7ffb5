"""Explains in which language an LSTM takes each character of a text to be.

    python examples/language_of_each_character.py
    python examples/language_of_each_character.py --contrast --output contrast.html
    python examples/language_of_each_character.py --languages fr,en,nl --text "Je l'aime but why"

The network is an LSTM for twenty languages, unmodified Flax (see language_lstm.py); all that relax
needs is one line, in ``explain``. A text in two languages has a large logit for both. Each of its
characters has its relevance for either logit, and each word that of its characters; so it can be
seen who said what: the German words should carry the logit of German, the English ones that of
English. Red speaks for the language, blue against it; colors and bars compare across languages.

What is explained is the logit itself. The logit minus the mean of all twenty would be closer to
what the softmax sees, but shows the same here: what is subtracted is the same for each language, so
that the words differ between languages by as much as before. The difference of two logits
(``--contrast``) shows most clearly which word is of which language: what speaks for both, as the
"was" in the default text does, which is a word of both, keeps only what it says for one of them.
The biases take relevance as well, so that no sum is quite the logit.

The packages that it needs beside relax, and the weights (4 MB, for academic purposes), come with

    pip install "relax-lrp[examples]" && pip install --no-deps LanguageIdentifier
"""

import argparse
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

try:
    import jax
    import numpy as np

    import relax
    from command_line import (
        InputError,
        add_output,
        add_rules,
        check_output,
        make_rules,
        names,
        run_command,
    )
    from language_lstm import LanguageModel, WeightsError, load
    from relax import viz
    from text_output import comparable, print_colored, print_likely, write_page
    from torch_checkpoint import CheckpointError
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"language_of_each_character.py: error: the package {missing.name!r} is missing: "
        'pip install "relax-lrp[examples]"',
        file=sys.stderr,
    )
    sys.exit(2)

TEXT = "The meeting was canceled, aber wir treffen uns morgen"
LANGUAGES = ("de", "en")
RULES = ("arras_lstm",)
CAPTION = "The LSTM of LanguageIdentifier. The languages that it takes the text to be in:"


class Question(NamedTuple):
    """What is explained.

    Attributes:
        ids: the characters that the network reads, ``(position,)``.
        weights: for each sum of logits that is explained its name, such as "de", and the factor of
            each logit, ``(language,)``.
        values: these sums, in the same order.
        text: all that in words.
        likely: the languages of the text, the most probable first, with probability.
    """

    ids: np.ndarray
    weights: dict[str, np.ndarray]
    values: list[float]
    text: str
    likely: list[tuple[str, float]]


def ask(model: LanguageModel, text: str, languages: Sequence[str], contrast: bool) -> Question:
    """Lets the model name the language, and asks who speaks for which.

    Args:
        model: the network, its variables, its characters and languages.
        text: what it reads.
        languages: the codes of those whose logits are explained.
        contrast: whether the difference of the first two logits is explained in their place.

    Raises:
        InputError: the text is empty, or the languages are not two or more that the model knows.
    """
    if not text:
        raise InputError("--text is empty")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError("--text is no UTF-8")
    for code in languages:
        if code not in model.languages:
            raise InputError(f"no language {code!r}; there are {', '.join(model.languages)}")
        if languages.count(code) > 1:
            raise InputError(f"--languages has {code!r} twice")
    if len(languages) < 2:
        raise InputError(f"--languages {','.join(languages)!r} has nothing to compare with")

    ids = model.encode(text)
    logits = jax.jit(model.network.apply)(model.variables, ids[None])[0]
    logits, probabilities = np.asarray(logits), np.asarray(jax.nn.softmax(logits))
    order = np.argsort(-probabilities)[:5]

    rows = np.eye(len(model.languages), dtype=logits.dtype)
    weights = {code: rows[model.languages.index(code)] for code in languages}
    values = [float(row @ logits) for row in weights.values()]
    each = [f"{code} ({value:.3f})" for code, value in zip(weights, values, strict=True)]
    said = f"the logits of {', '.join(each[:-1])} and {each[-1]}"
    if contrast:
        first, second = languages[:2]
        weights = {f"{first} against {second}": weights[first] - weights[second]}
        values = [values[0] - values[1]]
        said = f"{first} against {second}, whose logits differ by {values[0]:.3f}"
    likely = [(model.languages[i], float(probabilities[i])) for i in order]
    return Question(ids, weights, values, said, likely)


def explain(rules: Any, model: LanguageModel, question: Question) -> np.ndarray:
    """Relevance of each character for each sum of logits, as a batch of one row for each.

    Args:
        rules: any rule or composite of relax.
        model: the network and its variables.
        question: what is explained.

    Returns:
        An array ``(sum of logits, position)``.
    """
    weights = np.stack([*question.weights.values()])
    ids = np.tile(question.ids, (len(weights), 1))
    relevance = relax.lrp(model.network.apply, rules, target=lambda logits: logits * weights)
    return np.asarray(jax.jit(relevance)(model.variables, ids))


def by_character(
    question: Question, text: str, relevance: np.ndarray, **options: Any
) -> dict[str, viz.Text]:
    """The text with its relevance for each sum of logits, by the name of the sum.

    Args:
        question: what is explained.
        text: what was read.
        relevance: of each character, ``(sum of logits, position)``.
        **options: of ``relax.viz.text``; ``by_word=True`` shows it word by word.
    """
    rows = dict(zip(question.weights, relevance, strict=True))
    make = functools.partial(viz.text, tokenizer="plain", **options)
    return comparable(make, [*text], rows)


def run(arguments: argparse.Namespace) -> None:
    """Reads, explains, writes.

    Raises:
        InputError: an argument names something that does not exist or cannot be used.
        WeightsError: the network cannot be loaded.
        CheckpointError: its file cannot be read.
    """
    start = time.perf_counter()
    check_output(arguments.output, ".html")
    rules = {name: make_rules(name) for name in arguments.rules}

    model = load()
    question = ask(model, arguments.text, arguments.languages, arguments.contrast)
    print(f"{arguments.text!r} is in")
    print_likely(question.likely)
    print(f"\nrelevance for {question.text}")

    shown: dict[str, viz.Text | Mapping[str, viz.Text]] = {}
    for name, rule in rules.items():
        lap = time.perf_counter()
        relevance = explain(rule, model, question)
        seconds = time.perf_counter() - lap
        characters = by_character(question, arguments.text, relevance)
        words = by_character(question, arguments.text, relevance, by_word=True)
        shown |= {f"{name}, {row}": text for row, text in characters.items()}
        shown[f"{name}, word by word"] = words
        sums = ", ".join(f"{row} {text.relevance.sum():.3g}" for row, text in words.items())
        print(f"\n{name} sums to {sums}  ({seconds:.1f} s)\n")
        width = max(map(len, characters))
        for row, text in characters.items():
            print_colored(f"{row:>{width}}  {text.ansi(newline='⏎')}")
        print_colored("\n" + viz.text_bars(words, ansi=True))
    title = f"Relevance for {question.text}"
    write_page(arguments.output, title, CAPTION, question.likely, shown)
    print(f"\n{arguments.output} written after {time.perf_counter() - start:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="language_of_each_character.py",
        description="Explain in which language an LSTM takes each character of a text to be.",
    )
    parser.add_argument(
        "--text", default=TEXT, help="what the network reads (default: %(default)r)"
    )
    parser.add_argument(
        "--languages",
        type=names,
        default=LANGUAGES,
        metavar="CODE,CODE[,CODE...]",
        help="the languages whose logits are explained, two or more of the twenty "
        f"(default: {','.join(LANGUAGES)})",
    )
    parser.add_argument(
        "--contrast",
        action="store_true",
        help="explain the difference of the logits of the first two languages instead",
    )
    add_rules(parser, RULES)
    add_output(parser, "language_of_each_character.html", "HTML", "page")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when the page was written, 2 and a line on stderr when not."""
    return run_command(_parser(), run, argv, WeightsError, CheckpointError)


if __name__ == "__main__":
    sys.exit(main())
