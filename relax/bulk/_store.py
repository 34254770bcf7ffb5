"""A store of results, to be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from relax._errors import StoreError
from relax.bulk._manifest import files_of, read_manifest


class Store:
    """A store, to be read: ``store["relevance"][10:20]``.

    Args:
      path: the folder.

    Attributes:
      names: of the arrays.
      samples: how many there are.
      finished: whether every chunk is there.
      bad: ``(index, reason)`` of the samples that could not be explained.
      made_of: what the results were made of: parameters, rules, data and versions.

    Raises:
      StoreError: it is no store, or it is damaged.
      KeyError: there is no such array.

    Example:
      >>> import numpy as np, pathlib, tempfile
      >>> from relax import bulk, rules
      >>> folder = pathlib.Path(tempfile.mkdtemp()) / "s.zarr"
      >>> job = bulk.Job(
      ...     f=lambda params, x: x * params, params=2.0, rules=rules.Epsilon(0.0),
      ...     data=np.ones((3, 2), np.float32), store=folder,
      ... )
      >>> summary = bulk.run(job)
      >>> store = bulk.Store(folder)
      >>> print(store.names, np.asarray(store["relevance"][1]), store.bad)
      ['relevance'] [2. 2.] []
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).expanduser()
        manifest = read_manifest(self.path)
        if manifest is None:
            raise StoreError(f"{self.path} is no store of relax.")
        self._files = files_of(self.path, manifest)
        self.made_of: dict[str, Any] = manifest["made_of"]
        self.names = sorted(self._files.arrays)
        self.samples = self._files.samples

    @property
    def finished(self) -> bool:
        return self._files.finished

    @property
    def bad(self) -> list[tuple[int, str]]:
        return [pair for _, record in self._files.records() for pair in record.bad]

    def __getitem__(self, name: str) -> Any:
        """An array of TensorStore, read by ``numpy.asarray(store[name][rows])``."""
        if name not in self._files.arrays:
            raise KeyError(f"{self.path} has no array {name!r}; it has {', '.join(self.names)}.")
        return self._files.opened(name)

    def damaged(self) -> list[int]:
        """Numbers of the chunks that are not there or not what was written; reads all of them."""
        return [c for c in range(self._files.chunks) if not self._files.is_whole(c)]

    def is_there(self, sample: int) -> bool:
        """Whether a sample has been computed."""
        return self._files.record(sample // self._files.chunk) is not None

    @property
    def as_finished(self) -> bool:
        """Whether the records are those that the store was finished with."""
        return self._files.as_finished

    def sums(self) -> tuple[float, float]:
        """Over all samples: the value that was explained, and the relevance that arrived."""
        records = [record for _, record in self._files.records()]
        return sum(r.explained for r in records), sum(r.received for r in records)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return (
            f"Store({str(self.path)!r}, {self.samples} samples, {', '.join(self.names)}, {state})"
        )
