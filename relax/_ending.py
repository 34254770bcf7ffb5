"""What a function ends in: a softmax or a sigmoid, behind which a logit is a probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax import lax

from relax._graph import Graph, Layer
from relax._numerics import numpy_scalar

# What may follow it without changing what it is.
_MOVES = frozenset(
    {
        lax.broadcast_in_dim_p,
        lax.convert_element_type_p,
        lax.reshape_p,
        lax.rev_p,
        lax.slice_p,
        lax.squeeze_p,
        lax.transpose_p,
    }
)


class Ending(NamedTuple):
    """What makes an output a probability, or the logarithm of one.

    Attributes:
      name: softmax, log_softmax or sigmoid.
      logit: the value that goes into it; ``made``: what comes out.
      moves: equations between that and the output, in order.
      constant: it is a softmax over one entry, which is 1 whatever comes in.
      where, path: the user's line, and the layer.
    """

    name: str
    logit: int
    made: int
    moves: tuple[int, ...]
    constant: bool
    where: str
    path: str


def ending(graph: Graph, layers: Sequence[Layer], output: int) -> Ending | None:
    """What an output ends in, if that is one of the three."""
    made_by = {v: i for i, equation in enumerate(graph.equations) for v in equation.outputs}
    closing = {v: layer for layer in layers for v in layer.outputs}
    moves: list[int] = []
    while output in made_by:
        equation = graph.equations[made_by[output]]
        layer, after = closing.get(output), tuple(reversed(moves))
        logit = _of_sigmoid(graph, made_by, output)
        if logit is not None:
            path = layer.label if layer is not None else equation.scope
            return Ending("sigmoid", logit, output, after, False, equation.where, path)
        if layer is not None and layer.kind == "softmax":
            return _of_softmax(graph, made_by, layer, after)
        if equation.primitive not in _MOVES:
            return None
        moves.append(made_by[output])
        output = equation.inputs[0]
    return None


def _of_softmax(
    graph: Graph, made_by: dict[int, int], layer: Layer, moves: tuple[int, ...]
) -> Ending | None:
    made = layer.outputs[0]
    if not layer.details.is_plain or graph.shape(layer.inputs[0]) != graph.shape(made):
        return None  # such as a logsumexp
    own = [graph.equations[i] for i in layer.equations]
    axes = {axis for e in own if e.primitive is lax.reduce_sum_p for axis in e.params["axes"]}
    # A scale in front is part of the layer: the logits are what is exponentiated, unshifted.
    read = [e.inputs[0] for e in own if e.primitive is lax.exp_p]
    if not read or not axes:
        return None
    logit = read[0]
    shift = graph.equations[made_by[logit]] if logit in made_by else None
    if shift is not None and shift.primitive is lax.sub_p:
        value, subtracted = shift.inputs
        logit = value if _is_maximum(graph, made_by, subtracted) else logit
    if graph.shape(logit) != graph.shape(made):
        return None
    constant = math.prod(graph.shape(made)[axis] for axis in axes) == 1
    return Ending(layer.name, logit, made, moves, constant, layer.where, layer.label)


def _is_maximum(graph: Graph, made_by: dict[int, int], value: int, depth: int = 8) -> bool:
    """Whether a maximum is taken a few equations further up, as under its guards and casts."""
    if value not in made_by or depth == 0:
        return False
    equation = graph.equations[made_by[value]]
    if equation.primitive is lax.reduce_max_p:
        return True
    return any(_is_maximum(graph, made_by, v, depth - 1) for v in equation.inputs)


def _of_sigmoid(graph: Graph, made_by: dict[int, int], value: int) -> int | None:
    """The argument of a sigmoid, also of one that is written out: ``1 / (1 + exp(-x))``."""

    def operand(value: int, primitive: Any, one: int | None = None) -> int | None:
        """The operand of an equation; the other, in the place ``one`` (-1: either), is a 1."""
        equation = graph.equations[made_by[value]] if value in made_by else None
        if equation is None or equation.primitive is not primitive:
            return None
        if one is None:
            return equation.inputs[0]
        places = (0, 1) if one < 0 else (one,)
        ones = [i for i in places if _is_one(graph, made_by, equation.inputs[i])]
        return equation.inputs[1 - ones[0]] if ones else None

    if (found := operand(value, lax.logistic_p)) is not None:
        return found
    steps = ((lax.div_p, 0), (lax.add_p, -1), (lax.exp_p, None), (lax.neg_p, None))
    current: int | None = value
    for primitive, one in steps:
        current = None if current is None else operand(current, primitive, one)
    return current


def _is_one(graph: Graph, made_by: dict[int, int], value: int) -> bool:
    while value in made_by and graph.equations[made_by[value]].primitive in _MOVES:
        value = graph.equations[made_by[value]].inputs[0]
    return numpy_scalar(graph.literals.get(value)) == 1
