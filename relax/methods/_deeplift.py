"""DeepLIFT: differences from a baseline, propagated layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax import _target
from relax._errors import ArgumentError, message
from relax._graph import Graph, Layer, boundary, computing
from relax._program import Program
from relax._run import Run
from relax._sections import Section
from relax.methods._difference import Difference
from relax.methods._problem import Problem, method
from relax.rules import Epsilon, PerRound
from relax.rules._base import AFFINE, WINNERS, Rule

_Argnums = int | Sequence[int]
_LINEAR = frozenset({"sum", "mean", "avg_pool", "linear", "embedding"})
_LARGEST = frozenset({lax.max_p, lax.reduce_max_p, lax.reduce_window_max_p, lax.cummax_p})
_SMALLEST = frozenset({lax.min_p, lax.reduce_min_p, lax.reduce_window_min_p, lax.cummin_p})
_STEEP = frozenset({"normalization", "softmax"})  # whose slopes may change within a short way


def deeplift_rescale(
    fun: Callable[..., Any],
    *,
    baseline: Any = 0.0,
    batched: bool = True,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""DeepLIFT's rescale rule: what the difference of each input from a baseline contributes.

    $$R = (x - x_0)\,m_x, \qquad m_x = m_y \frac{\phi(x) - \phi(x_0)}{x - x_0}$$

    at every activation; through weights m is propagated as a gradient is. The sum is
    $f(x) - f(x_0)$. Where an activation's two inputs are within $10^{-5}$, its slope between them.

    Beyond the source, so that the sum holds: a product gives each operand the mean of the other at
    x and at the baseline, and a quotient a / b is the product of a and 1 / b; a maximum, as in a
    max-pool, is split into the part where x has the larger one and the part where the baseline has.
    Softmax, log_softmax and logsumexp are rescaled too, at any distance: with the logarithmic mean
    $\ell_j$ of the probabilities $p_j$ at x and at the baseline,

    $$\Delta p_j = \ell_j\,\Delta\log p_j, \qquad
    \Delta\log\textstyle\sum_j e^{z_j} = \sum_j \ell_j\,\Delta z_j \big/ \sum_j \ell_j$$

    Normalizations, and whatever else mixes several values, take integrated gradients of the layer
    alone, by Gauss-Legendre quadrature, so that the sum is near. From a baseline of 0 a LayerNorm
    of random values was off by less than 0.05% up to a standard deviation of
    $10^5 \sqrt\epsilon$, and by all of it from $10^7 \sqrt\epsilon$ on. A sort, top-k or median
    has a kink wherever two values change places, and may be off by as much as it changes; so may a
    softmax whose scores change by more than some tens, if something is added to its sum, its
    exponentials are weighted or masked, or it is one of segments. A `jnp.where` whose condition
    depends on x chooses as it does at x; what the condition changes is in no relevance.

    Args:
      fun, argnums, target, has_aux: as in `relax.lrp`; ``"max"`` is the class of x. A callable
        target gives what is explained, whose difference from the baseline it is.
      baseline: $x_0$; a number, an array that broadcasts to x, or a pytree like x. One baseline for
        all samples is evaluated once, as a batch of one, where the function takes batches of one.
      batched: whether the first axis of x are samples.

    Returns:
      A function of the arguments of ``fun``. It returns an array in the shape of x, in units of the
      value; with ``has_aux`` the auxiliary output as well.

    Raises:
      ArgumentError: the explained argument holds no floats; the baseline does not broadcast; which
        branch of a `lax.cond` is taken depends on x; a layer stands in a shard_map.
      TargetError: the target does not fit the value.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: jax.nn.relu(x[:, :1] - x[:, 1:] - 1)
      >>> print(relax.methods.deeplift_rescale(f)(jnp.array([[3.0, 1.0]])))
      [[ 1.5 -0.5]]

    Source: Shrikumar et al. 2017, section 3.5.1; products: Lundberg and Lee 2017 (Shapley values).
    """

    def explain(problem: Problem) -> Any:
        start = problem.baseline(baseline)
        function = lambda x: problem.function(x)[0]
        if _target.gives_relevance(target):
            function = lambda x: problem.explained(problem.function(x)[0])
        values = _shared(function, baseline, start, problem)
        if values is None:
            program = _program(function, None, start)
            values = _known(program, _references(program, start))
        program = _program(function, values.get, problem.x)
        for section, layer in program.section.every():
            if layer.kind == "softmax":
                _own_maximum(section.graph, layer)
        run = Run(program)
        seeds = jax.tree.map(jnp.ones_like, run.value)
        if not _target.gives_relevance(target):
            seeds = _target.seeds(target, run.value)
        m = run.coefficients(seeds)
        return jax.tree.map(lambda x, x0, m: (x - x0) * m.astype(x.dtype), problem.x, start, m)

    return method(fun, argnums, target, has_aux, explain, batched)


def _program(function: Any, difference: Callable[[int], Rule | None] | None, x: Any) -> Program:
    def rule(layer: Layer) -> Rule | None:
        if layer.kind in AFFINE:
            return Epsilon(0.0)
        return None if difference is None else difference(layer.index)

    return Program(function, rule, -1, None, False, (x,), {})


def _compared(program: Program) -> Iterator[tuple[Section, Layer]]:
    """Layers that are no linear map of their inputs, with their sections.

    Raises:
      ArgumentError: what they are at the baseline cannot be told.
    """
    for section, layer in program.section.every():
        if layer.kind in AFFINE or layer.kind in _LINEAR:
            continue
        why = None
        if section.sharded:
            why = "stands in a shard_map, and its values are on several devices"
        elif layer.kind == "softmax" and not layer.details.is_plain:
            why = "is a softmax in pieces, whose sum is divided by elsewhere"
        if why is not None:
            raise ArgumentError(
                message(
                    f"DeepLIFT: the {layer.kind} layer `{layer.name}` {why}",
                    where=layer.where,
                    path=layer.label,
                    remedy="Take relax.methods.integrated_gradients, which needs no layers.",
                )
            )
        yield section, layer


