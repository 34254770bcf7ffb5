"""A perturbation curve: the explained value as more and more of the input is replaced."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from relax._display import html_curve, html_lines, rich_lines, sparkline
from relax.evaluation._drawing import axes_or_new
from relax.evaluation._finite import how_many


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["fractions", "values"],
    meta_fields=["order"],
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """The explained value of each sample as its regions are replaced, or put back; a pytree.

    Under vmap both arrays have more axes in front. A sample that is not finite keeps its values,
    but does not count: `mean`, the printed line and the plot leave it out; line and plot say so.

    Attributes:
      fractions: ``(steps + 1,)``, of the regions that have been replaced, from 0 on; of an
        insertion, that have been put back.
      values: ``(samples, steps + 1)``, in the units of the output.
      order: ``"morf"``, ``"lerf"``, ``"random"`` or ``"insertion"``.
    """

    fractions: jax.Array
    values: jax.Array
    order: str = "morf"

    def aopc(self) -> jax.Array:
        r"""Area over the perturbation curve of each sample, ``(samples,)``.

        $$\frac{1}{L + 1} \sum_{k=0}^{L} f(x^{(0)}) - f(x^{(k)})$$

        Source: Samek et al. 2017, section III.
        """
        return (self.values[..., :1] - self.values).mean(-1)

    def area(self) -> jax.Array:
        """Area under the curve of each sample by trapezoids over the fractions, ``(samples,)``."""
        width = jnp.diff(self.fractions, axis=-1)[..., None, :]
        middle = (self.values[..., 1:] + self.values[..., :-1]) / 2
        return (width * middle).sum(-1)

    def finite(self) -> jax.Array:
        """Which samples have only finite values, ``(samples,)``."""
        return jnp.isfinite(self.values).all(-1)

    def mean(self) -> jax.Array:
        """The mean curve of the samples that are finite, ``(steps + 1,)``; NaN if none is."""
        return jnp.mean(self.values, -2, where=self.finite()[..., None])

    def __repr__(self) -> str:
        if isinstance(self.values, Tracer) or np.ndim(self.values) != 2:
            return f"Curve({self.order}: values {jnp.shape(self.values)})"
        samples, points = self.values.shape
        mean, valid = np.asarray(self.mean()), self.finite()
        count = how_many(int(valid.sum()), samples)
        return (
            f"Curve({self.order}: {count}, {points - 1} steps to "
            f"{float(self.fractions[-1]):.3g}; value {mean[0]:.4g} to {mean[-1]:.4g}, "
            f"area {float(jnp.mean(self.area(), where=valid)):.4g})"
        )

    def _repr_html_(self) -> str:
        if isinstance(self.values, Tracer) or np.ndim(self.values) != 2:
            return html_lines(repr(self))
        values = np.asarray(self.values, np.float64)[np.asarray(self.finite())]
        error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        return html_curve(self.fractions, self.mean(), error, label=repr(self))

    def __rich__(self) -> Any:
        if isinstance(self.values, Tracer) or np.ndim(self.values) != 2:
            return rich_lines(repr(self))
        return rich_lines(f"{sparkline(self.mean())}  {self!r}")

    def plot(self, axes: Any = None, *, label: str | None = None) -> Any:
        """Draws the mean over the finite samples, and a band of one standard error.

        Args:
          axes: of matplotlib, to draw on; a new figure by default.
          label: in the legend; by default the order. How many samples count is added to it, if
            that is not all.

        Returns:
          The axes.

        Raises:
          ImportError: matplotlib is not installed.
        """
        axes = axes_or_new(axes, (5, 3.5))
        valid = np.asarray(self.finite())
        values = np.asarray(self.values, np.float64)[valid]
        x, mean = np.asarray(self.fractions, np.float64), np.asarray(self.mean(), np.float64)
        label = self.order if label is None else label
        if len(values) < len(valid):
            label = f"{label} ({how_many(len(values), len(valid))})"
        (line,) = axes.plot(x, mean, label=label)
        if len(values) > 1:
            error = values.std(0, ddof=1) / np.sqrt(len(values))
            band = {"alpha": 0.2, "linewidth": 0, "color": line.get_color()}
            axes.fill_between(x, mean - error, mean + error, **band)
        put_back = self.order == "insertion"
        axes.set_xlabel("put back" if put_back else "replaced")
        axes.set_ylabel("explained value")
        axes.legend(fontsize=8)
        return axes
