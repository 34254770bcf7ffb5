"""What an ImageNet classifier needs around it: photographs of the right size, names of classes."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from relax.cli import InputError, find_class_index, fit, load_picture, short_name
from relax.cli.networks.imagenet import load_labels

__all__ = [
    "CLASSES",
    "IMAGE_SIZE",
    "PHOTOGRAPHS",
    "InputError",
    "add_image",
    "find_class_index",
    "load_image",
    "load_labels",
    "short_name",
]

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
            path of a file, see ``relax.cli.load_picture``.

    Returns:
        An array ``(224, 224, 3)`` of bytes.

    Raises:
        InputError: there is no such file, or it is no picture of eight bits a channel.
    """
    name = os.fspath(path_or_name)
    if name not in PHOTOGRAPHS and not Path(name).is_file():
        raise InputError(
            f"no file {name!r}, and the photographs known by name are {', '.join(PHOTOGRAPHS)}"
        )
    image = Image.fromarray(PHOTOGRAPHS[name]()) if name in PHOTOGRAPHS else load_picture(name)
    return fit(image, IMAGE_SIZE, IMAGE_SIZE)


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
