"""Affine layers: a matrix product or convolution with a constant, and what keeps it affine.

Bias, inference BatchNorm, scales and casts behind it are merged whichever way they are written; no
canonizer. A scale is merged only if it can be folded into the kernel, because its sign matters to
every rule that splits signs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jax import lax

from relax._axes import Atom, Axes, feature_axes, features_along, moved
from relax._graph import Equation, Graph, Layer, boundary
from relax._numerics import at_most
from relax._primitives import (
    CAST,
    CONV,
    DEVICE_SUMS,
    ELEMENTWISE,
    RESHAPING,
    SCALE,
    SHIFT,
    conv_axes,
    dot_axes,
    followed_axes,
    is_core,
    is_ragged_dot,
    ragged_features,
)
from relax._recognize.facts import Facts


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation behind the core of an affine layer.

    Attributes:
      equation: its index; ``position``: the operand that carries relevance.
      kind: ``"move"``, ``"shift"`` or ``"scale"``.
      atoms: for a scale, the features along which it varies, each with its axis of the factor.
    """

    equation: int
    position: int
    kind: str
    atoms: tuple[tuple[int, Atom], ...] = ()


@dataclasses.dataclass(frozen=True)
class AffineDetails:
    """What the rules need to know of an affine layer.

    Attributes:
      core: index of its ``dot_general`` or ``conv_general_dilated``; None for a scale and shift.
      position: which operand of the core carries relevance.
      pads: zero paddings in front of the core, which are part of it: beyond the border is nothing.
      steps: what follows the core.
      batch_axes: axes of the layer's input, the samples of which do not mix.
      core_batch_axes: the same axes in the output of the core.
      nonnegative: the input is known to be non-negative.
      dead_below: nothing reads the output where it is negative.
    """

    core: int | None
    position: int
    pads: tuple[int, ...]
    steps: tuple[Step, ...]
    batch_axes: tuple[int, ...]
    core_batch_axes: tuple[int, ...]
    nonnegative: bool
    dead_below: bool = False


_CROPS = frozenset({lax.slice_p, lax.rev_p})


