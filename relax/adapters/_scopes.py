"""Calls of modules under the path at which they stand in the model, for names of layers.

NNX names no calls and Equinox names them by class. The adapters work on a copy of the model whose
modules are of subclasses, one for each path: the user's modules and classes stay as they are, and
a path held in an attribute would be seen by modules that go through their own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

_here: ContextVar[str] = ContextVar("path of the module that is called", default="")


@contextlib.contextmanager
def scope(path: str) -> Iterator[None]:
    """Names what is computed inside by a path, without the beginning that is the caller's.

    A module that calls itself, and the model at the top, add nothing.
    """
    caller = _here.get()
    name = path.removeprefix(f"{caller}/") if caller else path
    if name in ("", caller):
        yield
        return
    token = _here.set(path)
    try:
        with jax.named_scope(name):
            yield
    finally:
        _here.reset(token)


@functools.cache  # both frameworks register every class for good
def called_in_scope(
    cls: Any, path: str, call: Callable[..., Any], options: tuple[tuple[str, Any], ...] = ()
) -> Any:
    """A class as ``cls``, whose ``__call__`` is ``call`` in the scope of a path.

    Args:
      cls, path: of the module.
      call: its ``__call__``.
      options: keyword arguments of the definition of the class.
    """

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with scope(path):
            return call(self, *args, **kwargs)

    body = {
        "__call__": __call__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return type(cls)(cls.__name__, (cls,), body, **dict(options))
