"""What a rule sees of one layer at one input: built from its equations, by kind.

Nothing is computed before a rule asks for it.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from relax._axes import along_weight
from relax._graph import Equation, Graph, Layer, computing, replay
from relax._joint import joint_map
from relax._numerics import varying_like
from relax._order import after
from relax._primitives import SCALE, followed_axes
from relax._recognize import AFFINE, AffineDetails
from relax._recognize.joint import JointDetails
from relax.rules._maps import AffineMap, ElementwiseMap, GeneralMap, LinearMap
from relax.rules.normalization import NormalizationMap
from relax.rules.product import ProductMap
from relax.rules.softmax import SoftmaxMap


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluated:
    """One layer with the values it was evaluated on.

    ``arrived``: what has come back to it, before which no weight is to be made; None to not care.
    """

    graph: Graph
    layer: Layer
    inputs: tuple[Any, ...]
    operands: tuple[Any, ...]
    outputs: tuple[Any, ...]
    arrived: Any = None

    def environment(self, inputs: tuple[Any, ...]) -> dict[int, Any]:
        names = (*self.layer.inputs, *self.layer.operands)
        return dict(zip(names, (*inputs, *self.operands), strict=True))

    def forward(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        env = self.environment(inputs)
        return tuple(replay(self.graph, self.layer.equations, env, self.layer.outputs))


def view(layer: Evaluated) -> Any:
    """What the rules of the layer's kind work with."""
    return _VIEWS.get(layer.layer.kind, _general)(layer)


def _general(e: Evaluated) -> GeneralMap:
    return GeneralMap(e.forward, e.inputs)


def _elementwise(e: Evaluated) -> ElementwiseMap:
    d, (x,), (y,) = e.layer.details, e.inputs, e.outputs
    return ElementwiseMap(
        lambda a: e.forward((a,))[0],
        x,
        y,
        d.passes_zero,
        d.is_relu,
        d.slope,
        d.curvature,
        batch_axes=tuple(range(y.ndim - 1)),
        dead_below=d.dead_below,
        kinked=lambda a: _one_sided(e, a),
        inner=lambda a: _inner(e, a),
    )


def _inner(e: Evaluated, x: Any) -> Any:
    """What the nonlinear part of an activation sees: x, scaled and shifted by constants."""
    (value,) = e.layer.inputs
    equations, front = [e.graph.equations[i] for i in e.layer.equations], []
    while True:
        readers = [
            i for i, q in zip(e.layer.equations, equations, strict=True) if value in q.inputs
        ]
        equation = e.graph.equations[readers[0]]
        shifts = equation.primitive in _SHIFTS and list(equation.inputs).count(value) == 1
        divides = equation.primitive is lax.div_p and equation.inputs[1] == value
        if len(readers) > 1 or not shifts or divides or equation.outputs == e.layer.outputs:
            return replay(e.graph, front, e.environment((x,)), (value,))[0]
        front.append(readers[0])
        value = equation.outputs[0]


def _one_sided(e: Evaluated, x: Any) -> Any:
    """An activation whose maxima and minima with a constant have the constant's derivative, 0,
    where both are equal: as `jax.nn.relu` has it. JAX's own would be a half, at some cost.

    Where several values of x meet again, as in a CELU or a softplus, a kink is undone by another:
    there the derivative is the middle of both sides, that of ``|x|`` as well.
    """
    root = e.layer.inputs[0]
    equations = [e.graph.equations[i] for i in e.layer.equations]
    depends = {root}
    for equation in equations:
        if any(v in depends for v in equation.inputs):
            depends.update(equation.outputs)
    meets = any(sum(v in depends for v in equation.inputs) > 1 for equation in equations)

    def evaluate(equation: Equation, operands: Sequence[Any]) -> list[Any]:
        kink, moving = _KINKS.get(equation.primitive), [v in depends for v in equation.inputs]
        if meets and equation.primitive is lax.abs_p and not jnp.iscomplexobj(operands[0]):
            return [operands[0] * lax.sign(operands[0])]
        if meets or kink is None or all(moving):
            return equation.evaluate(operands)
        x, constant = operands if moving[0] else operands[::-1]
        return [jnp.where(kink(x, constant), constant, x)]  # NaN stays NaN

    return replay(
        e.graph, e.layer.equations, e.environment((x,)), e.layer.outputs, evaluate=evaluate
    )[0]


_SHIFTS = frozenset({lax.add_p, lax.div_p, lax.mul_p, lax.neg_p, lax.sub_p})
_KINKS = {lax.max_p: operator.le, lax.min_p: operator.ge}


