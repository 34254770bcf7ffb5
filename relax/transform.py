"""The transforms: a function in, a function out, as jax.grad, jax.value_and_grad and jax.vjp."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax import _arguments, _jaxpr, _target
from relax._assign import assign
from relax._errors import ArgumentError, RelaxWarning, UnmatchedSelectorError, message
from relax._graph import Layer, flatten
from relax._paths import addresses, matches, nearest
from relax._recognize import find_layers, gather_facts
from relax._rewrite import Rewritten
from relax.rules import Epsilon
from relax.rules._base import pair


def lrp(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),  # noqa: B008
    *,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
    at: str | Sequence[str] | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""As jax.grad, but returns relevance under rules instead of the gradient.

    The relevance of the chosen outputs, $R = z \odot \mathrm{mask}$, is propagated back through
    every layer of ``fun`` by the rule of that layer.

    Args:
      fun: any JAX function of arrays or pytrees of arrays; it may return any pytree of arrays.
      rules: one rule; a composite; a mapping or list of (selector, rule); or a callable
        ``layer -> rule | None``. The first match wins, the rest keeps its default: Epsilon for
        dense layers and convolutions, Pass for activations, the transpose for linear layers, the
        winner for max and its kin. An affine rule alone goes to every affine layer.
      argnums: which positional arguments are explained, as in jax.grad, but the default is the
        last one, the input in ``apply(params, x)``.
      target: which output is explained. None: all. An int, or an integer array of shape
        ``value.shape[:-1]``: that entry of the last axis. ``"max"``: the largest entry. A callable
        ``value -> relevance of the value``: anything else.
      at: globs of layers whose output relevance is wanted as well.
      has_aux: whether ``fun`` returns ``(value, aux)``.

    Returns:
      A function of the arguments of ``fun``. It returns the relevance, in the structure, shapes and
      dtypes of the explained argument (a tuple of them if ``argnums`` is a sequence) and the units
      of the value; with ``at``, ``(relevance, {path: relevance})``; with ``has_aux``, that and aux.

    Raises:
      RelaxError: at trace time, see its subclasses; each names the user's line and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["w1"]) @ params["w2"]
      >>> params = {"w1": jnp.eye(2), "w2": jnp.array([[1.0, 2.0], [-1.0, 1.0]])}
      >>> print(jax.jit(relax.lrp(model, target=0))(params, jnp.array([3.0, 1.0])))
      [ 3.        -0.9999998]

    Source: Bach et al. 2015; Montavon et al. 2019.
    """

    @functools.wraps(fun, updated=())
    def explained(*args: Any, **kwargs: Any) -> Any:
        _, aux, relevance = _explain(fun, rules, argnums, target, at, has_aux, args, kwargs, False)
        return (relevance, aux) if has_aux else relevance

    return explained


def value_and_lrp(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),  # noqa: B008
    *,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
    at: str | Sequence[str] | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """As jax.value_and_grad, but with relevance in the place of the gradient.

    Arguments and errors: see `lrp`.

    Returns:
      A function of the arguments of ``fun`` that returns ``(value, relevance)``, with ``has_aux``
      ``((value, aux), relevance)``. The value is that of ``fun``: to the bit outside of jit, where
      it is evaluated once more; to rounding under jit.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0])
      >>> value, relevance = relax.value_and_lrp(f, relax.rules.Epsilon(0.0))(w, x)
      >>> print(value, relevance)
      5.0 [2. 3.]
    """

    @functools.wraps(fun, updated=())
    def explained(*args: Any, **kwargs: Any) -> Any:
        value, aux, relevance = _explain(
            fun, rules, argnums, target, at, has_aux, args, kwargs, True
        )
        return ((value, aux), relevance) if has_aux else (value, relevance)

    return explained


