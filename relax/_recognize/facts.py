"""Forward facts about every value: does it carry relevance, is it constant, in what interval.

The interval is where no peer looks: after a ReLU, a softmax or a square the sign is known from the
program alone, so a rule that splits signs needs one pass instead of two.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from relax._errors import UnsupportedOperationError, message
from relax._graph import Equation, Graph, numpy_scalar
from relax._primitives import CONV, DOT, ELEMENTWISE, is_one_to_one, is_routing

Interval = tuple[float, float]
ANY: Interval = (-math.inf, math.inf)


@dataclasses.dataclass(eq=False, repr=False)
class Facts:
    """What is known of each value.

    Attributes:
      tracked: relevance flows through it.
      constant: made of literals only: no argument, no closed-over array takes part.
      interval: bounds on its elements.
      origin: the largest argument or closed-over array that it is computed from, or -1.
      token: an integer (or the comparison of one in a one-hot) that names explained tokens.
      sources: equations that make the first float value from tokens.
      inner: for each equation that runs other programs, the facts of those.
    """

    tracked: list[bool]
    constant: list[bool]
    interval: list[Interval]
    origin: list[int]
    token: list[bool]
    sources: set[int] = dataclasses.field(default_factory=set)
    inner: dict[int, tuple[Facts, ...]] = dataclasses.field(default_factory=dict)

    def nonnegative(self, value: int) -> bool:
        return self.interval[value][0] >= 0

    def number(self, value: int) -> float | None:
        """The one number that all elements of a value are known to equal, or None."""
        low, high = self.interval[value]
        return low if low == high else None


def gather_facts(graph: Graph, explained: Sequence[int], outputs: Sequence[int]) -> Facts:
    """One pass over the equations, and one back from the outputs that are explained."""
    facts = _blank(graph)
    for value in explained:
        facts.tracked[value] = graph.is_float(value)
        facts.token[value] = not graph.is_float(value)
    _propagate(graph, facts)
    _forget_dead(graph, facts, outputs)
    return facts


def _blank(graph: Graph) -> Facts:
    """What is known before anything is computed."""
    count = len(graph.avals)
    facts = Facts([False] * count, [False] * count, [ANY] * count, [-1] * count, [False] * count)
    for value in (*graph.inputs, *graph.consts):
        facts.origin[value] = value
    for value, aval in enumerate(graph.avals):
        if aval.dtype == np.bool_:
            facts.interval[value] = (0.0, 1.0)
    for value, literal in graph.literals.items():
        number = numpy_scalar(literal)
        facts.constant[value] = number is not None
        facts.origin[value] = value if number is None else -1
        if number is not None and not math.isnan(number):
            facts.interval[value] = (number, number)
    return facts


def _propagate(graph: Graph, facts: Facts) -> None:
    """One pass over the equations."""
    sizes = [math.prod(aval.shape) for aval in graph.avals]
    for index, equation in enumerate(graph.equations):
        if equation.control is not None:
            _run_bodies(graph, facts, index, equation)
            continue
        tracked = equation.primitive is not lax.stop_gradient_p and any(
            facts.tracked[value] for value in equation.inputs
        )
        constant = all(facts.constant[value] for value in equation.inputs)
        origins = [facts.origin[v] for v in equation.inputs if facts.origin[v] >= 0]
        origin = max(origins, key=lambda v: sizes[v], default=-1)
        intervals = propagate_interval(graph, equation, facts.interval)
        if is_one_to_one(equation.primitive):
            for value, same in zip(equation.outputs, equation.inputs, strict=True):
                facts.tracked[value] = facts.tracked[same]
                facts.constant[value] = facts.constant[same]
                facts.interval[value] = facts.interval[same]
                facts.origin[value] = facts.origin[same]
            continue
        for value, interval in zip(equation.outputs, intervals, strict=True):
            facts.tracked[value] = tracked and graph.is_float(value)
            facts.constant[value] = constant
            facts.interval[value] = interval
            facts.origin[value] = origin
        if any(facts.token[value] for value in equation.inputs):
            _follow_tokens(graph, facts, index, equation)


def _run_bodies(graph: Graph, facts: Facts, index: int, equation: Equation) -> None:
    """Facts of the programs an equation runs, and of its results.

    What a scan carries is a fixpoint: an interval that does not settle is widened.
    """
    control = equation.control
    assert control is not None
    if any(facts.token[v] for v in equation.inputs):
        raise UnsupportedOperationError(
            message(
                f"cannot follow token ids into a {control.kind}",
                where=equation.where,
                path=equation.scope,
                remedy="Look them up in front of it, or explain their embeddings.",
            )
        )
    operands = equation.inputs[control.leading :]
    tracked = [facts.tracked[v] for v in operands]
    interval = [facts.interval[v] for v in operands]
    first, last = control.consts, control.consts + control.carry
    inner: list[Facts] = []
    for attempt in itertools.count():
        inner = []
        for body in equation.bodies:
            own = _blank(body)
            for j, value in enumerate(body.inputs):
                own.tracked[value], own.interval[value] = tracked[j], interval[j]
                own.constant[value] = facts.constant[operands[j]] and not first <= j < last
            _propagate(body, own)
            inner.append(own)
        settled = True
        for j, value in zip(range(first, last), equation.bodies[0].outputs, strict=False):
            made = inner[0]
            bounds = _union(interval[j], made.interval[value])
            flag = tracked[j] or made.tracked[value]
            if (flag, bounds) != (tracked[j], interval[j]):
                settled = False
                if attempt >= 2:
                    bounds = _widened(interval[j], bounds)
                tracked[j], interval[j] = flag, bounds
        if settled:
            break
    facts.inner[index] = tuple(inner)
    for j, value in enumerate(equation.outputs):
        results = [(own, body.outputs[j]) for own, body in zip(inner, equation.bodies, strict=True)]
        bounds = [own.interval[v] for own, v in results]
        if j < control.carry:
            bounds.append(interval[first + j])
        facts.interval[value] = _union(*bounds)
        facts.tracked[value] = graph.is_float(value) and (
            any(own.tracked[v] for own, v in results) or (j < control.carry and tracked[first + j])
        )


def _widened(old: Interval, new: Interval) -> Interval:
    return old[0] if new[0] >= old[0] else -math.inf, old[1] if new[1] <= old[1] else math.inf


def _forget_dead(graph: Graph, facts: Facts, outputs: Sequence[int]) -> None:
    """What reaches no explained output carries no relevance, whatever it is computed from."""
    live = [False] * len(graph.avals)
    for value in outputs:
        live[value] = True
    for index in reversed(range(len(graph.equations))):
        equation = graph.equations[index]
        if equation.control is not None:
            wanted = [live[v] and facts.tracked[v] for v in equation.outputs]
            if any(wanted):  # what is carried may reach the rest in the next round
                wanted[: equation.control.carry] = [True] * equation.control.carry
            for body, own in zip(equation.bodies, facts.inner[index], strict=True):
                _forget_dead(body, own, [v for v, w in zip(body.outputs, wanted, strict=True) if w])
        if any(live[value] and facts.tracked[value] for value in equation.outputs):
            for value in equation.inputs:
                live[value] = True
    facts.tracked = [tracked and alive for tracked, alive in zip(facts.tracked, live, strict=True)]
    facts.sources = {
        index for index in facts.sources if facts.tracked[graph.equations[index].outputs[0]]
    }


def _follow_tokens(graph: Graph, facts: Facts, index: int, equation: Equation) -> None:
    """Token ids stay tokens while they are moved about; the first float made of them is a source.

    A comparison with one number is a mask, which carries no relevance; a comparison for equality
    with many is a one-hot.
    """
    if any(facts.tracked[value] for value in equation.inputs):
        return
    if not (is_routing(equation.primitive) or equation.primitive in ELEMENTWISE):
        return
    for value in equation.outputs:
        if graph.is_float(value):
            facts.tracked[value] = True
            facts.sources.add(index)
        elif graph.avals[value].dtype != np.bool_:
            facts.token[value] = True
        else:
            others = [v for v in equation.inputs if not facts.token[v]]
            one_hot = equation.primitive is lax.eq_p and not any(
                facts.number(v) is not None for v in others
            )
            facts.token[value] = one_hot or is_routing(equation.primitive)


def propagate_interval(
    graph: Graph, equation: Equation, interval: Sequence[Interval] | Mapping[int, Interval]
) -> list[Interval]:
    """Bounds on the outputs of an equation from bounds on its inputs."""
    rule = _INTERVALS.get(equation.primitive)
    if rule is None or not all(_is_real(graph, value) for value in equation.outputs):
        return [ANY] * len(equation.outputs)
    operands = [interval[value] for value in equation.inputs]
    if equation.primitive is lax.mul_p and equation.inputs[0] == equation.inputs[1]:
        result = _square(operands[0])
    elif equation.primitive is lax.ne_p and equation.inputs[0] == equation.inputs[1]:
        result = (0.0, 0.0)  # a test for NaN
    elif equation.primitive in (DOT, CONV):
        length = math.prod(graph.shape(equation.inputs[1]))
        result = _scale_sum(_mul(*operands), length)
    elif equation.primitive is lax.reduce_sum_p:
        shape = graph.shape(equation.inputs[0])
        length = math.prod(shape[axis] for axis in equation.params["axes"])
        result = _product(operands[0][0], length), _product(operands[0][1], length)
    elif equation.primitive in (lax.cumsum_p, lax.reduce_window_sum_p):
        result = _scale_sum(operands[0], math.prod(graph.shape(equation.inputs[0])))
    elif equation.primitive is lax.sort_p:
        return operands
    elif equation.primitive is lax.top_k_p:
        return [operands[0], (0.0, math.inf)]
    elif equation.primitive is lax.convert_element_type_p:
        result = _cast(operands[0], equation.params["new_dtype"])
    elif equation.primitive is lax.integer_pow_p:
        result = _integer_pow(operands[0], equation.params["y"])
    elif equation.primitive is lax.gather_p:
        result = _gather(operands[0], equation.params)
    else:
        result = rule(*operands)
    if any(math.isnan(bound) for bound in result):
        result = ANY
    return [result] * len(equation.outputs)


def _is_real(graph: Graph, value: int) -> bool:
    dtype = graph.avals[value].dtype
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _union(*intervals: Interval) -> Interval:
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def _monotone(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    def at(bound: float) -> float:
        try:
            return function(bound)
        except (ValueError, OverflowError, ZeroDivisionError):
            return math.nan

    return lambda a: (at(a[0]), at(a[1]))


def _product(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def _mul(a: Interval, b: Interval) -> Interval:
    corners = [_product(x, y) for x in a for y in b]
    return min(corners), max(corners)


def _div(a: Interval, b: Interval) -> Interval:
    if b[0] > 0 or b[1] < 0:
        return _mul(a, (1 / b[1], 1 / b[0]))
    if b[0] >= 0:
        return _mul(a, (0.0 if math.isinf(b[1]) else 1 / b[1] if b[1] else 0.0, math.inf))
    return ANY


def _square(a: Interval) -> Interval:
    squares = (_product(a[0], a[0]), _product(a[1], a[1]))
    return (0.0 if a[0] <= 0 <= a[1] else min(squares)), max(squares)


def _integer_pow(a: Interval, y: int) -> Interval:
    if y < 0:
        return (0.0, math.inf) if y % 2 == 0 or a[0] >= 0 else ANY
    if y % 2 == 0:
        low, high = _abs(a)
        return _monotone(lambda v: v**y)((low, high))
    return _monotone(lambda v: v**y)(a)


def _abs(a: Interval) -> Interval:
    if a[0] >= 0:
        return a
    if a[1] <= 0:
        return -a[1], -a[0]
    return 0.0, max(-a[0], a[1])


def _scale_sum(a: Interval, length: int) -> Interval:
    """Bounds on a sum of any part (at least nothing) of ``length`` elements."""
    return min(0.0, _product(a[0], length)), max(0.0, _product(a[1], length))


def _cast(a: Interval, dtype: Any) -> Interval:
    if dtype == np.bool_:
        return 0.0, 1.0
    return a if jnp.issubdtype(dtype, jnp.floating) else (_floor(a[0]), -_floor(-a[1]))


def _floor(bound: float) -> float:
    return bound if math.isinf(bound) else float(math.floor(bound))


def _gather(a: Interval, params: Mapping[str, Any]) -> Interval:
    if "FILL" not in str(params["mode"]) or params["fill_value"] is None:
        return a  # out of bounds is NaN or clipped: no new finite value
    fill = float(params["fill_value"])
    return a if math.isnan(fill) else _union(a, (fill, fill))


def _select(predicate: Interval, *cases: Interval) -> Interval:
    if len(cases) == 2 and predicate[0] == predicate[1]:
        return cases[int(predicate[0])]
    return _union(*cases)


def _compare(certain: Callable[[Interval, Interval], bool | None]) -> Any:
    def rule(a: Interval, b: Interval) -> Interval:
        known = certain(a, b)
        return (0.0, 1.0) if known is None else (float(known), float(known))

    return rule


def _less(a: Interval, b: Interval) -> bool | None:
    return True if a[1] < b[0] else False if a[0] >= b[1] else None


def _less_equal(a: Interval, b: Interval) -> bool | None:
    return True if a[1] <= b[0] else False if a[0] > b[1] else None


def _pow(a: Interval, b: Interval) -> Interval:
    return (0.0, math.inf) if a[0] >= 0 else ANY


def _rsqrt(a: Interval) -> Interval:
    high = 1 / math.sqrt(a[0]) if a[0] > 0 else math.inf
    return (1 / math.sqrt(a[1]) if 0 < a[1] < math.inf else 0.0), high


def _same(a: Interval, *_: Interval) -> Interval:
    return a


_exp = _monotone(lambda v: math.exp(v) if v < 700 else math.inf)
_expm1 = _monotone(lambda v: math.expm1(v) if v < 700 else math.inf)
_sqrt = _monotone(lambda v: math.sqrt(max(v, 0.0)))
_log1p = _monotone(lambda v: math.log1p(v) if v > -1 else -math.inf)
_log = _monotone(lambda v: math.log(v) if v > 0 else -math.inf)
_logistic = _monotone(lambda v: 1 / (1 + math.exp(-v)) if v > -700 else 0.0)

_INTERVALS: dict[Any, Callable[..., Interval]] = {
    lax.add_p: lambda a, b: (a[0] + b[0], a[1] + b[1]),
    p.add_jaxvals_p: lambda a, b: (a[0] + b[0], a[1] + b[1]),
    lax.sub_p: lambda a, b: (a[0] - b[1], a[1] - b[0]),
    lax.neg_p: lambda a: (-a[1], -a[0]),
    lax.mul_p: _mul,
    lax.div_p: _div,
    DOT: _mul,
    CONV: _mul,
    lax.max_p: lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    lax.min_p: lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    lax.clamp_p: lambda low, x, high: (
        min(max(x[0], low[0]), high[0]),
        min(max(x[1], low[1]), high[1]),
    ),
    lax.select_n_p: _select,
    lax.square_p: _square,
    lax.integer_pow_p: _same,
    lax.pow_p: _pow,
    lax.abs_p: _abs,
    lax.exp_p: _exp,
    lax.exp2_p: lambda a: _exp((a[0] * math.log(2), a[1] * math.log(2))),
    lax.expm1_p: _expm1,
    lax.log_p: _log,
    lax.log1p_p: _log1p,
    lax.sqrt_p: _sqrt,
    lax.rsqrt_p: _rsqrt,
    lax.logistic_p: _logistic,
    lax.tanh_p: _monotone(math.tanh),
    lax.erf_p: _monotone(math.erf),
    lax.erfc_p: lambda a: (math.erfc(a[1]), math.erfc(a[0])),
    lax.sin_p: lambda a: (-1.0, 1.0),
    lax.cos_p: lambda a: (-1.0, 1.0),
    lax.sign_p: lambda a: (float(a[0] > 0) - (a[0] < 0), float(a[1] > 0) - (a[1] < 0)),
    lax.floor_p: lambda a: (_floor(a[0]), _floor(a[1])),
    lax.ceil_p: lambda a: (-_floor(-a[0]), -_floor(-a[1])),
    lax.round_p: lambda a: (_floor(a[0]), -_floor(-a[1])),
    lax.lt_p: _compare(_less),
    lax.le_p: _compare(_less_equal),
    lax.gt_p: _compare(lambda a, b: _less(b, a)),
    lax.ne_p: lambda a, b: (0.0, 1.0),
    lax.ge_p: _compare(lambda a, b: _less_equal(b, a)),
    lax.convert_element_type_p: _same,
    lax.reduce_sum_p: _same,
    lax.reduce_window_sum_p: _same,
    lax.cumsum_p: _same,
    lax.sort_p: _same,
    lax.top_k_p: _same,
    lax.gather_p: _same,
    lax.iota_p: lambda: (0.0, math.inf),
    lax.concatenate_p: _union,
    lax.stack_p: _union,
    lax.pad_p: _union,
    lax.dynamic_update_slice_p: lambda a, b, *_: _union(a, b),
    lax.scatter_p: lambda a, _, b: _union(a, b),
}
_UNCHANGED = (
    lax.reshape_p,
    lax.transpose_p,
    lax.rev_p,
    lax.squeeze_p,
    lax.broadcast_in_dim_p,
    lax.slice_p,
    lax.dynamic_slice_p,
    lax.copy_p,
    lax.reduce_precision_p,
    lax.stop_gradient_p,
    lax.sharding_constraint_p,
    lax.split_p,
    lax.unstack_p,
    lax.tile_p,
    lax.reduce_max_p,
    lax.reduce_min_p,
    lax.reduce_window_max_p,
    lax.reduce_window_min_p,
    lax.cummax_p,
    lax.cummin_p,
    p.name_p,
)
_INTERVALS |= dict.fromkeys(_UNCHANGED, _same)
