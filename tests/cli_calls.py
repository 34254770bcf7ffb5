"""A model, pictures and calls that the tests of the command line share."""

import sys
import textwrap

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from relax.cli._app import app

SHAPE = (6, 8, 3)

MODEL = textwrap.dedent("""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np
    from relax.cli import Model

    W = np.random.default_rng(0).normal(size=(144, 5)).astype(np.float32)
    V = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    PARAMS = {"hidden": {"w": jnp.asarray(W)}, "head": {"w": jnp.asarray(V)}}


    @dataclasses.dataclass  # looks its module up
    class Settings:
        shape: "tuple[int, ...]" = (6, 8, 3)


    def network(params, x):
        h = jax.nn.relu(x.reshape(len(x), -1) @ params["hidden"]["w"])
        return h @ params["head"]["w"]


    def pair():
        return network, PARAMS


    def whole():
        return Model(network, PARAMS, Settings().shape, labels=["tabby, cat", "dog", "Cup, mug"])


    def centered():
        return Model(network, PARAMS, (6, 8, 3), lambda pixels: pixels / 127.5 - 1)


    def softmax():
        return Model(lambda p, x: jax.nn.softmax(network(p, x)), PARAMS, (6, 8, 3))


    def single():
        return Model(lambda p, x: jax.nn.sigmoid(network(p, x)[:, 0]), PARAMS, (6, 8, 3))


    def first():
        turned = lambda p, x: network(p, jnp.moveaxis(x, 1, -1))
        return Model(turned, PARAMS, (6, 8, 3), channels_first=True)


    def gray():
        w = {"w": jnp.asarray(W[:48])}
        return Model(lambda p, x: x.reshape(len(x), -1) @ p["w"], w, (6, 8, 1))


    def table():
        return Model(lambda p, x: x @ p["w"], {"w": jnp.asarray(W[:4])}, (4,))


    def deep():
        return Model(lambda p, x: x, {}, (6, 8, 3))


    def broken():
        raise RuntimeError("no weights\\nat all")


    constant = 3
""")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, pictures, an array."""
    path = tmp_path_factory.mktemp("cli")
    (path / "net.py").write_text(MODEL)
    (path / "empty.py").write_text("1 / 0")
    rng = np.random.default_rng(2)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).save(path / name)
    np.save(path / "x.npy", rng.normal(size=4))
    (path / "text.png").write_text("no picture")
    return path


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("net", "empty"):
        sys.modules.pop(name, None)


def call(*words):
    """Exit status, stdout, stderr."""
    found = CliRunner().invoke(app, [str(word) for word in words], prog_name="python -m relax")
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.stdout, found.stderr


def explain(*words):
    """What ``--output x.npz`` holds, and what was printed."""
    status, out, err = call("explain", *words, "--output", "x.npz")
    assert status == 0, err
    with np.load("x.npz") as file:
        return dict(file), out


def by_hand(path="a.png"):
    """The picture as a sample: the largest part of the shape, resized, divided by 255."""
    image = Image.open(path)
    box = (2, 0, 18, 12)  # 6 x 8 in 12 x 20: twice, so 16 columns of the middle
    small = image.resize((8, 6), Image.Resampling.BICUBIC, box=box)
    return np.asarray(small, np.float32) / 255


def module():
    namespace = {"__name__": "__main__"}
    exec(MODEL.replace("@dataclasses.dataclass", "#"), namespace)
    return namespace
