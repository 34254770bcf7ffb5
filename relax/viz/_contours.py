"""Lines around what is relevant, drawn into a picture at its own resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import number, pixels, relevance_map, same_size
from relax.viz._colors import Colors, Scale, Symmetric

_FINE = 4  # Lines are found on a grid so many times finer, and averaged: their edges are smooth.


def contours(
    picture: Any,
    relevance: Any,
    *,
    levels: Sequence[float] = (0.3, 0.6),
    smooth: float | None = None,
    width: float | None = None,
    percentile: float = 99.5,
    symmetric: Symmetric = True,
    colors: Colors = None,
    limit: float | None = None,
) -> np.ndarray:
    """The picture with lines around what is relevant: red for the output, blue against it.

    Args:
      picture: bytes, or floats from 0 to 1, ``(height, width[, channels])``.
      relevance: ``(height, width[, channels])``.
      levels: where lines are, above 0 up to 1: shares of the limit, on a scale with both signs
        of either sign.
      smooth: the standard deviation, in pixels, of the Gaussian that relevance is smoothed with
        first, because that of single pixels has no outline; 0 for none, by default a sixtieth of
        the longer side.
      width: of the lines in pixels; by default the longer side / 200, and at least 1.
      percentile, symmetric, colors, limit: as in `heatmap`, of the smoothed relevance.

    Returns:
      Bytes ``(height, width, 3)``.

    Raises:
      ArgumentError: the sizes differ, a number is out of range, or as `heatmap`.

    Example:
      >>> import numpy as np
      >>> from relax import viz
      >>> spot = np.exp(-((np.arange(9.0)[:, None] - 4) ** 2 + (np.arange(9.0) - 4) ** 2) / 9)
      >>> lines = viz.contours(np.zeros((9, 9)), spot, levels=[0.5])
      >>> print(lines[4, 4].max(), lines.max() > 100)  # the middle is left as it is
      0 True
    """
    under, r = pixels(picture), relevance_map(relevance)
    same_size(under, r)
    side = max(r.shape)
    smooth = side / 60 if smooth is None else number("smooth", smooth, 0)
    width = max(1.0, side / 200) if width is None else number("width", width, 0.5)
    shares = [number("levels", level, 1e-6, 1) for level in levels]
    if not shares:
        raise ArgumentError("levels is empty; expected shares of the limit such as (0.3, 0.6).")
    if smooth:
        r = _blur(r.shape[0], smooth) @ r @ _blur(r.shape[1], smooth).T
    scale = Scale(r, percentile=percentile, symmetric=symmetric, colors=colors, limit=limit)
    fine = _finer(r.shape[0]) @ scale.shares(r) @ _finer(r.shape[1]).T
    drawn = under.astype(np.float64)
    signed = [s * level for level in sorted(shares) for s in ((-1, 1) if scale.symmetric else (1,))]
    for level in signed:
        edge = _edge(fine >= level if level > 0 else fine <= level)
        if not edge.any():
            continue
        # A halo keeps the line apart from a picture of its own color.
        color = scale(np.array(np.sign(level) * scale.limit * 0.85))
        for reach, paint in ((width + 1.5, np.full(3, 255.0)), (width, color.astype(np.float64))):
            cover = _averaged(_thick(edge, reach * _FINE / 2))[..., None]
            drawn = (1 - cover) * drawn + cover * paint
    return np.rint(drawn).astype(np.uint8)


def _blur(size: int, deviation: float) -> np.ndarray:
    """A Gaussian average along an axis as a matrix; beyond the edge nothing is averaged."""
    at = np.arange(size)
    weight = np.exp(-(((at[:, None] - at[None]) / deviation) ** 2) / 2)
    return weight / weight.sum(1, keepdims=True)


def _finer(size: int) -> np.ndarray:
    """Linear interpolation along an axis, to ``_FINE`` values for each, as a matrix."""
    at = np.clip((np.arange(size * _FINE) + 0.5) / _FINE - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)[None]))


def _edge(inside: np.ndarray) -> np.ndarray:
    """The pixels inside that have a neighbor outside; beyond the picture is nothing."""
    padded = np.pad(inside, 1, mode="edge")
    whole = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~whole


def _thick(line: np.ndarray, radius: float) -> np.ndarray:
    """All pixels that are not farther than this from the line."""
    reach = math.ceil(radius)
    height, width = line.shape
    padded = np.pad(line, reach)
    out = np.zeros_like(line)
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            if x * x + y * y <= radius * radius:
                out |= padded[reach + y : reach + y + height, reach + x : reach + x + width]
    return out


def _averaged(fine: np.ndarray) -> np.ndarray:
    """The share of each pixel that is covered."""
    height, width = (size // _FINE for size in fine.shape)
    return fine.reshape(height, _FINE, width, _FINE).mean((1, 3))
