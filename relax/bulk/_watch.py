"""What people see of a run: a bar, or a line a minute, and the summary at its end."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from types import TracebackType
from typing import Any

log = logging.getLogger("relax.bulk")
_LINE_EVERY = 60.0  # seconds


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
      path: the store.
      samples: of the whole store; ``computed``: those that this process explained in this run.
      seconds: from the first batch to the last, compilation included; ``rate``: samples a second.
      explained: the value that was explained, summed over all good samples; ``received``: the
        relevance of their inputs; ``absorbed``: what lies between, kept by the layers.
      bad: ``(index, reason)`` of the samples that could not be explained.
    """

    path: str
    samples: int
    computed: int
    seconds: float
    explained: float
    received: float
    bad: tuple[tuple[int, str], ...]

    @property
    def rate(self) -> float:
        return self.computed / self.seconds if self.seconds else 0.0

    @property
    def absorbed(self) -> float:
        return self.explained - self.received

    def __str__(self) -> str:
        share = f" ({self.absorbed / self.explained:.1%})" if self.explained else ""
        lines = [
            f"{self.path}: {self.samples} samples, {self.computed} of them explained now in "
            f"{self.seconds:.1f} s ({self.rate:.1f} a second)",
            f"explained {self.explained:.6g}, received {self.received:.6g}, "
            f"absorbed {self.absorbed:.6g}{share}",
            f"{len(self.bad)} bad samples" + (":" if self.bad else ""),
            *(f"  {index}: {reason}" for index, reason in self.bad[:10]),
        ]
        if len(self.bad) > 10:
            lines.append(f"  and {len(self.bad) - 10} more, in Store(...).bad")
        return "\n".join(lines)


class Watch:
    """A progress bar where somebody is looking, else a line a minute to the log "relax.bulk".

    Args:
      total: samples that this process has to explain.
      leads: whether this is the process that shows something.
    """

    def __init__(self, total: int, leads: bool):
        self.total, self.done, self.seconds = total, 0, 0.0
        self._leads, self._bar, self._task = leads, None, None
        self._start = self._line = time.monotonic()

    def __enter__(self) -> Watch:
        self._start = self._line = time.monotonic()
        if self._leads and sys.stderr.isatty():
            self._bar = _bar()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("explaining", total=self.total, rate="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.seconds = time.monotonic() - self._start
        if self._bar is not None:
            self._bar.stop()

    def add(self, samples: int) -> None:
        """So many more are explained."""
        self.done += samples
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{rate:.1f}/s")
        elif self._leads and now - self._line >= _LINE_EVERY:
            self._line = now
            left = (self.total - self.done) / max(rate, 1e-9)
            log.info(
                "%d of %d samples, %.1f a second, %.0f s left", self.done, self.total, rate, left
            )


def _bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} samples, {task.fields[rate]}, left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
