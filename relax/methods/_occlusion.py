"""Methods that put a baseline in the place of parts of the input, and look what changes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax._errors import ArgumentError
from relax._numerics import is_count
from relax.evaluation._features import regions
from relax.methods._problem import Problem, method, summed

_Argnums = int | Sequence[int]


def occlusion(
    fun: Callable[..., Any],
    *,
    window: int | Sequence[int] | None = None,
    strides: int | Sequence[int] | None = None,
    baseline: Any = 0.0,
    batched: bool = True,
    batch_size: int = 1,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""What the output loses without a window of the input, shared equally by what is in it.

    $$R_i = \frac{1}{|\{W \ni i\}|} \sum_{W \ni i} \frac{f(x) - f(x_{W \leftarrow x_0})}{|W|}$$

    Args:
      fun, argnums, target, has_aux: as in `relax.lrp`; ``"max"`` is the class of the whole x.
      window: its size along each axis of a sample; axes that are not named, such as channels, are
        covered whole. An int: along all axes but the last of three or more, and along all of one or
        two. By default every number by itself.
      strides: from one window to the next; by default its size, so that none overlap. The last
        windows of an axis are cut off at its end, so that everything is covered.
      baseline: $x_0$; a number or an array that broadcasts to x.
      batched: whether the first axis of x and of the value are samples.
      batch_size: windows taken at a time; each costs one evaluation.

    Returns:
      A function of the arguments of ``fun``. It returns an array in the shape of x, in units of the
      value; with ``has_aux`` the auxiliary output as well.

    Raises:
      ArgumentError: x is no float array, or not one; the first axes of x and the value differ; a
        window or a stride is no positive integer, or skips features, or there are too many.
      TargetError: the target does not fit the value.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: jax.nn.relu(x[:, :1] - x[:, 1:])
      >>> print(relax.methods.occlusion(f)(jnp.array([[3.0, 1.0]])))
      [[ 2. -1.]]

    Source: Zeiler and Fergus 2014, section 4; shared as in Ancona et al. 2018.
    """

    def explain(problem: Problem) -> Any:
        x = problem.array
        start = jax.tree.leaves(problem.baseline(baseline))[0]
        if x.size == 0:
            return problem.x
        axes = range(int(problem.batched), x.ndim)
        sample = tuple(x.shape[axis] for axis in axes)
        each_alone = (1,) * len(sample)
        spans = _spans(each_alone if window is None else window, sample, sample, "window")
        steps = spans if strides is None else _spans(strides, sample, spans, "strides")
        corners = _corners(sample, spans, steps)
        whole = problem.scores_here()

        def without(corner: jax.Array) -> jax.Array:
            inside = jnp.ones(sample, bool)
            for axis, span in enumerate(spans):
                place = lax.broadcasted_iota(jnp.int32, sample, axis)
                inside &= (place >= corner[axis]) & (place < corner[axis] + span)
            mask = jnp.broadcast_to(inside[None] if problem.batched else inside, x.shape)
            lost = whole - problem.scores(problem.changed(jnp.where(mask, start, x)))
            each = lost / inside.sum().astype(lost.dtype)
            each = each.reshape(each.shape + (1,) * (x.ndim - each.ndim))
            return jnp.where(mask, jnp.broadcast_to(each, x.shape), 0)

        total = summed(without, jnp.asarray(corners), batch_size)
        counts = _coverage(sample, spans, corners).astype(total.dtype)
        counts = jnp.broadcast_to(counts[None] if problem.batched else counts, x.shape)
        return problem.changed((total / counts).astype(x.dtype))

    return method(fun, argnums, target, has_aux, explain, batched)


def _spans(
    given: Any, sample: tuple[int, ...], rest: tuple[int, ...], name: str
) -> tuple[int, ...]:
    """A size along each axis of a sample; ``rest`` has those of the axes that are not named."""
    several = isinstance(given, Sequence)
    count = len(sample) - (len(sample) > 2)
    sizes = tuple(given) if several else (given,) * count
    if len(sizes) > len(sample) or not all(map(is_count, sizes)):
        raise ArgumentError(
            f"{name}={given!r}: expected a positive integer, or one for each axis of a sample, "
            f"which has shape {sample}."
        )
    sizes += rest[len(sizes) :]
    return tuple(min(size, n) for size, n in zip(sizes, sample, strict=True))


