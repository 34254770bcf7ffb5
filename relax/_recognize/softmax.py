"""Softmax and its relatives, however they are written: exp, a sum of it, and what that normalizes.

The region reaches from the logits to the first value that holds all of it: a softmax, a
log_softmax or a logsumexp. Masks and scales in front belong to it, so that minus infinity meets no
other rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jax import lax

from relax._graph import Graph, Layer, boundary, computing
from relax._jaxpr import is_own_derivative
from relax._primitives import (
    CAST,
    DEVICE_SUMS,
    DOT,
    ELEMENTWISE,
    RESHAPING,
    SCALE,
    SHIFT,
)
from relax._recognize.facts import Facts
from relax._recognize.normalizer import (
    divides_all,
    divides_any,
    guarded,
    is_shifted,
    subtracts_maximum,
)
from relax._recognize.regions import SEGMENTS, Regions, is_sum, primitives

_EXP = frozenset({lax.exp_p, lax.exp2_p})
_AFTER = ELEMENTWISE | RESHAPING | SEGMENTS
LOGADDEXP = frozenset({"logaddexp", "logaddexp2"})
_FARTHEST = 24  # equations between a sum and the end of its softmax


@dataclasses.dataclass(frozen=True)
class SoftmaxDetails:
    """What the rules need to know of a softmax.

    Attributes:
      weighs: it is a factor of a product, as the weights of an attention are.
      normalizer: of exponentials that are divided by their sum further on: the equations that make
        it, which are not part of the layer. ``summed`` is the sum, ``total`` what is divided by: a
        guard, a scale or a cast may lie between.
      of_two: a ``logaddexp`` of two values.
    """

    weighs: bool = False
    normalizer: tuple[int, ...] = ()
    summed: int = -1
    total: int = -1
    of_two: bool = False

    @property
    def is_plain(self) -> bool:
        """Its Jacobian is the derivative of its equations."""
        return not (self.normalizer or self.of_two)


def find_softmax(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]
) -> tuple[list[Layer], list[int]]:
    """Every softmax, log_softmax and logsumexp; and exponentials that belong to none, yet look so.

    Those are summed, and what is subtracted from their logits depends on the input: a maximum.
    """
    regions = Regions(graph, facts, consumers, claimed)
    layers, incomplete = _logaddexps(graph, facts, claimed), []
    for index, equation in enumerate(graph.equations):
        if index in claimed or not is_sum(facts, equation):
            continue
        summed = _summed(regions, index) if facts.tracked[equation.outputs[0]] else None
        if summed is None:
            continue
        details = SoftmaxDetails()
        found = _smallest(regions, index)
        if found is None:
            opened = _open(regions, summed)
            if opened is None:
                if is_shifted(regions, summed[0]) or divides_any(regions, summed):
                    incomplete.append(summed[0])
                continue
            found, details = opened
        root, body, end = found
        root, body = _with_masks(regions, root, body, end)
        inputs, operands = boundary(graph, body, facts.tracked)
        if inputs != (root,):
            continue
        if details.normalizer:
            more = boundary(graph, details.normalizer, facts.tracked)[1]
            operands = tuple(dict.fromkeys((*operands, *more)))
        claimed.update(body)
        claimed.update(
            i for i in details.normalizer if facts.tracked[graph.equations[i].outputs[0]]
        )
        layers.append(
            Layer(
                "softmax",
                _name(graph, body, end),
                tuple(body),
                inputs,
                operands,
                (end,),
                details,
            )
        )
        if layers[-1].name == "log_softmax":
            layers += _exponentials_of(regions, end)
    return layers, incomplete


def _logaddexps(graph: Graph, facts: Facts, claimed: set[int]) -> list[Layer]:
    """Calls of ``jnp.logaddexp`` or ``logaddexp2`` on two values that both carry relevance."""
    calls: dict[tuple[int, ...], list[int]] = {}
    for index, equation in enumerate(graph.equations):
        if equation.calls and equation.calls[-1] in LOGADDEXP and is_own_derivative(equation):
            calls.setdefault(tuple(map(id, equation.sources[1:])), []).append(index)
    layers = []
    for indices in calls.values():
        inputs, operands = boundary(graph, indices, facts.tracked)
        (end,) = graph.equations[indices[-1]].outputs
        highest = [i for i in indices if graph.equations[i].primitive is lax.max_p]
        if len(highest) != 1 or not facts.tracked[end] or not claimed.isdisjoint(indices):
            continue
        if not all(facts.tracked[v] for v in graph.equations[highest[0]].inputs):
            continue
        claimed.update(indices)
        name = graph.equations[indices[0]].calls[-1]
        details = SoftmaxDetails(of_two=True)
        layers.append(Layer("softmax", name, tuple(indices), inputs, operands, (end,), details))
    return layers


def _summed(regions: Regions, index: int) -> list[int] | None:
    """The equations from an exponential to its sum: masks, casts and moves; None without one."""
    found = [index]
    for _ in range(_FARTHEST):
        moving = regions.tracked_inputs(found[0])
        before = regions.producer.get(moving[0]) if len(moving) == 1 else None
        if before is None or before in regions.claimed:
            return None
        found.insert(0, before)
        if _exponentials(regions, [before]):
            return found
        if regions.graph.equations[before].primitive not in _AFTER:
            return None
    return None


def _open(
    regions: Regions, path: Sequence[int]
) -> tuple[tuple[int, list[int], int], SoftmaxDetails] | None:
    """Exponentials that are divided by their sum further on, as in ``(exp(z) @ v) / sum``.

    The layer ends in the exponentials. That all they make is divided by the sum is what the
    Jacobian needs to know, see `relax.rules.softmax.SoftmaxMap`.
    """
    graph, consumers = regions.graph, regions.consumers
    shared = [i for i in path[:-1] if len(set(consumers[graph.equations[i].outputs[0]])) > 1]
    if not shared:
        return None
    end = graph.equations[shared[-1]].outputs[0]
    normalizer = list(path[path.index(shared[-1]) + 1 :])
    summed = graph.equations[path[-1]].outputs[0]
    total = guarded(regions, summed, normalizer)
    found = _down_to_exp(regions, shared[-1])
    body = None if found is None else regions.closed(found[1], end)
    if found is None or body is None or not divides_all(regions, end, set(normalizer), total):
        return None
    between = [i for i in range(body[-1] + 1, normalizer[-1]) if i not in normalizer]
    operands = boundary(graph, normalizer, regions.facts.tracked)[1]
    made = {i for v in operands for i in computing(graph, between, v)}  # such as segment numbers
    if any(graph.depends[v] for i in made for v in graph.equations[i].outputs):
        return None
    whole = tuple(sorted({*made, *normalizer}))
    return (found[0], body, end), SoftmaxDetails(normalizer=whole, summed=summed, total=total)


def _exponentials_of(regions: Regions, value: int) -> list[Layer]:
    """The probabilities, where those and their logarithms are both read, as by an entropy."""
    layers = []
    for reader in dict.fromkeys(regions.consumers[value]):
        if reader < 0 or not _exponentials(regions, [reader]):
            continue
        regions.claimed.add(reader)
        inputs, operands = boundary(regions.graph, (reader,), regions.facts.tracked)
        outputs = regions.graph.equations[reader].outputs
        layers.append(
            Layer("softmax", "softmax", (reader,), inputs, operands, outputs, SoftmaxDetails())
        )
    return layers


def _smallest(regions: Regions, index: int) -> tuple[int, list[int], int] | None:
    """The first closed region that holds a sum of exponentials and what it normalizes.

    A logsumexp whose logits are read again, to subtract it, goes on to that log_softmax.
    """
    best = None
    for end in _readers(regions, index):
        equation = regions.graph.equations[end]
        if best is not None and equation.primitive not in SHIFT:
            continue
        found = _down_to_exp(regions, end)
        if found is None or index not in found[1]:
            continue
        body = regions.closed(found[1], equation.outputs[0])
        if body is None or not _is_whole(regions, body, equation.outputs[0]):
            continue
        if best is not None and not set(best[1]) <= set(body):
            continue
        best = found[0], body, equation.outputs[0]
        if equation.primitive not in (lax.log_p, lax.add_p):
            break
    return None if best is None else _extended(regions, *best)


def _exponentials(regions: Regions, body: Sequence[int]) -> list[int]:
    """Those equations that are ``exp(z)``, ``2 ** z`` or any other power of a constant."""
    tracked = regions.facts.tracked
    found = []
    for index in body:
        equation = regions.graph.equations[index]
        power = equation.primitive is lax.pow_p and not tracked[equation.inputs[0]]
        if equation.primitive in _EXP or (power and tracked[equation.inputs[1]]):
            found.append(index)
    return found


def _is_whole(regions: Regions, body: Sequence[int], end: int) -> bool:
    """Whether a region normalizes its exponentials, and multiplies by nothing but their sum."""
    graph = regions.graph
    normalizes = False
    for index in body:
        moving = regions.tracked_inputs(index)
        if graph.equations[index].primitive in (lax.mul_p, lax.div_p) and len(moving) == 2:
            if not any(_is_sum(regions, v, body) for v in moving):
                return False
            normalizes = True
    if lax.log_p in primitives(graph, body):
        return True
    (first, *_) = _exponentials(regions, body)
    return normalizes and graph.shape(end) == graph.shape(graph.equations[first].outputs[0])


def _is_sum(regions: Regions, value: int, body: Sequence[int]) -> bool:
    """Whether a value of a region is a sum, up to what is done to it elementwise."""
    while (index := regions.producer.get(value)) is not None and index in body:
        if is_sum(regions.facts, regions.graph.equations[index]):
            return True
        moving = regions.tracked_inputs(index)
        if len(moving) != 1:
            return False
        (value,) = moving
    return False


def _down_to_exp(regions: Regions, end: int) -> tuple[int, list[int]] | None:
    """The region behind an equation, down to the exponential."""
    found = regions.behind(end)
    body: set[int] = set()
    while found is not None:
        root, more = found
        body.update(more)
        if _exponentials(regions, more):
            return root, sorted(body)
        if not regions.is_inner(root):
            return None
        found = regions.behind(regions.producer[root])
    return None


def _readers(regions: Regions, index: int) -> Iterator[int]:
    """Equations computed from a sum, in order."""
    reached = {regions.graph.equations[index].outputs[0]}
    for later in range(index + 1, min(index + 1 + 4 * _FARTHEST, len(regions.graph.equations))):
        equation = regions.graph.equations[later]
        if later in regions.claimed or reached.isdisjoint(equation.inputs):
            continue
        if equation.primitive not in _AFTER and equation.primitive not in DEVICE_SUMS:
            continue
        reached.update(equation.outputs)
        yield later


def _extended(regions: Regions, root: int, body: list[int], end: int) -> tuple[int, list[int], int]:
    """``exp(log_softmax(x))`` is a softmax, and logsumexp adds what it subtracted."""
    graph, facts = regions.graph, regions.facts
    while (reader := regions.sole_reader(end)) is not None:
        equation = graph.equations[reader]
        adds = equation.primitive is lax.add_p and any(
            graph.depends[v] and not facts.tracked[v] for v in equation.inputs
        )
        powers = equation.primitive in _EXP and graph.shape(end) == graph.shape(root)
        if not (adds or powers) or lax.log_p not in primitives(graph, body):
            break
        body, end = [*body, reader], equation.outputs[0]
    return root, body, end


def _with_masks(regions: Regions, root: int, body: list[int], end: int) -> tuple[int, list[int]]:
    """The maximum that is subtracted, scales, casts and masks, in front of the exponential."""
    graph = regions.graph
    while regions.is_inner(root):
        before = regions.producer[root]
        found = regions.behind(before)
        if found is None or graph.shape(found[0]) != graph.shape(root):
            break
        start, more = found
        if not (subtracts_maximum(regions, before) or _masks(regions, before, start)):
            break
        whole = regions.closed(sorted({*more, *body}), end)
        if whole is None:
            break
        root, body = start, whole
    return root, body


def _masks(regions: Regions, index: int, value: int) -> bool:
    """A scale by a literal, a cast, or a mask.

    That is a select, or the sum with what is never positive; with anything, where the logits are
    products of queries and keys, which have no bias: a mask that is handed in, position terms.
    """
    graph, facts = regions.graph, regions.facts
    equation = graph.equations[index]
    if equation.inputs.count(value) != 1:
        return False
    others = [v for v in equation.inputs if v != value]
    if any(facts.tracked[v] for v in others):
        return False
    if equation.primitive is lax.select_n_p:
        return equation.inputs[0] != value
    if equation.primitive is lax.add_p:
        return facts.interval[others[0]][1] <= 0 or _is_of_product(regions, value)
    if equation.primitive in SCALE:
        divides = equation.primitive is lax.div_p and equation.inputs[0] != value
        return not divides and all(facts.constant[v] for v in others)
    return equation.primitive in CAST


def _is_of_product(regions: Regions, value: int) -> bool:
    """Whether logits are a product of two values, scaled and moved at most."""
    while (index := regions.producer.get(value)) is not None:
        equation = regions.graph.equations[index]
        moving = regions.tracked_inputs(index)
        if equation.primitive is DOT:
            return len(moving) == 2
        if len(moving) != 1 or equation.primitive not in SCALE | SHIFT | RESHAPING:
            return False
        value = moving[0]
    return False


def _name(graph: Graph, body: list[int], end: int) -> str:
    known = primitives(graph, body)
    last = graph.equations[body[-1]].primitive
    if lax.log_p not in known or last in _EXP:
        return "softmax"
    first = graph.equations[body[0]]
    same = any(graph.shape(v) == graph.shape(end) for v in first.inputs)
    return "log_softmax" if same else "logsumexp"
