"""Regions: what lies between one value and another that is computed from it alone."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax import lax

from relax._graph import Equation, Graph
from relax._numerics import at_most
from relax._primitives import DEVICE_SUMS, DOT, ELEMENTWISE, RESHAPING
from relax._recognize.facts import Facts

REDUCTIONS = frozenset(
    {
        lax.reduce_sum_p,
        lax.reduce_max_p,
        lax.reduce_min_p,
        lax.reduce_window_sum_p,
        lax.reduce_window_max_p,
    }
)
# By segments: what a graph network normalizes over, the nodes that share an index.
SEGMENTS = frozenset({lax.gather_p, lax.scatter_add_p, lax.scatter_max_p, lax.scatter_min_p})
_ALLOWED = (
    ELEMENTWISE
    | RESHAPING
    | REDUCTIONS
    | SEGMENTS
    | DEVICE_SUMS
    | {lax.concatenate_p, lax.slice_p, lax.pad_p, lax.split_p, lax.rev_p, lax.stop_gradient_p}
)


def is_own_square(equation: Equation) -> bool:
    """A sum of squares written as the product of a value with itself."""
    return equation.primitive is DOT and equation.inputs[0] == equation.inputs[1]


def is_sum(facts: Facts, equation: Equation) -> bool:
    """A sum over axes or devices, by segments, or written as the product with ones."""
    if equation.primitive is DOT:
        moving = [facts.tracked[v] for v in equation.inputs]
        others = [v for v, moves in zip(equation.inputs, moving, strict=True) if not moves]
        ones = [facts.constant[v] and facts.number(v) == 1 for v in others]
        return len(others) == 1 and all(ones)
    if equation.primitive is lax.scatter_add_p:  # onto nothing
        return not facts.tracked[equation.inputs[0]] and facts.interval[equation.inputs[0]] == (
            0,
            0,
        )
    return equation.primitive is lax.reduce_sum_p or equation.primitive in DEVICE_SUMS


class Regions:
    """Finds the region behind an equation, and whether it is closed."""

    def __init__(self, graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]):
        self.graph, self.facts, self.consumers, self.claimed = graph, facts, consumers, claimed
        self.producer = graph.producers()

    def tracked_inputs(self, index: int) -> list[int]:
        """The distinct operands that carry relevance."""
        inputs = self.graph.equations[index].inputs
        return [v for v in dict.fromkeys(inputs) if self.facts.tracked[v]]

    def is_inner(self, value: int) -> bool:
        """Whether the equation that makes a value may stand inside a region."""
        index = self.producer.get(value)
        if index is None or index in self.claimed:
            return False
        equation = self.graph.equations[index]
        stays = equation.primitive in _ALLOWED or is_own_square(equation)
        return stays or is_sum(self.facts, equation)

    def behind(self, end: int) -> tuple[int, list[int]] | None:
        """The one value an equation is computed from, and all equations in between.

        The nearest such value: the latest operand is traced back first.
        """
        body = {end}
        heap: list[tuple[int, int]] = []  # by producer, the latest first
        waiting: set[int] = set()

        def push(index: int) -> None:
            for value in self.tracked_inputs(index):
                if value not in waiting:
                    waiting.add(value)
                    heapq.heappush(heap, (-self.producer.get(value, -1), value))

        push(end)
        while len(heap) > 1:
            _, value = heapq.heappop(heap)
            if not self.is_inner(value):
                return None
            body.add(self.producer[value])
            push(self.producer[value])
        return (heap[0][1], sorted(body)) if heap else None

    def closed(self, body: Sequence[int], end: int) -> list[int] | None:
        """The region, if no value made inside, but the last, is read from outside; else None.

        What reads one and carries no relevance, as the maximum that a softmax subtracts, is taken
        into the region.
        """
        inside = set(body)
        waiting = list(body)
        while waiting:
            for value in self.graph.equations[waiting.pop()].outputs:
                for reader in self.consumers[value] if value != end else ():
                    if reader in inside:
                        continue
                    if reader < 0 or reader in self.claimed or self._carries(reader):
                        return None
                    inside.add(reader)
                    waiting.append(reader)
        return sorted(inside)

    def _carries(self, index: int) -> bool:
        """Whether an equation carries relevance, or is none that a region may hold."""
        equation = self.graph.equations[index]
        carries = any(self.facts.tracked[v] for v in equation.outputs)
        return carries or equation.primitive not in _ALLOWED

    def sole_reader(self, value: int) -> int | None:
        """The one equation that reads a value, if nothing else does and none has claimed it."""
        readers = self.consumers[value]
        if len(readers) != 1 or readers[0] < 0 or readers[0] in self.claimed:
            return None
        return readers[0]


def primitives(graph: Graph, body: Sequence[int]) -> set[Any]:
    """The primitives that stand in a region."""
    return {graph.equations[index].primitive for index in body}


def roots(graph: Graph, facts: Facts, producer: Mapping[int, int], value: int) -> set[int]:
    """The values that one is computed from by what a region may hold, and by products."""
    found: set[int] = set()
    seen = {value}
    waiting = [value]
    while waiting:
        value = waiting.pop()
        index = producer.get(value)
        equation = None if index is None else graph.equations[index]
        if equation is None or not _is_transparent(facts, equation):
            found.add(value)
            continue
        for operand in equation.inputs:
            if facts.tracked[operand] and operand not in seen:
                seen.add(operand)
                waiting.append(operand)
    return found


def _is_transparent(facts: Facts, equation: Equation) -> bool:
    multiplies = equation.primitive is DOT and all(facts.tracked[v] for v in equation.inputs)
    return equation.primitive in _ALLOWED or multiplies


def extent(graph: Graph, facts: Facts, producer: Mapping[int, int], value: int) -> int:
    """How many elements a value has before it is repeated along axes."""
    size = math.prod(graph.shape(value))
    while (index := producer.get(value)) is not None:
        equation = graph.equations[index]
        moving = [v for v in dict.fromkeys(equation.inputs) if facts.tracked[v]]
        if len(moving) != 1 or equation.primitive not in RESHAPING | ELEMENTWISE:
            break
        (value,) = moving
        before = math.prod(graph.shape(value))
        size = before if at_most(before, size) else size
    return size
