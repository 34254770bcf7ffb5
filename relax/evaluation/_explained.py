"""The function as the measures see it: one number for each sample, what the target explains."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax import _target
from relax._errors import ArgumentError


def explained(
    who: str, fun: Callable[..., Any], leading: Sequence[Any], x: jax.Array, target: Any
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The explained value of each sample at x, and a function to that of any other input.

    ``"max"`` is the class of the unchanged input, whatever is put in later.

    Returns:
      ``(samples,)``, at least float32, and a function from arrays like x to the same.

    Raises:
      ArgumentError: the samples are not the first axis of every output, or there is no output.
      TargetError: the target does not fit the output.
    """
    value = fun(*leading, x)
    if not jax.tree.leaves(value):
        raise ArgumentError(f"{who}: the function returns no array.")
    for leaf in jax.tree.leaves(value):
        if jnp.shape(leaf)[:1] != x.shape[:1]:
            raise ArgumentError(
                f"{who}: an output has shape {jnp.shape(leaf)}, and x {x.shape}; the first "
                "axis of both should be the samples."
            )
    mask = None if _target.gives_relevance(target) else _target.seeds(target, value)

    def total(value: Any) -> jax.Array:
        kept = (
            _target.seeds(target, value)
            if mask is None
            else jax.tree.map(jnp.multiply, value, mask)
        )
        return functools.reduce(operator.add, map(_by_sample, jax.tree.leaves(kept)))

    return total(value), lambda changed: total(fun(*leading, changed))


def _by_sample(a: jax.Array) -> jax.Array:
    flat = a.reshape(a.shape[0], -1)
    return flat.astype(jnp.promote_types(a.dtype, jnp.float32)).sum(1)
