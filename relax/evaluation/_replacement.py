"""What features are replaced by: a value, the mean, a blurred input, noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError
from relax._numerics import is_number, wide


def blur(x: Any, sigma: float, axes: Sequence[int] = (1, 2)) -> jax.Array:
    r"""A Gaussian blur, for ``replacement``: removes detail and stays near to natural pictures.

    $$\bar x_p = \sum_o g_o\, x_{\mathrm{clip}(p + o)}, \qquad g_o \propto e^{-o^2 / 2 \sigma^2}$$

    along each axis, out to four sigma; beyond the edge the outermost value goes on.

    Args:
      x: floats of any shape, such as ``(samples, height, width, channels)``.
      sigma: in pixels; a number.
      axes: that are blurred.

    Returns:
      An array like x. For a data set in batches: ``replacement=lambda key, x: blur(x, 8.0)``.

    Raises:
      ArgumentError: sigma is no positive number, x has no such axis, or is no float array.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> x = jnp.array([[0.0, 0.0, 1.0, 0.0, 0.0]])
      >>> print((100 * relax.evaluation.blur(x, 0.5, axes=(1,))).round())
      [[ 0. 11. 79. 11.  0.]]
    """
    x = jnp.asarray(x)
    if not is_number(sigma) or not 0 < sigma < np.inf:
        raise ArgumentError(f"blur(sigma={sigma!r}): expected a positive number.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ArgumentError(f"blur: x has dtype {x.dtype}; expected floats.")
    if any(not -x.ndim <= axis < x.ndim for axis in axes):
        raise ArgumentError(f"blur(axes={tuple(axes)}): x has shape {x.shape}.")
    blurred = wide(x)
    for axis in axes:
        weights = jnp.asarray(_smoothing(x.shape[axis], sigma), blurred.dtype)
        mixed = jnp.tensordot(weights, blurred, axes=(1, axis), precision="highest")
        blurred = jnp.moveaxis(mixed, 0, axis)
    return blurred.astype(x.dtype)


def gaussian(sigma: float, radius: int) -> np.ndarray:
    """Weights of a Gaussian window, ``(2 radius + 1,)``, that add up to one."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def _smoothing(size: int, sigma: float) -> np.ndarray:
    """A blur along one axis as a matrix: ``(size, size)``, rows add up to one."""
    radius = int(4 * sigma + 0.5)
    matrix = np.zeros((size, size))
    for offset, weight in enumerate(gaussian(sigma, radius), -radius):
        rows = np.arange(size)
        matrix[rows, np.clip(rows + offset, 0, size - 1)] += weight
    return matrix


def noise(key: jax.Array, x: Any, scale: float = 1.0) -> jax.Array:
    """Normal noise with each sample's own mean and standard deviation, as ``replacement``.

    Args:
      key: of jax.random.
      x: floats, the first axis the samples.
      scale: times the standard deviation.

    Returns:
      An array like x.

    Raises:
      ArgumentError: there is no key, or x is no float array.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> x = jnp.array([[2.0, 4.0], [5.0, 5.0]])
      >>> print(relax.evaluation.noise(jax.random.key(0), x)[1])
      [5. 5.]
    """
    x = jnp.asarray(x)
    if key is None:
        raise ArgumentError("noise needs a key: give key=jax.random.key(0) to the measure.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ArgumentError(f"noise: x has dtype {x.dtype}; expected floats.")
    axes = tuple(range(1, x.ndim))
    mean, spread = (f(wide(x), axis=axes, keepdims=True) for f in (jnp.mean, jnp.std))
    return (mean + scale * spread * jax.random.normal(key, x.shape, mean.dtype)).astype(x.dtype)


def replaced(who: str, replacement: Any, key: jax.Array | None, x: jax.Array) -> jax.Array:
    """x with every feature replaced.

    Raises:
      ArgumentError: the replacement is unknown, does not broadcast to x, or has another kind of
        number.
    """
    if isinstance(replacement, str):
        if replacement != "mean" or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ArgumentError(
                f'{who}(replacement={replacement!r}): the only word known is "mean", for floats.'
            )
        mean = jnp.mean(wide(x), axis=tuple(range(1, x.ndim)), keepdims=True)
        return jnp.broadcast_to(mean, x.shape).astype(x.dtype)
    given = jnp.asarray(replacement(key, x) if callable(replacement) else replacement)
    if jnp.issubdtype(x.dtype, jnp.integer) and not jnp.issubdtype(given.dtype, jnp.integer):
        raise ArgumentError(
            f"{who}: the replacement has dtype {given.dtype}, and x {x.dtype}.\n"
            "  Give an integer, such as the id of a mask token."
        )
    try:
        return jnp.broadcast_to(given, x.shape).astype(x.dtype)
    except ValueError:
        raise ArgumentError(
            f"{who}: a replacement of shape {given.shape} does not broadcast to x, {x.shape}."
        ) from None
