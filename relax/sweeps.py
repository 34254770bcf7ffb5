"""Many values of something in one program, what does not depend on them computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from relax import _jaxpr
from relax._errors import ArgumentError
from relax._numerics import at_most, is_count


def sweep(fun: Callable[..., Any], *, batch_size: int | None = None) -> Callable[..., Any]:
    """As jax.vmap over all arguments; with ``batch_size``, so many values of them at a time.

    What ``fun`` computes without them is computed once, for all values and all batches: the forward
    pass in a sweep of hyper-parameters, of targets or of masks, and the backward pass above the
    first layer that they change. Memory grows with ``batch_size``, not with the number of values;
    but with it a `lax.scan` or a checkpoint that they change anything in is run for each batch.

    Args:
      fun: a function of what is swept, such as ``lambda gamma: lrp(f, Gamma(gamma))(params, x)``;
        the rest it closes over. Any JAX function will do.
      batch_size: how many values are taken together; by default all, which is jax.vmap.

    Returns:
      A function of arrays or pytrees of arrays with one more axis in front, of the same length in
      all of them. It returns what ``fun`` returns, with that axis in front.

    Raises:
      ArgumentError: there is nothing to sweep, the lengths differ, or ``batch_size`` is no positive
        integer.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> w, x = jnp.array([[2.0], [-1.0]]), jnp.array([1.0, 1.0])
      >>> def explain(gamma):
      ...     return relax.lrp(lambda x: x @ w, relax.rules.Gamma(gamma, epsilon=0.0))(x)
      >>> print(relax.sweep(explain, batch_size=2)(jnp.array([0.0, 0.5, 1.5])))
      [[ 2.   -1.  ]
       [ 1.5  -0.5 ]
       [ 1.25 -0.25]]
    """
    if batch_size is not None and not is_count(batch_size):
        raise ArgumentError(f"sweep(batch_size={batch_size!r}): expected a positive integer.")

    @functools.wraps(fun, updated=())
    def swept(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        count = _length(leaves)
        if batch_size is None or at_most(count, batch_size):
            return jax.vmap(fun)(*args)
        structure: Any = None

        def flat(*row: Any) -> list[Any]:
            nonlocal structure
            results, structure = jax.tree.flatten(fun(*jax.tree.unflatten(tree, row)))
            return results

        rows = [
            jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, weak_type=jax.typeof(leaf).weak_type)
            for leaf in leaves
        ]
        results, rest, fixed = _jaxpr.split(flat, rows)
        moving = lax.map(rest, leaves, batch_size=batch_size)
        each = iter(moving)
        whole = [
            jnp.broadcast_to(result, (count, *jnp.shape(result))) if stays else next(each)
            for result, stays in zip(results, fixed, strict=True)
        ]
        return jax.tree.unflatten(structure, whole)

    return swept


def _length(leaves: list[jax.Array]) -> int:
    """How many values there are.

    Raises:
      ArgumentError: none, or not the same number of each.
    """
    shapes = ", ".join(str(leaf.shape) for leaf in leaves)
    lengths = {leaf.shape[:1] for leaf in leaves}
    if len(lengths) != 1 or () in lengths:
        raise ArgumentError(
            "sweep: expected arrays with the same axis in front, got "
            f"{f'shapes {shapes}' if leaves else 'no arrays'}."
        )
    ((count,),) = lengths
    if count == 0:
        raise ArgumentError(f"sweep: there is no value to sweep over (shapes {shapes}).")
    return count
