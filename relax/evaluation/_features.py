"""What the measures see of an input: samples, regions of features, relevance by region."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from relax._errors import ArgumentError


def patches(shape: tuple[int, ...], size: int) -> np.ndarray:
    """Squares of a picture as ``groups``: ``(height, width)`` or ``(height, width, 1)``.

    Args:
      shape: of the picture, ``(height, width)`` or ``(height, width, channels)``.
      size: of the squares, in pixels; those at the edge are smaller.

    Raises:
      ArgumentError: that is no picture, or the size is no positive number.

    Example:
      >>> import relax
      >>> print(relax.evaluation.patches((2, 4, 3), 2)[..., 0])
      [[0 0 1 1]
       [0 0 1 1]]
    """
    if size < 1 or len(shape) not in (2, 3):
        raise ArgumentError(f"patches({shape}, {size}): expected (height, width[, channels]).")
    height, width = shape[:2]
    rows, columns = np.arange(height) // size, np.arange(width) // size
    groups = rows[:, None] * math.ceil(width / size) + columns
    return groups[..., None] if len(shape) == 3 else groups


class Regions(NamedTuple):
    """Features of a sample that are changed together.

    Attributes:
      numbers: ``(*shape,)``, for each feature the number of its region, without gaps.
      total: how many regions there are.
      single: whether every feature is a region, in order.
    """

    numbers: np.ndarray
    total: int
    single: bool

    def sums(self, relevance: jax.Array) -> jax.Array:
        """Relevance of each region, ``(samples, total)``; at least float32."""
        flat = relevance.reshape(relevance.shape[0], -1)
        flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
        if self.single:
            return flat
        return jax.ops.segment_sum(flat.T, jnp.asarray(self.numbers.reshape(-1)), self.total).T

    def spread(self, each: jax.Array) -> jax.Array:
        """From something of each region, ``(n, total)``, to the same of each feature."""
        if self.single:
            return each.reshape(each.shape[0], *self.numbers.shape)
        return each[:, jnp.asarray(self.numbers)]


def regions(groups: Any, shape: tuple[int, ...]) -> Regions:
    """The regions that ``groups`` says; by default every feature is one.

    Raises:
      ArgumentError: the groups are no integers, or do not broadcast to a sample.
    """
    if groups is None:
        count = math.prod(shape)
        return Regions(np.arange(count).reshape(shape), count, True)
    if isinstance(groups, Tracer):
        raise ArgumentError(
            "groups are traced; they say how many regions there are, so they must be known: "
            "close over a numpy array."
        )
    given = np.asarray(groups)
    if not np.issubdtype(given.dtype, np.integer):
        raise ArgumentError(f"groups have dtype {given.dtype}; expected integers.")
    try:
        whole = np.broadcast_to(given, shape)
    except ValueError:
        raise ArgumentError(
            f"groups of shape {given.shape} do not broadcast to a sample of shape {shape}."
        ) from None
    names, numbers = np.unique(whole, return_inverse=True)
    return Regions(numbers.reshape(shape), len(names), False)


def batch_of_samples(who: str, x: Any, *, integers: bool = False) -> jax.Array:
    """The explained input as an array.

    Raises:
      ArgumentError: it is no array, has no axis of samples, or the wrong dtype.
    """
    if not hasattr(x, "shape"):
        raise ArgumentError(f"{who}: x is a {type(x).__name__}; expected one array.")
    x = jnp.asarray(x)
    fits = jnp.issubdtype(x.dtype, jnp.floating) or (
        integers and jnp.issubdtype(x.dtype, jnp.integer)
    )
    if x.ndim < 2 or not fits:
        raise ArgumentError(
            f"{who}: x has shape {x.shape} and dtype {x.dtype}; expected "
            f"{'floats or integers' if integers else 'floats'} with an axis of samples and one of "
            "features."
        )
    return x


def real_relevance(who: str, relevance: Any, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Relevance as an array of real floats, finite or not.

    Raises:
      ArgumentError: it has another shape than x, or is complex.
    """
    r = jnp.asarray(relevance)
    if shape is not None and r.shape != shape:
        raise ArgumentError(f"{who}: the relevance has shape {r.shape}; x has {shape}.")
    if r.ndim < 2 or not (jnp.issubdtype(r.dtype, jnp.floating) or r.dtype.kind in "iu"):
        raise ArgumentError(
            f"{who}: the relevance has shape {r.shape} and dtype {r.dtype}; expected real numbers "
            "with an axis of samples and one of features."
        )
    return r if jnp.issubdtype(r.dtype, jnp.floating) else r.astype(jnp.float32)


def as_relevance(who: str, relevance: Any, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Relevance as an array of real floats that are finite, as far as that is known.

    Raises:
      ArgumentError: as `real_relevance`; a number is not finite: it has no rank, and no sum.
    """
    r = real_relevance(who, relevance, shape)
    if not isinstance(r, Tracer):
        # With numpy: within a trace JAX would make a tracer of it, though the numbers are known.
        wrong = np.flatnonzero(~np.isfinite(np.asarray(r).reshape(r.shape[0], -1)).all(1))
        if wrong.size:
            raise ArgumentError(
                f"{who}: the relevance is not finite in {wrong.size} of {r.shape[0]} samples, "
                f"first in sample {wrong[0]}.\n  It cannot be ranked. A denominator of the "
                "explanation may have vanished: see relax.ledger, or leave these samples out."
            )
    return r
