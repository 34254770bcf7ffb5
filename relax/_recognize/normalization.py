"""Normalizations: a value times, or divided by, a statistic of itself.

LayerNorm, RMSNorm, GroupNorm, InstanceNorm, l2-normalization, router weights that are divided by
their sum: none is known by name. A *statistic* went through a reduction and then through something
that is not linear, and through no layer with weights, so that neither a pooling nor a
squeeze-and-excite gate is one. For relevance it is a constant; the centering stays linear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from jax import lax
from jax.extend.core import primitives as p

from relax._axes import feature_axes
from relax._graph import Equation, Graph, Layer, boundary, computing
from relax._numerics import at_most
from relax._primitives import CAST, DEVICE_SUMS, ELEMENTWISE, RESHAPING, SCALE, SHIFT, is_core
from relax._recognize.affine import Search
from relax._recognize.facts import Facts
from relax._recognize.regions import (
    REDUCTIONS,
    Regions,
    extent,
    is_own_square,
    is_sum,
    primitives,
)

PLAIN, REDUCED, STATISTIC = 1, 2, 3  # how a value was made; 0: it does not depend on the input
_LINEAR = CAST | RESHAPING | SHIFT | {lax.neg_p, p.add_jaxvals_p}


@dataclasses.dataclass(frozen=True)
class NormalizationDetails:
    """What the rules need to know of a normalization.

    Attributes:
      held: where a statistic is applied: pairs (index of the equation, position of the operand).
    """

    held: tuple[tuple[int, int], ...]


def find_statistics(graph: Graph, facts: Facts, plain: Collection[int]) -> list[int]:
    """For each value whether it is plain, a reduction, or a statistic.

    ``plain``: values that are so however they are made: what comes out of a softmax.
    """
    made = [PLAIN if tracked else 0 for tracked in facts.tracked]
    for equation in graph.equations:
        inputs = [made[v] for v in equation.inputs if facts.tracked[v]]
        if not inputs:
            continue
        for value in equation.outputs:
            if facts.tracked[value] and value not in plain:
                made[value] = _made(facts, equation, inputs)
    return made


def _made(facts: Facts, equation: Equation, inputs: Sequence[int]) -> int:
    """How a result is made, from how its operands that carry relevance are."""
    reduces = equation.primitive in REDUCTIONS or is_own_square(equation)
    if reduces or is_sum(facts, equation):
        return max(REDUCED, *inputs)
    if is_core(equation.primitive) or PLAIN in inputs:
        return PLAIN
    if equation.primitive not in ELEMENTWISE | _LINEAR:
        return max(inputs)
    scales = equation.primitive in SCALE and len(inputs) == 1
    divides = equation.primitive is lax.div_p and facts.tracked[equation.inputs[1]]
    if equation.primitive in _LINEAR or (scales and not divides):
        return max(inputs)
    return STATISTIC


def find_normalizations(
    graph: Graph,
    facts: Facts,
    consumers: list[list[int]],
    claimed: set[int],
    made: Sequence[int],
) -> list[Layer]:
    """Every normalization, with the scale and shift behind it."""
    regions = Regions(graph, facts, consumers, claimed)
    search = Search(graph, facts, consumers, claimed)
    layers = []
    for index, equation in enumerate(graph.equations):
        if index in claimed or equation.primitive not in (lax.mul_p, lax.div_p):
            continue
        if statistic_operand(regions, equation, made) is None:
            continue
        found = _region(regions, index, made) or _region_of_sum(regions, index, made)
        if found is None:
            continue
        body, out, held = found
        claimed.update(body)
        free = feature_axes(graph.shape(out), {i: i for i in range(len(graph.shape(out)))})
        steps, end = search.chain(out, free)
        body = sorted({*body, *(step.equation for step in steps)})
        claimed.update(body)
        inputs, operands = boundary(graph, body, facts.tracked)
        name = _name(graph, facts, body, held)
        details = NormalizationDetails(held)
        layers.append(Layer("normalization", name, tuple(body), inputs, operands, (end,), details))
    return layers


_Region = tuple[list[int], int, tuple[tuple[int, int], ...]]


def _region(regions: Regions, end: int, made: Sequence[int]) -> _Region | None:
    """The closed region that ends in an equation, the value it ends in, and where it is held."""
    found = regions.behind(end)
    if found is None:
        return None
    graph = regions.graph
    out = graph.equations[end].outputs[0]
    body = regions.closed(found[1], out)
    if body is None:
        return None
    body = _with_centering(regions, found[0], body, out)
    held = tuple(
        (i, position)
        for i in body
        if (position := statistic_operand(regions, graph.equations[i], made)) is not None
    )
    statistics = [graph.equations[i].inputs[position] for i, position in held]
    steps = computing(graph, body, out, statistics)
    linear = all(_is_linear(regions, i, dict(held)) for i in steps)
    return (body, out, held) if linear else None


def _is_linear(regions: Regions, index: int, held: Mapping[int, int]) -> bool:
    """Whether a step is linear in what is normalized, its statistic held."""
    equation = regions.graph.equations[index]
    moving = regions.tracked_inputs(index)
    sums = equation.primitive is lax.reduce_sum_p or equation.primitive in DEVICE_SUMS
    if not moving or index in held or sums or equation.primitive in _LINEAR:
        return True
    if equation.primitive is lax.select_n_p:
        return _is_mask(regions, equation)
    divides = equation.primitive is lax.div_p and regions.facts.tracked[equation.inputs[1]]
    return equation.primitive in SCALE and len(moving) == 1 and not divides


def _is_mask(regions: Regions, equation: Equation) -> bool:
    """A select between values and zeros, as in a mean over some of the elements."""
    which, *cases = equation.inputs
    facts, chosen = regions.facts, regions.graph.depends[which]  # by the input itself
    zeros = all(facts.tracked[v] or facts.interval[v] == (0, 0) for v in cases)
    return equation.primitive is lax.select_n_p and zeros and not chosen


def _region_of_sum(regions: Regions, index: int, made: Sequence[int]) -> _Region | None:
    """The same for ``x s + (b - m s)``, where the statistic s is applied twice."""
    reader: int | None = index
    while reader is not None:
        reader = regions.sole_reader(regions.graph.equations[reader].outputs[0])
        if reader is not None and len(regions.tracked_inputs(reader)) == 2:
            joins = regions.graph.equations[reader].primitive in SHIFT
            return _region(regions, reader, made) if joins else None
    return None


def statistic_operand(regions: Regions, equation: Equation, made: Sequence[int]) -> int | None:
    """Position of the statistic in a product or quotient of a value with one.

    What was pooled before can be normalized as well, so the value may itself be a reduction. If
    both could be the statistic it is the one of fewer elements, which are repeated.
    """
    if equation.primitive not in (lax.mul_p, lax.div_p):
        return None
    first, second = (made[v] for v in equation.inputs)
    if not first or not second:
        return None
    sizes = [extent(regions.graph, regions.facts, regions.producer, v) for v in equation.inputs]
    if equation.primitive is lax.div_p:
        below = first < STATISTIC or not at_most(sizes[0], sizes[1])
        return 1 if second >= REDUCED and below else None
    if first == second == STATISTIC:
        return None if sizes[0] == sizes[1] else int(at_most(sizes[1], sizes[0]))
    if STATISTIC not in (first, second):
        return None
    return 0 if first == STATISTIC else 1


def _with_centering(regions: Regions, root: int, body: list[int], end: int) -> list[int]:
    """The difference from the mean that only the normalization reads."""
    graph = regions.graph
    if not regions.is_inner(root):
        return body
    before = regions.producer[root]
    found = regions.behind(before)
    if graph.equations[before].primitive is not lax.sub_p or found is None or len(found[1]) == 1:
        return body
    steps = [i for i in found[1] if not _is_mask(regions, graph.equations[i])]
    known = {a for a in primitives(graph, steps) if a not in DEVICE_SUMS}
    linear = known <= _LINEAR | SCALE | {lax.reduce_sum_p}
    whole = regions.closed(sorted({*found[1], *body}), end)
    return whole if linear and whole is not None else body


def _name(graph: Graph, facts: Facts, body: Sequence[int], held: Sequence[tuple[int, int]]) -> str:
    """By what is done beside the statistic: centering or not."""
    known = primitives(graph, body)
    if len(held) > 1:
        return "layer_norm"
    ((product, position),) = held
    for index in computing(graph, body, graph.equations[product].inputs[1 - position]):
        equation = graph.equations[index]
        if equation.primitive is lax.sub_p and all(facts.tracked[v] for v in equation.inputs):
            return "layer_norm"
    return "rms_norm" if known & {lax.rsqrt_p, lax.sqrt_p} else "normalize"
