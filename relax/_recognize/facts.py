"""Forward facts about every value: does it carry relevance, is it constant, in what interval.

The interval is where no peer looks: after a ReLU, a softmax or a square the sign is known from the
program alone, so a rule that splits signs needs one pass instead of two.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jax import lax

from relax._errors import UnsupportedOperationError, message
from relax._graph import Equation, Graph
from relax._numerics import numpy_scalar
from relax._primitives import ELEMENTWISE, is_one_to_one, is_routing
from relax._recognize.intervals import ANY, Interval, propagate_interval, union


@dataclasses.dataclass(eq=False, repr=False)
class Facts:
    """What is known of each value.

    Attributes:
      tracked: relevance flows through it.
      constant: made of literals only: no argument, no closed-over array takes part.
      interval: bounds on its elements.
      origin: the largest argument or closed-over array that it is computed from, or -1.
      token: an integer (or the comparison of one in a one-hot) that names explained tokens.
      sources: equations that make the first float value from tokens.
      inner: for each equation that runs other programs, the facts of those.
    """

    tracked: list[bool]
    constant: list[bool]
    interval: list[Interval]
    origin: list[int]
    token: list[bool]
    sources: set[int] = dataclasses.field(default_factory=set)
    inner: dict[int, tuple[Facts, ...]] = dataclasses.field(default_factory=dict)

    def nonnegative(self, value: int) -> bool:
        return self.interval[value][0] >= 0

    def number(self, value: int) -> float | None:
        """The one number that all elements of a value are known to equal, or None."""
        low, high = self.interval[value]
        return low if low == high else None


def gather_facts(graph: Graph, explained: Sequence[int], outputs: Sequence[int]) -> Facts:
    """One pass over the equations, and one back from the outputs that are explained."""
    facts = _blank(graph)
    for value in explained:
        facts.tracked[value] = graph.is_float(value)
        facts.token[value] = not graph.is_float(value)
    _propagate(graph, facts)
    _forget_dead(graph, facts, outputs)
    return facts


def _blank(graph: Graph) -> Facts:
    """What is known before anything is computed."""
    count = len(graph.avals)
    facts = Facts([False] * count, [False] * count, [ANY] * count, [-1] * count, [False] * count)
    for value in (*graph.inputs, *graph.consts):
        facts.origin[value] = value
    for value, aval in enumerate(graph.avals):
        if aval.dtype == np.bool_:
            facts.interval[value] = (0.0, 1.0)
    for value, literal in graph.literals.items():
        number = numpy_scalar(literal)
        facts.constant[value] = number is not None
        facts.origin[value] = value if number is None else -1
        if number is not None and not math.isnan(number):
            facts.interval[value] = (number, number)
    return facts


def _propagate(graph: Graph, facts: Facts) -> None:
    """One pass over the equations."""
    sizes = [math.prod(n for n in aval.shape if isinstance(n, int)) for aval in graph.avals]
    for index, equation in enumerate(graph.equations):
        if equation.control is not None:
            _run_bodies(graph, facts, index, equation)
            continue
        tracked = equation.primitive is not lax.stop_gradient_p and any(
            facts.tracked[value] for value in equation.inputs
        )
        constant = all(facts.constant[value] for value in equation.inputs)
        origins = [facts.origin[v] for v in equation.inputs if facts.origin[v] >= 0]
        origin = max(origins, key=lambda v: sizes[v], default=-1)
        intervals = propagate_interval(graph, equation, facts.interval)
        if is_one_to_one(equation.primitive):
            for value, same in zip(equation.outputs, equation.inputs, strict=True):
                facts.tracked[value] = facts.tracked[same]
                facts.constant[value] = facts.constant[same]
                facts.interval[value] = facts.interval[same]
                facts.origin[value] = facts.origin[same]
            continue
        for value, interval in zip(equation.outputs, intervals, strict=True):
            facts.tracked[value] = tracked and graph.is_float(value)
            facts.constant[value] = constant
            facts.interval[value] = interval
            facts.origin[value] = origin
        if any(facts.token[value] for value in equation.inputs):
            _follow_tokens(graph, facts, index, equation)


def _run_bodies(graph: Graph, facts: Facts, index: int, equation: Equation) -> None:
    """Facts of the programs an equation runs, and of its results.

    What a scan carries is a fixpoint: an interval that does not settle is widened.
    """
    control = equation.control
    assert control is not None
    if any(facts.token[v] for v in equation.inputs):
        raise UnsupportedOperationError(
            message(
                f"cannot follow token ids into a {control.kind}",
                where=equation.where,
                path=equation.scope,
                remedy="Look them up in front of it, or explain their embeddings.",
            )
        )
    operands = equation.inputs[control.leading :]
    tracked = [facts.tracked[v] for v in operands]
    interval = [facts.interval[v] for v in operands]
    first, last = control.consts, control.consts + control.carry
    inner: list[Facts] = []
    for attempt in itertools.count():
        inner = []
        for body in equation.bodies:
            own = _blank(body)
            for j, value in enumerate(body.inputs):
                own.tracked[value], own.interval[value] = tracked[j], interval[j]
                own.constant[value] = facts.constant[operands[j]] and not first <= j < last
            _propagate(body, own)
            inner.append(own)
        settled = True
        for j, value in zip(range(first, last), equation.bodies[0].outputs, strict=False):
            made = inner[0]
            bounds = union(interval[j], made.interval[value])
            flag = tracked[j] or made.tracked[value]
            if (flag, bounds) != (tracked[j], interval[j]):
                settled = False
                if attempt >= 2:
                    bounds = _widened(interval[j], bounds)
                tracked[j], interval[j] = flag, bounds
        if settled:
            break
    facts.inner[index] = tuple(inner)
    for j, value in enumerate(equation.outputs):
        results = [(own, body.outputs[j]) for own, body in zip(inner, equation.bodies, strict=True)]
        bounds = [own.interval[v] for own, v in results]
        if j < control.carry:
            bounds.append(interval[first + j])
        facts.interval[value] = union(*bounds)
        facts.tracked[value] = graph.is_float(value) and (
            any(own.tracked[v] for own, v in results) or (j < control.carry and tracked[first + j])
        )


def _widened(old: Interval, new: Interval) -> Interval:
    return old[0] if new[0] >= old[0] else -math.inf, old[1] if new[1] <= old[1] else math.inf


def _forget_dead(graph: Graph, facts: Facts, outputs: Sequence[int]) -> None:
    """What reaches no explained output carries no relevance, whatever it is computed from."""
    live = [False] * len(graph.avals)
    for value in outputs:
        live[value] = True
    for index in reversed(range(len(graph.equations))):
        equation = graph.equations[index]
        if equation.control is not None:
            wanted = [live[v] and facts.tracked[v] for v in equation.outputs]
            if any(wanted):  # what is carried may reach the rest in the next round
                wanted[: equation.control.carry] = [True] * equation.control.carry
            for body, own in zip(equation.bodies, facts.inner[index], strict=True):
                _forget_dead(body, own, [v for v, w in zip(body.outputs, wanted, strict=True) if w])
        if any(live[value] and facts.tracked[value] for value in equation.outputs):
            for value in equation.inputs:
                live[value] = True
    facts.tracked = [tracked and alive for tracked, alive in zip(facts.tracked, live, strict=True)]
    facts.sources = {
        index for index in facts.sources if facts.tracked[graph.equations[index].outputs[0]]
    }


def _follow_tokens(graph: Graph, facts: Facts, index: int, equation: Equation) -> None:
    """Token ids stay tokens while they are moved about; the first float made of them is a source.

    A comparison with one number is a mask, which carries no relevance; a comparison for equality
    with many is a one-hot.
    """
    if any(facts.tracked[value] for value in equation.inputs):
        return
    if not (is_routing(equation.primitive) or equation.primitive in ELEMENTWISE):
        return
    for value in equation.outputs:
        if graph.is_float(value):
            facts.tracked[value] = True
            facts.sources.add(index)
        elif graph.avals[value].dtype != np.bool_:
            facts.token[value] = True
        else:
            others = [v for v in equation.inputs if not facts.token[v]]
            one_hot = equation.primitive is lax.eq_p and not any(
                facts.number(v) is not None for v in others
            )
            facts.token[value] = one_hot or is_routing(equation.primitive)
