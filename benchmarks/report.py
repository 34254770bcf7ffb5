"""Tables of results: on the terminal, as Markdown, JSON and a plot."""

from __future__ import annotations

import dataclasses
import json
import platform
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
    """

    name: str
    title: str
    command: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    labels: int = 1
    digits: int | None = 2

    def add(self, *row: Any) -> None:
        """Adds a row, and prints it."""
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
        self._plot(folder / f"{self.name}.png")

    def _plot(self, path: Path) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            print(f"(no {path.name}: matplotlib is not installed)")
            return
        figure = Figure(figsize=(8, 1.2 + 0.3 * len(self.rows)), dpi=120, layout="constrained")
        axes = figure.subplots()
        series = self.columns[self.labels :]
        height = 0.8 / len(series)
        for number, name in enumerate(series):
            values = [row[self.labels + number] or 0.0 for row in self.rows]
            places = [i + number * height for i in range(len(self.rows))]
            axes.barh(places, values, height, label=name)
        names = [", ".join(map(str, row[: self.labels])) for row in self.rows]
        axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], names, fontsize=7)
        axes.invert_yaxis()
        axes.set_title(self.title, fontsize=9)
        axes.legend(fontsize=7)
        figure.savefig(path)


def machine() -> dict[str, str]:
    """Where numbers come from."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "processor": platform.machine(),
        "python": platform.python_version(),
    }
