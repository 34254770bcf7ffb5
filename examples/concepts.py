"""Explains an ImageNet classifier by its concepts: through which channels, and what they stand for.

    python examples/concepts.py
    python examples/concepts.py --image coffee --by relevance
    python examples/concepts.py --image my.jpg --target "tabby" --layers blocks_11/expand,blocks_5/expand

The network is EfficientNet-Lite0, unmodified Flax (see efficientnet_lite.py). Of each layer that is
named, the channels with the most relevance are found and what flows between them; relevance through
each of them alone is one line, in ``explain_through``. What a channel stands for is told by other
photographs, all that scikit-image ships with: they are cut into tiles, and of each photograph the
tile in which the channel is strongest is shown, cropped to what it sees there. The photograph that
is explained is left out of them, where it would be its own reference.

A channel is strongest where its activation is largest, or, ``--by relevance``, where it has the
largest share in what the network sees in a tile. It takes about a minute on two cores; the packages
that it needs beside relax come with

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
    from command_line import add_output, names, run_command
    from concept_picture import Concept, Layer, save_picture
    from efficientnet_lite import IMAGE_SIZE, EfficientNetLite0, load_variables, preprocess
    from imagenet import PHOTOGRAPHS, find_class_index, load_image, load_labels, short_name
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
# How many tiles fit into the shorter side of a photograph.
PARTS, SMALL_PARTS = (1, 2, 3), (1, 2)
CONCEPTS, SMALL_CONCEPTS = 4, 2
REFERENCES = 6
BATCH = 16
# So many tiles are kept for each channel, and of each photograph the first of them is shown.
KEPT = 64
SEARCH = {
    # The largest activation, wherever it is: a channel that is looked for need not fill the tile.
    "activation": {"reduce": "max", "normalize": False},
    # The sum, as a share of what the whole layer has for the class that the network sees.
    "relevance": {"reduce": "sum", "normalize": True, "target": "max"},
}

network = EfficientNetLite0().apply


# The one line that matters


def explain_through(
    layer: str, concepts: Any, variables: Any, image: jax.Array, target: int
) -> np.ndarray:
    """Relevance of each pixel for a class through each of some channels alone.

    Args:
        layer: its path, as relax gives it.
        concepts: the numbers of the channels, ``(concepts,)``.
        variables: the network's variables.
        image: one preprocessed photograph, ``(1, 224, 224, 3)``.
        target: the index of the class.

    Returns:
        An array ``(concepts, 224, 224)``; of all channels of a layer they add up to the relevance
        that passes it.
    """
    at = relax.select.only(layer)
    explained = relax.crp(network, RULES, at=at, concepts=concepts, target=target)
    return np.asarray(jax.jit(explained)(variables, image)[:, 0].sum(axis=-1))


def find_flow(
    layers: Sequence[str], width: int, variables: Any, image: jax.Array, target: int
) -> relax.concepts.Flow:
    """The channels of each layer with the most relevance, and what flows between them."""
    flow = relax.concepts.flow(network, RULES, at=layers, width=width, target=target)
    return jax.device_get(jax.jit(flow)(variables, image))


# What the channels stand for


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
    starts = [
        np.linspace(0, length - side, -(-length * parts // short)) for length in (width, height)
    ]
    return [(left, top, left + side, top + side) for top in starts[1] for left in starts[0]]


def cut_tiles(photographs: Mapping[str, np.ndarray], parts: Sequence[int]) -> Tiles:
    """Tiles of several sizes of each photograph, each resized to the network's square."""
    pixels, owners = [], []
    for name, photograph in photographs.items():
        image = Image.fromarray(photograph).convert("RGB")
        for box in (box for each in parts for box in tile_boxes(*image.size, each)):
            size = (IMAGE_SIZE, IMAGE_SIZE)
            pixels.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box)))
            owners.append(name)
    return Tiles(np.stack(pixels), np.array(owners))


def find_strongest(
    by: str, layers: Sequence[str], variables: Any, images: np.ndarray
) -> dict[str, relax.concepts.Top]:
    """For each channel of each layer the images in which it is strongest, by the layer's path.

    Args:
        by: "activation" or "relevance".
        layers: as globs.
        variables: the network's variables.
        images: preprocessed, ``(images, 224, 224, 3)``.
    """
    search = relax.concepts.maximization(
        network, RULES, at=layers, by=by, k=min(KEPT, len(images)), **SEARCH[by]
    )
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return jax.device_get(search.run(variables, batches).top)