def _refuse_branches(section: Section) -> None:
    """A baseline that takes another branch has no values in this one."""
    for index, bodies in section.inner.items():
        equation = section.graph.equations[index]
        chosen = equation.control is not None and equation.control.kind == "cond"
        if chosen and section.graph.depends[equation.inputs[0]]:
            raise ArgumentError(
                message(
                    "DeepLIFT: x decides which branch of a cond is taken, and the baseline may "
                    "take another",
                    where=equation.where,
                    path=equation.scope,
                    remedy="Take relax.methods.integrated_gradients, or write jnp.where.",
                )
            )
        for body in bodies:
            _refuse_branches(body)


def _references(program: Program, x: Any) -> dict[int, tuple[Any, ...]]:
    """The inputs of the layers that are compared, at ``x``; in a scan, those of all rounds."""
    _refuse_branches(program.section)
    compared = list(_compared(program))
    taps = [(id(section), value) for section, layer in compared for value in layer.inputs]
    probes = {tap: program.probe(tap) for tap in taps}
    leaves = [jnp.asarray(a) for a in program.traced.leaves]
    known = probes | program.rounds
    _, seen = program.rewritten(program.traced.closed.consts, leaves, known)
    return {
        layer.index: tuple(seen[id(section), value] for value in layer.inputs)
        for section, layer in compared
    }


def _known(program: Program, references: dict[int, tuple[Any, ...]]) -> dict[int, Rule]:
    """The rule of every layer that is compared."""
    rules: dict[int, Rule] = {}
    for section, layer in _compared(program):
        values = references[layer.index]
        if section.lengths:
            values = tuple(map(PerRound, values))
        wins = _wins(section, layer) if layer.kind in WINNERS else ""
        path = "steep" if layer.kind in _STEEP else "smooth"
        if layer.kind == "product":
            divides = section.graph.equations[layer.equations[0]].primitive is lax.div_p
            path = "quotient" if divides else "straight"
        rules[layer.index] = Difference(values, path, wins)
    return rules


def _own_maximum(graph: Graph, layer: Layer) -> None:
    """Makes what is subtracted from the scores part of the layer: it changes along a path.

    Held at its value at x, as other rules have it, exponentials of other scores would overflow.
    """
    made = {*layer.inputs, *(v for i in layer.equations for v in graph.equations[i].outputs)}
    following = []
    for index in range(layer.closing):
        equation = graph.equations[index]
        reads = not made.isdisjoint(equation.inputs) and equation.control is None
        if reads and all(map(graph.is_float, equation.outputs)):  # what chooses stays as at x
            made.update(equation.outputs)
            following.append(index)
    wanted = [computing(graph, following, v) for v in layer.operands if v in made]
    more = {index for found in wanted for index in found} - set(layer.equations)
    layer.equations = tuple(sorted({*layer.equations, *more}))
    layer.shared = (*layer.shared, *sorted(more))
    entering, others = boundary(graph, layer.equations, graph.depends)
    layer.operands = tuple(v for v in (*entering, *others) if v not in layer.inputs)


def _wins(section: Section, layer: Layer) -> str:
    """Which of its inputs a layer chooses, if it is a maximum or a minimum of them."""
    primitives = {section.graph.equations[index].primitive for index in layer.equations}
    if len(layer.outputs) != 1 or len(primitives) != 1:
        return ""
    return "largest" if primitives <= _LARGEST else "smallest" if primitives <= _SMALLEST else ""


def _shared(function: Any, given: Any, start: Any, problem: Problem) -> dict[int, Rule] | None:
    """The rules, by one baseline for all samples; None where there is none, or it does not fit."""
    if not problem.batched or _target.gives_relevance(problem.target):
        return None
    leaves, own = jax.tree.leaves(start), jax.tree.leaves(given)
    own = own if len(own) == len(leaves) else own * len(leaves)
    same = all(
        np.ndim(g) < a.ndim or np.shape(g)[:1] == (1,) for g, a in zip(own, leaves, strict=True)
    )
    if not same or any(a.ndim == 0 or a.shape[0] < 2 for a in leaves):
        return None
    one = jax.tree.map(lambda a: a[:1], start)
    try:
        jax.eval_shape(function, one)
    except (TypeError, ValueError):
        return None  # another argument has an axis of samples as well
    program, at_x = (_program(function, None, x) for x in (one, problem.x))
    pairs = list(zip(program.section.every(), at_x.section.every(), strict=False))
    alike = len(program.layers) == len(at_x.layers) and all(
        a.label == b.label and a.kind == b.kind and _broadcast(s, a, t, b)
        for (s, a), (t, b) in pairs
    )
    return _known(at_x, _references(program, one)) if alike else None


def _broadcast(small: Section, a: Layer, large: Section, b: Layer) -> bool:
    """Whether the values of one layer stand for those of another in a larger batch."""
    pairs = zip(a.inputs, b.inputs, strict=False)
    shapes = [(small.graph.shape(v), large.graph.shape(w)) for v, w in pairs]
    return len(a.inputs) == len(b.inputs) and all(
        len(v) == len(w) and all(m in (1, n) for m, n in zip(v, w, strict=True)) for v, w in shapes
    )


__all__ = ["deeplift_rescale"]
