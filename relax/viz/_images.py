"""Pictures of relevance as plain arrays of bytes, at the resolution of the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import count, extra, number, pixels, reals, relevance_map, same_size
from relax.viz._colors import Colors, Scale, Symmetric

_LUMA = np.array([0.299, 0.587, 0.114])  # what of red, green and blue makes gray


def heatmap(
    relevance: Any,
    *,
    percentile: float = 99.5,
    symmetric: Symmetric = True,
    colors: Colors = None,
    limit: float | None = None,
) -> np.ndarray:
    """Relevance as colors, a pixel for a pixel: red speaks for the output, blue against it.

    Zero is exactly white, and equal magnitudes of either sign look equally strong.

    Args:
      relevance: ``(height, width)`` or ``(height, width, channels)``, of which the sum is drawn.
      percentile: of the magnitude, at which the full color is reached; 100 clips nothing.
      symmetric: True for a scale from ``-limit`` to ``limit``; False for one from 0, of relevance
        that is never negative, such as a saliency; ``"auto"`` for either, as the relevance needs.
      colors: by default ``"blue_red"``, one-sided ``"heat"``, both white at zero. On black:
        ``"cyan_orange"``, ``"glow"``. Also ``"gray"``, ``"gray_r"``; any colormap of matplotlib or
        its name; or a list of anchors, ``["#0000ff", "#ffffff", "#ff0000"]``.
      limit: the magnitude of the full color, instead of a percentile; see `color_limit`.

    Returns:
      Bytes ``(height, width, 3)``.

    Raises:
      ArgumentError: the relevance is no picture, not finite, or negative on a one-sided scale.

    Example:
      >>> from relax import viz
      >>> print(viz.heatmap([[-2.0, 0.0, 2.0]])[0])
      [[  2  68 190]
       [255 255 255]
       [158   1  23]]
    """
    r = relevance_map(relevance)
    return Scale(r, percentile=percentile, symmetric=symmetric, colors=colors, limit=limit)(r)


def picture(x: Any, *, low: float | None = None, high: float | None = None) -> np.ndarray:
    """A picture of any range as bytes: what a network takes, as what the eye sees.

    Args:
      x: ``(height, width)`` or ``(height, width, channels)``, 1 or 3 channels.
      low, high: of ``x``, what becomes black and what becomes full; by default its extremes. For
        an input normalized by ``(x - mean) / std`` give ``x * std + mean``, 0 and 1.

    Returns:
      Bytes ``(height, width, 3)``.

    Raises:
      ArgumentError: that is no picture, or ``low`` is not below ``high``.

    Example:
      >>> from relax import viz
      >>> print(viz.picture([[-1.0, 0.0, 3.0]])[0, :, 0])
      [  0  64 255]
    """
    values = reals("The picture", x)
    bottom = float(values.min()) if low is None else number("low", low, -math.inf)
    top = float(values.max()) if high is None else number("high", high, -math.inf)
    if bottom > top or (bottom == top and None not in (low, high)):
        raise ArgumentError(f"picture: low={bottom:g} is not below high={top:g}.")
    return pixels(np.clip((values - bottom) / ((top - bottom) or 1.0), 0, 1))


def overlay(
    picture: Any,
    relevance: Any,
    *,
    alpha: float = 1.0,
    power: float = 0.6,
    gray: bool = True,
    fade: float = 0.6,
    percentile: float = 99.5,
    symmetric: Symmetric = True,
    colors: Colors = None,
    limit: float | None = None,
) -> np.ndarray:
    r"""Relevance as color over a pale gray picture, so that every color is that of relevance.

    $$(1 - a)\, \mathrm{picture} + a\, \mathrm{color}(R), \qquad
      a = \mathrm{alpha} \cdot |R / \mathrm{limit}|^{\mathrm{power}}$$

    Args:
      picture: bytes, or floats from 0 to 1, ``(height, width[, channels])``.
      relevance: ``(height, width[, channels])``.
      alpha: how opaque the full color is, 0 to 1.
      power: how fast color grows with relevance: below 1 faint relevance shows; 0 covers all
        pixels alike, with ``alpha=0.5`` the plain overlay of other libraries.
      gray: whether the picture loses its colors.
      fade: how far the picture goes towards the color of zero, 0 to 1.
      percentile, symmetric, colors, limit: as in `heatmap`.

    Returns:
      Bytes ``(height, width, 3)``.

    Raises:
      ArgumentError: the sizes differ, a number is out of range, or as `heatmap`.

    Example:
      >>> from relax import viz
      >>> print(viz.overlay([[0.0, 1.0]], [[0.0, 2.0]], fade=0)[0])
      [[  0   0   0]
       [158   1  23]]
    """
    below, r = pixels(picture).astype(np.float64), relevance_map(relevance)
    same_size(below, r)
    alpha, fade = number("alpha", alpha, 0, 1), number("fade", fade, 0, 1)
    power = number("power", power, 0)
    scale = Scale(r, percentile=percentile, symmetric=symmetric, colors=colors, limit=limit)
    if gray:
        below = np.repeat((below @ _LUMA)[..., None], 3, -1)
    below = (1 - fade) * below + fade * scale.zero
    cover = alpha * (np.abs(scale.shares(r)) ** power)[..., None]
    return np.rint((1 - cover) * below + cover * scale(r)).astype(np.uint8)


def grid(
    pictures: Sequence[Any],
    *,
    columns: int | None = None,
    gap: int = 4,
    background: Sequence[int] = (255, 255, 255),
) -> np.ndarray:
    """Pictures side by side in rows, as one.

    Args:
      pictures: each bytes, or floats from 0 to 1, ``(height, width[, channels])``; smaller ones
        stand in the middle of their place.
      columns: how many in a row; by default about as many as rows.
      gap: pixels between them.
      background: red, green and blue, bytes.

    Returns:
      Bytes ``(height, width, 3)``.

    Raises:
      ArgumentError: there are none, or one is no picture.

    Example:
      >>> import numpy as np
      >>> from relax import viz
      >>> relevance = np.random.default_rng(0).normal(size=(6, 28, 28, 1))
      >>> viz.grid([viz.heatmap(r) for r in relevance], columns=3).shape
      (60, 92, 3)
    """
    shown = [pixels(p, f"Picture {i}") for i, p in enumerate(pictures)]
    if not shown:
        raise ArgumentError("grid: there are no pictures.")
    columns = math.ceil(math.sqrt(len(shown))) if columns is None else count("columns", columns)
    columns = min(columns, len(shown))
    if isinstance(gap, bool) or not isinstance(gap, (int, np.integer)) or gap < 0:
        raise ArgumentError(f"gap={gap!r}; expected a number of pixels, 0 or more.")
    height, width = (max(p.shape[axis] for p in shown) for axis in (0, 1))
    rows = math.ceil(len(shown) / columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    whole = np.broadcast_to(pixels([[list(background)]], "The background"), size).copy()
    for place, p in enumerate(shown):
        row, column = divmod(place, columns)
        top = row * (height + gap) + (height - p.shape[0]) // 2
        left = column * (width + gap) + (width - p.shape[1]) // 2
        whole[top : top + p.shape[0], left : left + p.shape[1]] = p
    return whole


def save(path: str | Path, picture: Any, *, scale: int = 1) -> None:
    """Writes a PNG of exactly these pixels: no axis, no margin, no resampling.

    Args:
      path: of the file, ending in ``.png``.
      picture: bytes, or floats from 0 to 1, ``(height, width[, channels])``.
      scale: how many pixels of the file a pixel is, along either axis.

    Raises:
      ArgumentError: that is no picture, or the file would be no PNG.
      ImportError: pillow is not installed.
      OSError: the file cannot be written.

    Example:
      >>> import os, tempfile
      >>> from relax import viz
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     viz.save(os.path.join(folder, "heatmap.png"), viz.heatmap([[1.0, -1.0]]), scale=8)
    """
    if Path(path).suffix.lower() != ".png":
        raise ArgumentError(
            f"save: {str(path)!r} does not end in .png; other formats may change the colors."
        )
    scale = count("scale", scale)
    shown = np.repeat(np.repeat(pixels(picture), scale, 0), scale, 1)
    image = extra("PIL.Image").fromarray(np.ascontiguousarray(shown))
    image.save(path, format="PNG", optimize=True)
