"""The one progress bar of everything that takes long, where someone is looking."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

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
      show: by default, if stderr is a terminal and rich is installed. A notebook is no terminal;
        True shows the bar there too.

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
