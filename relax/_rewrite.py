"""The evaluation loop: the function again, each layer replaced by its rule's operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax.numpy as jnp
from jax import lax

from relax._currency import Currencies, find_currencies
from relax._graph import Equation, Graph, Layer
from relax._ops import (
    LayerOp,
    held,
    propagate,
    propagate_custom,
    tap,
    to_coefficient,
    to_relevance,
    widened,
)
from relax._tokens import Tokens
from relax.rules import Custom, Epsilon, Jacobian, Linear, Pass, Rule, Winner


@dataclasses.dataclass(eq=False, repr=False)
class Rewritten:
    """A function whose derivative is relevance.

    Attributes:
      graph, tracked: the function and which of its values carry relevance.
      layers, rules: its layers, and the rule of each.
      tapped: values whose message is wanted as well.
      in_relevance: outputs that will be given relevance instead of a coefficient.
      token, sources: integers that carry relevance, and the equations that embed them.
    """

    graph: Graph
    tracked: Sequence[bool]
    layers: Sequence[Layer]
    rules: Sequence[Rule]
    tapped: Sequence[int] = ()
    in_relevance: Sequence[int] = ()
    token: Sequence[bool] = ()
    sources: Set[int] = frozenset()

    def __post_init__(self) -> None:
        self.owner = {i: layer for layer in self.layers for i in layer.owned}
        self._hear_readers()
        self.currencies: Currencies = find_currencies(
            self.graph, self.tracked, self.owner, self.rules, self.in_relevance
        )

    def _hear_readers(self) -> None:
        """A rectifier passes nothing below zero under Pass alone; another rule may."""
        consumers = self.graph.consumers()
        for layer in self.layers:
            if not getattr(layer.details, "dead_below", False) or layer.kind == "activation":
                continue
            readers = [self.owner[i] for i in consumers[layer.outputs[0]] if i in self.owner]
            if any(type(self.rules[reader.index]) is not Pass for reader in readers):
                layer.details = dataclasses.replace(layer.details, dead_below=False)

    def is_native(self, layer: Layer) -> bool:
        """The rule is the derivative JAX takes anyway."""
        if layer.kind == "unsupported":  # so that a derivative JAX does not have is our error
            return False
        if layer.kind == "embedding":
            return True
        rule = self.rules[layer.index]
        last = layer.equations[-1]
        given = self.currencies.given.get(last, "coefficient")
        if type(rule) is Winner:
            return True
        if type(rule) is Linear or (type(rule) is Jacobian and layer.kind == "softmax"):
            return given == "coefficient"
        if type(rule) is Epsilon and layer.kind in ("dense", "conv"):
            arriving = self.currencies.arriving.get(last, "coefficient")
            return rule.is_transpose and arriving == "coefficient"
        return False

    def __call__(
        self,
        consts: Sequence[Any],
        arguments: Sequence[Any],
        probes: Sequence[Any] = (),
        shadows: Mapping[int, Any] | None = None,
    ) -> tuple[list[Any], dict[int, Any]]:
        """Evaluates the function: its outputs, and the tapped values.

        ``shadows`` are floats in the place of explained integers, to carry their relevance.
        """
        graph, of = self.graph, self.currencies.of
        env: dict[int, Any] = dict(graph.literals)
        pending = dict(zip(self.tapped, probes, strict=True))
        seen: dict[int, Any] = {}
        tokens = Tokens(graph, self.token, dict(shadows or {}))

        def write(value: int, x: Any) -> None:
            if value in pending:
                seen[value] = x
                x = tap(x, pending[value])
            env[value] = x

        def read(value: int, given: str) -> Any:
            x = env[value]
            if self.tracked[value] and of[value] == "relevance" and given == "coefficient":
                return to_relevance(x)
            return x

        for value, x in zip(graph.consts, consts, strict=True):
            write(value, x)
        for value, x in zip(graph.inputs, arguments, strict=True):
            write(value, x)
        for index, equation in enumerate(graph.equations):
            layer = self.owner.get(index)
            if layer is not None and not self.is_native(layer):
                if layer.equations[-1] == index:
                    for value, x in zip(
                        layer.outputs, self._layer(layer, index, read), strict=True
                    ):
                        write(value, x)
                continue
            closing = layer.equations[-1] if layer is not None else index
            given = self.currencies.given.get(closing, "coefficient")
            operands = [read(value, given) for value in equation.inputs]
            if layer is not None and layer.kind == "normalization":
                _hold_statistic(layer.details, index, operands)
            results: list[Any]
            if layer is None and _widens(equation, operands):
                results = [widened(equation.params["new_dtype"], *operands)]
            else:
                results = equation.evaluate(operands)
            if index in self.sources:
                arriving = self.currencies.arriving.get(closing, "coefficient")
                results = [tokens.embedded(equation, x, arriving) for x in results]
            else:
                tokens.follow(equation)
            for value, x in zip(equation.outputs, results, strict=True):
                write(value, self._exchanged(value, x, layer, closing))
        return [env[value] for value in graph.outputs], seen

    def _layer(self, layer: Layer, index: int, read: Any) -> tuple[Any, ...]:
        given, arriving = self.currencies.given[index], self.currencies.arriving[index]
        op, arrays = LayerOp.create(self.graph, layer, self.rules[layer.index], arriving)
        inputs = tuple(read(value, given) for value in layer.inputs)
        operands = tuple(read(value, given) for value in layer.operands)
        if type(self.rules[layer.index]) is Custom:
            outputs: Any = propagate_custom(op, inputs, operands)
        else:
            outputs = propagate(op, arrays, inputs, operands)
        if arriving == "coefficient":
            return outputs
        return tuple(
            x if self.currencies.of[v] == "relevance" else to_relevance(x)
            for v, x in zip(layer.outputs, outputs, strict=True)
        )

    def _exchanged(self, value: int, x: Any, layer: Layer | None, closing: int) -> Any:
        """An output of an operation JAX differentiates itself, in the currency it is read in."""
        if not self.tracked[value] or (layer is not None and value not in layer.outputs):
            return x
        native = self.currencies.given.get(closing, "coefficient")
        wanted = self.currencies.of[value]
        if wanted == native:
            return x
        return to_coefficient(x) if wanted == "relevance" else to_relevance(x)


def _hold_statistic(details: Any, index: int, operands: list[Any]) -> None:
    for product, position in details.held:
        if index == product:
            operands[position] = held(operands[position])


def _widens(equation: Equation, operands: Sequence[Any]) -> bool:
    """A cast whose transpose might overflow."""
    if equation.primitive is not lax.convert_element_type_p or operands[0].dtype != jnp.float16:
        return False
    return jnp.issubdtype(equation.params["new_dtype"], jnp.floating)
