"""Softmax and its relatives, however they are written: exp, a sum of it, and what that normalizes.

The region reaches from the logits to the first value that holds all of it: a softmax, a
log_softmax or a logsumexp. Masks and scales in front belong to it, so that minus infinity meets no
other rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jax import lax

from relax._graph import Graph, Layer, boundary
from relax._primitives import CAST, DOT, ELEMENTWISE, RESHAPING, SCALE, SHIFT
from relax._recognize.facts import Facts
from relax._recognize.regions import Regions, primitives

_EXP = frozenset({lax.exp_p, lax.exp2_p})
_SUMS = frozenset({lax.reduce_sum_p})
_AFTER = ELEMENTWISE | RESHAPING
_FARTHEST = 24  # equations between a sum and the end of its softmax


@dataclasses.dataclass(frozen=True)
class SoftmaxDetails:
    """What the rules need to know of a softmax.

    Attributes:
      weighs: it is a factor of a product, as the weights of an attention are.
    """

    weighs: bool = False


def find_softmax(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]
) -> list[Layer]:
    """Every softmax, log_softmax and logsumexp."""
    regions = Regions(graph, facts, consumers, claimed)
    layers = []
    for index, equation in enumerate(graph.equations):
        if index in claimed or equation.primitive not in _SUMS:
            continue
        if not facts.tracked[equation.outputs[0]] or not _sums_exp(regions, index):
            continue
        found = _smallest(regions, index)
        if found is None:
            continue
        root, body, end = found
        root, body = _with_masks(regions, root, body, end)
        inputs, operands = boundary(graph, body, facts.tracked)
        if inputs != (root,):
            continue
        claimed.update(body)
        layers.append(
            Layer(
                "softmax",
                _name(graph, body, end),
                tuple(body),
                inputs,
                operands,
                (end,),
                SoftmaxDetails(),
            )
        )
    return layers


def _sums_exp(regions: Regions, index: int) -> bool:
    """Whether an exponential reaches a sum through masks, casts and moves."""
    graph = regions.graph
    value = graph.equations[index].inputs[0]
    for _ in range(_FARTHEST):
        before = regions.producer.get(value)
        if before is None or before in regions.claimed:
            return False
        equation = graph.equations[before]
        if _exponentials(regions, [before]):
            return True
        moving = regions.tracked_inputs(before)
        if len(moving) != 1 or equation.primitive not in _AFTER:
            return False
        value = moving[0]
    return False


def _smallest(regions: Regions, index: int) -> tuple[int, list[int], int] | None:
    """The first closed region that holds a sum of exponentials and what it normalizes.

    A logsumexp whose logits are read again, to subtract it, goes on to that log_softmax.
    """
    best = None
    for end in _readers(regions, index):
        equation = regions.graph.equations[end]
        if best is not None and equation.primitive not in SHIFT:
            continue
        found = _down_to_exp(regions, end)
        if found is None or index not in found[1]:
            continue
        body = regions.closed(found[1], equation.outputs[0])
        if body is None or not _is_whole(regions, body, equation.outputs[0]):
            continue
        if best is not None and not set(best[1]) <= set(body):
            continue
        best = found[0], body, equation.outputs[0]
        if equation.primitive not in (lax.log_p, lax.add_p):
            break
    return None if best is None else _extended(regions, *best)


def _exponentials(regions: Regions, body: Sequence[int]) -> list[int]:
    """Those equations that are ``exp(z)``, ``2 ** z`` or any other power of a constant."""
    tracked = regions.facts.tracked
    found = []
    for index in body:
        equation = regions.graph.equations[index]
        power = equation.primitive is lax.pow_p and not tracked[equation.inputs[0]]
        if equation.primitive in _EXP or (power and tracked[equation.inputs[1]]):
            found.append(index)
    return found


def _is_whole(regions: Regions, body: Sequence[int], end: int) -> bool:
    """Whether a region normalizes its exponentials, and multiplies by nothing but their sum."""
    graph = regions.graph
    normalizes = False
    for index in body:
        moving = regions.tracked_inputs(index)
        if graph.equations[index].primitive in (lax.mul_p, lax.div_p) and len(moving) == 2:
            if not any(_is_sum(regions, v, body) for v in moving):
                return False
            normalizes = True
    if lax.log_p in primitives(graph, body):
        return True
    (first, *_) = _exponentials(regions, body)
    return normalizes and graph.shape(end) == graph.shape(graph.equations[first].outputs[0])


def _is_sum(regions: Regions, value: int, body: Sequence[int]) -> bool:
    """Whether a value of a region is a sum, up to what is done to it elementwise."""
    while (index := regions.producer.get(value)) is not None and index in body:
        if regions.graph.equations[index].primitive in _SUMS:
            return True
        moving = regions.tracked_inputs(index)
        if len(moving) != 1:
            return False
        (value,) = moving
    return False


def _down_to_exp(regions: Regions, end: int) -> tuple[int, list[int]] | None:
    """The region behind an equation, down to the exponential."""
    found = regions.behind(end)
    body: set[int] = set()
    while found is not None:
        root, more = found
        body.update(more)
        if _exponentials(regions, more):
            return root, sorted(body)
        if not regions.is_inner(root):
            return None
        found = regions.behind(regions.producer[root])
    return None


def _readers(regions: Regions, index: int) -> Iterator[int]:
    """Equations computed from a sum, in order."""
    reached = {regions.graph.equations[index].outputs[0]}
    for later in range(index + 1, min(index + 1 + 4 * _FARTHEST, len(regions.graph.equations))):
        equation = regions.graph.equations[later]
        if later in regions.claimed or reached.isdisjoint(equation.inputs):
            continue
        if equation.primitive not in _AFTER:
            continue
        reached.update(equation.outputs)
        yield later


def _extended(regions: Regions, root: int, body: list[int], end: int) -> tuple[int, list[int], int]:
    """``exp(log_softmax(x))`` is a softmax, and logsumexp adds what it subtracted."""
    graph, facts = regions.graph, regions.facts
    while (reader := regions.sole_reader(end)) is not None:
        equation = graph.equations[reader]
        adds = equation.primitive is lax.add_p and any(
            graph.depends[v] and not facts.tracked[v] for v in equation.inputs
        )
        powers = equation.primitive in _EXP and graph.shape(end) == graph.shape(root)
        if not (adds or powers) or lax.log_p not in primitives(graph, body):
            break
        body, end = [*body, reader], equation.outputs[0]
    return root, body, end


def _with_masks(regions: Regions, root: int, body: list[int], end: int) -> tuple[int, list[int]]:
    """The maximum that is subtracted, scales, casts and masks, in front of the exponential."""
    graph = regions.graph
    while regions.is_inner(root):
        before = regions.producer[root]
        found = regions.behind(before)
        if found is None or graph.shape(found[0]) != graph.shape(root):
            break
        start, more = found
        if not (_subtracts_maximum(regions, before) or _masks(regions, before, start)):
            break
        whole = regions.closed(sorted({*more, *body}), end)
        if whole is None:
            break
        root, body = start, whole
    return root, body


def _subtracts_maximum(regions: Regions, index: int) -> bool:
    """A difference from something that is computed from the same logits."""
    equation = regions.graph.equations[index]
    return equation.primitive is lax.sub_p and regions.graph.depends[equation.inputs[1]]


def _masks(regions: Regions, index: int, value: int) -> bool:
    """A scale by a literal, a cast, or a mask.

    That is a select, or the sum with what is never positive; with anything, where the logits are
    products of queries and keys, which have no bias: a mask that is handed in, position terms.
    """
    graph, facts = regions.graph, regions.facts
    equation = graph.equations[index]
    if equation.inputs.count(value) != 1:
        return False
    others = [v for v in equation.inputs if v != value]
    if any(facts.tracked[v] for v in others):
        return False
    if equation.primitive is lax.select_n_p:
        return equation.inputs[0] != value
    if equation.primitive is lax.add_p:
        return facts.interval[others[0]][1] <= 0 or _is_of_product(regions, value)
    if equation.primitive in SCALE:
        divides = equation.primitive is lax.div_p and equation.inputs[0] != value
        return not divides and all(facts.constant[v] for v in others)
    return equation.primitive in CAST


def _is_of_product(regions: Regions, value: int) -> bool:
    """Whether logits are a product of two values, scaled and moved at most."""
    while (index := regions.producer.get(value)) is not None:
        equation = regions.graph.equations[index]
        moving = regions.tracked_inputs(index)
        if equation.primitive is DOT:
            return len(moving) == 2
        if len(moving) != 1 or equation.primitive not in SCALE | SHIFT | RESHAPING:
            return False
        value = moving[0]
    return False


def _name(graph: Graph, body: list[int], end: int) -> str:
    known = primitives(graph, body)
    last = graph.equations[body[-1]].primitive
    if lax.log_p not in known or last in _EXP:
        return "softmax"
    first = graph.equations[body[0]]
    same = any(graph.shape(v) == graph.shape(end) for v in first.inputs)
    return "log_softmax" if same else "logsumexp"
