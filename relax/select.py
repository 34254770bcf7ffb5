"""Predicates on layers, combinable with ``&``, ``|`` and ``~``.

Example:
  >>> import relax
  >>> from relax import rules, select
  >>> mapping = {select.first & select.conv: rules.ZBox(0.0, 1.0), select.dense: rules.Epsilon()}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from relax._graph import Layer
from relax._paths import addresses, matches


@dataclasses.dataclass(frozen=True)
class Predicate:
    """A named test of a layer. Equal names mean equal predicates."""

    name: str
    test: Callable[[Layer], Any] = dataclasses.field(compare=False, repr=False)

    def __call__(self, layer: Layer) -> bool:
        return bool(self.test(layer))

    def __and__(self, other: Any) -> Predicate:
        other = predicate(other)
        return Predicate(f"({self.name} & {other.name})", lambda x: self(x) and other(x))

    def __or__(self, other: Any) -> Predicate:
        other = predicate(other)
        return Predicate(f"({self.name} | {other.name})", lambda x: self(x) or other(x))

    def __rand__(self, other: Any) -> Predicate:
        return predicate(other) & self

    def __ror__(self, other: Any) -> Predicate:
        return predicate(other) | self

    def __invert__(self) -> Predicate:
        return Predicate(f"~{self.name}", lambda x: not self(x))


def predicate(selector: Any) -> Predicate:
    """A glob, a predicate or a callable ``layer -> bool`` as a `Predicate`."""
    if isinstance(selector, Predicate):
        return selector
    if isinstance(selector, str):
        return Predicate(repr(selector), lambda layer: matches(selector, paths(layer)))
    if callable(selector):
        return Predicate(f"{getattr(selector, '__qualname__', selector)}@{id(selector)}", selector)
    raise TypeError(f"A selector is a glob or a predicate on layers, not {selector!r}.")


def paths(layer: Layer) -> tuple[str, ...]:
    """Everything a glob is matched against."""
    return (*addresses(layer.path, layer.occurrence, layer.weight_paths), *layer.scopes)


def glob(pattern: str) -> Predicate:
    """Layers whose scope path or weight path matches; ``*`` crosses ``/``.

    A pattern may also match the end of a path from a ``/`` on, so ``"head"`` finds
    ``"Classifier/head"``. ``"Dense_0#1"`` is the second use of a layer.
    """
    return predicate(pattern)


def only(label: str) -> Predicate:
    """The one layer that the plan shows under that path, with ``#n`` for its n-th further use."""
    return Predicate(f"only({label!r})", lambda layer: layer.label == label)


def _kind(name: str, *kinds: str) -> Predicate:
    return Predicate(name, lambda layer: layer.kind in kinds)


affine = _kind("affine", "dense", "conv", "scale_shift")
dense = _kind("dense", "dense")
conv = _kind("conv", "conv")
scale_shift = _kind("scale_shift", "scale_shift")
first = Predicate("first", lambda layer: layer.first)
preprocessing = Predicate("preprocessing", lambda x: x.kind == "scale_shift" and not x.behind)
sums = _kind("sums", "sum", "mean", "avg_pool")
pool = _kind("pool", "avg_pool", "max_pool")
linear = _kind("linear", "linear")
winner = _kind("winner", "winner", "max_pool")
activation = _kind("activation", "activation")
relu = Predicate("relu", lambda x: x.kind == "activation" and x.details.is_relu)
norm = _kind("norm", "normalization")
softmax = _kind("softmax", "softmax")
attention = Predicate("attention", lambda x: x.kind == "softmax" and x.details.weighs)
product = _kind("product", "product")
embedding = _kind("embedding", "embedding")
custom = _kind("custom", "custom")
anything = Predicate("anything", lambda layer: True)

__all__ = [
    "Predicate",
    "activation",
    "affine",
    "anything",
    "attention",
    "conv",
    "custom",
    "dense",
    "embedding",
    "first",
    "glob",
    "linear",
    "norm",
    "only",
    "pool",
    "predicate",
    "preprocessing",
    "product",
    "relu",
    "scale_shift",
    "softmax",
    "sums",
    "winner",
]
