"""The language example: its legacy checkpoint, its network, its relevance, what it refuses.

Most tests run all of it on a tiny network in files made by hand; those of the trained one need the
package ``LanguageIdentifier``, and only that.
"""

import contextlib
import importlib.util
import io
import itertools
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("rich", reason="extra `examples` not installed")

from command_lines import assert_refused, caller
from recurrent_cells import lstm, unrolled, zeros
from test_text_output import PageReader

import language_lstm
import language_of_each_character as example
import relax
from language_lstm import WeightsError, model_from_checkpoint
from torch_checkpoint import CheckpointError, load_checkpoint, load_nested

# Legacy checkpoints, written by hand: no PyTorch takes part.

MAGIC, PROTOCOL, SYSTEM = 0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}


class Name(NamedTuple):
    """A global name in a pickle."""

    module: str
    name: str


class View(NamedTuple):
    """A tensor: a strided view of the storage of that key, float32 or what kind says."""

    key: str
    size: int
    offset: int
    shape: tuple
    strides: tuple
    kind: str = "FloatStorage"


class Call(NamedTuple):
    """A call of a global name, as a pickle asks for it."""

    name: Name
    arguments: tuple


def opcodes(value):
    """The part of a pickle that puts a value on the stack."""
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return opcodes(value.name) + opcodes(value.arguments) + b"R"
    if isinstance(value, View):
        pid = ("storage", Name("torch", value.kind), value.key, "cpu", value.size, None)
        hooks = opcodes(Call(Name("collections", "OrderedDict"), ()))
        inner = opcodes(value.offset), opcodes(value.shape), opcodes(value.strides)
        arguments = b"(" + opcodes(pid) + b"Q" + b"".join(inner) + opcodes(False) + hooks + b"t"
        return opcodes(Name("torch._utils", "_rebuild_tensor_v2")) + arguments + b"R"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(map(opcodes, itertools.chain(*value.items()))) + b"u"
    return pickle.dumps(value, 2)[2:-1]


def pickled(value):
    return b"\x80\x02" + opcodes(value) + b"."


def legacy(state, storages, head=(MAGIC, PROTOCOL, SYSTEM), keys=None):
    """A legacy file: ``state`` is a value or a pickle, ``storages`` key to array."""
    parts = [*map(pickled, head), state if isinstance(state, bytes) else pickled(state)]
    parts.append(pickle.dumps([*storages], 2) if keys is None else pickled(keys))
    for array in storages.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    return b"".join(parts)


NUMBERS = np.arange(10, dtype=np.float32)
SAVED = {
    "names": {"a": 0, "ß": 1},
    "state": {"w": View("5", 10, 2, (2, 3), (1, 2)), "b": View("5", 10, 8, (2,), (1,))},
    "n": View("6", 1, 0, (), (), "LongStorage"),
    "layers": 2,
    "rate": 0.5,
    "note": None,
}
STORAGES = {"5": NUMBERS, "6": np.array([7], np.int64)}


@pytest.fixture
def write(tmp_path):
    def written(data):
        path = tmp_path / "weights.pkl"
        path.write_bytes(data)
        return path

    return written


def check_saved(loaded):
    assert {k: v for k, v in loaded.items() if k not in ("state", "n")} == {
        "names": {"a": 0, "ß": 1},
        "layers": 2,
        "rate": 0.5,
        "note": None,
    }
    assert loaded["state"].keys() == {"w", "b"}
    np.testing.assert_array_equal(loaded["state"]["w"], NUMBERS[2:8].reshape(3, 2).T)
    np.testing.assert_array_equal(loaded["state"]["b"], [8, 9])
    assert loaded["state"]["b"].dtype == np.float32
    assert loaded["n"].shape == ()
    assert loaded["n"] == 7


def test_a_legacy_file_is_read(write):
    check_saved(load_nested(write(legacy(SAVED, STORAGES))))
    state = load_checkpoint(write(legacy(SAVED["state"], {"5": NUMBERS})))
    np.testing.assert_array_equal(state["b"], [8, 9])


def test_an_archive_may_be_nested_too(write):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("root/data.pkl", pickled(SAVED))
        for key, array in STORAGES.items():
            archive.writestr(f"root/data/{key}", array.tobytes())
    check_saved(load_nested(write(file.getvalue())))


