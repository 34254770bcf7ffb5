"""Attribution graphs: how relevance flows between the concepts of several layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from relax import _target
from relax._display import html_lines, html_table, rich_lines, rich_table
from relax._errors import ArgumentError
from relax._numerics import is_count
from relax._program import Program
from relax._run import Run
from relax.concepts._places import Place, find_places
from relax.rules import Epsilon
from relax.sweeps import sweep

_COLUMNS = ("layer", "concept", "relevance", "hands on to")


class Edge(NamedTuple):
    """Relevance that one concept of a layer hands to one of a layer below it.

    Attributes:
      upper, lower: the path of the layer and the concept, a number or one for each of its axes.
      relevance: summed over positions and samples.
    """

    upper: tuple[str, Any]
    lower: tuple[str, Any]
    relevance: Any


class Flow:
    """An attribution graph: the strongest concepts of each layer and what flows between them.

    A pytree; prints as a table, in a notebook as HTML, by rich as its table; `plot` draws it.

    Attributes:
      layers: their paths, from the output down.
      concepts: for each layer the strongest concepts, the strongest first, ``(width,)``: their
        number among all of the layer.
      relevance: of these, ``(width,)``, summed over positions and samples.
      total: of all concepts of the layer.
      edges: for each layer but the last, ``(width, width of the layer below)``: what each of its
        concepts hands to each of those below.
    """

    def __init__(
        self,
        places: tuple[tuple[str, tuple[int, ...]], ...],
        concepts: Sequence[Any],
        relevance: Sequence[Any],
        total: Sequence[Any],
        edges: Sequence[Any],
    ):
        self._places = places
        self.concepts, self.relevance = tuple(concepts), tuple(relevance)
        self.total, self.edges = tuple(total), tuple(edges)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(path for path, _ in self._places)

    def name(self, layer: int, concept: Any) -> Any:
        """A concept as a number, or as one for each of the axes of the layer's concepts."""
        sizes = self._places[layer][1]
        index = tuple(int(i) for i in np.unravel_index(int(concept), sizes))
        return index[0] if len(index) == 1 else index

    def __iter__(self) -> Iterator[Edge]:
        """The edges, layer by layer from the output down."""
        for i, matrix in enumerate(self.edges):
            for upper, row in zip(self.concepts[i], matrix, strict=True):
                for lower, relevance in zip(self.concepts[i + 1], row, strict=True):
                    yield Edge(
                        (self.layers[i], self.name(i, upper)),
                        (self.layers[i + 1], self.name(i + 1, lower)),
                        relevance,
                    )

    def _is_one(self) -> bool:
        """Whether it is one graph, in numbers; under vmap it is one for each sample."""
        leaves = jax.tree.leaves(self)
        return np.ndim(self.total[0]) == 0 and not any(isinstance(x, Tracer) for x in leaves)

    def __str__(self) -> str:
        if not self._is_one():
            what = "graphs" if np.ndim(self.total[0]) else "graph, traced"
            return f"<attribution {what}: {', '.join(self.layers)}>"
        lines = []
        for i, path in enumerate(self.layers):
            lines.append(f"{path}: {float(self.total[i]):.4g}")
            for row, (concept, relevance) in enumerate(
                zip(self.concepts[i], self.relevance[i], strict=True)
            ):
                handed = f"  to {to}" if (to := self._handed(i, row)) else ""
                lines.append(f"  {self.name(i, concept)!s:>6} {float(relevance):+10.4g}{handed}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self._is_one():
            return html_lines(str(self))
        rows, shades = self._rows()
        return html_table(_COLUMNS, rows, right=(1, 2), shades=shades)

    def __rich__(self) -> Any:
        if not self._is_one():
            return rich_lines(str(self))
        rows, shades = self._rows()
        return rich_table(_COLUMNS, rows, right=(1, 2), shades=shades)

    def _rows(self) -> tuple[list[list[str]], list[list[float | None]]]:
        """A row for each concept, and how strong it is among those of its layer."""
        rows, shades = [], []
        for i, path in enumerate(self.layers):
            largest = float(np.abs(np.asarray(self.relevance[i])).max()) or 1.0
            for row, concept in enumerate(self.concepts[i]):
                relevance = float(self.relevance[i][row])
                layer = "" if row else f"{path}: {float(self.total[i]):.4g}"
                name = str(self.name(i, concept))
                rows.append([layer, name, f"{relevance:+.4g}", self._handed(i, row)])
                shades.append([None, None, relevance / largest, None])
        return rows, shades

    def _handed(self, layer: int, row: int) -> str:
        """What a concept hands to each of those below, as text."""
        if layer + 1 == len(self.layers):
            return ""
        parts = zip(self.concepts[layer + 1], self.edges[layer][row], strict=True)
        return ", ".join(f"{self.name(layer + 1, c)} {float(r):+.3g}" for c, r in parts)

    def plot(self, axes: Any = None) -> Any:
        """Draws it, the output at the top: discs for concepts, lines for what flows.

        The area of a disc and the width of a line are magnitudes, by the largest of that layer or
        between these two layers; red is positive, blue negative.

        Args:
          axes: of matplotlib, to draw on; a new figure by default.

        Returns:
          The axes. Needs matplotlib.
        """
        if axes is None:
            import matplotlib.pyplot as plt

            width = max(len(c) for c in self.concepts)
            _, axes = plt.subplots(
                figsize=(1.5 + 1.1 * width, 0.6 + 1.1 * len(self.layers)), layout="constrained"
            )
        color = lambda r: "#b2182b" if r > 0 else "#2166ac"
        at = lambda layer, row: (row - (len(self.concepts[layer]) - 1) / 2, -layer)
        for i, matrix in enumerate(self.edges):
            strongest = np.abs(np.asarray(matrix)).max() or 1.0
            for upper, row in enumerate(np.asarray(matrix, float)):
                for lower, r in enumerate(row):
                    (x0, y0), (x1, y1) = at(i, upper), at(i + 1, lower)
                    share = abs(r) / strongest
                    style = {"linewidth": 6 * share, "alpha": min(1.0, 0.15 + 0.6 * share)}
                    axes.plot([x0, x1], [y0, y1], color=color(r), zorder=1, **style)
        for i, concepts in enumerate(self.concepts):
            largest = np.abs(np.asarray(self.relevance[i])).max() or 1.0
            for row, r in enumerate(np.asarray(self.relevance[i], float)):
                x, y = at(i, row)
                area = 120 + 900 * abs(r) / largest
                axes.scatter(x, y, s=area, color="white", edgecolors=color(r), zorder=2)
                name = str(self.name(i, concepts[row]))
                axes.annotate(name, (x, y), ha="center", va="center", fontsize=8, zorder=3)
        widest = max(len(c) for c in self.concepts)
        axes.set_yticks([-i for i in range(len(self.layers))], self.layers)
        axes.set_ylim(-len(self.layers) + 0.4, 0.6)
        axes.set_xlim(-widest / 2, widest / 2)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return axes


jax.tree_util.register_pytree_node(
    Flow,
    lambda f: ((f.concepts, f.relevance, f.total, f.edges), f._places),
    lambda places, children: Flow(places, *children),
)


def flow(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),
    *,
    at: Any,
    width: int = 4,
    axis: int | Sequence[int] = -1,
    batch_size: int | None = None,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
) -> Callable[..., Flow]:
    r"""Attribution graph: what the strongest concepts of a layer hand to those of the layer below.

    $$R_{c \to d} = \sum_i R^{(c)}_{di}$$

    where $R^{(c)}$ is the relevance at the lower layer through concept c of the upper one alone.
    Summed over all c it is the relevance of d, less what goes round the upper layer.

    Args:
      fun, rules, argnums, target: as in `lrp`.
      at: globs of two or more layers, or names of values, in any order.
      width: how many concepts are kept of each layer, by the magnitude of their relevance.
      axis, batch_size: as in `crp`.

    Returns:
      A function of the arguments of ``fun`` that returns a `Flow`.

    Raises:
      ArgumentError: ``at`` names fewer than two places; there is no such axis or width.
      UnmatchedSelectorError: ``at`` names nothing.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda p, x: (x @ p["first"]["w"]) @ p["second"]["w"]
      >>> first, second = jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[2.0], [1.0]])
      >>> p = {"first": {"w": first}, "second": {"w": second}}
      >>> print(relax.concepts.flow(f, at=["first", "second"])(p, jnp.array([1.0, 4.0])))
      second: 14
             0        +14  to 0 +10, 1 +4
      first: 14
             0        +10
             1         +4

    Source: Achtibat et al. 2023, section "Attribution graphs".
    """
    if not is_count(width):
        raise ArgumentError(f"flow(width={width!r}): expected a positive integer.")

    @functools.wraps(fun, updated=())
    def explained(*args: Any, **kwargs: Any) -> Flow:
        given = _target.gives_relevance(target)
        program = Program(fun, rules, argnums, at, False, args, kwargs, given)
        places = find_places(program, axis)[::-1]
        if len(places) < 2:
            raise ArgumentError(
                f"flow(at={at!r}): names only {[place.path for place in places]}, and relevance "
                "flows between two layers or more."
            )
        run = Run(program, restarts=True)
        _, latent = run.relprop(_target.seeds(target, run.value))
        whole = [place.per_concept(latent[place.path]).reshape(-1) for place in places]
        concepts = [
            jax.lax.top_k(jnp.abs(r), min(width, place.count))[1]
            for r, place in zip(whole, places, strict=True)
        ]

        def handed(upper: Place, lower: Place) -> Callable[[jax.Array], jax.Array]:
            def through(concept: jax.Array) -> jax.Array:
                _, found = run.onward(upper.path, upper.mask(concept))
                return lower.per_concept(found[lower.path]).reshape(-1)

            return through

        edges = [
            sweep(handed(upper, lower), batch_size=batch_size)(chosen)[:, below]
            for upper, lower, chosen, below in zip(
                places, places[1:], concepts, concepts[1:], strict=False
            )
        ]
        return Flow(
            tuple((place.path, place.sizes) for place in places),
            concepts,
            [r[chosen] for r, chosen in zip(whole, concepts, strict=True)],
            [r.sum() for r in whole],
            edges,
        )

    return explained
