"""Explains an ImageNet classifier by its concepts: through which channels, and what they stand for.

    python examples/concepts.py
    python examples/concepts.py --image coffee --by relevance
    python examples/concepts.py --image my.jpg --target tabby --layers head,blocks_11/expand

The network is EfficientNet-Lite0, unmodified Flax (see efficientnet_lite.py). Of each layer that is
named, the channels with the most relevance are found, and what flows between them; relevance of the
pixels through each of them alone is one line, in ``explain``.

What a channel stands for is told by other photographs, all that scikit-image ships with. They are
cut into tiles, and of each photograph the tile in which the channel is strongest is shown, cropped
to what it sees there: where its activation is largest, or, with ``--by relevance``, where it has
the largest share in what the network takes the tile for. The photograph that is explained would be
its own best example, and is left out.

Relevance at a layer far below the logit is a small part of it: the biases, which hold what batch
normalization has learned, absorb the rest. It takes about a minute on two cores; the packages that
it needs beside relax come with

    pip install "relax-lrp[examples]"

Source: Achtibat et al. 2023, "From attribution maps to human-understandable explanations through
concept relevance propagation".
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import jax
    import numpy as np
    from PIL import Image

    import command_line
    import relax
    from command_line import InputError, add_output, names, run_command
    from concept_picture import Captions, Concept, Layer, save_picture
    from efficientnet_lite import IMAGE_SIZE, EfficientNetLite0, load_variables, preprocess
    from imagenet import (
        PHOTOGRAPHS,
        add_image,
        find_class_index,
        load_image,
        load_labels,
        short_name,
    )
    from relax.concepts import Flow, Reference, Top
    from relax.select import only
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"concepts.py: error: the package {missing.name!r} is missing: "
        'pip install "relax-lrp[examples]"',
        file=sys.stderr,
    )
    sys.exit(2)

RULES = relax.composites.epsilon_plus_flat()
LAYERS = ("blocks_11/expand", "blocks_8/expand")
BATCH = 16
# So many tiles are kept for each channel, of which the first of each photograph is shown.
KEPT = 64
# What is maximized, and how a value of it is written.
SEARCH = {
    # Wherever it is: what the channel looks for need not fill the tile.
    "activation": {"reduce": "max", "normalize": False},
    # Its share in the relevance of the whole layer, for the class that the network sees.
    "relevance": {"reduce": "sum", "normalize": True, "target": "max"},
}
VALUE = {"activation": "{:.1f}", "relevance": "{:.2%}"}


class Size(NamedTuple):
    """How much is done.

    Attributes:
        concepts: channels of each layer.
        references: tiles that are shown of each.
        parts: how many tiles fit into the shorter side of a photograph.
    """

    concepts: int
    references: int
    parts: tuple[int, ...]


FULL, SMALL = Size(concepts=4, references=6, parts=(1, 2, 3)), Size(2, 3, (1, 2))

network = EfficientNetLite0().apply


# Through which channels


class Explanation(NamedTuple):
    """Why the network sees a class in a photograph.

    Attributes:
        heatmap: relevance of the pixels, ``(224, 224)``.
        flow: the channels of each layer with the most relevance, and what flows between them.
        through: for each layer relevance of the pixels through each of these channels alone,
            ``(channels, 224, 224)``.
    """

    heatmap: Any
    flow: Flow
    through: list[Any]


def explain(
    variables: Any, image: jax.Array, *, layers: Sequence[str], count: int, target: int
) -> Explanation:
    """Explains a class by the strongest channels of some layers.

    Args:
        variables: the network's variables.
        image: one preprocessed photograph, ``(1, 224, 224, 3)``.
        layers: globs of two layers or more, as in ``relax.lrp``.
        count: how many channels of each.
        target: the index of the class.
    """
    relevance = relax.lrp(network, RULES, target=target)(variables, image)
    find_flow = relax.concepts.flow(network, RULES, at=layers, width=count, target=target)
    flow = find_flow(variables, image)
    through = [
        relax.crp(network, RULES, at=only(layer), concepts=channels, target=target)(
            variables, image
        )
        for layer, channels in zip(flow.layers, flow.concepts, strict=True)
    ]
    over_colors = [each[:, 0].sum(axis=-1) for each in through]
    return Explanation(relevance[0].sum(axis=-1), flow, over_colors)


# What they stand for


class Tiles(NamedTuple):
    """Squares cut out of photographs.

    Attributes:
        pixels: bytes ``(tiles, 224, 224, 3)``.
        photographs: of each the name of the photograph, ``(tiles,)``.
    """

    pixels: np.ndarray
    photographs: np.ndarray


def tile_boxes(width: int, height: int, parts: int) -> list[tuple[float, float, float, float]]:
    """The fewest squares that cover a rectangle, evenly spaced.

    Args:
        width, height: of the rectangle.
        parts: how many of the squares fit into its shorter side.

    Returns:
        Of each its left, top, right and bottom.
    """
    short = min(width, height)
    side = short / parts
    lefts, tops = (
        np.linspace(0, length - side, -(-length * parts // short)) for length in (width, height)
    )
    return [(left, top, left + side, top + side) for top in tops for left in lefts]


def cut_tiles(photographs: Mapping[str, np.ndarray], parts: Sequence[int]) -> Tiles:
    """Tiles of several sizes of each photograph, each resized to the network's square."""
    pixels, owners = [], []
    for name, photograph in photographs.items():
        image = Image.fromarray(photograph).convert("RGB")
        for box in (box for each in parts for box in tile_boxes(*image.size, each)):
            square = (IMAGE_SIZE, IMAGE_SIZE)
            pixels.append(np.asarray(image.resize(square, Image.Resampling.BICUBIC, box=box)))
            owners.append(name)
    return Tiles(np.stack(pixels), np.array(owners))


