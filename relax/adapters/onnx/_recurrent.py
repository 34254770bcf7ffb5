"""Recurrent layers, as scans over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax.adapters.onnx._node import Node, Value

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softsign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
}
_Cell = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


def _lstm(
    node: Node,
    x: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    h: Value = None,
    c: Value = None,
    peepholes: Value = None,
) -> Value:
    if node.get("input_forget", 0):
        raise node.unsupported("couples its input and forget gates (input_forget=1)")

    def cell(d: int, act: Sequence[Any]) -> _Cell:
        weight, recurrent, bias = w[d].T, r[d].T, _bias(b, d)
        peek = None if peepholes is None else jnp.split(peepholes[d], 3)

        def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            h, c = state
            gates = x @ weight + h @ recurrent
            i, o, f, new = jnp.split(_shifted(gates, bias), 4, -1)
            if peek is not None:
                i, f = i + _row(peek[0]) * c, f + _row(peek[2]) * c
            c = act[0](f) * c + act[0](i) * act[1](new)
            o = o if peek is None else o + _row(peek[1]) * c
            h = act[0](o) * act[2](c)
            return (h, c), h

        return step

    defaults = ("Sigmoid", "Tanh", "Tanh")
    return _over_time(node, x, r.shape[-1], lengths, (h, c), cell, defaults)


def _gru(
    node: Node,
    x: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    h: Value = None,
) -> Value:
    size = r.shape[-1]

    def cell(d: int, act: Sequence[Any]) -> _Cell:
        weight, recurrent = w[d].T, r[d].T
        outer = None if b is None else b[d][: 3 * size]
        inner = None if b is None else b[d][3 * size :]

        def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            (h,) = state
            zx, rx, nx = jnp.split(_shifted(x @ weight, outer), 3, -1)
            if node.get("linear_before_reset", 0):
                zh, rh, nh = jnp.split(_shifted(h @ recurrent, inner), 3, -1)
                z, reset = act[0](zx + zh), act[0](rx + rh)
                new = act[1](nx + reset * nh)
            else:
                gates = None if inner is None else inner[: 2 * size]
                zh, rh = jnp.split(_shifted(h @ recurrent[:, : 2 * size], gates), 2, -1)
                z, reset = act[0](zx + zh), act[0](rx + rh)
                nh = (reset * h) @ recurrent[:, 2 * size :]
                new = act[1](nx + _shifted(nh, None if inner is None else inner[2 * size :]))
            h = (1 - z) * new + z * h
            return (h,), h

        return step

    return _over_time(node, x, size, lengths, (h,), cell, ("Sigmoid", "Tanh"))


def _rnn(
    node: Node,
    x: Value,
    w: Value,
    r: Value,
    b: Value = None,
    lengths: Value = None,
    h: Value = None,
) -> Value:
    def cell(d: int, act: Sequence[Any]) -> _Cell:
        weight, recurrent, bias = w[d].T, r[d].T, _bias(b, d)

        def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            h = act[0](_shifted(x @ weight + state[0] @ recurrent, bias))
            return (h,), h

        return step

    return _over_time(node, x, r.shape[-1], lengths, (h,), cell, ("Tanh",))


def _bias(b: Value, d: int) -> Value:
    """Both biases of a direction as one: that of the input and that of the state."""
    if b is None:
        return None
    size = b.shape[-1] // 2
    return b[d][:size] + b[d][size:]


def _shifted(x: jax.Array, bias: Value) -> jax.Array:
    return x if bias is None else x + jnp.broadcast_to(bias, x.shape)


def _row(vector: jax.Array) -> jax.Array:
    return jnp.expand_dims(vector, 0)


def _over_time(
    node: Node,
    x: Value,
    size: int,
    lengths: Value,
    starts: Sequence[Value],
    cell: Callable[[int, Sequence[Any]], _Cell],
    defaults: Sequence[str],
) -> Value:
    """Each direction by a scan; outputs (time, directions, batch, size), then the last states."""
    first = bool(node.get("layout", 0))  # the batch before time
    if first:
        x = jnp.swapaxes(x, 0, 1)
        starts = [None if s is None else jnp.swapaxes(s, 0, 1) for s in starts]
    time, batch = x.shape[:2]
    full = isinstance(lengths, np.ndarray) and (lengths == time).all()
    shorter = None if lengths is None or full else jnp.asarray(lengths)
    if node.get("clip") is not None:
        raise node.unsupported("clips its gates")
    direction = node.get("direction", "forward")
    backwards = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    outputs, ends = [], []
    for d, reverse in enumerate(backwards):
        state = tuple(jnp.zeros((batch, size), x.dtype) if s is None else s[d] for s in starts)
        step = cell(d, _activations(node, defaults, d))
        dtype = jax.eval_shape(step, state, x[0])[1].dtype
        state = tuple(s.astype(dtype) for s in state)
        if shorter is None:
            end, output = lax.scan(step, state, x, reverse=reverse)
        else:
            within = jnp.arange(time)[:, None, None] < shorter[None, :, None]
            end, output = lax.scan(_within(step), state, (x, within), reverse=reverse)
        outputs.append(output)
        ends.append(end)
    y = jnp.stack(outputs, 1)
    last = [jnp.stack(end) for end in zip(*ends, strict=True)]
    if first:
        y = y.transpose(2, 0, 1, 3)
        last = [jnp.swapaxes(end, 0, 1) for end in last]
    return (y, *last)


def _within(step: _Cell) -> Callable[[Any, Any], tuple[Any, jax.Array]]:
    """A step that leaves the state as it is where a sequence has ended, or has not begun."""

    def masked(state: Any, x: Any) -> tuple[Any, jax.Array]:
        x, here = x
        new, output = step(state, x)
        new = tuple(jnp.where(here, n, s) for n, s in zip(new, state, strict=True))
        return new, jnp.where(here, output, jnp.zeros_like(output))

    return masked


def _activations(node: Node, defaults: Sequence[str], d: int) -> list[Any]:
    names = node.get("activations") or [*defaults] * (d + 1)
    mine = names[d * len(defaults) : (d + 1) * len(defaults)]
    if node.get("activation_alpha") or any(n.lower() not in _ACTIVATIONS for n in mine):
        known = ", ".join(_ACTIVATIONS)
        raise node.unsupported(f"has activations {mine}; there are {known}, without parameters")
    return [_ACTIVATIONS[name.lower()] for name in mine]


RECURRENT: dict[str, Callable[..., Value]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
