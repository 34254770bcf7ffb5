"""Activations: regions of elementwise equations that are a function of one value.

GELU is eight primitives, mish fourteen, a user's own ``x * sigmoid(1.7 * x)`` three: none is known
by name. A value *dominates* another if all elementwise paths to the other start in it; a region
reaches from a dominator to the last equation that is no longer affine, and none of its inner values
may escape.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from relax._graph import Graph, Layer, boundary, replay
from relax._primitives import CAST, ELEMENTWISE, PIECEWISE_LINEAR, SCALE, SHIFT
from relax._recognize.facts import Facts, Interval, propagate_interval

_SAMPLES = (1e-30, 1e-3, 0.7, 1.0, 5.9, 6.5, 255.0, 1e4, 1e30)


@dataclasses.dataclass(frozen=True)
class ActivationDetails:
    """What the rules need to know of an activation.

    Attributes:
      passes_zero: ``phi(0) = 0``, so relevance can be carried as a coefficient.
      dead_below: ``phi(x) = 0`` for all ``x <= 0``.
      is_relu: it is ``max(x, 0)``, however written.
      slope, curvature: ``phi'(0)`` and ``phi''(0)``; None if they depend on an argument.
    """

    passes_zero: bool
    dead_below: bool
    is_relu: bool
    slope: float | None
    curvature: float | None


class _Dominators:
    """For every value made elementwise from one other: the closest value all paths pass."""

    def __init__(self, graph: Graph, facts: Facts, claimed: set[int]):
        self.parent: dict[int, int] = {}
        self.depth: dict[int, int] = {}
        self.roots_of: dict[int, tuple[int, ...]] = {}
        for index, equation in enumerate(graph.equations):
            if index in claimed or equation.primitive not in ELEMENTWISE:
                continue
            out = equation.outputs[0]
            if not graph.depends[out]:
                continue
            same = [v for v in equation.inputs if graph.shape(v) == graph.shape(out)]
            found = [v for v in dict.fromkeys(same) if facts.tracked[v]]
            common = self._common(found)
            if found and common is None:
                continue
            for value in dict.fromkeys(same):  # decisions made from the same root
                if facts.tracked[value] or value not in self.parent:
                    continue
                joint = value if common is None else self._common([common, value])
                if joint is not None:
                    common = joint
                    found.append(value)
            if common is None:
                continue
            self.parent[out] = common
            self.depth[out] = self.depth.get(common, 0) + 1
            self.roots_of[index] = tuple(found)

    def _common(self, values: list[int]) -> int | None:
        if not values:
            return None
        result = values[0]
        for value in values[1:]:
            a, b = result, value
            while a != b:
                if self.depth.get(a, 0) < self.depth.get(b, 0):
                    a, b = b, a
                if a not in self.parent:
                    return None
                a = self.parent[a]
            result = a
        return result


class _Regions:
    def __init__(self, graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]):
        self.graph, self.facts, self.consumers, self.claimed = graph, facts, consumers, claimed
        self.dominators = _Dominators(graph, facts, claimed)
        self.producer = graph.producers()

    def is_affine(self, index: int) -> bool:
        """Affine in its one operand; the others do not depend on the same value."""
        equation = self.graph.equations[index]
        moving = self.dominators.roots_of.get(index, ())
        if len(moving) != 1 or equation.primitive not in SCALE | SHIFT | CAST:
            return False
        if equation.inputs.count(moving[0]) != 1 or not self.facts.tracked[moving[0]]:
            return False
        return not (equation.primitive.name == "div" and equation.inputs[0] != moving[0])

    def is_mask(self, index: int) -> bool:
        """A select whose predicate has nothing to do with the value it selects."""
        equation = self.graph.equations[index]
        moving = self.dominators.roots_of.get(index, ())
        return equation.primitive.name == "select_n" and equation.inputs[0] not in moving

    def splits(self, index: int) -> bool:
        """An affine step with a weight: a layer of its own, never inside an activation."""
        equation = self.graph.equations[index]
        constant = all(
            self.facts.constant[v] for v in equation.inputs if not self.facts.tracked[v]
        )
        return self.is_mask(index) or (self.is_affine(index) and not constant)

    def body(self, start: int, end: int) -> list[int] | None:
        """Equations between two values, or None if an inner value is read from outside."""
        found: set[int] = set()
        open_values = [end]
        while open_values:
            value = open_values.pop()
            if value == start:
                continue
            index = self.producer.get(value)
            if index is None or index not in self.dominators.roots_of:
                return None
            if index not in found:
                found.add(index)
                open_values.extend(self.dominators.roots_of[index])
        for index in found:
            value = self.graph.equations[index].outputs[0]
            if value != end and not found.issuperset(self.consumers[value]):
                return None
        return sorted(found)

    def grow(self, end: int) -> tuple[int, list[int]] | None:
        """The largest closed region that ends in a value: where it starts, and its equations."""
        best = None
        start = end
        while start in self.dominators.parent:
            index = self.producer[start]
            if index in self.claimed or (start != end and self.splits(index)):
                break
            start = self.dominators.parent[start]
            body = self.body(start, end)
            if body is None:
                break
            best = start, body
            if not self.facts.tracked[start]:
                break
        return best


def find_activations(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]
) -> list[Layer]:
    """All activation regions, found from the outputs backwards."""
    regions = _Regions(graph, facts, consumers, claimed)
    layers = []
    for index in reversed(range(len(graph.equations))):
        equation = graph.equations[index]
        if index in claimed or index not in regions.dominators.roots_of:
            continue
        end = equation.outputs[0]
        if not facts.tracked[end] or regions.is_affine(index) or regions.is_mask(index):
            continue
        region = regions.grow(end)
        if region is None or not facts.tracked[region[0]]:
            continue
        start, body = region
        claimed.update(body)
        _, operands = boundary(graph, body, facts.tracked)
        operands = tuple(v for v in operands if v != start)
        details = _details(graph, facts, start, body, operands, end)
        name = "relu" if details.is_relu else _name(graph, body)
        layers.append(
            Layer("activation", name, tuple(body), (start,), operands, (end,), details)
        )
    return layers[::-1]


def _interval_at(
    graph: Graph, facts: Facts, start: int, body: list[int], end: int, interval: Interval
) -> Interval:
    """Bounds on the output of a region for inputs in an interval."""
    known: dict[int, Interval] = {start: interval}
    for index in body:
        equation = graph.equations[index]
        reading = {v: known.get(v, facts.interval[v]) for v in equation.inputs}
        result = propagate_interval(graph, equation, reading)
        known.update(zip(equation.outputs, result, strict=True))
    return known[end]


def _details(
    graph: Graph, facts: Facts, start: int, body: list[int], operands: tuple[int, ...], end: int
) -> ActivationDetails:
    at_zero = _interval_at(graph, facts, start, body, end, (0.0, 0.0))
    below = _interval_at(graph, facts, start, body, end, (-math.inf, 0.0))
    dead_below = below == (0.0, 0.0)
    numbers = {v: facts.number(v) for v in operands}
    dtype = graph.avals[start].dtype
    if any(number is None for number in numbers.values()) or not jnp.issubdtype(dtype, jnp.floating):
        return ActivationDetails(at_zero == (0.0, 0.0), dead_below, False, None, None)

    def phi(x: jax.Array) -> jax.Array:
        values: dict[int, jax.Array] = {start: x}
        for value, number in numbers.items():
            values[value] = jnp.asarray(number, graph.avals[value].dtype)
        return replay(graph, body, values, (end,))[0]

    def derivative(function):
        return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    with jax.ensure_compile_time_eval():
        zero = jnp.zeros((), dtype)
        passes_zero = at_zero == (0.0, 0.0) or float(phi(zero)) == 0
        slope = 0.0 if dead_below else float(derivative(phi)(zero))
        curvature = 0.0 if dead_below else float(derivative(derivative(phi))(zero))
        passes_zero &= math.isfinite(slope) and math.isfinite(curvature)  # sqrt(0) has no slope
        linear = all(graph.equations[i].primitive in PIECEWISE_LINEAR for i in body)
        is_relu = dead_below and linear and all(
            float(phi(jnp.asarray(x, dtype))) == float(jnp.asarray(x, dtype)) for x in _SAMPLES
        )
    return ActivationDetails(passes_zero, dead_below, is_relu, slope, curvature)


def _name(graph: Graph, body: list[int]) -> str:
    """``gelu`` if the whole region came out of ``jax.nn.gelu``; a sole primitive's own name."""
    calls = [graph.equations[index].calls for index in body]
    shared = [names[0] for names in zip(*calls, strict=False) if len(set(names)) == 1]
    for name in shared:
        if hasattr(jax.nn, name):
            return name
    nonlinear = {
        graph.equations[i].primitive.name
        for i in body
        if graph.equations[i].primitive not in SCALE | SHIFT | CAST
    }
    if len(nonlinear) != 1:
        return "activation"
    (name,) = nonlinear
    return {"logistic": "sigmoid"}.get(name, name)
