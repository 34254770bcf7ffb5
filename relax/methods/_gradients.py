"""Methods made of gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError
from relax._numerics import is_count, wide
from relax.methods._problem import Problem, method, summed

_Argnums = int | Sequence[int]
Quadrature = Literal["midpoint", "right", "left", "trapezoid", "gauss_legendre"]


def gradient(
    fun: Callable[..., Any], *, argnums: _Argnums = -1, target: Any = None, has_aux: bool = False
) -> Callable[..., Any]:
    r"""The gradient of what is explained: how it changes with each number of the input.

    $$R = \frac{\partial}{\partial x} \sum f(x) \odot \mathrm{mask}$$

    Args:
      fun, argnums, target, has_aux: as in `relax.lrp`; a callable target gives what is explained,
        whose sum is differentiated.

    Returns:
      A function of the arguments of ``fun``. It returns an array in the shape of the explained
      argument, in units of the value by those of x; with ``has_aux`` the auxiliary output as well.

    Raises:
      ArgumentError: the explained argument holds no floats.
      TargetError: the target does not fit the value.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0, 4.0], [3.0, 2.0]]), jnp.array([2.0, 1.0])
      >>> print(relax.methods.gradient(f, target=1)(w, x))
      [4. 2.]

    Source: Baehrens et al. 2010, section 2; Simonyan et al. 2014, section 3.
    """
    return method(fun, argnums, target, has_aux, Problem.gradient_here)


def saliency(
    fun: Callable[..., Any], *, argnums: _Argnums = -1, target: Any = None, has_aux: bool = False
) -> Callable[..., Any]:
    r"""The magnitude of the gradient: what the output is sensitive to, not in which direction.

    $$R = \left|\frac{\partial}{\partial x} \sum f(x) \odot \mathrm{mask}\right|$$

    Args, Returns and Raises: see `gradient`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> print(relax.methods.saliency(f)(jnp.array([1.0, -3.0]), jnp.array([2.0, 1.0])))
      [1. 3.]

    Source: Simonyan et al. 2014, section 3.
    """
    explain = lambda problem: jax.tree.map(jnp.abs, problem.gradient_here())
    return method(fun, argnums, target, has_aux, explain)


def gradient_x_input(
    fun: Callable[..., Any], *, argnums: _Argnums = -1, target: Any = None, has_aux: bool = False
) -> Callable[..., Any]:
    r"""Gradient times input. On a ReLU network without biases it is Epsilon with epsilon 0.

    $$R = x \odot \frac{\partial}{\partial x} \sum f(x) \odot \mathrm{mask}$$

    Args, Returns and Raises: see `gradient`; the units are those of the value.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> print(relax.methods.gradient_x_input(f)(jnp.array([1.0, -3.0]), jnp.array([2.0, 1.0])))
      [ 2. -3.]

    Source: Shrikumar et al. 2016.
    """
    explain = lambda problem: jax.tree.map(jnp.multiply, problem.x, problem.gradient_here())
    return method(fun, argnums, target, has_aux, explain)


def integrated_gradients(
    fun: Callable[..., Any],
    *,
    baseline: Any = 0.0,
    steps: int = 50,
    quadrature: Quadrature = "midpoint",
    batch_size: int = 1,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""The gradient, averaged along the straight line from a baseline, times the way.

    $$R = (x - x_0) \odot \int_0^1 \nabla f\big(x_0 + t\,(x - x_0)\big)\,dt$$

    Its sum is $f(x) - f(x_0)$, up to the error of the quadrature.

    Args:
      fun, argnums, target, has_aux: see `gradient`; ``"max"`` is the class of x, along all the way.
      baseline: $x_0$; a number or an array that broadcasts to x, or a pytree like x.
      steps: points at which the gradient is taken; each costs one.
      quadrature: where they stand: ``"midpoint"`` of equal steps, their ``"right"`` or ``"left"``
        ends, ``"trapezoid"`` (both ends of the line with half the weight), ``"gauss_legendre"``.
      batch_size: points taken at a time; memory grows with it.

    Returns:
      See `gradient`; the units are those of the value.

    Raises:
      ArgumentError: see `gradient`; the baseline does not broadcast; no such quadrature; steps or
        batch_size is no positive integer.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda x: x[0] ** 2 * x[1]
      >>> print(relax.methods.integrated_gradients(f)(jnp.array([1.0, 3.0])).round(3))
      [2. 1.]

    Source: Sundararajan et al. 2017, eq. (1).
    """
    places, weights = _nodes(quadrature, steps)

    def explain(problem: Problem) -> Any:
        start = problem.baseline(baseline)
        way = jax.tree.map(jnp.subtract, problem.x, start)

        def at(point: Any) -> Any:
            place, weight = point
            on = lambda a, x: _between(a, x, place)
            found = problem.gradient(jax.tree.map(on, start, problem.x))
            return jax.tree.map(lambda g: weight.astype(wide(g).dtype) * wide(g), found)

        problem.fix_target()
        mean = summed(at, (jnp.asarray(places), jnp.asarray(weights)), batch_size)
        return jax.tree.map(lambda d, g: (d * g).astype(d.dtype), way, mean)

    return method(fun, argnums, target, has_aux, explain, batched=False)


