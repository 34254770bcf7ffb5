"""A class by its number or by one of its names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from relax.cli._errors import InputError


def short_name(label: str) -> str:
    """The first of a label's synonyms."""
    return label.partition(",")[0]


def find_class_index(text: str, labels: Sequence[str]) -> int:
    """The class that a user means by a number or by one of its synonyms, in any case.

    Args:
      text: "967", "espresso", "Tabby Cat".
      labels: of each class, synonyms with ", " between them.

    Raises:
      InputError: no class is so called (the nearest names are offered), several are (their numbers
        are), or the number is out of range.
    """
    wanted = text.strip().casefold()
    if wanted.removeprefix("-").isdecimal():
        if 0 <= int(wanted) < len(labels):
            return int(wanted)
        raise InputError(f"no class {text}: they are numbered from 0 to {len(labels) - 1}")
    synonyms: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for synonym in dict.fromkeys(label.casefold().split(", ")):
            synonyms.setdefault(synonym, []).append(index)
    match synonyms.get(wanted, []):
        case [index]:
            return index
        case []:
            near = [name for name in synonyms if wanted and wanted in name.split()]
            near += difflib.get_close_matches(wanted, synonyms, n=5)
            offer = ", ".join(list(dict.fromkeys(near))[:5]) or "there is none like it"
            raise InputError(f"no class is called {text!r}; the nearest: {offer}")
        case several:
            offer = "; ".join(f"{index} ({labels[index]})" for index in several)
            raise InputError(f"several classes are called {text!r}, give a number: {offer}")
