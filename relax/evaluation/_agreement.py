"""Do different methods tell the same? A matrix of how alike their explanations are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from relax._display import html_lines, html_table, rich_lines, rich_table
from relax._errors import ArgumentError
from relax.evaluation._drawing import axes_or_new
from relax.evaluation._features import as_relevance, regions
from relax.evaluation._similarity import measure_of
from relax.evaluation._table import aligned


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["names", "measure"]
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """How alike explanations are; a pytree. Prints as a matrix, `plot` draws it.

    Attributes:
      values: ``(methods, methods)``, the mean over the samples.
      names: of the methods.
      measure: what is measured.
    """

    values: jax.Array
    names: tuple[str, ...]
    measure: str

    def __str__(self) -> str:
        if not self._is_matrix():
            return f"<agreement of {len(self.names)} methods, {jnp.shape(self.values)}>"
        return aligned(self._cells())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self._is_matrix():
            return html_lines(str(self))
        head, *rows = self._cells()
        return html_table(head, rows, right=range(1, len(head)), shades=self._shades())

    def __rich__(self) -> Any:
        if not self._is_matrix():
            return rich_lines(str(self))
        head, *rows = self._cells()
        return rich_table(head, rows, right=range(1, len(head)), shades=self._shades())

    def _is_matrix(self) -> bool:
        return not isinstance(self.values, Tracer) and np.ndim(self.values) == 2

    def _cells(self) -> list[list[str]]:
        rows = [
            [name, *(f"{value:.2f}" for value in row)]
            for name, row in zip(self.names, np.asarray(self.values), strict=True)
        ]
        return [[self.measure, *self.names], *rows]

    def _shades(self) -> list[list[float | None]]:
        return [[None, *map(float, row)] for row in np.asarray(self.values)]

    def plot(self, axes: Any = None) -> Any:
        """Draws the matrix, a number in each square.

        Args:
          axes: of matplotlib, to draw on; a new figure by default.

        Returns:
          The axes.

        Raises:
          ImportError: matplotlib is not installed.
        """
        count = len(self.names)
        axes = axes_or_new(axes, (1.5 + 0.6 * count, 1.2 + 0.6 * count))
        values = np.asarray(self.values, np.float64)
        axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.6 else "black"
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8
            )
        axes.set_xticks(np.arange(count), self.names, rotation=90, fontsize=8)
        axes.set_yticks(np.arange(count), self.names, fontsize=8)
        axes.set_title(self.measure, fontsize=9)
        return axes


def agreement(
    relevances: Mapping[str, Any],
    measure: str | Callable[[Any, Any], Any] = "spearman",
    *,
    groups: Any = None,
) -> Agreement:
    """How alike the explanations of several methods are, two by two, averaged over the samples.

    Args:
      relevances: by name, each ``(samples, ...)`` of the same shape.
      measure: ``"spearman"``, ``"pearson"``, ``"cosine"``, ``"topk"``, ``"sign"``, ``"ssim"``: see
        `spearman`, `pearson`, `cosine`, `top_k`, `same_sign`, `ssim`; or a symmetric function of
        two relevances that returns ``(samples,)``.
      groups: as in `perturbation`; relevance is summed by region first.

    Returns:
      An `Agreement`. Its diagonal is measured too: a relevance of zeros does not agree with itself.

    Raises:
      ArgumentError: there is no method or measure, shapes differ, a relevance is not finite; the
        method is named.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> a = jnp.array([[1.0, 2.0, 3.0]])
      >>> print(relax.evaluation.agreement({"a": a, "b": -a}))
      spearman      a      b
      --------  -----  -----
      a          1.00  -1.00
      b         -1.00   1.00

    Source: Krishna et al. 2022.
    """
    alike = measure_of("agreement", measure)
    if not relevances:
        raise ArgumentError("agreement: there are no relevances.")
    shape = jnp.shape(next(iter(relevances.values())))
    given = []
    for name, relevance in relevances.items():
        if jnp.shape(relevance) != shape:
            raise ArgumentError(
                f"agreement: {name!r} has shape {jnp.shape(relevance)}, and the first {shape}."
            )
        r = as_relevance(f"agreement, {name!r}", relevance)
        given.append(r if groups is None else regions(groups, shape[1:]).sums(r))
    count = len(given)
    upper = {
        (i, j): jnp.mean(alike(given[i], given[j])) for i in range(count) for j in range(i, count)
    }
    values = jnp.stack(
        [jnp.stack([upper[min(i, j), max(i, j)] for j in range(count)]) for i in range(count)]
    )
    named = getattr(measure, "func", measure)  # of a functools.partial, what it is a part of
    title = measure if isinstance(measure, str) else getattr(named, "__name__", "measure")
    return Agreement(values, tuple(relevances), title)
