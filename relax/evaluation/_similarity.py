"""How alike two explanations are, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from relax._errors import ArgumentError
from relax._numerics import divide, is_count, largest, wide
from relax.evaluation._features import as_relevance
from relax.evaluation._finite import or_nan
from relax.evaluation._replacement import gaussian

_WINDOW = gaussian(1.5, 5)  # of Wang et al. 2004


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's, along the first axis; 0 where one of them does not vary."""

    def scaled(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        v = wide(v) - wide(v).mean(0, keepdims=True)
        size = largest(jnp.abs(v), (0,))  # squares of the numbers as they are may vanish
        varies, v = size > 0, divide(v, size)
        norm = jnp.sqrt(jnp.where(varies, (v * v).sum(0, keepdims=True), 1))
        return v / norm, varies[0]

    (a, a_varies), (b, b_varies) = scaled(a), scaled(b)
    return jnp.where(a_varies & b_varies, (a * b).sum(0), 0)


def pearson(a: Any, b: Any) -> jax.Array:
    """The correlation over the features of each sample; 0 where one of them does not vary.

    Args:
      a, b: relevance, ``(samples, ...)``.

    Returns:
      ``(samples,)``, between -1 and 1.

    Raises:
      ArgumentError: the shapes differ, or a number is not finite; under jit the result is NaN.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> a = jnp.array([[1.0, 2.0, 3.0]])
      >>> print(relax.evaluation.pearson(a, 5 - 2 * a).round(3))
      [-1.]
    """
    a, b = _pair("pearson", a, b)
    return or_nan(correlation(_flat(a).T, _flat(b).T), a, b)


def spearman(a: Any, b: Any) -> jax.Array:
    r"""The correlation of ranks, $\mathrm{corr}(\mathrm{rank}(a), \mathrm{rank}(b))$.

    Equal numbers share the mean of their ranks. Arguments, result and errors: see `pearson`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> a = jnp.array([[1.0, 2.0, 3.0, 3.0]])
      >>> print(relax.evaluation.spearman(a, a**3).round(3))
      [1.]

    Source: Spearman 1904; of explanations: Adebayo et al. 2018.
    """
    a, b = _pair("spearman", a, b)
    return or_nan(correlation(_ranks(_flat(a)).T, _ranks(_flat(b)).T), a, b)


def cosine(a: Any, b: Any) -> jax.Array:
    r"""The cosine of the angle between them, $a \cdot b \,/\, |a| |b|$; 0 where one is zero.

    Arguments, result and errors: see `pearson`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> print(relax.evaluation.cosine(jnp.array([[3.0, 0.0]]), jnp.array([[3.0, 4.0]])).round(3))
      [0.6]
    """
    a, b = _pair("cosine", a, b)

    def unit(v: jax.Array) -> jax.Array:
        v = divide(v, largest(jnp.abs(v), (1,)))
        square = (v * v).sum(1, keepdims=True)
        return v / jnp.sqrt(jnp.where(square > 0, square, 1))

    return or_nan((unit(_flat(a)) * unit(_flat(b))).sum(1), a, b)


def top_k(a: Any, b: Any, k: int | None = None) -> jax.Array:
    r"""The share of the k features of largest magnitude that they have in common.

    $$|\mathrm{top}_k(|a|) \cap \mathrm{top}_k(|b|)| \,/\, k$$

    Args:
      a, b: relevance, ``(samples, ...)``.
      k: by default a tenth of the features. Of equal ones, the first are taken.

    Returns:
      ``(samples,)``, between 0 and 1.

    Raises:
      ArgumentError: as `pearson`; there are not k features.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> a, b = jnp.array([[5.0, -4.0, 0.0, 1.0]]), jnp.array([[1.0, 7.0, 2.0, 3.0]])
      >>> print(relax.evaluation.top_k(a, b, k=2))
      [0.5]

    Source: Krishna et al. 2022, "feature agreement".
    """
    a, b = _pair("top_k", a, b)
    k = max(1, int(a[0].size) // 10) if k is None else k
    return or_nan((_largest("top_k", a, k) & _largest("top_k", b, k)).sum(1) / k, a, b)


def same_sign(a: Any, b: Any, k: int | None = None) -> jax.Array:
    """The share of the k features of largest magnitude that they have in common, sign and all.

    Args:
      a, b: relevance, ``(samples, ...)``.
      k: by default all features; then it is the share of those whose sign is the same. Zero has
        a sign of its own.

    Returns:
      ``(samples,)``, between 0 and 1.

    Raises:
      ArgumentError: as `pearson`; there are not k features.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> a, b = jnp.array([[5.0, -4.0, 0.0, 1.0]]), jnp.array([[1.0, 7.0, 2.0, 3.0]])
      >>> print(relax.evaluation.same_sign(a, b))
      [0.5]

    Source: Krishna et al. 2022, "sign agreement".
    """
    a, b = _pair("same_sign", a, b)
    k = int(a[0].size) if k is None else k
    both = _largest("same_sign", a, k) & _largest("same_sign", b, k)
    return or_nan((both & (jnp.sign(_flat(a)) == jnp.sign(_flat(b)))).sum(1) / k, a, b)


def ssim(a: Any, b: Any) -> jax.Array:
    r"""Structural similarity of heatmaps, each divided by its largest magnitude.

    $$\frac{(2 \mu_a \mu_b + c_1)(2 \sigma_{ab} + c_2)}
    {(\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2)}$$

    averaged over Gaussian windows of 11 x 11 pixels that lie within the picture (sigma 1.5), with
    $c_1 = 0.02^2$ and $c_2 = 0.06^2$.

    Args:
      a, b: relevance, ``(samples, height, width)``; a fourth axis, of channels, is summed.

    Returns:
      ``(samples,)``, between -1 and 1.

    Raises:
      ArgumentError: as `pearson`; it is no picture, or smaller than the window.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> a = jax.random.normal(jax.random.key(0), (1, 16, 16))
      >>> print(relax.evaluation.ssim(a, 2 * a).round(3))
      [1.]

    Source: Wang et al. 2004, eq. (13); of explanations: Adebayo et al. 2018.
    """
    given = _pair("ssim", a, b)
    size, shape = _WINDOW.size, given[0].shape
    if len(shape) not in (3, 4) or min(shape[1:3]) < size:
        raise ArgumentError(
            f"ssim: the relevance has shape {shape}; expected (samples, height, width[, "
            f"channels]), at least {size} x {size} pixels."
        )

    def windows(length: int) -> jax.Array:
        starts = jnp.arange(length - size + 1)
        weights = jnp.zeros((length - size + 1, length))
        return weights.at[starts[:, None], starts[:, None] + jnp.arange(size)[None]].set(_WINDOW)

    rows, columns = windows(shape[1]), windows(shape[2])
    local = lambda v: jnp.einsum("ih,nhw,jw->nij", rows, v, columns, precision="highest")
    maps = [wide(v).sum(-1) if v.ndim == 4 else wide(v) for v in given]
    a, b = (divide(v, largest(jnp.abs(v), (1, 2))) for v in maps)
    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    joint = local(a * b) - mean_a * mean_b
    c1, c2 = 0.02**2, 0.06**2  # 0.01 and 0.03 of the range, which is 2
    alike = (2 * mean_a * mean_b + c1) * (2 * joint + c2)
    return or_nan(
        (alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2)), *given
    )


MEASURES: dict[str, Callable[[Any, Any], jax.Array]] = {
    "spearman": spearman,
    "pearson": pearson,
    "cosine": cosine,
    "topk": top_k,
    "sign": same_sign,
    "ssim": ssim,
}


def measure_of(who: str, measure: Any) -> Callable[..., Any]:
    """A measure by its name, or as it is.

    Raises:
      ArgumentError: there is none of this name.
    """
    if callable(measure):
        return measure
    if measure not in MEASURES:
        raise ArgumentError(
            f"{who}: there is no measure {measure!r}; expected a function of two relevances, or "
            f"one of {', '.join(map(repr, MEASURES))}."
        )
    return MEASURES[measure]


def _pair(who: str, a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
    a, b = as_relevance(who, a), as_relevance(who, b)
    if a.shape != b.shape:
        raise ArgumentError(f"{who}: the relevances have shapes {a.shape} and {b.shape}.")
    return a, b


def _flat(r: jax.Array) -> jax.Array:
    return wide(r.reshape(r.shape[0], -1))


def _ranks(r: jax.Array) -> jax.Array:
    """Ranks from 0 along the last axis; equal numbers share the mean of theirs."""

    def of_one(v: jax.Array) -> jax.Array:
        ordered = jnp.sort(v)
        below = jnp.searchsorted(ordered, v, side="left")
        return (below + jnp.searchsorted(ordered, v, side="right") - 1).astype(v.dtype) / 2

    return jax.vmap(of_one)(r)


def _largest(who: str, r: jax.Array, k: Any) -> jax.Array:
    """Which features are among the k of largest magnitude, ``(samples, features)``."""
    flat = jnp.abs(_flat(r))
    if not is_count(k) or k > flat.shape[1]:
        raise ArgumentError(f"{who}: k={k}, and a sample has {flat.shape[1]} features.")
    order = jnp.argsort(-flat, axis=1, stable=True)[:, :k]
    return jnp.zeros(flat.shape, bool).at[jnp.arange(flat.shape[0])[:, None], order].set(True)
