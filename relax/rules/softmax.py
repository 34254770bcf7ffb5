"""Rules for softmax, log_softmax and logsumexp."""

from __future__ import annotations

import dataclasses
from typing import Any

from relax.rules._base import Currency, Outgoing, Rule


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
      >>> f = lambda x: jax.nn.softmax(x)[0]
      >>> print(relax.lrp(f, relax.rules.Jacobian())(jnp.array([1.0, 1.0])))
      [ 0.25 -0.25]

    Source: Achtibat et al. 2024 (AttnLRP), proposition 3.1.
    """

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return layer.pull_back(out.coefficient)


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


__all__ = ["Constant", "Jacobian", "SoftmaxRule"]
