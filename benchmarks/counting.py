"""What a compiled program costs, without running it: FLOPs, bytes, size, and time to compile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Cost(NamedTuple):
    """Of one program.

    Attributes:
        flops: by ``cost_analysis()``; of a loop, of one round.
        memory: bytes of temporaries at their peak, and of the output, by ``memory_analysis()``.
        instructions: lines of the compiled program.
        trace: seconds from the function to the program handed to XLA.
        compile: seconds that XLA takes.
    """

    flops: float
    memory: float
    instructions: int
    trace: float
    compile: float


def count(function: Callable[..., Any], *args: Any) -> Cost:
    """Traces and compiles a function for arguments, of which shapes and dtypes suffice."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    return Cost(
        compiled.cost_analysis()["flops"],
        memory.temp_size_in_bytes + memory.output_size_in_bytes,
        sum(" = " in line for line in compiled.as_text().splitlines()),
        traced - start,
        done - traced,
    )


def gradient_times_input(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """x times the gradient of the first logit: the floor that everything is held against."""

    def explain(params: Any, x: jax.Array) -> jax.Array:
        return x * jax.grad(lambda x: function(params, x)[:, 0].sum())(x)

    return explain
