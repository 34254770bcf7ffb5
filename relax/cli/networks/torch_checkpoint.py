"""Reads a PyTorch checkpoint into NumPy arrays, without PyTorch and without running what is in it.

A pickle is a program: it may name any callable there is and have it called. The reader here knows
the few names that a plain state dict needs and refuses every other one. It knows both containers
that ``torch.save`` has written: the zip archive (since PyTorch 1.6) and the row of pickles before.
What is saved may be a state dict alone, or a dictionary in which it stands beside plain values.
"""

import contextlib
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_DTYPES = {
    "BoolStorage": "?",
    "ByteStorage": "<u1",
    "CharStorage": "<i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# A damaged pickle asks for any length, and applies the few callables it may name to anything.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


class CheckpointError(ValueError):
    """The file is no checkpoint that can be read, or not the one that is wanted."""


@dataclass(frozen=True)
class _Storage:
    """A flat block of numbers in the file: its key there, its element type, its length."""

    key: str
    dtype: str
    size: int

    def decode(self, data: bytes) -> np.ndarray:
        """The numbers behind the bytes, which have to be as many as were announced."""
        flat = np.frombuffer(data, self.dtype) if self.size else np.empty(0, self.dtype)
        if flat.size != self.size:
            raise CheckpointError(
                f"{flat.size} of the {self.size} numbers of {self.key!r} are there"
            )
        return flat


_Reader = Callable[[_Storage], np.ndarray]


@dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage, whose numbers are read later."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, flat: np.ndarray) -> np.ndarray:
        """The view as an array of its own, once it is known not to leave the storage."""
        axes = list(zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0:
            raise CheckpointError(f"a tensor with negative {self.shape=}, {self.strides=}")
        if 0 in self.shape:
            return np.empty(self.shape, flat.dtype)
        last = self.offset + sum((length - 1) * stride for length, stride in axes)
        if last >= flat.size:
            raise CheckpointError(f"a tensor reaches element {last} of a storage of {flat.size}")
        steps = [stride * flat.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps)
        return view.copy(order="C")


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands in for ``torch._utils._rebuild_tensor_v2``; ``requires_grad`` is of no use here."""
    if not isinstance(storage, _Storage):
        raise CheckpointError("a tensor without a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _StateDictUnpickler(pickle.Unpickler):
    """Knows ordered dictionaries, tensors and storages, and nothing else.

    Attributes:
        storages: those that were referred to, by key.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name of the allow-list; every other name is refused."""
        if (module, name) not in _ALLOWED:
            raise CheckpointError(f"it asks for {module}.{name}, which no plain state dict needs")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage behind ("storage", element type, key, device, size[, view])."""
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or any(view):
            raise CheckpointError(f"it refers to {pid!r}, which is no plain storage")
        storage = self.storages.setdefault(key, _Storage(key, dtype, size))
        if (storage.dtype, storage.size) != (dtype, size):
            raise CheckpointError(f"it refers to {key!r} as two storages")
        return storage


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """As ``torch.load`` of a state dict, but gives NumPy arrays and needs no PyTorch.

    Args:
        path: a file that ``torch.save(module.state_dict(), path)`` wrote, zip archive or legacy.

    Returns:
        Name to array, in the order of the file, with PyTorch's shapes (the kernel of a convolution
        is ``(out, in / groups, height, width)``). The arrays are contiguous copies.

    Raises:
        CheckpointError: the file is neither of the two formats, is damaged, holds something other
            than named tensors, or names anything beyond the few callables of a state dict.
        OSError: the file cannot be opened.
    """
    with _opened(path) as (state, read):
        return {
            name: tensor.array(read(tensor.storage)) for name, tensor in _checked(state).items()
        }


def load_nested(path: str | os.PathLike[str]) -> dict[str, Any]:
    """As ``load_checkpoint``, but of dictionaries in dictionaries, and of plain values in them.

    Args:
        path: a file that ``torch.save({"state": module.state_dict(), "layers": 2, ...}, path)``
            wrote, zip archive or legacy.

    Returns:
        The dictionary; each tensor in it, however deep, is an array as ``load_checkpoint`` gives
        it. Else there are only dictionaries, texts, numbers, booleans and None.

    Raises:
        CheckpointError: as for ``load_checkpoint``, and for every other type of value.
        OSError: the file cannot be opened.
    """
    with _opened(path) as (saved, read):
        if not isinstance(saved, dict):
            raise CheckpointError(f"it holds {type(saved).__name__}, not a dictionary")
        return _filled(saved, read, {})


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, _Reader]]:
    """What was saved, and the reader of its storages; all that is wrong is a CheckpointError."""
    with Path(path).open("rb") as file:
        try:
            yield _open_zip(file) if zipfile.is_zipfile(file) else _open_legacy(file)
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(path)} was not loaded: {error}") from None
        except _DAMAGE as error:
            raise CheckpointError(
                f"{os.fspath(path)} is no PyTorch checkpoint, or a damaged one ({error})"
            ) from error


