"""Relevance of a video: a strip of frames, where each is strongest, and how much each has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import count, number, pixels, reals
from relax.viz._canvas import (
    FAINT,
    INK,
    Canvas,
    bare_axis,
    ends_of,
    number_side,
    plain_text,
    ticks_of_time,
)
from relax.viz._colors import Colors, Scale, Symmetric, color_table
from relax.viz._images import overlay

# Inches.
_STRIP = 8.4
_TALLEST = 1.9
_GAP = 0.08
_NAME = 0.24
_CURVE = 0.95
_FOOT = 0.48
_BAR = 0.3
_TITLE = 0.34
_MARGIN = 0.15
_NUMBERS = 0.5

_SEEN = 0.05  # of the full color


@plain_text
def frames(
    video: Any,
    relevance: Any,
    *,
    number_of_frames: int = 6,
    chosen: Sequence[int] | None = None,
    rate: float | None = None,
    point: bool = True,
    title: str = "",
    ends: tuple[str, str] | None = None,
    percentile: float = 99.5,
    symmetric: Symmetric = True,
    colors: Colors = None,
    limit: float | None = None,
) -> Any:
    """Frames of a video under their relevance, with a ring where it is strongest, and its course.

    All frames have one scale, that of the whole video. Below stands the relevance of every frame,
    the sum over its pixels; the frames that are shown are marked.

    Args:
      video: bytes, or floats from 0 to 1, ``(frames, height, width[, channels])``.
      relevance: ``(frames, height, width[, channels])``; channels are summed.
      number_of_frames: how many are shown, at equal distances.
      chosen: the numbers of those to show instead.
      rate: frames per second; then time is in seconds, and else in frames.
      point: whether the place of the largest magnitude in a frame has a ring; a frame where it is
        below a twentieth of the full color, which cannot be seen, has none.
      title: what stands above.
      ends: the words at the ends of the color bar.
      percentile, symmetric, colors, limit: as in `heatmap`.

    Returns:
      A figure of matplotlib: ``figure.savefig("frames.png")``; notebooks show it.

    Raises:
      ArgumentError: the shapes differ or are others, there is no such frame, or as `heatmap`.
      ImportError: matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> from relax import viz
      >>> video = np.zeros((8, 12, 16, 3))
      >>> relevance = np.zeros((8, 12, 16))
      >>> relevance[np.arange(8), 5, np.arange(8)] = 1.0
      >>> shown = viz.frames(video, relevance, chosen=[0, 7])
      >>> [axes.get_title() for axes in shown.axes[:2]]
      ['0', '7']
    """
    reals("The video", video)
    x, r = np.asarray(video), reals("The relevance", relevance)
    if x.ndim not in (3, 4) or r.ndim not in (3, 4):
        raise ArgumentError(
            f"The video has shape {x.shape} and the relevance {r.shape}; expected (frames, height, "
            "width), or (frames, height, width, channels). Draw a batch video by video."
        )
    if r.ndim == 4:
        r = r.sum(-1)
    if x.shape[:3] != r.shape:
        raise ArgumentError(
            f"The relevance has {r.shape} frames, rows and columns, and the video {x.shape[:3]}. "
            f"jax.image.resize(relevance, {x.shape[:3]}, 'linear') makes them alike; channels are "
            "last in both."
        )
    shown = _chosen(chosen, number_of_frames, len(r))
    scale = Scale(r, percentile=percentile, symmetric=symmetric, colors=colors, limit=limit)

    tall = r.shape[1] / r.shape[2]
    wide = min((_STRIP + _GAP) / len(shown) - _GAP, _TALLEST / tall)
    high = wide * tall
    strip = max(len(shown) * (wide + _GAP) - _GAP, 4.0)
    indent = (strip - len(shown) * (wide + _GAP) + _GAP) / 2
    left = _MARGIN + _NUMBERS
    top = _MARGIN + (_TITLE if title else 0) + _NAME
    below = top + high + 0.18
    canvas = Canvas(left + strip + _MARGIN, below + _CURVE + _FOOT + _BAR + _MARGIN)
    step = 1.0 if rate is None else 1 / number("rate", rate, np.nextafter(0, 1))
    for i, frame in enumerate(shown):
        panel = canvas.axes(left + indent + i * (wide + _GAP), top, wide, high)
        covered = overlay(
            pixels(x[frame], f"Frame {frame}"),
            r[frame],
            symmetric=scale.symmetric,
            colors=lambda places: scale.table / 255.0,
            limit=scale.limit,
        )
        panel.imshow(covered, interpolation="antialiased")
        name = f"{frame}" if rate is None else f"{frame * step:.2f} s"
        panel.set_title(name, fontsize=8.5, color=INK, pad=4)
        if point and np.abs(r[frame]).max() >= _SEEN * scale.limit:
            _ring(panel, r[frame])
    if title:
        place = {"fontsize": 11, "fontweight": "bold", "color": INK, "ha": "center"}
        canvas.text(left + strip / 2, _MARGIN, title, **place)
    panel = canvas.axes(left, below, strip, _CURVE)
    table = scale.table if scale.symmetric else color_table(None, True)
    _draw_course(panel, r.sum((1, 2)), shown, step, table)
    ticks_of_time(panel, -0.5 * step, (len(r) - 0.5) * step, "frame" if rate is None else "seconds")
    words = None if limit is not None and ends is None else ends_of(scale, ends)
    canvas.color_bar(scale, left + strip / 2, below + _CURVE + _FOOT + 0.08, strip, words)
    return canvas.figure


def _chosen(chosen: Sequence[int] | None, number_of_frames: int, length: int) -> list[int]:
    """The numbers of the frames to show."""
    if chosen is None:
        most = min(count("number_of_frames", number_of_frames), length)
        return np.linspace(0, length - 1, most).round().astype(int).tolist()
    given = reals("chosen", chosen)
    if given.ndim != 1 or np.any(given != given.round()) or not np.all(np.abs(given) < length):
        raise ArgumentError(f"chosen={chosen!r}; expected numbers of frames, 0 to {length - 1}.")
    return [int(i) % length for i in given]


def _ring(panel: Any, relevance: np.ndarray) -> None:
    """A ring around the place of the largest magnitude, to be seen on light and dark."""
    row, column = np.unravel_index(np.abs(relevance).argmax(), relevance.shape)
    for width, color in ((3.2, "white"), (1.4, INK)):
        panel.plot(
            column,
            row,
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=color,
            markeredgewidth=width,
            clip_on=False,
        )
    panel.set_xlim(-0.5, relevance.shape[1] - 0.5)
    panel.set_ylim(relevance.shape[0] - 0.5, -0.5)


def _draw_course(
    panel: Any, each: np.ndarray, shown: list[int], step: float, table: np.ndarray
) -> None:
    """The relevance of every frame as bars, and a mark for each that is shown."""
    time = np.arange(len(each)) * step
    paint = [table[216 if r >= 0 else 40] / 255 for r in each]
    panel.bar(time, each, width=0.8 * step, color=paint)
    panel.axhline(0, color=FAINT, linewidth=0.8)
    low, high = min(0.0, float(each.min())), max(0.0, float(each.max()))
    air = 0.12 * (high - low) or 1.0
    high += air
    panel.set_ylim(low - (air if low < 0 else 0), high)
    marks = {"marker": "v", "linestyle": "none", "markersize": 4.5, "color": INK}
    panel.plot(time[shown], np.full(len(shown), high), clip_on=False, **marks)
    number_side(panel, low, high - air / 2)
    panel.set_ylabel("relevance", fontsize=8.5, color=INK)
    bare_axis(panel)
