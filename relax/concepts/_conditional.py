"""Concept relevance: as `lrp`, but through one concept of a layer at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax import _target
from relax._program import Program
from relax._run import Run
from relax.concepts._places import flat_concepts, the_place
from relax.rules import Epsilon
from relax.sweeps import sweep


def crp(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),
    *,
    at: Any,
    concepts: Any = None,
    axis: int | Sequence[int] = -1,
    batch_size: int | None = None,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""As `lrp`, but through each concept of a layer alone: concept relevance propagation.

    $$R^{(c)} = \text{relevance of the input from}\ m_c \odot R_y\ \text{at the layer's output y}$$

    A concept is an entry of the axis ``axis`` of the layer's output, such as a channel. All of them
    add up to the relevance that passes the layer; what goes round it, by a residual connection, is
    in none. The forward pass and the backward pass above the layer are computed once.

    Args:
      fun, rules, argnums, target, has_aux: as in `lrp`.
      at: a glob, or a predicate of `relax.select`, of one layer; or the name of a value that
        ``checkpoint_name`` gave it.
      concepts: which, as integers ``(K,)``; rows of integers if there are several axes; all by
        default.
      axis: of the layer's output, or several. The rounds of a scan around the layer are one more,
        in front.
      batch_size: how many concepts are taken at a time, which bounds the memory; all by default.

    Returns:
      A function of the arguments of ``fun`` that returns relevance with an axis of K concepts in
      front; if they are all, with one axis for each of theirs.

    Raises:
      UnmatchedSelectorError: ``at`` names nothing.
      ArgumentError: it names several layers; there is no such axis or concept.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["head"]
      >>> p = {"hidden": jnp.array([[1.0, 2.0], [1.0, 0.0]]), "head": jnp.array([[1.0], [3.0]])}
      >>> print(relax.crp(f, relax.rules.Epsilon(0.0), at="hidden")(p, jnp.array([1.0, 4.0])))
      [[1. 4.]
       [6. 0.]]

    Source: Achtibat et al. 2023, eq. (3).
    """

    @functools.wraps(fun, updated=())
    def explained(*args: Any, **kwargs: Any) -> Any:
        given = _target.gives_relevance(target)
        program = Program(fun, rules, argnums, at, has_aux, args, kwargs, given)
        place = the_place(program, at, axis)
        chosen = jnp.arange(place.count) if concepts is None else flat_concepts(place, concepts)
        run = Run(program, restarts=True)
        run.relprop(_target.seeds(target, run.value))
        through = lambda concept: run.onward(place.path, place.mask(concept))[0]
        relevance = sweep(through, batch_size=batch_size)(chosen)
        if concepts is None:
            relevance = jax.tree.map(lambda r: r.reshape(*place.sizes, *r.shape[1:]), relevance)
        return (relevance, run.aux) if has_aux else relevance

    return explained
