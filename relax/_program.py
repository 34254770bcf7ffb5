"""One call of a transform: traced, recognized, assigned, rewritten, ready to be run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax import _arguments
from relax._assign import assign
from relax._currency import Currencies, find_currencies
from relax._ending import Ending, ending
from relax._errors import ArgumentError, RelaxWarning, message
from relax._graph import Layer, flatten, prune
from relax._latent import conditions, joined, latent
from relax._recognize import AFFINE, gather_facts
from relax._rewrite import Rewritten
from relax._rounds import Tap
from relax._sections import Section, find_sections
from relax.rules._base import Currency


class Program:
    """A function on its arguments, with a rule for every layer.

    Args:
      fun, rules, argnums, at, has_aux: as in `relax.lrp`.
      args, kwargs: the arguments of the call; shapes and dtypes suffice until it is run.
      in_relevance: whether the outputs will be given relevance instead of a mask.
      counts: whether an account is kept of what each layer absorbs.
    """

    def __init__(
        self,
        fun: Any,
        rules: Any,
        argnums: Any,
        at: Any,
        has_aux: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        in_relevance: bool = False,
        counts: bool = False,
    ):
        traced = _arguments.trace(fun, args, kwargs, argnums, has_aux)
        self.traced = traced
        wanted = set(traced.explained)
        graph = flatten(traced.closed, [i in wanted for i in range(len(traced.leaves))])
        self.graph = graph
        explained = [graph.inputs[i] for i in traced.explained]
        outputs = graph.outputs[: traced.count]
        prune(graph, outputs)  # the auxiliary output is computed by itself
        self.facts = gather_facts(graph, explained, outputs)
        names = dict(zip(graph.inputs, traced.names, strict=True))
        known = dict(zip(graph.consts, traced.closed.consts, strict=True)) | graph.literals
        for value, array in known.items():
            if id(array) in traced.closure_names:
                names[value] = traced.closure_names[id(array)]
        section = find_sections(graph, self.facts, names, traced.closure_names)
        self.section = section
        standing = list(section.every())
        self.layers = [layer for _, layer in standing]
        named = section.named()
        self.rules, masks = assign(rules, self.layers, [n.addresses for n in named])
        self.latent = latent(at, standing, named)
        self._check_dependence(explained, outputs)
        self.in_relevance = in_relevance
        given = [v for v in outputs if self.facts.tracked[v]] if in_relevance else ()
        self.currencies = find_currencies(section, self.rules, given)
        at_values = conditions(masks, standing, named)
        self.conditions = [(named[i], rules) for i, rules in masks.on_values.items()]
        self.at_outputs = [(self.layers[i], rules) for i, rules in masks.on_layers.items()]
        self.rewritten = Rewritten(
            section, self.rules, self.currencies, masks=at_values, counts=counts
        )
        self.rounds = dict(self.rewritten.rounds())
        self.accounts = list(self.rewritten.accounts()) if counts else []
        self._refuse_mapped_accounts()
        self.of_section = dict(_currencies(section, self.currencies))

    def endings(self) -> list[Ending | None]:
        """The softmax or sigmoid that each output ends in, if it does."""
        outputs = self.graph.outputs[: self.traced.count]
        return [ending(self.graph, self.section.layers, v) for v in outputs]

    def _refuse_mapped_accounts(self) -> None:
        for _, section, unit, layer, _ in self.accounts:
            if section.sharded:
                equation = section.graph.equations[layer.owned[0] if layer else unit[1]]
                raise ArgumentError(
                    message(
                        "no account is kept inside of a shard_map, where each device has its own",
                        where=equation.where,
                        path=layer.label if layer else equation.scope,
                        remedy="Call relax.ledger inside of it, or without it on one device.",
                    )
                )

    def counters(self) -> dict[Tap, jax.Array]:
        """For each sum of the account a zero, whose derivative it is; in a scan, one a round."""
        dtype = self.shadow_dtype()
        blank = {}
        for place, section, unit, _, causes in self.accounts:
            for kind in ("in", "out", *causes):
                blank[place, (kind, unit)] = jnp.zeros(section.lengths, dtype)
        return blank

    def shadow_dtype(self) -> Any:
        """Of relevance of tokens: the widest float type of the value, at least float32."""
        graph = self.graph
        floats = [graph.avals[v].dtype for v in graph.outputs if graph.is_float(v)]
        return jnp.result_type(jnp.float32, *(d for d in floats if jnp.issubdtype(d, jnp.floating)))

    def gives(self, layer: Layer) -> str:
        """What a layer hands to its input: coefficients or relevance."""
        for section, found in self.of_section.values():
            if layer in section.layers:
                return found.given.get(layer.closing, "coefficient")
        raise KeyError(layer.label)

    def _check_dependence(self, explained: Sequence[int], outputs: Sequence[int]) -> None:
        tracked, depends = self.facts.tracked, self.graph.depends
        if any(tracked[v] for v in outputs):
            return
        if all(math.prod(self.graph.shape(v)) == 0 for v in explained):
            return  # nothing is explained, and jax.numpy leaves the look-up of nothing out
        integers = [
            name
            for name, value in zip(self._explained_names(), explained, strict=True)
            if not self.graph.is_float(value)
        ]
        if integers:
            raise ArgumentError(
                f"The explained argument `{integers[0]}` is an integer array, and no float value "
                "is looked up with it as it is (ids that were sorted, added or counted are ids no "
                "more): there is nothing that could carry its relevance.\n"
                "  Explain a float argument (argnums), for example the embedded input."
            )
        why = (
            "only through comparisons, integers or stop_gradient"
            if any(depends[v] for v in outputs)
            else "not at all"
        )
        warnings.warn(
            f"The output depends on the explained input {why}, so all relevance is zero.\n"
            "  Is argnums right? The default explains the last argument.",
            RelaxWarning,
            stacklevel=5,
        )

    def _explained_names(self) -> list[str]:
        return [self.traced.names[i] for i in self.traced.explained]

    def probe(self, tap: Tap) -> jax.Array:
        """Zeros of the shape of a value, stacked over the scans around it."""
        section, _ = self.of_section[tap[0]]
        aval = section.graph.avals[tap[1]]
        if not section.lengths:
            return jnp.zeros_like(aval)
        return jnp.zeros((*section.lengths, *aval.shape), aval.dtype)

    def taps(self) -> tuple[Tap, ...]:
        """All values at the places that `at` names."""
        return tuple(dict.fromkeys(tap for parts in self.latent.values() for tap in parts))

    def is_rectified(self, tap: Tap) -> bool:
        """Whether a value is the output of an affine layer that a rectifier reads."""
        section, _ = self.of_section[tap[0]]
        affine = (layer for layer in section.layers if layer.kind in AFFINE)
        return any(
            getattr(layer.details, "dead_below", False)
            for layer in affine
            if tap[1] in layer.outputs
        )

    def currency(self, tap: Tap) -> Currency:
        """What arrives at a value."""
        return self.of_section[tap[0]][1].of[tap[1]]

    def pieces(self, path: str, mask: jax.Array) -> dict[Tap, jax.Array]:
        """A mask of what stands at a path, for each of the values that are put together there."""
        taps = self.latent[path]
        if len(taps) == 1:
            return {taps[0]: mask}
        put = lambda parts: self.by_path(dict(zip(taps, parts, strict=True)) | rest)[path]
        rest = {tap: self.probe(tap) for tap in self.taps() if tap not in taps}
        parts = [self.probe(tap) for tap in taps]
        whole = jax.eval_shape(put, parts)
        _, transpose = jax.vjp(put, parts)  # a permutation: its transpose takes it apart again
        (found,) = transpose(jnp.broadcast_to(mask, whole.shape).astype(whole.dtype))
        return dict(zip(taps, found, strict=True))

    def by_path(self, found: dict[Tap, jax.Array]) -> dict[str, jax.Array]:
        """Arrays at the places that `at` names, by path."""
        return {
            path: joined([found[tap] for tap in parts], path, self.of_section.values())
            for path, parts in self.latent.items()
        }

    def rounds_of(self, path: str) -> int:
        """How many scans a place stands in that `at` names."""
        return len(self.of_section[self.latent[path][0][0]][0].lengths)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the arrays at the places that `at` names."""
        return jax.eval_shape(lambda: self.by_path({tap: self.probe(tap) for tap in self.taps()}))

    def in_order(self) -> list[str]:
        """The places that `at` names, in order of evaluation."""
        position = {tap: number for number, tap in enumerate(self.section.values())}
        return sorted(self.latent, key=lambda path: position[self.latent[path][-1]])


def _currencies(
    section: Section, currencies: Currencies
) -> Iterator[tuple[int, tuple[Section, Currencies]]]:
    """The currencies of each section of a tree, by its identity."""
    yield id(section), (section, currencies)
    for index, bodies in section.inner.items():
        for body, found in zip(bodies, currencies.inner[index], strict=True):
            yield from _currencies(body, found)
