"""Controls: what any explanation should do better than."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from relax.methods._problem import Problem, method

_Argnums = int | Sequence[int]


def random(
    fun: Callable[..., Any],
    *,
    key: jax.Array,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Standard normal numbers in the shape of the input: the control of every comparison.

    Args:
      fun, argnums, has_aux: as in `relax.lrp`; ``target`` is taken, and changes nothing.
      key: of jax.random.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> relax.methods.random(jnp.sum, key=jax.random.key(0))(jnp.ones((2, 3))).shape
      (2, 3)

    Source: iNNvestigate's random.
    """

    def explain(problem: Problem) -> Any:
        leaves, tree = jax.tree.flatten(problem.x)
        keys = jax.random.split(key, max(len(leaves), 1))
        pairs = zip(keys, leaves, strict=False)
        return jax.tree.unflatten(tree, [jax.random.normal(k, a.shape, a.dtype) for k, a in pairs])

    return method(fun, argnums, target, has_aux, explain)


def input(
    fun: Callable[..., Any], *, argnums: _Argnums = -1, target: Any = None, has_aux: bool = False
) -> Callable[..., Any]:
    """The input itself: what a picture shows of the input alone is no explanation.

    Args:
      fun, argnums, has_aux: as in `relax.lrp`; ``target`` is taken, and changes nothing.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> print(relax.methods.input(jnp.sum)(jnp.array([1.0, 2.0])))
      [1. 2.]

    Source: iNNvestigate's input.
    """
    return method(fun, argnums, target, has_aux, lambda problem: problem.x)


__all__ = ["input", "random"]