def test_a_truncated_file_is_refused(write):
    """Wherever it ends."""
    data = legacy(SAVED, STORAGES)
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            load_nested(write(data[:length]))


def test_a_damaged_file_is_read_or_refused(write):
    """Whichever byte is wrong; nothing else is raised."""
    data = legacy(SAVED, STORAGES)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        with contextlib.suppress(CheckpointError):
            load_nested(write(damaged))


PRINT = Call(Name("builtins", "print"), ("this must never run",))


@pytest.mark.parametrize(
    "data",
    [
        legacy(PRINT, {}),
        legacy({"a": 1, "b": PRINT}, {}),
        legacy({"a": {"b": PRINT}}, STORAGES),
        legacy({}, {}, head=(PRINT, PROTOCOL, SYSTEM)),
        legacy({}, {}, head=(MAGIC, PROTOCOL, PRINT)),
        legacy({}, {}, keys=PRINT),
        legacy({"a": Call(Name("builtins", "eval"), ("print('this must never run')",))}, {}),
        legacy({"a": Call(Name("torch._utils", "_rebuild_parameter"), ())}, {}),
        legacy({"a": Name("torch_checkpoint", "load_nested")}, {}),
        legacy({"a": Name("collections", "deque")}, {}),
    ],
)
@pytest.mark.parametrize("load", [load_checkpoint, load_nested])
def test_a_legacy_file_cannot_run_code(write, capsys, load, data):
    with pytest.raises(CheckpointError, match="it asks for"):
        load(write(data))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no PyTorch checkpoint"),
        (legacy({}, {}, head=(1, PROTOCOL, SYSTEM)), "does not begin"),
        (legacy({}, {}, head=(MAGIC, 1002, SYSTEM)), "protocol 1002"),
        (legacy({}, {}, head=(MAGIC, PROTOCOL, {"little_endian": False})), "big-endian"),
        (legacy(3, {}), "it holds int"),
        (legacy({"a": (1, 2)}, {}), "'a' is tuple"),
        (legacy({"a": {1: 2}}, {}), "key 1 is int"),
        (
            legacy({"a": View("5", 10, 8, (3,), (1,))}, {"5": NUMBERS}),
            "element 10 of a storage of 10",
        ),
        (legacy({"a": View("5", 10, -1, (1,), (1,))}, {"5": NUMBERS}), "negative"),
        (legacy({"a": View("5", 9, 0, (1,), (1,))}, {"5": NUMBERS}), "10 of the 9 numbers"),
        (
            legacy({"a": View("5", 10, 0, (1,), (1,)), "b": View("5", 9, 0, (1,), (1,))}, STORAGES),
            "two storages",
        ),
        (legacy({"a": View("5", 10, 0, (1,), (1,))}, {}), "damaged"),
        (legacy(b"\x80\x02" + b"}X\1\0\0\0a" * 9999 + b"}" + b"s" * 9999 + b".", {}), "damaged"),
    ],
)
def test_a_legacy_file_of_another_kind_is_refused(write, data, words):
    with pytest.raises(CheckpointError, match=words):
        load_nested(write(data))


def test_a_small_pickle_cannot_hold_much(write):
    """A dictionary may be in many others, and even in itself."""
    many: dict = {"end": 1}
    for _ in range(99):
        many = {"a": many, "b": many}
    many["self"] = many
    loaded = load_nested(write(legacy(pickle.dumps(many, 2), {})))
    assert loaded["self"] is loaded
    assert loaded["a"] is loaded["b"]


# The network


def tiny_checkpoint():
    """What a file of a network of two layers, four characters and three languages holds."""
    rng = np.random.default_rng(0)
    embedding, hidden, characters = 3, 4, "abc "

    def array(*shape):
        return rng.normal(0, 0.7, shape).astype(np.float32)

    state = {"char_embeddings.weight": array(len(characters) + 1, embedding)}
    for layer, suffix in itertools.product(range(2), ("", "_reverse")):
        width = 2 * hidden if layer else embedding
        state |= {
            f"lstm.weight_ih_l{layer}{suffix}": array(4 * hidden, width),
            f"lstm.weight_hh_l{layer}{suffix}": array(4 * hidden, hidden),
            f"lstm.bias_ih_l{layer}{suffix}": array(4 * hidden),
            f"lstm.bias_hh_l{layer}{suffix}": array(4 * hidden),
        }
    state |= {"hidden2lang.weight": array(3, 2 * hidden), "hidden2lang.bias": array(3)}
    return {
        "char_to_idx": {c: i for i, c in enumerate(characters)},
        "lang_to_idx": {"de": 0, "en": 1, "fr": 2},
        "model_state_dict": state,
        "embedding_dim": embedding,
        "hidden_dim": hidden,
        "layers": 2,
    }


