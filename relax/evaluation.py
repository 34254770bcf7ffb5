"""How well an explanation fits the function it explains: scores of faithfulness."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax import _target
from relax._errors import ArgumentError
from relax._numerics import divide, is_count, wide
from relax.sweeps import sweep


def sensitivity_n(
    fun: Callable[..., Any],
    *args: Any,
    key: jax.Array,
    n: int | None = None,
    subsets: int = 100,
    baseline: Any = 0.0,
    groups: Any = None,
    target: Any = None,
    batch_size: int | None = None,
) -> Callable[[Any], jax.Array]:
    r"""Sensitivity-n: does the relevance of some features tell what they do together?

    $$\mathrm{corr}_S\Big(\sum_{i \in S} R_i,\; f(x) - f(x_{S \leftarrow \mathrm{baseline}})\Big)$$

    over random subsets S of n features: 1 is perfect, 0 is chance. The function is evaluated here,
    once for all explanations that are scored; what is returned is differentiable in the relevance,
    so that `relax.tune` can improve it, and under vmap scores a whole sweep.

    Args:
      fun, target: as in `lrp`; ``"max"`` is the class of the unchanged input.
      *args: of ``fun``. The last one, x, is explained; its first axis are the samples.
      key: of jax.random, for the subsets.
      n: how many features are changed at a time; by default a fifth of them.
      subsets: how many.
      baseline: what a feature becomes; broadcasts to x.
      groups: integers that broadcast to a sample of x: features with the same number are changed
        together, and count as one (`patches`, superpixels, words). By default each by itself.
      batch_size: how many subsets are evaluated at a time; by default all.

    Returns:
      A function of the relevance of x that returns a score for each sample, ``(samples,)``; 0 where
      the output or the relevance does not change at all.

    Raises:
      ArgumentError: x has no axis of samples, is no float array, or there are not so many features.
      TargetError: the target does not fit the output.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [-2.0], [3.0]]), jnp.array([[1.0, 1.0, 2.0]])
      >>> score = relax.evaluation.sensitivity_n(f, w, x, key=jax.random.key(0), n=1)
      >>> print(score(relax.lrp(f, relax.rules.Epsilon(0.0))(w, x)).round(3))
      [1.]

    Source: Ancona et al. 2018, section 3.1.
    """
    *leading, x = args
    if not hasattr(x, "shape"):
        raise ArgumentError(f"sensitivity_n: x is a {type(x).__name__}; expected one array.")
    x = jnp.asarray(x)
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ArgumentError(
            f"sensitivity_n: x has shape {x.shape} and dtype {x.dtype}; expected floats with an "
            "axis of samples and one of features."
        )
    numbers, count = _numbered(groups, x.shape[1:])
    n = max(1, count // 5) if n is None else n
    if not is_count(n) or n >= count:
        raise ArgumentError(f"sensitivity_n: n={n}, and a sample has {count} features.")
    if subsets < 2:
        raise ArgumentError(f"sensitivity_n: subsets={subsets}; a correlation needs two.")

    order = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, subsets))
    chosen = (
        jnp.zeros((subsets, count), bool).at[jnp.arange(subsets)[:, None], order[:, :n]].set(True)
    )
    value = fun(*leading, x)
    for leaf in jax.tree.leaves(value):
        if jnp.shape(leaf)[:1] != x.shape[:1]:
            raise ArgumentError(
                f"sensitivity_n: an output has shape {jnp.shape(leaf)}, and x {x.shape}; the first "
                "axis of both should be the samples."
            )
    mask = None if _target.gives_relevance(target) else _target.seeds(target, value)

    def explained(value: Any) -> jax.Array:
        kept = (
            _target.seeds(target, value)
            if mask is None
            else jax.tree.map(jnp.multiply, value, mask)
        )
        totals = [a.reshape(a.shape[0], -1).sum(1) for a in jax.tree.leaves(kept)]
        return sum(totals, jnp.zeros(()))

    def dropped(chosen: jax.Array) -> jax.Array:
        changed = jnp.where(chosen[numbers][None], jnp.asarray(baseline, x.dtype), x)
        return explained(value) - explained(fun(*leading, changed))

    drops = sweep(dropped, batch_size=batch_size)(chosen)

    def score(relevance: Any) -> jax.Array:
        r = jnp.asarray(relevance)
        if r.shape != x.shape:
            raise ArgumentError(f"The relevance has shape {r.shape}; x has {x.shape}.")
        each = jax.ops.segment_sum(r.reshape(len(x), -1).T, numbers.reshape(-1), count)
        return _correlation(chosen.astype(r.dtype) @ each, drops)

    return score


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


def _numbered(groups: Any, shape: tuple[int, ...]) -> tuple[jax.Array, int]:
    """For each feature of a sample the number of its group, and how many groups there are."""
    if groups is None:
        count = math.prod(shape)
        return jnp.arange(count).reshape(shape), count
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
    return jnp.asarray(numbers.reshape(shape)), len(names)


def _correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's, along the first axis; 0 where one of them does not vary."""

    def scaled(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        v = wide(v) - wide(v).mean(0, keepdims=True)
        largest = jnp.abs(v).max(0, keepdims=True)  # squares of the numbers as they are may vanish
        varies, v = largest > 0, divide(v, largest)
        norm = jnp.sqrt(jnp.where(varies, (v * v).sum(0, keepdims=True), 1))
        return v / norm, varies[0]

    (a, a_varies), (b, b_varies) = scaled(a), scaled(b)
    return jnp.where(a_varies & b_varies, (a * b).sum(0), 0)


__all__ = ["patches", "sensitivity_n"]
