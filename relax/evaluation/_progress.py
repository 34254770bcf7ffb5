"""Loops over a data set, with a bar where someone is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from relax._errors import ArgumentError

T = TypeVar("T")


def progress(
    items: Iterable[T],
    description: str = "",
    *,
    total: int | None = None,
    show: bool | None = None,
) -> Iterator[T]:
    """The same items, with a progress bar on stderr.

    Args:
      items: anything that can be iterated.
      description: stands in front of the bar.
      total: how many there are; by default their length, if they have one.
      show: by default, if stderr is a terminal and rich is installed.

    Raises:
      ImportError: the bar is asked for, and rich is not installed.

    Example:
      >>> import relax
      >>> print(sum(relax.evaluation.progress([1, 2, 3], "adding")))
      6
    """
    if total is None:
        total = len(items) if hasattr(items, "__len__") else None  # type: ignore[arg-type]
    bar = _bar(show)
    if bar is None:
        yield from items
        return
    with bar:
        task = bar.add_task(description, total=total)
        for item in items:
            yield item
            bar.advance(task)


def _bar(show: bool | None) -> Any:
    if show is None and not sys.stderr.isatty():
        return None
    if show is False:
        return None
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )
    except ImportError as error:
        if show is None:
            return None
        raise ImportError('A progress bar needs rich:\n  pip install "relax-lrp[eval]"') from error
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def rows_of(who: str, batch: Any) -> tuple[Any, ...]:
    """The last arguments that a batch stands for: itself, or those of a tuple.

    Raises:
      ArgumentError: it is an empty tuple.
    """
    if isinstance(batch, tuple):
        if not batch:
            raise ArgumentError(f"{who}: a batch is an empty tuple.")
        return batch
    return (batch,)


def split_batches(who: str, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Iterable[Any]]:
    """The leading arguments, and the batches.

    Raises:
      ArgumentError: the last argument cannot be iterated.
    """
    if not args or not isinstance(args[-1], Iterable):
        raise ArgumentError(f"{who}(..., *leading, batches): the last argument is no iterable.")
    return args[:-1], args[-1]
