"""What a compiled program costs, without running it: FLOPs, bytes, size, and time to compile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

COMPILATION = "/jax/core/compile/backend_compile_duration"


class Cost(NamedTuple):
    """Of one program.

    Attributes:
        flops: by ``cost_analysis()``; of a loop, of one round.
        memory: bytes of temporaries at their peak, and of the output, by ``memory_analysis()``.
        temporaries: bytes of temporaries at their peak alone.
        instructions: lines of the compiled program.
        trace: seconds of CPU time from the function to its jaxpr.
        lower: seconds of CPU time from the jaxpr to the program handed to XLA.
        compile: seconds of CPU time that XLA takes, all its threads together.
    """

    flops: float
    memory: float
    temporaries: float
    instructions: int
    trace: float
    lower: float
    compile: float


def count(function: Callable[..., Any], *args: Any, options: Any = None) -> Cost:
    """Traces and compiles a function for arguments, of which shapes and dtypes suffice.

    ``options``: of the compiler, by name.
    """
    start = time.process_time()
    traced = jax.jit(function).trace(*args)
    after_trace = time.process_time()
    lowered = traced.lower()
    after_lower = time.process_time()
    compiled: Any = lowered.compile(compiler_options=options)
    done = time.process_time()
    memory = compiled.memory_analysis()
    return Cost(
        compiled.cost_analysis()["flops"],
        memory.temp_size_in_bytes + memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
        sum(" = " in line for line in compiled.as_text().splitlines()),
        after_trace - start,
        after_lower - after_trace,
        done - after_lower,
    )


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """A list that takes the seconds of each program that XLA compiles inside of the block."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == COMPILATION:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def gradient_times_input(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """x times the gradient of the first logit: the floor that everything is held against."""

    def explain(params: Any, x: jax.Array) -> jax.Array:
        return x * jax.grad(lambda x: function(params, x)[:, 0].sum())(x)

    return explain
