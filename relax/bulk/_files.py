"""The files of a store: arrays in Zarr v3, and a record of each chunk."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from relax._errors import StoreError
from relax.bulk._fingerprint import array_digest
from relax.bulk._step import blank, is_name

FORMAT = 1
DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 bfloat16"
_OWN = ".relax"
_FINISHED = "finished.json"
_CHUNKS = "chunks"
_TEMPORARY = ".tmp-"


class Array(NamedTuple):
    """Shape of a row and dtype of an array of a store."""

    shape: tuple[int, ...]
    dtype: str


class Record(NamedTuple):
    """What is known of a chunk that is finished.

    Attributes:
      digests: of its rows, for each array.
      bad: samples that could not be explained, and why.
      explained, received: sums over the good samples.
    """

    digests: dict[str, str]
    bad: list[tuple[int, str]]
    explained: float
    received: float


class Files:
    """The files of a store.

    Args:
      path: the folder.
      samples, chunk: how many there are, and how many of them are a chunk.
      arrays: what is stored, by name.
      make: whether arrays that are not there are made; a reader makes nothing.
    """

    def __init__(
        self,
        path: Path,
        samples: int,
        chunk: int,
        arrays: Mapping[str, Array],
        make: bool = False,
    ):
        self.path, self.samples, self.chunk = path, samples, chunk
        self.arrays, self._make = dict(arrays), make
        self._opened: dict[str, Any] = {}

    @property
    def chunks(self) -> int:
        return -(-self.samples // self.chunk)

    def rows(self, chunk: int) -> slice:
        return slice(chunk * self.chunk, min(self.samples, (chunk + 1) * self.chunk))

    def opened(self, name: str) -> Any:
        """The array, as TensorStore has it."""
        if name not in self._opened:
            import tensorstore

            array = self.arrays[name]
            codecs: list[dict[str, Any]] = [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1}},
                {"name": "crc32c"},
            ]
            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(within(self.path, name)) + "/"},
                "metadata": {
                    "shape": [self.samples, *array.shape],
                    "chunk_grid": {
                        "name": "regular",
                        "configuration": {"chunk_shape": [self.chunk, *array.shape]},
                    },
                    "data_type": array.dtype,
                    "codecs": codecs,
                    "fill_value": _fill(array.dtype),
                },
            }
            try:
                self._opened[name] = tensorstore.open(spec, open=True, create=self._make).result()
            except ValueError as error:
                raise StoreError(
                    f"{self.path}: array {name!r} cannot be opened: {' '.join(str(error).split())}"
                ) from error
        return self._opened[name]

    def make_group(self) -> None:
        """What says that the folder, and each folder of arrays in it, is a Zarr group."""
        content = {"zarr_format": 3, "node_type": "group", "attributes": {"relax": FORMAT}}
        folders = {self.path}
        for name in self.arrays:
            parent = within(self.path, name).parent
            while parent != self.path.resolve():
                folders.add(parent)
                parent = parent.parent
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "zarr.json", content)

    def write(
        self, chunk: int, values: Mapping[str, np.ndarray], record: Mapping[str, Any]
    ) -> None:
        """The rows of a chunk, and then, once they are there, its record."""
        rows = self.rows(chunk)
        writes = [self.opened(name)[rows].write(value) for name, value in values.items()]
        digests = {name: array_digest(value) for name, value in sorted(values.items())}
        try:
            for write in writes:
                write.result()
        except ValueError as error:  # TensorStore's, of a full disk as of anything else
            raise OSError(" ".join(str(error).split())) from error
        content = {"chunk": chunk, "digests": digests, **record}
        write_whole(self._record(chunk), {**content, "own": _own_digest(content)})

    def read(self, name: str, chunk: int) -> np.ndarray:
        return np.asarray(self.opened(name)[self.rows(chunk)].read().result())

    def _record(self, chunk: int) -> Path:
        return own(self.path) / _CHUNKS / f"{chunk:08d}.json"

    def record(self, chunk: int) -> Record | None:
        """Of a chunk that is finished; None if it is not, or if its record is damaged."""
        try:
            found = json.loads(self._record(chunk).read_text())
            bad = [(int(index), str(reason)) for index, reason in found["bad"]]
            digests = {str(k): str(v) for k, v in found["digests"].items()}
            sums = float(found["explained"]), float(found["received"])
            content = {key: value for key, value in found.items() if key != "own"}
            if found["chunk"] != chunk or found["own"] != _own_digest(content):
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        rows = self.rows(chunk)
        if any(not rows.start <= i < rows.stop for i, _ in bad):
            return None
        return Record(digests, bad, *sums)

    def records(self) -> Iterator[tuple[int, Record]]:
        for chunk in range(self.chunks):
            found = self.record(chunk)
            if found is not None:
                yield chunk, found

    def is_whole(self, chunk: int) -> bool:
        """Whether the rows on disk are those that were written."""
        found = self.record(chunk)
        if found is None or set(found.digests) != set(self.arrays):
            return False
        try:
            return all(array_digest(self.read(n, chunk)) == d for n, d in found.digests.items())
        except ValueError:  # TensorStore's, of a chunk that cannot be decoded
            return False

    def make_arrays(self) -> None:
        for name in self.arrays:
            self.opened(name)

    def damaged(self, chunks: Iterable[int], reason: str | None = None) -> list[int]:
        """Those that are not there whole; the record of such a one is taken away.

        With a ``reason`` also those that have a bad sample whose reason begins so.
        """
        chunks = list(chunks)
        with ThreadPoolExecutor(8) as pool:
            whole = list(pool.map(self.is_whole, chunks))
        found = [
            chunk
            for chunk, good in zip(chunks, whole, strict=True)
            if not good or (reason is not None and self._has(chunk, reason))
        ]
        if found:
            (own(self.path) / _FINISHED).unlink(missing_ok=True)
        for chunk in found:
            self._record(chunk).unlink(missing_ok=True)
        return found

    def _has(self, chunk: int, reason: str) -> bool:
        found = self.record(chunk)
        return found is not None and any(why.startswith(reason) for _, why in found.bad)

    def finish(self) -> None:
        """Says that every chunk is there, with a digest of all."""
        records = dict(self.records())
        missing = [chunk for chunk in range(self.chunks) if chunk not in records]
        if missing:
            raise StoreError(
                f"{self.path}: {len(missing)} of {self.chunks} chunks are missing, the first is "
                f"{missing[0]}. Run the job again."
            )
        write_whole(own(self.path) / _FINISHED, {"digest": self.digest()})

    def digest(self) -> str:
        """Of everything that is stored: the same for the same results."""
        text = [[c, r.digests, r.bad, r.explained, r.received] for c, r in self.records()]
        return array_digest(np.frombuffer(json.dumps(text).encode(), np.uint8))

    @property
    def finished(self) -> bool:
        return (own(self.path) / _FINISHED).is_file()

    @property
    def as_finished(self) -> bool:
        """Whether all is what it was when the store was finished, as far as the records tell."""
        try:
            found = json.loads((own(self.path) / _FINISHED).read_text())
            return found["digest"] == self.digest()
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _own_digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True).encode()
    return array_digest(np.frombuffer(text, np.uint8))


def own(path: Path) -> Path:
    """The folder of what is no array."""
    return path / _OWN


def within(path: Path, name: str) -> Path:
    """The folder of an array.

    Raises:
      StoreError: it would lie outside of the store.
    """
    folder = (path / name).resolve()
    if not is_name(name) or not folder.is_relative_to(path.resolve()):
        raise StoreError(f"{path}: array {name!r} would lie outside of the store.")
    return folder


def _fill(dtype: str) -> Any:
    value = blank(np.dtype(dtype)) if dtype != "bfloat16" else np.nan
    return "NaN" if value is np.nan else value if dtype != "bool" else False


def write_whole(path: Path, content: Any) -> None:
    """A file of JSON which is there whole or not at all, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{_TEMPORARY}{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def tidy(path: Path) -> None:
    """Takes away what a process that was killed has left; nobody else may be writing.

    Raises:
      StoreError: there is a link in the store, which might lead out of it.
    """
    for folder, folders, files in os.walk(path, followlinks=False):
        for name in (*folders, *files):
            file = Path(folder) / name
            if file.is_symlink():
                raise StoreError(f"{file} is a link: nothing is written through it. Remove it.")
            if name in files and (_TEMPORARY in name or name.endswith(".__lock")):
                file.unlink(missing_ok=True)
