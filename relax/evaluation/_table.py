"""Scores of several methods as a table: rows the methods, columns the measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relax._display import html_table, rich_table
from relax._errors import ArgumentError
from relax.evaluation._drawing import axes_or_new
from relax.evaluation._finite import how_many, listed


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table of text: the first row is the head, all but the first column stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Table:
    """What several methods score on the samples of a data set: what `compare` returns.

    Prints as a table of means and standard errors, in a notebook as HTML, by rich as its table, and
    says how many samples count, if some were left out.

    Attributes:
      methods: their names, the rows.
      scores: for each measure ``(methods, samples)``, the columns; of the samples that count.
      cost: of each method, in gradients; or None.
      lower: the measures of which less is better.
      left_out: the numbers of the samples that do not count, in the order of the data set.
    """

    methods: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    cost: Mapping[str, float] | None = None
    lower: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()

    @property
    def samples(self) -> int:
        """How many samples count."""
        return next((np.shape(s)[1] for s in self.scores.values()), 0)

    def mean(self, measure: str) -> np.ndarray:
        """Over the samples that count, for each method; NaN if there is none.

        Raises:
          ArgumentError: there is no such measure.
        """
        scores = self._of(measure)
        return scores.mean(1) if self.samples else np.full(len(self.methods), np.nan)

    def error(self, measure: str) -> np.ndarray:
        """The standard error of the mean, for each method; NaN of a single sample.

        Methods see the same samples, so the difference of two may be far more certain than either:
        take ``scores`` for a paired test.

        Raises:
          ArgumentError: there is no such measure.
        """
        scores = self._of(measure)
        if self.samples < 2:
            return np.full(len(self.methods), np.nan)
        return scores.std(1, ddof=1) / np.sqrt(self.samples)

    def sorted_by(self, measure: str) -> Table:
        """The same table, the best method by this measure first.

        Raises:
          ArgumentError: there is no such measure.
        """
        mean = self.mean(measure)
        order = np.argsort(mean if measure in self.lower else -mean, kind="stable")
        scores = {name: np.asarray(s)[order] for name, s in self.scores.items()}
        methods = tuple(self.methods[i] for i in order)
        return dataclasses.replace(self, methods=methods, scores=scores)

    def markdown(self) -> str:
        """As a table of Markdown, the best mean of each measure in bold."""
        cells = self._cells(bold="**")
        head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in cells)
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{text}\n\n{self._count()}" if self.left_out else text

    def plot(self, measure: str | None = None, axes: Any = None) -> Any:
        """A bar for each method, with its standard error, the best on top.

        Args:
          measure: by default the first.
          axes: of matplotlib, to draw on; a new figure by default.

        Returns:
          The axes.

        Raises:
          ArgumentError: there is no such measure.
          ImportError: matplotlib is not installed.
        """
        measure = next(iter(self.scores), "") if measure is None else measure
        table = self.sorted_by(measure)
        axes = axes_or_new(axes, (5, 0.8 + 0.3 * len(self.methods)))
        error = table.error(measure) if self.samples > 1 else None
        axes.barh(np.arange(len(self.methods)), table.mean(measure), xerr=error, color="0.7")
        axes.set_yticks(np.arange(len(self.methods)), table.methods, fontsize=8)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        better = f"{'lower' if measure in self.lower else 'higher'} is better"
        axes.set_xlabel(f"{measure} ({better}{f', {self._count()}' if self.left_out else ''})")
        return axes

    def __str__(self) -> str:
        return f"{aligned(self._cells())}\n{self._caption()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *rows = self._cells()
        return html_table(head, rows, right=range(1, len(head)), caption=self._caption())

    def __rich__(self) -> Any:
        head, *rows = self._cells()
        right = range(1, len(head))
        return rich_table(head, rows, right=right, caption=self._caption())

    def _caption(self) -> str:
        return f"{self._count()}, mean ± standard error"

    def _count(self) -> str:
        count = how_many(self.samples, self.samples + len(self.left_out))
        return f"{count} (without {listed(self.left_out)})" if self.left_out else count

    def _cells(self, bold: str = "") -> list[list[str]]:
        columns = [["method", *self.methods]]
        for measure in self.scores:
            less = measure in self.lower
            mean, error = self.mean(measure), self.error(measure)
            finite = mean[np.isfinite(mean)]
            best = (finite.min() if less else finite.max()) if finite.size else None
            cells = [
                f"{mark}{m:.4g}{mark}" + (f" ± {e:.1g}" if self.samples > 1 else "")
                for m, e in zip(mean, error, strict=True)
                for mark in (bold if m == best else "",)
            ]
            columns.append([f"{measure} {'↓' if less else '↑'}", *cells])
        if self.cost is not None:
            given = (self.cost.get(name) for name in self.methods)
            columns.append(["gradients", *("" if c is None else f"{c:g}" for c in given)])
        return [list(row) for row in zip(*columns, strict=True)]

    def _of(self, measure: str) -> np.ndarray:
        if measure not in self.scores:
            known = ", ".join(map(repr, self.scores)) or "none at all"
            raise ArgumentError(f"There is no measure {measure!r} in the table, but {known}.")
        return np.asarray(self.scores[measure], np.float64)
