"""Axes of matplotlib, which is imported when something is drawn."""

from __future__ import annotations

from typing import Any


def axes_or_new(axes: Any, figsize: tuple[float, float]) -> Any:
    """The axes that were given, or those of a new figure.

    Raises:
      ImportError: matplotlib is not installed.
    """
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('A plot needs matplotlib:\n  pip install "relax-lrp[eval]"') from error
    return plt.subplots(figsize=figsize, layout="constrained")[1]
