"""Does the relevance lie on the object? Measures against a mask."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from relax._errors import ArgumentError
from relax._numerics import divide, is_number, largest, wide
from relax.evaluation._features import as_relevance
from relax.evaluation._finite import or_nan


def pointing_game(relevance: Any, mask: Any, tolerance: float = 0) -> jax.Array:
    r"""The pointing game: does the maximum of the relevance lie on the object?

    $$\exists\, p \in \mathrm{mask}: \; |p - \arg\max R| \le \mathrm{tolerance}$$

    Args:
      relevance: ``(samples, height, width)`` or any other axes of positions; one axis more than the
        mask, of channels, is summed.
      mask: booleans, ``(samples, height, width)``: where the object is.
      tolerance: in pixels, of the Euclidean distance; Zhang et al. take 15 in pictures of about
        500 x 350.

    Returns:
      ``(samples,)``, 1 for a hit and 0 for none. Of several maxima the first counts; nothing hits
      an empty mask. Under jit it is NaN where relevance is not finite.

    Raises:
      ArgumentError: the shapes do not fit, the mask is not boolean, the relevance is not finite.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> relevance = jnp.array([[[0.0, 3.0], [1.0, 2.0]]])
      >>> mask = jnp.array([[[False, False], [False, True]]])
      >>> game = relax.evaluation.pointing_game
      >>> print(game(relevance, mask), game(relevance, mask, tolerance=1))
      [0.] [1.]

    Source: Zhang et al. 2016, "the pointing game".
    """
    if not is_number(tolerance) or not tolerance >= 0:
        raise ArgumentError(f"pointing_game(tolerance={tolerance!r}): expected a number from 0 on.")
    r, mask = _pooled("pointing_game", relevance, mask)
    best = jnp.unravel_index(jnp.argmax(r.reshape(r.shape[0], -1), axis=1), r.shape[1:])
    square = jnp.zeros(mask.shape, jnp.int32)
    for axis, place in enumerate(best, 1):
        along = (1,) * axis + (-1,) + (1,) * (mask.ndim - axis - 1)
        positions = jnp.arange(mask.shape[axis], dtype=jnp.int32).reshape(along)
        distance = positions - place.astype(jnp.int32).reshape(-1, *(1,) * (mask.ndim - 1))
        square = square + distance**2
    hits = mask & (square <= tolerance**2)
    return or_nan(hits.reshape(hits.shape[0], -1).any(1).astype(r.dtype), r)


def inside_mass(relevance: Any, mask: Any) -> jax.Array:
    r"""Relevance mass accuracy: the share of the positive relevance that lies on the object.

    $$\sum_{p \in \mathrm{mask}} R^+_p \Big/ \sum_p R^+_p$$

    Args:
      relevance, mask: as in `pointing_game`. Give ``abs(relevance)`` to count negative relevance.

    Returns:
      ``(samples,)``, between 0 and 1; 0 where no relevance is positive. Compare it with the share
      of the picture that the mask covers: that is what a constant relevance has. Differentiable in
      the relevance. Under jit it is NaN where relevance is not finite.

    Raises:
      ArgumentError: as `pointing_game`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> relevance = jnp.array([[[-1.0, 3.0], [0.0, 1.0]]])
      >>> mask = jnp.array([[[False, True], [False, False]]])
      >>> print(relax.evaluation.inside_mass(relevance, mask))
      [0.75]

    Source: Arras et al. 2022.
    """
    r, mask = _pooled("inside_mass", relevance, mask)
    axes = tuple(range(1, r.ndim))
    positive = jnp.where(r > 0, r, 0)
    positive = divide(positive, largest(positive, axes))  # so that no sum overflows
    inside = jnp.where(mask, positive, 0).sum(axes)
    return or_nan(divide(inside, positive.sum(axes)), r)


def inside_rank(relevance: Any, mask: Any) -> jax.Array:
    r"""Relevance rank accuracy: of the K most relevant positions, how many lie on the object?

    $$|\mathrm{top}_K(R) \cap \mathrm{mask}| \,/\, K, \qquad K = |\mathrm{mask}|$$

    Args:
      relevance, mask: as in `pointing_game`. Of equal relevance the first positions are taken.

    Returns:
      ``(samples,)``, between 0 and 1; 0 for an empty mask. Under jit it is NaN where relevance is
      not finite.

    Raises:
      ArgumentError: as `pointing_game`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> relevance = jnp.array([[[-1.0, 3.0], [0.0, 1.0]]])
      >>> mask = jnp.array([[[False, True], [True, False]]])
      >>> print(relax.evaluation.inside_rank(relevance, mask))
      [0.5]

    Source: Arras et al. 2022.
    """
    r, mask = _pooled("inside_rank", relevance, mask)
    flat, inside = r.reshape(r.shape[0], -1), mask.reshape(r.shape[0], -1)
    order = jnp.argsort(-flat, axis=1, stable=True)
    size = inside.sum(1)
    first = jnp.arange(flat.shape[1])[None] < size[:, None]
    hits = (jnp.take_along_axis(inside, order, 1) & first).sum(1)
    return or_nan(divide(hits.astype(flat.dtype), size.astype(flat.dtype)), r)


def _pooled(who: str, relevance: Any, mask: Any) -> tuple[jax.Array, jax.Array]:
    """Relevance without channels, and the mask."""
    r, mask = as_relevance(who, relevance), jnp.asarray(mask)
    if mask.dtype != bool:
        raise ArgumentError(
            f"{who}: the mask has dtype {mask.dtype}; expected booleans, such as labels == 3."
        )
    if mask.ndim < 2 or r.shape not in (mask.shape, (*mask.shape, *r.shape[-1:])):
        raise ArgumentError(
            f"{who}: the relevance has shape {r.shape}, and the mask {mask.shape}; expected the "
            "same, or one axis of channels more."
        )
    r = wide(r) if r.ndim == mask.ndim else wide(r).sum(-1)
    return r, mask
