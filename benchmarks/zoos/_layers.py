"""Layers of a framework: each class of its namespace, with the ways in which it is used.

A zoo of layers enumerates the classes from the namespace and looks each up in a table of its own.
A class that the table lacks is a case that fails, so a layer that a new version brings turns up.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from benchmarks.zoos import Case, Model
from benchmarks.zoos.parameters import normal

Uses = Mapping[str, Callable[[], Model]]  # what is special about a use -> what builds it
Input = tuple[int, ...] | Callable[[], Any]  # a shape to be drawn, or what makes the input


def classes(namespace: Any, base: type) -> set[str]:
    """Names of the public classes that are layers: subclasses of the base that can be called.

    Containers and parameters cannot be called, and interfaces have no call of their own: one that
    is abstract, or that does nothing but raise.
    """
    return {
        name
        for name, found in vars(namespace).items()
        if inspect.isclass(found) and issubclass(found, base) and not name.startswith("_")
        if _has_call(found)
    }


def _has_call(found: type) -> bool:
    own = [vars(parent)["__call__"] for parent in found.__mro__ if "__call__" in vars(parent)]
    call = inspect.unwrap(own[0]) if own and callable(own[0]) else None
    if not inspect.isfunction(call) or inspect.isabstract(found):
        return False
    return call.__code__.co_names != ("NotImplementedError",)


def listed(
    zoo: str,
    found: set[str],
    table: Mapping[str, Uses],
    small: bool,
    large: Collection[str] = (),
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Case]:
    """The cases of a zoo of layers: every use of every class, then those of functions.

    Args:
      zoo: its name.
      found: the names of the classes, from the namespace; see `classes`.
      table: name -> its uses, the plainest first; names that are no class, such as those of
        functions, are cases too.
      small: only the plainest use of each, and none that is large.
      large: names of models that take minutes.
      reasons: name -> why it cannot be explained.
    """
    for name in sorted(found) + sorted(set(table) - found):
        if name not in table:
            yield Case(zoo, name, _absent(zoo, name))
            continue
        for number, (use, build) in enumerate(table[name].items()):
            if not (small and (number or name in large)):
                case = f"{name}: {use}" if use else name
                yield Case(zoo, case, build, reasons.get(name, ""))


def _absent(zoo: str, name: str) -> Callable[[], Model]:
    def build() -> Model:
        raise LookupError(
            f"{zoo}: the table of examples has no {name}.\n"
            f"  Add to its zoo under benchmarks/zoos how a {name} is made and called."
        )

    return build


def given(x: Input) -> Any:
    """The input itself."""
    return x() if callable(x) else normal(x)
