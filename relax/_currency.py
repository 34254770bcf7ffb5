"""Coefficient or relevance: in which of the two each value's message travels backwards.

The message of a value x is either its relevance R or a coefficient c with R = x c. As coefficients,
linear operations are their own transposes: free and without division. Relevance is needed where R
is not proportional to x: behind Flat, WSquare, ZBox, and activations with phi(0) != 0. It is better
between an activation and a rule that divides R by a sum of its own, as z+: then nobody needs the
value between them any more, and it need not be kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax.numpy as jnp

from relax._graph import Equation, Graph
from relax._sections import Section
from relax.rules import Gradient, Pass, Rule
from relax.rules._base import Currency


@dataclasses.dataclass(eq=False, repr=False)
class Currencies:
    """In what each message of a section travels.

    Attributes:
      of: of each value.
      given, arriving: by the last equation of a layer.
      inner: of the programs that an equation runs; ``entering``, ``leaving``: what those programs
        give to each operand, and what arrives at each result, by equation.
    """

    of: list[Currency]
    given: dict[int, Currency]
    arriving: dict[int, Currency]
    inner: dict[int, tuple[Currencies, ...]] = dataclasses.field(default_factory=dict)
    entering: dict[int, list[Currency]] = dataclasses.field(default_factory=dict)
    leaving: dict[int, list[Currency]] = dataclasses.field(default_factory=dict)


def find_currencies(
    section: Section, rules: Sequence[Rule], in_relevance: Iterable[int]
) -> Currencies:
    """One backward pass: a value travels as relevance if any of its readers gives relevance.

    Args:
      section: the function and its layers.
      rules: the rule of each layer.
      in_relevance: values that are given relevance from outside.
    """
    graph, tracked = section.graph, section.facts.tracked
    owner = {i: layer for layer in section.layers for i in layer.owned}
    of: list[Currency] = ["coefficient"] * len(graph.avals)
    for value in (*in_relevance, *_rather_relevance(section, rules)):
        of[value] = "relevance"
    result = Currencies(of, {}, {})
    for index in reversed(range(len(graph.equations))):
        equation = graph.equations[index]
        if index in section.inner:
            _through_bodies(section, rules, result, index, equation)
            continue
        layer = owner.get(index)
        if layer is not None and layer.closing != index:
            continue
        outputs = [v for v in (layer.outputs if layer else equation.outputs) if tracked[v]]
        if not outputs:
            continue
        arriving: Currency = (
            "relevance" if any(of[v] == "relevance" for v in outputs) else "coefficient"
        )
        given = arriving if layer is None else rules[layer.index].gives(layer, arriving)
        result.arriving[index], result.given[index] = arriving, given
        if given == "relevance":
            for value in layer.inputs if layer else equation.inputs:
                if tracked[value]:
                    of[value] = "relevance"
    return result


def _rather_relevance(section: Section, rules: Sequence[Rule]) -> Iterator[int]:
    """Outputs of activations that hand on relevance, or may as well.

    They may if only a rule that takes relevance has made their input, and nobody else reads it.
    """
    graph = section.graph
    made_by = {v: layer for layer in section.layers for v in layer.outputs}
    consumers = graph.consumers()
    for layer in section.layers:
        if layer.kind != "activation" or not layer.details.passes_zero:
            continue
        (value,), rule = layer.inputs, rules[layer.index]
        below = made_by.get(value)
        alone = set(consumers[value]) <= set(layer.equations)
        wanted = below is not None and rules[below.index].takes_relevance and alone
        may = isinstance(rule, Gradient) or (isinstance(rule, Pass) and wanted)
        if may and _has_room(graph, value):
            yield layer.outputs[0]


def _has_room(graph: Graph, value: int) -> bool:
    """Relevance of single values is small: too small for float16, where coefficients are not."""
    return bool(graph.avals[value].dtype != jnp.float16)


def _through_bodies(
    section: Section, rules: Sequence[Rule], result: Currencies, index: int, equation: Equation
) -> None:
    """Programs that an equation runs: branches agree, and what is carried keeps its currency."""
    control, bodies = equation.control, section.inner[index]
    assert control is not None
    leaving: list[Currency] = [result.of[v] for v in equation.outputs]
    while True:
        inner = tuple(
            find_currencies(
                body,
                rules,
                [
                    value
                    for value, currency in zip(body.graph.outputs, leaving, strict=True)
                    if currency == "relevance" and body.facts.tracked[value]
                ],
            )
            for body in bodies
        )
        each = [
            [own.of[v] for v in body.graph.inputs] for own, body in zip(inner, bodies, strict=True)
        ]
        entering: list[Currency] = [_stronger(found) for found in zip(*each, strict=True)]
        carried = slice(control.consts, control.consts + control.carry)
        merged: list[Currency] = [
            _stronger(pair)
            for pair in zip(entering[carried], leaving[: control.carry], strict=True)
        ]
        entering[carried] = merged
        if merged == leaving[: control.carry]:
            break
        leaving[: control.carry] = merged
    result.inner[index], result.entering[index], result.leaving[index] = inner, entering, leaving
    for value, currency in zip(equation.inputs[control.leading :], entering, strict=True):
        if currency == "relevance" and section.facts.tracked[value]:
            result.of[value] = "relevance"


def _stronger(found: Iterable[Currency]) -> Currency:
    return "relevance" if "relevance" in found else "coefficient"
