"""What a data set is made of: batches, and the arguments that each stands for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from relax._errors import ArgumentError


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
