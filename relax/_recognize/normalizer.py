"""Exponentials that are divided by their sum further on, as in ``(exp(z) @ v) / exp(z).sum()``.

Whether that is a softmax is a matter of everything made of them: it must be linear in them, and be
divided once, along the axes that the sum has kept. What only looks so is told to the user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jax import lax
from jax.extend.core.primitives import add_jaxvals_p

from relax._graph import Equation, Graph
from relax._primitives import (
    DOT,
    ELEMENTWISE,
    RESHAPING,
    SCALE,
    SHIFT,
    followed_axes,
)
from relax._recognize.affine import core_axes
from relax._recognize.regions import SEGMENTS, Regions, is_sum

_MAXIMA = frozenset({lax.reduce_max_p, lax.scatter_max_p, lax.cummax_p, lax.top_k_p})
_AFTER = ELEMENTWISE | RESHAPING | SEGMENTS
_FARTHEST = 24  # equations between a maximum and what it is subtracted from
_Places = tuple[int | None, ...]


def guarded(regions: Regions, total: int, normalizer: list[int]) -> int:
    """What a sum becomes by scales, casts and guards against zero; extends ``normalizer``."""
    graph, facts = regions.graph, regions.facts
    while True:
        readers = dict.fromkeys(regions.consumers[total])
        carrying = [i for i in readers if i < 0 or facts.tracked[graph.equations[i].outputs[0]]]
        if len(carrying) != 1 or carrying[0] < 0 or carrying[0] in regions.claimed:
            return total
        (reader,) = carrying
        equation = graph.equations[reader]
        if len(equation.outputs) != 1:
            return total
        (out,) = equation.outputs
        divided = equation.primitive is lax.div_p and equation.inputs[0] != total
        changes = equation.primitive in SCALE | SHIFT | {lax.max_p, lax.select_n_p} and not divided
        moves = equation.primitive in RESHAPING and len(equation.inputs) == 1
        same = math.prod(graph.shape(total)) == math.prod(graph.shape(out))
        if regions.tracked_inputs(reader) != [total] or not (same and (changes or moves)):
            return total
        tests = [i for i in readers if i != reader]
        if any(graph.equations[i].outputs[0] not in equation.inputs for i in tests):
            return total
        normalizer += [*tests, reader]
        total = out


def divides_all(regions: Regions, end: int, normalizer: set[int], total: int) -> bool:
    """Whether all that is made of exponentials, linearly, is divided by their sum, once."""
    graph, facts = regions.graph, regions.facts
    own = tuple(range(len(graph.shape(end))))
    axes: dict[int, _Places] = {end: own}  # where those of the exponentials stand
    waiting, sums, inverse = {end}, {total}, set()
    used = False
    for index in range(regions.producer[end] + 1, len(graph.equations)):
        equation = graph.equations[index]
        moving = [v for v in equation.inputs if facts.tracked[v]]
        of_end = [v for v in moving if v in waiting]
        of_sum = [v for v in moving if v in sums or v in inverse]
        if index in normalizer or not (of_end or of_sum):
            _follow(graph, equation, axes)
            continue
        if index in regions.claimed or len(equation.outputs) != 1:
            return False
        (out,) = equation.outputs
        moves = equation.primitive in RESHAPING | {lax.gather_p} and len(moving) == 1
        if of_sum and not of_end:
            if moves:
                (sums if moving[0] in sums else inverse).add(out)
            elif _inverts(equation, moving):
                inverse.add(out)
            else:
                return False
        elif of_sum:
            divides = equation.primitive is lax.div_p and equation.inputs[1] in sums
            weighs = equation.primitive is lax.mul_p and any(v in inverse for v in equation.inputs)
            if not (divides or weighs) or not _aligned(axes.get(of_end[0]), axes.get(of_sum[0])):
                return False
            used = True
        elif not (moves or _keeps_linear(regions, equation, moving, of_end)):
            return False
        else:
            waiting.add(out)
        _follow(graph, equation, axes)
    return used and waiting.isdisjoint(graph.outputs) and sums.isdisjoint(graph.outputs)


def _aligned(numerator: _Places | None, sums: _Places | None) -> bool:
    """Whether what is divided stands along the axes that its sum has kept; None: by segments."""
    if numerator is None or sums is None:
        return True
    return all(b is None or a == b for a, b in zip(numerator, sums, strict=True))


def _follow(graph: Graph, equation: Equation, axes: dict[int, _Places]) -> None:
    """Where the axes of exponentials stand in a result: for each of its axes which, or none."""
    known = [v for v in equation.inputs if v in axes]
    if not known or len(equation.outputs) != 1:
        return
    (value, *_), (out,) = known, equation.outputs
    own, shape = axes[value], graph.shape(out)
    places: dict[int, int] | None = None  # axis of the result to axis of the operand
    if equation.primitive is DOT:
        ndims = [len(graph.shape(v)) for v in equation.inputs]
        places, *_ = core_axes(equation, 1 - equation.inputs.index(value), ndims)
    elif equation.primitive is lax.reduce_sum_p:
        kept = [i for i in range(len(own)) if i not in equation.params["axes"]]
        places = dict(enumerate(kept))
    elif equation.primitive is lax.broadcast_in_dim_p:
        places = {axis: i for i, axis in enumerate(equation.params["broadcast_dimensions"])}
    elif equation.primitive in RESHAPING:
        places = followed_axes(equation.primitive, equation.params, graph.shape(value), shape)
    elif equation.primitive in ELEMENTWISE:
        places = {i: i for i in range(len(shape))}
    if places is not None:
        axes[out] = tuple(own[places[i]] if i in places else None for i in range(len(shape)))


def _inverts(equation: Equation, moving: Sequence[int]) -> bool:
    """``1 / s``."""
    if equation.primitive is lax.div_p:
        return len(moving) == 1 and moving[0] == equation.inputs[1]
    return equation.primitive is lax.integer_pow_p and equation.params["y"] == -1


def _keeps_linear(
    regions: Regions, equation: Equation, moving: Sequence[int], of_end: Sequence[int]
) -> bool:
    """Whether a result is linear in exponentials: no square of them, and nothing added."""
    primitive = equation.primitive
    if primitive in SHIFT | {add_jaxvals_p}:
        return len(of_end) == 2
    if len(of_end) != 1:
        return False
    if primitive in (lax.mul_p, DOT):
        return True
    if primitive in (lax.neg_p, lax.squeeze_p, lax.slice_p, lax.reduce_sum_p):
        return True
    if primitive is lax.div_p:
        return of_end[0] == equation.inputs[0] and len(moving) == 1
    return is_sum(regions.facts, equation)


def is_shifted(regions: Regions, index: int) -> bool:
    """Whether a maximum was subtracted from the logits of an exponential."""
    graph = regions.graph
    for _ in range(_FARTHEST):
        if subtracts_maximum(regions, index):
            subtracted = regions.producer.get(graph.equations[index].inputs[1])
            return subtracted is not None and _is_maximum(regions, subtracted)
        moving = regions.tracked_inputs(index)
        before = regions.producer.get(moving[0]) if len(moving) == 1 else None
        if before is None or graph.equations[before].primitive not in _AFTER:
            return False
        index = before
    return False


def _is_maximum(regions: Regions, index: int) -> bool:
    """Whether a value is a maximum, seen through moves, guards and stop_gradient."""
    waiting, graph = [index], regions.graph
    for _ in range(_FARTHEST):
        if not waiting:
            return False
        equation = graph.equations[waiting.pop()]
        if equation.primitive in _MAXIMA:
            return True
        if equation.primitive in _AFTER | {lax.stop_gradient_p}:
            before = (regions.producer.get(v) for v in equation.inputs)
            waiting += [i for i in before if i is not None]
    return False


def divides_any(regions: Regions, path: Sequence[int]) -> bool:
    """Whether what is made of exponentials is divided by their sum somewhere."""
    graph = regions.graph
    exponentials = {graph.equations[i].outputs[0] for i in path[:-1]}
    sums = {graph.equations[path[-1]].outputs[0]}
    for index in range(path[0] + 1, len(graph.equations)):
        equation = graph.equations[index]
        if index in path:
            continue
        if equation.primitive is lax.div_p and equation.inputs[1] in sums:
            if equation.inputs[0] in exponentials:
                return True
        elif not sums.isdisjoint(equation.inputs):
            if equation.primitive in _AFTER:
                sums.update(equation.outputs)
        elif not exponentials.isdisjoint(equation.inputs):
            exponentials.update(equation.outputs)
    return False


def subtracts_maximum(regions: Regions, index: int) -> bool:
    """A difference from something that is computed from the same logits."""
    equation = regions.graph.equations[index]
    return equation.primitive is lax.sub_p and regions.graph.depends[equation.inputs[1]]
