"""Dense layers of several inputs: ``x w + h u + b``, as the gates of a recurrent cell have them.

A sum of dense layers is one dense layer of all their inputs, also if it is computed piece by piece.
Written as the product of ``[x, h]`` with one weight it is found anyway; here are the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax import lax
from jax.extend.core import primitives as p

from relax._graph import Graph, Layer, boundary
from relax._primitives import DEVICE_SUMS, RESHAPING, SHIFT, followed_axes
from relax._recognize.affine import Search
from relax._recognize.facts import Facts

_ADDS = frozenset({lax.add_p, p.add_jaxvals_p})
_PARTS = frozenset({lax.slice_p, lax.split_p})
_MOST = 64  # sums of one layer
Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class JointDetails:
    """What the rules need to know of a dense layer of several inputs.

    Attributes:
      parts: the dense layers that are summed.
      tail: equations behind them; ``shifts``: values that those add, biases of the whole.
      input_axes, output_axes: for each input and output the axes along which samples stand.
      nonnegative: all inputs are known to be non-negative.
      dead_below: nothing reads the output where it is negative.
    """

    parts: tuple[Layer, ...]
    tail: tuple[int, ...]
    shifts: tuple[int, ...]
    input_axes: tuple[Axes, ...]
    output_axes: tuple[Axes, ...]
    nonnegative: bool
    dead_below: bool = False


@dataclasses.dataclass(frozen=True)
class _Derived:
    """A value made of dense layers by sums, moves and parts.

    Attributes:
      of: the layers, by the index of their core.
      axes: where samples stand.
      joins: it is a sum of layers, biases included.
    """

    of: frozenset[int]
    axes: Axes
    joins: bool = False


def join_dense(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int], layers: list[Layer]
) -> list[Layer]:
    """The layers, with those that are summed made one."""
    dense = {layer.details.core: layer for layer in layers if layer.kind == "dense"}
    if len(dense) < 2:
        return layers
    joint = _Groups(Search(graph, facts, consumers, claimed), dense).found()
    claimed.update(i for layer in joint for i in layer.owned)
    replaced = {part.details.core for layer in joint for part in layer.details.parts}
    kept = [x for x in layers if x.kind != "dense" or x.details.core not in replaced]
    return kept + joint


class _Groups:
    """Which dense layers are summed: sum by sum, as long as the whole can be one layer."""

    def __init__(self, search: Search, dense: dict[int, Layer]):
        self.search, self.dense = search, dense
        self.derived: dict[int, _Derived] = {}
        self.group: dict[int, int] = {}  # from the core of a layer to the group it belongs to
        self.ends: dict[int, list[int]] = {}  # of a group: its sums
        self.layers: dict[int, Layer] = {}  # of a group

    def found(self) -> list[Layer]:
        """The layers of several inputs."""
        graph, tracked, derived = self.search.graph, self.search.facts.tracked, self.derived
        for core, layer in self.dense.items():
            axes = _sample_axes(graph, layer)
            if axes is not None:
                derived[layer.outputs[0]] = _Derived(frozenset({core}), axes)
        for index, equation in enumerate(graph.equations):
            if index in self.search.claimed:
                continue
            moving = [v for v in dict.fromkeys(equation.inputs) if tracked[v]]
            known = [derived[v] for v in moving if v in derived]
            if not known or len(known) != len(moving):
                continue
            if len(known) == 2:
                a, b = known
                if equation.primitive in _ADDS and a.axes == b.axes and a.of.isdisjoint(b.of):
                    self._link(equation.outputs[0], _Derived(a.of | b.of, a.axes, True))
            elif len(known) == 1:
                self._follow(index, moving[0], known[0])
        return list(self.layers.values())

    def _follow(self, index: int, value: int, one: _Derived) -> None:
        """A move, a part, or a bias."""
        search = self.search
        equation, old = search.graph.equations[index], search.graph.shape(value)
        alone = one.joins and len(search.consumers[value]) == 1
        for out in equation.outputs:
            axes = _followed(search.graph, index, one.axes, old, out)
            if axes is not None:
                joins = alone and len(equation.outputs) == 1
                self.derived[out] = _Derived(one.of, axes, joins)
        if not _shifts(search, index, value):
            return
        if alone:
            self._link(equation.outputs[0], one)
        else:
            self.derived[equation.outputs[0]] = one

    def _link(self, end: int, made: _Derived) -> None:
        """Accepts a sum if all that it joins can be one layer."""
        groups = sorted({self.group.get(core, core) for core in made.of})
        cores = [core for core in self.dense if self.group.get(core, core) in groups]
        ends = [old for group in groups for old in self.ends.get(group, ())] + [end]
        self.derived[end] = made
        layer = None
        if len(ends) <= _MOST:
            layer = _joined(self.search, self.derived, [self.dense[core] for core in cores], ends)
        if layer is None:
            del self.derived[end]
            return
        for group in groups:
            self.ends.pop(group, None)
            self.layers.pop(group, None)
        self.group.update((core, groups[0]) for core in cores)
        self.ends[groups[0]], self.layers[groups[0]] = ends, layer


def _shifts(search: Search, index: int, value: int) -> bool:
    """Whether a bias is added."""
    equation = search.graph.equations[index]
    if equation.primitive not in SHIFT or equation.inputs[0] == equation.inputs[1]:
        return False
    position = equation.inputs.index(value)
    subtracted = equation.primitive is lax.sub_p and position == 1
    return not subtracted and not search.is_threshold(equation, position)


def _sample_axes(graph: Graph, layer: Layer) -> Axes | None:
    """Where the samples of a dense layer stand in its output, in the order of its input."""
    axes: Axes | None = layer.details.core_batch_axes
    for step in layer.details.steps:
        if step.kind == "move" and axes is not None:
            equation = graph.equations[step.equation]
            old, (new,) = graph.shape(equation.inputs[step.position]), equation.outputs
            axes = _followed(graph, step.equation, axes, old, new)
    return axes


def _followed(
    graph: Graph, index: int, axes: Axes, old: tuple[int, ...], value: int
) -> Axes | None:
    """Where axes stand behind a move or in a part; None if they are not kept as they are."""
    equation, new = graph.equations[index], graph.shape(value)
    if equation.primitive in _PARTS:
        same = len(old) == len(new) and all(old[axis] == new[axis] for axis in axes)
        return axes if same else None
    if equation.primitive in DEVICE_SUMS:
        return axes if old == new else None
    if equation.primitive not in RESHAPING or not graph.is_float(value):
        return None
    places = followed_axes(equation.primitive, equation.params, old, new)
    if places is None:
        return None
    inverse = {before: after for after, before in places.items() if old[before] == new[after]}
    found = [inverse.get(axis) for axis in axes]
    return None if None in found else tuple(axis for axis in found if axis is not None)


def _joined(
    search: Search, derived: dict[int, _Derived], parts: list[Layer], ends: list[int]
) -> Layer | None:
    """One layer of several; None if something else is computed in between."""
    graph, facts = search.graph, search.facts
    starts = {part.outputs[0] for part in parts}
    tail: set[int] = set()
    waiting = list(ends)
    while waiting:
        value = waiting.pop()
        index = search.producer[value]
        if value in starts or index in tail:
            continue
        tail.add(index)
        waiting += [v for v in graph.equations[index].inputs if facts.tracked[v]]
    inside = sorted({*tail, *(i for part in parts for i in part.equations)})
    pieces = _pieces(search, derived, set(inside))
    tail |= pieces
    inside = sorted({*inside, *pieces})
    made = [v for i in inside for v in graph.equations[i].outputs if v in derived]
    outputs = tuple(v for v in made if any(reader not in inside for reader in search.consumers[v]))
    inputs, operands = boundary(graph, inside, facts.tracked)
    readers = {i for v in outputs for i in search.consumers[v] if i >= 0 and i not in inside}
    owned = [i for i in inside if not any(i in part.shared for part in parts)]
    closing = max((i for i in owned if i < min(readers, default=i + 1)), default=-1)
    if any(search.producer.get(v, -1) >= closing for v in (*inputs, *operands)):
        return None
    input_axes: dict[int, Axes] = {}
    for part in parts:
        axes = part.details.batch_axes
        if input_axes.setdefault(part.inputs[0], axes) != axes:
            return None
    if set(inputs) != set(input_axes):
        return None
    shifts = {
        v
        for i in tail
        if len({*graph.equations[i].inputs}) == 2
        for v in graph.equations[i].inputs
        if not facts.tracked[v]
    }
    details = JointDetails(
        tuple(parts),
        tuple(sorted(tail)),
        tuple(sorted(shifts)),
        tuple(input_axes[v] for v in inputs),
        tuple(derived[v].axes for v in outputs),
        all(part.details.nonnegative for part in parts),
    )
    shared = tuple(sorted({i for part in parts for i in part.shared}))
    return Layer(
        "dense",
        "dense",
        tuple(inside),
        inputs,
        operands,
        outputs,
        details,
        shared=shared,
        closes=closing,
    )


def _pieces(search: Search, derived: dict[int, _Derived], inside: set[int]) -> set[int]:
    """Parts of what a layer makes that are read by themselves, cut off before it is complete."""
    graph, last = search.graph, max(inside)
    found: set[int] = set()
    for index in range(min(inside), last):
        equation = graph.equations[index]
        moving = [v for v in equation.inputs if search.facts.tracked[v]]
        if index in inside or index in search.claimed or len(moving) != 1:
            continue
        whole = search.producer.get(moving[0])
        if whole in inside | found and all(v in derived for v in equation.outputs):
            found.add(index)
    return found


def weights(graph: Graph, details: JointDetails) -> Sequence[int]:
    """The values that the inputs are multiplied by."""
    return [
        graph.equations[part.details.core].inputs[1 - part.details.position]
        for part in details.parts
    ]
