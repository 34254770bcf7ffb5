"""A function and the programs it runs, as a tree: each part with its facts and its layers.

The body of a scan, a branch or a checkpoint is a section of its own. Names, places and what comes
first are a matter of the whole tree.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from jax.extend.core.primitives import name_p

from relax._graph import Equation, Graph, Layer
from relax._recognize import AFFINE, Facts, find_layers
from relax._recognize.joint import JointDetails, weights

_NAMED_BY_WEIGHT = AFFINE | {"embedding"}


class Named(NamedTuple):
    """A value with a name of `jax.ad_checkpoint.checkpoint_name`.

    Attributes:
      section, value: where it is.
      label: its name with its scope, with ``#n`` for the n-th further value of that name, and told
        apart from a layer of the same path.
      addresses: everything a glob is matched against.
      where: the user's file and line.
    """

    section: Section
    value: int
    label: str
    addresses: tuple[str, ...]
    where: str


@dataclasses.dataclass(eq=False, repr=False)
class Section:
    """One program.

    Attributes:
      graph, facts, layers: its own; layers in evaluation order.
      inner: sections of the programs that its equations run, by equation.
      lengths: of the scans around it, outermost first.
      sharded: it is mapped over the devices of a mesh.
      names: paths of arguments and closed-over arrays, by value.
    """

    graph: Graph
    facts: Facts
    layers: list[Layer]
    inner: dict[int, tuple[Section, ...]]
    lengths: tuple[int, ...]
    sharded: bool
    names: dict[int, str]

    def named(self) -> list[Named]:
        """Values that carry relevance and have a name, in order of evaluation."""
        seen: dict[str, int] = {}
        taken = {layer.label for _, layer in self.every()}
        found = []
        for section, value, name, where in self._names():
            occurrence = seen.get(name, 0)
            seen[name] = occurrence + 1
            label = f"{name}#{occurrence}" if occurrence else name
            label = f"{label} (value)" if label in taken else label
            own = (name, f"{name}#{occurrence}", label)
            found.append(Named(section, value, label, own, where))
        return found

    def _names(self) -> Iterator[tuple[Section, int, str, str]]:
        for index, equation in enumerate(self.graph.equations):
            (value, *_) = equation.outputs or (-1,)
            if equation.primitive is name_p and self.facts.tracked[value]:
                scope = f"{equation.scope}/" if equation.scope else ""
                yield self, value, f"{scope}{equation.params['name']}", equation.where
            for section in self.inner.get(index, ()):
                yield from section._names()

    def values(self) -> Iterator[tuple[int, int]]:
        """All values of the tree in evaluation order, each with the identity of its section."""
        yield from ((id(self), value) for value in self.graph.inputs)
        for index, equation in enumerate(self.graph.equations):
            for section in self.inner.get(index, ()):
                yield from section.values()
            yield from ((id(self), value) for value in equation.outputs)

    def every(self) -> Iterator[tuple[Section, Layer]]:
        """All layers of the tree in evaluation order, each with its section."""
        steps: list[tuple[int, Layer | tuple[Section, ...]]] = [
            (layer.closing, layer) for layer in self.layers
        ]
        steps += list(self.inner.items())
        for _, step in sorted(steps, key=lambda item: item[0]):
            if isinstance(step, Layer):
                yield self, step
            else:
                for section in step:
                    yield from section.every()


def find_sections(
    graph: Graph, facts: Facts, names: Mapping[int, str], closure_names: Mapping[int, str]
) -> Section:
    """The tree of a function, its layers named.

    Args:
      graph, facts: the function, and what is known of it.
      names: paths of the arguments and closed-over arrays, by value.
      closure_names: of closed-over arrays, by identity.
    """
    root = _find(graph, facts, names, closure_names, (), False)
    _mark_first(root, [False] * len(graph.inputs))
    seen: dict[str, int] = {}
    for index, (section, layer) in enumerate(root.every()):
        _name(section, layer, index, seen)
    return root


def _find(
    graph: Graph,
    facts: Facts,
    names: Mapping[int, str],
    closure_names: Mapping[int, str],
    lengths: tuple[int, ...],
    sharded: bool,
) -> Section:
    known = dict(names) | {
        value: closure_names[id(array)]
        for value, array in graph.literals.items()
        if id(array) in closure_names
    }
    inner: dict[int, tuple[Section, ...]] = {}
    for index, own in facts.inner.items():
        equation = graph.equations[index]
        control = equation.control
        assert control is not None
        loop = (control.options["length"],) if control.kind == "scan" else ()
        operands = equation.inputs[control.leading :]
        inner[index] = tuple(
            _find(
                body,
                found,
                {
                    value: known[facts.origin[operand]]
                    for value, operand in zip(body.inputs, operands, strict=True)
                    if facts.origin[operand] in known and not graph.depends[operand]
                },
                closure_names,
                lengths + loop,
                sharded or control.kind == "shard_map",
            )
            for body, found in zip(equation.bodies, own, strict=True)
        )
    return Section(graph, facts, find_layers(graph, facts), inner, lengths, sharded, known)


def _mark_first(section: Section, entering: Sequence[bool]) -> list[bool]:
    """Behind: reached from the explained input through a dense layer or convolution."""
    graph, facts = section.graph, section.facts
    closing = {layer.closing: layer for layer in section.layers}
    owned = {i for layer in section.layers for i in layer.owned}
    behind = [False] * len(graph.avals)
    for value, passed in zip(graph.inputs, entering, strict=True):
        behind[value] = passed
    for index, equation in enumerate(graph.equations):
        if index in section.inner:
            results = _mark_bodies(section, index, equation, behind)
            for value, passed in zip(equation.outputs, results, strict=True):
                behind[value] = passed
            continue
        layer = closing.get(index)
        if index in owned and layer is None:
            continue  # what a layer makes is known where it closes
        passed = any(behind[v] for v in equation.inputs if facts.tracked[v])
        if layer is not None:
            layer.behind = passed or any(behind[v] for v in layer.inputs)
            weighted = layer.kind in ("dense", "conv")
            layer.first = weighted and not layer.behind
            passed = layer.behind or weighted
        for value in (*equation.outputs, *(layer.outputs if layer is not None else ())):
            behind[value] = passed
    return [behind[value] for value in graph.outputs]


def _mark_bodies(
    section: Section, index: int, equation: Equation, behind: Sequence[bool]
) -> list[bool]:
    """What a scan carries is behind a layer as soon as one round has one."""
    control = equation.control
    assert control is not None
    entering = [behind[v] for v in equation.inputs[control.leading :]]
    first = control.consts
    while True:
        each = [_mark_first(body, entering) for body in section.inner[index]]
        results = [any(flags) for flags in zip(*each, strict=True)]
        before = entering[first : first + control.carry]
        merged = [a or b for a, b in zip(before, results[: control.carry], strict=True)]
        if merged == before:
            return results
        entering[first : first + control.carry] = merged


def _weights(graph: Graph, facts: Facts, layer: Layer) -> list[int]:
    """The arguments and closed-over arrays that the weights of a layer are made of."""
    if isinstance(layer.details, JointDetails):
        candidates = weights(graph, layer.details)
    elif layer.kind in ("dense", "conv"):
        core = graph.equations[layer.details.core]
        candidates = [core.inputs[1 - layer.details.position]]
    else:
        candidates = layer.operands
    return [facts.origin[value] for value in candidates if not graph.depends[value]]


def _shared(paths: Sequence[str]) -> str:
    """The common start of paths."""
    split = [path.split("/") for path in paths]
    together = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*split, strict=False))
    return "/".join(names[0] for names in together)


def _name(section: Section, layer: Layer, index: int, seen: dict[str, int]) -> None:
    """Gives a layer its path, occurrence, weight path, source line and shapes."""
    graph, facts, names = section.graph, section.facts, section.names
    first = graph.equations[layer.owned[0]]
    if layer.kind in _NAMED_BY_WEIGHT:
        joint = isinstance(layer.details, JointDetails)
        found = [names[v] for v in _weights(graph, facts, layer) if v in names]
        layer.weight_paths = tuple(dict.fromkeys(found if joint else found[:1]))
        if joint:
            parts = (graph.equations[part.details.core].scope for part in layer.details.parts)
            layer.scopes = tuple(dict.fromkeys(parts))
        scope = _shared(layer.scopes) if joint else first.scope
        path = scope or _shared([p.rpartition("/")[0] for p in layer.weight_paths]) or layer.name
    else:
        path = f"{first.scope}/{layer.name}" if first.scope else layer.name
    layer.index, layer.path = index, path
    layer.occurrence = seen.get(path, 0)
    seen[path] = layer.occurrence + 1
    layer.begins = first
    entering = layer.inputs or [v for v in layer.operands if facts.token[v]]
    layer.in_shapes = tuple(graph.shape(v) for v in entering)
    layer.out_shapes = tuple(graph.shape(v) for v in layer.outputs)
