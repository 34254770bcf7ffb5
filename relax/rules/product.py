"""Rules for products ``y = a b`` of two values that both depend on the input.

Elementwise products (gates, gated layers) and matrix products (queries and keys, weights and
values) alike; R is the relevance of y.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from relax._errors import HyperparameterError, RuleError
from relax.rules._base import Currency, Outgoing, Rule, static

GATES = ("unit", "softmax", "activation")


class ProductRule(Rule):
    """Base class of rules for products: says which share each of the two operands takes."""

    kinds = frozenset({"product"})

    def shares(self, layer: Any) -> tuple[float, float]:
        """The shares of the two operands; they should add up to 1."""
        raise RuleError(f"{type(self).__name__} defines no method `shares`.")

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        if type(self).relevance is not Rule.relevance:
            return "relevance"
        return arriving if self._passes(layer) else "coefficient"

    def _taken(self, layer: Any) -> tuple[float, float]:
        first, second = layer.details.fixed
        return (0.0, 1.0) if first else (1.0, 0.0) if second else self.shares(layer)

    def _passes(self, layer: Any) -> bool:
        """An elementwise product whose one factor takes all, also where it is zero."""
        return layer.details.elementwise and set(self._taken(layer)) == {0.0, 1.0}

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        if type(self).relevance is not Rule.relevance:
            return super().propagate(layer, x, out)
        shares = self._taken(layer)
        if out.currency == "relevance" and self._passes(layer):
            parts = tuple(out.message if share else None for share in shares)
            return parts if not layer.same else (out.message,)
        return layer.share(out.coefficient, shares)


@dataclasses.dataclass(frozen=True)
class Uniform(ProductRule):
    r"""Half to each operand of a product.

    $$R_a = \tfrac12 \sum a\,b\,\frac{R}{y}, \qquad R_b = \tfrac12 \sum a\,b\,\frac{R}{y}$$

    As coefficients half the gradient, so that attention costs what its gradient costs. A
    denominator, and a statistic such as a norm, takes nothing under any rule.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda x: (x @ jnp.eye(2)) * jnp.flip(x)
      >>> print(relax.lrp(f, relax.rules.Uniform(), target=0)(jnp.array([2.0, 3.0])))
      [3. 3.]

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.3 and eq. (14).
    """

    def shares(self, layer: Any) -> tuple[float, float]:
        return 0.5, 0.5


@dataclasses.dataclass(frozen=True)
class SignalTakeAll(ProductRule):
    r"""All to the signal, nothing to the gate: the default of products.

    $$R_{\mathrm{signal}} = R, \qquad R_{\mathrm{gate}} = 0$$

    Where neither operand is a gate, or both are, each takes half, as under `Uniform`.

    Args:
      gates: what counts as a gate, the surest sign first. ``"unit"``: known to lie in [0, 1], such
        as a sigmoid; ``"softmax"``: the weights of a softmax; ``"activation"``: the activated one
        of two, as in a SwiGLU.

    Raises:
      HyperparameterError: a word that is none of these.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: jax.nn.sigmoid(x[0]) * x[1]
      >>> print(relax.lrp(f, relax.rules.SignalTakeAll())(jnp.array([0.0, 3.0])))
      [0.  1.5]

    Source: Arras et al. 2017, section 3; Ali et al. 2022 for attention weights.
    """

    gates: tuple[str, ...] = static(("unit",))

    def __post_init__(self) -> None:
        if not isinstance(self.gates, tuple) or any(word not in GATES for word in self.gates):
            raise HyperparameterError(
                f"SignalTakeAll(gates={self.gates!r}): expected a tuple of {', '.join(GATES)}."
            )

    def shares(self, layer: Any) -> tuple[float, float]:
        for sign in self.gates:
            first, second = getattr(layer.details, sign)
            if sign == "unit":  # what attention weights multiply is their signal, also in [0, 1]
                weights = layer.details.softmax
                first, second = first and not weights[1], second and not weights[0]
            if first != second:
                return (0.0, 1.0) if first else (1.0, 0.0)
        return 0.5, 0.5


@dataclasses.dataclass(frozen=True)
class Left(ProductRule):
    r"""All to the left operand.

    $$R_a = R, \qquad R_b = 0$$

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda x: x[0] * x[1]
      >>> print(relax.lrp(f, relax.rules.Left())(jnp.array([2.0, 3.0])))
      [6. 0.]

    Source: Ali et al. 2022 (conservative propagation), section 4, for queries and keys.
    """

    def shares(self, layer: Any) -> tuple[float, float]:
        return 1.0, 0.0


@dataclasses.dataclass(frozen=True)
class Right(ProductRule):
    r"""All to the right operand.

    $$R_a = 0, \qquad R_b = R$$

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda x: x[0] * x[1]
      >>> print(relax.lrp(f, relax.rules.Right())(jnp.array([2.0, 3.0])))
      [0. 6.]

    Source: Ali et al. 2022 (conservative propagation), section 4.
    """

    def shares(self, layer: Any) -> tuple[float, float]:
        return 0.0, 1.0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ProductMap:
    """What rules see of a product.

    Attributes:
      function: ``(a, b) -> y``; ``operands``: a and b.
      same: both are the same value.
      details: which operand is a gate of what sort, see `SignalTakeAll`.
    """

    function: Any
    operands: tuple[Any, Any]
    same: bool
    details: Any

    def __call__(self, operands: Any) -> jax.Array:
        return self.function(*operands)

    def pull_back(self, cotangent: jax.Array) -> tuple[Any, ...]:
        """The transposed Jacobian, for each input."""
        return self.share(cotangent, (1.0, 1.0))

    def share(self, coefficient: jax.Array, shares: tuple[float, float]) -> tuple[Any, ...]:
        """Coefficients of the inputs: the gradient times the share; None for no share at all."""
        parts = [
            None if share == 0 else _scaled(share, self._transpose(position, coefficient))
            for position, share in enumerate(shares)
        ]
        if not self.same:
            return tuple(parts)
        known = [part for part in parts if part is not None]
        return (sum(known[1:], known[0]),)

    def _transpose(self, position: int, coefficient: jax.Array) -> Any:
        a, b = self.operands
        if position == 0:
            return jax.vjp(lambda x: self.function(x, b), a)[1](coefficient)[0]
        return jax.vjp(lambda x: self.function(a, x), b)[1](coefficient)[0]


def _scaled(share: float, coefficient: jax.Array) -> jax.Array:
    return coefficient if share == 1 else share * coefficient


__all__ = ["Left", "ProductMap", "ProductRule", "Right", "SignalTakeAll", "Uniform"]
