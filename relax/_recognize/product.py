"""Products of two values that depend on the input: attention, gates, gated layers, routers.

Which of the two is a gate is read from the program: known to lie in [0, 1], the weights of a
softmax, the activated one of two, or a statistic. What a gate takes is for the rule to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

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
      softmax: made of the weights of a softmax, which then are those of an attention.
      activation: made of the output of an activation.
      fixed: a statistic, or a denominator: it takes nothing under any rule.
      elementwise: both operands have the shape of the product.
    """

    unit: tuple[bool, bool]
    softmax: tuple[bool, bool]
    activation: tuple[bool, bool]
    fixed: tuple[bool, bool]
    elementwise: bool


class Sources:
    """Where values come from: which layer made them, seen through moves, scales and choices."""

    def __init__(self, graph: Graph, facts: Facts, layers: Sequence[Layer]):
        self.graph, self.facts = graph, facts
        self.producer = graph.producers()
        self.owner = {index: layer for layer in layers for index in layer.owned}
        self.totals = {
            layer.details.total: layer
            for layer in layers
            if layer.kind == "softmax" and layer.details.normalizer
        }

    def of(self, value: int) -> Layer | None:
        """The layer that made a value, casts and constant scales left out.

        A softmax that is normalized once more, as a router's weights are, is still one.
        """
        while (index := self.producer.get(value)) is not None:
            equation, layer = self.graph.equations[index], self.owner.get(index)
            moving = [v for v in dict.fromkeys(equation.inputs) if self.facts.tracked[v]]
            if layer is not None and layer.kind == "normalization":
                before = self.of(layer.inputs[0])
                return before if before is not None and before.kind == "softmax" else layer
            if layer is not None and layer.kind in ("softmax", "activation", "dense", "conv"):
                return layer
            if len(moving) == 2 and equation.primitive in (lax.mul_p, lax.div_p):
                return self._normalized(equation)
            plain = equation.primitive in CAST | SCALE | WINNER or is_routing(equation.primitive)
            if not plain or len(moving) != 1:
                return layer
            value = moving[0]
        return None

    def _normalized(self, equation: Equation) -> Layer | None:
        """The softmax that a product or quotient completes: exponentials by their sum."""
        a, b = equation.inputs
        for value, other in ((a, b), (b, a)):
            layer = self.summed(other)
            if layer is not None and self.of(value) is layer:
                return layer
        return None

    def summed(self, value: int) -> Layer | None:
        """The exponentials of which a value is the sum, or one over it."""
        while self.totals and value not in self.totals:
            index = self.producer.get(value)
            equation = None if index is None else self.graph.equations[index]
            if equation is None:
                return None
            inverts = equation.primitive in (lax.div_p, lax.integer_pow_p)
            if not (inverts or is_routing(equation.primitive)):
                return None
            value = equation.inputs[1] if equation.primitive is lax.div_p else equation.inputs[0]
        return self.totals.get(value)


def product_layer(index: int, name: str, come_from: Sources, made: Sequence[int]) -> Layer:
    """The layer of one product or quotient."""
    graph, facts = come_from.graph, come_from.facts
    equation = graph.equations[index]
    operands = equation.inputs[:2]
    sources = [come_from.of(v) for v in operands]
    kinds = [source.kind if source is not None else "" for source in sources]
    softmax = [kind == "softmax" for kind in kinds]
    for source, other in zip(sources, reversed(operands), strict=True):
        if source is None or source.kind != "softmax" or come_from.summed(other) is source:
            continue
        source.details = dataclasses.replace(source.details, weighs=True)
    unit = [
        _is_unit(facts, v) or (s is not None and _shares(facts, s))
        for v, s in zip(operands, sources, strict=True)
    ]
    details = ProductDetails(
        unit=_pair(u and not s for u, s in zip(unit, softmax, strict=True)),
        softmax=_pair(softmax),
        activation=_pair(kind == "activation" for kind in kinds),
        fixed=_fixed(graph, facts, equation, made, come_from.producer),
        elementwise=equation.primitive in (lax.mul_p, lax.div_p),
    )
    inputs, others = boundary(graph, (index,), facts.tracked)
    return Layer("product", name, (index,), inputs, others, equation.outputs, details)


def _pair(flags: Iterable[bool]) -> tuple[bool, bool]:
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
    a, b = equation.inputs[:2]
    inverse = [_is_inverse(graph, facts, producer, v) for v in (a, b)]
    if inverse[0] != inverse[1]:
        return inverse[0], inverse[1]
    of_a, of_b = (roots(graph, facts, producer, v) for v in (a, b))
    first = made[a] == STATISTIC and of_a <= of_b
    second = made[b] == STATISTIC and of_b <= of_a
    if first and second:  # the one that is computed from less
        first, second = of_a < of_b, of_b < of_a
    return first, second


def _is_inverse(graph: Graph, facts: Facts, producer: Mapping[int, int], value: int) -> bool:
    """Whether a factor is a denominator, written as ``1 / b``."""
    while (index := producer.get(value)) is not None:
        equation = graph.equations[index]
        moving = [v for v in dict.fromkeys(equation.inputs) if facts.tracked[v]]
        if equation.primitive is lax.div_p and moving == [equation.inputs[1]]:
            return True
        if equation.primitive is lax.integer_pow_p:
            return equation.params["y"] < 0
        moves = equation.primitive in CAST | SCALE or is_routing(equation.primitive)
        if len(moving) != 1 or not moves:
            return False
        (value,) = moving
    return False
