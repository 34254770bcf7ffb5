"""Coefficient or relevance: in which of the two each value's message travels backwards.

The message of a value x is either its relevance R or a coefficient c with R = x c. As coefficients,
linear operations are their own transposes: free and without division. Relevance is needed where R
is not proportional to x: behind Flat, WSquare, ZBox, and activations with phi(0) != 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from relax._graph import Graph, Layer
from relax.rules import Rule
from relax.rules._base import Currency


@dataclasses.dataclass(eq=False, repr=False)
class Currencies:
    """Currency ``of`` each value, ``given`` and ``arriving`` by the last equation of a layer."""

    of: list[Currency]
    given: dict[int, Currency]
    arriving: dict[int, Currency]


def find_currencies(
    graph: Graph,
    tracked: Sequence[bool],
    owner: Mapping[int, Layer],
    rules: Sequence[Rule],
    in_relevance: Iterable[int],
) -> Currencies:
    """One backward pass: a value travels as relevance if any of its readers gives relevance.

    Args:
      graph, tracked: the function and which of its values carry relevance.
      owner: the layer each equation belongs to; equations that only move data have none.
      rules: the rule of each layer.
      in_relevance: values that are given relevance from outside.
    """
    of: list[Currency] = ["coefficient"] * len(graph.avals)
    for value in in_relevance:
        of[value] = "relevance"
    result = Currencies(of, {}, {})
    for index in reversed(range(len(graph.equations))):
        layer = owner.get(index)
        if layer is not None and layer.equations[-1] != index:
            continue
        equation = graph.equations[index]
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