def _linear(e: Evaluated) -> LinearMap:
    d, (z,) = e.layer.details, e.outputs
    return LinearMap(
        lambda x: e.forward(x)[0],
        lambda x: _unscaled(e, x),
        tuple(map(jax.typeof, e.inputs)),
        output=z,
        input=e.inputs,
        monotone=d.monotone,
        one_to_one=d.one_to_one,
        nonnegative=d.nonnegative,
        batch_axes=tuple(range(z.ndim - 1)),
    )


def _unscaled(e: Evaluated, inputs: tuple[Any, ...]) -> Any:
    """A mean or average pool as the sum it divides; any other layer as it is."""
    if e.layer.kind not in ("mean", "avg_pool"):
        return e.forward(inputs)[0]
    env = e.environment(inputs)
    for index in e.layer.equations:
        equation = e.graph.equations[index]
        if equation.primitive in SCALE:
            env[equation.outputs[0]] = env[equation.inputs[0]]
        else:
            env[equation.outputs[0]] = replay(e.graph, (index,), env, equation.outputs)[0]
    return env[e.layer.outputs[0]]


def _product(e: Evaluated) -> ProductMap:
    env = e.environment(e.inputs)
    equation = e.graph.equations[e.layer.equations[0]]
    a, b = (env[v] for v in equation.inputs[:2])
    rest = tuple(env[v] for v in equation.inputs[2:])
    return ProductMap(
        lambda a, b: equation.evaluate((a, b, *rest))[0],
        (a, b),
        equation.inputs[0] == equation.inputs[1],
        e.layer.details,
    )


def _normalization(e: Evaluated) -> NormalizationMap:
    """The layer with its statistic held at what it is for its input."""
    graph, d, body = e.graph, e.layer.details, e.layer.equations
    env = e.environment(e.inputs)
    statistics = [graph.equations[index].inputs[position] for index, position in d.held]
    known = dict(zip(statistics, replay(graph, body, env, statistics), strict=True))
    (out,), (y,) = e.layer.outputs, e.outputs
    # What only the statistic is computed by is left out.
    needed = computing(graph, body, out, tuple(known))

    def function(x: Any) -> Any:
        values = env | known | {e.layer.inputs[0]: x}
        return replay(graph, needed, values, (out,))[0]

    return NormalizationMap(
        function=function,
        full=lambda x: e.forward((x,))[0],
        input=e.inputs[0],
        output=y,
        batch_axes=tuple(range(y.ndim - 1)),
    )


