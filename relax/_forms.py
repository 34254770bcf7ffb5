"""The forms that rules may be given in: a rule, a composite, a mapping, a list, a callable."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from relax import select
from relax._display import html_table, rich_table
from relax._errors import RuleError
from relax.rules import Rule
from relax.rules._base import describe


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Composite:
    """An ordered list of (selector, rule); the first match wins. A pytree: rules are its children.

    Args:
      entries: pairs of a selector (a glob or a predicate of `relax.select`) and a rule.
      strict: whether a selector that matches no layer is an error.

    Example:
      >>> import relax
      >>> from relax import rules, select
      >>> relax.Composite(((select.first, rules.Flat()), (select.affine, rules.Epsilon())))
      Composite(first: Flat(1e-06), affine: Epsilon(1e-06))
    """

    entries: tuple[tuple[Any, Rule], ...]
    strict: bool = True

    def __post_init__(self) -> None:
        pairs = []
        for entry in self.entries:
            if not (isinstance(entry, tuple) and len(entry) == 2):
                raise RuleError(f"Composite: expected pairs (selector, rule), got {entry!r}.")
            selector, rule = entry
            if not isinstance(rule, Rule):
                hint = (
                    f"Did you mean {rule.__name__}()?"
                    if isinstance(rule, type)
                    else ("Rules are instances such as relax.rules.Epsilon().")
                )
                raise RuleError(f"{selector!r}: {rule!r} is no rule.\n  {hint}")
            if not isinstance(selector, str) and not callable(selector):
                raise RuleError(f"{selector!r} is no selector: give a glob or a predicate.")
            pairs.append((selector, rule))
        object.__setattr__(self, "entries", tuple(pairs))

    def tree_flatten(self) -> tuple[Any, Any]:
        return [rule for _, rule in self.entries], (tuple(s for s, _ in self.entries), self.strict)

    @classmethod
    def tree_unflatten(cls, fixed: Any, rules: Any) -> Composite:
        composite = object.__new__(cls)  # not __init__: rules may be placeholders
        object.__setattr__(composite, "entries", tuple(zip(fixed[0], rules, strict=True)))
        object.__setattr__(composite, "strict", fixed[1])
        return composite

    def __repr__(self) -> str:
        return f"Composite({', '.join(f'{name}: {rule}' for name, rule in self._rows())})"

    def _repr_html_(self) -> str:
        return html_table(("layers", "rule"), self._rows(), note=self._note())

    def __rich__(self) -> Any:
        return rich_table(("layers", "rule"), self._rows(), note=self._note())

    def _rows(self) -> list[tuple[str, str]]:
        return [(select.predicate(s).name, describe(rule)) for s, rule in self.entries]

    def _note(self) -> str:
        return "the first that matches wins; " + (
            "each must match a layer" if self.strict else "the others keep their default"
        )


def before(entries: Sequence[tuple[Any, Rule]], rules: Any) -> list[Any]:
    """Rules in any form, with entries in front of them."""
    if isinstance(rules, Mapping):
        return [*entries, *rules.items()]
    if isinstance(rules, Sequence) and not isinstance(rules, str):
        return [*entries, *rules]
    return [*entries, rules]


def entries_of(rules: Any) -> list[tuple[Any, Any, bool]]:
    """Selectors, each with its rule, and whether it is strict.

    None in the place of a selector: the rule goes to its kinds, or is a callable ``layer -> rule``.
    """
    if isinstance(rules, type):
        raise RuleError(f"{rules!r} is a class, not a rule.\n  Did you mean {rules.__name__}()?")
    if isinstance(rules, Rule):
        return [(None, rules, False)]
    if isinstance(rules, Composite):
        return [(selector, rule, rules.strict) for selector, rule in rules.entries]
    if isinstance(rules, Mapping):
        return entries_of(Composite(tuple(rules.items())))
    if getattr(rules, "__module__", "") == "relax.composites" and callable(rules):
        raise RuleError(f"{rules!r} makes a composite.\n  Did you mean {rules.__name__}()?")
    if callable(rules):
        return [(None, rules, False)]
    if isinstance(rules, Sequence) and not isinstance(rules, str):
        entries: list[tuple[Any, Any, bool]] = []
        for item in rules:
            pair: Any = item
            nested = isinstance(item, (Rule, Composite, Mapping, list)) or callable(item)
            entries += entries_of(item if nested else Composite((pair,)))
        return entries
    raise RuleError(
        f"`rules` must be a rule, a composite, a mapping or list of (selector, rule), or a "
        f"callable layer -> rule; got {rules!r}.\n  For example relax.rules.Epsilon()."
    )
