"""Values for each round of a scan: taken apart by the scan itself, as what it is scanned over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from relax._errors import RuleError, message
from relax._sections import Section
from relax.rules import PerRound

Tap = tuple[int, Any]  # identity of a section, and a value in it or what is counted there


def stacked(
    section: Section, unit: Any, tree: Any, where: str, path: str
) -> Iterator[tuple[Tap, jax.Array]]:
    """The values of each `PerRound` in a rule or in masks, by place.

    Raises:
      RuleError: they do not fit the scans around the layer.
    """
    lengths = section.lengths
    for number, leaf in enumerate(filter(_is_one, jax.tree.leaves(tree, is_leaf=_is_one))):
        values = jnp.asarray(leaf.values)
        if not lengths or values.shape[: len(lengths)] != lengths or section.sharded:
            around = f"scans of {lengths} rounds" if lengths else "no scan"
            around = "a shard_map" if section.sharded else around
            raise RuleError(
                message(
                    f"PerRound of shape {values.shape}, and the layer stands in {around}",
                    where=where,
                    path=path,
                    remedy="Its first axes are the rounds of the scans around the layer, the "
                    "outermost first.",
                )
            )
        yield (id(section), ("round", unit, number)), values


def of_round(section: Section, unit: Any, tree: Any, known: Mapping[Tap, Any]) -> Any:
    """A rule or masks, with the values of the round that is evaluated."""
    numbers = itertools.count()

    def take(leaf: Any) -> Any:
        return known[id(section), ("round", unit, next(numbers))] if _is_one(leaf) else leaf

    return jax.tree.map(take, tree, is_leaf=_is_one)


def is_round(key: Tap) -> bool:
    """Whether a place is that of a `PerRound`."""
    return isinstance(key[1], tuple) and key[1][0] == "round"


def _is_one(leaf: Any) -> bool:
    return isinstance(leaf, PerRound)
