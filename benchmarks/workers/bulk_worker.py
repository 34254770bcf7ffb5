"""What `benchmarks.bulk` measures, in a process with as many devices as it is given."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import relax
from benchmarks import networks, stacks
from relax import bulk, composites

DEPTH, CHUNK = 8, 64


def problem(batch: int) -> tuple[Any, Any, Any]:
    """The network, its parameters, and the shape of a batch."""
    function, params, x = stacks.residual(DEPTH, batch=batch)
    return function, networks.draw(params, np.float32), x.shape


def job(function: Any, params: Any, data: Any, folder: Path, batch: int) -> bulk.Job:
    return bulk.Job(
        f=function,
        params=params,
        data=data,
        store=folder,
        rules=composites.epsilon_plus(),
        target="max",
        batch_size=batch,
        samples_per_chunk=CHUNK if len(data) > CHUNK else None,
    )


def overhead(samples: int, batch: int, repeats: int) -> dict[str, Any]:
    """Pairs of seconds a sample: of the loop, of the run."""
    function, params, shape = problem(batch)
    data = np.random.default_rng(0).normal(size=(samples, *shape[1:])).astype(np.float32)
    explain = jax.jit(relax.lrp(function, composites.epsilon_plus(), target="max"))
    np.asarray(explain(params, data[:batch]))
    short = max(batch, samples // 4 // batch * batch)

    def loop(count: int) -> float:
        start = time.perf_counter()
        waiting = None
        for first in range(0, count, batch):  # one batch ahead, as anybody would write it
            result = explain(params, data[first : first + batch])
            if waiting is not None:
                np.asarray(waiting)
            waiting = result
        np.asarray(waiting)
        return time.perf_counter() - start

    def run(count: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            made = job(function, params, data[:count], Path(folder) / "store", batch)
            return bulk.run(made).seconds

    pairs = []
    for _ in range(repeats):
        loops = loop(samples) - loop(short)
        runs = run(samples) - run(short)
        pairs.append((loops / (samples - short), runs / (samples - short)))
    return {"pairs": pairs}


def scaling(samples: int, folder: str, processes: int, index: int, port: int) -> dict[str, Any]:
    """Seconds of a run of so many samples, less those of the set-up."""
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, index)
    batch = 4
    function, params, shape = problem(batch)
    data = np.random.default_rng(0).normal(size=(samples, *shape[1:])).astype(np.float32)
    short = samples // 4
    seconds = [
        bulk.run(job(function, params, data[:count], Path(folder) / str(count), batch)).seconds
        for count in (short, samples)
    ]
    return {"seconds": (seconds[1] - seconds[0]) * samples / (samples - short)}


def main(words: list[str]) -> None:
    name, first, *rest = words
    if name == "overhead":
        found = overhead(int(first), *map(int, rest))
    else:
        folder, *numbers = rest
        found = scaling(int(first), folder, *map(int, numbers))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
