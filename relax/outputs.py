"""The function in front of its last softmax or sigmoid."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from relax import _arguments
from relax._ending import ending
from relax._errors import ArgumentError
from relax._graph import flatten, prune, replay
from relax._recognize import find_layers, gather_facts


def logits(
    fun: Callable[..., Any], *, argnums: Any = -1, has_aux: bool = False
) -> Callable[..., Any]:
    """The function without the softmax, log_softmax or sigmoid that it ends in.

    A probability depends on all classes, saturates, and is positive also where everything speaks
    against it; a logit is what the network has added up. ``relax.lrp(relax.logits(f), rules)``
    explains the logit of an unchanged model.

    Args:
      fun: any JAX function that ends in one of the three; reshapes, slices and casts may follow.
      argnums: the arguments that will be explained, as in `relax.lrp`.
      has_aux: whether ``fun`` returns ``(value, aux)``; so does the result.

    Returns:
      A function of the same arguments that returns what goes into the softmax or sigmoid, in the
      shape of the value of ``fun``. All outputs that end so are changed, the others are not: choose
      one by ``relax.logits(lambda params, x: f(params, x)["classes"])``.

    Raises:
      ArgumentError: no output ends in one of the three.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda w, x: jax.nn.softmax(x @ w)
      >>> w, x = jnp.array([[1.0, 0.0], [2.0, 1.0]]), jnp.array([1.0, 1.0])
      >>> print(relax.logits(f)(w, x), relax.lrp(relax.logits(f), target=0)(w, x).round(3))
      [3. 1.] [1. 2.]

    Source: Bach et al. 2015, section 2.1, for what is decomposed; Montavon et al. 2019, section
    10.2, for logits in the place of probabilities.
    """

    @functools.wraps(fun, updated=())
    def in_front(*args: Any, **kwargs: Any) -> Any:
        traced = _arguments.trace(fun, args, kwargs, argnums, has_aux)
        wanted = set(traced.explained)
        graph = flatten(traced.closed, [i in wanted for i in range(len(traced.leaves))])
        outputs = graph.outputs[: traced.count]
        prune(graph, outputs)
        facts = gather_facts(graph, [graph.inputs[i] for i in traced.explained], outputs)
        layers = find_layers(graph, facts)
        found = [ending(graph, layers, v) for v in outputs]
        if not any(found):
            raise ArgumentError(
                "logits: no softmax, log_softmax or sigmoid of the explained argument was found at "
                "the end of the function.\n  If its output is no probability, explain the function "
                "itself; else write it without what follows the softmax."
            )
        env = dict(zip(graph.consts, traced.closed.consts, strict=True)) | graph.literals
        env |= dict(zip(graph.inputs, map(jnp.asarray, traced.leaves), strict=True))
        ends = [v if end is None else end.logit for v, end in zip(outputs, found, strict=True)]
        values = replay(graph, range(len(graph.equations)), env, ends)
        for place, (end, v) in enumerate(zip(found, outputs, strict=True)):
            if end is not None and end.moves:
                start = {end.made: values[place].astype(graph.avals[end.made].dtype)}
                (values[place],) = replay(graph, end.moves, start, (v,))
        value = jax.tree.unflatten(traced.value_tree, values)
        return (value, fun(*args, **kwargs)[1]) if has_aux else value

    return in_front


__all__ = ["logits"]
