"""The processes of a run: who has the store, what is to be done, whether all have come through."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relax._errors import StoreError
from relax.bulk._files import own, write_whole
from relax.bulk._manifest import read_manifest
from relax.bulk._watch import log

_POLL, _LINE_EVERY = 0.1, 60.0  # seconds
_SHARED = 150.0  # seconds; a network file system may show a new folder after sixty


class Team:
    """All processes of a run. They meet in the folder of the store, through small files.

    A barrier of devices would do, but must be reached within its timeout; here a process may be
    hours behind. That a process is gone is seen by jax.distributed, which ends the others.

    Args:
      path: the folder of the store.

    Raises:
      StoreError: the folder is of something else, or is not seen by all processes.
    """

    def __init__(self, path: Path):
        self.index, self.count = jax.process_index(), jax.process_count()
        self._folder = own(path) / "runs"
        self._run = "alone"
        refused: StoreError | None = None
        if self.leads:
            try:
                read_manifest(path)
            except StoreError as error:
                refused = error
        if self.count > 1:
            from jax.experimental import multihost_utils

            token = np.array([refused is not None, *np.frombuffer(os.urandom(8), np.uint32)])
            told = np.asarray(multihost_utils.broadcast_one_to_all(token.astype(np.uint32)))
            self._run = "".join(f"{n:08x}" for n in told[1:])
            if told[0] and refused is None:
                raise StoreError(f"Process 0 has refused {path}: see what it says.")
        if refused is not None:
            raise refused
        if self.count > 1:
            self._meet(path)

    def _meet(self, path: Path) -> None:
        """Sees to it that the folder is one and the same for all; they are all here yet."""
        from jax.experimental import multihost_utils

        problem = None
        try:
            self.tell("here", True)
        except OSError as error:
            problem = error
        end = time.monotonic() + _SHARED
        while problem is None and not self._file("here").is_file() and time.monotonic() < end:
            time.sleep(_POLL)
        seen = problem is None and self._file("here").is_file()
        blind = np.flatnonzero(~np.ravel(multihost_utils.process_allgather(np.array(seen))))
        if problem is not None:
            raise problem
        if 0 in blind:
            raise StoreError(f"Process 0 cannot write to {path}: see what it says.")
        if blind.size:
            raise StoreError(
                f"{path} of process {', '.join(map(str, blind))} is not the folder of process 0: "
                "a store must be on a file system that all processes share."
            )

    @property
    def leads(self) -> bool:
        """Whether this is the process that has the store."""
        return self.index == 0

    def tell(self, what: str, content: Any) -> None:
        """From the leading process to the others."""
        if self.count > 1 and self.leads:
            write_whole(self._file(what), content)

    def hear(self, what: str) -> Any:
        """What the leading process tells, once it does.

        Raises:
          StoreError: a process has failed.
        """
        self.wait(lambda: self._file(what).is_file())
        return json.loads(self._file(what).read_text())

    def gather(self, what: str, content: Any) -> list[Any]:
        """What each process brings, for the leading one, which waits for all; else what is its own.

        Raises:
          StoreError: a process has failed.
        """
        if self.count == 1:
            return [content]
        files = [self._file(f"{what}-{index}") for index in range(self.count)]
        write_whole(files[self.index], content)
        if not self.leads:
            return [content]
        self.wait(lambda: all(file.is_file() for file in files))
        return [json.loads(file.read_text()) for file in files]

    @contextlib.contextmanager
    def told_of_errors(self) -> Iterator[None]:
        """Lets the others know what is raised inside, so that they do not wait."""
        try:
            yield
        except BaseException as error:
            if self.count > 1:
                with contextlib.suppress(OSError):  # a full disk: jax.distributed ends the others
                    write_whole(self._file("failed"), f"process {self.index}: {error}")
            raise

    def wait(self, until: Callable[[], bool]) -> None:
        """Until something is so; a line a minute says that it is waited for.

        Raises:
          StoreError: another process has failed.
        """
        start = line = time.monotonic()
        while not until():
            self.check()
            time.sleep(_POLL)
            now = time.monotonic()
            if now - line >= _LINE_EVERY:
                line = now
                log.info("process %d waits for the others, %.0f s", self.index, now - start)

    def check(self) -> None:
        """Raises a StoreError if another process has failed, or another run has begun."""
        failed = self._file("failed")
        if self.count > 1 and failed.is_file():
            raise StoreError(f"The run was given up by {json.loads(failed.read_text())}")
        if self.count > 1 and not self._file("here").is_file():
            raise StoreError("Another run of the job has begun; this one is over.")

    def leave(self) -> None:
        """The leading process takes away what was told in earlier runs."""
        if self._folder.is_dir():
            for file in self._folder.iterdir():
                if not file.name.startswith(self._run):
                    file.unlink(missing_ok=True)

    def _file(self, what: str) -> Path:
        return self._folder / f"{self._run}-{what}.json"
