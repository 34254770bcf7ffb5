"""The reaction example: its tokens, its network, its relevance, what it refuses.

The fast tests run all of it on a tiny network; the slow ones hold the trained one against what
Hugging Face makes of the same file, and its relevance against what leaving molecules out does.
"""

import importlib.util
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rich", reason="extra `examples` not installed")
pytest.importorskip("gguf", reason="extra `examples` not installed")
pytest.importorskip("tokenizers", reason="extra `examples` not installed")

from command_lines import assert_refused, caller
from reference_reaction_albert import (
    CONFIG,
    modified_gradient,
    naive_logits,
    tiny_model,
    tiny_state,
)
from test_text_output import PageReader

import reaction
import reaction_albert
import relax
from command_line import InputError
from reaction_albert import MASK, WeightsError, config_from_fields, variables_from_checkpoint
from smiles import split_molecules, split_tokens

EXAMPLE = Path(reaction.__file__)
RECORDS = json.loads((Path(__file__).parent / "data" / "reaction_albert.json").read_text("utf-8"))
AMIDE = "NC.O=C(O)C>>O=C(NC)C"
# What couples an acid with an amine; and what else is there.
COUPLINGS = [
    ["CCN=C=NCCCN(C)C", "ClCCl", "NCc1ccccc1"],
    ["CN(C)C(On1nnc2cccnc21)=[N+](C)C", "CN(C)C=O", "CCN(C(C)C)C(C)C", "NCc1ccccc1"],
]


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


# Tokens


@pytest.mark.parametrize(
    ("smiles", "tokens"),
    [
        ("BrB1CC1Cl", ["Br", "B", "1", "C", "C", "1", "Cl"]),
        (
            "[13CH3]/C=C\\[N+](=O)",
            ["[13CH3]", "/", "C", "=", "C", "\\", "[N+]", "(", "=", "O", ")"],
        ),
        ("c%12#[MASK].N>>n", ["c", "%12", "#", "[MASK]", ".", "N", ">>", "n"]),
        ("", []),
    ],
)
def test_smiles_are_cut_into_tokens(smiles, tokens):
    assert split_tokens(smiles) == tokens


@given(text=st.text(alphabet="BCNOclnr[]()=#.>%123@+-", max_size=12))
def test_tokens_are_the_text_or_it_is_refused(text):
    try:
        tokens = split_tokens(text)
    except InputError:
        # Of what these letters can make, only open brackets and parts of ring closures are none.
        assert re.search(r"\[[^\]]*$|\[\]|\]|%|[lr]", text)
    else:
        assert "".join(tokens) == text


@given(tokens=st.lists(st.sampled_from(["C", "Cl", ".", ">>"])))
def test_molecules_are_between_dots_and_arrows(tokens):
    parts = [tokens[part] for part in split_molecules(tokens)]
    assert [token for part in parts for token in part] == tokens
    for part in parts:
        assert len(part) == 1 or (part and not {".", ">>"} & set(part))


# The network


def test_the_network_computes_what_its_checkpoint_says(tiny, rng):
    ids = rng.integers(CONFIG.vocabulary, size=12)
    logits = jax.jit(tiny.network.apply)(tiny.variables, ids[None])
    assert logits.shape == (1, 12, CONFIG.vocabulary)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[0], naive_logits(tiny_state(), ids), rtol=1e-4, atol=1e-4)


