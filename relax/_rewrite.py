"""The evaluation loop: the function again, each layer replaced by its rule's operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from relax import _jaxpr
from relax._currency import Currencies
from relax._graph import Equation, Layer
from relax._ops import (
    LayerOp,
    counted,
    held,
    masked,
    propagate,
    propagate_custom,
    tap,
    to_coefficient,
    to_relevance,
    widened,
)
from relax._recognize import AFFINE
from relax._rounds import Tap, is_round, of_round, stacked
from relax._sections import Section
from relax._tokens import Tokens
from relax.rules import Custom, Epsilon, Jacobian, Linear, Pass, Rule, Winner
from relax.rules._base import CAUSES, Currency
from relax.rules.general import fitting


@dataclasses.dataclass(eq=False, repr=False)
class Rewritten:
    """A program whose derivative is relevance.

    Attributes:
      section: the program and its layers; ``rules``: the rule of each layer, by its index.
      currencies: in what each message travels.
      masks: of values that have a name, by their place.
      counts: whether an account is kept; then every layer is an operation of its own.
      entering, leaving: what it must give to its inputs, and what arrives at its outputs; by
        default what its own layers give and take.
    """

    section: Section
    rules: Sequence[Rule]
    currencies: Currencies
    entering: Sequence[Currency] | None = None
    leaving: Sequence[Currency] | None = None
    masks: Mapping[Tap, Sequence[Any]] = dataclasses.field(default_factory=dict)
    counts: bool = False

    def __post_init__(self) -> None:
        section, of = self.section, self.currencies.of
        self.graph, self.tracked = section.graph, section.facts.tracked
        self.owner = {i: layer for layer in section.layers for i in layer.owned}
        self.entering = self.entering or [of[v] for v in self.graph.inputs]
        self.leaving = self.leaving or [of[v] for v in self.graph.outputs]
        self.inner = {
            index: tuple(
                Rewritten(
                    body,
                    self.rules,
                    currencies,
                    self.currencies.entering[index],
                    self.currencies.leaving[index],
                    self.masks,
                    self.counts,
                )
                for body, currencies in zip(bodies, self.currencies.inner[index], strict=True)
            )
            for index, bodies in section.inner.items()
        }
        self.made_by = {v: layer for layer in self.section.layers for v in layer.outputs}
        self._hear_readers()

    def accounts(self) -> Iterator[tuple[int, Section, Any, Layer | None, tuple[str, ...]]]:
        """What an account is kept of: layers, and other equations that may keep relevance.

        With the causes that are counted there.
        """
        place = id(self.section)
        for layer in self.section.layers:
            yield place, self.section, layer.index, layer, CAUSES
        for index, equation in enumerate(self.graph.equations):
            if index in self.owner or not any(self.tracked[v] for v in equation.outputs):
                continue
            causes = ("mask",) if (place, equation.outputs[0]) in self.masks else ()
            yield place, self.section, ("equation", index), None, causes
            for body in self.inner.get(index, ()):
                yield from body.accounts()

    def rounds(self) -> Iterator[tuple[Tap, jax.Array]]:
        """The values of each `PerRound`, of rules and of masks."""
        for layer in self.section.layers:
            rule = self.rules[layer.index]
            yield from stacked(self.section, layer.index, rule, layer.where, layer.label)
        for index, equation in enumerate(self.graph.equations):
            for value in equation.outputs:
                masks = self.masks.get((id(self.section), value), [])
                where = equation.where if masks else ""
                yield from stacked(self.section, ("value", value), masks, where, equation.scope)
            for body in self.inner.get(index, ()):
                yield from body.rounds()

    def sections(self) -> Iterator[int]:
        """Identities of the sections of the tree."""
        yield id(self.section)
        for bodies in self.inner.values():
            for body in bodies:
                yield from body.sections()

    def _hear_readers(self) -> None:
        """A rectifier passes nothing below zero under Pass alone; another rule may."""
        consumers = self.graph.consumers()
        for layer in self.section.layers:
            if not getattr(layer.details, "dead_below", False) or layer.kind == "activation":
                continue
            reading = {i for value in layer.outputs for i in consumers[value]}
            readers = [self.owner[i] for i in reading if i in self.owner]
            if any(type(self.rules[reader.index]) is not Pass for reader in readers):
                layer.details = dataclasses.replace(layer.details, dead_below=False)

    def is_native(self, layer: Layer) -> bool:
        """The rule is the derivative JAX takes anyway."""
        if layer.kind == "unsupported":  # so that a derivative JAX does not have is our error
            return False
        if layer.kind == "embedding":
            return True
        if self.counts and layer.kind not in ("winner", "max_pool"):
            return False
        rule = self.rules[layer.index]
        last = layer.closing
        given = self.currencies.given.get(last, "coefficient")
        if type(rule) is Winner:
            return True
        if layer.kind == "softmax" and not layer.details.is_plain:
            return False
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
        probes: Mapping[Tap, Any] | None = None,
        shadows: Mapping[int, Any] | None = None,
    ) -> tuple[list[Any], dict[Tap, Any]]:
        """Evaluates the program: its outputs, and the values that have a probe.

        ``shadows`` are floats in the place of explained integers, to carry their relevance.
        """
        graph, of, facts = self.graph, self.currencies.of, self.section.facts
        env: dict[int, Any] = dict(graph.literals)
        pending, seen = dict(probes or {}), {}
        tokens = Tokens(graph, facts.token, dict(shadows or {}))

        def write(value: int, x: Any) -> None:
            probe = pending.get((id(self.section), value))
            if probe is not None:
                seen[id(self.section), value] = x
                x = tap(x, probe)
            env[value] = x

        def count(key: Any, value: int, x: Any, currency: Currency) -> Any:
            total = pending.get((id(self.section), key))
            return x if total is None or not self.tracked[value] else counted(currency, x, total)

        def condition(unit: Any, value: int, x: Any) -> Any:
            total = pending.get((id(self.section), ("mask", unit)))
            masks = self.masks.get((id(self.section), value), [])
            for mask in of_round(self.section, ("value", value), masks, pending):
                x = masked(of[value], x, fitting(mask, x), total)
            return x

        def read(value: int, given: str) -> Any:
            x = env[value]
            if self.tracked[value] and of[value] == "relevance" and given == "coefficient":
                return self._to_relevance(value, x)
            return x

        for value, x in zip(graph.consts, consts, strict=False):
            write(value, x)
        for value, x, wanted in zip(graph.inputs, arguments, self.entering or (), strict=True):
            differs = self.tracked[value] and of[value] != wanted
            write(value, self._to_relevance(value, x) if differs else x)
        for index, equation in enumerate(graph.equations):
            if index in self.inner:
                results, more = self._run_bodies(index, equation, env, read, pending)
                seen.update(more)
                for value, x, native in zip(
                    equation.outputs, results, self.currencies.leaving[index], strict=True
                ):
                    differs = self.tracked[value] and of[value] != native
                    write(value, self._to_relevance(value, x) if differs else x)
                continue
            layer = self.owner.get(index)
            if layer is not None and not self.is_native(layer):
                if layer.closing == index:
                    made = self._layer(layer, index, read, count, pending)
                    for value, x in zip(layer.outputs, made, strict=True):
                        x = condition(layer.index, value, x)
                        write(value, count(("out", layer.index), value, x, of[value]))
                    self._decisions(layer, equation, env)
                continue
            closing = layer.closing if layer is not None else index
            given = self.currencies.given.get(closing, "coefficient")
            unit = ("equation", index) if layer is None else layer.index
            operands = [
                count(("in", unit), value, read(value, given), given) for value in equation.inputs
            ]
            if layer is not None and layer.kind == "normalization":
                _hold_statistic(layer.details, index, operands)
            results: list[Any]
            if layer is None and _widens(equation, operands):
                results = [widened(equation.params["new_dtype"], *operands)]
            else:
                results = equation.evaluate(operands)
            if index in facts.sources:
                arriving = self.currencies.arriving.get(closing, "coefficient")
                total = pending.get((id(self.section), ("in", unit)))
                results = [tokens.embedded(equation, x, arriving, total) for x in results]
            else:
                tokens.follow(equation)
            for value, x in zip(equation.outputs, results, strict=True):
                x = condition(unit, value, self._exchanged(value, x, layer, closing))
                write(value, count(("out", unit), value, x, of[value]))
        outputs = [
            self._to_relevance(value, env[value])
            if self.tracked[value] and of[value] != arriving
            else env[value]
            for value, arriving in zip(graph.outputs, self.leaving or (), strict=True)
        ]
        return outputs, seen

    def _run_bodies(
        self, index: int, equation: Equation, env: Any, read: Any, probes: Mapping[Tap, Any]
    ) -> tuple[list[Any], dict[Tap, Any]]:
        """The programs of an equation, run as JAX would run them."""
        control, bodies = equation.control, self.inner[index]
        assert control is not None
        first = [env[value] for value in equation.inputs[: control.leading]]
        lost = probes.get((id(self.section), ("out", ("equation", index))))
        rest: list[Any] = []
        for place, (value, given) in enumerate(
            zip(equation.inputs[control.leading :], self.currencies.entering[index], strict=True)
        ):
            x = read(value, given)
            carried = any(body.tracked[body.graph.inputs[place]] for body in bodies)
            starts = carried and not self.tracked[value]  # such as the first state of a scan
            rest.append(counted(given, x, lost) if lost is not None and starts else x)
        inside = {section for body in bodies for section in body.sections()}
        keys = [key for key in probes if key[0] in inside]
        seen_keys = [key for key in keys if not is_round(key)]

        def function(body: Rewritten) -> Any:
            own = set(body.sections())

            def run(operands: Sequence[Any], given: Sequence[Any]) -> Any:
                known = dict(zip(keys, given, strict=True))
                outputs, seen = body((), operands, {k: p for k, p in known.items() if k[0] in own})
                # another branch may be taken, in which the layer does not stand
                return outputs, [seen.get(key, jnp.zeros_like(known[key])) for key in seen_keys]

            return run

        results, more = _jaxpr.run(
            control,
            equation.sources,
            [function(body) for body in bodies],
            [*first, *rest],
            [probes[key] for key in keys],
        )
        return results, dict(zip(seen_keys, more, strict=True))

    def _layer(
        self, layer: Layer, index: int, read: Any, count: Any, totals: Mapping[Any, Any]
    ) -> tuple[Any, ...]:
        given, arriving = self.currencies.given[index], self.currencies.arriving[index]
        rule = of_round(self.section, layer.index, self.rules[layer.index], totals)
        activation = self._in_front(layer)
        op, arrays = LayerOp.create(self.graph, layer, rule, arriving, activation)
        key = ("in", layer.index)
        inputs = tuple(count(key, value, read(value, given), given) for value in layer.inputs)
        causes = ()
        if self.counts:
            keys = ((id(self.section), (cause, layer.index)) for cause in CAUSES)
            causes = tuple(totals[key] for key in keys)
        operands = tuple(read(value, given) for value in layer.operands)
        if type(self.rules[layer.index]) is Custom:
            outputs: Any = propagate_custom(op, inputs, operands)
        else:
            before = (*activation.inputs, *activation.operands) if activation else ()
            made_from = tuple(read(value, "relevance") for value in before)
            outputs = propagate(op, arrays, inputs, operands, causes, made_from)
        if arriving == "coefficient":
            return outputs
        return tuple(
            x if self.currencies.of[v] == "relevance" else self._to_relevance(v, x)
            for v, x in zip(layer.outputs, outputs, strict=True)
        )

    def _in_front(self, layer: Layer) -> Layer | None:
        """The rectifier that made the input of an affine layer.

        Of its input and its output only one need be kept, and XLA takes the input where it can.
        """
        if layer.kind not in AFFINE or len(layer.inputs) != 1:
            return None
        found = self.made_by.get(layer.inputs[0])
        rectifies = found is not None and found.kind == "activation" and found.details.dead_below
        return found if rectifies else None

    def _decisions(self, layer: Layer, equation: Equation, env: dict[int, Any]) -> None:
        """Results that carry no relevance, such as indices, of an operation under a rule."""
        others = [v for v in equation.outputs if v not in layer.outputs]
        if not others or len(layer.equations) > 1:
            return
        results = equation.evaluate([env[v] for v in equation.inputs])
        for value, x in zip(equation.outputs, results, strict=True):
            if value in others:
                env[value] = held(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    def _exchanged(self, value: int, x: Any, layer: Layer | None, closing: int) -> Any:
        """An output of an operation JAX differentiates itself, in the currency it is read in."""
        if not self.tracked[value] or (layer is not None and value not in layer.outputs):
            return x
        native = self.currencies.given.get(closing, "coefficient")
        wanted = self.currencies.of[value]
        if wanted == native:
            return x
        return to_coefficient(x) if wanted == "relevance" else self._to_relevance(value, x)

    def _to_relevance(self, value: int, x: Any) -> Any:
        return to_relevance(self.section.facts.nonnegative(value), x)


def _hold_statistic(details: Any, index: int, operands: list[Any]) -> None:
    for product, position in details.held:
        if index == product:
            operands[position] = held(operands[position])


def _widens(equation: Equation, operands: Sequence[Any]) -> bool:
    """A cast whose transpose might overflow."""
    if equation.primitive is not lax.convert_element_type_p or operands[0].dtype != jnp.float16:
        return False
    return jnp.issubdtype(equation.params["new_dtype"], jnp.floating)
