"""Jobs over whole data sets: what a run adds to a bare loop, and devices and processes.

"overhead": relevance of a residual network of convolutions under epsilon_plus, kept as it is in
float32, written to disk with checksums, against a loop over the same batches in memory that calls
the compiled function and fetches its results, and does nothing else. Both are timed from their
second batch on: seconds of a long run less those of a short one, so that set-up and compilation are
in neither. Loop and run take turns; the median of the ratios counts.

"scaling": samples a second on 1, 2, 4, 8 devices of one process, and on two processes, of one
machine. Devices of a CPU share its cores: what is to be seen is that the rate does not fall.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from benchmarks.report import Table, progress

COMMAND = "python -m benchmarks bulk"
WORKER = [sys.executable, "-m", "benchmarks.workers.bulk_worker"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, help="of the overhead (default: 5)")
    parser.add_argument("--samples", type=int, help="of the longer run (default: 1024)")


def run(arguments: argparse.Namespace) -> list[Table]:
    small = arguments.small
    samples = arguments.samples or (32 if small else 1024)
    repeats = arguments.repeats or (1 if small else 5)
    device = jax.devices()[0].device_kind
    overhead = Table(
        "bulk_overhead",
        f"Seconds of a thousand samples, and by the bare loop: {device}",
        COMMAND,
        ("batch", "loop", "run", "by loop"),
        digits=3,
        plot=("by loop",),
    )
    for batch in (4,) if small else (8, 32):
        progress(f"overhead, batches of {batch}")
        pairs = _worker(["overhead", samples, batch, repeats])["pairs"]
        loop, job = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(job / loop for loop, job in pairs)
        overhead.add(batch, 1000 * loop, 1000 * job, ratio)
    scaling = Table(
        "bulk_scaling",
        f"Samples a second on devices and processes of one machine: {device}",
        COMMAND,
        ("processes", "devices", "in a second", "by one"),
        labels=2,
        digits=None,
        plot=("by one",),
    )
    first = None
    for processes, devices in ((1, 1), (2, 1)) if small else _SIZES:
        progress(f"{processes} processes, {devices} devices each")
        rate = _rate(samples, processes, devices)
        first = first or rate
        scaling.add(processes, processes * devices, rate, rate / first)
    return [overhead, scaling]


_SIZES = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4))


def _rate(samples: int, processes: int, devices: int) -> float:
    """Samples a second of all processes, from a short and a longer run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        started = [
            _start(["scaling", samples, folder, processes, index, port], devices)
            for index in range(processes)
        ]
        answers = [_answer(process) for process in started]
    return samples / max(answer["seconds"] for answer in answers)


def _start(words: list[object], devices: int = 1) -> subprocess.Popen[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [*WORKER, *map(str, words)],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=Path(__file__).resolve().parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )


def _worker(words: list[object]) -> dict[str, object]:
    return _answer(_start(words))


def _answer(process: subprocess.Popen[str]) -> dict:
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a worker ended with status {process.returncode}: {process.args}")
    return json.loads(text.strip().splitlines()[-1])
