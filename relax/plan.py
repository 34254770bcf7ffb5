"""The plan: what `lrp` would do to a function, as a table; nothing is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from relax._display import html_table, rich_lines, rich_table
from relax._program import Program
from relax.rules import Epsilon, Rule
from relax.rules._base import describe

_COLUMNS = ("path", "kind", "shapes", "weight", "rule", "gives", "where")


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer of a plan.

    Attributes:
      path: scope path, with ``#n`` for its n-th further use.
      kind: kind of layer, see `relax.select`; ``name``: what it is called.
      in_shapes, out_shapes: shapes of what carries relevance in and out.
      weight_path: path of its weight in the arguments, or empty.
      rule: the rule it gets.
      currency: what it hands to its input, ``"coefficient"`` or ``"relevance"``.
      first: whether it is a first layer.
      where: the user's file and line.
    """

    path: str
    kind: str
    name: str
    in_shapes: tuple[tuple[int, ...], ...]
    out_shapes: tuple[tuple[int, ...], ...]
    weight_path: str
    rule: Rule
    currency: str
    first: bool
    where: str

    def cells(self) -> tuple[str, ...]:
        shapes = f"{_shapes(self.in_shapes)} -> {_shapes(self.out_shapes)}"
        kind = self.kind if self.name == self.kind else f"{self.kind} ({self.name})"
        kind += ", first" if self.first else ""
        return (
            self.path,
            kind,
            shapes,
            self.weight_path,
            describe(self.rule),
            self.currency,
            self.where,
        )


def _shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    texts = ["x".join(map(str, shape)) or "()" for shape in shapes]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


class Plan(Sequence[Row]):
    """A sequence of `Row`, in order of evaluation; prints as a table, in a notebook as HTML, by
    rich as its table."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = tuple(rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __str__(self) -> str:
        if not self._rows:
            return "no layers: nothing but moves of data between the input and the output"
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        padded = lambda row: [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines = ["  ".join(padded(row)).rstrip() for row in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(lines)

    def _table(self) -> list[list[str]]:
        """The head and the rows, without the columns that are empty."""
        table = [_COLUMNS, *(row.cells() for row in self._rows)]
        used = [i for i in range(len(_COLUMNS)) if any(row[i] for row in table[1:])]
        return [[row[i] for i in used] for row in table]

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self._rows:
            return html_table(_COLUMNS, (), caption=str(self))
        head, *rows = self._table()
        return html_table(head, rows, caption=self._count())

    def __rich__(self) -> Any:
        if not self._rows:
            return rich_lines(str(self))
        head, *rows = self._table()
        return rich_table(head, rows, caption=self._count())

    def _count(self) -> str:
        return f"{len(self)} layer{'s' if len(self) > 1 else ''}"


def layers(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),
    *,
    argnums: int | Sequence[int] = -1,
    has_aux: bool = False,
) -> Callable[..., Plan]:
    """The plan of `lrp`: every layer it recognizes, and the rule each one gets.

    Arguments and errors: see `lrp`.

    Returns:
      A function of the arguments of ``fun`` (jax.ShapeDtypeStruct will do) that returns a `Plan`.
      Conditions at values that have a name, or behind a layer that no rule stands in front of, are
      rows at its end.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda params, x: jax.nn.relu(x @ params["hidden"]["w"])
      >>> shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
      >>> plan = relax.layers(f)({"hidden": {"w": shape(4, 3)}}, shape(2, 4))
      >>> [(row.path, row.kind, row.weight_path) for row in plan]
      [('hidden', 'dense', 'hidden/w'), ('relu', 'activation', '')]
    """

    def planned(*args: Any, **kwargs: Any) -> Plan:
        program = Program(fun, rules, argnums, None, has_aux, args, kwargs)
        return Plan(
            [
                Row(
                    layer.label,
                    layer.kind,
                    layer.name,
                    layer.in_shapes,
                    layer.out_shapes,
                    layer.weight_path,
                    rule,
                    program.gives(layer),
                    layer.first,
                    layer.where,
                )
                for layer, rule in zip(program.layers, program.rules, strict=True)
            ]
            + list(_conditions(program))
        )

    return planned


def _conditions(program: Program) -> Iterator[Row]:
    for named, masks in program.conditions:
        shape = (named.section.graph.shape(named.value),)
        of = program.of_section[id(named.section)][1].of[named.value]
        for mask in masks:
            yield Row(
                named.label,
                "named value",
                "named value",
                shape,
                shape,
                "",
                mask,
                of,
                False,
                named.where,
            )
    for layer, masks in program.at_outputs:
        for mask in masks:
            yield Row(
                layer.label,
                "output",
                layer.name,
                layer.out_shapes,
                layer.out_shapes,
                layer.weight_path,
                mask,
                program.gives(layer),
                False,
                layer.where,
            )
