"""Rules for affine layers ``z = x w + b``, in the letters of the papers.

R is the relevance of the output, ``x+ = max(x, 0)``, ``x- = min(x, 0)``, likewise for weights and
biases; ``s(z)`` is the stabilized denominator (`relax.rules.stabilize`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import HyperparameterError
from relax._numerics import (
    STABILIZERS,
    Stabilizer,
    divide,
    is_number,
    is_zero,
    negative,
    positive,
    stabilize,
    wide,
)
from relax.rules._base import (
    AFFINE,
    LINEAR,
    SUMS,
    Currency,
    Outgoing,
    Rule,
    known,
    require_finite,
    static,
    text,
)
from relax.rules._terms import Term, absorbed_by


class AffineRule(Rule):
    """Base class of rules for affine layers; inherit from it for one of your own.

    Example:
      >>> import dataclasses, jax.numpy as jnp, relax
      >>> @dataclasses.dataclass(frozen=True)
      ... class AbsoluteValue(relax.rules.AffineRule):
      ...     epsilon: float = 1e-6
      ...
      ...     def relevance(self, layer, x, relevance):
      ...         layer = layer.map(jnp.abs)
      ...         s = relevance / (layer(jnp.abs(x)) + self.epsilon)
      ...         return jnp.abs(x) * layer.transpose(s)
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0, 2.0], [-3.0, 4.0]]), jnp.array([1.0, 1.0])
      >>> print(relax.lrp(f, AbsoluteValue(0.0))(w, x))
      [1.5 2.5]
    """

    kinds = AFFINE


class Stabilized(AffineRule):
    """Shared by rules that divide by a stabilized denominator."""

    epsilon: Any
    stabilizer: Stabilizer

    def __post_init__(self) -> None:
        require_finite(self, "epsilon", at_least=0)
        check_stabilizer(self)

    def denominator(self, layer: Any, z: jax.Array) -> jax.Array:
        return stabilize(wide(z), self.epsilon, self.stabilizer, layer.batch_axes)

    def quotient(self, layer: Any, out: Outgoing, z: jax.Array, sign: int = 0) -> jax.Array:
        """``R / s(z)``; ``sign``: that of z where it is known, but for rounding, else 0."""
        epsilon, plain = self.epsilon, self.stabilizer in ("additive", "clip")
        if not (sign and plain and is_number(epsilon) and epsilon > 0):
            return out.over(self.denominator(layer, z))
        size = sign * wide(z)
        if self.stabilizer == "clip":
            size = jnp.maximum(size, epsilon)
        else:
            size = (size if out.value is z and out.rectified else jnp.maximum(size, 0)) + epsilon
        return out.over(sign * size, nowhere_zero=True)

    def terms(self, layer: Any, x: Any, out: Outgoing) -> list[Term]:
        """The quotients of the rule; none for a rule that has others."""
        return []

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        return absorbed_by(self.terms(layer, x, out), out, lambda z: self.denominator(layer, z))


def check_stabilizer(rule: Any) -> None:
    if not callable(rule.stabilizer) and rule.stabilizer not in STABILIZERS:
        raise HyperparameterError(
            f"{type(rule).__name__}(stabilizer={rule.stabilizer!r}): "
            f"expected one of {', '.join(STABILIZERS)}, or a callable (z, epsilon) -> denominators."
        )


def by_sign(x: Any, above: Any, below: Any) -> Any:
    """``above`` where ``x > 0``, else ``below``: the coefficient of ``x+ above + x- below``."""
    return jax.tree.map(lambda a, b, c: jnp.where(a > 0, b, c), x, above, below)


def add(a: Any, b: Any, factor: Any = 1) -> Any:
    return jax.tree.map(lambda u, v: u + factor * v, a, b)


def with_bias(layer: Any, zero_bias: bool) -> Any:
    return layer.without_bias() if zero_bias else layer


@dataclasses.dataclass(frozen=True)
class Epsilon(Stabilized):
    r"""LRP-epsilon; with ``epsilon=0`` LRP-0.

    $$R_j = x_j \sum_k w_{jk} \frac{R_k}{z_k + \epsilon\,\mathrm{sign}(z_k)}$$

    Costs what a gradient costs. On a network of ReLUs, ``epsilon=0`` equals gradient times input.
    Also serves sums, means and average pools (there it is Zennit's Norm and the sum rule of
    Arras) and activations: ``R_x = x phi(x) / s(x) c`` is DeepExplain's elrp with epsilon 1e-4.

    Args:
      epsilon: stabilizer of the denominator, in the units of z; default 1e-6.
      stabilizer: ``"additive"``, ``"clip"``, ``"scale"`` or a callable, see `stabilize`.
      zero_bias: leaves the bias out of the denominator, so that it absorbs nothing.
      bias_share: the part of ``b + epsilon sign(z)`` that is spread over the inputs in equal
        shares (the ``bias_factor`` of Arras et al.); 1 conserves relevance exactly. Of a sum it
        goes to all features of both summands.

    Raises:
      HyperparameterError: a negative or non-finite epsilon, an unknown stabilizer.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: jnp.maximum(x @ w, 0)
      >>> w, x = jnp.array([[1.0, -1.0], [2.0, 1.0]]), jnp.array([1.0, 0.5])
      >>> print(relax.lrp(f, relax.rules.Epsilon(0.0))(w, x))
      [1. 1.]

    Source: Bach et al. 2015, eq. (58); Montavon et al. 2019, section 10.2.
    """

    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")
    zero_bias: bool = static(False)
    bias_share: float = static(0.0)

    kinds = AFFINE
    serves = LINEAR | {"activation", "normalization"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.bias_share):
            raise HyperparameterError(
                f"Epsilon(bias_share={self.bias_share!r}): expected a Python number."
            )

    @property
    def is_transpose(self) -> bool:
        """Whether a coefficient passes as under the plain transpose: LRP-0."""
        return is_zero(self.epsilon) and not self.zero_bias and self.bias_share == 0

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient" if self.bias_share == 0 else "relevance"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        if hasattr(layer, "ratio"):  # an activation
            return out.over(self.denominator(layer, x)) if not self.bias_share else out.relevance
        z = layer.without_bias()(x) if self.zero_bias and layer.bias is not None else out.value
        if is_zero(self.epsilon) and z is out.value and out.currency == "coefficient":
            s = out.message
        else:
            s = self.quotient(layer, out, z, int(out.rectified and z is out.value))
        c = layer.transpose(s)
        if self.bias_share == 0:
            return c
        return add(jax.tree.map(lambda a, b: a * b, x, c), self._shared(layer, x, z, s))

    def terms(self, layer: Any, x: Any, out: Outgoing) -> list[Term]:
        if hasattr(layer, "ratio"):
            return [Term(x)]
        if hasattr(layer, "full"):  # a normalization, which has its shift inside
            return [Term(out.value, out.value - layer.linear(x))]
        if self.zero_bias and layer.bias is not None:
            return [Term(layer.without_bias()(x))]
        return [Term(out.value, layer.bias)]

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        found = super().absorbed(layer, x, out)
        kept = 1 - self.bias_share
        return found | {cause: kept * found[cause] for cause in ("bias", "stabilizer")}

    def _shared(self, layer: Any, x: Any, z: jax.Array, s: jax.Array) -> Any:
        """Equal shares of what bias and stabilizer absorbed."""
        if isinstance(x, tuple) and len(x) > 1:
            return self._shared_of_sum(layer, x, z, s)
        ones = layer.ones()
        count = jnp.broadcast_to(ones.linear(layer.constant(1)), z.shape)
        absorbed = self.denominator(layer, z).astype(z.dtype) - z
        if layer.bias is not None and not self.zero_bias:
            absorbed = absorbed + layer.bias
        return ones.transpose(self.bias_share * divide(absorbed * s, count))

    def _shared_of_sum(self, layer: Any, x: Any, z: jax.Array, s: jax.Array) -> Any:
        """A sum is the product with identities: all features of all summands take a share."""
        absorbed = self.denominator(layer, z).astype(z.dtype) - z
        axes = tuple(axis for axis in range(z.ndim) if axis not in layer.batch_axes)
        count = len(x) * math.prod(z.shape[axis] for axis in axes)
        share = self.bias_share * jnp.sum(absorbed * s, axes, keepdims=True) / count
        return tuple(jnp.broadcast_to(share, a.shape) for a in x)


@dataclasses.dataclass(frozen=True)
class Norm(Epsilon):
    r"""Epsilon that normalizes sums and average pools; ``zero_bias`` has no meaning for it.

    $$R_j = x_j \sum_k w_{jk} \frac{R_k}{z_k + \epsilon\,\mathrm{sign}(z_k)}$$

    Shapes, errors and example: see `Epsilon`. Source: Zennit 1.0, rule Norm.
    """

    kinds = SUMS
    serves = LINEAR


@dataclasses.dataclass(frozen=True)
class ZPlus(Stabilized):
    r"""LRP-z+: only what speaks for the output counts; AlphaBeta with alpha 1, beta 0.

    $$R_j = \sum_k \frac{x_j^+ w_{jk}^+ + x_j^- w_{jk}^-}
                        {s(\sum_i x_i^+ w_{ik}^+ + x_i^- w_{ik}^- + b_k^+)} R_k$$

    Where x is known to be non-negative it costs 1.5 gradients, else 2.5.

    Args:
      epsilon, stabilizer: see `Epsilon`.
      zero_bias: leaves ``b+`` out of the denominator.

    Raises:
      HyperparameterError: see `Epsilon`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [-1.0], [3.0]]), jnp.array([1.0, 1.0, 1.0])
      >>> print(relax.lrp(f, relax.rules.ZPlus(epsilon=0.0))(w, x))
      [0.75 0.   2.25]

    Source: Montavon et al. 2017 (deep Taylor decomposition), eq. (12).
    """

    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")
    zero_bias: bool = static(False)

    serves = SUMS
    takes_relevance = True

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return _excitation(self, layer, x, out)

    def terms(self, layer: Any, x: Any, out: Outgoing) -> list[Term]:
        plus = with_bias(layer.positive(), self.zero_bias)
        return [Term(_signed(layer, x, plus, layer.negative()), plus.bias)]


def _signed(layer: Any, x: Any, above: Any, below: Any) -> jax.Array:
    """``x+ above + x- below``, with the bias of the first."""
    if layer.nonnegative:
        return above(x)
    return above(positive(x)) + below.linear(negative(x))


def _excitation(rule: Any, layer: Any, x: Any, out: Outgoing) -> Any:
    """Coefficient of the z+ term."""
    plus = with_bias(layer.positive(), rule.zero_bias)
    if layer.nonnegative:
        return plus.transpose(rule.quotient(layer, out, plus(x), 1))
    minus = layer.negative()
    s = rule.quotient(layer, out, plus(positive(x)) + minus.linear(negative(x)), 1)
    return by_sign(x, plus.transpose(s), minus.transpose(s))


def _inhibition(rule: Any, layer: Any, x: Any, out: Outgoing) -> Any:
    """Coefficient of the z- term."""
    minus = with_bias(layer.negative(), rule.zero_bias)
    if layer.nonnegative:
        return minus.transpose(rule.quotient(layer, out, minus(x), -1))
    plus = layer.positive()
    s = rule.quotient(layer, out, minus(positive(x)) + plus.linear(negative(x)), -1)
    return by_sign(x, minus.transpose(s), plus.transpose(s))


@dataclasses.dataclass(frozen=True)
class AlphaBeta(Stabilized):
    r"""LRP-alpha-beta: positive and negative contributions apart, ``alpha - beta = 1``.

    $$R_j = \alpha \sum_k \frac{x_j^+ w_{jk}^+ + x_j^- w_{jk}^-}{s(z_k^+)} R_k
          - \beta  \sum_k \frac{x_j^+ w_{jk}^- + x_j^- w_{jk}^+}{s(z_k^-)} R_k$$

    with $z^+ = \sum_i x_i^+ w_i^+ + x_i^- w_i^- + b^+$ and
    $z^- = \sum_i x_i^+ w_i^- + x_i^- w_i^+ + b^-$. Costs 2.5 gradients where x is known to be
    non-negative; with ``beta=0`` as a Python number it is `ZPlus` and costs the same.

    Args:
      alpha, beta: weights of what speaks for and against the output.
      epsilon, stabilizer, zero_bias: see `ZPlus`.

    Raises:
      HyperparameterError: ``alpha - beta`` is not 1, or a value is not finite.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [-1.0], [3.0]]), jnp.array([1.0, 1.0, 1.0])
      >>> print(relax.lrp(f, relax.rules.AlphaBeta(2.0, 1.0, epsilon=0.0))(w, x))
      [ 1.5 -3.   4.5]

    Source: Bach et al. 2015, eq. (60).
    """

    alpha: Any = 2.0
    beta: Any = 1.0
    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")
    zero_bias: bool = static(False)

    serves = SUMS
    takes_relevance = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "alpha", "beta")
        alpha, beta = known(self.alpha), known(self.beta)
        if alpha is not None and beta is not None and np.any(np.abs(alpha - beta - 1) > 1e-6):
            raise HyperparameterError(
                f"AlphaBeta(alpha={text(self.alpha)}, beta={text(self.beta)}): alpha - beta must "
                f"be 1, or relevance is not conserved.\n"
                f"  Try AlphaBeta({text(self.alpha)}, {text(self.alpha - 1)})."
            )

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        result = jax.tree.map(lambda c: self.alpha * c, _excitation(self, layer, x, out))
        if is_zero(self.beta):
            return result
        return add(result, _inhibition(self, layer, x, out), -self.beta)

    def terms(self, layer: Any, x: Any, out: Outgoing) -> list[Term]:
        plus = with_bias(layer.positive(), self.zero_bias)
        minus = with_bias(layer.negative(), self.zero_bias)
        return [
            Term(_signed(layer, x, plus, minus), plus.bias, self.alpha),
            Term(_signed(layer, x, minus, plus), minus.bias, -self.beta),
        ]


@dataclasses.dataclass(frozen=True)
class ExcitationBackprop(ZPlus):
    r"""Excitation backprop (marginal winning probability): `ZPlus` under the name of its paper.

    $$R_j = \sum_k \frac{x_j^+ w_{jk}^+ + x_j^- w_{jk}^-}
                        {s(\sum_i x_i^+ w_{ik}^+ + x_i^- w_{ik}^- + b_k^+)} R_k$$

    Arguments, errors and example: see `ZPlus`. The paper has no bias: ``zero_bias=True``.
    Source: Zhang et al. 2016, eq. (5).
    """


__all__ = [
    "AffineRule",
    "AlphaBeta",
    "Epsilon",
    "ExcitationBackprop",
    "Norm",
    "ZPlus",
]
