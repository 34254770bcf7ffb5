"""A picture beside heatmaps of it, with titles and a color bar, as a figure of matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import count, pixels, relevance_map, same_size
from relax.viz._canvas import INK, Canvas, ends_of, plain_text, wide_of
from relax.viz._colors import Colors, Scale, Symmetric
from relax.viz._images import overlay as overlaid

# Inches.
_TILE = 2.7
_GAP = 0.14
_TITLE = 0.36
_BAR = 0.42
_CAPTION = 0.3
_ONE_ROW = 3  # With more heatmaps than this the picture takes two rows of them.


@plain_text
def figure(
    picture: Any,
    heatmaps: Mapping[str, Any],
    *,
    title: str = "",
    caption: str = "",
    rows: int | None = None,
    overlay: bool = False,
    smooth: bool = False,
    ends: tuple[str, str] | None = None,
    percentile: float = 99.5,
    symmetric: Symmetric = True,
    colors: Colors = None,
    limit: float | None = None,
) -> Any:
    """A picture, and beside it a heatmap for each title, with one color bar for all.

    Each heatmap has a scale of its own, because the magnitudes of rules differ, and the bar has
    words at its ends; with ``limit``, which makes them comparable, it has numbers.

    Args:
      picture: bytes, or floats from 0 to 1, ``(height, width[, channels])``; None for none.
      heatmaps: title to relevance, ``(height, width[, channels])``, all of one size.
      title: what stands above the picture.
      caption: what stands below it, small.
      rows: of heatmaps; by default 1, and 2 of more than three. The picture is as high as they.
      overlay: whether relevance is drawn over the picture, as `overlay` does.
      smooth: whether the picture is smoothed where it is enlarged, as suits a photograph; heatmaps
        never are.
      ends: two words for the bar, such as ``("against", "for")``.
      percentile, symmetric, colors, limit: as in `heatmap`. A percentile is of each by itself.

    Returns:
      A figure of matplotlib: ``figure.savefig("figure.png")``; notebooks show it.

    Raises:
      ArgumentError: there is no heatmap, the sizes differ, or as `heatmap`.
      ImportError: matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> from relax import viz
      >>> relevance = np.random.default_rng(0).normal(size=(8, 8, 3))
      >>> shown = viz.figure(np.ones((8, 8)), {"epsilon": relevance, "gamma": relevance**3})
      >>> [axes.get_title() for axes in shown.axes[1:3]]
      ['epsilon', 'gamma']
    """
    if not heatmaps:
        raise ArgumentError("figure: there is no heatmap.")
    if picture is None and overlay:
        raise ArgumentError("figure(overlay=True) needs a picture to draw on.")
    maps = {str(n): relevance_map(r, f"Heatmap {n!r}") for n, r in heatmaps.items()}
    first = pixels(picture) if picture is not None else next(iter(maps.values()))
    for name, r in maps.items():
        same_size(first, r, f"Heatmap {name!r}")
    if symmetric == "auto":  # one bar for all
        symmetric = any(
            Scale(r, percentile=100, symmetric="auto", colors=None, limit=None).symmetric
            for r in maps.values()
        )
    scale_of = lambda r: Scale(
        r, percentile=percentile, symmetric=symmetric, colors=colors, limit=limit
    )
    rows = (1 if len(maps) <= _ONE_ROW else 2) if rows is None else count("rows", rows)
    columns = math.ceil(len(maps) / rows)
    tall = first.shape[0] / first.shape[1]
    high = _TILE * min(1.0, tall)  # a tile fits into a square
    wide = high / tall
    place = max(wide, wide_of(list(maps), 10))  # and its title beside those of its neighbors
    side = rows * high + (rows - 1) * (_TITLE + _GAP)
    beside = 0.0 if picture is None else side / tall + _GAP
    room = columns * (place + _GAP) - _GAP
    width = max(_GAP + beside + room + _GAP, 3.0)
    canvas = Canvas(width, _TITLE + side + _BAR + (_CAPTION if caption else 0))

    if picture is not None:
        panel = canvas.axes(_GAP, _TITLE, side / tall, side)
        panel.imshow(first, interpolation="lanczos" if smooth else "antialiased")
        panel.set_title(title, fontsize=12, fontweight="bold", color=INK, pad=7)
    for number, (name, r) in enumerate(maps.items()):
        row, column = divmod(number, columns)
        left = _GAP + beside + column * (place + _GAP) + (place - wide) / 2
        panel = canvas.axes(left, _TITLE + row * (high + _TITLE + _GAP), wide, high)
        scale = scale_of(r)
        panel.imshow(_shown(first, r, scale) if overlay else scale(r), interpolation="antialiased")
        panel.set_title(name, fontsize=10, family="monospace", color=INK, pad=7)
    scale = scale_of(next(iter(maps.values())))
    center = _GAP + beside + room / 2
    words = None if limit is not None and ends is None else ends_of(scale, ends)
    canvas.color_bar(scale, center, _TITLE + side + 0.18, max(room, 2.6), words)
    if caption:
        canvas.text(_GAP, _TITLE + side + _BAR, caption)
    return canvas.figure


def _shown(picture: np.ndarray, relevance: np.ndarray, scale: Scale) -> np.ndarray:
    return overlaid(
        picture,
        relevance,
        symmetric=scale.symmetric,
        colors=lambda places: scale.table / 255.0,
        limit=scale.limit,
    )
