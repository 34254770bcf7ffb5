"""The custom_vjp operations: a layer under its rule, and the two exchanges of currency.

The forward of each is the layer itself, in plain JAX; the backward is the rule, in plain JAX. So
the whole is differentiable again, exactly, and nothing is detached. Rules, weights and constants
are explicit operands: one that is closed over dies inside scan under jit, vmap and grad.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from relax._axes import along_weight
from relax._errors import RelaxError, RuleError, message
from relax._graph import Graph, Layer, computing, replay
from relax._numerics import is_number, narrow
from relax._primitives import SCALE, followed_axes
from relax._recognize import AFFINE, AffineDetails
from relax.rules import Custom
from relax.rules._base import Currency, Outgoing, Rule, describe, pair
from relax.rules._maps import AffineMap, ElementwiseMap, GeneralMap, LinearMap
from relax.rules.normalization import NormalizationMap
from relax.rules.product import ProductMap


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerOp:
    """One layer with its rule, as static data of the operation.

    Hyper-parameters that are Python numbers stay here, so that a rule can leave out what a zero
    makes superfluous; arrays and tracers are operands.
    """

    graph: Graph
    layer: Layer
    arriving: Currency
    rule_tree: Any
    numbers: tuple[Any, ...]

    @classmethod
    def create(
        cls, graph: Graph, layer: Layer, rule: Rule, arriving: Currency
    ) -> tuple[LayerOp, tuple[Any, ...]]:
        """The operation, and the leaves of the rule that are its operands."""
        leaves, tree = jax.tree.flatten(rule)
        numbers = tuple(leaf if is_number(leaf) else None for leaf in leaves)
        arrays = tuple(leaf for leaf in leaves if not is_number(leaf))
        return cls(graph, layer, arriving, tree, numbers), arrays

    def rule(self, arrays: tuple[Any, ...]) -> Rule:
        rest = iter(arrays)
        leaves = [next(rest) if number is None else number for number in self.numbers]
        return jax.tree.unflatten(self.rule_tree, leaves)

    def environment(self, inputs: tuple[Any, ...], operands: tuple[Any, ...]) -> dict[int, Any]:
        names = (*self.layer.inputs, *self.layer.operands)
        return dict(zip(names, (*inputs, *operands), strict=True))

    def forward(self, inputs: tuple[Any, ...], operands: tuple[Any, ...]) -> tuple[Any, ...]:
        env = self.environment(inputs, operands)
        layer = self.layer
        return tuple(replay(self.graph, layer.equations, env, layer.outputs))

    def backward(
        self,
        arrays: tuple[Any, ...],
        inputs: tuple[Any, ...],
        operands: tuple[Any, ...],
        outputs: tuple[Any, ...],
        messages: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        rule = self.rule(arrays)
        try:
            return self._propagated(rule, inputs, operands, outputs, messages)
        except RelaxError:
            raise
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise RuleError(
                message(
                    f"{describe(rule)} failed on the {self.layer.kind} layer `{self.layer.name}`",
                    where=self.layer.where,
                    path=self.layer.label,
                    remedy=f"{type(error).__name__}: {first.rstrip('.')}.",
                )
            ) from error

    def _propagated(
        self,
        rule: Rule,
        inputs: tuple[Any, ...],
        operands: tuple[Any, ...],
        outputs: tuple[Any, ...],
        messages: tuple[Any, ...],
    ) -> tuple[Any, ...]:
        kind = self.layer.kind
        single = {
            **dict.fromkeys(AFFINE, self.affine),
            "activation": self.elementwise,
            "normalization": self.normalization,
        }
        if kind in single:
            (x,) = inputs
            out = Outgoing(outputs[0], messages[0], self.arriving)
            view = single[kind](x, operands, outputs[0])
            return (self.checked(rule, rule.propagate(view, x, out), x),)
        if kind == "product":
            out = Outgoing(outputs, messages, self.arriving)
            result = rule.propagate(self.product(inputs, operands), inputs, out)
        elif kind in ("sum", "mean", "avg_pool", "linear"):
            out = Outgoing(outputs[0], messages[0], self.arriving)
            result = rule.propagate(self.linear(inputs, operands, outputs[0]), inputs, out)
        else:
            out = Outgoing(outputs, messages, self.arriving)
            view = GeneralMap(lambda x: self.forward(x, operands), inputs)
            result = rule.propagate(view, inputs, out)
        return tuple(self.checked(rule, r, x) for r, x in zip(result, inputs, strict=True))

    def checked(self, rule: Rule, result: Any, x: Any) -> Any:
        """What a rule returned, in the dtype of the input; a wrong shape is the rule's mistake.

        None is relevance of zero, that of all that comes before included: nothing is computed.
        """
        if result is None:
            return None
        if jnp.shape(result) != x.shape:
            raise RuleError(
                message(
                    f"{describe(rule)} returned relevance of shape {jnp.shape(result)} for an "
                    f"input of shape {x.shape}",
                    where=self.layer.where,
                    path=self.layer.label,
                    remedy="Its method must return the relevance of the layer's input x.",
                )
            )
        return narrow(jnp.asarray(result), x.dtype)

    def elementwise(self, x: Any, operands: tuple[Any, ...], y: Any) -> ElementwiseMap:
        d = self.layer.details
        return ElementwiseMap(
            lambda a: self.forward((a,), operands)[0],
            x,
            y,
            d.passes_zero,
            d.is_relu,
            d.slope,
            d.curvature,
            batch_axes=tuple(range(y.ndim - 1)),
        )

    def linear(self, inputs: tuple[Any, ...], operands: tuple[Any, ...], z: Any) -> LinearMap:
        return LinearMap(
            lambda x: self.forward(x, operands)[0],
            lambda x: self._unscaled(x, operands),
            tuple(map(jax.typeof, inputs)),
            output=z,
            input=inputs,
            monotone=self.layer.details.monotone,
            one_to_one=self.layer.details.one_to_one,
            nonnegative=self.layer.details.nonnegative,
            batch_axes=tuple(range(z.ndim - 1)),
        )

    def product(self, inputs: tuple[Any, ...], operands: tuple[Any, ...]) -> ProductMap:
        env = self.environment(inputs, operands)
        equation = self.graph.equations[self.layer.equations[0]]
        a, b = (env[v] for v in equation.inputs[:2])
        rest = tuple(env[v] for v in equation.inputs[2:])
        return ProductMap(
            lambda a, b: equation.evaluate((a, b, *rest))[0],
            (a, b),
            equation.inputs[0] == equation.inputs[1],
            self.layer.details,
        )

    def normalization(self, x: Any, operands: tuple[Any, ...], y: Any) -> NormalizationMap:
        """The layer with its statistic held at what it is for ``x``."""
        graph, d, body = self.graph, self.layer.details, self.layer.equations
        env = self.environment((x,), operands)
        statistics = [graph.equations[index].inputs[position] for index, position in d.held]
        known = dict(zip(statistics, replay(graph, body, env, statistics), strict=True))
        out = self.layer.outputs[0]
        # What only the statistic is computed by is left out.
        needed = computing(graph, body, out, tuple(known))

        def function(x: Any) -> Any:
            values = env | known | {self.layer.inputs[0]: x}
            return replay(graph, needed, values, (out,))[0]

        return NormalizationMap(
            function=function,
            full=lambda x: self.forward((x,), operands)[0],
            input=x,
            output=y,
            batch_axes=tuple(range(y.ndim - 1)),
        )

    def _unscaled(self, inputs: tuple[Any, ...], operands: tuple[Any, ...]) -> Any:
        """A mean or average pool as the sum it divides; any other layer as it is."""
        if self.layer.kind not in ("mean", "avg_pool"):
            return self.forward(inputs, operands)[0]
        env = self.environment(inputs, operands)
        for index in self.layer.equations:
            equation = self.graph.equations[index]
            if equation.primitive in SCALE:
                env[equation.outputs[0]] = env[equation.inputs[0]]
            else:
                env[equation.outputs[0]] = replay(self.graph, (index,), env, equation.outputs)[0]
        return env[self.layer.outputs[0]]

    def affine(self, x: Any, operands: tuple[Any, ...], z: Any) -> AffineMap:
        """The layer as ``z = x w + b``, scales folded into w only when a rule asks for it."""
        graph, d = self.graph, self.layer.details
        env = self.environment((x,), operands)
        env |= {
            v: graph.literals[v]
            for i in self.layer.equations
            for v in graph.equations[i].inputs
            if v in graph.literals
        }
        chain = _Chain(graph, d, env)
        core_shape = chain.core_shape()
        return AffineMap(
            core=chain.core,
            move=chain.move,
            make_weight=chain.weight,
            bias=chain.bias(x),
            example=jax.typeof(x),
            core_shape=core_shape,
            native=chain.linear,
            input=x,
            output=z,
            batch_axes=_moved_axes(chain, d.core_batch_axes),
            input_batch_axes=d.batch_axes,
            nonnegative=d.nonnegative,
            dead_below=d.dead_below,
        )


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
        return equation.evaluate(operands)[0]

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
        zero = jnp.zeros(self.core_shape(), dtype)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def propagate(
    op: LayerOp, arrays: tuple[Any, ...], inputs: tuple[Any, ...], operands: tuple[Any, ...]
) -> tuple[Any, ...]:
    """A layer whose derivative is its rule."""
    return op.forward(inputs, operands)


def _propagate_fwd(op: LayerOp, arrays: Any, inputs: Any, operands: Any) -> Any:
    outputs = op.forward(inputs, operands)
    return outputs, (arrays, inputs, operands, outputs)


def _propagate_bwd(op: LayerOp, residuals: Any, messages: Any) -> Any:
    arrays, inputs, operands, outputs = residuals
    return None, op.backward(arrays, inputs, operands, outputs, messages), None


propagate.defvjp(_propagate_fwd, _propagate_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def propagate_custom(
    op: LayerOp, inputs: tuple[Any, ...], operands: tuple[Any, ...]
) -> tuple[Any, ...]:
    """A function with a rule of its own, see `relax.custom_relprop`."""
    return op.forward(inputs, operands)


def _custom_fwd(op: LayerOp, inputs: Any, operands: Any) -> Any:
    env = op.environment(inputs, operands)
    equation = op.graph.equations[op.layer.equations[0]]
    values = [env[v] if v in env else op.graph.literals[v] for v in equation.inputs]
    results, residuals = op.layer.details.fwd(*values)
    made = dict(zip(equation.outputs, results, strict=True))
    return tuple(made[v] for v in op.layer.outputs), (inputs, results, residuals)


def _custom_bwd(op: LayerOp, saved: Any, messages: Any) -> Any:
    inputs, results, residuals = saved
    rule, equation = op.layer.details, op.graph.equations[op.layer.equations[0]]
    arrived = dict(zip(op.layer.outputs, messages, strict=True))
    full = [
        arrived[v] if v in arrived else jnp.zeros(z.shape, float)
        for v, z in zip(equation.outputs, results, strict=True)
    ]
    out = Outgoing(results, full, op.arriving)
    given = rule.bwd(residuals, out.coefficient if rule.coefficients else out.relevance)
    each: dict[int, Any] = {}
    for value, part in zip(equation.inputs, given, strict=True):
        each[value] = part if value not in each else each[value] + part
    checked = tuple(
        op.checked(Custom(rule.coefficients), each[v], x)
        for v, x in zip(op.layer.inputs, inputs, strict=True)
    )
    return checked, None


propagate_custom.defvjp(_custom_fwd, _custom_bwd)


@jax.custom_vjp
def held(x: jax.Array) -> jax.Array:
    """The value itself, as a constant for relevance; not for the derivative of relevance."""
    return x


held.defvjp(lambda x: (x, None), lambda _, message: (None,))


@jax.custom_vjp
def to_relevance(x: jax.Array) -> jax.Array:
    """The value itself; a coefficient that comes back is handed on as relevance."""
    return x


to_relevance.defvjp(lambda x: (x, x), lambda x, c: (pair(x, c),))


@jax.custom_vjp
def to_coefficient(x: jax.Array) -> jax.Array:
    """The value itself; relevance that comes back is handed on as a coefficient."""
    return x


to_coefficient.defvjp(
    lambda x: (x, x), lambda x, r: (Outgoing(x, r, "relevance").coefficient.astype(x.dtype),)
)


@jax.custom_vjp
def tap(x: jax.Array, probe: jax.Array) -> jax.Array:
    """The value itself; what comes back is handed to the probe as well."""
    return x


tap.defvjp(lambda x, probe: (x, None), lambda _, message: (message, message))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def widened(dtype: Any, x: jax.Array) -> jax.Array:
    """A float16 value in a wider type; a coefficient that comes back stays finite."""
    return x.astype(dtype)


widened.defvjp(
    lambda dtype, x: (x.astype(dtype), None), lambda dtype, _, c: (narrow(c, jnp.float16),)
)
