"""Where concepts live: a layer or a named value, and which of its axes tell them apart."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from relax._errors import ArgumentError
from relax._program import Program


@dataclasses.dataclass(frozen=True)
class Place:
    """One place in a function.

    Attributes:
      path: its name, as in the result of ``at=``.
      shape: of the value there; the rounds of scans stand in front.
      axes: which of them tell the concepts apart: all rounds, and those that were asked for.
      batch: the axis of the samples.
      rounds: how many scans it stands in.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    batch: int
    rounds: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many concepts there are, by axis."""
        return tuple(self.shape[axis] for axis in self.axes)

    @property
    def count(self) -> int:
        return math.prod(self.sizes)

    def mask(self, concept: Any) -> jax.Array:
        """1 at one concept, else 0; ``concept``: its place in all, flat."""
        return self._hits(self._index(concept))

    def unit(self, concept: Any, positions: Any) -> jax.Array:
        """1 at one concept at one position, in each sample at another."""
        rest = self._rest(keep_batch=True)
        index = jnp.unravel_index(positions, tuple(self.shape[axis] for axis in rest))
        return self._hits(self._index(concept) | dict(zip(rest, index, strict=True)))

    def _index(self, concept: Any) -> dict[int, Any]:
        return dict(zip(self.axes, jnp.unravel_index(concept, self.sizes), strict=True))

    def _hits(self, index: dict[int, Any]) -> jax.Array:
        """1 where the axes have these indices, a number or one for each sample."""
        mask = jnp.ones((1,) * len(self.shape))
        for axis, chosen in index.items():
            chosen = jnp.asarray(chosen)
            line, each = [1] * len(self.shape), [1] * len(self.shape)
            line[axis] = self.shape[axis]
            each[self.batch] = chosen.size
            mask = mask * (jnp.arange(self.shape[axis]).reshape(line) == chosen.reshape(each))
        return mask

    def _rest(self, keep_batch: bool) -> tuple[int, ...]:
        """Axes of neither concepts nor, perhaps, samples."""
        gone = {*self.axes, *((self.batch,) if keep_batch else ())}
        return tuple(axis for axis in range(len(self.shape)) if axis not in gone)

    def per_concept(self, x: jax.Array) -> jax.Array:
        """Summed over all other axes: of shape ``sizes``."""
        return x.sum(self._rest(keep_batch=False))

    def per_sample(self, x: jax.Array) -> jax.Array:
        """Rearranged: samples, concepts, and everything else."""
        rest = self._rest(keep_batch=True)
        x = jnp.transpose(x, (self.batch, *self.axes, *rest))
        return x.reshape(x.shape[0], self.count, -1)


def find_places(program: Program, axis: Any, batch_axis: int = 0) -> list[Place]:
    """The places that ``at=`` of a program names, in order of evaluation.

    Raises:
      ArgumentError: a value does not have these axes.
    """
    shapes, places = program.shapes(), []
    wanted = _integers("axis", axis)
    for path in program.in_order():
        shape, rounds = tuple(shapes[path].shape), program.rounds_of(path)
        own = len(shape) - rounds
        for each in (*wanted, batch_axis):
            if not -own <= each < own:
                raise ArgumentError(
                    f"axis {each} of `{path}`: its value has shape {shape[rounds:]}."
                )
        axes = tuple(rounds + each % own for each in wanted)
        batch = rounds + batch_axis % own
        if len(set(axes)) < len(axes):
            raise ArgumentError(f"axis={axis}: one axis of `{path}` is named twice.")
        places.append(Place(path, shape, (*range(rounds), *axes), batch, rounds))
    return places


def _integers(name: str, given: Any) -> tuple[int, ...]:
    """One integer or several."""
    many = given if isinstance(given, (tuple, list)) else (given,)
    try:
        return tuple(operator.index(each) for each in many)
    except TypeError:
        raise ArgumentError(f"{name}={given!r}: expected an integer, or several.") from None


def the_place(program: Program, at: Any, axis: Any, batch_axis: int = 0) -> Place:
    """The one place that ``at`` names.

    Raises:
      ArgumentError: it names several, or the value does not have that axis.
    """
    if len(program.latent) != 1:
        found = ", ".join(repr(path) for path in program.latent) or "none"
        first = next(iter(program.latent), "")
        hint = f' The first alone is "{first}#0".' if f"{first}#1" in program.latent else ""
        raise ArgumentError(f"at={at!r} should name one layer or value, and names {found}.{hint}")
    (place,) = find_places(program, axis, batch_axis)
    return place


def flat_concepts(place: Place, concepts: Any) -> jax.Array:
    """Concepts by their place in all of them.

    Args:
      concepts: integers; with several axes (a scan around the layer is one) rows of one for each.

    Raises:
      ArgumentError: they are no such integers, or there is no such concept.
    """
    sizes = place.sizes
    given = concepts if isinstance(concepts, Tracer) else np.asarray(concepts)
    if jnp.issubdtype(given.dtype, jnp.integer) and given.dtype.itemsize < 4:
        given = given.astype(np.int32)  # a small type may not hold the number of concepts
    expected = "(K,)" if len(sizes) == 1 else f"(K, {len(sizes)})"
    rows = given.reshape(-1, 1) if len(sizes) == 1 and given.ndim == 1 else given
    if not jnp.issubdtype(given.dtype, jnp.integer) or rows.ndim != 2:
        raise ArgumentError(
            f"concepts of `{place.path}`: expected integers of shape {expected}, got "
            f"{given.dtype}{list(given.shape)}."
        )
    if rows.shape[1] != len(sizes):
        raise ArgumentError(
            f"concepts of `{place.path}`, which has {sizes} of them: expected integers of shape "
            f"{expected}, got shape {given.shape}."
        )
    if not isinstance(rows, Tracer):
        low, high = -np.asarray(sizes), np.asarray(sizes)
        if np.any((rows < low) | (rows >= high)):
            raise ArgumentError(f"concepts of `{place.path}`: there are {sizes}, got {concepts}.")
    columns = [rows[:, i] % size for i, size in enumerate(sizes)]
    return jnp.ravel_multi_index(columns, sizes, mode="wrap")
