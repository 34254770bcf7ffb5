"""Reading samples: what is good, what is not and why, stacked to batches ahead of their use."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError
from relax.bulk._fingerprint import OBJECT

GOOD, UNREADABLE, OTHER_SHAPE, NOT_FINITE, NOT_FINITE_RELEVANCE, BAD_TARGET, ABSENT = range(7)
_VOTES = 5  # samples that are asked what a sample is like
_TRIES, _WAIT = 3, 0.05  # of a sample; seconds before the second, four times as long each time
REASONS = {
    UNREADABLE: "cannot be read",
    OTHER_SHAPE: "has another structure, shape or dtype",
    NOT_FINITE: "is not finite",
    NOT_FINITE_RELEVANCE: "its relevance is not finite",
    BAD_TARGET: "its target is none of the outputs",
}


class Batch(NamedTuple):
    """Samples side by side; of what is not good there are zeros.

    Attributes:
      x: arrays with the samples in front, in the structure of a sample.
      target: integers, ``(samples,)``.
      status: one of the numbers above for each.
      reasons: what to say of those that are not good, by their number in the data.
    """

    x: Any
    target: np.ndarray
    status: np.ndarray
    reasons: dict[int, str]


class Samples:
    """A data source as samples of one structure, in batches of a fixed size.

    Args:
      data: anything with ``len()`` and ``[i]``. A sample is an array, or a pytree of arrays.
      target: the job's. ``"data"``: a sample is ``(x, target)``. An array: of one for each sample.
    """

    def __init__(self, data: Any, target: Any, batch_size: int):
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise ArgumentError(
                f"Job(data=...): a {type(data).__name__} has no len() and [i].\n"
                "  Give an array, a list, or a grain.MapDataset; an iterator cannot be resumed."
            )
        self.data, self.count, self.batch_size = data, len(data), batch_size
        self.by_data = isinstance(target, str) and target == "data"
        self.targets = None
        if not isinstance(target, str) and hasattr(target, "__len__"):
            self.targets = np.asarray(target)
            if self.targets.shape != (self.count,) or self.targets.dtype.kind not in "iu":
                raise ArgumentError(
                    f"Job(target=...): an array of shape {self.targets.shape} and dtype "
                    f"{self.targets.dtype}; expected one integer for each of the {self.count} "
                    "samples."
                )
            if self.count and np.abs(self.targets.astype(np.float64)).max() >= 2**31:
                raise ArgumentError("Job(target=...): a target does not fit into 32 bits.")
        if not 0 < self.count < 2**48:
            raise ArgumentError(f"Job(data=...): {self.count} samples; expected one or more.")
        self.first, self.treedef = self._first()

    def _first(self) -> tuple[list[np.ndarray], Any]:
        """What a sample is like: as most of the first ones that can be read."""
        reason, found, votes = "", {}, collections.Counter[Any]()
        for index in range(min(self.count, 100)):
            try:
                x, _ = self._read(index)
                leaves, treedef = jax.tree.flatten(x)
                arrays = [np.asarray(leaf) for leaf in leaves]
                reason = "it holds no array"
            except Exception as error:  # a user's source may raise anything
                reason = _words(error)
                continue
            if arrays:
                kind = (treedef, *map(_kind, arrays))
                found.setdefault(kind, (arrays, treedef))
                votes[kind] += 1
            if votes.total() == _VOTES:
                break
        if votes:
            return found[votes.most_common(1)[0][0]]
        raise ArgumentError(
            f"Job(data=...): none of the first {min(self.count, 100)} samples can be read; "
            f"the last: {reason}."
        )

    def _read(self, index: int) -> tuple[Any, int]:
        item = self.data[index]
        if item is None:
            raise ValueError("the data source gives None, as for a sample that is filtered out")
        if self.by_data:
            if not isinstance(item, tuple) or len(item) != 2:
                raise ValueError(
                    f'target="data" takes (x, target) from the source, which gives a '
                    f"{type(item).__name__}"
                )
            return item[0], _integer(item[1])
        return item, 0 if self.targets is None else int(self.targets[index])

    def _retried(self, index: int) -> tuple[Any, int]:
        """What a network or a disk does not give at once, it may give a moment later."""
        for attempt in range(_TRIES - 1):
            try:
                return self._read(index)
            except OSError:
                time.sleep(_WAIT * 4**attempt)
        return self._read(index)

    def read(self, index: int) -> tuple[list[np.ndarray] | None, int, int, str]:
        """Leaves of a sample, its target, what it is, and why if it is not good."""
        try:
            x, target = self._retried(index)
            leaves, treedef = jax.tree.flatten(x)
            leaves = [np.asarray(leaf) for leaf in leaves]
        except Exception as error:  # a user's source may raise anything
            return None, 0, UNREADABLE, f"{REASONS[UNREADABLE]}: {_words(error)}"
        if treedef != self.treedef or [_kind(a) for a in leaves] != [_kind(a) for a in self.first]:
            what = ", ".join(_kind(a) for a in leaves)
            return None, 0, OTHER_SHAPE, f"{REASONS[OTHER_SHAPE]}: {what}"
        if any(not _is_finite(a) for a in leaves):
            return None, 0, NOT_FINITE, REASONS[NOT_FINITE]
        return leaves, target, GOOD, ""

    def batch(self, start: int) -> Batch:
        """``batch_size`` samples from ``start`` on; behind the last one nothing is there."""
        size = self.batch_size
        arrays = [np.zeros((size, *a.shape), a.dtype) for a in self.first]
        target, status = np.zeros(size, np.int32), np.full(size, ABSENT, np.int8)
        reasons = {}
        for row, index in enumerate(range(start, min(start + size, self.count))):
            leaves, target[row], status[row], reason = self.read(index)
            if leaves is None:
                reasons[index] = reason
                continue
            for array, leaf in zip(arrays, leaves, strict=True):
                array[row] = leaf
        return Batch(jax.tree.unflatten(self.treedef, arrays), target, status, reasons)

    def batches(self, starts: Sequence[int], threads: int, ahead: int) -> Iterator[Batch]:
        """Batches in order, read by threads ahead of their use."""
        import grain

        source = grain.MapDataset.source(_Batches(self, starts))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        return iter(source.to_iter_dataset(read_options=options))

    def shapes(self) -> Any:
        """Of a batch, as jax.ShapeDtypeStruct."""
        leaves = [
            jax.ShapeDtypeStruct(
                (self.batch_size, *a.shape), jax.dtypes.canonicalize_dtype(a.dtype)
            )
            for a in self.first
        ]
        return jax.tree.unflatten(self.treedef, leaves)


class _Batches(Sequence[Batch]):
    def __init__(self, samples: Samples, starts: Sequence[int]):
        self._samples, self._starts = samples, starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: Any) -> Any:
        return self._samples.batch(self._starts[number])


def _integer(target: Any) -> int:
    number = np.asarray(target)
    if number.shape or number.dtype.kind not in "iu":
        raise ValueError(f"its target is no integer, but {target!r}")
    if abs(int(number)) >= 2**31:
        raise ValueError(f"its target is {target!r}")
    return int(number)


def _is_finite(a: np.ndarray) -> bool:
    return not jnp.issubdtype(a.dtype, jnp.inexact) or bool(np.isfinite(a).all())


def _kind(a: np.ndarray) -> str:
    return f"{a.dtype}{list(a.shape)}"


def _words(error: Exception) -> str:
    """On one line, the same in each run, and not without end."""
    text = OBJECT.sub("", " ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= 300 else text[:297] + "..."
