"""Normalizations: a value times, or divided by, a statistic of itself.

LayerNorm, RMSNorm, GroupNorm, InstanceNorm, l2-normalization, router weights that are divided by
their sum: none is known by name. A *statistic* went through a reduction and then through something
that is not linear, and through no layer with weights, so that neither a pooling nor a
squeeze-and-excite gate is one. For relevance it is a constant; the centering stays linear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax import lax
from jax.extend.core import primitives as p

from relax._axes import feature_axes
from relax._graph import Equation, Graph, Layer, boundary, computing
from relax._primitives import CAST, CONV, DOT, ELEMENTWISE, RESHAPING, SCALE, SHIFT
from relax._recognize.affine import Search, Step
from relax._recognize.facts import Facts
from relax._recognize.regions import REDUCTIONS, Regions, is_own_square, primitives

PLAIN, REDUCED, STATISTIC = 1, 2, 3  # how a value was made; 0: it does not depend on the input
_LINEAR = CAST | RESHAPING | SHIFT | {lax.neg_p, p.add_jaxvals_p}


@dataclasses.dataclass(frozen=True)
class NormalizationDetails:
    """What the rules need to know of a normalization.

    Attributes:
      product: index of the equation that applies the statistic, and ``position`` of that in it.
      steps: the scale and shift behind it.
    """

    product: int
    position: int
    steps: tuple[Step, ...]


def find_statistics(graph: Graph, facts: Facts) -> list[int]:
    """For each value whether it is plain, a reduction, or a statistic."""
    made = [PLAIN if tracked else 0 for tracked in facts.tracked]
    for equation in graph.equations:
        inputs = [made[v] for v in equation.inputs if facts.tracked[v]]
        if not inputs:
            continue
        for value in equation.outputs:
            if facts.tracked[value]:
                made[value] = _made(facts, equation, inputs, made)
    return made


def _made(facts: Facts, equation: Equation, inputs: Sequence[int], made: Sequence[int]) -> int:
    if equation.primitive in REDUCTIONS or is_own_square(equation):
        return max(REDUCED, *inputs)
    if equation.primitive in (DOT, CONV) or PLAIN in inputs:
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
        position = statistic_operand(equation, made)
        if position is None:
            continue
        found = regions.behind(index)
        out = equation.outputs[0]
        closed = None if found is None else regions.closed(found[1], out)
        if found is None or closed is None:
            continue
        body = _with_centering(regions, found[0], closed, out)
        claimed.update(body)
        free = feature_axes(graph.shape(out), {i: i for i in range(len(graph.shape(out)))})
        steps, end = search.chain(out, free)
        body = sorted({*body, *(step.equation for step in steps)})
        claimed.update(body)
        inputs, operands = boundary(graph, body, facts.tracked)
        details = NormalizationDetails(index, position, tuple(steps))
        name = _name(graph, facts, body, equation.inputs[1 - position])
        layers.append(Layer("normalization", name, tuple(body), inputs, operands, (end,), details))
    return layers


def statistic_operand(equation: Equation, made: Sequence[int]) -> int | None:
    """Position of the statistic in a product or quotient of a value with one."""
    if len(equation.inputs) != 2:
        return None
    first, second = (made[v] for v in equation.inputs)
    if equation.primitive is lax.div_p:
        return 1 if first == PLAIN and second >= REDUCED else None
    if STATISTIC not in (first, second) or PLAIN not in (first, second):
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
    linear = primitives(graph, found[1]) <= _LINEAR | SCALE | {lax.reduce_sum_p}
    whole = regions.closed(sorted({*found[1], *body}), end)
    return whole if linear and whole is not None else body


def _name(graph: Graph, facts: Facts, body: Sequence[int], normalized: int) -> str:
    """By what is done before the statistic is applied: centering or not."""
    for index in computing(graph, body, normalized):
        equation = graph.equations[index]
        if equation.primitive is lax.sub_p and all(facts.tracked[v] for v in equation.inputs):
            return "layer_norm"
    known = primitives(graph, body)
    return "rms_norm" if known & {lax.rsqrt_p, lax.sqrt_p} else "normalize"
