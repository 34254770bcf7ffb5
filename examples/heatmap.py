"""The picture: a photograph beside heatmaps of relevance, as one PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

PERCENTILE = 99.5
RELEVANCE = LinearSegmentedColormap.from_list(
    "relevance", ["#123fa6", "#4f86dd", "#b5d0f5", "#ffffff", "#fbc0ae", "#ea6148", "#bd0a26"]
)

# Inches.
_TILE = 2.7
_GAP = 0.14
_TITLE = 0.36
_FOOT = 0.62
_BAR = (3.2, 0.11)
_ONE_ROW = 3  # With more heatmaps than this the photograph takes two rows of them.


def color_limit(relevance: np.ndarray, percentile: float = PERCENTILE) -> float:
    """The relevance, of either sign, that gets the full color: a high percentile of its magnitude.

    The few pixels beyond it are clipped: scaled to the largest of all, an epsilon heatmap would
    show one pixel and nothing else. Relevance that is zero nearly everywhere is scaled to its
    largest, and one that is zero everywhere gives 1.

    Raises:
        ValueError: some relevance is infinite or no number.
    """
    magnitude = np.abs(relevance)
    if not np.isfinite(magnitude).all():
        raise ValueError("relevance that is not finite cannot be drawn")
    return float(np.percentile(magnitude, percentile)) or float(magnitude.max()) or 1.0


def save_figure(
    path: Path,
    photograph: np.ndarray,
    title: str,
    heatmaps: Mapping[str, np.ndarray],
    caption: str,
) -> None:
    """Draws the photograph and, for each title in ``heatmaps``, relevance as color.

    Red speaks for the class, blue against it, white is zero. Each heatmap has a scale of its own,
    symmetric about zero (see ``color_limit``), because the rules' magnitudes differ.

    Args:
        path: the PNG to write.
        photograph: bytes ``(height, width, 3)``.
        title: what stands above the photograph.
        heatmaps: title to relevance ``(height, width)``, already summed over the color channels.
        caption: what stands below the photograph, small.

    Raises:
        OSError: the file cannot be written.
    """
    rows = 1 if len(heatmaps) <= _ONE_ROW else 2
    columns = -(-len(heatmaps) // rows)
    side = rows * _TILE + (rows - 1) * (_TITLE + _GAP)
    width = _GAP + side + columns * (_GAP + _TILE) + _GAP
    height = _TITLE + side + _FOOT
    figure = Figure(figsize=(width, height), dpi=120, facecolor="white")

    def axes(left: float, bottom: float, wide: float, high: float) -> Axes:
        area = (left / width, bottom / height, wide / width, high / height)
        return figure.add_axes(area, xticks=[], yticks=[])

    panel = axes(_GAP, _FOOT, side, side)
    panel.imshow(photograph, interpolation="lanczos")
    panel.set_title(title, fontsize=12, fontweight="bold", pad=7)
    _frame(panel)
    figure.text(_GAP / width, (_FOOT - 0.2) / height, caption, color="0.4", fontsize=8.5, va="top")

    image = None
    for number, (name, relevance) in enumerate(heatmaps.items()):
        row, column = divmod(number, columns)
        left = _GAP + side + _GAP + column * (_TILE + _GAP)
        bottom = _FOOT + (rows - 1 - row) * (_TILE + _TITLE + _GAP)
        panel = axes(left, bottom, _TILE, _TILE)
        limit = color_limit(relevance)
        image = panel.imshow(
            relevance / limit, cmap=RELEVANCE, vmin=-1, vmax=1, interpolation="auto"
        )
        panel.set_title(name, fontsize=10, family="monospace", pad=7)
        _frame(panel)

    if image is not None:
        center = _GAP + side + (columns * (_GAP + _TILE) + _GAP) / 2
        bar_width = min(_BAR[0], columns * _TILE - 1.6)
        bar = axes(center - bar_width / 2, _FOOT - 0.33, bar_width, _BAR[1])
        figure.colorbar(image, cax=bar, orientation="horizontal", ticks=[])
        _frame(bar)
        place = {"transform": bar.transAxes, "va": "center", "fontsize": 8.5, "color": "0.25"}
        bar.text(-0.03, 0.45, "against", ha="right", **place)
        bar.text(1.03, 0.45, "for", ha="left", **place)
    figure.savefig(path, format="png", pil_kwargs={"optimize": True})


def _frame(panel: Axes) -> None:
    for spine in panel.spines.values():
        spine.set(color="0.75", linewidth=0.8)
