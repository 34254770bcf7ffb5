"""What a concept stands for: pictures in which it is strongest, cut to where it is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from relax import _target
from relax._errors import ArgumentError
from relax._program import Program
from relax._progress import progress
from relax._run import Run
from relax.concepts._maximization import Top
from relax.concepts._places import find_places, flat_concepts, the_place


class Reference(NamedTuple):
    """One picture for one concept.

    Attributes:
      concept: its number among all of the layer.
      sample: the number of the picture in the data set.
      value: what was maximized.
      picture: as it stands in the data set, its channels last: ``(height, width[, channels])``.
      heatmap: relevance through the concept alone, ``(height, width)``.
      box: rows and columns in which it is seen: top, bottom, left, right.
    """

    concept: int
    sample: int
    value: float
    picture: np.ndarray
    heatmap: np.ndarray
    box: tuple[int, int, int, int]


def references(
    fun: Callable[..., Any],
    rules: Any,
    top: Top,
    data: Any,
    *,
    at: Any,
    concepts: Any,
    axis: int | Sequence[int] = -1,
    batch_axis: int = 0,
    target: Any = None,
    by: Literal["relevance", "activation"] = "relevance",
    channel_axis: int = -1,
    unit: bool = False,
    share: float = 0.9,
    show: bool | None = None,
) -> Callable[..., list[list[Reference]]]:
    """The strongest pictures of each concept, each with a heatmap of the concept and a crop.

    Args:
      fun, rules, target: as in `lrp`; ``fun`` takes a batch of pictures as its last argument.
      top: of the layer, from `maximization`.
      data: ``data[i]`` is picture i as ``fun`` takes it, without the axis of the batch.
      at, concepts, axis: as in `crp`; ``batch_axis``: as in `maximization`.
      by: as in the search. By activation the heatmap explains the activation of the concept itself,
        whatever the output; by relevance its part in ``target``.
      channel_axis: of a picture that has one; the heatmap is summed over it.
      unit: whether relevance passes only where the concept is strongest; then the heatmap lies in
        the receptive field of that unit.
      share: how much of the heatmap's magnitude the crop holds, along either axis.
      show: a progress bar over the concepts; by default, if stderr is a terminal and rich is
        installed.

    Returns:
      A function of the arguments of ``fun`` before the last. It returns for each concept a list of
      `Reference`, the strongest first.

    Raises:
      ArgumentError: the samples are no pictures; ``share`` is no part of 1; see `crp`.

    Source: Achtibat et al. 2023, section "Relevance maximization".
    """
    if not isinstance(top, Top):
        raise ArgumentError(
            "references: `top` is one layer's of a search, such as state.top[path]."
        )
    if by not in ("relevance", "activation"):
        raise ArgumentError(f'references(by={by!r}): expected "relevance" or "activation".')
    if not 0 < share <= 1:
        raise ArgumentError(f"references(share={share!r}): expected a number above 0, up to 1.")

    def found(*leading: Any) -> list[list[Reference]]:
        first = int(np.max(np.asarray(top.samples), initial=-1))
        if first < 0:
            raise ArgumentError("references: `top` holds no sample yet.")
        example = jnp.asarray(data[first])[None]
        if example.ndim not in (3, 4):
            raise ArgumentError(
                f"references: data[{first}] has shape {example.shape[1:]}, and a picture has "
                "(height, width) or (height, width, channels)."
            )
        program = Program(fun, rules, -1, at, False, (*leading, example), {})
        place = the_place(program, at, axis, batch_axis)
        if top.samples.shape[:-1] != place.sizes:
            raise ArgumentError(
                f"references: `top` has concepts {top.samples.shape[:-1]}, and `{place.path}` has "
                f"{place.sizes} along axis {axis}."
            )
        given = _target.gives_relevance(target)

        @jax.jit
        def explain(leading: Any, batch: Any, concept: Any, positions: Any) -> jax.Array:
            program = Program(fun, rules, -1, at, False, (*leading, batch), {}, given)
            (here,) = find_places(program, axis, batch_axis)
            run = Run(program, restarts=True)
            if by == "activation":
                run.take_values_as_relevance()
            else:
                run.relprop(_target.seeds(target, run.value))
            mask = here.unit(concept, positions) if unit else here.mask(concept)
            relevance, _ = run.onward(here.path, mask)
            return relevance if relevance.ndim == 3 else relevance.sum(_behind(channel_axis))

        last = lambda x: x if x.ndim == 2 else np.moveaxis(x, channel_axis, -1)
        rows = []
        chosen = np.asarray(flat_concepts(place, concepts))
        for concept in progress(chosen, "explaining concepts", show=show):
            values, samples, positions = (
                np.asarray(a).reshape(place.count, -1)[concept] for a in top
            )
            there = samples >= 0
            if not there.any():
                rows.append([])
                continue
            batch = np.stack([np.asarray(data[int(i)]) for i in samples[there]])
            heatmaps = np.asarray(explain(leading, batch, concept, positions[there]))
            each = zip(samples[there], values[there], batch, heatmaps, strict=True)
            rows.append(
                [
                    Reference(
                        int(concept), int(i), float(value), last(x), r, bounding_box(r, share)
                    )
                    for i, value, x, r in each
                ]
            )
        return rows

    return found


def _behind(axis: int) -> int:
    """An axis of a picture as one of a batch of them."""
    return axis if axis < 0 else axis + 1


def bounding_box(heatmap: np.ndarray, share: float) -> tuple[int, int, int, int]:
    """A square, as far as there is room, that holds a share of the magnitude along either axis."""
    magnitude = np.abs(np.asarray(heatmap, np.float64))
    if not magnitude.any():
        return 0, heatmap.shape[0], 0, heatmap.shape[1]
    sides = []
    for axis in (1, 0):
        line = np.cumsum(magnitude.sum(axis)) / magnitude.sum()
        low = int(np.searchsorted(line, (1 - share) / 2, side="right"))
        sides.append((low, int(np.searchsorted(line, (1 + share) / 2 - 1e-12)) + 1))
    length = max(high - low for low, high in sides)
    box = []
    for (low, high), size in zip(sides, heatmap.shape, strict=True):
        side = min(length, size)
        start = min(max((low + high - side) // 2, 0), size - side)
        box += [start, start + side]
    return box[0], box[1], box[2], box[3]


def gallery(
    rows: Sequence[Sequence[Reference]],
    *,
    picture: Callable[[np.ndarray], np.ndarray] | None = None,
    names: Sequence[str] | None = None,
) -> Any:
    """Draws references: for each concept its pictures, cropped, and below them what it sees there.

    Args:
      rows: of `references`.
      picture: makes a sample a picture that matplotlib can show, ``(height, width, 3)`` between 0
        and 1, or ``(height, width)``; by default the sample's own range is stretched.
      names: of the rows; by default the numbers of the concepts.

    Returns:
      A figure of matplotlib, which is needed.

    Raises:
      ArgumentError: there is nothing to draw, or not a name for each row.
    """
    if not any(rows):
        raise ArgumentError("gallery: there are no references.")
    if names is not None and len(names) != len(rows):
        raise ArgumentError(f"gallery: {len(names)} names for {len(rows)} rows.")
    import matplotlib.pyplot as plt

    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(
        2 * len(rows),
        columns,
        figsize=(1.3 * columns + 0.5, 2.7 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, row in enumerate(rows):
        for column, reference in enumerate(row):
            above, below = axes[2 * number][column], axes[2 * number + 1][column]
            top, bottom, left, right = reference.box
            shown = (picture or _stretched)(reference.picture)[top:bottom, left:right]
            relevance = reference.heatmap[top:bottom, left:right]
            limit = np.abs(relevance).max() or 1.0
            above.imshow(shown, cmap="gray")
            below.imshow(relevance, cmap="RdBu_r", vmin=-limit, vmax=limit)
            above.set_title(f"#{reference.sample}", fontsize=7)
        if row:
            name = names[number] if names else f"concept {row[0].concept}"
            axes[2 * number][0].text(
                -0.15,
                0,
                name,
                rotation=90,
                ha="right",
                va="center",
                fontsize=9,
                transform=axes[2 * number][0].transAxes,
            )
    return figure


def _stretched(x: np.ndarray) -> np.ndarray:
    low, high = float(x.min()), float(x.max())
    shown = (np.asarray(x, np.float64) - low) / ((high - low) or 1.0)
    return shown[..., 0] if shown.ndim == 3 and shown.shape[-1] == 1 else shown
