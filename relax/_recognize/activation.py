"""Activations: regions of elementwise equations that are a function of one value.

GELU is eight primitives, mish fourteen, a user's own ``x * sigmoid(1.7 * x)`` three: none is known
by name. A value *dominates* another if all elementwise paths to the other start in it; a region
reaches from a dominator to the last equation that is no longer affine, and none of its inner values
may escape.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax._graph import Equation, Graph, Layer, boundary, replay
from relax._jaxpr import evaluation
from relax._primitives import CAST, ELEMENTWISE, PIECEWISE_LINEAR, SCALE, SHIFT
from relax._recognize.facts import Facts
from relax._recognize.intervals import Interval, propagate_interval

_SAMPLES = (1e-30, 1e-3, 0.7, 1.0, 5.9, 6.5, 255.0, 1e4, 1e30)


@dataclasses.dataclass(frozen=True)
class ActivationDetails:
    """What the rules need to know of an activation.

    Attributes:
      passes_zero: ``phi(0) = 0``, so relevance can be carried as a coefficient.
      dead_below: ``phi(x) = 0`` for all ``x <= 0``.
      is_relu: it is ``max(x, 0)``, however written.
      slope, curvature: ``phi'(0)`` and ``phi''(0)``; None if they depend on an argument.
      part_of_softmax: an exponential that is summed as in a softmax, but none could be made of it.
    """

    passes_zero: bool
    dead_below: bool
    is_relu: bool
    slope: float | None
    curvature: float | None
    part_of_softmax: bool = False


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
            held = [v for v in dict.fromkeys(same) if graph.depends[v] and not facts.tracked[v]]
            if any(value not in self.parent for value in held):
                continue  # a threshold that the input sets in another way: no function of one value
            for value in held:  # decisions made from the same root
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
        constant = all(self.facts.constant[v] for v in equation.inputs if not self.facts.tracked[v])
        return self.is_mask(index) or (self.is_affine(index) and not constant)

    def is_sum(self, index: int) -> bool:
        """A sum of two branches: if one holds a weight, as in ``x + relu(bn(x))``, it stays one."""
        moving = self.dominators.roots_of.get(index, ())
        return self.graph.equations[index].primitive in SHIFT and len(moving) > 1

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

    def bends(self, body: list[int]) -> bool:
        """Whether a region holds anything but affine steps."""
        return any(not self.is_affine(index) for index in body)

    def is_candidate(self, index: int) -> bool:
        """Where an activation may end: a nonlinear step, a rejoin, or a literal added to one."""
        if index in self.claimed or index not in self.dominators.roots_of or self.is_mask(index):
            return False
        equation = self.graph.equations[index]
        if not self.facts.tracked[equation.outputs[0]]:
            return False
        shifts = equation.primitive in SHIFT and not self.splits(index)
        return shifts or not self.is_affine(index)

    def leaves_call(self, index: int, last: int | None) -> bool:
        """Two functions of jax.nn in a row are two activations."""
        if last is None or self.is_affine(index):
            return False
        here = self.graph.equations[index].calls
        there = self.graph.equations[last].calls
        pairs = zip(here, there, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return any(hasattr(jax.nn, name) for name in (*here[shared:], *there[shared:]))

    def grow(self, end: int) -> tuple[int, list[int]] | None:
        """The largest closed region that ends in a value: where it starts, and its equations."""
        best = None
        start = end
        last = None  # the nonlinear step crossed last
        while start in self.dominators.parent:
            index = self.producer[start]
            if index in self.claimed:
                break
            if start != end and (self.splits(index) or self.leaves_call(index, last)):
                break
            if last is None and not self.is_affine(index):
                last = index
            start = self.dominators.parent[start]
            body = self.body(start, end)
            if body is None or (self.is_sum(index) and any(map(self.splits, body))):
                break
            best = start, body
            if not self.facts.tracked[start]:
                break
        return self.trim(*best) if best is not None and self.bends(best[1]) else None

    def trim(self, start: int, body: list[int]) -> tuple[int, list[int]]:
        """Leaves scales and casts in front of a piecewise linear function (a ReLU) outside."""
        equations = self.graph.equations
        if not all(equations[index].primitive in PIECEWISE_LINEAR for index in body):
            return start, body
        while self.is_affine(body[0]) and equations[body[0]].primitive in SCALE | CAST:
            behind = equations[body[0]].outputs[0]
            inner = self.body(behind, equations[body[-1]].outputs[0])
            if inner is None or len(inner) != len(body) - 1:
                break  # what is scaled is read by the rest as well
            start, body = behind, inner
        return start, body


def find_activations(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]
) -> list[Layer]:
    """All activation regions, found from the outputs backwards."""
    regions = _Regions(graph, facts, consumers, claimed)
    layers = []
    known: dict[Any, tuple[ActivationDetails, str]] = {}
    for index in reversed(range(len(graph.equations))):
        if not regions.is_candidate(index):
            continue
        end = graph.equations[index].outputs[0]
        region = regions.grow(end)
        if region is None or not facts.tracked[region[0]]:
            continue
        start, body = region
        claimed.update(body)
        _, operands = boundary(graph, body, facts.tracked)
        operands = tuple(v for v in operands if v != start)
        details, name = _details(graph, facts, start, body, operands, end, known)
        layers.append(Layer("activation", name, tuple(body), (start,), operands, (end,), details))
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
    graph: Graph,
    facts: Facts,
    start: int,
    body: list[int],
    operands: tuple[int, ...],
    end: int,
    known: dict[Any, tuple[ActivationDetails, str]],
) -> tuple[ActivationDetails, str]:
    """Facts and name of a region; ``known`` remembers those of equal regions."""
    key = _signature(graph, facts, start, body)
    if key is None:
        at_zero = _interval_at(graph, facts, start, body, end, (0.0, 0.0))
        below = _interval_at(graph, facts, start, body, end, (-math.inf, 0.0))
        zero = (0.0, 0.0)
        return ActivationDetails(at_zero == zero, below == zero, False, None, None), _sole(
            graph, body
        )
    if key not in known:
        known[key] = _evaluated(graph, facts, start, body, operands, end)
    return known[key]


def _signature(graph: Graph, facts: Facts, start: int, body: list[int]) -> Any:
    """What a region computes, or None if it reads anything but numbers."""
    places: dict[int, Any] = {start: graph.avals[start].dtype}
    if not jnp.issubdtype(graph.avals[start].dtype, jnp.floating):
        return None
    steps = []
    for index in body:
        equation = graph.equations[index]
        for value in equation.inputs:
            if value not in places:
                places[value] = facts.number(value)
                if places[value] is None:
                    return None
        reads = tuple(places[value] for value in equation.inputs)
        params = tuple(sorted((k, str(v)) for k, v in equation.params.items()))
        steps.append((equation.primitive, params, reads))
        places.update((v, f"{len(steps)}") for v in equation.outputs)
    return tuple(steps)


def _evaluated(
    graph: Graph, facts: Facts, start: int, body: list[int], operands: tuple[int, ...], end: int
) -> tuple[ActivationDetails, str]:
    """Facts of a region that is a function of one value and numbers: tried out."""
    below = _interval_at(graph, facts, start, body, end, (-math.inf, 0.0))
    dead_below = below == (0.0, 0.0)
    dtype = graph.avals[start].dtype

    def phi(x: jax.Array) -> jax.Array:
        values: dict[int, jax.Array] = {start: x}
        for value in operands:
            shape = x.shape if graph.shape(value) == graph.shape(start) else ()
            values[value] = jnp.full(shape, facts.interval[value][0], graph.avals[value].dtype)
        return replay(graph, body, values, (end,), Equation.compute)[0]

    def derivative(function: Any) -> Any:
        return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    with evaluation():
        at_zero = lambda function: float(np.asarray(function(jnp.zeros((1,), dtype)))[0])
        slope = 0.0 if dead_below else at_zero(derivative(phi))
        curvature = 0.0 if dead_below else at_zero(derivative(derivative(phi)))
        # sqrt(0) is 0, but has no slope there
        passes_zero = at_zero(phi) == 0 and math.isfinite(slope + curvature)
        linear = all(graph.equations[i].primitive in PIECEWISE_LINEAR for i in body)
        largest = float(jnp.finfo(dtype).max)
        samples = jnp.asarray([x for x in _SAMPLES if x < largest], dtype)
        is_relu = dead_below and linear and bool(jnp.all(phi(samples) == samples))
        values = np.asarray(phi(jnp.asarray(_POINTS, dtype)), np.float64)
    name = "relu" if is_relu else _called(values) or _sole(graph, body)
    return ActivationDetails(passes_zero, dead_below, is_relu, slope, curvature), name


@functools.cache
def _known_activations() -> dict[str, tuple[float, ...]]:
    """Values of the usual activations at a few points, to call a region by its name."""
    nn = jax.nn
    functions = {
        "gelu": nn.gelu,
        "gelu_exact": functools.partial(nn.gelu, approximate=False),
        **{name: getattr(nn, name) for name in _NAMED},
        "tanh": jnp.tanh,
    }
    with evaluation():
        points = jnp.asarray(_POINTS, jnp.float32)
        return {name: tuple(map(float, f(points))) for name, f in functions.items()}


_POINTS = (-4.0, -2.5, -1.0, -0.3, 0.4, 1.7, 7.0)
_NAMED = (
    "relu6", "sigmoid", "silu", "softplus", "elu", "selu", "leaky_relu", "mish", "hard_sigmoid",
    "hard_swish", "hard_tanh", "soft_sign", "squareplus", "log_sigmoid",
)  # fmt: skip


def _called(values: np.ndarray) -> str:
    """The usual activation that has these values at `_POINTS`, or nothing."""
    for name, known in _known_activations().items():
        if np.allclose(values, known, rtol=1e-3, atol=1e-5):
            return name
    return ""


def _sole(graph: Graph, body: list[int]) -> str:
    """The name of the only nonlinear primitive of a region."""
    nonlinear = {
        graph.equations[i].primitive.name
        for i in body
        if graph.equations[i].primitive not in SCALE | SHIFT | CAST
    }
    return nonlinear.pop() if len(nonlinear) == 1 else "activation"
