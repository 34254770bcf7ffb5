"""How much there is to read in an explanation: on how few features does the relevance lie?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from relax._numerics import divide, largest
from relax.evaluation._features import as_relevance, regions
from relax.evaluation._finite import or_nan


def entropy(relevance: Any, *, groups: Any = None) -> jax.Array:
    r"""Complexity: the entropy of the relevance, in nats. The lower, the simpler.

    $$-\sum_i p_i \log p_i, \qquad p_i = |R_i| \Big/ \sum_j |R_j|$$

    Args:
      relevance: ``(samples, ...)``.
      groups: as in `perturbation`; relevance is summed by region first.

    Returns:
      ``(samples,)``, from 0, all on one region, to the logarithm of their number; 0 where there is
      no relevance. Under jit it is NaN where relevance is not finite.

    Raises:
      ArgumentError: the groups do not fit, or the relevance is not finite.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> print(relax.evaluation.entropy(jnp.array([[1.0, -1.0], [0.0, 5.0]])).round(3))
      [0.693 0.   ]

    Source: Bhatt et al. 2020, "complexity".
    """
    r = as_relevance("entropy", relevance)
    p = _magnitude(r, groups)
    p = divide(p, p.sum(1, keepdims=True))
    # The logarithm of zero is kept out of the derivative as well.
    return or_nan(jnp.where(p > 0, -p * jnp.log(jnp.where(p > 0, p, 1)), 0).sum(1), r)


def gini(relevance: Any, *, groups: Any = None) -> jax.Array:
    r"""Sparseness: the Gini index of the magnitudes. The higher, the sparser.

    $$\sum_{i=1}^n (2 i - n - 1)\, |R|_{(i)} \Big/ n \sum_i |R_i|, \qquad
    |R|_{(1)} \le \dots \le |R|_{(n)}$$

    Arguments and errors: see `entropy`.

    Returns:
      ``(samples,)``, from 0, all the same, to ``1 - 1/n``, all on one; 0 where there is no
      relevance. Under jit it is NaN where relevance is not finite.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> print(relax.evaluation.gini(jnp.array([[1.0, -1.0], [0.0, 5.0]])))
      [0.  0.5]

    Source: Chalasani et al. 2020.
    """
    r = as_relevance("gini", relevance)
    ordered = jnp.sort(_magnitude(r, groups), axis=1)
    n = ordered.shape[1]
    weights = (2 * jnp.arange(1, n + 1) - n - 1).astype(ordered.dtype)[None] / n
    return or_nan(divide((weights * ordered).sum(1), ordered.sum(1)), r)


def _magnitude(r: jax.Array, groups: Any) -> jax.Array:
    """By region, divided by the largest so that no sum over- or underflows."""
    size = jnp.abs(regions(groups, r.shape[1:]).sums(r))
    return divide(size, largest(size, (1,)))
