"""Products of two values that depend on the input: attention, gates, gated layers, routers.

Which of the two is a gate is read from the program: known to lie in [0, 1], the weights of a
softmax, the activated one of two, or a statistic. What a gate takes is for the rule to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jax import lax

from relax._graph import Equation, Graph, Layer, boundary
from relax._primitives import CAST, SCALE, WINNER, is_routing
from relax._recognize.facts import Facts
from relax._recognize.normalization import STATISTIC
from relax._recognize.regions import roots


@dataclasses.dataclass(frozen=True)
class ProductDetails:
    """What the rules need to know of a product ``a b``, by operand.

    Attributes:
      unit: known to lie in [0, 1], and no softmax.
      softmax: made of the weights of a softmax.
      activation: made of the output of an activation.
      fixed: a statistic, or a denominator: it takes nothing under any rule.
    """

    unit: tuple[bool, bool]
    softmax: tuple[bool, bool]
    activation: tuple[bool, bool]
    fixed: tuple[bool, bool]


def product_layer(
    graph: Graph,
    facts: Facts,
    index: int,
    name: str,
    owner: Mapping[int, Layer],
    producer: Mapping[int, int],
    made: Sequence[int],
) -> Layer:
    """The layer of one product or quotient."""
    equation = graph.equations[index]
    operands = equation.inputs[:2]
    sources = [_source(graph, facts, v, owner, producer) for v in operands]
    kinds = [source.kind if source is not None else "" for source in sources]
    softmax = [kind == "softmax" for kind in kinds]
    unit = [
        _is_unit(facts, v) or (s is not None and _shares(facts, s))
        for v, s in zip(operands, sources, strict=True)
    ]
    details = ProductDetails(
        unit=_pair(u and not s for u, s in zip(unit, softmax, strict=True)),
        softmax=_pair(softmax),
        activation=_pair(kind == "activation" for kind in kinds),
        fixed=_fixed(graph, facts, equation, made, producer),
    )
    inputs, others = boundary(graph, (index,), facts.tracked)
    return Layer("product", name, (index,), inputs, others, equation.outputs, details)


def _pair(flags) -> tuple[bool, bool]:
    first, second = flags
    return bool(first), bool(second)


def _is_unit(facts: Facts, value: int) -> bool:
    low, high = facts.interval[value]
    return low >= 0 and high <= 1


def _shares(facts: Facts, layer: Layer) -> bool:
    """Whether a layer divides what lies in [0, 1], such as the sigmoids of a router, by its sum."""
    return layer.kind == "normalization" and _is_unit(facts, layer.inputs[0])


def _fixed(
    graph: Graph,
    facts: Facts,
    equation: Equation,
    made: Sequence[int],
    producer: Mapping[int, int],
) -> tuple[bool, bool]:
    """A denominator, or a statistic of the other factor that no region could be closed around."""
    if equation.primitive is lax.div_p:
        return False, True
    first, second = (made[v] == STATISTIC for v in equation.inputs[:2])
    if first == second:
        return False, False
    statistic, value = equation.inputs[:2] if first else equation.inputs[1::-1]
    of_it = roots(graph, facts, producer, statistic) <= roots(graph, facts, producer, value)
    return first and of_it, second and of_it


def _source(
    graph: Graph,
    facts: Facts,
    value: int,
    owner: Mapping[int, Layer],
    producer: Mapping[int, int],
) -> Layer | None:
    """The layer that made a value, seen through moves, casts, constant scales and choices.

    A softmax that is normalized once more, as a router's weights are, is still one.
    """
    while (index := producer.get(value)) is not None:
        equation = graph.equations[index]
        layer = owner.get(index)
        moving = [v for v in dict.fromkeys(equation.inputs) if facts.tracked[v]]
        transparent = equation.primitive in CAST | SCALE | WINNER or is_routing(equation.primitive)
        if layer is not None and layer.kind == "normalization":
            before = _source(graph, facts, layer.inputs[0], owner, producer)
            return before if before is not None and before.kind == "softmax" else layer
        if layer is not None and layer.kind in ("softmax", "activation", "dense", "conv"):
            return layer
        if not transparent or len(moving) != 1:
            return layer
        value = moving[0]
    return None
