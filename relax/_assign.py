"""Which rule each layer gets: the first selector that matches, else the default of its kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

from relax import select
from relax._errors import (
    RelaxWarning,
    RuleError,
    UnmatchedSelectorError,
    UnsupportedOperationError,
    message,
)
from relax._forms import Composite, entries_of
from relax._graph import Layer
from relax._jaxpr import ENDLESS
from relax._paths import matches, nearest
from relax.rules import (
    Custom,
    Epsilon,
    Gradient,
    Jacobian,
    Linear,
    Lookup,
    Mask,
    Pass,
    Rule,
    SignalTakeAll,
    Winner,
)
from relax.rules._base import AFFINE, describe
from relax.rules.activation import ReLURule
from relax.rules.general import unmasked


class Conditions(NamedTuple):
    """Masks that act at a value: by its place among those that have a name, or by layer."""

    on_values: dict[int, list[Mask]]
    on_layers: dict[int, list[Mask]]


def assign(
    rules: Any, layers: Sequence[Layer], named: Sequence[tuple[str, ...]] = ()
) -> tuple[list[Rule], Conditions]:
    """One rule for each layer, and the conditions at values.

    Args:
      rules: as in `relax.lrp`.
      layers: in order of evaluation; ``named``: what each value that has a name answers to.

    Raises:
      UnmatchedSelectorError: a selector matches no layer.
      RuleError: a rule is given to layers of which it can serve none.
      UnsupportedOperationError: an operation has no default and was given no rule by name.
    """
    chosen: list[Rule | None] = [None] * len(layers)
    masks: dict[int, list[Mask]] = {}
    conditions = Conditions({}, {})
    for selector, given, strict in entries_of(rules):
        pairs: list[tuple[Layer, Rule | None]]
        if not isinstance(given, Rule):
            pairs = [(layer, _called(given, layer)) for layer in layers]
        elif selector is None:
            pairs = [(layer, given) for layer in _fitting(given, layers)]
        else:
            pairs = [(layer, given) for layer in _meant(selector, given, strict, layers, named)]
            if not pairs and _is_condition(given):
                for place in _places(selector, named):
                    conditions.on_values.setdefault(place, []).append(given)
        for layer, rule in pairs:
            if rule is None or not _is_condition(rule):
                chosen[layer.index] = chosen[layer.index] or rule
            elif layer.kind in _AT_OUTPUT:
                conditions.on_layers.setdefault(layer.index, []).append(rule)
            else:
                masks.setdefault(layer.index, []).append(rule)
    result = []
    for rule, layer in zip(chosen, layers, strict=True):
        own = rule or _default(layer)
        for mask in masks.get(layer.index, ()):
            own = mask.over(own)
        result.append(own)
    _warn_without_relu(result, layers)
    _warn_of_parts(result, layers)
    return result, conditions


_AT_OUTPUT = frozenset({"embedding", "custom"})  # layers that no rule stands in front of


def _fitting(rule: Rule, layers: Sequence[Layer]) -> list[Layer]:
    """The layers that a rule goes to which is given alone: those of its kinds."""
    kinds = unmasked(rule).kinds
    found = [layer for layer in layers if layer.kind in kinds and serves(rule, layer)]
    if not found and not kinds & AFFINE:
        raise RuleError(_idle(rule, layers))
    return found


def _is_condition(rule: Rule) -> TypeGuard[Mask]:
    """A mask without a rule: it goes on top of the rule that a layer has anyway."""
    return isinstance(unmasked(rule), Mask)


def _places(selector: Any, named: Sequence[tuple[str, ...]]) -> list[int]:
    """Values that a glob names, where no layer has that name."""
    if not isinstance(selector, str):
        return []
    return [place for place, own in enumerate(named) if matches(selector, own)]


def _warn_of_parts(rules: Sequence[Rule], layers: Sequence[Layer]) -> None:
    """Exponentials of a softmax in pieces: passed unchanged, their relevance may explode."""
    for rule, layer in zip(rules, layers, strict=True):
        if not (layer.kind == "activation" and layer.details.part_of_softmax):
            continue
        if isinstance(rule, Pass):
            warnings.warn(
                message(
                    "A sum of these exponentials looks like a part of a softmax, but no whole one "
                    "was found around it, so relevance passes the exponential as an activation",
                    where=layer.where,
                    path=layer.label,
                    remedy="Write it with jax.nn.softmax, or give the function that contains all "
                    "of it a rule with relax.custom_relprop.",
                ),
                RelaxWarning,
                stacklevel=6,
            )


def _warn_without_relu(rules: Sequence[Rule], layers: Sequence[Layer]) -> None:
    """Guided backprop and its kin change ReLUs alone; without one they are the plain gradient."""
    pairs = [(r, x) for r, x in zip(rules, layers, strict=True) if isinstance(r, ReLURule)]
    if pairs and not any(layer.details.is_relu for _, layer in pairs):
        names = ", ".join(sorted({layer.name for _, layer in pairs}))
        warnings.warn(
            f"{describe(pairs[0][0])} acts on ReLUs alone, and the function has none (it has: "
            f"{names}), so every activation takes its plain gradient.",
            RelaxWarning,
            stacklevel=6,
        )


def _idle(rule: Rule, layers: Sequence[Layer]) -> str:
    """A rule that is given alone, and has nothing to act on."""
    kinds = ", ".join(sorted(unmasked(rule).kinds))
    if not kinds:
        return (
            f"{describe(rule)} names no kind of layer that it is for.\n"
            "  Inherit from relax.rules.AffineRule or ActivationRule, or set `kinds`."
        )
    there = ", ".join(sorted({layer.kind for layer in layers})) or "no layers at all"
    return (
        f"{describe(rule)} has nothing to act on: it is for {kinds}, and the function has {there}."
    )


def _called(rules: Callable[[Layer], Any], layer: Layer) -> Rule | None:
    rule = rules(layer)
    if rule is None:
        return None
    if not isinstance(rule, Rule):
        name = getattr(rules, "__name__", "rules")
        made = isinstance(rule, Composite)
        hint = f"Did you mean {name}()?" if made else "It must return a rule or None."
        if made:
            rule = "a composite"
        if isinstance(rule, type):
            hint = f"Did you mean {rule.__name__}()?"
        raise RuleError(
            message(f"`{name}` returned {rule}, which is no rule", path=layer.label, remedy=hint)
        )
    _require(rule, [layer])
    return rule


def _meant(
    selector: Any,
    rule: Rule,
    strict: bool,
    layers: Sequence[Layer],
    named: Sequence[tuple[str, ...]],
) -> list[Layer]:
    """The layers that an entry gives its rule to."""
    test = select.predicate(selector)
    matched = [layer for layer in layers if test(layer)]
    if not matched:
        places = _places(selector, named)
        if strict and not (places and _is_condition(rule)):
            raise UnmatchedSelectorError(_unmatched(test.name, rule, layers, named, bool(places)))
        return []
    kinds = unmasked(rule).kinds
    meant = [layer for layer in matched if layer.kind in kinds and serves(rule, layer)]
    if not meant:
        meant = [layer for layer in matched if serves(rule, layer)]
    if not meant and strict:
        _require(rule, matched)
    return meant


def _unmatched(
    name: str,
    rule: Rule,
    layers: Sequence[Layer],
    named: Sequence[tuple[str, ...]],
    is_value: bool,
) -> str:
    if is_value:
        return message(
            f"The selector {name} matches no layer, but a value named by checkpoint_name",
            remedy="A value takes relax.rules.Mask(mask), without a rule.",
        )
    known = [path for layer in layers for path in (layer.label, layer.weight_path)]
    if _is_condition(rule):
        known += [own[-1] for own in named]
    close = ", ".join(repr(path) for path in nearest(name.strip("'"), known))
    return message(
        f"The selector {name} matches no layer",
        remedy=f"Nearest: {close or 'none, the function has no layers'}. "
        "All of them: print(relax.layers(fun, rules)(*args)).",
    )


def serves(rule: Rule, layer: Layer) -> bool:
    """Whether a rule can act on a layer."""
    plain = unmasked(rule)
    if layer.kind not in plain.serves:
        return False
    if isinstance(plain, Pass) and layer.kind != "activation":
        return len(layer.inputs) == 1 and layer.in_shapes[0] == layer.out_shapes[0]
    if layer.kind in ("sum", "mean", "avg_pool") and not isinstance(
        plain, (Epsilon, Gradient, Linear)
    ):
        return layer.details.monotone  # splits signs: the coefficients must be known positive
    return True


def _require(rule: Rule, layers: Sequence[Layer]) -> None:
    if any(serves(rule, layer) for layer in layers):
        return
    layer = layers[0]
    can = ", ".join(sorted(unmasked(rule).serves)) or "nothing"
    raise RuleError(
        message(
            f"{describe(rule)} cannot serve the {layer.kind} layer `{layer.name}`",
            where=layer.where,
            path=layer.label,
            remedy=f"It acts on: {can}. The plan shows each layer's kind: "
            "print(relax.layers(fun, rules)(*args)).",
        )
    )


_DEFAULTS: dict[str, Rule] = {
    "dense": Epsilon(),
    "conv": Epsilon(),
    "scale_shift": Linear(),
    "sum": Linear(),
    "mean": Linear(),
    "avg_pool": Linear(),
    "linear": Linear(),
    "max_pool": Winner(),
    "winner": Winner(),
    "activation": Pass(),
    "softmax": Jacobian(),
    "normalization": Linear(),
    "product": SignalTakeAll(),
    "embedding": Lookup(),
}

_ENDLESS_NAMES = {primitive.name: words for primitive, words in ENDLESS.items()}


def _default(layer: Layer) -> Rule:
    if layer.kind == "custom":
        return Custom(layer.details.coefficients)
    rule = _DEFAULTS.get(layer.kind)
    if rule is not None:
        return rule
    if layer.name in _ENDLESS_NAMES:
        raise UnsupportedOperationError(
            message(
                f"cannot propagate relevance through {_ENDLESS_NAMES[layer.name]}",
                where=layer.where,
                path=layer.label,
                remedy="How often it runs is not known, so it has no reverse mode, as in JAX.\n"
                "  Use lax.scan, or lax.fori_loop with a static trip count.",
            )
        )
    name = f"`{layer.name}`"
    if len(layer.outputs) > 1:
        why = "It has several outputs that depend on the explained input."
    else:
        why = "No rule of LRP is known for it."
    raise UnsupportedOperationError(
        message(
            f"cannot propagate relevance through {name}",
            where=layer.where,
            path=layer.label,
            remedy=f'{why} Give it a rule by name, {{"{layer.label}": relax.rules.Linear()}} for '
            "gradient times input or Gradient() for the plain gradient, or explain a part of the "
            "function that does not contain it.",
        )
    )
