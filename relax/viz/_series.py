"""Relevance along time: behind a signal of one or several channels, and of a spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import labels, number, reals, relevance_map, same_size
from relax.viz._canvas import (
    INK,
    Canvas,
    bare_axis,
    binned,
    ends_of,
    number_side,
    plain_text,
    ticks,
    ticks_of_time,
    wide_of,
)
from relax.viz._colors import Colors, Scale, Symmetric

# Inches.
_WIDE = 7.0
_CHANNEL = 1.0
_ALONE = 1.8
_BAND = 1.9
_GAP = 0.12
_TITLE = 0.34
_FOOT = 0.48
_BAR = 0.3
_MARGIN = 0.15
_NUMBERS = 0.42

_MOST = 700  # stretches of time that have colors of their own; more could not be seen
_LOUDEST = 80.0  # decibels below the maximum of a spectrogram that are still drawn


@plain_text
def series(
    signal: Any,
    relevance: Any,
    *,
    names: Sequence[str] | None = None,
    rate: float | None = None,
    title: str = "",
    ends: tuple[str, str] | None = None,
    percentile: float = 99.5,
    symmetric: Symmetric = True,
    colors: Colors = None,
    limit: float | None = None,
) -> Any:
    """A signal as a line, and behind each of its steps the color of its relevance.

    All channels have one scale. Of a long signal the relevance of neighbors is summed, so that
    some 700 stretches have colors.

    Args:
      signal: ``(steps,)`` or ``(steps, channels)``.
      relevance: of the same shape.
      names: of the channels.
      rate: steps per second; then time is in seconds, and else in steps.
      title: what stands above.
      ends: the words at the ends of the color bar.
      percentile, symmetric, colors, limit: as in `heatmap`.

    Returns:
      A figure of matplotlib: ``figure.savefig("series.png")``; notebooks show it.

    Raises:
      ArgumentError: the shapes differ or are others, or as `heatmap`.
      ImportError: matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> from relax import viz
      >>> wave = np.sin(np.arange(200) / 9.0)
      >>> shown = viz.series(wave, wave**3, rate=100)
      >>> shown.axes[0].get_xlabel()
      'seconds'
    """
    x, r = reals("The signal", signal), reals("The relevance", relevance)
    if x.ndim not in (1, 2):
        raise ArgumentError(
            f"The signal has shape {x.shape}; expected (steps,) or (steps, channels). Draw a batch "
            "signal by signal."
        )
    if r.shape != x.shape:
        raise ArgumentError(
            f"The relevance has shape {r.shape}, and the signal {x.shape}. Relevance of one number "
            "a step repeats for each channel: np.broadcast_to(relevance[:, None], signal.shape)."
        )
    x, r = x.reshape(len(x), -1), r.reshape(len(r), -1)
    channels = x.shape[1]
    if channels > len(x):
        raise ArgumentError(
            f"The signal has {channels} channels of {len(x)} steps, which seem to be swapped; "
            "expected (steps, channels). signal.T and relevance.T turn them."
        )
    written = labels(names, channels, "channel") if channels > 1 or names is not None else [""]
    step = 1.0 if rate is None else 1 / number("rate", rate, np.nextafter(0, 1))
    bands = binned(r, _MOST)
    scale = Scale(bands, percentile=percentile, symmetric=symmetric, colors=colors, limit=limit)

    left = _MARGIN + (wide_of(written, 9) + 0.1 if any(written) else 0) + _NUMBERS
    top = _MARGIN + (_TITLE if title else 0)
    high = _ALONE if channels == 1 else _CHANNEL
    whole = channels * (high + _GAP) - _GAP
    canvas = Canvas(left + _WIDE + _MARGIN, top + whole + _FOOT + _BAR + _MARGIN)
    time = np.arange(len(x)) * step
    edges = (-0.5 * step, (len(x) - 0.5) * step)
    panel: Any = None
    for i in range(channels):
        panel = canvas.axes(left, top + i * (high + _GAP), _WIDE, high)
        low, up = _room(x[:, i])
        panel.imshow(
            scale(bands[:, i])[None],
            extent=(*edges, low, up),
            aspect="auto",
            interpolation="nearest",
        )
        width = 1.1 if len(x) <= _MOST else 0.6
        panel.plot(time, x[:, i], color="white", linewidth=width + 1.4, alpha=0.7)  # for dark bands
        panel.plot(time, x[:, i], color=INK, linewidth=width)
        panel.set_xlim(*edges)
        panel.set_ylim(low, up)
        number_side(panel, low, up)
        bare_axis(panel, bottom=i == channels - 1)
        if written[i]:
            panel.set_ylabel(
                written[i], rotation=0, ha="right", va="center", fontsize=9, color=INK, labelpad=6
            )
            panel.yaxis.set_label_coords(-(_NUMBERS - 0.02) / _WIDE, 0.5)
        if title and i == 0:
            panel.set_title(title, fontsize=11, fontweight="bold", color=INK, pad=7)
    ticks_of_time(panel, *edges, "step" if rate is None else "seconds")
    words = None if limit is not None and ends is None else ends_of(scale, ends)
    canvas.color_bar(scale, left + _WIDE / 2, top + whole + _FOOT + 0.08, _WIDE, words)
    return canvas.figure


@plain_text
def spectrogram(
    power: Any,
    relevance: Any,
    *,
    rate: float | None = None,
    hop: float | None = None,
    frequencies: Sequence[float] | None = None,
    decibels: bool = True,
    title: str = "",
    ends: tuple[str, str] | None = None,
    percentile: float = 99.5,
    symmetric: Symmetric = True,
    colors: Colors = None,
    limit: float | None = None,
) -> Any:
    """A spectrogram in gray, dark where it is loud, and below it its relevance.

    Args:
      power: ``(frequencies, frames)``, the lowest frequency first.
      relevance: ``(frequencies, frames)``, or with channels behind, of which the sum is drawn.
      rate: samples per second, and ``hop``, samples from frame to frame: with both, time is in
        seconds, else in frames; with ``rate`` frequencies go up to its half.
      frequencies: of the rows in hertz, if they are others, such as those of a mel scale.
      decibels: whether the logarithm of the power is drawn, down to 80 below the loudest; False
        for a power that is a logarithm already.
      title: what stands above.
      ends: the words at the ends of the color bar.
      percentile, symmetric, colors, limit: as in `heatmap`.

    Returns:
      A figure of matplotlib: ``figure.savefig("spectrogram.png")``; notebooks show it.

    Raises:
      ArgumentError: the shapes differ, there is not a frequency for each row, power is negative and
        its logarithm is wanted, or as `heatmap`.
      ImportError: matplotlib is not installed.

    Example:
      >>> import numpy as np
      >>> from relax import viz
      >>> power = np.random.default_rng(0).exponential(size=(64, 100))
      >>> shown = viz.spectrogram(power, power - 1, rate=16000, hop=160)
      >>> shown.axes[0].get_ylabel(), shown.axes[1].get_xlabel()
      ('kHz', 'seconds')
    """
    x, r = reals("The power", power), relevance_map(relevance)
    if x.ndim != 2:
        raise ArgumentError(f"The power has shape {x.shape}; expected (frequencies, frames).")
    same_size(x, r)
    if decibels:
        if x.min() < 0:
            raise ArgumentError(
                f"The power goes down to {x.min():.3g}, and has no logarithm. If it is one: "
                "decibels=False. Of a complex spectrum take np.abs(spectrum) ** 2."
            )
        x = 10 * np.log10(np.maximum(x / (x.max() or 1.0), 10 ** (-_LOUDEST / 10)))
    rows, frames = x.shape
    hertz, unit = _hertz(frequencies, rate, rows)
    timed = rate is not None and hop is not None
    least = np.nextafter(0, 1)
    step = number("hop", hop, least) / number("rate", rate, least) if timed else 1.0
    scale = Scale(r, percentile=percentile, symmetric=symmetric, colors=colors, limit=limit)

    left, top = _MARGIN + 0.25 + _NUMBERS, _MARGIN + (_TITLE if title else 0)
    canvas = Canvas(left + _WIDE + _MARGIN, top + 2 * _BAND + _GAP + _FOOT + _BAR + _MARGIN)
    extent = (-0.5 * step, (frames - 0.5) * step, -0.5, rows - 0.5)
    panel: Any = None
    for i, shown in enumerate((x, scale(r))):
        panel = canvas.axes(left, top + i * (_BAND + _GAP), _WIDE, _BAND)
        panel.imshow(shown, cmap="gray_r", extent=extent, aspect="auto", origin="lower")
        _frequency_ticks(panel, hertz, unit)
        panel.tick_params(labelsize=8, color="#bfbfbf", labelcolor=INK, length=3)
        if title and i == 0:
            panel.set_title(title, fontsize=11, fontweight="bold", color=INK, pad=7)
    ticks_of_time(panel, *extent[:2], "seconds" if timed else "frame")
    words = None if limit is not None and ends is None else ends_of(scale, ends)
    below = top + 2 * _BAND + _GAP + _FOOT + 0.08
    canvas.color_bar(scale, left + _WIDE / 2, below, _WIDE, words)
    return canvas.figure


def _room(x: np.ndarray) -> tuple[float, float]:
    """Where a line has some air above and below."""
    low, high = float(x.min()), float(x.max())
    air = 0.1 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - air, high + air


def _hertz(
    given: Sequence[float] | None, rate: float | None, rows: int
) -> tuple[np.ndarray | None, float]:
    """The frequency of each row, if it is known, and by what it is divided to be written."""
    if given is not None:
        hertz = reals("frequencies", given)
        if hertz.shape != (rows,):
            raise ArgumentError(
                f"frequencies has shape {hertz.shape}; expected one for each of {rows} rows."
            )
        if np.any(np.diff(hertz) <= 0):
            raise ArgumentError("frequencies do not rise; expected the lowest first.")
    elif rate is not None:
        hertz = np.linspace(0, number("rate", rate, np.nextafter(0, 1)) / 2, rows)
    else:
        return None, 1.0
    return hertz, 1000.0 if hertz[-1] >= 2000 else 1.0


def _frequency_ticks(panel: Any, hertz: np.ndarray | None, unit: float) -> None:
    """Numbers at the side: rows, or frequencies at the rows where they are."""
    if hertz is None:
        low, high = panel.get_ylim()
        panel.set_yticks(ticks(max(low, 0.0), high, 5))
        panel.set_ylabel("row", fontsize=8.5, color=INK)
        return
    if len(hertz) > 1 and np.allclose(np.diff(hertz), hertz[1] - hertz[0], rtol=1e-2):
        written = ticks(hertz[0], hertz[-1], 5)
        rows = np.interp(written, hertz, np.arange(len(hertz)))
    else:  # Equal distances of such a scale are other steps in each place: the rows decide.
        rows = np.unique(np.linspace(0, len(hertz) - 1, 5).round())
        written = hertz[rows.astype(int)]
    panel.set_yticks(rows, [f"{f / unit:.3g}" for f in written])
    panel.set_ylabel("kHz" if unit > 1 else "Hz", fontsize=8.5, color=INK)