def naive_logits(saved, text):
    """The network in NumPy, from the letters of the manual of PyTorch."""
    s = {name: array.astype(np.float64) for name, array in saved["model_state_dict"].items()}
    ids = [saved["char_to_idx"].get(c, len(saved["char_to_idx"])) for c in text]
    x = s["char_embeddings.weight"][ids]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    for layer in range(saved["layers"]):
        sides = []
        for suffix, step in (("", 1), ("_reverse", -1)):
            end = f"l{layer}{suffix}"
            h = c = np.zeros(saved["hidden_dim"])
            states = []
            for row in x[::step]:
                z = s[f"lstm.weight_ih_{end}"] @ row + s[f"lstm.bias_ih_{end}"]
                z = z + s[f"lstm.weight_hh_{end}"] @ h + s[f"lstm.bias_hh_{end}"]
                i, f, g, o = np.split(z, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                states.append(h)
            sides.append(np.stack(states[::step]))
        x = np.concatenate(sides, axis=-1)
    return (x @ s["hidden2lang.weight"].T + s["hidden2lang.bias"]).sum(0)


def modified_gradient(saved, text, weights):
    """Gradient times input of cells whose gates are held: LRP-0, without relax."""
    s = {name: jnp.asarray(array) for name, array in saved["model_state_dict"].items()}
    ids = [saved["char_to_idx"].get(c, len(saved["char_to_idx"])) for c in text]

    def values(x):
        for layer in range(saved["layers"]):
            sides = []
            for suffix in ("", "_reverse"):
                end = f"l{layer}{suffix}"
                p = {
                    "w": s[f"lstm.weight_ih_{end}"].T,
                    "u": s[f"lstm.weight_hh_{end}"].T,
                    "b": s[f"lstm.bias_ih_{end}"] + s[f"lstm.bias_hh_{end}"],
                }
                carry = zeros(x, saved["hidden_dim"], "lstm")
                sides.append(unrolled(lstm, p, carry, x, reverse=bool(suffix)))
            x = jnp.concatenate(sides, -1)
        logits = (x @ s["hidden2lang.weight"].T + s["hidden2lang.bias"][None, None]).sum(1)
        return weights @ logits[0]

    x = s["char_embeddings.weight"][jnp.asarray([ids])]
    return (x[None] * jax.jit(jax.jacrev(values))(x)).sum((1, 3))


@pytest.fixture(scope="module")
def tiny():
    return model_from_checkpoint(tiny_checkpoint())


TEXT = "ab ?"


def test_the_network_computes_what_its_checkpoint_says(tiny):
    logits = jax.jit(tiny.network.apply)(tiny.variables, tiny.encode(TEXT)[None])
    assert logits.shape == (1, 3)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits[0], naive_logits(tiny_checkpoint(), TEXT), rtol=1e-5)


def test_unknown_characters_have_an_id_of_their_own(tiny):
    assert tiny.encode("ab ?😀").tolist() == [0, 1, 3, 4, 4]


NAME = "lstm.bias_hh_l1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NAME: None}, f"no {NAME}"),
        ({"lstm.more": np.ones(1)}, "place for lstm.more"),
        ({NAME: np.ones(3)}, f"{NAME} has shape"),
        ({NAME: 3}, f"{NAME} has shape"),
    ],
)
def test_the_state_of_another_network_is_refused(change, words):
    saved = tiny_checkpoint()
    state = saved["model_state_dict"] | change
    saved["model_state_dict"] = {k: v for k, v in state.items() if v is not None}
    with pytest.raises(WeightsError, match=words):
        model_from_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": None}, "no layers"),
        ({"layers": 3}, "no lstm.weight_ih_l2"),
        ({"lang_to_idx": {"de": 0, "en": 2}}, "'de', 'en'"),
        ({"lang_to_idx": {"de": {}, "en": 0}}, "'de', 'en'"),
        ({"char_to_idx": {"a": 0}}, "char_embeddings.weight has shape"),
    ],
)
def test_the_checkpoint_of_another_network_is_refused(change, words):
    with pytest.raises(WeightsError, match=words):
        model_from_checkpoint(tiny_checkpoint() | change)


