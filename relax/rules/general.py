"""Rules for any layer: the transpose, the plain gradient, and a mask in front of another rule."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from relax._errors import RuleError
from relax._numerics import wide
from relax.rules._base import AFFINE, LINEAR, WINNERS, Currency, Outgoing, Rule, static

ANYTHING = (
    LINEAR
    | WINNERS
    | {"activation", "unsupported", "product", "softmax", "normalization", "custom"}
)


@dataclasses.dataclass(frozen=True)
class Linear(Rule):
    r"""The transpose, exact and free: the default of sums, means, pools and other linear layers.

    $$c_x = J^\top c_y, \qquad R_x = x\,c_x$$

    For a linear layer it is Epsilon with epsilon 0; a normalization is one, its statistic held.
    Given by name to a layer that is not linear it is gradient times input there.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> print(relax.lrp(lambda x: x.mean(), relax.rules.Linear())(jnp.array([1.0, 3.0])))
      [0.5 1.5]

    Source: Bach et al. 2015, eq. (56).
    """

    kinds = LINEAR | {"normalization"}
    serves = ANYTHING

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return arriving if getattr(layer.details, "one_to_one", False) else "coefficient"

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        if getattr(layer, "one_to_one", False) and out.currency == "relevance":
            (factor,) = layer.pull_back(jnp.ones_like(out.relevance))
            return (jnp.where(factor == 0, 0, out.relevance),)
        transpose = getattr(layer, "transpose", layer.pull_back)
        return transpose(out.coefficient)

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        if hasattr(layer, "full"):  # a normalization, which has its shift inside
            bias = out.value - layer.linear(x)
        else:
            bias = getattr(layer, "bias", None)
        return {} if bias is None else {"bias": jnp.sum(bias * out.coefficient)}


@dataclasses.dataclass(frozen=True)
class Winner(Rule):
    r"""The winner takes all: the default of max, min, sort, top-k and max-pooling.

    $$R_x = R_y \,[x\ \text{is the chosen one}]$$

    Ties go where the gradient of the operation sends them.

    Source: Bach et al. 2015, section 2.4.
    """

    kinds = WINNERS

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return arriving

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return layer.pull_back(out.message)


@dataclasses.dataclass(frozen=True)
class Gradient(Rule):
    r"""The plain gradient in the place of relevance.

    $$R_x = J^\top R_y$$

    Not an LRP rule: nothing is conserved. It is what guided backprop, deconvnet and beta smoothing
    are made of, and the user's own decision for an operation relax does not know:
    ``{"path": relax.rules.Gradient()}``.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])
      >>> print(relax.lrp(f, relax.rules.Gradient())(w, x))  # f(x) = 3
      [3. 9.]

    Source: Simonyan et al. 2014, section 3.
    """

    kinds = ANYTHING

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return layer.pull_back(out.relevance)


@dataclasses.dataclass(frozen=True)
class Lookup(Rule):
    r"""The relevance of a token is the sum over the features of its embedding.

    $$R_t = \sum_j R_{e_{tj}}$$

    What every embedding gets; there is nothing to choose.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> table = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> print(relax.lrp(lambda ids: table[ids].sum())(jnp.array([1, 0, 1])))
      [7. 3. 7.]

    Source: Arras et al. 2017, section 3.
    """

    kinds = frozenset({"embedding"})

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return arriving


@dataclasses.dataclass(frozen=True)
class Custom(Rule):
    r"""The rule that a function was given by `relax.custom_relprop`, which has an example.

    $$R_x = \mathrm{bwd}(\mathrm{residuals}, R_y)$$

    Args:
      coefficients: whether it takes and returns coefficients.

    Source: mirrors jax.custom_vjp.
    """

    coefficients: bool = static(False)

    kinds = frozenset({"custom"})

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient" if self.coefficients else "relevance"


@dataclasses.dataclass(frozen=True)
class Mask(Rule):
    r"""Multiplies the relevance of a layer's output by a mask, then applies another rule.

    $$R_x = \mathrm{rule}(m \odot R_y)$$

    Keeps the relevance that flows through chosen concepts, e.g. channels of a convolution; swept
    over all channels by ``jax.vmap``, or see `relax.concepts`. Without a rule it is a condition on
    top of all others: the layer keeps the rule that it gets anyway, and several conditions on one
    layer all hold. Such a mask also acts at a value named by ``checkpoint_name``.

    Args:
      mask: broadcasts to the layer's output; `PerRound` for a mask of each round of a scan.
      rule: the rule for what is kept; default: the one that the layer has without the mask.

    Raises:
      RuleError: ``rule`` is no rule; the mask does not broadcast to the output.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda p, x: (x @ p["hidden"]) @ p["head"]
      >>> p = {"hidden": jnp.eye(2), "head": jnp.ones((2, 1))}
      >>> second = ("hidden", relax.rules.Mask(jnp.array([0.0, 1.0])))
      >>> rules = [second, relax.rules.Epsilon(0.0)]
      >>> print(relax.lrp(f, rules)(p, jnp.array([3.0, 4.0])))
      [0. 4.]

    Source: Achtibat et al. 2023 (concept relevance propagation), eq. (3).
    """

    mask: Any
    rule: Rule | None = None

    kinds = AFFINE
    serves = ANYTHING | {"embedding"}

    def __post_init__(self) -> None:
        if callable(self.mask):
            raise RuleError(f"Mask({self.mask!r}): expected an array, or a number.")
        if self.rule is not None and not isinstance(self.rule, Rule):
            raise RuleError(f"Mask(mask, rule={self.rule!r}): expected a rule such as Epsilon().")

    def over(self, rule: Rule) -> Mask:
        """The mask, or all of them, in front of the rule that a layer has without it."""
        inner = self.rule.over(rule) if isinstance(self.rule, Mask) else self.rule or rule
        return Mask(self.mask, inner)

    def masks(self) -> tuple[Any, ...]:
        """The mask, and those of the masks inside."""
        return (self.mask, *(self.rule.masks() if isinstance(self.rule, Mask) else ()))

    @property
    def inner(self) -> Rule:
        assert self.rule is not None, "a mask without a rule is completed when rules are assigned"
        return self.rule

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return self.inner.gives(layer, arriving)

    def masked(self, out: Outgoing) -> Outgoing:
        return dataclasses.replace(out, message=jax.tree.map(self._kept, out.message))

    def _kept(self, message: jax.Array) -> jax.Array:
        return (message * fitting(self.mask, message)).astype(message.dtype)

    def propagate(self, layer: Any, x: Any, out: Outgoing) -> Any:
        return self.inner.propagate(layer, x, self.masked(out))

    def absorbed(self, layer: Any, x: Any, out: Outgoing) -> dict[str, Any]:
        masked = self.masked(out)
        total = lambda o: sum(jnp.sum(wide(r)) for r in jax.tree.leaves(o.relevance))
        found = self.inner.absorbed(layer, x, masked)
        return found | {"mask": total(out) - total(masked) + found.get("mask", 0)}


def fitting(mask: Any, value: jax.Array) -> jax.Array:
    """A mask in the shape of what it masks."""
    try:
        return jnp.broadcast_to(mask, value.shape)
    except ValueError:
        raise RuleError(
            f"Mask: the mask of shape {jnp.shape(mask)} does not broadcast to the "
            f"layer's output of shape {value.shape}."
        ) from None


def unmasked(rule: Rule) -> Rule:
    """The rule inside any number of masks; of masks without a rule the innermost."""
    while isinstance(rule, Mask) and rule.rule is not None:
        rule = rule.rule
    return rule


__all__ = ["Custom", "Gradient", "Linear", "Lookup", "Mask", "Winner"]