class Search:
    """Grows the chain behind one core."""

    def __init__(self, graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]):
        self.graph, self.facts, self.consumers, self.claimed = graph, facts, consumers, claimed
        self.producer = graph.producers()

    def single_user(self, value: int) -> int | None:
        users = self.consumers[value]
        if len(users) != 1 or users[0] < 0 or users[0] in self.claimed:
            return None
        return users[0]

    def sole_tracked(self, equation: Equation) -> int | None:
        """Position of the one operand that carries relevance to the output."""
        if not any(self.facts.tracked[v] for v in equation.outputs):
            return None
        positions = [i for i, v in enumerate(equation.inputs) if self.facts.tracked[v]]
        return positions[0] if len(positions) == 1 else None

    def step(self, index: int, axes: Axes | None) -> Step | None:
        """The equation as a step of the chain, or None if the layer ends before it.

        ``axes``: where the features of the weight stand; None: any scale can be folded.
        """
        equation = self.graph.equations[index]
        position = self.sole_tracked(equation)
        if position is None or len(equation.outputs) != 1:
            return None
        if equation.primitive in RESHAPING | _CROPS or self.sums_devices(equation):
            keeps = self.graph.is_float(equation.outputs[0])
            return Step(index, position, "move") if keeps else None
        if equation.primitive in SHIFT:
            if self.is_threshold(equation, position):
                return None
            return Step(index, position, "shift")
        if equation.primitive not in SCALE or (
            len(equation.inputs) == 2 and self._divides(equation, position)
        ):
            return None
        if axes is None or len(equation.inputs) == 1:
            return Step(index, position, "scale")
        factor = equation.inputs[1 - position]
        atoms = features_along(axes, self.varying(factor))
        return None if atoms is None else Step(index, position, "scale", atoms)

    def sums_devices(self, equation: Equation) -> bool:
        """A sum over devices, elementwise; over a mapped axis it is one of the array."""
        same = self.graph.shape(equation.inputs[0]) == self.graph.shape(equation.outputs[0])
        return equation.primitive in DEVICE_SUMS and same

    @staticmethod
    def _divides(equation: Equation, position: int) -> bool:
        return equation.primitive.name == "div" and position == 1

    def is_threshold(self, equation: Equation, position: int) -> bool:
        """A literal added just before a nonlinearity belongs to that: hard_sigmoid's ``x + 3``."""
        if not self.facts.constant[equation.inputs[1 - position]]:
            return False
        value = equation.outputs[0]
        while (index := self.single_user(value)) is not None:
            reader = self.graph.equations[index]
            if reader.primitive not in ELEMENTWISE or self.sole_tracked(reader) is None:
                return False
            if reader.primitive not in SCALE | SHIFT | CAST:
                return True
            others = [v for v in reader.inputs if not self.facts.tracked[v]]
            if reader.primitive.name == "div" and reader.inputs[0] != value:
                return True
            if not all(self.facts.constant[v] for v in others):
                return False
            value = reader.outputs[0]
        return False

    def is_weighted(self, step: Step) -> bool:
        others = [
            v for v in self.graph.equations[step.equation].inputs if not self.facts.tracked[v]
        ]
        return not all(self.facts.constant[v] for v in others)

    def varying(self, value: int, depth: int = 32) -> set[int]:
        """Axes along which the elements of a constant operand may differ."""
        shape = self.graph.shape(value)
        wide = {axis for axis, size in enumerate(shape) if size != 1}
        if self.facts.number(value) is not None:
            return set()
        index = self.producer.get(value)
        if index is None or depth == 0 or not wide:
            return wide
        equation = self.graph.equations[index]
        if equation.primitive.name == "broadcast_in_dim":
            operand = equation.inputs[0]
            dims = equation.params["broadcast_dimensions"]
            old = self.graph.shape(operand)
            inner = self.varying(operand, depth - 1)
            return {dims[i] for i in inner if old[i] == shape[dims[i]]} & wide
        if equation.primitive in RESHAPING:
            axes = followed_axes(
                equation.primitive, equation.params, self.graph.shape(equation.inputs[0]), shape
            )
            inner = self.varying(equation.inputs[0], depth - 1)
            if axes is not None and inner <= set(axes.values()):
                return {new for new, old in axes.items() if old in inner}
            return wide
        if equation.primitive in ELEMENTWISE:
            return set().union(*(self.varying(v, depth - 1) for v in equation.inputs)) & wide
        return wide

    def pads(self, value: int, batch: tuple[int, ...]) -> tuple[int, ...]:
        """Zero paddings in front of the core, and casts behind them, in evaluation order.

        They are evaluated for other readers as well, so it does not matter whether there are any.
        """
        found: list[int] = []
        while (index := self.producer.get(value)) is not None and index not in self.claimed:
            equation = self.graph.equations[index]
            if self.sole_tracked(equation) != 0:
                break
            if equation.primitive is lax.pad_p:
                padded = [
                    axis
                    for axis, config in enumerate(equation.params["padding_config"])
                    if any(config)
                ]
                if self.facts.number(equation.inputs[1]) != 0 or not set(batch).isdisjoint(padded):
                    break
            elif equation.primitive not in CAST:
                break
            found.insert(0, index)
            value = equation.inputs[0]
        while found and self.graph.equations[found[0]].primitive is not lax.pad_p:
            found.pop(0)
        return tuple(found)

    def chain(self, value: int, axes: Axes | None) -> tuple[list[Step], int]:
        """Steps behind ``value`` up to the last that has a weight, and the value they end in.

        A literal scale at the end is left out: the minus in ``1 / (1 + exp(-z))`` belongs to the
        activation, and would turn the signs that the rules split.
        """
        steps: list[Step] = []
        end, kept = value, 0
        while (index := self.single_user(value)) is not None:
            step = self.step(index, axes)
            if step is None:
                break
            equation = self.graph.equations[index]
            if step.kind == "move" and axes is not None:
                old, new = self.graph.shape(value), self.graph.shape(equation.outputs[0])
                if not at_most(math.prod(new), math.prod(old)):
                    break  # repeats elements
                axes = moved(equation.primitive, equation.params, axes, new)
            elif step.kind == "move" and equation.primitive not in CAST:
                break
            steps.append(step)
            value = equation.outputs[0]
            ends = step.kind == "shift" or self.sums_devices(equation)
            if ends or (step.kind == "scale" and self.is_weighted(step)):
                end, kept = value, len(steps)
        return steps[:kept], end


