"""Stabilized division and signed parts: arithmetic that stays finite, also under derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.errors import InconclusiveDimensionOperation

from relax._errors import RuleError

Stabilizer = str | Callable[..., jax.Array]


def is_number(value: Any) -> bool:
    """True for a Python number, i.e. a hyper-parameter that is known while tracing."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numpy_scalar(value: Any) -> float | None:
    """A literal's value if it is one real number, known while tracing; else None."""
    if isinstance(value, Tracer):
        return None
    if isinstance(value, (bool, int, float)):  # also JAX's own typed Python scalars
        return float(value)
    dtype = getattr(value, "dtype", None)
    if dtype is None or np.ndim(value):
        return None
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return float(value) if real or dtype == np.bool_ else None


def is_count(n: Any) -> bool:
    """A positive integer, of Python or numpy."""
    return isinstance(n, (int, np.integer)) and not isinstance(n, bool) and bool(n > 0)


def length(n: Any) -> float:
    """How many; infinity for a symbolic size (jax.export), of which any bound must hold."""
    return n if isinstance(n, int) else math.inf


def at_most(a: Any, b: Any) -> bool:
    """``a <= b``, of sizes that may be symbolic; False where it is not certain."""
    try:
        return bool(a <= b)
    except InconclusiveDimensionOperation:
        return False


def is_zero(value: Any) -> bool:
    """True if ``value`` is known, while tracing, to be zero."""
    return is_number(value) and value == 0


def sign(z: jax.Array) -> jax.Array:
    """As jnp.sign, but ``sign(0) = +1``, so that a stabilizer never vanishes."""
    if jnp.iscomplexobj(z):
        nothing = z == 0
        safe = jnp.where(nothing, 1, z)
        return safe / jnp.abs(safe)
    return jnp.where(z < 0, -1, 1).astype(z.dtype)


def wide(z: jax.Array) -> jax.Array:
    """``z`` in at least float32: half precision has no room for a stabilizer of 1e-6."""
    return z.astype(jnp.float32) if z.dtype in (jnp.bfloat16, jnp.float16) else z


def narrow(z: jax.Array, dtype: Any, headroom: int = 1) -> jax.Array:
    """``z`` cast to ``dtype``; a finite value stays finite, at the largest number of the type.

    ``headroom``: how many such values may be added up before they overflow.
    """
    if z.dtype == dtype:
        return z
    floats = jnp.issubdtype(dtype, jnp.floating) and jnp.issubdtype(z.dtype, jnp.floating)
    if floats and jnp.finfo(dtype).max < jnp.finfo(z.dtype).max:
        largest = float(jnp.finfo(dtype).max) / headroom
        z = jnp.where(jnp.isinf(z), z, jnp.clip(z, -largest, largest))
    return z.astype(dtype)


def power_of_two(z: jax.Array) -> jax.Array:
    """The power of two just below the largest magnitude in ``z``; 1 if that is 0."""
    largest = jnp.max(jnp.abs(z), initial=0)
    nothing = largest == 0
    exponent = jnp.floor(jnp.log2(jnp.where(nothing, 1, largest)))
    return jnp.ldexp(jnp.ones_like(largest), exponent.astype(int))


def stabilize(
    z: jax.Array,
    epsilon: Any = 1e-6,
    stabilizer: Stabilizer = "additive",
    batch_axes: tuple[int, ...] = (),
) -> jax.Array:
    """Moves ``z`` away from zero, keeping its sign (``sign(0) = +1``).

    Args:
      z: denominators, any shape.
      epsilon: how far, in the units of ``z``; for ``"scale"`` relative to the size of ``z``.
      stabilizer: ``"additive"``: ``z + epsilon sign(z)``; ``"clip"``:
        ``sign(z) max(|z|, epsilon)``; ``"scale"``: ``z + epsilon rms(z) sign(z)`` with the root
        mean square over all but ``batch_axes``; or a callable ``(z, epsilon) -> denominators``.
    """
    if callable(stabilizer):
        return stabilizer(z, epsilon)
    if stabilizer == "additive":
        return z if is_zero(epsilon) else z + epsilon * sign(z)
    if stabilizer == "clip":
        return sign(z) * jnp.maximum(jnp.abs(z), epsilon)
    axes = tuple(axis for axis in range(z.ndim) if axis not in batch_axes)
    square = jnp.mean(z * z, axis=axes, keepdims=True)
    nothing = square == 0
    rms = jnp.where(nothing, 0, jnp.sqrt(jnp.where(nothing, 1, square)))
    return z + epsilon * rms * sign(z)


STABILIZERS = ("additive", "clip", "scale")


def divide(a: jax.Array, b: jax.Array, otherwise: Any = 0) -> jax.Array:
    """``a / b``, and ``otherwise`` where ``b`` is exactly zero; its derivatives have no NaN."""
    zero = b == 0
    return jnp.where(zero, otherwise, a / jnp.where(zero, 1, b))


def largest(z: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The largest entry over axes, which are kept with one entry.

    Its derivative goes to the first such entry, by its place. That of ``jnp.max`` goes to entries
    that equal the result: a compiler that computes ``z`` twice, rounded otherwise, finds none, and
    the derivative is 0 / 0.
    """
    axes = [axis % z.ndim for axis in axes]
    kept = [1 if axis in axes else size for axis, size in enumerate(z.shape)]
    last = jnp.moveaxis(z, axes, range(-len(axes), 0))
    flat = last.reshape(*last.shape[: z.ndim - len(axes)], -1)
    return jnp.take_along_axis(flat, flat.argmax(-1, keepdims=True), -1).reshape(kept)


def _require_sign(x: Any) -> None:
    if any(jnp.iscomplexobj(a) for a in jax.tree.leaves(x)):
        raise RuleError(
            "A complex number has no sign: a rule that tells positive from negative contributions "
            "cannot serve this layer.\n  Give it Epsilon()."
        )


def positive(x: Any) -> Any:
    """``x+ = max(x, 0)`` for every array of the tree."""
    _require_sign(x)
    return jax.tree.map(lambda a: jnp.where(a > 0, a, 0), x)


def negative(x: Any) -> Any:
    """``x- = min(x, 0)`` for every array of the tree."""
    _require_sign(x)
    return jax.tree.map(lambda a: jnp.where(a < 0, a, 0), x)


def varying_like(x: jax.Array, aval: Any) -> jax.Array:
    """Inside of a shard_map: ``x``, marked as varying over the mesh axes of ``aval``."""
    kind = getattr(aval, "mat", None)
    axes = tuple(getattr(aval if kind is None else kind, "vma" if kind is None else "varying", ()))
    return lax.pcast(x, axes, to="varying") if axes else x
