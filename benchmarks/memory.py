"""Memory of each composite against the gradient's: bytes of temporaries at their peak, and output.

Three tables. The networks and composites of `passes`, pictures in batches. Then relevance of many
samples by ``lax.map(..., batch_size=8)``, in MiB of temporaries alone: it should depend on the size
of the batch, not on how many samples there are. Then deep stacks in a loop of Python, plain and
with a `jax.checkpoint` around each block. XLA for CPUs takes the barriers of a checkpoint away and
merges again what is to be computed twice ("checkpoint"), of the gradient as well; "barriers" is
compiled without that pass, "ratio" and "FLOPs" are its bytes and FLOPs by the plain ones.

All is counted by ``memory_analysis()`` in the compiled program; nothing is run or timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from benchmarks import networks, stacks
from benchmarks.counting import count
from benchmarks.passes import composites_of, costs, explained
from benchmarks.report import Table, progress

# The most that the bytes may be of the gradient's: no sign is kept apart, or two are.
EPSILON, SIGNS = 1.1, 1.5
CEILINGS = {
    "epsilon": EPSILON,
    "epsilon_plus": SIGNS,
    "epsilon_plus_flat": SIGNS,
    "excitation_backprop": SIGNS,
    "epsilon_gamma_box": SIGNS,
    "epsilon_alpha2_beta1": SIGNS,
    "epsilon_alpha2_beta1_flat": SIGNS,
    "attnlrp": EPSILON,
    "cp_lrp": EPSILON,
}
COMMAND = "python -m benchmarks memory"
WRAPS = stacks.unchanged, jax.checkpoint
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
TABLES = ("composites", "streamed", "checkpoint")
SAMPLES = (8, 32, 128)
BATCH_SIZE = 8
MIB = 2**20
Explain = Callable[[Any, jax.Array], jax.Array]


def streamed(explain: Explain, batch_size: int = BATCH_SIZE) -> Explain:
    """The same, of so many samples at a time."""

    def explain_each(params: Any, x: jax.Array) -> jax.Array:
        one = lambda sample: explain(params, sample[None])[0]
        return lax.map(one, x, batch_size=batch_size)

    return explain_each


def composites(arguments: argparse.Namespace) -> Table:
    """The networks of `passes`."""
    small = arguments.small
    batch = arguments.batch or (2 if small else 8)
    table = Table(
        "memory",
        f"Bytes at the peak by those of the gradient, pictures in batches of {batch}",
        COMMAND,
        ("network", "composite", "memory", "ceiling"),
        labels=2,
        plot=("memory",),
    )
    for network in arguments.network or (["VGG16"] if small else list(networks.NETWORKS)):
        pictures = network in networks.PICTURES
        size = arguments.size or (32 if small else None)
        names = ("epsilon", "epsilon_plus") if small else composites_of(network)
        found = costs(network, names, size, batch if pictures else 1)
        base = found.pop("gradient")
        for name, cost in found.items():
            table.add(network, name, cost.memory / base.memory, CEILINGS.get(name))
    return table


def streams(depth: int, samples: tuple[int, ...]) -> Table:
    """Many samples, at once and streamed."""
    table = Table(
        "memory_streamed",
        f"MiB of temporaries, a CNN of {depth} layers, at once and {BATCH_SIZE} samples at a time",
        COMMAND,
        ("samples", "explained by", "at once", "streamed"),
        labels=2,
        axis="samples",
    )
    for number in samples:
        function, params, x = stacks.residual(depth, batch=number)
        for name in ("gradient", "epsilon", "epsilon_plus"):
            progress(f"{number} samples: {name}")
            explain = explained(function, name)
            whole = count(explain, params, x).temporaries
            parts = count(streamed(explain), params, x).temporaries
            table.add(number, name, whole / MIB, parts / MIB)
    return table


def checkpoints(depth: int) -> Table:
    """Deep stacks, plain and with a checkpoint around each block."""
    residual = lambda depth, wrap: stacks.residual(4 * depth + 2, wrap=wrap, block=4)
    table = Table(
        "memory_checkpoint",
        f"MiB at the peak, {depth} blocks in a loop of Python, with and without jax.checkpoint",
        COMMAND,
        ("network", "explained by", "plain", "checkpoint", "barriers", "ratio", "FLOPs"),
        labels=2,
        plot=("plain", "checkpoint", "barriers"),
    )
    for network, stack, names in (
        ("residual CNN", residual, ("gradient", "epsilon", "epsilon_plus")),
        ("transformer", stacks.transformer, ("gradient", "attnlrp", "cp_lrp")),
    ):
        for name in names:
            progress(f"{network}: {name}")
            (f, params, x), (g, _, _) = (stack(depth, wrap=w) for w in WRAPS)
            plain = count(explained(f, name), params, x)
            merged = count(explained(g, name), params, x)
            kept = count(explained(g, name), params, x, options=KEEP_BARRIERS)
            memory = [cost.memory / MIB for cost in (plain, merged, kept)]
            ratios = kept.memory / plain.memory, kept.flops / plain.flops
            table.add(network, name, *memory, *ratios)
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", choices=TABLES, action="append", help="default: all")
    parser.add_argument("--network", choices=networks.NETWORKS, action="append")
    parser.add_argument("--size", type=int, help="of pictures, in pixels (default: 224)")
    parser.add_argument("--batch", type=int, help="of pictures (default: 8)")


def run(arguments: argparse.Namespace) -> list[Table]:
    small = arguments.small
    made = {
        "composites": lambda: composites(arguments),
        "streamed": lambda: streams(4 if small else 16, SAMPLES[:2] if small else SAMPLES),
        "checkpoint": lambda: checkpoints(2 if small else 24),
    }
    return [made[name]() for name in arguments.table or TABLES]