def core_axes(
    equation: Equation, position: int, ndims: Sequence[int]
) -> tuple[dict[int, int], tuple[int, ...], tuple[int, ...]]:
    """Output axis to weight axis; batch axes of the input; the same in the output."""
    if equation.primitive is CONV:
        axes = conv_axes(equation.params)
        if axes.batch_groups != 1:
            return {axes.out_feature: axes.rhs_out} if position == 0 else {}, (), ()
        if position == 0:
            return {axes.out_feature: axes.rhs_out}, (axes.lhs_batch,), (axes.out_batch,)
        if axes.feature_groups != 1:  # the explained kernel's outputs are parted in groups
            return {axes.out_batch: axes.lhs_batch}, (), ()
        return {axes.out_batch: axes.lhs_batch}, (axes.rhs_out,), (axes.out_feature,)
    if is_ragged_dot(equation.primitive):
        return ragged_features(equation.params), (), ()
    axes = dot_axes(equation.params)
    batch = len(axes.lhs_batch)
    sides = ((axes.lhs_contract, axes.lhs_batch), (axes.rhs_contract, axes.rhs_batch))
    free = [
        [a for a in range(ndim) if a not in contract and a not in batched]
        for ndim, (contract, batched) in zip(ndims, sides, strict=True)
    ]
    starts = (batch, batch + len(free[0]))
    weight = 1 - position
    mapping = {starts[weight] + i: axis for i, axis in enumerate(free[weight])}
    mapping |= dict(enumerate(sides[weight][1]))
    own = tuple(free[position])
    return mapping, own, tuple(starts[position] + i for i in range(len(own)))


def find_affine(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]
) -> list[Layer]:
    """Dense layers and convolutions, each with its bias and BatchNorm."""
    search = Search(graph, facts, consumers, claimed)
    layers = []
    for index, equation in enumerate(graph.equations):
        if not is_core(equation.primitive) or index in claimed:
            continue
        position = search.sole_tracked(equation)
        if position is None or (position and is_ragged_dot(equation.primitive)):
            continue
        if facts.constant[equation.inputs[1 - position]]:
            continue
        ndims = [len(graph.shape(v)) for v in equation.inputs]
        features, batch, core_batch = core_axes(equation, position, ndims)
        out = equation.outputs[0]
        steps, end = search.chain(out, feature_axes(graph.shape(out), features))
        pads = search.pads(equation.inputs[position], batch)
        details = AffineDetails(
            index,
            position,
            pads,
            tuple(steps),
            batch,
            core_batch,
            facts.nonnegative(equation.inputs[position]),  # a zero padding changes nothing
        )
        indices = (*pads, index, *(step.equation for step in steps))
        inputs, operands = boundary(graph, indices, facts.tracked)
        kind = "conv" if equation.primitive is CONV else "dense"
        layers.append(Layer(kind, kind, indices, inputs, operands, (end,), details, shared=pads))
        claimed.update(indices[len(pads) :])
    return layers


def find_scale_shift(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]
) -> list[Layer]:
    """Elementwise affine layers of their own, such as a BatchNorm behind a pooling."""
    search = Search(graph, facts, consumers, claimed)
    layers = []
    for index, equation in enumerate(graph.equations):
        if index in claimed or equation.primitive not in SHIFT:
            continue
        position = search.sole_tracked(equation)
        if position is None or facts.number(equation.inputs[1 - position]) == 0:
            continue
        steps = [Step(index, position, "shift")]
        value = equation.inputs[position]
        while (before := search.producer.get(value)) is not None and before not in claimed:
            earlier = graph.equations[before]
            step = search.step(before, None) if earlier.primitive in SCALE | CAST else None
            if step is None or search.single_user(value) is None:
                break
            steps.insert(0, step)
            value = earlier.inputs[step.position]
        first = graph.equations[steps[0].equation]
        while steps[0].kind == "move":
            steps.pop(0)
        first = graph.equations[steps[0].equation]
        more, end = search.chain(equation.outputs[0], None)
        steps += more
        indices = tuple(step.equation for step in steps)
        inputs, operands = boundary(graph, indices, facts.tracked)
        batch = tuple(range(max(len(graph.shape(end)) - 1, 0)))
        details = AffineDetails(
            None,
            0,
            (),
            tuple(steps),
            batch,
            batch,
            facts.nonnegative(first.inputs[steps[0].position]),
        )
        layers.append(
            Layer("scale_shift", "scale_shift", indices, inputs, operands, (end,), details)
        )
        claimed.update(indices)
    return layers