def _checked(state: Any) -> Mapping[str, _Tensor]:
    if not isinstance(state, Mapping):
        raise CheckpointError(f"it holds {type(state).__name__}, not a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise CheckpointError(f"its entry {name!r} is {type(value).__name__}, not a tensor")
    return state


def _filled(saved: Mapping[Any, Any], read: _Reader, made: dict[int, Any]) -> dict[str, Any]:
    """The dictionary with arrays for tensors.

    Args:
        saved: what the pickle holds.
        read: the reader of its storages.
        made: the dictionaries that are filled already, by identity. A pickle of a hundred bytes
            may hold one dictionary a million times, or in itself.
    """
    if id(saved) in made:
        return made[id(saved)]
    made[id(saved)] = filled = {}
    for key, value in saved.items():
        if not isinstance(key, str):
            raise CheckpointError(f"its key {key!r} is {type(key).__name__}, no text")
        if isinstance(value, _Tensor):
            filled[key] = value.array(read(value.storage))
        elif isinstance(value, Mapping):
            filled[key] = _filled(value, read, made)
        elif value is None or isinstance(value, str | int | float):
            filled[key] = value
        else:
            raise CheckpointError(f"its entry {key!r} is {type(value).__name__}, no plain value")
    return filled


def _open_zip(file: BinaryIO) -> tuple[Any, _Reader]:
    """An archive of <root>/data.pkl and, for each storage, <root>/data/<key>."""
    with zipfile.ZipFile(file) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    if "data.pkl" not in members:
        raise CheckpointError("it is a zip archive without data.pkl")
    if members.get("byteorder", b"little") != b"little":
        raise CheckpointError("it was written on a big-endian machine")
    state = _StateDictUnpickler(io.BytesIO(members["data.pkl"])).load()
    return state, lambda storage: storage.decode(members[f"data/{storage.key}"])


def _open_legacy(file: BinaryIO) -> tuple[Any, _Reader]:
    """Five pickles (magic, protocol, system, state, keys), then the numbers behind each key."""
    file.seek(0)
    if _StateDictUnpickler(file).load() != _LEGACY_MAGIC:
        raise CheckpointError("it does not begin as a PyTorch checkpoint does")
    if (protocol := _StateDictUnpickler(file).load()) != _LEGACY_PROTOCOL:
        raise CheckpointError(f"its protocol {protocol!r} is unknown")
    if not _StateDictUnpickler(file).load()["little_endian"]:
        raise CheckpointError("it was written on a big-endian machine")
    unpickler = _StateDictUnpickler(file)
    state, storages = unpickler.load(), unpickler.storages
    flat = {}
    for key in _StateDictUnpickler(file).load():
        (size,) = struct.unpack("<q", file.read(8))
        if size != storages[key].size:
            raise CheckpointError(
                f"{size} of the {storages[key].size} numbers of {key!r} are there"
            )
        flat[key] = storages[key].decode(file.read(size * np.dtype(storages[key].dtype).itemsize))
    return state, lambda storage: flat[storage.key]
