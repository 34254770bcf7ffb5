"""LRP-gamma, generalized and as first written: rules that favor one sign of the weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from relax._numerics import Stabilizer, at_most, is_number, negative, positive, wide
from relax.rules._base import SUMS, Currency, Outgoing, require_finite, static
from relax.rules._terms import Term
from relax.rules.affine import Stabilized, add, by_sign, with_bias


@dataclasses.dataclass(frozen=True)
class Gamma(Stabilized):
    r"""LRP-gamma in its generalized form: favors what agrees with the sign of the output.

    With $u = w + \gamma w^+$ and $v = w + \gamma w^-$, and z the layer's true output,

    $$R_j = \sum_{k: z_k > 0} \frac{x_j^+ u_{jk} + x_j^- v_{jk}}
                {s(\sum_i x_i^+ u_{ik} + x_i^- v_{ik} + b_k + \gamma b_k^+)} R_k
          + \sum_{k: z_k < 0} \frac{x_j^+ v_{jk} + x_j^- u_{jk}}
                {s(\sum_i x_i^+ v_{ik} + x_i^- u_{ik} + b_k + \gamma b_k^-)} R_k$$

    On non-negative inputs with an output that only a ReLU reads this is the textbook rule and costs
    1.5 gradients: z is reused as ``z + gamma z+``, which cannot cancel where it is used.

    Args:
      gamma: 0 is Epsilon, infinity is z+; default 0.25.
      epsilon, stabilizer, zero_bias: see `ZPlus`; the sign test uses the real z in any case.

    Raises:
      HyperparameterError: a negative or non-finite gamma.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [-2.0], [2.0]]), jnp.array([1.0, 1.0, 1.0])
      >>> print(relax.lrp(f, relax.rules.Gamma(1.0, epsilon=0.0))(w, x))
      [ 0.5 -0.5  1. ]

    Source: Montavon et al. 2019, section 10.2; generalized by Andéol et al. 2023, eq. (7).
    """

    gamma: Any = 0.25
    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")
    zero_bias: bool = static(False)

    serves = SUMS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "gamma", at_least=0)

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        z = out.value
        changed = with_bias(layer, self.zero_bias)
        base = wide(changed(x) if self.zero_bias else z)
        plus = changed.positive()
        z_plus = wide(
            plus(x)
            if layer.nonnegative
            else plus(positive(x)) + layer.negative().linear(negative(x))
        )
        w_plus = self._boosted(layer, positive)
        dead = out.rectified
        known = int(dead and not self.zero_bias)  # then both parts are positive where z is
        above = self.quotient(layer, out, base + self.gamma * z_plus, known)
        if not dead:
            above = jnp.where(z > 0, above, 0)
        if layer.nonnegative and dead:
            return w_plus.transpose(above)
        w_minus = self._boosted(layer, negative)
        if dead:
            return by_sign(x, w_plus.transpose(above), w_minus.transpose(above))
        # z- = z - z+ cannot cancel where it is used: there z < 0 and z+ >= 0.
        below = out.over(self.denominator(layer, base + self.gamma * (base - z_plus)))
        below = jnp.where(z < 0, below, 0)
        result = add(w_plus.transpose(above), w_minus.transpose(below))
        if layer.nonnegative:
            return result
        return by_sign(x, result, add(w_minus.transpose(above), w_plus.transpose(below)))

    def terms(self, layer: Any, x: Any, out: Outgoing) -> list[Term]:
        z = out.value
        changed = with_bias(layer, self.zero_bias)
        base = changed(x) if self.zero_bias else z
        plus = changed.positive()
        z_plus = plus(positive(x)) + layer.negative().linear(negative(x))
        bias = changed.bias
        boost = lambda part: None if bias is None else bias + self.gamma * part(bias)
        return [
            Term(base + self.gamma * z_plus, boost(positive), jnp.where(z > 0, 1, 0)),
            Term(base + self.gamma * (base - z_plus), boost(negative), jnp.where(z < 0, 1, 0)),
        ]

    def _boosted(self, layer: Any, part: Any) -> Any:
        if not hasattr(layer, "map"):  # a sum: all weights are positive
            scale = self.gamma if part is positive else 0 * self.gamma
            return dataclasses.replace(
                layer, function=lambda x: (1 + scale) * layer.function(x), output=None
            )
        boosted = layer.map(lambda w: w + self.gamma * part(w))
        if is_number(self.gamma) or not _has_large_weights(layer):
            return boosted
        return _Boosted(layer, layer.map(part), self.gamma)


def _has_large_weights(layer: Any) -> bool:
    """Weights that are much larger than what is multiplied with them: a sweep over gamma should
    not make one copy of them for each value."""
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(layer.make_weight))]
    return at_most(256 * math.prod(layer.core_shape), sum(sizes))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Boosted:
    """``w + gamma part(w)`` in two products: the weights do not depend on gamma."""

    layer: Any
    part: Any
    gamma: Any

    def transpose(self, s: jax.Array) -> Any:
        scaled = jax.tree.map(lambda a: self.gamma * a, self.part.transpose(s))
        return add(self.layer.transpose(s), scaled)


GeneralizedGamma = Gamma  # its name in RelevancePropagation.jl


@dataclasses.dataclass(frozen=True)
class TextbookGamma(Stabilized):
    r"""LRP-gamma as first written, without regard to the signs of x and z.

    $$R_j = \sum_k \frac{x_j (w_{jk} + \gamma w_{jk}^+)}
                        {s(\sum_i x_i (w_{ik} + \gamma w_{ik}^+) + b_k + \gamma b_k^+)} R_k$$

    Meant for layers between ReLUs; elsewhere use `Gamma`.

    Args:
      gamma, epsilon, stabilizer, zero_bias: see `Gamma`.

    Raises:
      HyperparameterError: a negative or non-finite gamma.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [-2.0], [2.0]]), jnp.array([1.0, 1.0, 1.0])
      >>> print(relax.lrp(f, relax.rules.TextbookGamma(1.0, epsilon=0.0))(w, x))
      [ 0.5 -0.5  1. ]

    Source: Montavon et al. 2019, section 10.2; GammaRule of RelevancePropagation.jl.
    """

    gamma: Any = 0.25
    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")
    zero_bias: bool = static(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "gamma", at_least=0)

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        boost = lambda a: a + self.gamma * positive(a)
        boosted = with_bias(layer.map(boost, boost), self.zero_bias)
        return boosted.transpose(out.over(self.denominator(layer, boosted(x))))

    def terms(self, layer: Any, x: Any, out: Outgoing) -> list[Term]:
        boost = lambda a: a + self.gamma * positive(a)
        boosted = with_bias(layer.map(boost, boost), self.zero_bias)
        return [Term(boosted(x), boosted.bias)]


__all__ = ["Gamma", "GeneralizedGamma", "TextbookGamma"]