def find_strongest(
    by: str, layers: Sequence[str], variables: Any, images: np.ndarray
) -> dict[str, Top]:
    """For each channel of each layer the images in which it is strongest, by the layer's path.

    Args:
        by: "activation" or "relevance".
        layers: globs, as in ``explain``.
        variables: the network's variables.
        images: preprocessed, ``(images, 224, 224, 3)``.
    """
    search = relax.concepts.maximization(
        network, RULES, at=layers, by=by, k=min(KEPT, len(images)), **SEARCH[by]
    )
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return jax.device_get(search.run(variables, batches).top)


def one_of_each(top: Top, owners: np.ndarray, count: int) -> Top:
    """Of the strongest tiles of each channel the first of each photograph, up to a number.

    Tiles of one photograph are often alike, and would fill the row.
    """
    values = np.full((len(top.values), count), -np.inf, top.values.dtype)
    samples, positions = (np.full(values.shape, -1, np.int32) for _ in range(2))
    for row, found in enumerate(top.samples):
        there = np.flatnonzero(found >= 0)
        _, first = np.unique(owners[found[there]], return_index=True)
        kept = there[np.sort(first)][:count]
        for new, old in zip((values, samples, positions), top, strict=True):
            new[row, : len(kept)] = old[row, kept]
    return Top(values, samples, positions)


def find_references(
    by: str, flow: Flow, variables: Any, tiles: Tiles, count: int
) -> list[list[list[Reference]]]:
    """For each layer of the graph and each of its channels the tiles in which it is strongest."""
    images = np.asarray(preprocess(tiles.pixels))
    strongest = find_strongest(by, flow.layers, variables, images)
    found = []
    for layer, channels in zip(flow.layers, flow.concepts, strict=True):
        top = one_of_each(strongest[layer], tiles.photographs, count)
        # Where the channel is strongest and nowhere else, with what surrounds it.
        options = {"by": by, "target": "max", "unit": True, "share": 0.99}
        find = relax.concepts.references(
            network, RULES, top, images, at=only(layer), concepts=channels, **options
        )
        found.append(find(variables))
    return found


