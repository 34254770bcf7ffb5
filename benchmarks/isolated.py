"""A process that takes one task after another, and is replaced when it dies or has grown."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIGABYTE = 2**20  # KiB


class Died(Exception):
    """The process ended, or took too long, before it answered."""


class Worker:
    """Calls a function, by what it is told, in a process of its own.

    Compiled programs and the variables of frameworks are not given back before a process ends, and
    a model that takes too much memory takes only its own process with it.

    Args:
      function: of the top level of a module; what it takes and returns is pickled.
      seconds: it may take for one call.
      gigabytes: that the process may have taken before it is replaced.
    """

    def __init__(self, function: Callable[..., Any], *, seconds: float, gigabytes: float = 4.0):
        self.function, self.seconds, self.gigabytes = function, seconds, gigabytes
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._pipe: Any = None

    def __call__(self, *args: Any) -> Any:
        """What the function returns.

        Raises:
          Died: the process ended, or was ended because its time was up.
          RuntimeError: the function raised; the message is its traceback.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send(args)
            if not self._pipe.poll(self.seconds):
                self.close()
                raise Died(f"took longer than {self.seconds:g} seconds")
            result, error, grown = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            raise Died(f"the process ended with code {code}") from None
        if grown > self.gigabytes * GIGABYTE:
            self.close()
        if error:
            raise RuntimeError(error)
        return result

    def _start(self) -> None:
        self._pipe, there = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(self.function, there), daemon=True
        )
        self._process.start()
        there.close()  # so that its end is heard of

    def close(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _serve(function: Callable[..., Any], pipe: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            args = pipe.recv()
            result, error = None, ""
            try:
                result = function(*args)
            except Exception:
                error = traceback.format_exc()
            pipe.send((result, error, _taken()))


def _taken() -> int:
    """KiB of memory that this process has had at its peak.

    Linux hands ru_maxrss on from the parent, so that the child of a large process seems large.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _end_with_parent() -> None:
    """A parent that is killed ends no one; the task would go on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