NAME = "albert.encoder.embedding_hidden_mapping_in.bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NAME: None}, f"no {NAME}"),
        ({"predictions.more": np.ones(1)}, "place for predictions.more"),
        ({NAME: np.ones(3)}, f"{NAME}.*shape"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(change, words):
    state = {key: array for key, array in (tiny_state() | change).items() if array is not None}
    with pytest.raises(WeightsError, match=words):
        variables_from_checkpoint(state, CONFIG)


def test_a_configuration_of_another_network_is_refused():
    fields = {"model_type": "albert", "hidden_act": "relu", "num_hidden_groups": 1}
    with pytest.raises(WeightsError, match="hidden_act 'relu'"):
        config_from_fields(fields)
    with pytest.raises(WeightsError, match="no vocab_size"):
        config_from_fields(fields | {"hidden_act": "gelu"})


def test_the_package_with_the_weights_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(reaction_albert, "PACKAGE", "no_such_package")
    with pytest.raises(WeightsError, match="pip install --no-deps rxnmapper"):
        reaction_albert.find_folder()


# Relevance


PAIRS = [(relax.composites.attnlrp, False), (relax.composites.cp_lrp, True)]


def expected_relevance(model, question, conservative):
    ids = reaction.encode(model, question.tokens)
    seed = question.position, question.target, question.against
    return modified_gradient(model, ids, *seed, conservative)


@pytest.mark.parametrize(("rules", "conservative"), PAIRS)
def test_relevance_is_a_modified_gradient(tiny, rules, conservative):
    question = reaction.ask(tiny, reaction.mask_token(AMIDE, "8"), "O", "Cl")
    relevance = reaction.explain(rules(), tiny, question)
    expected = expected_relevance(tiny, question, conservative)
    np.testing.assert_allclose(relevance, expected, rtol=1e-4, atol=1e-5)


def test_a_contrast_is_a_difference(tiny):
    tokens = reaction.mask_token(AMIDE, "8")
    both = reaction.ask(tiny, tokens, "O", "Cl")
    single = [reaction.ask(tiny, tokens, name, None) for name in ("O", "Cl")]
    np.testing.assert_allclose(both.value, single[0].value - single[1].value, atol=1e-5)
    rules = relax.composites.attnlrp()
    first, second = (reaction.explain(rules, tiny, question) for question in single)
    np.testing.assert_allclose(reaction.explain(rules, tiny, both), first - second, atol=1e-5)


def test_what_is_shown_is_all_there_is(tiny):
    """Token by token and molecule by molecule: the text and the relevance are the same."""
    question = reaction.ask(tiny, reaction.mask_token(AMIDE, "8"), None, None)
    relevance = np.arange(len(question.tokens), dtype=float)
    relevance[0] = -1e3  # that of the mark at the start sets no color
    by_token, by_molecule = (
        make(question, relevance) for make in (reaction.by_token, reaction.by_molecule)
    )
    for shown in (by_token, by_molecule):
        assert "".join(shown.pieces) == "".join(question.tokens)
        assert shown.answer == f"  {MASK} is {question.answer}"
        assert shown.relevance.sum() == relevance.sum()
        assert shown.relevance[0] == -1e3
        assert shown.scale.limit == shown.relevance.max()
    assert by_token.pieces == tuple(question.tokens)
    np.testing.assert_array_equal(by_token.relevance, relevance)
    molecules = ["NC", ".", f"O=C({MASK})C", ">>", "O=C(NC)C"]
    assert by_molecule.pieces == (question.tokens[0], *molecules, question.tokens[-1])
    ends = np.cumsum([1, *(len(split_tokens(text)) for text in molecules), 1])
    sums = np.add.reduceat(relevance, [0, *ends[:-1]])
    np.testing.assert_array_equal(by_molecule.relevance, sums)
    numbered = reaction.numbered(question, relevance)
    assert numbered.pieces[:3] == (question.tokens[0], "N 1", "C 2")
    np.testing.assert_array_equal(numbered.relevance, relevance)


# The command line


@pytest.fixture
def main(tiny, monkeypatch, capsys):
    """The command line with the tiny network: exit status, stdout, stderr."""
    monkeypatch.setattr(reaction, "load", lambda: tiny)
    return caller(reaction, capsys)


def about_amide(*arguments):
    return ("--reaction", AMIDE, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--reaction", ""), ["''", "no reaction"]),
        (("--reaction", "CCO"), ["'CCO'", "no reaction"]),
        (("--reaction", "C>>XC", "--mask", "1"), ["'C>>XC'", "'XC'"]),
        (about_amide(), [MASK, "--mask", "not 0"]),
        (("--reaction", f"{MASK}>>C", "--mask", "3"), [MASK, "--mask", "not 2"]),
        (about_amide("--mask", "0"), ["--mask '0'"]),
        (about_amide("--mask", "20"), ["--mask '20'", "19 tokens"]),
        (about_amide("--mask", ""), ["--mask ''"]),
        (about_amide("--mask", "Br"), ["--mask 'Br'"]),
        (about_amide("--mask", "N"), ["--mask 'N'", "1, 16"]),
        (("--reaction", "C[Fe]>>C", "--mask", "1"), ["'[Fe]'", "15 tokens"]),
        (("--reaction", f"{'C' * 40}>>C", "--mask", "1"), ["42 tokens", "at most 30"]),
        (about_amide("--mask", "8", "--target", "X"), ["'X'"]),
        (about_amide("--mask", "8", "--target", "O", "--against", "O"), ["'O'", "itself"]),
        (about_amide("--mask", "8", "--rules", "attnlpr"), ["attnlpr", "attnlrp"]),
        (("--output", "page.png"), ["page.png", ".html"]),
        (("--output", "no/such/page.html"), ["page.html"]),
    ],
)
def test_wrong_arguments_get_one_clear_line(main, arguments, words, tmp_path, monkeypatch):
    """One line on stderr, exit status 2, no page."""
    monkeypatch.chdir(tmp_path)
    assert_refused("reaction.py", main(*arguments), words, tmp_path)


