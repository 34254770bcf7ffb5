"""Where the features of a weight go: through transposes, and reshapes that split and merge axes.

A scale behind an affine layer can be folded into the weight if it varies along features only. An
axis of a value is a list of *atoms*, each a part of one axis of the weight; a reshape cuts and
joins atoms, so heads that were split off, or channels that a pixel shuffle spread, are still known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax


class Atom(NamedTuple):
    """``size`` entries of an axis of the weight, ``stride`` apart; ``axis`` None: no feature."""

    axis: int | None
    size: int
    stride: int


Axes = tuple[tuple[Atom, ...], ...]


def feature_axes(shape: Sequence[int], features: Mapping[int, int]) -> Axes:
    """Atoms of the output of a core, whose axis i is axis ``features[i]`` of the weight."""
    return tuple(
        (Atom(features.get(i), size, 1),) if size != 1 else () for i, size in enumerate(shape)
    )


def moved(primitive: Any, params: Mapping[str, Any], axes: Axes, new: Sequence[int]) -> Axes:
    """Atoms of the result, of shape ``new``, of a move that repeats no element.

    What is cut off an axis, or turned round, is no whole feature axis any more.
    """
    if primitive is lax.transpose_p:
        return tuple(axes[i] for i in params["permutation"])
    if primitive is lax.broadcast_in_dim_p:
        places = dict(zip(params["broadcast_dimensions"], axes, strict=True))
        return tuple(places.get(i, ()) for i in range(len(new)))
    if primitive in (lax.reshape_p, lax.squeeze_p):
        return _cut([atom for axis in axes for atom in axis], new)
    if primitive in (lax.slice_p, lax.rev_p):
        turned = params.get("dimensions", ())
        sizes = [math.prod(atom.size for atom in axis) for axis in axes]
        return tuple(
            (Atom(None, size, 1),) if size != old or i in turned else axis
            for i, (axis, old, size) in enumerate(zip(axes, sizes, new, strict=True))
        )
    return axes


def _cut(atoms: list[Atom], sizes: Sequence[int]) -> Axes:
    """A row of atoms as axes of the given sizes; no features if an atom cannot be cut so."""
    rest = atoms[::-1]
    result = []
    for size in sizes:
        axis: list[Atom] = []
        while size > 1:
            atom = rest.pop()
            outer = math.gcd(size, atom.size)
            if outer != min(size, atom.size):
                return feature_axes(sizes, {})
            inner = atom.size // outer
            axis.append(Atom(atom.axis, outer, atom.stride * inner))
            if inner > 1:
                rest.append(Atom(atom.axis, inner, atom.stride))
            size //= outer
        result.append(tuple(axis))
    return tuple(result)


def features_along(axes: Axes, varying: Iterable[int]) -> tuple[tuple[int, Atom], ...] | None:
    """Atoms along which a factor varies, each with its axis; None if one is no feature."""
    atoms = tuple((i, atom) for i in sorted(varying) for atom in axes[i])
    return None if any(atom.axis is None for _, atom in atoms) else atoms


def along_weight(factor: Any, atoms: Sequence[tuple[int, Atom]], shape: Sequence[int]) -> Any:
    """A factor on the output of a layer as a factor on its weight, of ``shape``.

    Args:
      factor: an array that varies along the given atoms only.
      atoms: pairs of (its axis, atom), in order.
    """
    if not jnp.ndim(factor):
        return factor
    varying = {axis for axis, _ in atoms}
    compact = factor[tuple(slice(None) if a in varying else 0 for a in range(factor.ndim))]
    compact = compact.reshape([atom.size for _, atom in atoms])
    order = sorted(range(len(atoms)), key=lambda i: (atoms[i][1].axis, -atoms[i][1].stride))
    compact = compact.transpose(order)
    fine: list[int] = []  # the sizes of the atoms and of the gaps between them
    full: list[int] = []  # the same, with the gaps filled
    result: list[int] = []
    for axis, size in enumerate(shape):
        own = [atoms[i][1] for i in order if atoms[i][1].axis == axis]
        reached = size
        for atom in own:
            gap = reached // (atom.size * atom.stride)
            fine += [1, atom.size]
            full += [gap, atom.size]
            reached = atom.stride
        fine.append(1)
        full.append(reached if own else 1)
        result.append(size if own else 1)
    return jnp.broadcast_to(compact.reshape(fine), full).reshape(result)
