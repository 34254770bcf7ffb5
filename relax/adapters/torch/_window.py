"""Which releases of torch and torchax work together."""

from __future__ import annotations

import importlib.metadata
import re

# From the first release that is known to work to the first that is known not to, or not known.
# torch 2.13 dropped overloads that torchax 0.0.13 names.
_WINDOW = {"torch": ((2, 9), (2, 13)), "torchax": ((0, 0, 13), (0, 0, 14))}


def check_versions() -> None:
    """Whether torch and torchax are there, of releases that work together.

    Raises:
      ImportError: not; it names what is installed, what is needed, and the command.
    """
    found: dict[str, str | None] = {}
    for name in _WINDOW:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    if all(
        version is not None and first <= _numbers(version) < last
        for version, (first, last) in zip(found.values(), _WINDOW.values(), strict=True)
    ):
        return
    have = " and ".join(
        f"{name} {version}" if version else f"no {name}" for name, version in found.items()
    )
    need = " and ".join(
        f"{name} >= {'.'.join(map(str, first))}, < {'.'.join(map(str, last))}"
        for name, (first, last) in _WINDOW.items()
    )
    raise ImportError(
        f'relax.adapters.torch needs {need}; there is {have}.\n  pip install "relax-lrp[torch]"'
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The release: ``2.9.1+cpu`` as ``(2, 9, 1)``."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
