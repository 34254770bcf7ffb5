"""From what ``--rules`` and ``--method`` say to something that explains."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

import relax
from relax import composites, rules
from relax._errors import RelaxError
from relax._peers import written
from relax.cli._errors import InputError
from relax.names import _find, _own_options


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A method that was chosen.

    Attributes:
      name: short, as it was given.
      call: how one writes it in Python.
      explain: ``explain(f, target=...)(params, x)``.
      rules: of LRP, or None if it is another method.
    """

    name: str
    call: str
    explain: Callable[..., Any]
    rules: Any = None


def by_rules(text: str, bounds: Callable[[], tuple[Any, Any]]) -> Chosen:
    """LRP under a composite or a rule of relax: ``"epsilon_plus"``, ``"Gamma(0.25)"``.

    Args:
      text: its name, and in parentheses its options as one would write them in Python.
      bounds: low and high of the input, for what is bounded and is given none.

    Raises:
      InputError: there is none of that name, or it does not take these options.
    """
    name, values, options = _call(text, "--rules")
    makers = available()
    if name not in makers:
        raise InputError(
            f"--rules: there is no {name!r}; {_nearest(name, makers)}. There are "
            f"{', '.join(makers)}"
        )
    make = makers[name]
    known = inspect.signature(make).parameters
    if not values and "low" in known and "high" in known:
        options = dict(zip(("low", "high"), bounds(), strict=True)) | options
    made = _made(text, "--rules", lambda: make(*values, **options))
    home = "composites" if name in composites.__all__ else "rules"
    call = f"relax.lrp(f, relax.{home}.{text.strip()}{'' if '(' in text else '()'})"
    explain = lambda f, target: relax.lrp(f, made, target=target)
    return Chosen(text.strip(), call, explain, made)


def by_method(text: str, bounds: Callable[[], tuple[Any, Any]], seed: int) -> Chosen:
    """A method of relax or of another system by its name: ``"integrated_gradients(steps=20)"``.

    Args:
      text: its name, see `relax.method`, and in parentheses its options by name.
      bounds: as in `by_rules`.
      seed: of the random numbers, for methods that need some.

    Raises:
      InputError: there is none of that name, or it does not take these options.
    """
    name, values, options = _call(text, "--method")
    if values:
        raise InputError(f"--method {text!r}: give options by name, such as steps=20")

    def make() -> Any:
        known = _own_options(_find(name))
        given: dict[str, Any] = {}
        if "low" in known and "high" in known:
            given |= dict(zip(("low", "high"), bounds(), strict=True))
        if "key" in known:
            given["key"] = jax.random.key(seed)
        return relax.method(name, **(given | options))

    made = _made(text, "--method", make)
    shown = {option: value for option, value in made.options.items() if option != "key"}
    call = written(made.entry.path, shown)
    if "key" in made.options:
        call = f"{call[:-1]}, key=jax.random.key({seed}))"
    return Chosen(text.strip(), call, lambda f, target: made(f, target=target))


def available() -> dict[str, Callable[..., Any]]:
    """Name to maker, of everything that ``--rules`` may name."""
    found = {name: getattr(composites, name) for name in composites.__all__ if name[0].islower()}
    return found | _rules()


def _rules() -> dict[str, Callable[..., Any]]:
    classes = {name: getattr(rules, name) for name in rules.__all__}
    return {
        name: made
        for name, made in classes.items()
        if isinstance(made, type)
        and issubclass(made, rules.Rule)
        and dataclasses.is_dataclass(made)  # the others are bases
        and name not in ("Custom", "Mask")  # of a function, of an array: not to be written as text
    }


def _made(text: str, option: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (TypeError, ValueError, RelaxError) as error:
        raise InputError(f"{option} {text!r}: {error}") from error


def _call(text: str, option: str) -> tuple[str, list[Any], dict[str, Any]]:
    """The name, the values and the named values of a call."""
    parts = re.fullmatch(r"\s*([^\s(]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if parts is None:
        raise InputError(f"{option} {text!r}: expected NAME or NAME(OPTION=VALUE, ...)")
    name, inside = parts[1], parts[2] or ""
    try:
        call = ast.parse(f"_({inside})", mode="eval").body
        assert isinstance(call, ast.Call)
        values = [_value(value) for value in call.args]
        options = {word.arg: _value(word.value) for word in call.keywords if word.arg}
        if len(options) != len(call.keywords):
            raise ValueError
    except (SyntaxError, ValueError, AssertionError):
        raise InputError(
            f"{option} {text!r}: what is in parentheses should be numbers, texts, or rules such as "
            "sums=Norm()"
        ) from None
    return name, values, options


def _value(node: ast.expr) -> Any:
    """A literal, or a rule; nothing else is evaluated."""
    makers: Mapping[str, Callable[..., Any]] = _rules()
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    if not isinstance(node.func, ast.Name) or node.func.id not in makers:
        raise ValueError
    make = makers[node.func.id]
    values = [_value(value) for value in node.args]
    options = {str(word.arg): _value(word.value) for word in node.keywords}
    return _made(ast.unparse(node), "rule", lambda: make(*values, **options))


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.5)
    return f"the nearest: {', '.join(close)}" if close else "none is like it"
