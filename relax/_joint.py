"""A dense layer of several inputs and outputs as one of a single input and output.

Side by side stands what was given apart: samples along the leading axes, features along the last.
So every rule for affine layers, a user's own too, serves recurrent cells as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax._graph import Graph, Layer, replay
from relax._numerics import varying_like
from relax.rules._maps import AffineMap

Axes = tuple[int, ...]


def beside(values: Sequence[Any], axes: Sequence[Axes]) -> jax.Array:
    """Values in one array; a single one is left as it is."""
    if len(values) == 1:
        return values[0]
    rows = []
    for value, own in zip(values, axes, strict=True):
        front = jnp.moveaxis(value, own, range(len(own)))
        rows.append(front.reshape(*front.shape[: len(own)], -1))
    return jnp.concatenate(rows, -1)


def apart(array: Any, like: Sequence[Any], axes: Sequence[Axes]) -> tuple[Any, ...]:
    """The reverse, in the shapes of ``like``; sample axes may be of size one instead."""
    if len(like) == 1:
        return (array,)
    values, start = [], 0
    for value, own in zip(like, axes, strict=True):
        rest = tuple(size for axis, size in enumerate(value.shape) if axis not in own)
        stop = start + math.prod(rest)
        part = array[..., start:stop].reshape(*array.shape[: len(own)], *rest)
        values.append(jnp.moveaxis(part, range(len(own)), own).astype(value.dtype))
        start = stop
    return tuple(values)


def _blank(graph: Graph, value: int) -> jax.Array:
    aval = graph.avals[value]
    return varying_like(jnp.zeros(aval.shape, aval.dtype), aval)


def joint_map(
    graph: Graph,
    layer: Layer,
    env: dict[int, Any],
    parts: Sequence[AffineMap],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> AffineMap:
    """The layer as ``z = x w + b``, where w is the tuple of the weights of its parts.

    Args:
      graph, layer: where it stands; ``env``: the values it reads.
      parts: its dense layers, each as a map of its own.
      inputs, outputs: its values.
    """
    d = layer.details
    known = {v: env[v] if v in env else graph.literals[v] for v in d.shifts}
    zeros = {
        v: varying_like(jnp.zeros(jnp.shape(x), graph.avals[v].dtype), jax.typeof(x))
        for v, x in known.items()
    }
    position = {v: i for i, v in enumerate(layer.inputs)}

    def finish(values: Sequence[Any], known: dict[int, Any]) -> jax.Array:
        made = {part.outputs[0]: z for part, z in zip(d.parts, values, strict=True)}
        return beside(replay(graph, d.tail, {**known, **made}, layer.outputs), d.output_axes)

    def each(x: Any) -> list[Any]:
        xs = apart(x, inputs, d.input_axes)
        return [xs[position[part.inputs[0]]] for part in d.parts]

    def core(x: Any, weights: Any) -> jax.Array:
        products = [
            part.move(jnp.broadcast_to(part.core(own, w), part.core_shape))
            for part, own, w in zip(parts, each(x), weights, strict=True)
        ]
        return finish(products, {**env, **zeros})

    def native(x: Any) -> jax.Array:
        products = [part.linear(own) for part, own in zip(parts, each(x), strict=True)]
        return finish(products, {**env, **zeros})

    x, z = beside(inputs, d.input_axes), beside(outputs, d.output_axes)
    bias = None
    if d.shifts or any(part.bias is not None for part in parts):
        own = [
            _blank(graph, layer.outputs[0]) if part.bias is None else part.bias
            for layer, part in zip(d.parts, parts, strict=True)
        ]
        bias = finish(own, env)
    samples = len(d.output_axes[0])
    return AffineMap(
        core=core,
        move=lambda z: z,
        make_weight=lambda: tuple(part.weight for part in parts),
        bias=bias,
        example=jax.typeof(x),
        core_shape=z.shape,
        native=native,
        input=x,
        output=z,
        batch_axes=d.output_axes[0] if len(outputs) == 1 else tuple(range(samples)),
        input_batch_axes=d.input_axes[0] if len(inputs) == 1 else tuple(range(samples)),
        nonnegative=d.nonnegative,
        dead_below=d.dead_below,
    )
