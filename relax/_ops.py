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

from relax._errors import RelaxError, RuleError, message
from relax._graph import Graph, Layer
from relax._joint import apart, beside
from relax._numerics import is_number, narrow, positive, wide
from relax._order import after
from relax._recognize import AFFINE
from relax._recognize.joint import JointDetails
from relax._views import Evaluated, view
from relax.rules import Custom
from relax.rules._base import CAUSES, Currency, Outgoing, Rule, describe, pair

_OF_ONE_VALUE = AFFINE | {"activation", "normalization"}
_TO_ONE_VALUE = frozenset({"sum", "mean", "avg_pool", "linear", "product"})


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerOp:
    """One layer with its rule, as static data of the operation.

    Hyper-parameters that are Python numbers stay here, so that a rule can leave out what a zero
    makes superfluous; arrays and tracers are operands. ``activation``: the layer that made the
    input, if the input is to be made again from that layer's own, rather than kept beside it.
    """

    graph: Graph
    layer: Layer
    arriving: Currency
    rule_tree: Any
    numbers: tuple[Any, ...]
    activation: Layer | None = None

    @classmethod
    def create(
        cls,
        graph: Graph,
        layer: Layer,
        rule: Rule,
        arriving: Currency,
        activation: Layer | None = None,
    ) -> tuple[LayerOp, tuple[Any, ...]]:
        """The operation, and the leaves of the rule that are its operands."""
        leaves, tree = jax.tree.flatten(rule)
        numbers = tuple(leaf if is_number(leaf) else None for leaf in leaves)
        arrays = tuple(leaf for leaf in leaves if not is_number(leaf))
        return cls(graph, layer, arriving, tree, numbers, activation), arrays

    def rule(self, arrays: tuple[Any, ...]) -> Rule:
        rest = iter(arrays)
        leaves = [next(rest) if number is None else number for number in self.numbers]
        return jax.tree.unflatten(self.rule_tree, leaves)

    def forward(self, inputs: tuple[Any, ...], operands: tuple[Any, ...]) -> tuple[Any, ...]:
        return Evaluated(self.graph, self.layer, inputs, operands, ()).forward(inputs)

    def again(self, before: tuple[Any, ...], messages: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs, from those of the activation in front, when they are needed."""
        assert self.activation is not None
        x, *operands = before
        made = Evaluated(self.graph, self.activation, (x,), tuple(operands), ())
        return made.forward((after(x, messages[0]),))

    def backward(
        self,
        arrays: tuple[Any, ...],
        inputs: tuple[Any, ...],
        operands: tuple[Any, ...],
        outputs: tuple[Any, ...],
        messages: tuple[Any, ...],
        causes: tuple[Any, ...] = (),
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Messages for the inputs, and, if that is counted, what was absorbed by each cause."""
        rule = self.rule(arrays)
        try:
            return self._propagated(rule, inputs, operands, outputs, messages, causes)
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
        causes: tuple[Any, ...],
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        evaluated = Evaluated(self.graph, self.layer, inputs, operands, outputs, messages[0])
        kind, seen, details = self.layer.kind, view(evaluated), self.layer.details
        x: Any = inputs
        out = Outgoing(outputs, messages, self.arriving)
        if isinstance(details, JointDetails):
            x = seen.input
            z, given = (beside(values, details.output_axes) for values in (outputs, messages))
            out = Outgoing(z, given, self.arriving)
        elif kind in _OF_ONE_VALUE:
            x, out = inputs[0], Outgoing(outputs[0], messages[0], self.arriving)
        elif kind in _TO_ONE_VALUE:
            out = Outgoing(outputs[0], messages[0], self.arriving)
        if getattr(details, "dead_below", False) and kind in AFFINE and out.currency != "relevance":
            # as the rectifier behind it has it, so that one of the two need not be kept
            out = dataclasses.replace(out, value=positive(out.value), rectified=True)
        result = rule.propagate(seen, x, out)
        if isinstance(details, JointDetails):
            result = self.checked(rule, result, x)
            none = tuple(None for _ in inputs)
            result = none if result is None else apart(result, inputs, details.input_axes)
        elif kind in _OF_ONE_VALUE:
            result = (result,)
        kept = rule.absorbed(seen, x, out) if causes else {}
        counted = tuple(
            jnp.asarray(kept.get(name, 0), blank.dtype)
            for name, blank in zip(CAUSES, causes, strict=False)
        )
        return tuple(self.checked(rule, r, a) for r, a in zip(result, inputs, strict=True)), counted

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def propagate(
    op: LayerOp,
    arrays: tuple[Any, ...],
    inputs: tuple[Any, ...],
    operands: tuple[Any, ...],
    causes: tuple[Any, ...] = (),
    before: tuple[Any, ...] = (),
) -> tuple[Any, ...]:
    """A layer whose derivative is its rule.

    ``causes``: scalars whose derivative is what the layer absorbs, by `CAUSES`; none to count none.
    ``before``: input and operands of the activation that made the input, if that is made again.
    """
    return op.forward(inputs, operands)


def _propagate_fwd(
    op: LayerOp, arrays: Any, inputs: Any, operands: Any, causes: Any = (), before: Any = ()
) -> Any:
    outputs = op.forward(inputs, operands)
    return outputs, (arrays, () if before else inputs, operands, outputs, causes, before)


def _propagate_bwd(op: LayerOp, residuals: Any, messages: Any) -> Any:
    arrays, inputs, operands, outputs, causes, before = residuals
    if before:
        inputs = op.again(before, messages)
    result, kept = op.backward(arrays, inputs, operands, outputs, messages, causes)
    return None, result, None, kept, None


propagate.defvjp(_propagate_fwd, _propagate_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def propagate_custom(
    op: LayerOp, inputs: tuple[Any, ...], operands: tuple[Any, ...]
) -> tuple[Any, ...]:
    """A function with a rule of its own, see `relax.custom_relprop`."""
    return op.forward(inputs, operands)


def _custom_fwd(op: LayerOp, inputs: Any, operands: Any) -> Any:
    env = Evaluated(op.graph, op.layer, inputs, operands, ()).environment(inputs)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def to_relevance(nonnegative: bool, x: jax.Array) -> jax.Array:
    """The value itself; a coefficient that comes back is handed on as relevance."""
    return x


to_relevance.defvjp(
    lambda nonnegative, x: (x, x), lambda nonnegative, x, c: (pair(x, c, nonnegative),)
)


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
def masked(currency: Currency, x: jax.Array, mask: jax.Array, total: Any) -> jax.Array:
    """The value itself; what comes back is multiplied by a mask.

    ``total``: a scalar that is handed the sum of the relevance that is lost, or None.
    """
    return x


def _masked_bwd(currency: Currency, saved: Any, message: jax.Array) -> Any:
    x, mask, total = saved
    kept = (message * mask).astype(message.dtype)
    if total is not None:
        lost = wide(message) - wide(kept)
        lost = lost if currency == "relevance" else pair(x, lost)
        total = jnp.sum(lost.real).astype(total.dtype)
    return kept, None, total


masked.defvjp(lambda currency, x, mask, total: (x, (x, mask, total)), _masked_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def counted(currency: Currency, x: jax.Array, total: jax.Array) -> jax.Array:
    """The value itself; the sum of the relevance that comes back is handed to ``total``."""
    return x


def _counted_bwd(currency: Currency, saved: Any, message: jax.Array) -> Any:
    x, total = saved
    relevance = wide(message if currency == "relevance" else pair(x, message))
    return message, jnp.sum(relevance.real).astype(total.dtype)


counted.defvjp(lambda currency, x, total: (x, (x, total)), _counted_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def widened(dtype: Any, x: jax.Array) -> jax.Array:
    """A float16 value in a wider type; a coefficient that comes back stays finite."""
    return x.astype(dtype)


widened.defvjp(
    lambda dtype, x: (x.astype(dtype), None), lambda dtype, _, c: (narrow(c, jnp.float16),)
)