def vrp(
    fun: Callable[..., Any],
    *primals: Any,
    rules: Any = Epsilon(),
    has_aux: bool = False,  # noqa: B008
) -> tuple[Any, ...]:
    """As jax.vjp: the value, and a function from relevance of the value to that of the primals.

    Args:
      fun: any JAX function; all its arguments are explained, so close over parameters.
      *primals: its arguments.
      rules: see `lrp`.
      has_aux: whether ``fun`` returns ``(value, aux)``.

    Returns:
      ``(value, relprop)`` or ``(value, relprop, aux)``; ``relprop(R)`` takes relevance in the
      structure of the value and returns a tuple of relevances, one for each primal.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> w = jnp.array([[2.0, 0.0], [1.0, 1.0]])
      >>> value, relprop = relax.vrp(lambda x: x @ w, jnp.array([1.0, 3.0]))
      >>> (relevance,) = relprop(jnp.array([1.0, 0.0]))
      >>> print(value, relevance)
      [5. 3.] [0.39999992 0.5999999 ]
    """
    argnums = tuple(range(len(primals)))
    program = _Program(fun, rules, argnums, None, has_aux, primals, {}, in_relevance=True)
    value, aux, pull_back = program.run(exact_value=True)

    def relprop(relevance: Any) -> Any:
        expected = jax.tree.structure(value)
        if jax.tree.structure(relevance) != expected:
            raise ArgumentError(
                f"relprop: relevance has structure {jax.tree.structure(relevance)}; "
                f"the value has {expected}."
            )
        return pull_back(_target.seeds(lambda _: relevance, value))[0]

    return (value, relprop, aux) if has_aux else (value, relprop)


def _explain(
    fun: Any,
    rules: Any,
    argnums: Any,
    target: Any,
    at: Any,
    has_aux: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    exact_value: bool,
) -> tuple[Any, Any, Any]:
    program = _Program(
        fun, rules, argnums, at, has_aux, args, kwargs, _target.gives_relevance(target)
    )
    value, aux, pull_back = program.run(exact_value)
    relevance, latent = pull_back(_target.seeds(target, value))
    return value, aux, (relevance if at is None else (relevance, latent))


class _Program:
    """One call: traced, recognized, assigned, ready to run."""

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
        self.facts = gather_facts(graph, explained)
        names = dict(zip(graph.inputs, traced.names, strict=True))
        for value, name in zip(graph.consts, traced.const_names, strict=True):
            if name:
                names[value] = name
        layers = find_layers(graph, self.facts, names)
        self.layers = layers
        self.rules = assign(rules, layers)
        self.latent = _latent(at, layers)
        outputs = graph.outputs[: traced.count]
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
        consts, leaves = traced.closed.consts, [jnp.asarray(a) for a in traced.leaves]
        moving = [i for i in traced.explained if graph.is_float(graph.inputs[i])]
        probes = [jnp.zeros(graph.shape(v), graph.avals[v].dtype) for v in rewritten.tapped]
        carrying = [v for v in graph.outputs[: traced.count]]
        carried = [i for i, v in enumerate(carrying) if self.facts.tracked[v]]

        tokens = [i for i in traced.explained if i not in moving]
        blanks = [jnp.zeros(leaves[i].shape, _shadow_dtype(graph)) for i in tokens]

        def forward(inputs: Sequence[Any], probes: Sequence[Any], blanks: Sequence[Any]) -> Any:
            arguments = list(leaves)
            for i, x in zip(moving, inputs, strict=True):
                arguments[i] = x
            shadows = {graph.inputs[i]: x for i, x in zip(tokens, blanks, strict=True)}
            outputs, seen = rewritten(consts, arguments, probes, shadows)
            return [outputs[i] for i in carried], (outputs, [seen[v] for v in rewritten.tapped])

        inputs = [leaves[i] for i in moving]
        _, pull_back, (outputs, seen) = jax.vjp(forward, inputs, probes, blanks, has_aux=True)
        if exact_value and not any(isinstance(a, jax.core.Tracer) for a in (*consts, *leaves)):
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
    for pattern in (at,) if isinstance(at, str) else tuple(at):
        own = [
            layer
            for layer in layers
            if matches(pattern, addresses(layer.path, layer.occurrence, layer.weight_path))
        ]
        if not own:
            known = [p for layer in layers for p in (layer.label, layer.weight_path)]
            close = ", ".join(repr(path) for path in nearest(pattern, known))
            raise UnmatchedSelectorError(
                message(
                    f"at={pattern!r} matches no layer",
                    remedy=f"Nearest: {close or 'none, the function has no layers'}.",
                )
            )
        found |= {layer.label: layer.outputs[0] for layer in own}
    return found
