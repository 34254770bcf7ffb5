"""A program on numbers: evaluated once; relevance is propagated as often as it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from relax import _jaxpr
from relax._errors import ArgumentError
from relax._numerics import positive
from relax._program import Program
from relax._rounds import Tap
from relax.rules._base import pair


class Run:
    """One evaluation of a program.

    Args:
      program: traced and assigned.
      exact_value: whether the value is that of the function to the bit, outside of jit.
      restarts: whether `onward` will be called.

    Attributes:
      value, aux: of the function.
      latent_values: what stands at the places of ``at``, by path.
      totals: of the account, once relevance was propagated.
    """

    def __init__(self, program: Program, exact_value: bool = False, restarts: bool = False):
        self.program, self.restarts = program, restarts
        traced, graph = program.traced, program.graph
        for name, leaf in zip(traced.names, traced.leaves, strict=True):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise ArgumentError(
                    f"`{name}` is a ShapeDtypeStruct, which holds no numbers.\n"
                    "  For the plan, which needs none: relax.layers(fun, rules)(*args)."
                )
        consts, leaves = traced.closed.consts, [jnp.asarray(a) for a in traced.leaves]
        self._leaves = leaves
        self._moving = [i for i in traced.explained if graph.is_float(graph.inputs[i])]
        self._tokens = [i for i in traced.explained if i not in self._moving]
        self._taps = program.taps()
        carrying = graph.outputs[: traced.count]
        self._carried = [i for i, v in enumerate(carrying) if program.facts.tracked[v]]
        self._blank = program.counters()

        def forward(
            inputs: Sequence[Any],
            probes: Sequence[Any],
            blanks: Sequence[Any],
            counters: Sequence[Any],
        ) -> Any:
            arguments = list(leaves)
            for i, x in zip(self._moving, inputs, strict=True):
                arguments[i] = x
            shadows = {graph.inputs[i]: x for i, x in zip(self._tokens, blanks, strict=True)}
            keys, given = (*self._taps, *self._blank), (*probes, *counters)
            known = dict(zip(keys, given, strict=True)) | program.rounds
            outputs, seen = program.rewritten(consts, arguments, known, shadows)
            values = [seen[tap] for tap in self._taps]
            ends = [outputs[i] for i in self._carried], values if restarts else []
            return ends, (outputs, values)

        _, self._pull_back, (outputs, self._seen) = jax.vjp(
            forward,
            [leaves[i] for i in self._moving],
            [program.probe(tap) for tap in self._taps],
            [jnp.zeros_like(leaves[i], program.shadow_dtype()) for i in self._tokens],
            list(self._blank.values()),
            has_aux=True,
        )
        exact = exact_value and not any(isinstance(a, Tracer) for a in (*consts, *leaves))
        extra: list[Any] = []
        if exact or len(traced.closed.jaxpr.outvars) > traced.count:
            whole = _jaxpr.jaxpr_as_fun(traced.closed)(*leaves)
            extra = whole[traced.count :]
            outputs = whole[: traced.count] if exact else outputs
        self._outputs = outputs
        self._messages: dict[Tap, jax.Array] = {}  # what arrived at the places of `at`
        self.totals: dict[Tap, jax.Array] = {}
        self.latent_values = program.by_path(dict(zip(self._taps, self._seen, strict=True)))
        self.value = jax.tree.unflatten(traced.value_tree, outputs)
        self.aux = traced.rebuild_aux(extra)

    def relprop(self, seeds: Any) -> tuple[Any, Any]:
        """Relevance of the explained arguments, and at the places of ``at``, from the outputs'."""
        starts = [jnp.zeros_like(x) for x in self._seen] if self.restarts else []
        found, messages, totals = self._propagate(self._ends(seeds), starts)
        self._messages = dict(zip(self._taps, messages, strict=True))
        self.totals = dict(zip(self._blank, totals, strict=True))
        return found

    def _ends(self, seeds: Any) -> list[Any]:
        """What the outputs are handed, in the currency of each."""
        program, flat = self.program, jax.tree.leaves(seeds)
        of, carrying = program.currencies.of, program.graph.outputs
        ends = []
        for i in self._carried:
            seed = flat[i]
            if of[carrying[i]] == "relevance" and not program.in_relevance:
                seed = seed * self._outputs[i]
            ends.append(seed)
        return ends

    def coefficients(self, seeds: Any) -> Any:
        """Of the explained arguments: what multiplies them, or their difference from others."""
        of, inputs = self.program.currencies.of, self.program.graph.inputs
        assert all(of[inputs[i]] == "coefficient" for i in self._moving)
        found, *_ = self._pull_back((self._ends(seeds), []))
        return self.program.traced.rebuild(found)

    def onward(self, path: str, mask: jax.Array) -> tuple[Any, Any]:
        """As `relprop`, from a part of what has arrived at one place of ``at``, all else zero."""
        pieces = self.program.pieces(path, mask)
        starts = [
            (self._messages[tap] * pieces[tap]).astype(x.dtype)
            if tap in pieces
            else jnp.zeros_like(x)
            for tap, x in zip(self._taps, self._seen, strict=True)
        ]
        ends = [jnp.zeros_like(self._outputs[i]) for i in self._carried]
        return self._propagate(ends, starts)[0]

    def take_values_as_relevance(self) -> None:
        """Lets `onward` start with the values themselves, in the place of what has arrived.

        Without those that a rectifier behind them drops.
        """
        program = self.program
        for tap, x in zip(self._taps, self._seen, strict=True):
            kept = positive(x) if program.is_rectified(tap) else x
            relevance = program.currency(tap) == "relevance"
            self._messages[tap] = kept if relevance else jnp.ones_like(x)

    def _propagate(self, ends: Any, starts: Sequence[Any]) -> tuple[tuple[Any, Any], Any, Any]:
        """What `relprop` returns, what arrived at the places of ``at``, and the account's sums."""
        program, traced = self.program, self.program.traced
        of, inputs = program.currencies.of, program.graph.inputs
        at_inputs, at_probes, at_tokens, totals = self._pull_back((ends, starts))
        relevance: dict[int, Any] = {
            i: _relevance(of[inputs[i]], self._leaves[i], c)
            for i, c in zip(self._moving, at_inputs, strict=True)
        }
        relevance |= dict(zip(self._tokens, at_tokens, strict=True))
        found = {
            tap: _relevance(program.currency(tap), x, c)
            for tap, x, c in zip(self._taps, self._seen, at_probes, strict=True)
        }
        explained = traced.rebuild([relevance[i] for i in traced.explained])
        return (explained, program.by_path(found)), at_probes, totals


def _relevance(currency: str, value: Any, carried: Any) -> Any:
    return carried if currency == "relevance" else pair(value, carried)
