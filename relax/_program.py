"""One call of a transform: traced, recognized, assigned, rewritten, ready to run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from relax import _arguments, _jaxpr, select
from relax._assign import assign
from relax._errors import ArgumentError, RelaxWarning, UnmatchedSelectorError, message
from relax._graph import Layer, flatten
from relax._paths import nearest
from relax._recognize import find_layers, gather_facts
from relax._rewrite import Rewritten
from relax.rules._base import pair


class Program:
    """A function on its arguments, with a rule for every layer.

    Args:
      fun, rules, argnums, at, has_aux: as in `relax.lrp`.
      args, kwargs: the arguments of the call; shapes and dtypes suffice until it is run.
      in_relevance: whether the outputs will be given relevance instead of a mask.
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
    ):
        traced = _arguments.trace(fun, args, kwargs, argnums, has_aux)
        self.traced = traced
        wanted = set(traced.explained)
        graph = flatten(traced.closed, [i in wanted for i in range(len(traced.leaves))])
        self.graph = graph
        explained = [graph.inputs[i] for i in traced.explained]
        outputs = graph.outputs[: traced.count]
        self.facts = gather_facts(graph, explained, outputs)
        names = dict(zip(graph.inputs, traced.names, strict=True))
        known = dict(zip(graph.consts, traced.closed.consts, strict=True)) | graph.literals
        for value, array in known.items():
            if id(array) in traced.closure_names:
                names[value] = traced.closure_names[id(array)]
        layers = find_layers(graph, self.facts, names)
        self.layers = layers
        self.rules = assign(rules, layers)
        self.latent = _latent(at, layers)
        self._check_dependence(explained, outputs)
        self.rewritten = Rewritten(
            graph,
            self.facts.tracked,
            layers,
            self.rules,
            tapped=tuple(dict.fromkeys(v for v in self.latent.values())),
            in_relevance=[v for v in outputs if self.facts.tracked[v]] if in_relevance else (),
            token=self.facts.token,
            sources=self.facts.sources,
        )

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
                "is looked up with it: there is nothing that could carry its relevance.\n"
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

    def run(self, exact_value: bool) -> tuple[Any, Any, Callable[[Any], tuple[Any, Any]]]:
        """The value, the auxiliary output, and the function that propagates its seeds."""
        traced, graph, rewritten = self.traced, self.graph, self.rewritten
        for name, leaf in zip(traced.names, traced.leaves, strict=True):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise ArgumentError(
                    f"`{name}` is a ShapeDtypeStruct, which holds no numbers.\n"
                    "  For the plan, which needs none: relax.layers(fun, rules)(*args)."
                )
        consts, leaves = traced.closed.consts, [jnp.asarray(a) for a in traced.leaves]
        moving = [i for i in traced.explained if graph.is_float(graph.inputs[i])]
        probes = [jnp.zeros_like(graph.avals[v]) for v in rewritten.tapped]
        carrying = graph.outputs[: traced.count]
        carried = [i for i, v in enumerate(carrying) if self.facts.tracked[v]]

        tokens = [i for i in traced.explained if i not in moving]
        blanks = [jnp.zeros_like(leaves[i], _shadow_dtype(graph)) for i in tokens]

        def forward(inputs: Sequence[Any], probes: Sequence[Any], blanks: Sequence[Any]) -> Any:
            arguments = list(leaves)
            for i, x in zip(moving, inputs, strict=True):
                arguments[i] = x
            shadows = {graph.inputs[i]: x for i, x in zip(tokens, blanks, strict=True)}
            outputs, seen = rewritten(consts, arguments, probes, shadows)
            return [outputs[i] for i in carried], (outputs, [seen[v] for v in rewritten.tapped])

        inputs = [leaves[i] for i in moving]
        _, pull_back, (outputs, seen) = jax.vjp(forward, inputs, probes, blanks, has_aux=True)
        if exact_value and not any(isinstance(a, Tracer) for a in (*consts, *leaves)):
            outputs = _jaxpr.jaxpr_as_fun(traced.closed)(*leaves)
        value = jax.tree.unflatten(traced.value_tree, outputs[: traced.count])
        aux = traced.rebuild_aux(outputs[traced.count :])
        of = rewritten.currencies.of

        def relprop(seeds: Any) -> tuple[Any, Any]:
            flat = jax.tree.leaves(seeds)
            messages = []
            for i in carried:
                seed = flat[i]
                if of[carrying[i]] == "relevance" and not rewritten.in_relevance:
                    seed = seed * outputs[i]
                messages.append(seed)
            at_inputs, at_probes, at_tokens = pull_back(messages)
            relevance: dict[int, Any] = {
                i: _relevance(of[graph.inputs[i]], leaves[i], c)
                for i, c in zip(moving, at_inputs, strict=True)
            }
            relevance |= dict(zip(tokens, at_tokens, strict=True))
            parts = [relevance[i] for i in traced.explained]
            found = {
                v: _relevance(of[v], x, c)
                for v, x, c in zip(rewritten.tapped, seen, at_probes, strict=True)
            }
            return traced.rebuild(parts), {path: found[v] for path, v in self.latent.items()}

        return value, aux, relprop


def _shadow_dtype(graph: Any) -> Any:
    """Relevance of tokens in the widest float type of the value, at least float32."""
    floats = [graph.avals[v].dtype for v in graph.outputs if graph.is_float(v)]
    return jnp.result_type(jnp.float32, *(d for d in floats if jnp.issubdtype(d, jnp.floating)))


def _relevance(currency: str, value: Any, carried: Any) -> Any:
    return carried if currency == "relevance" else pair(value, carried)


def _latent(at: Any, layers: Sequence[Layer]) -> dict[str, int]:
    """Path to value of every layer whose relevance is wanted."""
    if at is None:
        return {}
    found: dict[str, int] = {}
    for selector in (at,) if isinstance(at, str) or callable(at) else tuple(at):
        test = select.predicate(selector)
        own = [layer for layer in layers if test(layer)]
        if not own:
            known = [p for layer in layers for p in (layer.label, layer.weight_path)]
            close = ", ".join(repr(path) for path in nearest(test.name.strip("'"), known))
            raise UnmatchedSelectorError(
                message(
                    f"at={test.name} matches no layer",
                    remedy=f"Nearest: {close or 'none, the function has no layers'}.",
                )
            )
        found |= {layer.label: layer.outputs[0] for layer in own}
    return found
