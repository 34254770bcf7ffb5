"""The sanity check: does an explanation change when what the network has learned is destroyed?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from relax._display import html_lines, html_table, rich_lines, rich_table
from relax._errors import ArgumentError, UnmatchedSelectorError, message
from relax._paths import matches, nearest, path_name
from relax.evaluation._drawing import axes_or_new
from relax.evaluation._features import as_relevance, regions
from relax.evaluation._similarity import measure_of
from relax.evaluation._table import aligned


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["names", "cascade"]
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Randomization:
    """How alike an explanation stays as parameters are randomized; a pytree.

    Attributes:
      values: ``(stages, samples)``, the similarity to the explanation of the network as it was.
      names: of what was randomized at each stage.
      cascade: whether all earlier stages stay randomized.
    """

    values: jax.Array
    names: tuple[str, ...]
    cascade: bool

    def __str__(self) -> str:
        if not self._is_table():
            return f"<randomization of {len(self.names)} stages, {jnp.shape(self.values)}>"
        return aligned(self._cells())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self._is_table():
            return html_lines(str(self))
        head, *rows = self._cells()
        return html_table(head, rows, right=(1, 2, 3))

    def __rich__(self) -> Any:
        if not self._is_table():
            return rich_lines(str(self))
        head, *rows = self._cells()
        return rich_table(head, rows, right=(1, 2, 3))

    def _is_table(self) -> bool:
        return not isinstance(self.values, Tracer) and np.ndim(self.values) == 2

    def _cells(self) -> list[list[str]]:
        rows = [
            [name, f"{row.mean():.3f}", f"{row.min():.3f}", f"{row.max():.3f}"]
            for name, row in zip(self.names, np.asarray(self.values), strict=True)
        ]
        head = "down to" if self.cascade else "randomized"
        return [[head, "similarity", "least", "most"], *rows]

    def plot(self, axes: Any = None, *, label: str | None = None) -> Any:
        """Draws the mean similarity at each stage, from 1, where nothing is randomized.

        Args:
          axes: of matplotlib, to draw on; a new figure by default.
          label: in a legend; by default there is none.

        Returns:
          The axes.

        Raises:
          ImportError: matplotlib is not installed.
        """
        axes = axes_or_new(axes, (1.5 + 0.4 * len(self.names), 3.5))
        mean = np.asarray(self.values, np.float64).mean(1)
        if self.cascade:
            axes.plot(np.arange(len(mean) + 1), [1.0, *mean], marker="o", label=label)
            ticks = ["none", *self.names]
        else:
            axes.plot(np.arange(len(mean)), mean, marker="o", linestyle="", label=label)
            ticks = list(self.names)
        axes.set_xticks(np.arange(len(ticks)), ticks, rotation=90, fontsize=7)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel("similarity")
        if label is not None:
            axes.legend(fontsize=8)
        return axes


def randomization(
    explain: Callable[[Any, Any], Any],
    params: Any,
    x: Any,
    *,
    key: jax.Array,
    order: Sequence[str] | None = None,
    cascade: bool = True,
    draw: Literal["permute", "normal"] | Callable[..., Any] = "permute",
    similarity: str | Callable[[Any, Any], Any] = "spearman",
    groups: Any = None,
) -> Randomization:
    """Randomizes the parameters, stage by stage, and compares the explanation to what it was.

    An explanation that stays the same does not tell what the network has learned. One that changes
    need not be right.

    Args:
      explain: ``(params, x) -> relevance`` of x.
      params: a pytree; its floating leaves are randomized.
      x: the samples are the first axis of its relevance.
      key: of jax.random; each leaf is drawn once, the same in a cascade and by itself.
      order: globs of paths (``"head/kernel"``, ``"Dense_*"``) or of modules (``"head"``), each a
        stage with all leaves it matches, the first first; what none matches is left. By default a
        stage for each leaf, the last leaf first. That is from the output down only if the leaves
        stand in order of evaluation; `relax.layers` tells the order:
        ``[row.weight_path for row in plan if row.weight_path][::-1]``.
      cascade: whether what was randomized stays so, or one stage is randomized at a time.
      draw: ``"permute"`` shuffles the entries of a leaf (a constant leaf stays as it is);
        ``"normal"`` draws from a normal distribution with its mean and standard deviation; or
        ``(key, leaf) -> leaf``.
      similarity: as ``measure`` of `agreement`.
      groups: as in `perturbation`; relevance is summed by region first.

    Returns:
      A `Randomization`. Under jit it is one program, with a loop over the stages.

    Raises:
      UnmatchedSelectorError: a glob matches no leaf that an earlier one has not taken.
      ArgumentError: there is nothing to randomize, no such ``draw`` or ``similarity``; a relevance
        is not finite.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda p, x: jax.nn.relu(x @ p["hidden"]["w"]) @ p["head"]["w"]
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> normal = lambda key, *shape: jax.random.normal(key, shape)
      >>> p = {"head": {"w": normal(keys[0], 9, 1)}, "hidden": {"w": normal(keys[1], 6, 9)}}
      >>> x, order = normal(keys[2], 8, 6), ["head", "hidden"]
      >>> found = relax.evaluation.randomization(relax.lrp(f), p, x, key=keys[0], order=order)
      >>> found.names, found.values.shape
      (('head', 'hidden'), (2, 8))

    Source: Adebayo et al. 2018, section 3; of LRP: Sixt et al. 2020.
    """
    alike = measure_of("randomization", similarity)
    redraw = _DRAWS.get(draw) if isinstance(draw, str) else draw
    if not callable(redraw):
        raise ArgumentError(
            f'randomization(draw={draw!r}): expected "permute", "normal" or (key, leaf) -> leaf.'
        )
    with_paths, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = [leaf for _, leaf in with_paths]
    names, stages = _stages([path_name(path) for path, _ in with_paths], leaves, order)

    fresh = {}
    for i in stages:
        fresh[i] = jnp.asarray(redraw(jax.random.fold_in(key, i), leaves[i]))
        if fresh[i].shape != jnp.shape(leaves[i]):
            raise ArgumentError(
                f"randomization: `draw` made shape {fresh[i].shape} of {jnp.shape(leaves[i])}."
            )
        fresh[i] = fresh[i].astype(jnp.asarray(leaves[i]).dtype)

    pooled = lambda r: r if groups is None else regions(groups, r.shape[1:]).sums(r)
    before = as_relevance("randomization", explain(params, x))

    def stage(number: jax.Array) -> jax.Array:
        drawn = lambda own: own <= number if cascade else own == number
        changed = [
            jnp.where(drawn(stages[i]), fresh[i], leaf) if i in stages else leaf
            for i, leaf in enumerate(leaves)
        ]
        after = as_relevance(
            "randomization", explain(jax.tree.unflatten(tree, changed), x), before.shape
        )
        return alike(pooled(before), pooled(after))

    values = lax.map(stage, jnp.arange(len(names)))
    if not isinstance(values, Tracer) and not np.isfinite(np.asarray(values)).all():
        first = int(np.flatnonzero(~np.isfinite(np.asarray(values)).all(1))[0])
        raise ArgumentError(
            f"randomization: with {names[first]!r} randomized, the similarity is not finite.\n"
            "  Most likely the relevance is not: its denominators may vanish."
        )
    return Randomization(values, names, bool(cascade))


def _stages(
    paths: list[str], leaves: list[Any], order: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[int, int]]:
    """The names of the stages, and the stage of each leaf that has one."""
    floating = [
        i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    if not floating or (order is not None and not len(order)):
        raise ArgumentError(
            "randomization: there is nothing to randomize: "
            + ("`order` is empty." if floating else "no leaf of the parameters is floating.")
        )
    if order is None:
        last_first = floating[::-1]
        return tuple(paths[i] for i in last_first), {i: s for s, i in enumerate(last_first)}
    if isinstance(order, str):
        raise ArgumentError(f"randomization(order={order!r}): expected a list of globs.")
    stages: dict[int, int] = {}
    for number, pattern in enumerate(order):
        found = [
            i
            for i in floating
            if i not in stages and matches(pattern, (paths[i], paths[i].rpartition("/")[0]))
        ]
        if not found:
            left = [paths[i] for i in floating if i not in stages]
            raise UnmatchedSelectorError(
                message(
                    f"randomization: {pattern!r} matches no parameter that is left",
                    remedy=f"The nearest: {', '.join(nearest(pattern, left)) or 'none is left'}.",
                )
            )
        stages.update(dict.fromkeys(found, number))
    return tuple(order), stages


def _permuted(key: jax.Array, leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)


def _normal(key: jax.Array, leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.mean() + leaf.std() * jax.random.normal(key, leaf.shape, leaf.dtype)


_DRAWS: dict[str, Callable[..., jax.Array]] = {"permute": _permuted, "normal": _normal}