def test_missing_weights_are_one_line(main, monkeypatch):
    def missing():
        raise WeightsError("pip install it")

    monkeypatch.setattr(reaction, "load", missing)
    status, _, error = main()
    assert status == 2
    assert error == "reaction.py: error: pip install it\n"


@pytest.mark.parametrize("mask", ["8", ">>"])
def test_the_page_is_written(main, tmp_path, mask):
    output = tmp_path / "page.html"
    arguments = about_amide("--mask", mask, "--against", "[PAD]", "--output", output)
    status, out, error = main(*arguments)
    assert status == 0, error
    assert "attnlrp sums to" in out
    reader = PageReader()
    reader.feed(output.read_text("utf-8"))
    assert MASK in reader.text
    assert [tip.split("  ")[0] for tip in reader.tips[:2]] == [reaction.START, "N"]


# The trained network

trained = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec(reaction_albert.PACKAGE) is None, reason="rxnmapper not installed"
    ),
]


@pytest.fixture(scope="module")
def model():
    return reaction_albert.load()


class TestTrained:
    pytestmark = trained

    @pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["reaction"][:16])
    def test_predictions_are_those_of_hugging_face(self, model, record):
        question = reaction.ask(model, reaction.mask_token(record["reaction"], None), None, None)
        ids = reaction.encode(model, question.tokens)
        assert ids.tolist() == record["ids"]
        logits = np.asarray(jax.jit(model.network.apply)(model.variables, ids[None]))[0]
        assert logits.argmax(axis=-1).tolist() == record["likely"]
        largest = reaction.encode(model, list(record["logits"]))
        expected = list(record["logits"].values())
        np.testing.assert_allclose(logits[question.position, largest], expected, atol=1e-3)

    @pytest.mark.parametrize(("rules", "conservative"), PAIRS)
    def test_relevance_is_a_modified_gradient(self, model, rules, conservative):
        tokens = reaction.mask_token(reaction.REACTION, reaction.MASKED)
        question = reaction.ask(model, tokens, None, reaction.AGAINST)
        relevance = reaction.explain(rules(), model, question)
        expected = expected_relevance(model, question, conservative)
        np.testing.assert_allclose(relevance, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("rules", [rules for rules, _ in PAIRS])
    @pytest.mark.parametrize("reagents", [0, 1], ids=["carbodiimide", "uronium"])
    def test_the_reagent_that_matters_has_the_most_relevance(self, model, rules, reagents):
        """Of all that could be left out; leaving it out changes the answer, and nothing else does.

        What couples acids with amines makes the network say O, the acid, rather than Cl.
        """
        decisive, *others = COUPLINGS[reagents]

        def ask(*molecules, against=None):
            smiles = ".".join((*molecules, f"O=C({MASK})c1ccccc1"))
            tokens = reaction.mask_token(f"{smiles}>>O=C(NCc1ccccc1)c1ccccc1", None)
            return reaction.ask(model, tokens, None, against)

        assert ask(*others).answer == "Cl"
        for other in others:
            assert ask(decisive, *(rest for rest in others if rest != other)).answer == "O"
        question = ask(decisive, *others, against="Cl")
        assert question.answer == "O"
        by_molecule = reaction.by_molecule(question, reaction.explain(rules(), model, question))
        shares = dict(zip(by_molecule.pieces, by_molecule.relevance, strict=True))
        assert shares[decisive] > 3 * max(shares[other] for other in others)
