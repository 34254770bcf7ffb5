"""Latent relevance: where the values stand whose relevance is wanted as well, by path.

The output of a layer, or a value named with `jax.ad_checkpoint.checkpoint_name`; in a scan it has
the axis of its rounds in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax

from relax import select
from relax._assign import Conditions
from relax._errors import ArgumentError, UnmatchedSelectorError, message
from relax._graph import Layer
from relax._joint import beside
from relax._paths import matches, nearest
from relax._recognize.joint import JointDetails
from relax._rounds import Tap
from relax._sections import Named, Section


def latent(
    at: Any,
    standing: Sequence[tuple[Section, Layer]],
    named: Sequence[Named],
) -> dict[str, list[Tap]]:
    """The taps of every path; a layer of several outputs has one for each.

    Raises:
      UnmatchedSelectorError: a selector matches nothing.
      ArgumentError: a value stands inside of a shard_map.
    """
    if at is None:
        return {}
    found: dict[str, list[Tap]] = {}
    layers = [layer for _, layer in standing]
    for selector in (at,) if isinstance(at, str) or callable(at) else tuple(at):
        test = select.predicate(selector)
        own = [(section, layer) for section, layer in standing if test(layer)]
        values = [n for n in named if isinstance(selector, str) and matches(selector, n.addresses)]
        if not own and not values:
            known = [p for layer in layers for p in (layer.label, layer.weight_path)]
            known += [n.label for n in named]
            close = ", ".join(repr(path) for path in nearest(test.name.strip("'"), known))
            raise UnmatchedSelectorError(
                message(
                    f"at={test.name} matches no layer and no named value",
                    remedy=f"Nearest: {close or 'none, the function has no layers'}.",
                )
            )
        for section, layer in own:
            _refuse_mapped(section, test.name, layer.where, layer.label)
            joint = isinstance(layer.details, JointDetails)
            outputs = layer.outputs if joint else layer.outputs[:1]
            found[layer.label] = [(id(section), value) for value in outputs]
        for one in values:
            _refuse_mapped(one.section, test.name, one.where, one.label)
            _refuse_inside(one)
            found[one.label] = [(id(one.section), one.value)]
    return found


def conditions(
    masks: Conditions, standing: Sequence[tuple[Section, Layer]], named: Sequence[Named]
) -> dict[Tap, list[Any]]:
    """The masks at values: those that have a name, and the outputs of layers.

    Raises:
      ArgumentError: a value stands in the middle of a layer.
    """
    found: dict[Tap, list[Any]] = {}
    for place, given in masks.on_values.items():
        _refuse_inside(named[place])
        tap = id(named[place].section), named[place].value
        found[tap] = [array for mask in given for array in mask.masks()]
    for section, layer in standing:
        given = masks.on_layers.get(layer.index)
        if given:
            arrays = [array for mask in given for array in mask.masks()]
            found |= {(id(section), value): arrays for value in layer.outputs}
    return found


def _refuse_inside(named: Named) -> None:
    """A value in the middle of a layer has no relevance: the rule acts on the layer as a whole."""
    for layer in named.section.layers:
        for index in layer.owned:
            equation = named.section.graph.equations[index]
            if named.value in equation.outputs and named.value not in layer.outputs:
                raise ArgumentError(
                    message(
                        f"`{named.label}` is a value in the middle of the {layer.kind} layer "
                        f"`{layer.name}`, which takes relevance as a whole",
                        where=equation.where,
                        path=layer.label,
                        remedy=f'Name the value behind it, or the layer itself: "{layer.label}".',
                    )
                )


def _refuse_mapped(section: Section, selector: str, where: str, path: str) -> None:
    if section.sharded:
        raise ArgumentError(
            message(
                f"at={selector} names a value inside of a shard_map, which has no place outside of "
                "it",
                where=where,
                path=path,
                remedy="Take relevance at a layer around it, or call lrp inside of it.",
            )
        )


def joined(parts: list[jax.Array], path: str, sections: Iterable[tuple[Section, Any]]) -> jax.Array:
    """The outputs of a layer side by side, as the gates of a recurrent cell."""
    if len(parts) == 1:
        return parts[0]
    section, layer = next(
        (section, layer)
        for section, _ in sections
        for layer in section.layers
        if layer.label == path
    )
    rounds = len(section.lengths)
    axes = [(*range(rounds), *(axis + rounds for axis in own)) for own in layer.details.output_axes]
    return beside(parts, axes)
