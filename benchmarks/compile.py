"""CPU seconds to trace, lower and compile deep networks, and what a second call costs un-jitted.

"trace" is all that Python does to make a jaxpr: it traces the network, and relax finds its layers
and makes its program; "lower" makes of it what XLA reads, and "compile" is XLA's. "by compile" is
the trace by the compilation, "own" the same without the tracing of the network itself, which stands
as "forward"; "ms a layer" is the trace by the number of layers, "by gradient" by that of gradient
times input. Times are of `time.process_time`, the CPU time of this
process, which other programs disturb least; XLA compiles in several threads, whose times add up.

Then a function that is not under jit, called twice: the CPU seconds of both calls, and how many
programs XLA compiled in each ("compiled", "again"). The second call should compile none.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import relax
from benchmarks import networks, stacks
from benchmarks.counting import compilations, count, gradient_times_input
from benchmarks.report import Table, progress
from relax import composites, rules

COMMAND = "python -m benchmarks compile"
DEPTHS = {
    "ResNet": (50, 200),
    "perceptron": (50, 200, 500, 2000),
    "residual CNN": (50, 200, 500),
}


def resnet(depth: int) -> stacks.Stack:
    """The networks of He et al., at 224 x 224, by the nearest of their depths."""
    known = {4: (1, 0, 0, 0), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
    known[200] = (3, 24, 36, 3)
    module = networks.ResNet50(known[min(known, key=lambda other: abs(other - depth))])
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return module.apply, jax.eval_shape(module.init, jax.random.key(0), x), x


SIGNS = {"epsilon": composites.epsilon(), "epsilon_plus": composites.epsilon_plus()}
NETWORKS: dict[str, Any] = {
    "ResNet": (resnet, SIGNS),
    "perceptron": (stacks.perceptron, {"epsilon": composites.epsilon(), "zplus": rules.ZPlus()}),
    "residual CNN": (stacks.residual, SIGNS),
}
BARE = ("perceptron", "residual CNN")  # in bare JAX, and of any depth


def methods(function: Any, named: dict[str, Any]) -> dict[str, Any]:
    """The gradient, and relevance by each of the rules."""
    found = {name: relax.lrp(function, value, target=0) for name, value in named.items()}
    return {"gradient": gradient_times_input(function), **found}


def stages(chosen: Sequence[str], depths: Sequence[int] | None) -> Table:
    """Trace, lowering and compilation by depth."""
    times = ("trace", "lower", "compile", "by compile", "own", "ms a layer", "by gradient")
    table = Table(
        "compile",
        "CPU seconds of tracing, lowering and compiling; the trace by others",
        COMMAND,
        ("layers", "network", "explained by", *times),
        labels=3,
        digits=None,
        plot=("ms a layer", "by gradient"),
        axis="layers",
    )
    for network in chosen:
        stack, named = NETWORKS[network]
        for explain in methods(stack(4)[0], named).values():  # what is done once in a process
            count(explain, *stack(4)[1:])
        for depth in depths or DEPTHS[network]:
            function, params, x = stack(depth)
            found = {}
            for name, explain in {"forward": function, **methods(function, named)}.items():
                progress(f"{network}, {depth} layers: {name}")
                gc.collect()  # what is left of others is not charged to this one
                cost = found[name] = count(explain, params, x)
                gradient = found.get("gradient")
                table.add(
                    depth,
                    network,
                    name,
                    cost.trace,
                    cost.lower,
                    cost.compile,
                    cost.trace / cost.compile,
                    (cost.trace - found["forward"].trace) / cost.compile,
                    1000 * cost.trace / depth,
                    gradient and cost.trace / gradient.trace,
                )
    return table


def calls(chosen: Sequence[str], depth: int) -> Table:
    """First and second call, un-jitted."""
    columns = ("first", "second", "ratio", "compiled", "again")
    table = Table(
        "compile_again",
        f"CPU seconds of two calls without jit, {depth} layers, and how many programs XLA compiled",
        COMMAND,
        ("network", "explained by", *columns),
        labels=2,
        digits=None,
        plot=("first", "second"),
    )
    for network in chosen:
        stack, named = NETWORKS[network]
        function, params, x = stack(depth)
        params, x = networks.draw((params, x))
        for name, explain in methods(function, named).items():
            progress(f"{network}: {name}")
            jax.clear_caches()
            (first, compiled), (second, again) = (call(explain, params, x) for _ in range(2))
            table.add(network, name, first, second, second / first, compiled, again)
    return table


def call(function: Any, *args: Any) -> tuple[float, int]:
    """CPU seconds of a call, and how many programs XLA compiled in it."""
    start = time.process_time()
    with compilations() as compiled:
        jax.block_until_ready(function(*args))
    return time.process_time() - start, len(compiled)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--depths", type=int, nargs="+", help="layers (default: 50 to 2000)")


def run(arguments: argparse.Namespace) -> list[Table]:
    small = arguments.small
    chosen = arguments.network or (BARE if small else list(NETWORKS))
    depths = arguments.depths or ((5, 10) if small else None)
    made = [stages(chosen, depths)]
    bare = [network for network in chosen if network in BARE]
    return [*made, calls(bare, 4 if small else 20)] if bare else made
