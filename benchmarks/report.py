"""Tables of results: on the terminal, as Markdown, JSON and a plot."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass
class Table:
    """One table.

    Attributes:
        name: of its files.
        title: what it shows; ``command``: what made it.
        columns: names; the first one or two are labels, the others hold numbers.
        rows: one value for each column; None is shown as a dash.
        labels: how many columns are labels.
        digits: after the point, or None for three significant ones.
        plot: the columns that are drawn; by default all numbers.
        axis: a column for the horizontal axis: lines are drawn, one for each label; else bars.
    """

    name: str
    title: str
    command: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    labels: int = 1
    digits: int | None = 2
    plot: tuple[str, ...] | None = None
    axis: str | None = None

    def add(self, *row: Any) -> None:
        """Adds a row, and prints it."""
        progress()
        if not self.rows:
            print(f"\n{self.title}\n{self._line(self.columns)}")
        self.rows.append(row)
        print(self._line(self._texts(row)), flush=True)

    def _line(self, texts: Sequence[str]) -> str:
        widths = [28 if i < self.labels else 13 for i in range(len(self.columns))]
        cells = [
            text.ljust(width) if i < self.labels else text.rjust(width)
            for i, (text, width) in enumerate(zip(texts, widths, strict=True))
        ]
        return "".join(cells)

    def _texts(self, row: Sequence[Any]) -> list[str]:
        return [self._text(value) for value in row]

    def _text(self, value: Any) -> str:
        if value is None:
            return "-"
        if not isinstance(value, float):
            return str(value)
        return f"{value:.3g}" if self.digits is None else f"{value:.{self.digits}f}"

    def markdown(self) -> str:
        """The table with the command that made it."""
        marks = ["---" if i < self.labels else "---:" for i in range(len(self.columns))]
        lines = [self.columns, marks, *(self._texts(row) for row in self.rows)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.title} (`{self.command}`):\n\n{body}\n"

    def save(self, folder: Path = RESULTS) -> None:
        """Writes JSON and Markdown, and, if there is matplotlib, a plot."""
        folder.mkdir(parents=True, exist_ok=True)
        record = dataclasses.asdict(self) | {"machine": machine()}
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.markdown())
        try:
            self.figure().savefig(folder / f"{self.name}.png")
        except ImportError:
            print(f"(no {self.name}.png: matplotlib is not installed)")

    def figure(self) -> Any:
        """A figure of matplotlib: lines along ``axis``, or bars."""
        numbers = [name for name in self.columns[self.labels :] if name != self.axis]
        series = list(self.plot or numbers)
        return self._bars(series) if self.axis is None else self._lines(series, self.axis)

    def _bars(self, series: Sequence[str]) -> Any:
        """A group of bars for each row that has any of the numbers."""
        from matplotlib.figure import Figure

        values = {name: self._column(name) for name in series}
        shown = [i for i in range(len(self.rows)) if any(v[i] is not None for v in values.values())]
        figure = Figure(figsize=(8, 1.2 + 0.3 * len(shown)), dpi=120, layout="constrained")
        axes = figure.subplots()
        height = 0.8 / len(series)
        for number, name in enumerate(series):
            places = [place + number * height for place in range(len(shown))]
            axes.barh(places, [values[name][i] or 0.0 for i in shown], height, label=name)
        names = [", ".join(map(str, self.rows[i][: self.labels])) for i in shown]
        axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], names, fontsize=7)
        axes.set_ylim(len(shown) - 0.1, -0.5)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(self.title, fontsize=9)
        axes.legend(fontsize=7)
        return figure

    def _lines(self, series: Sequence[str], axis: str) -> Any:
        """A panel for each of the columns, and in it a line for each label."""
        from matplotlib.figure import Figure

        others = [i for i in range(self.labels) if self.columns[i] != axis]
        names = [", ".join(str(row[i]) for i in others) for row in self.rows]
        along = self._column(axis)
        figure = Figure(figsize=(4 * len(series), 4), dpi=120, layout="constrained")
        panels = figure.subplots(1, len(series), squeeze=False)[0]
        for panel, column in zip(panels, series, strict=True):
            values = self._column(column)
            for name in dict.fromkeys(names):
                points = [i for i, other in enumerate(names) if other == name]
                x, y = [along[i] for i in points], [values[i] for i in points]
                y = [float("nan") if value is None else value for value in y]
                panel.plot(x, y, marker="o", markersize=3, label=name)
            if _doubles(along):
                panel.set_xscale("log", base=2)
            ticks = sorted(set(along))
            panel.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
            panel.set_xlabel(axis, fontsize=8)
            panel.set_title(column, fontsize=8)
            panel.set_ylim(bottom=0)
            panel.tick_params(labelsize=7)
        figure.suptitle(self.title, fontsize=9)
        handles, texts = panels[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=3, fontsize=7)
        return figure

    def _column(self, name: str) -> list[Any]:
        place = self.columns.index(name)
        return [row[place] for row in self.rows]


def progress(what: str = "") -> None:
    """Says on stderr what is worked on; on a terminal the next line takes its place."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)
    elif what:
        print(what, file=sys.stderr, flush=True)


def _doubles(values: Sequence[Any]) -> bool:
    """Whether all are the smallest, a positive integer, times a power of two."""
    smallest = min(values)
    if smallest <= 0 or any(not isinstance(v, int) or v % smallest for v in values):
        return False
    return all((v // smallest).bit_count() == 1 for v in values)


def machine() -> dict[str, str]:
    """Where numbers come from."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "processor": platform.machine(),
        "python": platform.python_version(),
    }