def one_of_each(top: relax.concepts.Top, owners: np.ndarray, count: int) -> relax.concepts.Top:
    """Of the strongest tiles of each channel the first of each photograph, up to a number.

    Neighboring tiles of one photograph are alike, and would fill the row.
    """
    values = np.full((len(top.values), count), -np.inf, top.values.dtype)
    samples, positions = (np.full_like(values, -1, dtype=np.int32) for _ in range(2))
    for row, found in enumerate(top.samples):
        there = np.flatnonzero(found >= 0)
        _, first = np.unique(owners[found[there]], return_index=True)
        kept = there[np.sort(first)][:count]
        for new, old in zip((values, samples, positions), top, strict=True):
            new[row, : len(kept)] = old[row, kept]
    return relax.concepts.Top(values, samples, positions)


def find_references(
    by: str, flow: relax.concepts.Flow, variables: Any, tiles: Tiles, count: int
) -> list[list[list[relax.concepts.Reference]]]:
    """For each layer and each of its channels in the graph the tiles in which it is strongest."""
    images = np.asarray(preprocess(tiles.pixels))
    at = [relax.select.only(path) for path in flow.layers]
    strongest = find_strongest(by, at, variables, images)
    return [
        relax.concepts.references(
            network,
            RULES,
            one_of_each(strongest[path], tiles.photographs, count),
            images,
            at=only,
            concepts=concepts,
            target="max",
            unit=True,
        )(variables)
        for path, only, concepts in zip(flow.layers, at, flow.concepts, strict=True)
    ]


# The command line


def run(arguments: argparse.Namespace) -> None:
    """Classifies, explains, searches, draws.

    Raises:
        InputError: an argument names something that does not exist or cannot be used.
    """
    start = time.perf_counter()
    labels = load_labels()
    photograph = load_image(arguments.image)
    named = None if arguments.target is None else find_class_index(arguments.target, labels)
    command_line.check_output(arguments.output, ".png")

    variables = load_variables()
    image = preprocess(photograph)[None]
    logits = np.asarray(jax.jit(network)(variables, image))[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    target = int(logits.argmax()) if named is None else named
    title = f"{short_name(labels[target])}, {probabilities[target]:.1%}"
    print(f"{title}; the logit is {logits[target]:.3f}\n")

    small = arguments.small
    width = SMALL_CONCEPTS if small else CONCEPTS
    flow = find_flow(arguments.layers, width, variables, image, target)
    print(f"relevance of the channels, and what they hand on\n{flow}\n")
    heatmaps = [
        explain_through(path, concepts, variables, image, target)
        for path, concepts in zip(flow.layers, flow.concepts, strict=True)
    ]
    whole = relax.lrp(network, RULES, target=target)
    heatmap = np.asarray(jax.jit(whole)(variables, image)[0].sum(axis=-1))

    others = {name: load() for name, load in PHOTOGRAPHS.items() if name != arguments.image}
    tiles = cut_tiles(others, SMALL_PARTS if small else PARTS)
    print(f"{len(tiles.pixels)} tiles of {len(others)} photographs, by {arguments.by}")
    references = find_references(arguments.by, flow, variables, tiles, REFERENCES)
    layers = [
        describe(flow, number, heatmaps[number], references[number], tiles)
        for number in range(len(flow.layers))
    ]
    caption = f"EfficientNet-Lite0, trained on ImageNet. Photograph: {Path(arguments.image).name}"
    save_picture(arguments.output, photograph, title, heatmap, layers, flow, caption)
    print(f"\n{arguments.output} written after {time.perf_counter() - start:.0f} s")


def describe(
    flow: relax.concepts.Flow,
    number: int,
    heatmaps: np.ndarray,
    references: Sequence[Sequence[relax.concepts.Reference]],
    tiles: Tiles,
) -> Layer:
    """Prints what was found of a layer, and makes it what is drawn."""
    path = flow.layers[number].partition("/")[2]
    print(path)
    concepts = []
    for row, (concept, found) in enumerate(zip(flow.concepts[number], references, strict=True)):
        share = float(flow.relevance[number][row] / flow.total[number])
        where = ", ".join(f"{tiles.photographs[r.sample]} {r.value:.2g}" for r in found)
        print(f"  {concept:>5} {share:6.1%}  {where}")
        crops = [crop(tiles.pixels[r.sample], r.box) for r in found]
        concepts.append(Concept(str(concept), share, heatmaps[row], crops))
    return Layer(path, concepts)


def crop(pixels: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part of a picture between two rows and two columns."""
    top, bottom, left, right = box
    return pixels[top:bottom, left:right]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="concepts.py", description="Explain an ImageNet classifier by its concepts."
    )
    parser.add_argument(
        "--image",
        default="chelsea",
        metavar="PICTURE",
        help=f"a file, or one of {', '.join(PHOTOGRAPHS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        metavar="CLASS",
        help="the class to explain, by name or by index (default: the most probable one)",
    )
    parser.add_argument(
        "--layers",
        type=names,
        default=LAYERS,
        metavar="LAYER,LAYER[,...]",
        help=f"whose channels are the concepts (default: {','.join(LAYERS)})",
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
