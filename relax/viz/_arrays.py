"""What is handed over to be drawn, as plain finite arrays: relevance, pictures, names."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from relax._errors import ArgumentError

_CHANNELS = (1, 3, 4)  # gray, colors, colors with opacity


def reals(name: str, x: Any) -> np.ndarray:
    """An array of finite float64, of any array or nested list of real numbers.

    Raises:
      ArgumentError: it is traced, holds no real numbers, or some that are not finite.
    """
    if isinstance(x, Tracer):
        raise ArgumentError(
            f"{name} is traced: pictures are made of numbers. Return it from the function that is "
            "under jax.jit, jax.vmap or jax.grad, and draw it there."
        )
    try:
        given = np.asarray(x)
        if given.dtype.kind in "cOSUMm":
            raise TypeError
        # float16 and bfloat16 are widened first, in which sums and percentiles would overflow.
        wide = given.astype(np.float64)
    except (TypeError, ValueError):
        kind = getattr(x, "dtype", None) or type(x).__name__
        raise ArgumentError(
            f"{name} is a {kind}; expected one array of real numbers. Of a pytree draw a leaf."
        ) from None
    wrong = wide.size - np.count_nonzero(np.isfinite(wide))
    if wrong:
        raise ArgumentError(
            f"{name} has {wrong} of {wide.size} values that are infinite or no number. "
            "jax.config.update('jax_debug_nans', True) finds where the first comes from; "
            "np.nan_to_num(x) draws them as zero."
        )
    if wide.size == 0:
        raise ArgumentError(f"{name} has shape {wide.shape}: there is nothing to draw.")
    return wide


def relevance_map(relevance: Any, name: str = "The relevance") -> np.ndarray:
    """Relevance of each pixel, ``(height, width)``: channels, the last axis, are summed.

    Raises:
      ArgumentError: it is no picture, or its channels seem to come first.
    """
    r = reals(name, relevance)
    if r.ndim == 2:
        return r
    if r.ndim == 3:
        if r.shape[0] in _CHANNELS and r.shape[-1] not in _CHANNELS:
            raise ArgumentError(
                f"{name} has shape {r.shape}, channels first; expected (height, width, channels). "
                "np.moveaxis(relevance, 0, -1) moves them. If they are last, relevance.sum(-1)."
            )
        return r.sum(-1)
    raise ArgumentError(
        f"{name} has shape {r.shape}; expected (height, width) or (height, width, channels). Draw "
        "a batch picture by picture: viz.grid([viz.heatmap(r) for r in relevance])."
    )


def pixels(picture: Any, name: str = "The picture") -> np.ndarray:
    """Colors as bytes, ``(height, width, 3)``, of a gray or color picture.

    Bytes are taken as they are, as are integers from 0 to 255; floats go from 0 to 1. Opacity is
    dropped.

    Raises:
      ArgumentError: it is no picture, or out of these ranges.
    """
    x = reals(name, picture)
    shape = x.shape
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[-1] not in _CHANNELS:
        raise ArgumentError(
            f"{name} has shape {shape}; expected (height, width), or (height, width, channels) "
            "with 1 or 3 channels. np.moveaxis(picture, 0, -1) moves channels from first to last."
        )
    kind = np.asarray(picture).dtype
    integers = np.issubdtype(kind, np.integer)
    top = 255.0 if integers else 1.0
    slack = 0.0 if integers else 1e-3  # of resampling and of half precision
    if x.min() < -slack or x.max() > top + slack:
        raise ArgumentError(
            f"{name} goes from {x.min():.4g} to {x.max():.4g}, and {kind} should stay between 0 "
            f"and {top:.0f}. viz.picture(x) makes bytes of any range."
        )
    x = np.rint(np.clip(x, 0, top) * (255.0 / top)).astype(np.uint8)[..., :3]
    return np.broadcast_to(x, (*x.shape[:2], 3))


def same_size(picture: np.ndarray, relevance: np.ndarray, name: str = "The relevance") -> None:
    """Makes sure that there is relevance for every pixel.

    Raises:
      ArgumentError: their heights or widths differ.
    """
    if picture.shape[:2] != relevance.shape[:2]:
        height, width = picture.shape[:2]
        raise ArgumentError(
            f"{name} is {relevance.shape[0]} x {relevance.shape[1]} pixels, and the picture "
            f"{height} x {width}. jax.image.resize(relevance, ({height}, {width}), 'linear') "
            "makes them alike."
        )


def labels(given: Sequence[str] | None, count: int, default: str) -> list[str]:
    """A name for each of ``count`` things; by default ``default`` and their number.

    Raises:
      ArgumentError: there are more or fewer names, or one text instead of a list of them.
    """
    if given is None:
        return [f"{default} {i}" for i in range(count)]
    if isinstance(given, str) or len(given) != count:
        what = "one text" if isinstance(given, str) else f"{len(given)} names"
        raise ArgumentError(f"There are {what} for {count} of them; expected a list of {count}.")
    return [str(name) for name in given]


def number(name: str, x: Any, low: float, high: float = math.inf) -> float:
    """A finite number in an interval, its bounds included.

    Raises:
      ArgumentError: it is none, or beyond them.
    """
    try:
        value = float(x)
    except (TypeError, ValueError):
        value = math.nan
    if not (low <= value <= high and math.isfinite(value)):
        bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise ArgumentError(f"{name}={x!r}; expected a number {bounds}.")
    return value


def count(name: str, n: Any) -> int:
    """A positive integer.

    Raises:
      ArgumentError: it is none.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ArgumentError(f"{name}={n!r}; expected a positive integer.")
    return int(n)


def extra(module: str) -> Any:
    """A module that comes with the extra ``viz``.

    Raises:
      ImportError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise ImportError(
            f'relax.viz needs {missing.name} for this: pip install "relax-lrp[viz]"'
        ) from missing
