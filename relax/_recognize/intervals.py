"""Bounds on values: interval arithmetic over the primitives.

After a ReLU, a softmax or a square the sign is known from the program alone, so a rule that splits
signs needs one pass instead of two, and a sigmoid is known to be a gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from relax._graph import Equation, Graph
from relax._numerics import length
from relax._primitives import CONV, DOT, ROUTING

Interval = tuple[float, float]
ANY: Interval = (-math.inf, math.inf)


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
        count = length(math.prod(graph.shape(equation.inputs[1])))
        result = _scale_sum(_mul(*operands), count)
    elif equation.primitive is lax.reduce_sum_p:
        shape = graph.shape(equation.inputs[0])
        count = length(math.prod(shape[axis] for axis in equation.params["axes"]))
        result = _sum(operands[0], count)
    elif equation.primitive in (lax.cumsum_p, lax.reduce_window_sum_p):
        count = length(math.prod(graph.shape(equation.inputs[0])))
        result = _scale_sum(operands[0], count)
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


def union(*intervals: Interval) -> Interval:
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


def _sum(a: Interval, count: float) -> Interval:
    """Bounds on a sum of ``count`` elements; of one or more, if that is infinite."""
    least = 1 if math.isinf(count) else count
    low = _product(a[0], count if a[0] < 0 else least)
    return low, _product(a[1], count if a[1] > 0 else least)


def _scale_sum(a: Interval, count: float) -> Interval:
    """Bounds on a sum of any part (at least nothing) of ``count`` elements."""
    return min(0.0, _product(a[0], count)), max(0.0, _product(a[1], count))


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
    return a if math.isnan(fill) else union(a, (fill, fill))


def _select(predicate: Interval, *cases: Interval) -> Interval:
    if len(cases) == 2 and predicate[0] == predicate[1]:
        return cases[int(predicate[0])]
    return union(*cases)


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
    lax.eq_p: lambda a, b: (0.0, float(a[0] <= b[1] and b[0] <= a[1])),
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
    lax.concatenate_p: union,
    lax.stack_p: union,
    lax.pad_p: union,
    lax.dynamic_update_slice_p: lambda a, b, *_: union(a, b),
    lax.scatter_p: lambda a, _, b: union(a, b),
}
# Moves change no value, unless they fill in others, and neither does the choice of one.
_FILLING = frozenset({p.ppermute_p, p.device_put_p, lax.optimization_barrier_p})
_CHOICES = frozenset(
    {
        lax.stop_gradient_p,
        lax.reduce_max_p,
        lax.reduce_min_p,
        lax.reduce_window_max_p,
        lax.reduce_window_min_p,
        lax.cummax_p,
        lax.cummin_p,
    }
)
_INTERVALS |= dict.fromkeys((ROUTING | _CHOICES) - _FILLING - _INTERVALS.keys(), _same)
