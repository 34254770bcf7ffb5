"""Rules for activations ``y = phi(x)``, i.e. elementwise functions of one value."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from relax._errors import RuleError
from relax.rules._base import AFFINE, Currency, Outgoing, Rule, require_finite


class ActivationRule(Rule):
    """Base class of rules for activations."""

    kinds = frozenset({"activation"})


@dataclasses.dataclass(frozen=True)
class Pass(ActivationRule):
    r"""Relevance passes unchanged: the default for every activation.

    $$R_x = R_y$$

    As a coefficient $c_x = c_y\,\phi(x)/x$, with the limit $\phi'(0)$ at 0; where $\phi(0) \neq 0$
    (sigmoid, softplus, exp, cos) as relevance. Also serves affine layers whose input and output
    have the same shape, such as a BatchNorm of its own.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> print(relax.lrp(jnp.tanh, relax.rules.Pass())(jnp.array([0.0, 1.0])))
      [0.        0.7615942]

    Source: Bach et al. 2015, section 2.4.
    """

    serves = AFFINE | {"linear"}

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        if layer.kind != "activation" or not layer.details.passes_zero:
            return "relevance"
        return arriving

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        if not getattr(layer, "passes_zero", False):
            return jax.tree.map(lambda a: out.relevance.astype(a.dtype), x)
        if out.currency == "relevance":
            return out.message.astype(x.dtype)
        return (out.message * layer.ratio(x)).astype(x.dtype)


class ReLURule(ActivationRule):
    """A modified gradient at ReLUs; other activations take their gradient."""

    def propagate(self, layer: Any, x: jax.Array, out: Outgoing) -> jax.Array:
        relevance = out.relevance
        if not layer.is_relu:
            return relevance * layer.derivative(x)
        return self.rectified(x, relevance)

    def rectified(self, x: jax.Array, relevance: jax.Array) -> jax.Array:
        raise RuleError(f"{type(self).__name__} defines no method `rectified`.")


@dataclasses.dataclass(frozen=True)
class GuidedBackprop(ReLURule):
    r"""Guided backpropagation: at a ReLU, the positive part of the gradient.

    $$R_x = [x > 0]\,R_y^+$$

    Other activations take their gradient. See `relax.composites.guided_backprop`.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> rules = relax.composites.guided_backprop()
      >>> print(relax.lrp(lambda x: 3 * jax.nn.relu(x), rules)(jnp.array([-1.0, 2.0])))
      [ 0. 18.]

    Source: Springenberg et al. 2015, section 3.4.
    """

    def rectified(self, x: jax.Array, relevance: jax.Array) -> jax.Array:
        return jnp.where(x > 0, jnp.maximum(relevance, 0), 0)


@dataclasses.dataclass(frozen=True)
class Deconvnet(ReLURule):
    r"""Deconvnet: at a ReLU, the positive part of what arrives, whatever the input.

    $$R_x = R_y^+$$

    Other activations take their gradient. See `relax.composites.deconvnet`.

    Source: Zeiler and Fergus 2014, section 2.1.
    """

    def rectified(self, x: jax.Array, relevance: jax.Array) -> jax.Array:
        return jnp.where(relevance > 0, relevance, 0)


@dataclasses.dataclass(frozen=True)
class BetaSmooth(ReLURule):
    r"""The gradient of a softplus in the place of every ReLU.

    $$R_x = R_y\,\sigma(\beta x)$$

    Args:
      beta: sharpness, in units of 1/x; default 10.

    Raises:
      HyperparameterError: a non-finite beta.

    Source: Dombrowski et al. 2019, section 4.
    """

    beta: Any = 10.0

    def __post_init__(self) -> None:
        require_finite(self, "beta")

    def rectified(self, x: jax.Array, relevance: jax.Array) -> jax.Array:
        return (relevance * lax.logistic(self.beta * x)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Rescale(ActivationRule):
    r"""DeepLIFT's rescale rule for one activation, against a reference input.

    $$c_x = c_y \frac{\phi(x) - \phi(x_0)}{x - x_0}$$

    and $\phi'$ at the midpoint where $|x - x_0| < 10^{-5}$; c multiplies differences from the
    reference.

    Args:
      reference: $x_0$, the activation's input at the baseline; a scalar or array that broadcasts.

    Raises:
      HyperparameterError: a non-finite reference.

    Source: Shrikumar et al. 2017, section 3.5.
    """

    reference: Any = 0.0

    def __post_init__(self) -> None:
        require_finite(self, "reference")

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: jax.Array, out: Outgoing) -> jax.Array:
        reference = jnp.broadcast_to(jnp.asarray(self.reference, x.dtype), x.shape)
        difference = x - reference
        close = jnp.abs(difference) < 1e-5
        quotient = (layer(x) - layer(reference)) / jnp.where(close, 1, difference)
        slope = jnp.where(close, layer.derivative((x + reference) / 2), quotient)
        return out.coefficient * slope


__all__ = [
    "ActivationRule",
    "BetaSmooth",
    "Deconvnet",
    "GuidedBackprop",
    "Pass",
    "Rescale",
]
