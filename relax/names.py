"""The names that users of other systems know, translated into calls of relax."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from relax import composites, methods, rules
from relax._errors import ArgumentError
from relax._peers import OTHERWISE, TABLE, Entry, written
from relax.transform import lrp

_HOMES = {"methods": methods, "composites": composites, "rules": rules}
_SYSTEMS = frozenset(entry.system for entry in TABLE)
_WHENCE = {
    "key": "For example key=jax.random.key(0).",
    "patterns": "They are fitted to data: relax.methods.fit_patterns.",
    "position": "Of the token that the output is made of: 0 for a class token, -1 for the last.",
}


@dataclasses.dataclass(frozen=True, repr=False)
class Method:
    """A method with its options, found by name: ``method(fun, ...)(*args)``; prints as its call.

    Attributes:
      entry: what the name stands for.
      options: of the call, in the words of relax.
    """

    entry: Entry
    options: Mapping[str, Any]

    def __call__(
        self,
        fun: Callable[..., Any],
        *,
        argnums: Any = -1,
        target: Any = None,
        has_aux: bool = False,
    ) -> Callable[..., Any]:
        """The function that explains ``fun``; arguments as in `relax.lrp`."""
        home, _, name = self.entry.path.partition(".")
        make = getattr(_HOMES[home], name)
        common = {"argnums": argnums, "target": target, "has_aux": has_aux}
        if home == "methods":
            return make(fun, **self.options, **common)
        return lrp(fun, make(**self.options), **common)

    def __repr__(self) -> str:
        return written(self.entry.path, self.options)


def method(name: str, **options: Any) -> Method:
    """The method of a name, of relax itself or of iNNvestigate, DeepExplain, Zennit or Captum.

    A name that several systems have is that of relax, then of the first in this order; with the
    system in front, as in ``"captum.IntegratedGradients"``, it is that of the system, with its
    defaults. See docs/names.md for all of them, and for where they differ.

    Args:
      name: such as ``"lrp.epsilon"``, ``"grad*input"``, ``"EpsilonPlusFlat"``.
      **options: of the method, in the words of relax or in those of the system.

    Returns:
      A function as those of `relax.methods`: ``method(name)(fun, target=...)(params, x)``. It
      prints as the call that it stands for.

    Raises:
      ArgumentError: nothing is called so, with the nearest names; it has no such option, or needs
        one, such as a key.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> explain = relax.method("lrp.epsilon", epsilon=1e-6)
      >>> explain
      relax.lrp(f, relax.rules.Epsilon(epsilon=1e-06, zero_bias=False))
      >>> f, w = (lambda w, x: x @ w), jnp.array([[1.0], [-1.0]])
      >>> print(relax.method("grad*input")(f)(w, jnp.array([3.0, 1.0])))
      [ 3. -1.]
    """
    entry = _find(name)
    known = _own_options(entry)
    given = dict(entry.fixed)
    for option, value in options.items():
        here = entry.options.get(option, option)
        if isinstance(here, tuple):
            here, convert = here
            value = convert(value)
        if here not in known:
            words = ", ".join(sorted({*known, *entry.options})) or "none"
            other = [f"{e.system}.{e.name}" for e in TABLE if e.name == entry.name]
            more = f" Others of that name: {', '.join(other)}." if len(other) > 1 else ""
            raise ArgumentError(
                f"{entry.system}.{entry.name} has no option {option!r}.\n  It has: {words}.{more}"
            )
        given[here] = value
    missing = [option for option, needed in known.items() if needed and option not in given]
    if missing:
        raise ArgumentError(
            f"{name!r} needs {' and '.join(missing)}.\n  {_WHENCE.get(missing[0], '')}".rstrip()
        )
    return Method(entry, given)


def _find(name: str) -> Entry:
    for entry in TABLE:
        if name in (entry.name, f"{entry.system}.{entry.name}"):
            return entry
    plain = name.partition(".")[2] if name.partition(".")[0] in _SYSTEMS else name
    if plain in OTHERWISE:
        raise ArgumentError(f"{name!r} has another form here: {OTHERWISE[plain]}")
    names = [n for entry in TABLE for n in (entry.name, f"{entry.system}.{entry.name}")]
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), lower, 4, 0.7)
    near = ", ".join(repr(lower[n]) for n in close) or "see docs/names.md"
    raise ArgumentError(f"No method is called {name!r}.\n  Nearest: {near}.")


def _own_options(entry: Entry) -> dict[str, bool]:
    """Keyword arguments of what an entry stands for, and whether they must be given.

    Without those that every method has.
    """
    home, _, name = entry.path.partition(".")
    found = inspect.signature(getattr(_HOMES[home], name)).parameters.values()
    common = ("fun", "argnums", "target", "has_aux")
    return {p.name: p.default is p.empty for p in found if p.name not in common}


__all__ = ["Method", "method"]