def _softmax(e: Evaluated) -> SoftmaxMap:
    d, (end,) = e.layer.details, e.layer.outputs
    if d.of_two:

        def of_two(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            # of minus infinity twice the derivative is NaN in JAX
            low = (jnp.finfo(x.dtype).min / 8 for x in inputs)
            return e.forward(tuple(jnp.maximum(x, m) for x, m in zip(inputs, low, strict=True)))

        return SoftmaxMap(of_two, e.inputs)
    if not d.normalizer:
        return SoftmaxMap(e.forward, e.inputs, evaluated=e)
    env = e.environment(e.inputs)
    sums = computing(e.graph, d.normalizer, d.summed)
    rest = [i for i in d.normalizer if i not in sums]

    def summed(exponentials: Any) -> Any:
        return replay(e.graph, sums, {**env, end: exponentials}, (d.summed,))[0]

    def total(value: Any) -> Any:
        return replay(e.graph, rest, {**env, d.summed: value}, (d.total,))[0]

    return SoftmaxMap(e.forward, e.inputs, (summed, total), e.outputs[0])


def _affine(e: Evaluated) -> AffineMap:
    """The layer as ``z = x w + b``, scales folded into w only when a rule asks for it."""
    if isinstance(e.layer.details, JointDetails):
        return _joint(e)
    graph, d, (x,), (z,) = e.graph, e.layer.details, e.inputs, e.outputs
    env = e.environment(e.inputs)
    env |= {
        v: graph.literals[v]
        for i in e.layer.equations
        for v in graph.equations[i].inputs
        if v in graph.literals
    }
    chain = _Chain(graph, d, env)
    weight = chain.weight if e.arrived is None else lambda: after(chain.weight(), e.arrived)
    return AffineMap(
        core=chain.core,
        move=chain.move,
        make_weight=weight,
        bias=chain.bias(x),
        example=jax.typeof(x),
        core_shape=chain.core_shape(),
        native=chain.linear,
        input=x,
        output=z,
        batch_axes=_moved_axes(chain, d.core_batch_axes),
        input_batch_axes=d.batch_axes,
        nonnegative=d.nonnegative,
        dead_below=d.dead_below,
        dtype=None if z is None else z.dtype,
    )


def _joint(e: Evaluated) -> AffineMap:
    """A dense layer of several inputs, by the maps of its parts."""
    graph, details = e.graph, e.layer.details
    env = e.environment(e.inputs)
    read = lambda values: tuple(env[v] if v in env else graph.literals[v] for v in values)
    parts = [
        _affine(Evaluated(graph, part, read(part.inputs), read(part.operands), (None,), e.arrived))
        for part in details.parts
    ]
    return joint_map(graph, e.layer, env, parts, e.inputs, e.outputs)


def _moved_axes(chain: _Chain, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Where the batch axes of the core's output stand in the output of the layer."""
    graph = chain.graph
    for step in chain.details.steps:
        equation = graph.equations[step.equation]
        if step.kind == "move":
            old = graph.shape(equation.inputs[step.position])
            new = graph.shape(equation.outputs[0])
            places = followed_axes(equation.primitive, equation.params, old, new) or {}
            axes = tuple(i for i, place in places.items() if place in axes)
    return axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Chain:
    """The steps behind an affine core, replayed for a purpose."""

    graph: Graph
    details: AffineDetails
    env: dict[int, Any]

    def core(self, x: Any, w: Any) -> Any:
        if self.details.core is None:
            return x * w
        for index in self.details.pads:
            equation = self.graph.equations[index]
            pads = len(equation.inputs) == 2
            (x,) = equation.evaluate((x, jnp.zeros((), x.dtype)) if pads else (x,))
        equation = self.graph.equations[self.details.core]
        operands = (x, w) if self.details.position == 0 else (w, x)
        rest = tuple(self.env[v] for v in equation.inputs[2:])  # the sizes of groups
        return equation.evaluate((*operands, *rest))[0]

    def core_shape(self) -> tuple[int, ...]:
        graph, d = self.graph, self.details
        if d.core is None:
            first = graph.equations[d.steps[0].equation]
            return graph.shape(first.outputs[0])
        return graph.shape(graph.equations[d.core].outputs[0])

    def raw_weight(self) -> Any:
        if self.details.core is None:
            return None
        equation = self.graph.equations[self.details.core]
        return self.env[equation.inputs[1 - self.details.position]]

    def _apply(self, z: Any, kinds: tuple[str, ...]) -> Any:
        """Runs the steps of the given kinds on ``z``; a shift keeps only its sign."""
        for step in self.details.steps:
            equation = self.graph.equations[step.equation]
            if step.kind == "shift":
                if "scale" in kinds and _subtracted(equation, step.position):
                    z = -z
                if "shift" in kinds:
                    z = z + self._shift(equation, step.position)
            elif step.kind in kinds and equation.primitive is not primitives.name_p:
                operands = [
                    z if i == step.position else self.env[v] for i, v in enumerate(equation.inputs)
                ]
                (z,) = equation.evaluate(operands)
        return z

    def _shift(self, equation: Any, position: int) -> Any:
        other = self.env[equation.inputs[1 - position]]
        negated = equation.primitive.name == "sub" and position == 0
        return -other if negated else other

    def move(self, z: Any) -> Any:
        return self._apply(z, ("move",))

    def linear(self, x: Any) -> Any:
        z = x if self.details.core is None else self.core(x, self.raw_weight())
        return self._apply(z, ("move", "scale"))

    def bias(self, x: Any) -> Any:
        """The bias in the shape of the output, or None if nothing is ever added."""
        if not any(step.kind == "shift" for step in self.details.steps):
            return None
        dtype = x.dtype
        if self.details.core is not None:
            core = self.graph.equations[self.details.core].outputs[0]
            dtype = self.graph.avals[core].dtype
        first = self.details.steps[0].equation if self.details.core is None else self.details.core
        aval = self.graph.avals[self.graph.equations[first].outputs[0]]
        zero = varying_like(jnp.zeros(self.core_shape(), dtype), aval)
        return self._apply(zero, ("move", "scale", "shift"))

    def weight(self) -> Any:
        """The weight with every scale of the chain folded in."""
        w = self.raw_weight()
        total = jnp.ones(()) if w is None else w
        for step in self.details.steps:
            equation = self.graph.equations[step.equation]
            if step.kind == "shift" and _subtracted(equation, step.position):
                total = -total
            if step.kind != "scale":
                continue
            if len(equation.inputs) == 1:
                total = -total
                continue
            factor = jnp.asarray(self.env[equation.inputs[1 - step.position]])
            if w is not None:
                factor = along_weight(factor, step.atoms, w.shape)
            if equation.primitive is lax.div_p:
                total = total / factor
            else:
                total = total * factor
        return total if w is None else total.astype(w.dtype)


def _subtracted(equation: Any, position: int) -> bool:
    return equation.primitive.name == "sub" and position == 1


_VIEWS: dict[str, Callable[[Evaluated], Any]] = {
    **dict.fromkeys(AFFINE, _affine),
    **dict.fromkeys(("sum", "mean", "avg_pool", "linear"), _linear),
    "activation": _elementwise,
    "normalization": _normalization,
    "product": _product,
    "softmax": _softmax,
}
