"""What the quotients of a rule keep: biases, stabilizers, denominators that are exactly zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from relax._numerics import wide
from relax.rules._base import Outgoing


class Term(NamedTuple):
    """One quotient ``R / s(z)`` of a rule.

    Attributes:
      z: the sum of all contributions, before it is stabilized.
      bias: what of it is no contribution of the input, or None.
      weight: of the quotient, a number or one for each output.
    """

    z: Any
    bias: Any = None
    weight: Any = 1.0


def absorbed_by(
    terms: Sequence[Term], out: Outgoing, denominator: Callable[[Any], Any]
) -> dict[str, Any]:
    """What biases, stabilizers and denominators that are exactly zero keep, in total."""
    if not terms:
        return {}
    bias: Any = 0.0
    stabilizer: Any = 0.0
    spread: Any = 0.0
    for term in terms:
        whole = denominator(term.z)
        s = term.weight * out.over(whole)
        spread = spread + jnp.sum(whole * s)
        stabilizer = stabilizer + jnp.sum((whole - term.z) * s)
        if term.bias is not None:
            bias = bias + jnp.sum(term.bias * s)
    dead = jnp.sum(wide(out.relevance)) - spread
    return {"bias": bias, "stabilizer": stabilizer, "dead": dead}
