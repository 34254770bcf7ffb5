"""A worker as seen from the driver: a process that is asked and answers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


@contextlib.contextmanager
def _cores(count: int) -> Iterator[None]:
    """Leaves so many cores to what is started meanwhile, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


class WorkerError(RuntimeError):
    """A worker that answered with an error, or that ended."""


class Process:
    """A worker at work; a context manager, on whose end it ends.

    Args:
        python: the interpreter of its environment.
        module: of `benchmarks.workers`.
        log: a file for what it prints.
        threads: how many cores it may use.
    """

    def __init__(self, python: str, module: str, log: Path, threads: int):
        self._log = log
        with log.open("w") as errors, _cores(threads):
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.workers.{module}"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ask(self, request: str, **values: Any) -> dict[str, Any]:
        """The answer to a request, see `benchmarks.workers._serve`.

        Raises:
            WorkerError: it could not answer.
        """
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"request": request, **values}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            printed = self._log.read_text().strip().splitlines() or ["nothing"]
            raise WorkerError(f"ended with status {self._process.wait()}: {printed[-1]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer
