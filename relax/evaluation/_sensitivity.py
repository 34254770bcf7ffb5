"""Sensitivity-n: does the relevance of some features tell what they do together?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from relax._errors import ArgumentError
from relax._numerics import is_count
from relax.evaluation._explained import explained
from relax.evaluation._features import as_relevance, batch_of_samples, regions
from relax.evaluation._finite import or_nan
from relax.evaluation._replacement import replaced
from relax.evaluation._similarity import correlation
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
      baseline: what a feature becomes: as ``replacement`` of `perturbation`.
      groups: integers that broadcast to a sample of x: features with the same number are changed
        together, and count as one (`patches`, superpixels, words). By default each by itself.
      batch_size: how many subsets are evaluated at a time; by default all.

    Returns:
      A function of the relevance of x that returns a score for each sample, ``(samples,)``; 0 where
      the output or the relevance does not change at all. It raises if a relevance is not finite;
      under jit its score is NaN.

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
    x = batch_of_samples("sensitivity_n", x)
    parts = regions(groups, x.shape[1:])
    count = parts.total
    n = max(1, count // 5) if n is None else n
    if not is_count(n) or n >= count:
        raise ArgumentError(f"sensitivity_n: n={n}, and a sample has {count} features.")
    if subsets < 2:
        raise ArgumentError(f"sensitivity_n: subsets={subsets}; a correlation needs two.")

    order = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, subsets))
    chosen = (
        jnp.zeros((subsets, count), bool).at[jnp.arange(subsets)[:, None], order[:, :n]].set(True)
    )
    blank = replaced("sensitivity_n", baseline, jax.random.fold_in(key, subsets), x)
    start, value = explained("sensitivity_n", fun, leading, x, target)

    def dropped(chosen: jax.Array) -> jax.Array:
        return start - value(jnp.where(parts.spread(chosen[None]), blank, x))

    drops = sweep(dropped, batch_size=batch_size)(chosen)

    def score(relevance: Any) -> jax.Array:
        r = as_relevance("sensitivity_n", relevance, x.shape)
        each = parts.sums(r).T
        return or_nan(correlation(chosen.astype(each.dtype) @ each, drops), r)

    return score
