"""The picture of concepts: a photograph, relevance through each concept, what it stands for."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import relax
from heatmap import RELEVANCE, color_limit

# Inches.
_SIDE = 2.6
_TILE = 0.98
_GAP = 0.07
_NAME = 0.62
_MARGIN = 0.14
_TITLE = 0.34
_FOOT = 0.3
_BETWEEN = 0.3


class Concept(NamedTuple):
    """One channel.

    Attributes:
        name: what it is called.
        share: of the relevance of its layer.
        heatmap: relevance of the photograph through it alone, ``(height, width)``.
        crops: pictures of what it stands for, the clearest first.
    """

    name: str
    share: float
    heatmap: np.ndarray
    crops: Sequence[np.ndarray]


class Layer(NamedTuple):
    """Some concepts of a layer, the strongest first."""

    name: str
    concepts: Sequence[Concept]


def overlay(photograph: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """Relevance as color on a pale gray photograph: red speaks for the class, blue against it.

    Args:
        photograph: bytes ``(height, width, 3)``.
        relevance: ``(height, width)``; the full color is reached at ``color_limit``.

    Returns:
        An array ``(height, width, 3)`` from 0 to 1.
    """
    gray = photograph.mean(axis=-1, keepdims=True) / 255
    pale = 0.45 + 0.55 * gray
    strength = np.clip(relevance / color_limit(relevance), -1, 1)
    cover = np.abs(strength)[..., None] ** 0.6
    return (1 - cover) * pale + cover * RELEVANCE((strength + 1) / 2)[..., :3]


def save_picture(
    path: Path,
    photograph: np.ndarray,
    title: str,
    heatmap: np.ndarray,
    layers: Sequence[Layer],
    flow: relax.concepts.Flow,
    caption: str,
) -> None:
    """Draws the photograph, its heatmap and the graph, and beside them a row for each concept.

    Args:
        path: the PNG to write.
        photograph: bytes ``(height, width, 3)``.
        title: what stands above the photograph.
        heatmap: relevance of the photograph, ``(height, width)``.
        layers: from the output down.
        flow: the graph of their concepts.
        caption: what stands below, small.

    Raises:
        OSError: the file cannot be written.
    """
    columns = 1 + max(len(c.crops) for layer in layers for c in layer.concepts)
    rows = sum(len(layer.concepts) for layer in layers)
    left = _MARGIN + _SIDE + _BETWEEN
    width = left + _NAME + columns * (_TILE + _GAP) + _BETWEEN + _MARGIN
    right_height = rows * (_TILE + _GAP) + len(layers) * _TITLE
    height = max(right_height, 3.0 * _SIDE + 2 * _TITLE) + _FOOT + _MARGIN
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")

    def axes(x: float, y: float, wide: float, high: float) -> Axes:
        """Of this size in inches, from the left and from the top."""
        area = (x / width, 1 - (y + high) / height, wide / width, high / height)
        return figure.add_axes(area, xticks=[], yticks=[])

    y = _MARGIN + _TITLE
    panel = axes(_MARGIN, y, _SIDE, _SIDE)
    panel.imshow(photograph, interpolation="lanczos")
    panel.set_title(title, fontsize=11, fontweight="bold", pad=6)
    _frame(panel)
    y += _SIDE + _GAP
    panel = axes(_MARGIN, y, _SIDE, _SIDE)
    panel.imshow(overlay(photograph, heatmap), interpolation="lanczos")
    _frame(panel)
    y += _SIDE + _TITLE
    graph = axes(_MARGIN, y, _SIDE, height - y - _FOOT)
    _draw_graph(graph, flow, layers)

    y = _MARGIN
    for layer in layers:
        y += _TITLE
        place = {"va": "bottom", "fontsize": 9, "color": "0.25"}
        x = left + _NAME
        figure.text(x / width, 1 - (y - 0.06) / height, layer.name, family="monospace", **place)
        for concept in layer.concepts:
            _draw_concept(axes, left, y, photograph, concept)
            y += _TILE + _GAP
    place = {"color": "0.4", "fontsize": 8, "va": "bottom"}
    figure.text(_MARGIN / width, 0.08 / height, caption, **place)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def _draw_concept(axes, left: float, y: float, photograph: np.ndarray, concept: Concept) -> None:
    panel = axes(left, y, _NAME, _TILE)
    panel.set_axis_off()
    panel.text(0.9, 0.55, concept.name, ha="right", fontsize=10, fontweight="bold")
    panel.text(0.9, 0.38, f"{concept.share:.1%}", ha="right", fontsize=8, color="0.4")
    panel = axes(left + _NAME, y, _TILE, _TILE)
    panel.imshow(overlay(photograph, concept.heatmap), interpolation="lanczos")
    _frame(panel)
    for number, crop in enumerate(concept.crops):
        x = left + _NAME + (number + 1) * (_TILE + _GAP) + _BETWEEN
        panel = axes(x, y, _TILE, _TILE)
        panel.imshow(crop, interpolation="bicubic")
        _frame(panel)


def _draw_graph(panel: Axes, flow: relax.concepts.Flow, layers: Sequence[Layer]) -> None:
    flow.plot(panel)
    panel.set_yticks([])
    for number, layer in enumerate(layers):
        panel.text(0, -number + 0.42, layer.name, ha="center", fontsize=8, family="monospace")


def _frame(panel: Axes) -> None:
    for spine in panel.spines.values():
        spine.set(color="0.75", linewidth=0.8)
