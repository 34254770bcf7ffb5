"""``target``: which output is explained, as a mask on the value or as relevance itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from relax._errors import TargetError

Target = Any


def gives_relevance(target: Target) -> bool:
    """A callable target gives relevance; all others select entries of the value."""
    return callable(target)


def seeds(target: Target, value: Any) -> Any:
    """The mask (or, for a callable, the relevance) of every output.

    Raises:
      TargetError: the target does not fit the value; both shapes are named.
    """
    if target is None:
        return jax.tree.map(jnp.ones_like, value)
    if callable(target):
        return _called(target, value)
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1:
        raise TargetError(
            f"target={_show(target)} needs a function that returns one array; this one returns "
            f"{len(leaves)}.\n  Give a callable target: value -> relevance of the value."
        )
    return jax.tree.map(lambda z: _mask(target, z), value)


def _called(target: Any, value: Any) -> Any:
    relevance = target(value)
    expected, got = jax.tree.structure(value), jax.tree.structure(relevance)
    if expected != got:
        raise TargetError(
            f"The target function returned the structure {got}; the value has {expected}."
        )
    return given(relevance, value, "The target function returned")


def given(relevance: Any, value: Any, who: str = "relprop was given") -> Any:
    """Relevance of every entry of the value, checked and in its dtype.

    Raises:
      TargetError: a shape differs.
    """

    def fit(r: Any, z: jax.Array) -> jax.Array:
        if jnp.shape(r) != z.shape:
            raise TargetError(
                f"{who} shape {jnp.shape(r)}; the value has shape {z.shape}."
                "\n  It must give the relevance of every entry of the value."
            )
        return jnp.asarray(r, z.dtype)

    return jax.tree.map(fit, relevance, value)


def _mask(target: Any, z: jax.Array) -> jax.Array:
    if z.ndim == 0:
        raise TargetError(
            f"target={_show(target)}, but the value is a scalar: there is nothing to choose.\n"
            "  Leave target out."
        )
    classes = z.shape[-1]
    if isinstance(target, str):
        if target != "max":
            raise TargetError(f'target={target!r}: the only word known is "max".')
        chosen = jnp.argmax(z, axis=-1)
    else:
        chosen = _indices(target, z)
    index = jnp.arange(classes).reshape((1,) * (z.ndim - 1) + (classes,))
    chosen = jnp.broadcast_to(chosen, z.shape[:-1])
    is_chosen = jnp.expand_dims(chosen, -1) == index
    return is_chosen.astype(z.dtype) * jnp.ones_like(z)  # in the sharding of z


def _indices(target: Any, z: jax.Array) -> jax.Array:
    if isinstance(target, (bool, float)) or not (
        isinstance(target, (int, list, tuple, np.generic, np.ndarray)) or hasattr(target, "dtype")
    ):
        raise TargetError(
            f'target={_show(target)}: expected None, an int, an integer array, "max" or a callable.'
        )
    # As numpy, if it is known: jax.numpy would make a tracer of an int under jit.
    chosen = jnp.asarray(target) if isinstance(target, Tracer) else np.asarray(target)
    classes = z.shape[-1]
    if not jnp.issubdtype(chosen.dtype, jnp.integer):
        raise TargetError(f"target has dtype {chosen.dtype}; it must be integers.")
    if chosen.dtype.itemsize < 4:  # a small type may not hold the number of classes
        chosen = chosen.astype(jnp.int32)
    if chosen.ndim and chosen.shape != z.shape[:-1]:
        raise TargetError(
            f"target has shape {chosen.shape}; for a value of shape {z.shape} it must be an int or "
            f"have shape {z.shape[:-1]}."
        )
    if isinstance(chosen, np.ndarray):
        wrong = chosen[(chosen < -classes) | (chosen >= classes)]
        if wrong.size:
            raise TargetError(
                f"target={wrong[0]} is out of range: the last axis of the value, of shape "
                f"{z.shape}, has {classes} entries."
            )
    return jnp.where(chosen < 0, chosen + classes, chosen)


def _show(target: Any) -> str:
    return (
        f"array of shape {target.shape}"
        if hasattr(target, "shape") and target.ndim
        else repr(target)
    )
