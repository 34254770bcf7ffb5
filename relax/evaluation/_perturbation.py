"""Perturbation curves: what becomes of the output as features are replaced, in what order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError
from relax._numerics import is_count, is_number
from relax.evaluation._curve import Curve
from relax.evaluation._explained import explained
from relax.evaluation._features import Regions, as_relevance, batch_of_samples, regions
from relax.evaluation._finite import or_nan
from relax.evaluation._replacement import replaced
from relax.sweeps import sweep

_STEPS = 50


def perturbation(
    fun: Callable[..., Any],
    *args: Any,
    relevance: Any = None,
    order: Literal["morf", "lerf", "random"] = "morf",
    steps: int | None = None,
    until: float = 1.0,
    groups: Any = None,
    replacement: Any = 0.0,
    key: jax.Array | None = None,
    target: Any = None,
    batch_size: int | None = None,
) -> Curve:
    r"""Pixel flipping: the explained value as regions are replaced in the order of relevance.

    $$f\big(x_{S_k \leftarrow \bar x}\big), \qquad
    S_k = \text{the first } k \text{ regions in order of } \sum_{i \in \text{region}} R_i$$

    An explanation is faithful if the value falls fast when the most relevant are replaced first
    (MoRF), and late when the least relevant are (LeRF). Of equally relevant regions the one with
    the lower number comes first, in either order: a constant relevance tells nothing, and has the
    same curve in both.

    Args:
      fun, target: as in `lrp`; ``"max"`` is the class of the unchanged input.
      *args: of ``fun``. The last one, x, is explained. Its first axis must be the samples, and
        that of every output: one that is missing cannot be seen where the shapes happen to agree.
        Integers, such as tokens, will do if the replacement is one.
      relevance: in the shape of x; not needed if the order is random.
      order: ``"morf"``, ``"lerf"``, or ``"random"``: another order for each sample.
      steps: of the curve, at even distances; by default one for each region, at most 50.
      until: the part of the regions that is replaced in the end.
      groups: integers that broadcast to a sample of x: features with the same number are one region
        (`patches`, superpixels, words). By default each by itself.
      replacement: what a feature becomes: a value or an array that broadcasts to x; ``"mean"``, of
        each sample; or ``(key, x) -> array``, such as `noise`, or a `blur` in a lambda.
      key: of jax.random, for a random order, and for the replacement.
      batch_size: how many steps are evaluated at a time, each with all samples; by default all.

    Returns:
      A `Curve`. Under jit the values of a sample whose relevance is not finite are NaN.

    Raises:
      ArgumentError: an argument does not fit; the relevance is missing, or is not finite.
      TargetError: the target does not fit the output.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [-2.0], [3.0]]), jnp.array([[1.0, 1.0, 2.0]])
      >>> relevance = relax.lrp(f, relax.rules.Epsilon(0.0))(w, x)
      >>> curve = relax.evaluation.perturbation(f, w, x, relevance=relevance)
      >>> print(curve.values, curve.aopc())
      [[ 5. -1. -2.  0.]] [4.5]

    Source: Bach et al. 2015, pixel flipping; Samek et al. 2017, section III.
    """
    if order not in ("morf", "lerf", "random"):
        raise ArgumentError(f'perturbation(order={order!r}): expected "morf", "lerf" or "random".')
    return _curve(
        "perturbation",
        fun,
        args,
        relevance,
        order,
        steps,
        until,
        groups,
        replacement,
        key,
        target,
        batch_size,
    )


def deletion(
    fun: Callable[..., Any],
    *args: Any,
    relevance: Any,
    steps: int | None = None,
    groups: Any = None,
    replacement: Any = 0.0,
    key: jax.Array | None = None,
    target: Any = None,
    batch_size: int | None = None,
) -> Curve:
    """The deletion game: `perturbation`, the most relevant first. The lower the area, the better.

    Arguments and errors: see `perturbation`. Petsiuk et al. explain a probability and delete to
    grey: let ``fun`` return probabilities, and replace by the mean of the data.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f, x = lambda x: x.sum(1), jnp.array([[3.0, 1.0]])
      >>> print(relax.evaluation.deletion(f, x, relevance=x).values)
      [[4. 1. 0.]]

    Source: Petsiuk et al. 2018.
    """
    common = relevance, "morf", steps, 1.0, groups, replacement, key, target, batch_size
    return _curve("deletion", fun, args, *common)


def insertion(
    fun: Callable[..., Any],
    *args: Any,
    relevance: Any,
    steps: int | None = None,
    groups: Any = None,
    replacement: Any = 0.0,
    key: jax.Array | None = None,
    target: Any = None,
    batch_size: int | None = None,
) -> Curve:
    """The insertion game: from the replaced input, the most relevant regions are put back first.

    The higher the area, the better. Without ties it is the LeRF curve read from its end.
    Arguments and errors: see `perturbation`. Petsiuk et al. start from a `blur`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f, x = lambda x: x.sum(1), jnp.array([[3.0, 1.0]])
      >>> print(relax.evaluation.insertion(f, x, relevance=x).values)
      [[0. 3. 4.]]

    Source: Petsiuk et al. 2018.
    """
    common = relevance, "insertion", steps, 1.0, groups, replacement, key, target, batch_size
    return _curve("insertion", fun, args, *common)


def area_between(
    fun: Callable[..., Any],
    *args: Any,
    relevance: Any,
    steps: int | None = None,
    until: float = 1.0,
    groups: Any = None,
    replacement: Any = 0.0,
    key: jax.Array | None = None,
    target: Any = None,
    batch_size: int | None = None,
) -> jax.Array:
    r"""Area between the perturbation curves, LeRF minus MoRF: the higher, the more faithful.

    $$\int_0^1 f\big(x^{\mathrm{LeRF}}_u\big) - f\big(x^{\mathrm{MoRF}}_u\big)\, du$$

    0 is chance, and exactly what a constant relevance has. What a replacement does by itself, being
    unlike any data, is in both curves and cancels in part.

    Arguments and errors: see `perturbation`.

    Returns:
      ``(samples,)``, in the units of the output.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f, x = lambda x: x.sum(1), jnp.array([[3.0, 1.0]])
      >>> print(relax.evaluation.area_between(f, x, relevance=x))
      [1.]

    Source: Schulz et al. 2020; MoRF and LeRF: Samek et al. 2017, section III.
    """
    common = steps, until, groups, replacement, key, target, batch_size
    lerf = _curve("area_between", fun, args, relevance, "lerf", *common)
    morf = _curve("area_between", fun, args, relevance, "morf", *common)
    return lerf.area() - morf.area()


def _curve(
    who: str,
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    relevance: Any,
    order: str,
    steps: int | None,
    until: float,
    groups: Any,
    replacement: Any,
    key: jax.Array | None,
    target: Any,
    batch_size: int | None,
) -> Curve:
    *leading, x = args
    x = batch_of_samples(who, x, integers=True)
    parts = regions(groups, x.shape[1:])
    counts = _counts(who, parts.total, steps, until)
    for_order, for_replacement = (None, None) if key is None else jax.random.split(key)
    blank = replaced(who, replacement, for_replacement, x)
    _, value = explained(who, fun, leading, x, target)
    if order == "random":
        relevance = None
        place = _shuffled(who, for_order, x.shape[0], parts.total)
    elif relevance is None:
        raise ArgumentError(f'{who}: there is no relevance; only order="random" needs none.')
    else:
        relevance = as_relevance(who, relevance, x.shape)
        place = _places(relevance, parts, ascending=order == "lerf")
    place = parts.spread(place)

    def at(count: jax.Array) -> jax.Array:
        hit = place >= count if order == "insertion" else place < count
        return value(jnp.where(hit, blank, x))

    values = sweep(at, batch_size=batch_size)(jnp.asarray(counts)).T
    fractions = jnp.asarray(counts / parts.total, values.real.dtype)
    return Curve(fractions, values if relevance is None else or_nan(values, relevance), order)


def _counts(who: str, count: int, steps: int | None, until: float) -> np.ndarray:
    """How many regions are replaced at each step, from none on."""
    if not is_number(until) or not 0 < until <= 1:
        raise ArgumentError(f"{who}(until={until!r}): expected a number above 0, up to 1.")
    last = max(1, round(until * count))
    steps = min(last, _STEPS) if steps is None else steps
    if not is_count(steps) or steps > last:
        raise ArgumentError(f"{who}(steps={steps!r}): at most {last} regions are replaced.")
    return np.round(np.linspace(0, last, steps + 1)).astype(np.int32)


def _places(relevance: jax.Array, parts: Regions, ascending: bool) -> jax.Array:
    """When each region is replaced, ``(samples, regions)``; ties: the lower number first."""
    sums = parts.sums(relevance)
    order = jnp.argsort(sums if ascending else -sums, axis=1, stable=True)
    return jnp.argsort(order, axis=1).astype(jnp.int32)  # the inverse of a permutation


def _shuffled(who: str, key: jax.Array | None, samples: int, count: int) -> jax.Array:
    if key is None:
        raise ArgumentError(f'{who}(order="random"): give it a key, jax.random.key(0).')
    return jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, samples))