def _corners(sample: tuple[int, ...], spans: tuple[int, ...], steps: tuple[int, ...]) -> np.ndarray:
    """Where the windows begin, ``(windows, axes)``."""
    starts = []
    for n, span, step in zip(sample, spans, steps, strict=True):
        if step > span:
            raise ArgumentError(
                f"strides={step} with a window of {span} skips features, which would have no "
                "relevance.\n  Take strides of at most the window."
            )
        starts.append(range(0, step * math.ceil(max(n - span, 0) / step) + 1, step))
    corners = list(itertools.product(*starts))
    return np.array(corners, np.int32).reshape(len(corners), len(sample))


def _coverage(sample: tuple[int, ...], spans: tuple[int, ...], corners: np.ndarray) -> np.ndarray:
    """How many windows cover each feature."""
    counts = np.zeros(sample)
    for corner in corners:
        counts[tuple(slice(a, a + span) for a, span in zip(corner, spans, strict=True))] += 1
    return counts


def shapley_sampling(
    fun: Callable[..., Any],
    *,
    key: jax.Array,
    permutations: int = 20,
    baseline: Any = 0.0,
    groups: Any = None,
    batched: bool = True,
    batch_size: int = 1,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""Shapley values: what a feature adds, averaged over orders in which features are put in.

    $$R_i = \mathbb{E}_\pi \Big[f\big(x_{\pi_{\le i}}\big) - f\big(x_{\pi_{< i}}\big)\Big]$$

    where all other features are the baseline's. The sum is $f(x) - f(x_0)$ exactly, for any number
    of orders. Every second order is the one before it reversed, which halves the error or better.

    Args:
      fun, argnums, target, has_aux: as in `relax.lrp`; ``"max"`` is the class of the whole x.
      key: of jax.random, for the orders; all samples share them.
      permutations: how many orders; each costs an evaluation for every feature, or group.
      baseline: $x_0$; a number or an array that broadcasts to x.
      groups: integers that broadcast to a sample of x: features with the same number are put in
        together (`relax.evaluation.patches`, superpixels, words) and share what they add equally.
        By default each by itself.
      batched: whether the first axis of x and of the value are samples.
      batch_size: evaluations taken at a time.

    Returns, Raises: see `occlusion`.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: x.min(1, keepdims=True)
      >>> values = relax.methods.shapley_sampling(f, key=jax.random.key(0), permutations=2)
      >>> print(values(jnp.array([[4.0, 2.0]])))
      [[1. 1.]]

    Source: Castro et al. 2009; reversed orders: Mitchell et al. 2022, section 4.
    """
    if not is_count(permutations):
        raise ArgumentError(f"permutations={permutations!r}: expected a positive integer.")
    if not is_count(batch_size):
        raise ArgumentError(f"batch_size={batch_size!r}: expected a positive integer.")

    def explain(problem: Problem) -> Any:
        x = problem.array
        start = jax.tree.leaves(problem.baseline(baseline))[0]
        sample = x.shape[int(problem.batched) :]
        found = regions(groups, sample)
        numbers, count = jnp.asarray(found.numbers), found.total
        if x.size == 0:
            return problem.x
        problem.fix_target()

        def score(rank: jax.Array, filled: jax.Array) -> jax.Array:
            mask = (rank < filled)[numbers]
            mask = jnp.broadcast_to(mask[None] if problem.batched else mask, x.shape)
            return problem.scores(problem.changed(jnp.where(mask, x, start)))

        def added(rank: jax.Array) -> jax.Array:
            fill = jnp.arange(count + 1)
            values = lax.map(lambda n: score(rank, n), fill, batch_size=min(batch_size, count + 1))
            return jnp.diff(values, axis=0)[rank]

        forward = jax.vmap(lambda k: jax.random.permutation(k, count))(
            jax.random.split(key, -(-permutations // 2))
        )
        ranks = jnp.stack([forward, count - 1 - forward], 1).reshape(-1, count)[:permutations]
        mean = summed(added, ranks, 1) / permutations  # (groups, samples)
        size = jnp.zeros(count, mean.dtype).at[numbers.reshape(-1)].add(1)
        each = mean / size.reshape((-1,) + (1,) * (mean.ndim - 1))
        values = each[numbers]
        values = jnp.moveaxis(values, -1, 0) if problem.batched else values
        return problem.changed(values.astype(x.dtype))

    return method(fun, argnums, target, has_aux, explain, batched)


__all__ = ["occlusion", "shapley_sampling"]
