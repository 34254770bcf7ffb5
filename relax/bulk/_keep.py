"""What a job keeps of each sample: relevance, sums of it, the strongest features, and more."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from relax._errors import ArgumentError


class Explained(NamedTuple):
    """A batch that has been explained; every array has the samples in front.

    Attributes:
      x: the batch, as the function was given it.
      value: what the function returned.
      relevance: in the structure and shapes of ``x``.
      latent: relevance at layers, by their path.
      absorbed: what each layer kept, ``(samples,)`` by its path.
    """

    x: Any
    value: Any
    relevance: Any
    latent: dict[str, jax.Array]
    absorbed: dict[str, jax.Array]


class Keep(abc.ABC):
    """What is kept. Own kinds: a subclass with `of`, or a function from `Explained` to arrays."""

    @abc.abstractmethod
    def of(self, explained: Explained) -> Any:
        """An array, or a pytree of arrays, with the samples in front."""

    @property
    def at(self) -> tuple[str, ...]:
        """Layers whose relevance is wanted: `Explained.latent` has it."""
        return ()

    @property
    def account(self) -> bool:
        """Whether the account of the layers is wanted: `Explained.absorbed` has it."""
        return False


@dataclasses.dataclass(frozen=True)
class Relevance(Keep):
    """The relevance of the input, as it is.

    Args:
      dtype: what it is stored as, for example ``"float16"``; by default as it is computed.
    """

    dtype: str | None = None

    def of(self, explained: Explained) -> Any:
        as_stored = lambda r: r if self.dtype is None else r.astype(jnp.dtype(self.dtype))
        return jax.tree.map(as_stored, explained.relevance)


@dataclasses.dataclass(frozen=True)
class Summed(Keep):
    r"""Relevance summed over axes of a sample: over channels, or over the width of an embedding.

    Args:
      axes: of a sample, so that 0 is the first behind the samples and -1 is the last; None for all
        of them, which is the relevance that arrived at all.
    """

    axes: int | tuple[int, ...] | None = -1

    def of(self, explained: Explained) -> Any:
        def summed(r: jax.Array) -> jax.Array:
            given = range(r.ndim - 1) if self.axes is None else self.axes
            axes = (given,) if isinstance(given, int) else tuple(given)
            if any(not -(r.ndim - 1) <= axis < r.ndim - 1 for axis in axes):
                raise ArgumentError(
                    f"Summed(axes={self.axes!r}): a sample has {r.ndim - 1} axes, "
                    f"{tuple(r.shape[1:])}; they are counted without that of the samples."
                )
            return r.sum(tuple(axis + 1 if axis >= 0 else axis for axis in axes))

        return jax.tree.map(summed, explained.relevance)


@dataclasses.dataclass(frozen=True)
class TopK(Keep):
    """The k features of the largest relevance by size, strongest first: ``index``, ``relevance``.

    Args:
      k: how many. ``index`` counts the features of a sample in the order of its memory
        (``numpy.unravel_index`` makes it an index again).
    """

    k: int

    def of(self, explained: Explained) -> Any:
        def strongest(r: jax.Array) -> dict[str, jax.Array]:
            flat = r.reshape(r.shape[0], math.prod(r.shape[1:]))
            if not 1 <= self.k <= flat.shape[1]:
                raise ArgumentError(f"TopK({self.k}): a sample has {flat.shape[1]} features.")
            index = jax.lax.top_k(jnp.abs(flat), self.k)[1].astype(jnp.int32)
            return {"index": index, "relevance": jnp.take_along_axis(flat, index, axis=1)}

        return jax.tree.map(strongest, explained.relevance)


@dataclasses.dataclass(frozen=True)
class Value(Keep):
    """What the function returned."""

    def of(self, explained: Explained) -> Any:
        return explained.value


@dataclasses.dataclass(frozen=True)
class Latent(Keep):
    """Relevance at the outputs of layers, by their path.

    Args:
      layers: paths or globs, as ``at=`` of `relax.lrp`.
      axes: what it is summed over, as in `Summed`; the default keeps it as it is.
    """

    layers: str | tuple[str, ...]
    axes: int | tuple[int, ...] | None = ()

    @property
    def at(self) -> tuple[str, ...]:
        return (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)

    def of(self, explained: Explained) -> Any:
        from relax._paths import matches

        mine = {
            path: relevance
            for path, relevance in explained.latent.items()
            if any(matches(glob, (path, path.partition("#")[0])) for glob in self.at)
        }
        return Summed(self.axes).of(explained._replace(relevance=mine))


@dataclasses.dataclass(frozen=True)
class Absorbed(Keep):
    """What each layer kept of the relevance, a number for each sample and layer: `relax.ledger`.

    It costs a further pass of relevance.
    """

    @property
    def account(self) -> bool:
        return True

    def of(self, explained: Explained) -> Any:
        return explained.absorbed


def computed(keep: Any, explained: Explained) -> Any:
    """What a kind or a function keeps.

    Raises:
      ArgumentError: it is neither.
    """
    if isinstance(keep, Keep):
        return keep.of(explained)
    if callable(keep):
        return keep(explained)
    raise ArgumentError(
        f"keep: {keep!r} is no kind of relax.bulk.Keep and no function of an Explained."
    )


def wanted(keeps: Sequence[Any]) -> tuple[tuple[str, ...], bool]:
    """The layers whose relevance is wanted, and whether the account is."""
    kinds = [keep for keep in keeps if isinstance(keep, Keep)]
    at = tuple(dict.fromkeys(glob for kind in kinds for glob in kind.at))
    return at, any(kind.account for kind in kinds)
