"""Rules for softmax, log_softmax and logsumexp."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from relax._numerics import divide
from relax.rules._base import Currency, Outgoing, Rule
from relax.rules._maps import GeneralMap


class SoftmaxRule(Rule):
    """Base class of rules for softmax and its relatives."""

    kinds = frozenset({"softmax"})


@dataclasses.dataclass(frozen=True)
class Jacobian(SoftmaxRule):
    r"""The first-order Taylor expansion of the softmax: its plain Jacobian, the default.

    $$R_x = x \odot \big(R - s \textstyle\sum R\big), \qquad c_x = J^\top c_s$$

    Does not conserve: the rest belongs to the bias of the expansion. Costs what the gradient costs.
    A masked logit gets exactly 0.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: 4 * jax.nn.softmax(x)[0]
      >>> print(relax.lrp(f, relax.rules.Jacobian())(jnp.array([1.0, 1.0])))
      [ 1. -1.]

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.1.
    """

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return layer.transpose(out.coefficient)


@dataclasses.dataclass(frozen=True)
class Constant(SoftmaxRule):
    r"""Attention weights are constants: nothing passes, and queries and keys get no relevance.

    $$R_x = 0$$

    With all relevance of the weighted sum given to the values (`SignalTakeAll`) attention conserves
    exactly; see `relax.composites.cp_lrp`.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: jax.nn.softmax(x) @ x
      >>> rules = [("softmax", relax.rules.Constant()), ("*", relax.rules.Right())]
      >>> x = jnp.array([1.0, 1.0])
      >>> print(f(x), relax.lrp(f, rules)(x))
      1.0 [0.5 0.5]

    Source: Ali et al. 2022 (conservative propagation), section 4.
    """

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return arriving

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return tuple(None for _ in x)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SoftmaxMap(GeneralMap):
    """What rules see of a softmax.

    Attributes:
      normalizer: of exponentials that are divided by their sum further on: the functions from their
        ``value`` to the sum, and from that to what is divided by, such as ``s + 1e-9``.
      evaluated: the layer with its equations, where all of the softmax is in it.
    """

    normalizer: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None
    value: Any = None
    evaluated: Any = None

    def transpose(self, coefficients: tuple[jax.Array, ...]) -> Any:
        r"""The transposed Jacobian, that of the division further on included.

        What is made of the exponentials e is linear in them and divided by d(s) with
        $s = \sum e$. By the chain rule the sum gets
        $c_s = -\frac{d'(s)}{d(s)} \sum e\,c_e$, in the share that a product on the way has left of
        it.
        """
        if self.normalizer is None:
            return self.pull_back(coefficients)
        (c,), (summed, total) = coefficients, self.normalizer
        s, weight = jax.jvp(summed, (self.value,), (self.value * c,))
        d, pull_total = jax.vjp(total, s)
        (relative,) = pull_total(divide(jnp.ones_like(d), d))
        (shift,) = jax.vjp(summed, self.value)[1](-weight * relative)
        return self.pull_back((c + shift,))


__all__ = ["Constant", "Jacobian", "SoftmaxMap", "SoftmaxRule"]