# Relevance


RULES = relax.composites.arras_lstm(0.0)


@pytest.fixture(scope="module")
def both(tiny):
    """What is asked about two languages, and the relevance."""
    question = example.ask(tiny, TEXT, ["de", "fr"], False)
    return question, example.explain(RULES, tiny, question)


def test_relevance_is_a_modified_gradient(both):
    question, relevance = both
    assert relevance.shape == (2, len(TEXT))
    weights = np.stack([*question.weights.values()])
    expected = modified_gradient(tiny_checkpoint(), TEXT, weights)
    np.testing.assert_allclose(relevance, expected, rtol=1e-4, atol=1e-5)


def test_a_contrast_is_a_difference(tiny, both):
    question, (first, second) = both
    contrast = example.ask(tiny, TEXT, ["de", "fr", "en"], True)
    assert list(contrast.weights) == ["de against fr"]
    np.testing.assert_allclose(contrast.values, [np.subtract(*question.values)], rtol=1e-5)
    (difference,) = example.explain(RULES, tiny, contrast)
    np.testing.assert_allclose(difference, first - second, rtol=1e-4, atol=1e-5)


def test_what_is_shown_is_all_there_is(tiny):
    """Character by character and word by word: the text and the relevance are the same."""
    text = "ab, cé\u0301!\n"
    question = example.ask(tiny, text, ["de", "en"], False)
    relevance = np.arange(2.0 * len(text)).reshape(2, -1)
    by_character = example.by_character(question, text, relevance)
    by_word = example.by_character(question, text, relevance, by_word=True)
    for texts in (by_character, by_word):
        assert list(texts) == ["de", "en"]
        for shown, row in zip(texts.values(), relevance, strict=True):
            assert str(shown) == text
            assert [r for parts in shown.parts for _, r in parts] == row.tolist()
            assert shown.relevance.sum() == row.sum()
        largest = max(shown.relevance.max() for shown in texts.values())
        assert {shown.scale.limit for shown in texts.values()} == {largest}
    assert by_character["de"].pieces == (*"ab, c", "é\u0301", "!", "\n")
    assert by_word["de"].pieces == ("ab", ",", " cé\u0301", "!", "\n")


# The command line


@pytest.fixture
def main(tiny, monkeypatch, capsys):
    """The command line with the tiny network: exit status, stdout, stderr."""
    monkeypatch.setattr(example, "load", lambda: tiny)
    return caller(example, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--text", ""), ["--text is empty"]),
        (("--text", "a\udcff"), ["--text is no UTF-8"]),
        (("--languages", "de,xx"), ["'xx'", "de, en, fr"]),
        (("--languages", ""), ["''", "de, en, fr"]),
        (("--languages", "de"), ["'de'", "compare"]),
        (("--languages", "de,en,de"), ["'de' twice"]),
        (("--rules", "aras_lstm"), ["aras_lstm", "arras_lstm"]),
        (("--output", "page.png"), ["page.png", ".html"]),
        (("--output", "no/such/page.html"), ["page.html"]),
    ],
)
def test_wrong_arguments_get_one_clear_line(main, arguments, words, tmp_path, monkeypatch):
    """One line on stderr, exit status 2, no page."""
    monkeypatch.chdir(tmp_path)
    assert_refused("language_of_each_character.py", main(*arguments), words, tmp_path)


