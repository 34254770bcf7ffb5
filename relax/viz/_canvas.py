"""Figures of matplotlib: areas measured in inches, a color bar, and text that is only text."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from relax.viz._arrays import extra
from relax.viz._colors import Scale

INK = "#262626"
FAINT = "#6b6b6b"
FRAME = "#bfbfbf"
_BAR = (2.6, 0.11)

_Drawing = TypeVar("_Drawing", bound=Callable[..., Any])


def plain_text(draw: _Drawing) -> _Drawing:
    """Draws without TeX and mathematics: a dollar or an underscore in a name is only that."""

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> Any:
        plain = {"text.usetex": False, "text.parse_math": False}
        with extra("matplotlib").rc_context(plain):
            return draw(*args, **options)

    return cast(_Drawing, drawn)


class Canvas:
    """A white figure whose areas are given in inches, from the left and from the top.

    The figure knows nothing of pyplot: nothing stays open when it is let go, and nothing is shown
    that is not asked for.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        make = extra("matplotlib.figure").Figure
        self.figure = make(figsize=(width, height), dpi=120, facecolor="white")

    def axes(self, left: float, top: float, wide: float, high: float) -> Any:
        """Axes with a thin frame and no ticks."""
        bottom = self.height - top - high
        area = (left / self.width, bottom / self.height, wide / self.width, high / self.height)
        panel = self.figure.add_axes(area, xticks=[], yticks=[], facecolor="white")
        for spine in panel.spines.values():
            spine.set(color=FRAME, linewidth=0.8)
        return panel

    def text(self, left: float, top: float, text: str, **font: Any) -> None:
        """Small text; by default it begins at the left and hangs from the top."""
        place = {"color": FAINT, "fontsize": 8.5, "va": "top", **font}
        self.figure.text(left / self.width, 1 - top / self.height, text, **place)

    def color_bar(
        self, scale: Scale, center: float, top: float, room: float, ends: tuple[str, str] | None
    ) -> Any:
        """A horizontal bar with its table of colors, and either words or numbers at its ends."""
        wide = min(_BAR[0], room - 1.6)
        bar = self.axes(center - wide / 2, top, wide, _BAR[1])
        bar.imshow(scale.table[None], aspect="auto", extent=(0, 1, 0, 1))
        low, high = ends or (f"{-scale.limit if scale.symmetric else 0:.3g}", f"{scale.limit:.3g}")
        place = {"transform": bar.transAxes, "va": "center", "fontsize": 8.5, "color": INK}
        bar.text(-0.1 / wide, 0.45, low.replace("-", "\N{MINUS SIGN}"), ha="right", **place)
        bar.text(1 + 0.1 / wide, 0.45, high, ha="left", **place)
        return bar


def bare_axis(panel: Any, *, left: bool = True, bottom: bool = True) -> None:
    """Leaves only the lines on which there are numbers, and writes these small."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines["left"].set_visible(left)
    panel.spines["bottom"].set_visible(bottom)
    panel.tick_params(labelsize=8, color=FRAME, labelcolor=INK, length=3)


def wide_of(names: list[str], size: float) -> float:
    """About how many inches the longest of the names takes at a font size."""
    return max((len(name) for name in names), default=0) * size * 0.6 / 72


def ends_of(scale: Scale, given: tuple[str, str] | None) -> tuple[str, str]:
    """The words at the ends of a color bar."""
    return given or (("against", "for") if scale.symmetric else ("none", "most"))


def ticks(low: float, high: float, most: int, *, integer: bool = False) -> np.ndarray:
    """Round numbers in an interval, about so many."""
    locator = extra("matplotlib.ticker").MaxNLocator(most, integer=integer)
    at = locator.tick_values(low, high)
    return at[(at >= low) & (at <= high)]


def number_side(panel: Any, low: float, high: float) -> None:
    """About three round numbers up the side, short enough for the margin."""
    at = ticks(low, high, 3)
    digits = next((d for d in range(4, 9) if len({f"{x:.{d}g}" for x in at}) == len(at)), 9)
    panel.set_yticks(at, [f"{x:.{digits}g}".replace("-", "\N{MINUS SIGN}") for x in at])


def ticks_of_time(panel: Any, low: float, high: float, unit: str) -> None:
    """Numbers along the bottom, and what they count."""
    panel.set_xticks(ticks(low, high, 8, integer=unit != "seconds"))
    panel.set_xlim(low, high)
    panel.set_xlabel(unit, fontsize=8.5, color=INK)


def binned(relevance: np.ndarray, most: int) -> np.ndarray:
    """Sums of neighbors along the first axis, so that there are not more than ``most``."""
    length = relevance.shape[0]
    if length <= most:
        return relevance
    starts = np.linspace(0, length, most, endpoint=False).astype(int)
    return np.add.reduceat(relevance, starts, axis=0)
