"""What relevance through loops costs, counted in the compiled program: memory, FLOPs and size.

Each against gradient times input of the same function. First 48 transformer blocks in a
``lax.scan``, plain and under `jax.checkpoint` with two policies: what is saved in the forward pass
is most of the memory. Then an LSTM over sequences of three lengths: the size of the program does
not depend on the number of steps. XLA counts the FLOPs of one round of a loop only, so they are
shown where that is the program: for the blocks, and for eight steps that are unrolled. Nothing is
run or timed.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import relax
from benchmarks import stacks
from benchmarks.counting import count, gradient_times_input
from benchmarks.report import Table

POLICIES = jax.checkpoint_policies
BLOCKS: dict[str, Any] = {
    "48 blocks": lambda step: step,
    "checkpoint": jax.checkpoint,
    "checkpoint, products saved": lambda step: jax.checkpoint(
        step, policy=POLICIES.dots_with_no_batch_dims_saveable
    ),
}
LENGTHS = (32, 256, 2048)


def blocks(wrap: Any, depth: int = 48, width: int = 128, time: int = 128) -> tuple[Any, Any, Any]:
    """Pre-norm transformer blocks with stacked parameters; function, parameters and input."""

    def step(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        return stacks.transformer_block(p, x), None

    def network(params: Any, x: jax.Array) -> jax.Array:
        return lax.scan(wrap(step), x, params)[0].mean(1)

    stack = lambda one: jax.ShapeDtypeStruct((depth, *one.shape), one.dtype)
    params = jax.tree.map(stack, stacks.transformer_shapes(width))
    return network, params, jax.ShapeDtypeStruct((4, time, width), jnp.float32)


def lstm(time: int, width: int = 128, unroll: bool = False) -> tuple[Any, Any, Any]:
    """An LSTM and a dense layer on its last state; function, parameters and input."""

    def network(p: Any, x: jax.Array) -> jax.Array:
        def step(carry: Any, x: jax.Array) -> tuple[Any, None]:
            h, c = carry
            i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((x.shape[0], width))
        (h, _), _ = lax.scan(step, (start, start), jnp.swapaxes(x, 0, 1), unroll=unroll)
        return h @ p["head"]

    shapes = {"w": (width, 4 * width), "u": (width, 4 * width), "b": (1, 4 * width)}
    shapes["head"] = (width, 10)
    params = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    return network, params, jax.ShapeDtypeStruct((16, time, width), jnp.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(arguments: argparse.Namespace) -> list[Table]:
    table = Table(
        "loops",
        "Loops: memory in MiB, FLOPs by the gradient's, and instructions",
        "python -m benchmarks loops",
        ("", "gradient", "relax", "ratio", "FLOPs", "gradient's", "relax's"),
    )
    attention, recurrent = relax.composites.attnlrp(), relax.composites.arras_lstm()
    sizes = {"depth": 4, "width": 32, "time": 32} if arguments.small else {}
    rows = [(name, blocks(wrap, **sizes), attention, True) for name, wrap in BLOCKS.items()]
    rows.append(("LSTM, 8 steps unrolled", lstm(8, unroll=True), recurrent, True))
    rows += [(f"LSTM, {time} steps", lstm(time), recurrent, False) for time in LENGTHS]
    for name, (function, params, x), rules, whole in rows:
        base = count(gradient_times_input(function), params, x)
        own = count(relax.lrp(function, rules, target=0), params, x)
        table.add(
            name,
            base.memory / 2**20,
            own.memory / 2**20,
            own.memory / base.memory,
            own.flops / base.flops if whole else None,  # of a loop one round is counted
            base.instructions,
            own.instructions,
        )
    return [table]
