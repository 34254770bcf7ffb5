"""What a layer makes of a difference of its inputs: multipliers, by which the sum is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax._graph import Equation, Graph, computing, replay
from relax._numerics import divide, wide
from relax._order import kept
from relax._views import Evaluated
from relax.methods._problem import summed
from relax.rules import Rescale
from relax.rules._base import Currency, Outgoing, Rule, static
from relax.rules.general import ANYTHING

_MOVES = frozenset(
    {lax.broadcast_in_dim_p, lax.convert_element_type_p, lax.reshape_p, lax.squeeze_p}
)
_BETWEEN = _MOVES | {lax.abs_p, lax.reduce_sum_p}  # of exponentials, and their positive sum
_FRONT = _MOVES | {lax.add_p, lax.div_p, lax.mul_p, lax.neg_p, lax.select_n_p, lax.sub_p}
_ENDS = {  # by what is done to exponentials and their sum
    (lax.div_p,): "softmax",
    (lax.log_p, lax.sub_p, lax.exp_p): "softmax",
    (lax.log_p, lax.sub_p): "log_softmax",
    (lax.log_p, lax.add_p, lax.sub_p): "log_softmax",
    (lax.log_p,): "logsumexp",
    (lax.log_p, lax.add_p): "logsumexp",
}


@dataclasses.dataclass(frozen=True)
class Difference(Rule):
    """What a layer makes of the difference of its inputs from those at the baseline.

    Attributes:
      references: its inputs at the baseline, in shapes that broadcast to them.
      path: how its slope changes along the line between both, where the layer mixes values; or
        ``"quotient"``.
      wins: ``"largest"`` or ``"smallest"`` for a maximum or a minimum, such as a max-pool.
    """

    references: tuple[Any, ...]
    path: str = static("smooth")
    wins: str = static("")

    kinds = ANYTHING

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        inputs = x if isinstance(x, tuple) else (x,)
        starts = tuple(
            jnp.broadcast_to(a, b.shape).astype(b.dtype)
            for a, b in zip(self.references, inputs, strict=True)
        )
        if hasattr(layer, "ratio"):  # an activation
            return Rescale(starts[0]).propagate(layer, inputs[0], out)
        function = _function_of(layer, inputs)
        c = jax.tree.map(lambda c, z: c.astype(z.dtype), out.coefficient, out.value)
        c = c if isinstance(c, tuple) else (c,)
        whole = getattr(layer, "evaluated", None)
        softmax = None if whole is None else _softmax(whole)
        if softmax is not None:
            found = (softmax.multipliers(inputs[0], starts[0], c[0]),)
        elif self.path == "quotient":
            found = _quotient(inputs, starts, c[0])
        elif self.wins:
            found = _chosen(function, inputs, starts, c, self.wins)
        else:
            found = _integrated(function, inputs, starts, c, self.path)
        return found if isinstance(x, tuple) else found[0]


def _function_of(layer: Any, inputs: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], Any]:
    """A layer as a function of a tuple to a tuple."""
    if hasattr(layer, "full"):  # a normalization
        return lambda inputs: (layer.full(inputs[0]),)
    if hasattr(layer, "operands"):  # a product
        same = layer.same
        return lambda inputs: (layer((inputs[0], inputs[0]) if same else inputs),)
    return lambda inputs: tuple(layer.function(inputs))


def _integrated(
    function: Any, inputs: tuple[Any, ...], starts: tuple[Any, ...], c: Any, path: str
) -> tuple[Any, ...]:
    """The transposed Jacobian, averaged along the line from the baseline."""

    def at(node: tuple[Any, Any]) -> tuple[Any, ...]:
        place, weight = node

        def along(a: jax.Array, b: jax.Array) -> jax.Array:
            masked = jnp.isinf(a) | jnp.isinf(b)
            between = jnp.where(masked, b, a + place.astype(a.dtype) * (b - a))
            # The derivative of a maximum compares it with values that XLA may have rounded anew.
            return kept(between)

        (found,) = jax.vjp(function, jax.tree.map(along, starts, inputs))[1](c)
        return jax.tree.map(lambda g: weight.astype(wide(g).dtype) * wide(g), found)

    mean = summed(at, jax.tree.map(jnp.asarray, _PATHS[path]), 8)
    return jax.tree.map(lambda g, a: g.astype(a.dtype), mean, inputs)


def _quotient(inputs: tuple[Any, ...], starts: tuple[Any, ...], c: jax.Array) -> tuple[Any, ...]:
    """The mean of the other factor at x and at the baseline, for the factors a and 1 / b."""
    if len(inputs) == 1:
        return (jnp.zeros_like(inputs[0]),)  # b / b
    (a, b), (a0, b0) = (tuple(map(wide, values)) for values in (inputs, starts))
    found = wide(c) * (1 / b + 1 / b0) / 2, -wide(c) * (a / b0 / b + a0 / b / b0) / 2
    return jax.tree.map(lambda m, x: m.astype(x.dtype), found, inputs)


class _Softmax(NamedTuple):
    """One that is rescaled, as read from its equations.

    Attributes:
      evaluated: the layer with the values it was evaluated on.
      end: softmax, log_softmax, logsumexp, or exp for an exponential alone.
      scores: what is exponentiated, before its maximum is subtracted; ``axes``: of its sum.
    """

    evaluated: Evaluated
    end: str
    scores: int
    axes: tuple[int, ...] = ()

    def multipliers(self, x: jax.Array, x0: jax.Array, c: jax.Array) -> jax.Array:
        """By the logarithmic means of the probabilities at both ends: without any quadrature."""
        e, axes = self.evaluated, self.axes
        front = computing(e.graph, e.layer.equations, self.scores)
        scores = lambda x: replay(e.graph, front, e.environment((x,)), (self.scores,))[0]
        z, back = jax.vjp(scores, x)
        ends, c = (wide(z), wide(scores(x0))), wide(c)
        if self.end == "exp":
            return back((c * _mean(*ends)).astype(z.dtype))[0]
        mean = _mean(*(jax.nn.log_softmax(a, axis=axes) for a in ends))
        total = mean.sum(axes, keepdims=True)
        if self.end == "logsumexp":
            found = divide(mean, total) * c.reshape(total.shape)
        else:
            c = mean * c if self.end == "softmax" else c
            found = c - divide(mean, total) * c.sum(axes, keepdims=True)
        return back(found.astype(z.dtype))[0]


def _softmax(e: Evaluated) -> _Softmax | None:
    """None if it is more than exponentials and their sum, such as with something added to that."""
    graph, layer, body = e.graph, e.layer, e.layer.equations
    own = [graph.equations[i] for i in body]
    powers = [q for q in own if q.primitive is lax.exp_p]
    sums = [q for q in own if q.primitive is lax.reduce_sum_p]
    if len(own) == len(powers) == 1:
        return _Softmax(e, "exp", layer.inputs[0])
    if len(sums) != 1 or not powers:
        return None
    shifted, axes = powers[0].inputs[0], sums[0].params["axes"]
    scores, made = shifted, {v: q for q in own for v in q.outputs}
    is_maximum = lambda v: set(axes) <= set(_axes_of_maximum(graph, made, v))
    if shifted in made and made[shifted].primitive is lax.sub_p:
        value, subtracted = made[shifted].inputs
        scores = value if is_maximum(subtracted) else shifted
    for q in (graph.equations[i] for i in computing(graph, body, scores)):
        moving = [v for v in q.inputs if graph.depends[v] and v not in layer.operands]
        divides = q.primitive is lax.div_p and moving != [q.inputs[0]]
        if q.primitive not in _FRONT or len(moving) != 1 or divides:
            return None  # more than a scale or a mask
    powers = {v for q in powers if q.inputs[0] == shifted for v in q.outputs}
    reached, done = set(powers), []
    for q in own:
        if reached.isdisjoint(q.inputs):
            continue
        reached.update(q.outputs)
        if q.primitive in _BETWEEN:
            continue
        first, *others = (_unmoved(made, v) for v in q.inputs)
        if q.primitive is lax.add_p:  # of the maximum, in either order
            others = [v for v in (first, *others) if v not in reached]
            fits = len(others) == 1 and (is_maximum(others[0]) or others[0] in layer.operands)
        elif q.primitive is lax.sub_p:
            fits = first == (scores if lax.add_p in done else shifted)
        else:
            fits = q.primitive is not lax.div_p or first in powers
        if not fits:
            return None
        done.append(q.primitive)
    if graph.shape(scores) != graph.shape(sums[0].inputs[0]):
        return None
    if done == [lax.log_p] and scores != shifted:
        return None  # the maximum stays subtracted
    end = _ENDS.get(tuple(done))
    return None if end is None else _Softmax(e, end, scores, axes)


def _unmoved(made: dict[int, Equation], value: int) -> int:
    while value in made and made[value].primitive in _MOVES:
        value = made[value].inputs[0]
    return value


def _axes_of_maximum(graph: Graph, made: dict[int, Equation], value: int) -> tuple[int, ...]:
    """Those along which what is subtracted is one number, seen through guards and casts."""
    while value in made and made[value].primitive is not lax.reduce_max_p:
        inputs = made[value].inputs
        floats = [v for v in inputs if graph.depends[v] and graph.is_float(v)]
        if len(floats) != 1:
            return ()
        (value,) = floats
    return made[value].params["axes"] if value in made else ()


def _mean(a: jax.Array, b: jax.Array) -> jax.Array:
    """The logarithmic mean of exp(a) and exp(b): the slope of exp between both; 0 at a mask."""
    masked = jnp.isinf(a) | jnp.isinf(b)
    a, b = jnp.where(masked, 0, a), jnp.where(masked, 0, b)
    distance = jnp.abs(a - b)
    near = distance < 1e-4
    far = jnp.where(near, 1, distance)
    slope = jnp.where(near, 1 - distance / 2 + distance**2 / 6, -jnp.expm1(-far) / far)
    return jnp.where(masked, 0, jnp.exp(jnp.maximum(a, b)) * slope)


def _panels(edges: np.ndarray, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights of Gauss-Legendre quadrature between each edge and the next."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    width = np.diff(edges)[:, None]
    return (edges[:-1, None] + width * (places + 1) / 2).ravel(), (width * weights / 2).ravel()


# A normalization turns within a standard deviation of sqrt(epsilon) about a baseline of 0, the rest
# of the way it scarcely changes: panels shrink towards both ends. A softmax that is not rescaled
# may turn in between.
_end = np.concatenate([[0.0], 0.25 ** np.arange(11, 1, -1)])
_steep = np.concatenate([_end, np.arange(2, 15) / 16, 1 - _end[::-1]])
_PATHS = {
    "straight": _panels(np.array([0.0, 1.0]), 1),
    "smooth": _panels(np.array([0.0, 1.0]), 8),
    "steep": _panels(_steep, 4),
}


def _chosen(
    function: Any, inputs: tuple[Any, ...], starts: tuple[Any, ...], c: Any, wins: str
) -> tuple[Any, ...]:
    """A maximum: the winners at x take what x has more, those at the baseline what that has.

    So each difference of outputs goes to an input that differs at least as much.
    """
    (y,), (y0,), (c,) = function(inputs), function(starts), c
    top = (jnp.maximum if wins == "largest" else jnp.minimum)(y, y0)
    back = lambda at, message: jax.vjp(function, at)[1]((message,))[0]
    same = y == y0  # also if both are infinite
    at_x = back(inputs, c * jnp.where(same, 0, top - y0))
    at_start = back(starts, c * jnp.where(same, 0, y - top))

    def quotient(a: jax.Array, a0: jax.Array, share: jax.Array, slope: jax.Array) -> jax.Array:
        difference = a - a0
        close = ~(jnp.abs(difference) >= 1e-7)
        return jnp.where(close, slope, share / jnp.where(close, 1, difference))

    shares = jax.tree.map(jnp.add, at_x, at_start)
    return jax.tree.map(quotient, inputs, starts, shares, back(inputs, c))
