"""The picture: digits with a patch, and below them what speaks for each network's answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from relax import viz

# Inches.
_TILE = 1.12
_GAP = 0.1
_UNDER = 0.27
_LEFT = 2.5
_TOP = 0.12
_FOOT = 0.42
_BAR = (1.5, 0.09)


class Row(NamedTuple):
    """One network, explained.

    Attributes:
        title: its name.
        text: what stands below the name.
        relevance: of each picture, ``(picture, 28, 28)``.
        answers: what stands below each picture.
        right: whether that is right.
    """

    title: str
    text: str
    relevance: np.ndarray
    answers: Sequence[str]
    right: Sequence[bool] | np.ndarray


def save_rows(
    path: Path,
    title: str,
    text: str,
    images: np.ndarray,
    below: Sequence[str],
    rows: Sequence[Row],
) -> None:
    """Draws pictures, and a row of heatmaps of them for each network.

    Red speaks for the answer, blue against it, white is zero; each heatmap has a scale of its own
    (see ``relax.viz.color_limit``), and the outline of the picture on it. Right answers are in bold
    type.

    Args:
        path: the PNG to write.
        title: what stands beside the pictures.
        text: what stands below the title.
        images: the pictures, ``(picture, 28, 28)`` from 0 to 1.
        below: what stands below each picture.
        rows: the networks.

    Raises:
        OSError: the file cannot be written.
    """
    width = _LEFT + len(images) * (_TILE + _GAP)
    height = _TOP + (1 + len(rows)) * (_TILE + _UNDER) + _FOOT
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")

    def axes(left: float, bottom: float, wide: float, high: float) -> Axes:
        area = (left / width, bottom / height, wide / width, high / height)
        panel = figure.add_axes(area, xticks=[], yticks=[])
        panel.spines[:].set(color="0.75", linewidth=0.8)
        return panel

    def begin(row: int, title: str, text: str) -> list[Axes]:
        bottom = height - _TOP - row * (_TILE + _UNDER) - _TILE
        middle = (bottom + _TILE / 2) / height
        figure.text(_GAP / width, middle + 0.05 / height, title, fontsize=12, fontweight="bold")
        place = {"va": "top", "fontsize": 9.5, "color": "0.3", "linespacing": 1.4}
        figure.text(_GAP / width, middle - 0.02 / height, text, **place)
        lefts = [_LEFT + column * (_TILE + _GAP) for column in range(len(images))]
        return [axes(left, bottom, _TILE, _TILE) for left in lefts]

    def label(panel: Axes, text: str, bold: bool) -> None:
        weight = "bold" if bold else "normal"
        panel.set_xlabel(text, fontsize=9.5, fontweight=weight, labelpad=3)

    for panel, image, patch in zip(begin(0, title, text), images, below, strict=True):
        panel.imshow(image, cmap="gray", vmin=0, vmax=1)
        label(panel, patch, False)
    for number, row in enumerate(rows, start=1):
        for index, panel in enumerate(begin(number, row.title, row.text)):
            panel.imshow(viz.heatmap(row.relevance[index]))
            panel.contour(images[index], levels=[0.1], colors="0.45", linewidths=0.6)
            label(panel, row.answers[index], bool(row.right[index]))

    center = _LEFT + len(images) * (_TILE + _GAP) / 2
    bar = axes(center - _BAR[0] / 2, 0.16, *_BAR)
    bar.imshow(viz.heatmap(np.linspace(-1, 1, 257)[None], limit=1.0), aspect="auto")
    place = {"transform": bar.transAxes, "va": "center", "fontsize": 8.5, "color": "0.25"}
    bar.text(-0.05, 0.45, "against the answer", ha="right", **place)
    bar.text(1.05, 0.45, "for the answer", ha="left", **place)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})
