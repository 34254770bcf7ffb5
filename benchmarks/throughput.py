"""Pictures and tokens explained in a second on the device there is, an accelerator or a CPU.

Gradient times input and the composites of pictures on three networks, and AttnLRP on a Llama of
four blocks, each under jit, in float32 (at the default precision of XLA, which may be TF32) and in
bfloat16. Parameters are random. Of one network, batch and dtype, runs are interleaved: each repeat
runs everything once, and medians are reported. "by gradient" is the time by that of the gradient in
the same repeat: 1.5 explains two pictures while the gradient explains three. What does not fit into
the memory of the device has a dash. This is the one benchmark to run on an accelerator; the device
is left as it is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import networks, stacks
from benchmarks.passes import PICTURES, explained
from benchmarks.report import Table, progress

COMMAND = "python -m benchmarks throughput"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
LLAMA = "Llama, 4 blocks"
NETWORKS = ("VGG16", "ResNet50", "MobileNet", LLAMA)
LENGTH = 512


class Race:
    """Methods on one network, side by side; those that are out of memory drop out."""

    def __init__(self, methods: dict[str, Any], *args: Any):
        self.methods = {name: jax.jit(method) for name, method in methods.items()}
        self.args = args
        self.times: dict[str, list[float]] = {name: [] for name in methods}

    def run(self, name: str) -> float | None:
        """Seconds of a call; None: out of memory, now or before."""
        if name not in self.times:
            return None
        start = time.perf_counter()
        try:
            jax.block_until_ready(self.methods[name](*self.args))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            del self.times[name]
            return None
        return time.perf_counter() - start

    def repeat(self, repeats: int) -> None:
        """Runs everything once before anything runs again; compiles before."""
        for name in self.methods:
            progress(f"compiling {name}")
            self.run(name)
        for number in range(repeats):
            progress(f"repeat {number + 1} of {repeats}")
            for name in self.methods:
                seconds = self.run(name)
                if seconds is not None:
                    self.times[name].append(seconds)

    def ratio(self, name: str, base: str) -> float | None:
        """The median of paired ratios, if both fit."""
        if name not in self.times or base not in self.times:
            return None
        pairs = zip(self.times[name], self.times[base], strict=True)
        return statistics.median(a / b for a, b in pairs)


def table(name: str, what: str) -> Table:
    """One for pictures, one for tokens."""
    device = jax.devices()[0].device_kind
    return Table(
        name,
        f"Explained {what} in a second, and time by the gradient's: {device}",
        COMMAND,
        ("network", "dtype", "batch", "explained by", "in a second", "by gradient"),
        labels=4,
        digits=None,
        plot=("in a second",),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="of pictures (default: 64 and 256; on a CPU 4)"
    )
    parser.add_argument("--repeats", type=int, help="default: 10; on a CPU 3")


def run(arguments: argparse.Namespace) -> list[Table]:
    small, cpu = arguments.small, jax.default_backend() == "cpu"
    batches = arguments.batch or ((2,) if small else (4,) if cpu else (64, 256))
    repeats = arguments.repeats or (1 if small else 3 if cpu else 10)
    pictures, tokens = table("throughput", "pictures"), table("throughput_tokens", "tokens")
    for network in arguments.network or (("a small CNN", LLAMA) if small else NETWORKS):
        llama = network == LLAMA
        length = (8 if small else LENGTH) if llama else None
        names = ("attnlrp",) if llama else (PICTURES[:2] if small else PICTURES)
        for batch in ((2 if small else 8),) if llama else batches:
            if network in networks.NETWORKS:
                function, params, x = networks.shapes(network, batch=batch, length=length)
            else:
                function, params, x = stacks.residual(4, batch=batch)
            for dtype in arguments.dtype or DTYPES:
                progress(f"{network}, batch {batch}, {dtype}")
                drawn = networks.draw((params, x), DTYPES[dtype])
                race = Race({n: explained(function, n) for n in ("gradient", *names)}, *drawn)
                race.repeat(repeats)
                for name in race.methods:
                    rate = None
                    if name in race.times:
                        rate = batch * (length or 1) / statistics.median(race.times[name])
                    row = (network, dtype, batch, name, rate, race.ratio(name, "gradient"))
                    (tokens if llama else pictures).add(*row)
    return [one for one in (pictures, tokens) if one.rows]