def describe(
    explanation: Explanation, references: list[list[list[Reference]]], tiles: Tiles, by: str
) -> list[Layer]:
    """Prints what the channels of each layer stand for, and makes them what is drawn."""
    flow, layers = explanation.flow, []
    for number, path in enumerate(flow.layers):
        name = path.partition("/")[2]
        print(name)
        concepts = []
        for row, found in enumerate(references[number]):
            channel = flow.name(number, flow.concepts[number][row])
            share = float(flow.relevance[number][row] / flow.total[number])
            values = [VALUE[by].format(reference.value) for reference in found]
            owners = [tiles.photographs[reference.sample] for reference in found]
            pairs = (f"{owner} {value}" for owner, value in zip(owners, values, strict=True))
            print(f"  {channel:>5} {share:6.1%}  {', '.join(pairs)}")
            crops = [crop(tiles.pixels[reference.sample], reference.box) for reference in found]
            heatmap = np.asarray(explanation.through[number][row])
            concepts.append(Concept(str(channel), share, heatmap, crops, values))
        layers.append(Layer(name, concepts))
    return layers


def crop(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part of a picture from one row to another and from one column to another."""
    top, bottom, left, right = box
    return pixels[top:bottom, left:right]


# The command line


def run(arguments: argparse.Namespace) -> None:
    """Classifies, explains, searches, draws.

    Raises:
        InputError: an argument names something that does not exist or cannot be used.
    """
    start = time.perf_counter()
    size = SMALL if arguments.small else FULL
    labels = load_labels()
    photograph = load_image(arguments.image)
    named = None if arguments.target is None else find_class_index(arguments.target, labels)
    command_line.check_output(arguments.output, ".png")

    variables = load_variables()
    image = preprocess(photograph)[None]
    logits = np.asarray(jax.jit(network)(variables, image))[0]
    target = int(logits.argmax()) if named is None else named
    title = f"{short_name(labels[target])}, {jax.nn.softmax(logits)[target]:.1%}"
    print(f"{title}; the logit is {logits[target]:.3f}\n")

    options = {"layers": arguments.layers, "count": size.concepts, "target": target}
    try:
        explanation = jax.jit(lambda *given: explain(*given, **options))(variables, image)
    except (relax.ArgumentError, relax.UnmatchedSelectorError) as error:
        raise InputError(f"--layers: {error}") from error
    explanation = jax.device_get(explanation)
    print(f"relevance of the channels, and what they hand on\n{explanation.flow}\n")

    others = {name: load() for name, load in PHOTOGRAPHS.items() if name != arguments.image}
    tiles = cut_tiles(others, size.parts)
    print(f"{len(tiles.pixels)} tiles of {len(others)} photographs, by {arguments.by}")
    found = find_references(arguments.by, explanation.flow, variables, tiles, size.references)
    layers = describe(explanation, found, tiles, arguments.by)
    captions = Captions(
        title=title,
        crops=f"strongest in other photographs, by {arguments.by}",
        foot=f"EfficientNet-Lite0, trained on ImageNet. Photograph: {Path(arguments.image).name}",
    )
    picture = photograph, explanation.heatmap, layers, explanation.flow, captions
    save_picture(arguments.output, *picture)
    print(f"\n{arguments.output} written after {time.perf_counter() - start:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="concepts.py", description="Explain an ImageNet classifier by its concepts."
    )
    add_image(parser, "chelsea")
    parser.add_argument(
        "--layers",
        type=names,
        default=LAYERS,
        metavar="LAYER,LAYER[,...]",
        help=f"whose channels are the concepts, two or more (default: {','.join(LAYERS)})",
    )
    parser.add_argument(
        "--by",
        choices=sorted(SEARCH),
        default="activation",
        help="what is largest in the tiles that are shown (default: %(default)s)",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="fewer concepts and tiles: the least work that shows everything works",
    )
    add_output(parser, "concepts.png", "PNG", "picture")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when the picture was written, 2 and a line on stderr when not."""
    return run_command(_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
