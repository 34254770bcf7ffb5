"""From relevance to colors: scales, tables of colors, and letters that can be read on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import extra, number, reals

# Anchors at equal distances, zero to the full color (diverging: negative to positive). They were
# chosen in Oklab. Diverging: lightness falls from white by the same steps on either side, so that
# no sign looks stronger, and the hues, blue against red or orange, differ for every color vision.
# Sequential: lightness changes by equal steps, so that equal differences look alike, in gray too.
_DIVERGING = {
    "blue_red": "0244be 2268e7 5a91f0 8fb7f8 c6dcfd ffffff facec6 f09d8f e2695c cf2427 9e0117",
    "cyan_orange": "b9f4fb 46bce0 057cb3 023f7e 001132 000000 2c0001 761a00 ad5b02 dd9f25 f7ea9b",
}
_SEQUENTIAL = {
    "heat": "ffffff f2d890 eda648 e36e0b cb321e 9b053f 620046 2d0236",
    "glow": "000000 0d0024 43014c 8c0349 c73639 eb7734 faba60 fff7c3",
    "gray": "000000 ffffff",
    "gray_r": "ffffff 000000",
}
_HALF = 128  # A table has 257 colors: zero of a symmetric scale is exactly the one in the middle.
_ROUNDING = 1e-6  # Negative relevance below this share of the largest is an error of rounding.

Colors = str | Callable[..., Any] | Sequence[str] | None
Symmetric = bool | Literal["auto"]


def color_limit(*relevance: Any, percentile: float = 99.5) -> float:
    """The magnitude of relevance that gets the full color, one for all that are given.

    A high percentile of the magnitude, because a few pixels may hold many times the relevance of
    the others, and scaled to them a heatmap would show nothing else. If there are several arrays,
    the largest limit of them. Relevance that is zero nearly everywhere is scaled to its largest
    magnitude, and if it is zero everywhere the limit is 1.

    Args:
      *relevance: arrays of any shape, as they will be drawn: with channels already summed.
      percentile: of the magnitude, from 0 to 100; 100 clips nothing.

    Returns:
      A positive number.

    Raises:
      ArgumentError: there is no relevance, or some that is not finite; the percentile is none.

    Example:
      >>> from relax import viz
      >>> viz.color_limit([1.0, -4.0, 2.0], [0.0, 8.0], percentile=100)
      8.0
      >>> heatmaps = [viz.heatmap(r, limit=8.0) for r in ([[1.0, -4.0]], [[0.0, 8.0]])]
    """
    number("percentile", percentile, 0, 100)
    if not relevance:
        raise ArgumentError("color_limit: no relevance is given.")
    magnitudes = [np.abs(reals("The relevance", r)) for r in relevance]
    limits = [float(np.percentile(m, percentile)) or float(m.max()) for m in magnitudes]
    return max(limits) or 1.0


class Scale:
    """What makes colors of relevance: a limit, whether both signs have colors, and a table.

    Attributes:
      limit: the magnitude of the full color.
      symmetric: whether the table goes from ``-limit`` to ``limit``, or from 0.
      table: bytes ``(257, 3)``.
    """

    def __init__(
        self,
        relevance: np.ndarray,
        *,
        percentile: float,
        symmetric: Symmetric,
        colors: Colors,
        limit: float | None,
    ) -> None:
        if symmetric not in (True, False, "auto"):
            raise ArgumentError(f'symmetric={symmetric!r}; expected True, False or "auto".')
        magnitude = float(np.abs(relevance).max())
        negative = float(relevance.min()) < -_ROUNDING * magnitude
        if negative and symmetric is False:
            raise ArgumentError(
                f"The relevance goes down to {relevance.min():.3g}, and a one-sided scale starts "
                "at zero. Draw np.abs(relevance) or np.maximum(relevance, 0), or let both signs "
                'have colors: symmetric=True, or "auto".'
            )
        self.symmetric = negative if symmetric == "auto" else bool(symmetric)
        if limit is None:
            self.limit = color_limit(relevance, percentile=percentile)
        else:
            self.limit = number("limit", limit, np.nextafter(0, 1))
        self.table = color_table(colors, self.symmetric)

    def shares(self, relevance: np.ndarray) -> np.ndarray:
        """Relevance as a part of the limit, from -1 or 0 to 1."""
        low = -self.limit if self.symmetric else 0.0
        return np.clip(relevance, low, self.limit) / self.limit

    def __call__(self, relevance: np.ndarray) -> np.ndarray:
        """Colors as bytes, of the shape of the relevance and 3."""
        shares = self.shares(relevance)
        # Rounded before the half is added: then the colors of -r are exactly the mirrored ones.
        if self.symmetric:
            return self.table[np.rint(_HALF * shares).astype(int) + _HALF]
        return self.table[np.rint(2 * _HALF * shares).astype(int)]

    @property
    def zero(self) -> np.ndarray:
        """The color of zero."""
        return self.table[_HALF if self.symmetric else 0]


def color_table(colors: Colors, symmetric: bool) -> np.ndarray:
    """257 colors as bytes, ``(257, 3)``.

    Args:
      colors: the name of a table of relax or of matplotlib, a colormap of matplotlib, which is a
        function of numbers from 0 to 1, or anchors such as ``["#0000ff", "#ffffff", "#ff0000"]``.
      symmetric: chooses the default, and refuses one-sided tables of relax.

    Raises:
      ArgumentError: there is no such table, or it does not suit the scale.
    """
    places = np.linspace(0, 1, 2 * _HALF + 1)
    if colors is None:
        return color_table("blue_red" if symmetric else "heat", symmetric)
    if isinstance(colors, str):
        ours = _DIVERGING if symmetric else _SEQUENTIAL
        if colors in ours:
            return _between(ours[colors].split(), places)
        if colors in _DIVERGING or colors in _SEQUENTIAL:
            kind = "one-sided, and the scale has both signs" if symmetric else "for both signs"
            raise ArgumentError(f"colors={colors!r} is {kind}. There are {', '.join(ours)}.")
        known = extra("matplotlib").colormaps
        if colors not in known:
            raise ArgumentError(
                f"colors={colors!r} is neither in matplotlib nor one of {', '.join(ours)}."
            )
        colors = known[colors]
    if callable(colors):
        table = reals("colors", colors(places))
        if table.ndim != 2 or table.shape[0] != len(places) or table.shape[1] not in (3, 4):
            raise ArgumentError(
                f"colors made an array {table.shape} of {len(places)} numbers; expected red, "
                "green and blue for each."
            )
        return np.rint(255 * np.clip(table[:, :3], 0, 1)).astype(np.uint8)
    anchors: Any = colors
    return _between([str(color).removeprefix("#") for color in anchors], places)


def _between(anchors: Sequence[str], places: np.ndarray) -> np.ndarray:
    """Colors between anchors, each six hexadecimal digits, that stand at equal distances."""
    try:
        rows = np.array([list(bytes.fromhex(anchor)) for anchor in anchors], np.float64)
        if rows.ndim != 2 or rows.shape[1] != 3 or len(rows) < 2:
            raise ValueError
    except ValueError:
        raise ArgumentError(
            f'colors={list(anchors)!r}; expected two or more such as "#ff0000".'
        ) from None
    at = np.linspace(0, 1, len(rows))
    table = np.stack([np.interp(places, at, rows[:, i]) for i in range(3)], -1)
    return np.rint(table).astype(np.uint8)


def hexadecimal(color: np.ndarray) -> str:
    """A color of bytes as "#rrggbb"."""
    return "#" + bytes(int(c) for c in color).hex()


def luminance(color: np.ndarray) -> float:
    """How light a color of bytes is for the eye, 0 to 1 (WCAG 2, relative luminance)."""
    c = np.asarray(color, np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def ink(ground: np.ndarray) -> np.ndarray:
    """Black or white, whichever has the greater contrast; it is never below 4.5 : 1."""
    light = luminance(ground) + 0.05
    return np.zeros(3, np.uint8) if light / 0.05 >= 1.05 / light else np.full(3, 255, np.uint8)