def _between(start: jax.Array, end: jax.Array, place: jax.Array) -> jax.Array:
    """A point of the line between two arrays, rounded once."""
    a, b = wide(start), wide(end)
    return (a + place.astype(a.dtype) * (b - a)).astype(start.dtype)


def _nodes(quadrature: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Places between 0 and 1, and their weights, whose sum is 1."""
    if not is_count(steps):
        raise ArgumentError(f"steps={steps!r}: expected a positive integer.")
    equal = np.full(steps, 1 / steps)
    shifts = {"left": 0.0, "midpoint": 0.5, "right": 1.0}
    if quadrature in shifts:
        return (np.arange(steps) + shifts[quadrature]) / steps, equal
    if quadrature == "trapezoid":
        if steps < 2:
            raise ArgumentError("quadrature='trapezoid' needs both ends: steps of at least 2.")
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    if quadrature == "gauss_legendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return (places + 1) / 2, weights / 2
    raise ArgumentError(
        f"quadrature={quadrature!r}: expected 'midpoint', 'right', 'left', 'trapezoid' or "
        "'gauss_legendre'."
    )


def smoothgrad(
    fun: Callable[..., Any],
    *,
    key: jax.Array,
    samples: int = 20,
    noise_level: Any = 0.1,
    stdev: Any = None,
    explain: Callable[..., Callable[..., Any]] = gradient,
    batched: bool = True,
    batch_size: int = 1,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""The gradient, or another explanation, averaged over noise that is added to the input.

    $$R = \frac{1}{n} \sum_{i=1}^{n} \nabla f(x + \sigma \epsilon_i), \qquad
      \epsilon_i \sim \mathcal{N}(0, 1), \quad \sigma = l\,(\max x - \min x)$$

    Args:
      fun, argnums, target, has_aux: see `gradient`; ``"max"`` is the class of x without noise.
      key: of jax.random.
      samples: n.
      noise_level: l, relative to the range of each sample, and of each array of it.
      stdev: sigma itself, in the units of x, in the place of ``noise_level``.
      explain: the method that is averaged, called as ``explain(fun, target=target)``; such as
        ``functools.partial(relax.lrp, rules=...)``.
      batched: whether the first axis of x are samples, each with a range of its own.
      batch_size: how many noisy inputs are taken at a time; memory grows with it.

    Returns, Raises: see `gradient`; ArgumentError also if samples or batch_size is no positive
      integer, or a sample is but one number, which has no range.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> smooth = relax.methods.smoothgrad(jnp.sum, key=jax.random.key(0))
      >>> print(smooth(jnp.array([[2.0, 1.0]])))
      [[1. 1.]]

    Source: Smilkov et al. 2017, section 3.
    """
    if not is_count(samples):
        raise ArgumentError(f"samples={samples!r}: expected a positive integer.")

    def averaged(problem: Problem) -> Any:
        leaves, tree = jax.tree.flatten(problem.x)
        if problem.batched and any(a.ndim == 0 for a in leaves):
            raise ArgumentError("x is a scalar, without an axis of samples: batched=False.")
        spread = [_spread(a, problem.batched, noise_level, stdev) for a in leaves]
        problem.fix_target()
        own = explain(lambda x: problem.function(x)[0], target=problem.explained)

        def noisy(key: jax.Array) -> Any:
            keys = jax.random.split(key, len(leaves))
            noise = [
                jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)
            ]
            moved = [a + s * e for a, s, e in zip(leaves, spread, noise, strict=True)]
            return jax.tree.map(wide, own(jax.tree.unflatten(tree, moved)))

        total = summed(noisy, jax.random.split(key, samples), batch_size)
        mean = lambda r, a: (r / samples).astype(a.dtype)
        return jax.tree.map(mean, total, problem.x)

    return method(fun, argnums, target, has_aux, averaged, batched)


def _spread(x: jax.Array, batched: bool, level: Any, stdev: Any) -> jax.Array:
    """Sigma, for each sample, in the type of x."""
    if stdev is not None:
        return jnp.broadcast_to(jnp.asarray(stdev, x.dtype), x.shape)
    if batched and x.ndim == 1:
        raise ArgumentError(
            f"x has shape {x.shape}: each sample is one number, whose range is 0.\n"
            "  For one sample without an axis of samples: batched=False; or give stdev."
        )
    if x.size == 0:
        return x
    axes = tuple(range(int(batched), x.ndim))
    width = x.max(axes, keepdims=True) - x.min(axes, keepdims=True)
    return jnp.broadcast_to(jnp.asarray(level, x.dtype) * width, x.shape)


__all__ = ["gradient", "gradient_x_input", "integrated_gradients", "saliency", "smoothgrad"]
