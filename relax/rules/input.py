"""Rules for the first layer, where zero input may carry relevance; they act at any depth.

Their relevance is not proportional to x, so it travels as relevance, not as a coefficient.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import HyperparameterError
from relax._numerics import Stabilizer, stabilize, wide
from relax.rules._base import AFFINE, SUMS, Outgoing, known, require_finite, static
from relax.rules._terms import Term, absorbed_by
from relax.rules.affine import AffineRule, check_stabilizer


@dataclasses.dataclass(frozen=True)
class WSquare(AffineRule):
    r"""LRP-w^2: relevance in proportion to the squared weights, whatever the input.

    $$R_j = \sum_k \frac{w_{jk}^2}{s(\sum_i w_{ik}^2 + b_k^2)} R_k$$

    Sums run over the true receptive field at padded borders.

    Args:
      epsilon, stabilizer: see `Epsilon`.
      zero_bias: leaves $b^2$ out of the denominator (LRP Toolbox, RelevancePropagation.jl).

    Raises:
      HyperparameterError: see `Epsilon`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])
      >>> print(relax.lrp(f, relax.rules.WSquare(epsilon=0.0))(w, x))
      [0.3 2.7]

    Source: Montavon et al. 2017, eq. (11).
    """

    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")
    zero_bias: bool = static(False)

    serves = SUMS
    takes_relevance = True

    def __post_init__(self) -> None:
        require_finite(self, "epsilon", at_least=0)
        check_stabilizer(self)

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return _share(self, self._squared(layer), out)

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        return _kept(self, self._squared(layer), out)

    def _squared(self, layer: Any) -> Any:
        squared = layer.squared()
        return squared.without_bias() if self.zero_bias else squared


@dataclasses.dataclass(frozen=True)
class Flat(AffineRule):
    r"""LRP-flat: equal shares to the whole receptive field.

    $$R_j = \sum_k \frac{1}{s(\sum_i 1)} R_k$$

    Sums run over the true receptive field at padded borders.

    Args:
      epsilon, stabilizer: see `Epsilon`.

    Raises:
      HyperparameterError: see `Epsilon`.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])
      >>> print(relax.lrp(f, relax.rules.Flat(epsilon=0.0))(w, x))
      [1.5 1.5]

    Source: Lapuschkin et al. 2019, methods.
    """

    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")

    serves = SUMS
    takes_relevance = True

    def __post_init__(self) -> None:
        require_finite(self, "epsilon", at_least=0)
        check_stabilizer(self)

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return _share(self, layer.ones(), out)

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        return _kept(self, layer.ones(), out)


def _denominator(rule: Any, layer: Any, z: jax.Array) -> jax.Array:
    return stabilize(wide(z), rule.epsilon, rule.stabilizer, layer.batch_axes)


def _share(rule: Any, layer: Any, out: Outgoing) -> Any:
    z = layer(layer.constant(1))
    return layer.transpose(out.over(_denominator(rule, layer, z)))


def _kept(rule: Any, layer: Any, out: Outgoing) -> dict[str, Any]:
    z = jnp.broadcast_to(layer(layer.constant(1)), jnp.shape(out.value))
    return absorbed_by([Term(z, layer.bias)], out, lambda z: _denominator(rule, layer, z))


@dataclasses.dataclass(frozen=True)
class ZBox(AffineRule):
    r"""LRP-z^B for inputs in a box, such as pixels.

    $$R_j = \sum_k \frac{x_j w_{jk} - l_j w_{jk}^+ - h_j w_{jk}^-}
                        {s(\sum_i x_i w_{ik} - l_i w_{ik}^+ - h_i w_{ik}^-)} R_k$$

    The bias cancels. Padding is zero, so beyond the border the box is [0, 0].

    Args:
      low, high: bounds l <= h of the input, scalars or arrays that broadcast to it.
      epsilon, stabilizer: see `Epsilon`.

    Raises:
      HyperparameterError: ``low > high``, or a bound that is not finite.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])
      >>> print(relax.lrp(f, relax.rules.ZBox(-0.25, 1.0, epsilon=0.0))(w, x))
      [0.1875 2.8125]

    Source: Montavon et al. 2017, eq. (13).
    """

    low: Any = -1.0
    high: Any = 1.0
    epsilon: Any = 1e-6
    stabilizer: Stabilizer = static("additive")

    kinds = AFFINE

    def __post_init__(self) -> None:
        require_finite(self, "epsilon", at_least=0)
        require_finite(self, "low", "high")
        check_stabilizer(self)
        low, high = known(self.low), known(self.high)
        if low is not None and high is not None and np.any(low > high):
            raise HyperparameterError(
                f"ZBox(low={self.low}, high={self.high}): low must not exceed high.\n"
                "  They are bounds of the input as the layer sees it, after preprocessing."
            )

    def propagate(self, layer: Any, x: jax.Array, out: Outgoing) -> Any:
        low, high = layer.constant(self.low), layer.constant(self.high)
        plain = layer.without_bias()
        plus = plain.positive()
        s = out.over(_denominator(self, layer, self._sum(plain, x)))
        c = plain.transpose(s)
        c_plus = plus.transpose(s)
        # w- = w - w+ spares a pass; the rounding error is that of the products themselves.
        return x * c - low * c_plus - high * (c - c_plus)

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        z = self._sum(layer.without_bias(), x)
        return absorbed_by([Term(z)], out, lambda z: _denominator(self, layer, z))

    def _sum(self, plain: Any, x: jax.Array) -> jax.Array:
        low, high = plain.constant(self.low), plain.constant(self.high)
        return plain(x) - plain.positive()(low) - plain.negative()(high)
