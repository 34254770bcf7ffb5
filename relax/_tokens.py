"""Relevance of integer tokens: it passes from the first float made of them to the ids.

An id has no derivative, so a float shadow of the same shape goes through every move of the ids. The
embedding look-up (or one-hot) is the identity forwards; backwards it sums the relevance of its
output over the feature axes and hands it to the shadow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from relax._graph import Equation, Graph
from relax._numerics import divide
from relax._ops import counted
from relax._primitives import ELEMENTWISE, gather_axes
from relax.rules._base import Currency, Outgoing


class Tokens:
    """The shadows of one evaluation, by value."""

    def __init__(self, graph: Graph, token: Sequence[bool], shadows: dict[int, Any]):
        self.graph, self.token, self.shadows = graph, token, shadows
        # The same moves on ones: which entries of a shadow are tokens, and not what joined them.
        self.present = {v: jnp.ones_like(shadow) for v, shadow in shadows.items()}

    def follow(self, equation: Equation) -> None:
        """Shadows of the outputs of an equation that moves token ids."""
        if not self.shadows or not any(self.token[v] for v in equation.outputs):
            return
        for known in (self.shadows, self.present):
            known.update(zip(equation.outputs, self._moved(equation, known), strict=True))

    def embedded(
        self, equation: Equation, x: jax.Array, arriving: Currency, total: jax.Array | None = None
    ) -> jax.Array:
        """The first float value made of tokens, tied to their shadow.

        ``total`` gets the relevance of what is a token, and no constant that was joined to them.
        """
        if not self.shadows:
            return x
        index = equation.inputs[-1]
        if equation.primitive is lax.gather_p and self.token[index]:
            features, size = gather_axes(equation.params, self.graph.shape(index))
            shadow, present = self.shadows[index], self.present[index]
            return embed((features, size, arriving), x, _told(shadow, present, total), present)
        if equation.primitive is lax.dynamic_slice_p:
            tokens = [v for v in equation.inputs if self.token[v]]
            own = _mean([self.shadows[v] for v in tokens])
            own = _told(own, _mean([self.present[v] for v in tokens]), total)
            return embed((tuple(range(x.ndim)), 1, arriving), x, own, jnp.ones_like(own))
        (shadow,) = self._moved(equation, self.shadows)
        (present,) = self._moved(equation, self.present)
        shadow = _told(shadow, present, total)
        return embed(((), 0, arriving), x, shadow, jnp.ones_like(shadow))

    def _moved(self, equation: Equation, known: dict[int, Any]) -> list[Any]:
        if equation.primitive in ELEMENTWISE:
            out = self.graph.shape(equation.outputs[0])
            own = [known[v] for v in equation.inputs if self.token[v]]
            return [jnp.broadcast_to(_mean(own), out)]
        dtype = next(iter(known.values())).dtype
        operands = [
            known[v] if v in known else self._blank(equation, v, dtype) for v in equation.inputs
        ]
        return equation.evaluate(operands)

    def _blank(self, equation: Equation, value: int, dtype: Any) -> Any:
        """Nothing, in the place of an operand that is moved along; indices stay what they are."""
        nothing = jnp.zeros(self.graph.shape(value), dtype)
        if value == equation.inputs[0] or equation.primitive.name in _JOINING:
            return nothing
        return self.graph.literals.get(value, nothing)


_JOINING = ("concatenate", "stack", "pad")


def _told(shadow: Any, present: Any, total: jax.Array | None) -> Any:
    """The shadow; the relevance that its tokens are handed is summed to ``total``."""
    if total is None:
        return shadow
    return jnp.where(present != 0, counted("relevance", shadow, total), shadow)


def _mean(shadows: Sequence[Any]) -> Any:
    total = functools.reduce(jnp.add, shadows)
    return total / len(shadows) if len(shadows) > 1 else total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def embed(
    static: tuple[tuple[int, ...], int, Currency], x: jax.Array, shadow: Any, present: Any
) -> jax.Array:
    """``x``; backwards the relevance of ``x``, summed over its feature axes, goes to the shadow.

    ``static`` holds the feature axes, the length of the trailing index axis of the shadow (0: it
    has none), and the currency that arrives. ``present`` is 1 where the shadow holds tokens: an
    index may have other components, such as the position.
    """
    return x


def _embed_fwd(static: Any, x: Any, shadow: Any, present: Any) -> Any:
    return x, (x, shadow, present)


def _embed_bwd(static: Any, residuals: Any, message: Any) -> Any:
    features, size, arriving = static
    x, shadow, present = residuals
    relevance = Outgoing(x, message, arriving).relevance.astype(shadow.dtype)
    relevance = jnp.sum(relevance, axis=features) if features else relevance
    if size:
        share = divide(present, jnp.sum(present, axis=-1, keepdims=True))
        relevance = relevance.reshape(*shadow.shape[:-1], 1) * share
    return jnp.zeros_like(x), relevance.reshape(shadow.shape), None


embed.defvjp(_embed_fwd, _embed_bwd)
