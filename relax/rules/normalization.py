"""Rules for normalizations ``y = g (x - m) / d + b``, with d a statistic of x.

For relevance the statistic d is a constant. The default is `relax.rules.Linear`: centering, scale
and shift are linear, so the shift absorbs its share. `relax.rules.Epsilon` on the whole layer
divides by the stabilized y.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from relax._errors import RuleError
from relax._numerics import Stabilizer, divide, stabilize, wide
from relax.rules._base import Currency, Outgoing, Rule, require_finite, static
from relax.rules._terms import Term, absorbed_by
from relax.rules.affine import check_stabilizer


class NormalizationRule(Rule):
    """Base class of rules for normalizations."""

    kinds = frozenset({"normalization"})


@dataclasses.dataclass(frozen=True)
class Identity(NormalizationRule):
    r"""Relevance passes a normalization unchanged.

    $$R_x = R_y$$

    For an RMSNorm, which neither centers nor shifts, this is what `Linear` gives.

    Raises:
      RuleError: input and output differ in shape.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda x: x / jnp.sqrt(jnp.mean(x * x))
      >>> print(relax.lrp(f, relax.rules.Identity())(jnp.array([1.0, 7.0])))
      [0.2 1.4]

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.4.
    """

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        relevance = out.relevance
        if relevance.shape != x.shape:
            raise RuleError(
                f"Identity: the normalization turns shape {x.shape} into {relevance.shape}."
            )
        return relevance.astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LayerNormRule(NormalizationRule):
    r"""The LN-rule: scale and shift pass relevance unchanged, the centering shares it.

    $$R_i = \sum_j \frac{x_i\,(\delta_{ij} - 1/N)}{s\big(\sum_k x_k (\delta_{kj} - 1/N)\big)} R_j$$

    Args:
      epsilon, stabilizer: see `Epsilon`; in the units of the scaled value.

    Raises:
      HyperparameterError: see `Epsilon`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda x: (x - x.mean()) / jnp.std(x) + 5.0
      >>> print(relax.lrp(f, relax.rules.LayerNormRule(0.0))(jnp.array([1.0, 3.0])))
      [-5. 15.]

    Source: Ali et al. 2022 (conservative propagation), eq. (8); LayerNormRule of
    RelevancePropagation.jl.
    """

    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")

    def __post_init__(self) -> None:
        require_finite(self, "epsilon", at_least=0)
        check_stabilizer(self)

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        whole = self._denominator(layer, wide(layer.linear(x)))
        return layer.transpose(divide(wide(out.relevance), whole))

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        term = Term(wide(layer.linear(x)))
        shifted = Outgoing(out.value, out.relevance, "relevance")
        return absorbed_by([term], shifted, lambda n: self._denominator(layer, n))

    def _denominator(self, layer: Any, n: jax.Array) -> jax.Array:
        return stabilize(n, self.epsilon, self.stabilizer, layer.batch_axes)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NormalizationMap:
    """What rules see of a normalization; its statistic is held.

    Attributes:
      function: ``x -> y``, affine; ``full``: the same with the statistic computed from x.
      input, output: x and y.
    """

    function: Callable[[Any], jax.Array]
    full: Callable[[Any], jax.Array]
    input: Any
    output: Any
    batch_axes: tuple[int, ...] = ()
    bias: None = None

    def __call__(self, x: Any) -> jax.Array:
        return self.function(x)

    def linear(self, x: Any) -> jax.Array:
        """y without its shift."""
        return jax.jvp(self.function, (x,), (x,))[1]

    def transpose(self, s: jax.Array) -> Any:
        """The transposed linear part."""
        return jax.vjp(self.function, self.input)[1](s.astype(self.output.dtype))[0]

    def pull_back(self, cotangent: jax.Array) -> Any:
        """The transposed Jacobian, that of the statistic included."""
        return jax.vjp(self.full, self.input)[1](cotangent)[0]


__all__ = ["Identity", "LayerNormRule", "NormalizationRule"]