def test_missing_or_damaged_weights_are_one_line(monkeypatch, capsys, write):
    monkeypatch.setattr(language_lstm, "PACKAGE", "no_such_package")
    assert example.main([]) == 2
    error = capsys.readouterr().err
    assert error.endswith(
        "error: the weights are missing: pip install --no-deps LanguageIdentifier\n"
    )
    path = write(legacy(SAVED, STORAGES)[:-1])
    monkeypatch.setattr(language_lstm, "find_weights", lambda: path)
    assert example.main([]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert len(error.strip().splitlines()) == 1


def test_the_page_is_written(main, tmp_path):
    output = tmp_path / "page.html"
    status, out, error = main("--text", "ab <c>", "--languages", "fr, de", "--output", output)
    assert status == 0, error
    assert "arras_lstm sums to fr " in out
    reader = PageReader()
    reader.feed(output.read_text("utf-8"))
    assert reader.text.count("ab <c>") == 2
    assert "Relevance for the logits of fr (" in reader.text
    assert [tip[0] for tip in reader.tips] == [*"ab'<c>", *"ab'<c>"]


# The trained network


@pytest.fixture(scope="module")
def saved():
    return load_nested(language_lstm.find_weights())


@pytest.fixture(scope="module")
def model(saved):
    return model_from_checkpoint(saved)


@pytest.mark.skipif(
    importlib.util.find_spec(language_lstm.PACKAGE) is None,
    reason="LanguageIdentifier not installed",
)
class TestTrained:
    @pytest.mark.parametrize(
        "text",
        [example.TEXT, "Was it a car?", "Ist das mein Hut?"],
        ids=["both", "en", "de"],
    )
    def test_the_network_computes_what_its_checkpoint_says(self, model, saved, text):
        logits = jax.jit(model.network.apply)(model.variables, model.encode(text)[None])[0]
        np.testing.assert_allclose(logits, naive_logits(saved, text), rtol=1e-4, atol=1e-4)

    def test_its_package_is_not_imported(self, model):
        assert len(model.languages) == 20
        assert language_lstm.PACKAGE not in sys.modules

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("Where have all the other children gone?", "en"),
            ("Wohin sind alle die Kinder gegangen?", "de"),
        ],
    )
    def test_a_plain_sentence_is_in_its_language(self, model, text, code):
        language, probability = example.ask(model, text, ["de", "en"], False).likely[0]
        assert language == code
        assert probability > 0.99

    @pytest.mark.parametrize(
        ("first", "second", "codes"),
        [
            ("The meeting was canceled,", " aber wir treffen uns morgen", ["en", "de"]),
            ("Je ne sais pas encore", " but I will call you tonight", ["fr", "en"]),
        ],
    )
    def test_words_carry_the_logit_of_their_language(self, model, first, second, codes):
        """Each half has more relevance for its own language, and nearly each of its words."""
        text = first + second
        question = example.ask(model, text, codes, False)
        relevance = example.explain(relax.composites.arras_lstm(), model, question)
        (a, b), (c, d) = relevance[:, : len(first)].sum(1), relevance[:, len(first) :].sum(1)
        assert a > 5 > b
        assert d > 5 > c
        by_word = example.by_character(question, text, relevance, by_word=True)
        owned, place = [], 0
        columns = (by_word[code].relevance for code in codes)
        for word, *shares in zip(by_word[codes[0]].pieces, *columns, strict=True):
            owned.append(shares[0] > shares[1] if place < len(first) else shares[1] > shares[0])
            place += len(word)
        assert np.mean(owned) > 0.9

    def test_the_command_line_shows_it(self, tmp_path, capsys):
        output = tmp_path / "page.html"
        assert example.main(["--output", str(output)]) == 0
        out = capsys.readouterr().out
        assert f"{example.TEXT!r} is in\n" in out
        assert out.count(f"  {example.TEXT}\n") == 2
        (row,) = [line.split() for line in out.splitlines() if line.strip().startswith("canceled ")]
        shares = [float(cell) for cell in row if cell[0] in "+-"]
        assert shares[0] < 0 < shares[1]
        readme = (Path(example.__file__).parents[1] / "README.md").read_text("utf-8")
        (shown,) = (b for b in readme.split("```") if "canceled" in b and "morgen" in b)
        for line in shown.splitlines()[2:]:  # to half a unit of the last digit
            word, *numbers = [cell for cell in line.split() if "█" not in cell]
            found = next(own.split() for own in out.splitlines() if own.strip().startswith(word))
            own = [float(cell) for cell in found if cell[0] in "+-"]
            np.testing.assert_allclose([float(n) for n in numbers], own, atol=0.011)
        reader = PageReader()
        reader.feed(output.read_text("utf-8"))
        assert reader.text.count(example.TEXT) == 2
