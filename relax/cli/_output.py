"""Files that are written: what may be, checked before the work is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relax.cli._errors import InputError


def check_output(path: str, suffixes: Sequence[str]) -> Path:
    """The path of a file that can be written.

    Raises:
      InputError: its name does not end as it should, or its folder does not exist.
    """
    found = Path(path)
    if found.suffix.lower() not in suffixes:
        raise InputError(f"--output {path!r} does not end in {' or '.join(suffixes)}")
    if not found.parent.is_dir():
        raise InputError(f"--output {path!r} is in a folder that does not exist")
    return found
