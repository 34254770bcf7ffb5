"""What a store is of: its manifest, the refusal of another job, and the right to write."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relax._errors import StoreError
from relax.bulk._files import DTYPES, FORMAT, Array, Files, own, within, write_whole
from relax.bulk._fingerprint import differences
from relax.bulk._watch import log

_MANIFEST, _LOCK = "manifest.json", "lock"
_STRAGGLERS = 150.0  # seconds; by default jax.distributed finds out within 100 that one is gone


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a store, or None if there is no store.

    Raises:
      StoreError: the folder holds something else; the manifest is damaged or of another format.
    """
    if own(path).is_symlink():
        raise StoreError(f"{own(path)} is a link: a store has all that is its own in itself.")
    file = own(path) / _MANIFEST
    if not file.exists():
        if path.exists() and (not path.is_dir() or set(os.listdir(path)) - {own(path).name}):
            raise StoreError(
                f"{path} is there, and is no store of relax.\n"
                "  Name a folder that is not there yet."
            )
        return None
    try:
        found = json.loads(file.read_text())
        if found["format"] != FORMAT:
            raise StoreError(f"{path} has format {found['format']}; this relax writes {FORMAT}.")
        arrays = {
            str(name): Array(tuple(int(n) for n in shape), str(dtype))
            for name, (shape, dtype) in found["arrays"].items()
        }
        samples, chunk = int(found["samples"]), int(found["samples_per_chunk"])
        dict(found["made_of"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{file} is damaged: {type(error).__name__}: {error}.") from error
    for name, array in arrays.items():
        within(path, name)
        if array.dtype not in DTYPES.split() or min(array.shape, default=1) < 0:
            raise StoreError(f"{file} is damaged: array {name!r} is {array.dtype}{array.shape}.")
    if samples < 1 or chunk < 1:
        raise StoreError(f"{file} is damaged: {samples} samples in chunks of {chunk}.")
    return {**found, "arrays": arrays, "samples": samples, "samples_per_chunk": chunk}


def write_manifest(files: Files, made_of: Mapping[str, Any]) -> None:
    write_whole(
        own(files.path) / _MANIFEST,
        {
            "format": FORMAT,
            "samples": files.samples,
            "samples_per_chunk": files.chunk,
            "arrays": {n: [list(a.shape), a.dtype] for n, a in sorted(files.arrays.items())},
            "made_of": made_of,
        },
    )


def files_of(path: Path, manifest: Mapping[str, Any]) -> Files:
    return Files(path, manifest["samples"], manifest["samples_per_chunk"], manifest["arrays"])


def refuse_another(path: Path, manifest: Mapping[str, Any], new: Files, made_of: Any) -> None:
    """Raises a StoreError that names what differs, if a store is of another job."""
    facts = lambda samples, chunk, arrays, parts: {
        "samples": samples,
        "samples_per_chunk": chunk,
        "array": {n: f"{a.dtype}{list(a.shape)}" for n, a in sorted(arrays.items())},
        **parts,
    }
    old = facts(
        manifest["samples"],
        manifest["samples_per_chunk"],
        manifest["arrays"],
        manifest["made_of"],
    )
    wanted = facts(new.samples, new.chunk, new.arrays, made_of)
    if isinstance(old.get("data"), Mapping):  # a sample may have been out of reach, then or now
        both = old["data"].keys() & wanted["data"].keys()
        for one in (old, wanted):
            one["data"] = {name: one["data"][name] for name in both}
    found = list(differences(old, wanted))
    if not found:
        return
    shown = "\n  ".join(re.sub(r"[0-9a-f]{64}", lambda m: m[0][:12], line) for line in found[:8])
    more = f"\n  and {len(found) - 8} more" if len(found) > 8 else ""
    raise StoreError(
        f"{path} was made by another job:\n  {shown}{more}\n"
        "Give this job a store of its own, or run the job that made this one."
    )


def lock(path: Path, process: int = 0) -> Any:
    """The right of a process to write, until it is released or the process ends.

    Raises:
      StoreError: another process has it.
    """
    import filelock

    own(path).mkdir(parents=True, exist_ok=True)
    name = f"{_LOCK}-{process}" if process else _LOCK
    held = filelock.FileLock(own(path) / name, timeout=0)
    try:
        held.acquire()
    except filelock.Timeout:
        raise StoreError(
            f"{path} is being written by another run.\n  Wait for it, or end it first."
        ) from None
    return held


def wait_for_stragglers(path: Path) -> None:
    """Until no process of an earlier run is left; jax.distributed ends those whose first has died.

    Raises:
      StoreError: one of them lives on.
    """
    end = time.monotonic() + _STRAGGLERS
    for file in sorted(own(path).glob(f"{_LOCK}-*")):
        if _is_free(file, 0.0):
            continue
        log.info("waiting for process %s of an earlier run to end", file.name[len(_LOCK) + 1 :])
        if not _is_free(file, max(0.0, end - time.monotonic())):
            raise StoreError(
                f"{path} is being written by a process of an earlier run, which has {file.name}.\n"
                "  Wait for it, or end it first."
            )


def _is_free(file: Path, seconds: float) -> bool:
    """Whether nobody has a lock, or gives it back within some seconds."""
    import filelock

    held = filelock.FileLock(file, timeout=seconds)
    try:
        held.acquire()
    except filelock.Timeout:
        return False
    held.release()
    return True
