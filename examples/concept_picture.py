"""The picture of concepts: a photograph, relevance through each concept, what it stands for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import relax
from relax import viz

# Inches.
_SIDE = 2.75
_GRAPH = 1.15  # for each layer
_TILE = 0.98
_GAP = 0.07
_NAME = 0.58
_MARGIN = 0.14
_BETWEEN = 0.2
_TITLE = 0.36
_FOOT = 0.34

# Axes of a width and height, at a distance from the left and from the top, all in inches.
_MakeAxes = Callable[[float, float, float, float], Axes]


class Concept(NamedTuple):
    """One channel.

    Attributes:
        name: what it is called.
        share: of the relevance of its layer.
        heatmap: relevance of the photograph through it alone, ``(height, width)``.
        crops: pictures of what it stands for, the clearest first.
        values: of each, as text.
    """

    name: str
    share: float
    heatmap: np.ndarray
    crops: Sequence[np.ndarray]
    values: Sequence[str]


class Layer(NamedTuple):
    """Some concepts of a layer, the strongest first."""

    name: str
    concepts: Sequence[Concept]


class Captions(NamedTuple):
    """What stands above the photograph, above the crops, and below everything, small."""

    title: str
    crops: str
    foot: str


def save_picture(
    path: Path,
    photograph: np.ndarray,
    heatmap: np.ndarray,
    layers: Sequence[Layer],
    flow: relax.concepts.Flow,
    captions: Captions,
) -> None:
    """Draws the photograph, its heatmap and the graph, and beside them a row for each concept.

    Args:
        path: the PNG to write.
        photograph: bytes ``(height, width, 3)``.
        heatmap: relevance of the photograph, ``(height, width)``.
        layers: from the output down.
        flow: the graph of their concepts.
        captions: what is written on it.

    Raises:
        OSError: the file cannot be written.
    """
    columns = max(len(concept.crops) for layer in layers for concept in layer.concepts)
    left = _MARGIN + _SIDE + _BETWEEN
    width = left + _NAME + _TILE + _BETWEEN + columns * (_TILE + _GAP) + _MARGIN
    rows = sum(_TITLE + len(layer.concepts) * (_TILE + _GAP) for layer in layers)
    height = _MARGIN + max(rows, 3 * _TITLE + 2 * _SIDE + len(layers) * _GRAPH) + _FOOT
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")

    def axes(x: float, y: float, wide: float, high: float) -> Axes:
        area = (x / width, 1 - (y + high) / height, wide / width, high / height)
        return figure.add_axes(area, xticks=[], yticks=[])

    y = _MARGIN + _TITLE
    panel = _show(axes(_MARGIN, y, _SIDE, _SIDE), photograph)
    panel.set_title(captions.title, fontsize=11, fontweight="bold", pad=6)
    y += _SIDE + _TITLE
    panel = _show(axes(_MARGIN, y, _SIDE, _SIDE), viz.overlay(photograph, heatmap))
    _caption(panel, "all relevance")
    y += _SIDE + _TITLE
    panel = axes(_MARGIN, y, _SIDE, height - _FOOT - y)
    _caption(panel, "what flows between the concepts")
    _draw_graph(panel, flow, layers)

    y = _MARGIN
    for layer in layers:
        _draw_layer(axes, left, y, photograph, layer, captions.crops)
        y += _TITLE + len(layer.concepts) * (_TILE + _GAP)
    place = {"color": "0.4", "fontsize": 8, "va": "bottom"}
    figure.text(_MARGIN / width, 0.1 / height, captions.foot, **place)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def _draw_layer(
    axes: _MakeAxes, left: float, y: float, photograph: np.ndarray, layer: Layer, caption: str
) -> None:
    """A row for each concept: its name, the photograph, its crops."""
    y += _TITLE
    x = left + _NAME
    start = x + _TILE + _BETWEEN
    for row, concept in enumerate(layer.concepts):
        here = y + row * (_TILE + _GAP)
        panel = axes(left, here, _NAME, _TILE)
        panel.set_axis_off()
        if row == 0:
            _caption(panel, layer.name, family="monospace")
        panel.text(0.87, 0.52, concept.name, ha="right", fontsize=10, fontweight="bold")
        panel.text(0.87, 0.34, f"{concept.share:.1%}", ha="right", fontsize=8, color="0.4")
        panel = _show(axes(x, here, _TILE, _TILE), viz.overlay(photograph, concept.heatmap))
        for column, (crop, value) in enumerate(zip(concept.crops, concept.values, strict=True)):
            panel = _show(axes(start + column * (_TILE + _GAP), here, _TILE, _TILE), crop)
            ground = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
            panel.text(0.05, 0.06, value, transform=panel.transAxes, fontsize=6.5, bbox=ground)
            if row == column == 0:
                _caption(panel, caption)


def _draw_graph(panel: Axes, flow: relax.concepts.Flow, layers: Sequence[Layer]) -> None:
    """The graph, with the names of the layers upright, where there is room."""
    flow.plot(panel)
    panel.set_ylim(-len(layers) + 0.6, 0.4)
    left, right = panel.get_xlim()
    panel.set_xlim(left - 0.08 * (right - left), right)
    panel.set_yticks([])
    for number, layer in enumerate(layers):
        place = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 7, "color": "0.25"}
        panel.text(panel.get_xlim()[0], -number, layer.name, family="monospace", **place)


def _show(panel: Axes, picture: np.ndarray) -> Axes:
    panel.imshow(picture, interpolation="bicubic")
    for spine in panel.spines.values():
        spine.set(color="0.75", linewidth=0.8)
    return panel


def _caption(panel: Axes, text: str, **font: str) -> None:
    panel.set_title(text, loc="left", fontsize=8.5, color="0.25", pad=5, **font)
