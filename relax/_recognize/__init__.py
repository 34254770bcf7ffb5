"""Structure to layers: which equations of a function act together, and as what."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.extend.core.primitives import linear_solve_p

from relax import _jaxpr
from relax._errors import ArgumentError, UnsupportedOperationError, message
from relax._graph import Equation, Graph, Layer, boundary
from relax._primitives import (
    LINEAR_IN,
    MAX_POOL,
    PRODUCT,
    RESHAPING,
    SCALE,
    SUM,
    WINNER,
    applies_function,
    is_linear,
    is_routing,
)
from relax._recognize.activation import ActivationDetails, find_activations
from relax._recognize.affine import AffineDetails, find_affine, find_scale_shift
from relax._recognize.facts import Facts, gather_facts
from relax._recognize.joint import join_dense
from relax._recognize.normalization import (
    NormalizationDetails,
    find_normalizations,
    find_statistics,
)
from relax._recognize.product import ProductDetails, Sources, product_layer
from relax._recognize.softmax import find_softmax
from relax.custom import Relprop, custom_relprop_p

__all__ = [
    "AFFINE",
    "ActivationDetails",
    "AffineDetails",
    "Facts",
    "LinearDetails",
    "NormalizationDetails",
    "ProductDetails",
    "find_layers",
    "gather_facts",
]

AFFINE = frozenset({"dense", "conv", "scale_shift"})


@dataclasses.dataclass(frozen=True)
class LinearDetails:
    """What the rules need to know of a linear layer without weights.

    Attributes:
      monotone: all its coefficients are known to be >= 0.
      nonnegative: all its inputs are known to be >= 0.
      one_to_one: it multiplies each element by a constant; then relevance passes unchanged.
    """

    monotone: bool
    nonnegative: bool
    one_to_one: bool = False


def find_layers(graph: Graph, facts: Facts) -> list[Layer]:
    """All layers of a graph, in evaluation order, but not those of the programs it runs."""
    consumers = graph.consumers()
    claimed: set[int] = set()
    layers = _find_embeddings(graph, facts, consumers, claimed)
    softmax, incomplete = find_softmax(graph, facts, consumers, claimed)
    layers += softmax
    made = find_statistics(graph, facts, {v for layer in softmax for v in layer.outputs})
    layers += find_normalizations(graph, facts, consumers, claimed, made)
    affine = find_affine(graph, facts, consumers, claimed)
    layers += join_dense(graph, facts, consumers, claimed, affine)
    layers += _find_pools(graph, facts, consumers, claimed)
    activations = find_activations(graph, facts, consumers, claimed)
    for layer in activations:
        if not set(incomplete).isdisjoint(layer.equations):
            layer.details = dataclasses.replace(layer.details, part_of_softmax=True)
    layers += activations
    layers += find_scale_shift(graph, facts, consumers, claimed)
    layers += _find_single(graph, facts, claimed, layers, made)
    layers.sort(key=lambda layer: layer.closing)
    _refuse_float8(graph, facts, layers)
    _mark_dead_outputs(layers, consumers)
    return layers


def _refuse_float8(graph: Graph, facts: Facts, layers: Sequence[Layer]) -> None:
    """What carries relevance has that in its own type, where small numbers would be zero."""
    handed_on = {value for layer in layers for value in layer.outputs}
    inner = {index for layer in layers for index in layer.owned}
    for index, equation in enumerate(graph.equations):
        for value in equation.outputs:
            hidden = index in inner and value not in handed_on
            if hidden or not facts.tracked[value] or not graph.is_float(value):
                continue
            if jnp.finfo(graph.avals[value].dtype).bits <= 8:
                name = _jaxpr.short_name(equation.primitive)
                raise UnsupportedOperationError(
                    message(
                        f"cannot propagate relevance through `{name}`, whose output is "
                        f"{graph.avals[value].dtype}",
                        where=equation.where,
                        path=equation.scope,
                        remedy="Eight bits have no room for it. Explain the same parameters "
                        "without quantization: in Flax, without dot_general_cls.",
                    )
                )


def _find_embeddings(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]
) -> list[Layer]:
    """The first float value made of explained tokens, whichever way; without axes of size one."""
    layers = []
    for index in sorted(facts.sources):
        equation = graph.equations[index]
        looks_up = equation.primitive in (lax.gather_p, lax.dynamic_slice_p)
        name = "embed" if looks_up else "one_hot"
        indices, (out,) = [index], equation.outputs
        while len(consumers[out]) == 1 and consumers[out][0] >= 0:
            reader = graph.equations[consumers[out][0]]
            if reader.primitive not in (lax.squeeze_p, lax.reshape_p):
                break
            indices.append(consumers[out][0])
            (out,) = reader.outputs
        layers.append(Layer("embedding", name, tuple(indices), (), equation.inputs, (out,)))
        claimed.update(indices)
    return layers


def _find_pools(
    graph: Graph, facts: Facts, consumers: list[list[int]], claimed: set[int]
) -> list[Layer]:
    """Sums over axes or windows, with the division that makes them means."""
    layers = []
    kinds = {"reduce_sum": "mean", "reduce_window_sum": "avg_pool"}
    for index, equation in enumerate(graph.equations):
        kind = kinds.get(equation.primitive.name)
        if kind is None or index in claimed or not facts.tracked[equation.outputs[0]]:
            continue
        indices = [index]
        kept, value, end = 1, equation.outputs[0], equation.outputs[0]
        while len(consumers[value]) == 1 and consumers[value][0] >= 0:
            user = consumers[value][0]
            reader = graph.equations[user]
            others = [v for v in reader.inputs if v != value]
            scales = reader.primitive in SCALE and reader.inputs[0] == value
            if user in claimed or not (scales or reader.primitive in RESHAPING):
                break
            if not all(facts.constant[v] for v in others):
                break
            indices.append(user)
            value = reader.outputs[0]
            if scales:
                kept, end = len(indices), value
        indices = indices[:kept]
        name = kind if kept > 1 else "sum" if kind == "mean" else "sum_pool"
        inputs, operands = boundary(graph, indices, facts.tracked)
        details = LinearDetails(
            not any(graph.equations[i].primitive.name == "neg" for i in indices)
            and all(facts.nonnegative(v) for v in operands),
            all(facts.nonnegative(v) for v in inputs),
        )
        layers.append(Layer(kind, name, tuple(indices), inputs, operands, (end,), details))
        claimed.update(indices)
    return layers


def _find_single(
    graph: Graph,
    facts: Facts,
    claimed: set[int],
    known: Sequence[Layer],
    made: Sequence[int],
) -> list[Layer]:
    """What is left: one equation each. Moves of data are no layers."""
    layers: list[Layer] = []
    come_from = Sources(graph, facts, known)
    for index, equation in enumerate(graph.equations):
        outputs = tuple(v for v in equation.outputs if facts.tracked[v])
        if index in claimed or not outputs or equation.control is not None:
            continue
        kind = _single_kind(graph, facts, equation)
        if kind == "routing":
            continue
        inputs, operands = boundary(graph, (index,), facts.tracked)
        name = _jaxpr.short_name(equation.primitive)
        if kind == "product":
            layers.append(product_layer(index, name, come_from, made))
            continue
        details = None
        if kind == "custom":
            details = _custom_details(facts, equation)
            name = details.name
        if kind in ("sum", "linear"):
            monotone = kind == "sum" and equation.primitive is not lax.sub_p
            one_to_one = equation.primitive in SCALE | {lax.sub_p} and len(inputs) == 1
            nonnegative = all(facts.nonnegative(v) for v in inputs)
            details = LinearDetails(monotone, nonnegative, one_to_one)
        layers.append(Layer(kind, name, (index,), inputs, operands, outputs, details))
    return layers


def _custom_details(facts: Facts, equation: Equation) -> Relprop:
    rule = equation.params["rule"]
    closed_over = equation.inputs[len(equation.inputs) - rule.closed_over :]
    if any(facts.tracked[v] for v in closed_over):
        raise ArgumentError(
            message(
                f"`{rule.name}`, a function with a relevance rule of its own, or that rule, closes "
                "over a value that depends on the explained input, and gives it no relevance",
                where=equation.where,
                path=equation.scope,
                remedy="Make it an argument of the function.",
            )
        )
    return rule


def _single_kind(graph: Graph, facts: Facts, equation: Equation) -> str:
    primitive = equation.primitive
    moving = [i for i, value in enumerate(equation.inputs) if facts.tracked[value]]
    if primitive is custom_relprop_p:
        return "custom"
    if applies_function(primitive, equation.params):
        return "unsupported"
    if primitive in SUM and len(moving) == 2:
        return "sum"
    if primitive in MAX_POOL:
        return "max_pool"
    if primitive in WINNER or (primitive is lax.select_n_p and graph.depends[equation.inputs[0]]):
        return "winner"  # a choice that the input itself makes
    if primitive is lax.sub_p and moving == [1]:  # 0 - x; any other c - x is a scale_shift
        return "linear"
    if is_routing(primitive) or (primitive in SUM and len(moving) == 1):
        return "routing"
    if is_linear(primitive):
        return "linear"
    if primitive is linear_solve_p:  # linear in the right side, if the matrix is a constant
        own = sum(equation.params["const_lengths"])
        return "linear" if min(moving) >= own and len(equation.outputs) == 1 else "unsupported"
    if primitive in LINEAR_IN:
        if len(moving) == 1 and moving[0] in LINEAR_IN[primitive]:
            return "linear"
        return "product" if primitive in PRODUCT and len(moving) > 1 else "unsupported"
    return "unsupported"


def _mark_dead_outputs(layers: list[Layer], consumers: list[list[int]]) -> None:
    """An affine layer that rectifiers alone read passes no coefficient where it is negative."""
    owner = {index: layer for layer in layers for index in layer.owned}
    for layer in layers:
        readers = [i for v in layer.outputs for i in consumers[v]]
        if layer.kind in AFFINE and readers and all(_is_dead_below(owner.get(i)) for i in readers):
            layer.details = dataclasses.replace(layer.details, dead_below=True)


def _is_dead_below(layer: Layer | None) -> bool:
    return layer is not None and layer.kind == "activation" and layer.details.dead_below
