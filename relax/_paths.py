"""Names and globs: where a parameter stands in the arguments, and what a selector matches."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from relax._jaxpr import is_library


def path_name(keys: Iterable[Any]) -> str:
    """A pytree path as text: ``params/Dense_0/kernel``."""
    parts = []
    for key in keys:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                part = str(getattr(key, attribute))
                break
        else:
            part = str(key).strip(".[]'\"")
        parts.append(part)
    if parts and parts[-1] in ("value", "raw_value"):  # the box around an nnx.Variable
        parts.pop()
    return "/".join(parts)


def argument_names(fun: Callable[..., Any], count: int) -> list[str]:
    """Names of the positional parameters, for arguments that are bare arrays."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [named[i] if i < len(named) else f"args[{i}]" for i in range(count)]


def closure_names(fun: Callable[..., Any]) -> dict[int, str]:
    """Paths of the arrays a function closes over, by the identity of the array.

    Looks into closure cells, bound objects, partial arguments and the globals it names. It only
    names weights: one that is not found has no weight path, nothing else changes.
    """
    found: dict[int, str] = {}
    seen: set[int] = set()
    named: set[int] = set()

    def visit(function: Any) -> None:
        if id(function) in seen:
            return
        seen.add(id(function))
        for holder in _held(function):
            _name_leaves(holder, (), found, named)
            if (
                inspect.isroutine(holder)
                or isinstance(holder, functools.partial)
                or hasattr(holder, "__wrapped__")
            ):
                visit(holder)

    try:
        visit(fun)
    except Exception:  # a user's attribute may raise anything; names are a courtesy, no more
        return found
    return found


def _held(function: Any) -> list[Any]:
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    held = []
    if inspect.ismethod(function):
        held.append(function.__self__)
        function = function.__func__
    function = inspect.unwrap(function) if callable(function) else function
    if inspect.isfunction(function):
        for cell in function.__closure__ or ():
            try:
                held.append(cell.cell_contents)
            except ValueError:  # a cell that is not filled yet
                continue
        own = not is_library(function.__code__.co_filename)
        names = function.__code__.co_names if own else ()
        held += [function.__globals__[n] for n in names if n in function.__globals__]
    elif not isinstance(function, type):
        held.append(function)
    return [item for item in held if not inspect.ismodule(item) and not isinstance(item, type)]


def _name_leaves(
    holder: Any, prefix: tuple[Any, ...], found: dict[int, str], seen: set[int]
) -> None:
    """Names the arrays in a pytree, in the attributes of plain objects, in a Keras model."""
    if any(base.__module__.split(".")[0] == "keras" for base in type(holder).__mro__):
        for variable in getattr(holder, "variables", ()):
            found.setdefault(id(variable.value), str(variable.path))
        return
    try:
        leaves = jax.tree_util.tree_leaves_with_path(holder)
    except (TypeError, ValueError):  # no pytree, such as a dict with keys that have no order
        return
    for keys, leaf in leaves:
        path = (*prefix, *keys)
        if isinstance(leaf, jax.Array) or type(leaf).__name__ == "ndarray":
            found.setdefault(id(leaf), path_name(path))
        elif _is_plain_object(leaf) and len(path) < 8 and id(leaf) not in seen:
            seen.add(id(leaf))
            _name_leaves(dict(vars(leaf)), path, found, seen)


def _is_plain_object(leaf: Any) -> bool:
    """An object of the user's own class that is no pytree: its attributes may hold weights."""
    if isinstance(leaf, type) or inspect.isroutine(leaf) or inspect.ismodule(leaf):
        return False
    module = sys.modules.get(type(leaf).__module__)
    file = getattr(module, "__file__", None)
    return hasattr(leaf, "__dict__") and (file is None or not is_library(file))


def matches(pattern: str, candidates: Iterable[str]) -> bool:
    """Whether a glob matches a path, or the end of one from a ``/`` on; ``*`` crosses ``/``."""
    return any(
        fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")
        for path in candidates
        if path
    )


def addresses(path: str, occurrence: int, weight_paths: Sequence[str]) -> tuple[str, ...]:
    """Everything a layer answers to: its path, one occurrence of it, its weights and modules."""
    modules = (weight.rpartition("/")[0] for weight in weight_paths)
    return path, f"{path}#{occurrence}", *weight_paths, *modules


def nearest(pattern: str, paths: Iterable[str], count: int = 4) -> list[str]:
    """Paths most like a pattern that matched nothing."""
    unique = list(dict.fromkeys(path for path in paths if path))
    close = difflib.get_close_matches(pattern.strip("*/"), unique, n=count, cutoff=0.3)
    return close or unique[:count]
