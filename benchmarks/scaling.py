"""What costs grow with: the batch, the depth, the length of a sequence, the values of a sweep.

FLOPs and bytes at the peak, each by those of gradient times input at the same size, so that a flat
line is cost that grows as the gradient's does; of a sweep, FLOPs by those of as many runs. All is
counted in the compiled program; nothing is run or timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import relax
from benchmarks import networks, stacks, sweep
from benchmarks.counting import count, gradient_times_input
from benchmarks.passes import composite
from benchmarks.report import Table, progress
from relax import composites, rules

COMMAND = "python -m benchmarks scaling"
BATCHES = (1, 2, 4, 8, 16, 32)
DEPTHS = (10, 20, 40, 80, 160, 320)
LENGTHS = (64, 128, 256, 512, 1024)
VALUES = (1, 2, 4, 8, 16, 32)


def grown(name: str, title: str, axis: str, sizes: Iterable[Any], named: dict[str, Any]) -> Table:
    """One table: for each size, and its function, parameters and input, a row for each rule."""
    table = Table(
        f"scaling_{name}",
        f"FLOPs and bytes at the peak by those of the gradient: {title}",
        COMMAND,
        (axis, "explained by", "FLOPs", "memory"),
        labels=2,
        axis=axis,
    )
    for size, (function, params, x) in sizes:
        progress(f"{axis} {size}: gradient")
        base = count(gradient_times_input(function), params, x)
        for label, value in named.items():
            progress(f"{axis} {size}: {label}")
            cost = count(relax.lrp(function, value, target=0), params, x)
            table.add(size, label, cost.flops / base.flops, cost.memory / base.memory)
    return table


def swept(values: Iterable[int], network: str, stack: Any) -> Table:
    """Sweeps of gamma over more and more values."""
    table = Table(
        "scaling_sweep",
        f"FLOPs of a sweep over values of gamma by those of as many runs, {network}",
        COMMAND,
        ("values", "of", "FLOPs"),
        labels=2,
        digits=3,
        axis="values",
    )
    function, params, x = stack
    for number in values:
        progress(f"{number} values")
        one, shape = sweep.sweeps(function, params, x, number)["gamma"]
        table.add(number, "gamma", sweep.ratio(one, shape, params, x))
        table.add(number, "(2 + K) / 2K", (2 + number) / (2 * number))
    return table


def tables(small: bool) -> dict[str, Callable[[], Table]]:
    """What makes each of the tables."""
    few = lambda sizes: sizes[:2] if small else sizes
    network = "a small CNN" if small else "VGG16 at 64 pixels"
    pictures = lambda n: stacks.residual(4, batch=n) if small else networks.shapes("VGG16", 64, n)
    by_name = ("epsilon", "epsilon_plus", "epsilon_alpha2_beta1")
    signs = {
        "epsilon": composites.epsilon(),
        "zplus": rules.ZPlus(),
        "alpha2_beta1": rules.AlphaBeta(2.0, 1.0),
    }
    return {
        "batch": lambda: grown(
            "batch",
            network,
            "batch",
            ((batch, pictures(batch)) for batch in few(BATCHES)),
            {name: composite(name) for name in by_name},
        ),
        "depth": lambda: grown(
            "depth",
            "a perceptron",
            "layers",
            ((depth, stacks.perceptron(depth, batch=64)) for depth in few(DEPTHS)),
            signs,
        ),
        "length": lambda: grown(
            "length",
            "Llama, 4 blocks",
            "tokens",
            ((n, networks.shapes("Llama, 4 blocks", length=n)) for n in few(LENGTHS)),
            {"attnlrp": composites.attnlrp()},
        ),
        "sweep": lambda: swept(few(VALUES), network, pictures(1)),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", choices=tables(False), action="append", help="default: all")


def run(arguments: argparse.Namespace) -> list[Table]:
    made = tables(arguments.small)
    return [made[name]() for name in arguments.table or made]
