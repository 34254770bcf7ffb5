"""Relevance of named features as bars: one sample, or the mean and spread of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from relax._errors import ArgumentError
from relax.viz._arrays import count, labels, number, reals
from relax.viz._canvas import FAINT, FRAME, INK, Canvas, bare_axis, plain_text, ticks, wide_of
from relax.viz._colors import Colors, color_table

# Inches.
_ROW = 0.27
_PLOT = 4.2
_NUMBER = 0.62
_TITLE = 0.34
_FOOT = 0.5
_MARGIN = 0.15


@plain_text
def bars(
    relevance: Any,
    names: Sequence[str] | None = None,
    *,
    values: Sequence[Any] | None = None,
    largest: int | None = None,
    spread: tuple[float, float] = (0.1, 0.9),
    title: str = "",
    colors: Colors = None,
) -> Any:
    """A bar for each feature: to the right and red what speaks for the output, to the left against.

    Of many samples the bars are the mean, and thin lines show how it varies between them.

    Args:
      relevance: ``(features,)``, or ``(samples, features)``.
      names: of the features; by default their numbers. They are written as they are, not as TeX.
      values: of the features in the sample, numbers or text, written behind the names.
      largest: draws only so many, those of the largest magnitude, the largest first, and one bar
        more with the sum of the others; by default all, in their order.
      spread: the quantiles between which the thin lines go, 0 to 1.
      title: what stands above.
      colors: for both signs, as in `heatmap`.

    Returns:
      A figure of matplotlib: ``figure.savefig("bars.png")``; notebooks show it.

    Raises:
      ArgumentError: the relevance has other axes, or there is not one name or value for each.
      ImportError: matplotlib is not installed.

    Example:
      >>> from relax import viz
      >>> shown = viz.bars([0.5, -1.0, 0.1, 0.2], ["age", "income", "height", "weight"], largest=2)
      >>> print([label.get_text() for label in shown.axes[0].get_yticklabels()])
      ['income', 'age', '2 others']
    """
    r = reals("The relevance", relevance)
    if r.ndim not in (1, 2):
        raise ArgumentError(
            f"The relevance has shape {r.shape}; expected (features,) or (samples, features). "
            "relevance.reshape(len(relevance), -1) makes one axis of the features."
        )
    low, high = (number("spread", q, 0, 1) for q in spread)
    if low > high:
        raise ArgumentError(f"spread={spread!r}; the first quantile is above the second.")
    many = r.ndim == 2
    samples = r if many else r[None]
    written = labels(names, samples.shape[1], "feature")
    if values is not None:
        if many:
            raise ArgumentError("bars: values are those of one sample; there are several.")
        given = labels([_written(value) for value in values], samples.shape[1], "")
        written = [f"{name} = {value}" for name, value in zip(written, given, strict=True)]
    if largest is not None:
        samples, written = _largest(samples, written, count("largest", largest))
    mean = samples.mean(0)
    bounds = np.quantile(samples, (low, high), axis=0) if many else np.stack([mean, mean])

    left = _MARGIN + min(wide_of(written, 9), 3.5) + 0.1
    top = _MARGIN + (_TITLE if title else 0)
    high_of_plot = _ROW * len(written)
    canvas = Canvas(left + _PLOT + _MARGIN, top + high_of_plot + _FOOT)
    panel = canvas.axes(left, top, _PLOT, high_of_plot)
    table = color_table(colors, True)
    paint = [table[216 if m >= 0 else 40] / 255 for m in mean]
    places = np.arange(len(written))
    panel.barh(places, mean, height=0.68, color=paint)
    if many:
        panel.hlines(places, *bounds, color=INK, linewidth=1.1)
        panel.plot(bounds, np.stack([places, places]), "|", color=INK, markersize=5)
    panel.axvline(0, color=FAINT, linewidth=0.8)
    _number_bars(panel, mean, bounds)
    panel.set_yticks(places, written, fontsize=9, color=INK)
    panel.set_ylim(len(written) - 0.5, -0.5)
    bare_axis(panel, left=False)
    panel.tick_params(axis="y", length=0, labelsize=9)
    panel.set_axisbelow(True)
    panel.grid(axis="x", color=FRAME, linewidth=0.5, alpha=0.6)
    left_end, right_end = panel.get_xlim()
    panel.set_xticks(ticks(left_end, right_end, 6))
    what = f"mean relevance of {len(samples)} samples, lines from {low:.0%} to {high:.0%}"
    panel.set_xlabel(what if many else "relevance", fontsize=8.5, color=INK)
    if title:
        panel.set_title(title, fontsize=11, fontweight="bold", color=INK, pad=7)
    return canvas.figure


def _written(value: Any) -> str:
    """A value of a feature: text as it is, numbers in four digits."""
    if isinstance(value, str):
        return value
    return f"{float(value):.4g}".replace("-", "\N{MINUS SIGN}")


def _largest(samples: np.ndarray, names: list[str], largest: int) -> tuple[np.ndarray, list[str]]:
    """The features of the largest mean magnitude, and the sum of the others as one more."""
    order = np.argsort(-np.abs(samples.mean(0)), kind="stable")
    first, rest = order[:largest], order[largest:]
    kept = samples[:, first]
    written = [names[i] for i in first]
    if not len(rest):
        return kept, written
    others = samples[:, rest].sum(1, keepdims=True)
    name = names[rest[0]] if len(rest) == 1 else f"{len(rest)} others"
    return np.concatenate([kept, others], 1), [*written, name]


def _number_bars(panel: Any, mean: np.ndarray, bounds: np.ndarray) -> None:
    """Writes its number beyond each bar, and makes room for them."""
    low, high = min(0.0, float(bounds.min())), max(0.0, float(bounds.max()))
    low, high = min(low, float(mean.min())), max(high, float(mean.max()))
    if low == high:
        low, high = -1.0, 1.0
    # The axis has to hold the bars and, beyond them, the numbers, which are so many inches wide.
    per_inch = (high - low) / (_PLOT - _NUMBER * ((low < 0) + (high > 0)))
    panel.set_xlim(low - _NUMBER * per_inch * (low < 0), high + _NUMBER * per_inch * (high > 0))
    small = max(abs(low), abs(high)) < 0.1 or max(abs(low), abs(high)) >= 1e4
    for place, m in enumerate(mean):
        text = (f"{m:+.1e}" if small else f"{m:+.2f}").replace("-", "\N{MINUS SIGN}")
        right = m >= 0
        at = max(m, float(bounds[1, place])) if right else min(m, float(bounds[0, place]))
        panel.annotate(
            text,
            (at, place),
            xytext=(4 if right else -4, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=8,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
