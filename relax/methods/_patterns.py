"""PatternNet and PatternAttribution: what a neuron responds to, in the place of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from relax._arguments import is_array
from relax._errors import ArgumentError, message
from relax._graph import Layer
from relax._numerics import divide, wide
from relax._program import Program
from relax._progress import progress
from relax._recognize.joint import JointDetails
from relax._sections import Section
from relax._views import Evaluated, view
from relax.rules import Epsilon, Gradient
from relax.rules._base import Outgoing, static
from relax.rules.affine import AffineRule
from relax.transform import lrp

_Argnums = int | Sequence[int]
_WEIGHTED = frozenset({"dense", "conv"})


class _Moments(NamedTuple):
    """Of the inputs x of the weights of a layer and of its output w x, in the shape of w.

    ``count`` of the places that were seen, means of x and of the output, their covariance and the
    variance of the output, both times the count.
    """

    count: Any
    x: Any
    y: Any
    xy: Any
    yy: Any

    def merged(self, other: _Moments) -> _Moments:
        """Those of both sets of places together (Chan et al. 1983)."""
        count = self.count + other.count
        share = divide(other.count, count)
        dx, dy = other.x - self.x, other.y - self.y
        weight = self.count * share
        return _Moments(
            count,
            self.x + share * dx,
            self.y + share * dy,
            self.xy + other.xy + weight * dx * dy,
            self.yy + other.yy + weight * dy * dy,
        )


def fit_patterns(
    fun: Callable[..., Any],
    *args: Any,
    data: Iterable[Any],
    has_aux: bool = False,
    show: bool | None = None,
) -> dict[str, jax.Array]:
    r"""The pattern of every weight: the direction in which the input moves the neuron's output.

    $$a = \frac{\mathrm{cov}_+(x, w^\top x)}{\mathrm{var}_+(w^\top x)}$$

    over the samples, and the places of a convolution, at which the neuron is on, if a ReLU reads
    it, and over all otherwise. Places at which a weight sees padding do not count for it. A
    BatchNorm is part of the weights. A neuron that never moves has the pattern 0.

    Args:
      fun: any JAX function; its last argument is the input.
      *args: its other arguments, such as the parameters.
      data: batches of inputs, all of one shape but the last, which are taken one by one; nothing is
        kept of them but sums. The data should be that which the network was trained on.
      has_aux: whether ``fun`` returns ``(value, aux)``.
      show: a progress bar; by default, if stderr is a terminal and rich is installed.

    Returns:
      Patterns in the shapes of the weights, by the path of the layer as in `relax.layers`.

    Raises:
      ArgumentError: there is no data, or no dense layer or convolution; one stands in a scan, or
        adds up several inputs, as a recurrent cell does.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> noise = jax.random.normal(jax.random.key(0), (1000, 2)) * jnp.array([1.0, 3.0])
      >>> x = noise @ jnp.array([[1.0, 0.0], [1.0, 1.0]])  # (1, 0) is signal, (1, 1) is not
      >>> patterns = relax.methods.fit_patterns(f, jnp.array([[1.0], [-1.0]]), data=[x])
      >>> print(patterns["dense"].round(1).T)
      [[1. 0.]]

    Source: Kindermans et al. 2018, eqs. (9) and (10).
    """

    given, tree = jax.tree.flatten(args)
    arrays = [leaf if is_array(leaf) else None for leaf in given]

    @jax.jit
    def moments(arrays: list[Any], x: Any) -> dict[str, _Moments]:
        pairs = zip(arrays, given, strict=True)  # what is no array is passed as it is
        args = jax.tree.unflatten(tree, [g if a is None else a for a, g in pairs])
        program = Program(fun, Epsilon(0.0), -1, None, has_aux, (*args, x), {})
        return {layer.label: _of_batch(program, s, values) for s, layer, values in _seen(program)}

    total: dict[str, _Moments] | None = None
    for batch in progress(data, "fitting patterns", show=show):
        found = moments(arrays, batch)
        merged = lambda a, b: a.merged(b)
        total = found if total is None else {k: merged(total[k], found[k]) for k in found}
    if total is None:
        raise ArgumentError(
            "fit_patterns: data holds no batch.\n  Is it an iterator that was used?"
        )
    if not total:
        raise ArgumentError("fit_patterns: the function has no dense layer and no convolution.")
    return {label: divide(m.xy, m.yy) for label, m in total.items()}


def _weighted(program: Program) -> Iterator[tuple[Section, Layer]]:
    """Layers that have a pattern.

    Raises:
      ArgumentError: one has none.
    """
    for section, layer in program.section.every():
        if layer.kind not in _WEIGHTED:
            continue
        why = None
        if section.lengths or section.sharded:
            why = "stands in a scan or a shard_map"
        elif isinstance(layer.details, JointDetails):
            why = "adds up several inputs"
        if why is not None:
            raise ArgumentError(
                message(
                    f"The {layer.kind} layer `{layer.name}` has no pattern: it {why}",
                    where=layer.where,
                    path=layer.label,
                    remedy="Patterns are for feed-forward networks; take relax.lrp.",
                )
            )
        yield section, layer


def _seen(program: Program) -> Iterator[tuple[Section, Layer, Evaluated]]:
    """Each layer that has a pattern, evaluated."""
    pairs = list(_weighted(program))
    wanted = [
        (id(section), value)
        for section, layer in pairs
        for value in (*layer.inputs, *layer.operands, *layer.outputs)
        if value not in section.graph.literals
    ]
    leaves = [jnp.asarray(a) for a in program.traced.leaves]
    probes = {tap: program.probe(tap) for tap in dict.fromkeys(wanted)}
    _, seen = program.rewritten(program.traced.closed.consts, leaves, probes | program.rounds)
    for section, layer in pairs:
        read = lambda values, s=section: tuple(
            s.graph.literals[v] if v in s.graph.literals else seen[id(s), v] for v in values
        )
        inputs, operands, outputs = map(read, (layer.inputs, layer.operands, layer.outputs))
        yield section, layer, Evaluated(section.graph, layer, inputs, operands, outputs)


def _of_batch(program: Program, section: Section, layer: Evaluated) -> _Moments:
    seen = view(layer)
    weight, x, z = seen.weight, wide(seen.input), wide(seen.output)
    y = z if seen.bias is None else z - wide(seen.bias)
    rectified = program.is_rectified((id(section), layer.layer.outputs[0]))
    on = jnp.asarray(z > 0, z.dtype) if rectified else jnp.ones_like(z)

    def sums(x: jax.Array, c: jax.Array) -> jax.Array:
        """For each weight the sum of its input times what it goes to."""
        function = lambda w: wide(seen.move(seen.core(x.astype(weight.dtype), w)))
        return wide(jax.vjp(function, weight)[1](c)[0])

    count = sums(jnp.ones_like(x), on)
    mean_x, mean_y = divide(sums(x, on), count), divide(sums(jnp.ones_like(x), on * y), count)
    xy = sums(x, on * y) - count * mean_x * mean_y
    yy = sums(jnp.ones_like(x), on * y * y) - count * mean_y * mean_y
    return _Moments(count, mean_x, mean_y, xy, jnp.maximum(yy, 0))


@dataclasses.dataclass(frozen=True)
class Pattern(AffineRule):
    """The transpose, with a pattern in the place of the weight, or both multiplied."""

    pattern: Any
    attribution: bool = static(False)

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        change = lambda w: self.pattern * w if self.attribution else self.pattern
        return layer.map(change).transpose(wide(out.relevance))


def pattern_net(
    fun: Callable[..., Any],
    *,
    patterns: Mapping[str, Any],
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """The signal: the value of the target, propagated back along patterns as a gradient is.

    Args:
      fun, argnums, target, has_aux: as in `relax.lrp`.
      patterns: of `fit_patterns`, for every dense layer and convolution.

    Raises:
      ArgumentError: a layer has no pattern.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f, w = (lambda w, x: x @ w), jnp.array([[1.0], [-1.0]])
      >>> signal = relax.methods.pattern_net(f, patterns={"dense": jnp.array([[1.0], [0.0]])})
      >>> print(signal(w, jnp.array([5.0, 2.0])))
      [3. 0.]

    Source: Kindermans et al. 2018, section 4.
    """
    return _along(patterns, False, fun, argnums, target, has_aux)


def pattern_attribution(
    fun: Callable[..., Any],
    *,
    patterns: Mapping[str, Any],
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """As `pattern_net`, along patterns times weights: what each part of the signal contributes.

    Through weights relevance is conserved, as those of a neuron times its pattern add up to 1; a
    sum hands it on to each of its parts, as the gradient does.

    Args and errors: see `pattern_net`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f, w = (lambda w, x: x @ w), jnp.array([[1.0], [-1.0]])
      >>> patterns = {"dense": jnp.array([[0.5], [-0.5]])}
      >>> explain = relax.methods.pattern_attribution(f, patterns=patterns)
      >>> print(explain(w, jnp.array([5.0, 2.0])))
      [1.5 1.5]

    Source: Kindermans et al. 2018, section 4.
    """
    return _along(patterns, True, fun, argnums, target, has_aux)


def _along(
    patterns: Mapping[str, Any], attribution: bool, fun: Any, argnums: Any, target: Any, aux: bool
) -> Callable[..., Any]:
    def rule(layer: Layer) -> Any:
        if layer.kind not in _WEIGHTED:
            return Gradient()
        if layer.label not in patterns:
            known = ", ".join(map(repr, patterns)) or "none"
            raise ArgumentError(
                message(
                    f"There is no pattern of the {layer.kind} layer `{layer.name}`",
                    where=layer.where,
                    path=layer.label,
                    remedy=f"Fit them on the same function (fit_patterns); there are: {known}.",
                )
            )
        return Pattern(patterns[layer.label], attribution)

    return lrp(fun, rule, argnums=argnums, target=target, has_aux=aux)


__all__ = ["fit_patterns", "pattern_attribution", "pattern_net"]
