"""Methods that are LRP under a composite, in the calling convention of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax import _target, composites, select
from relax._forms import Composite
from relax._numerics import stabilize
from relax.rules import Linear, Rule
from relax.rules._base import Currency, Outgoing, require_finite
from relax.rules.activation import ActivationRule
from relax.transform import lrp

_Argnums = int | Sequence[int]


def guided_backprop(
    fun: Callable[..., Any], *, argnums: _Argnums = -1, target: Any = None, has_aux: bool = False
) -> Callable[..., Any]:
    """The gradient times the value of the target, its positive part alone at every ReLU.

    `relax.composites.guided_backprop`. Arguments, returns and errors: see `relax.lrp`.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: 3 * jax.nn.relu(x)
      >>> print(relax.methods.guided_backprop(f)(jnp.array([-1.0, 2.0])))
      [ 0. 18.]

    Source: Springenberg et al. 2015.
    """
    return _under(composites.guided_backprop(), fun, argnums, target, has_aux)


def deconvnet(
    fun: Callable[..., Any], *, argnums: _Argnums = -1, target: Any = None, has_aux: bool = False
) -> Callable[..., Any]:
    """The gradient times the value of the target, rectified at every ReLU in the place of it.

    `relax.composites.deconvnet`. Arguments, returns and errors: see `relax.lrp`.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: 3 * jax.nn.relu(x)
      >>> print(relax.methods.deconvnet(f)(jnp.array([1.0, 2.0])))
      [ 9. 18.]

    Source: Zeiler and Fergus 2014, section 2.1.
    """
    return _under(composites.deconvnet(), fun, argnums, target, has_aux)


def excitation_backprop(
    fun: Callable[..., Any], *, argnums: _Argnums = -1, target: Any = None, has_aux: bool = False
) -> Callable[..., Any]:
    """Relevance along positive weights alone.

    `relax.composites.excitation_backprop`. Arguments, returns and errors: see `relax.lrp`.

    Example:
      >>> import jax.numpy as jnp, numpy as np, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [-1.0], [1.0]]), jnp.array([1.0, 1.0, 3.0])
      >>> print(np.round(np.asarray(relax.methods.excitation_backprop(f)(w, x)), 3))
      [0.75 0.   2.25]

    Source: Zhang et al. 2016, eq. (5).
    """
    return _under(composites.excitation_backprop(), fun, argnums, target, has_aux)


def deep_taylor(
    fun: Callable[..., Any],
    *,
    sums: Rule | None = None,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Deep Taylor decomposition of the output behind a ReLU; nothing of one that is negative.

    `relax.composites.deep_taylor`, of which ``sums`` is. Other arguments, returns and errors: see
    `relax.lrp`.

    Example:
      >>> import jax.numpy as jnp, numpy as np, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0, -1.0], [3.0, -1.0]]), jnp.array([1.0, 1.0])
      >>> print(np.round(np.asarray(relax.methods.deep_taylor(f)(w, x)), 3))
      [1. 3.]

    Source: Montavon et al. 2017, section 5.
    """
    return _under(composites.deep_taylor(sums=sums), fun, argnums, _rectified(target), has_aux)


def deep_taylor_bounded(
    fun: Callable[..., Any],
    *,
    low: Any = -1.0,
    high: Any = 1.0,
    sums: Rule | None = None,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """As `deep_taylor`, for an input between two bounds: ZBox on the first layer.

    Args:
      low, high: the bounds, scalars or arrays that broadcast to x.
      sums: see `relax.composites.deep_taylor_bounded`.

    Example:
      >>> import jax.numpy as jnp, numpy as np, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [3.0]]), jnp.array([1.0, 1.0])
      >>> print(np.round(np.asarray(relax.methods.deep_taylor_bounded(f)(w, x)), 3))
      [1. 3.]

    Source: Montavon et al. 2017, section 5.
    """
    rules = composites.deep_taylor_bounded(low, high, sums=sums)
    return _under(rules, fun, argnums, _rectified(target), has_aux)


def elrp(
    fun: Callable[..., Any],
    *,
    epsilon: Any = 1e-4,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""DeepExplain's epsilon-LRP: the gradient, activations replaced by their ratio, times input.

    $$R = x\,c_x, \qquad c_x = c_y \frac{\phi(x)}{x + \epsilon\,\mathrm{sign}(x)}$$

    at every activation; weights transpose. `relax.composites.epsilon` is the original, which has
    the epsilon at weights, and passes an activation without.

    Args:
      fun, argnums, target, has_aux: as in `relax.lrp`.
      epsilon: in the units of the activations' inputs.

    Raises:
      HyperparameterError: a negative or non-finite epsilon.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, relax
      >>> f = lambda x: jax.nn.relu(x[:1] - x[1:])
      >>> print(np.round(np.asarray(relax.methods.elrp(f)(jnp.array([3.0, 1.0]))), 3))
      [ 3. -1.]

    Source: Ancona et al. 2018, proposition 1.
    """
    entries = ((select.activation, Ratio(epsilon)), (select.affine | select.sums, Linear()))
    return _under(Composite(entries, strict=False), fun, argnums, target, has_aux)


@dataclasses.dataclass(frozen=True)
class Ratio(ActivationRule):
    """The coefficient of an activation is its output by its stabilized input.

    Scales and shifts by constants in front of it count as layers of their own.
    """

    epsilon: Any = 1e-4

    def __post_init__(self) -> None:
        require_finite(self, "epsilon", at_least=0)

    def gives(self, layer: Any, arriving: Currency) -> Currency:
        return "coefficient"

    def propagate(self, layer: Any, x: jax.Array, out: Outgoing) -> jax.Array:
        z, slope = jax.jvp(layer.inner, (x,), (jnp.ones_like(x),))
        ratio = layer(x) / stabilize(z, self.epsilon)
        return (out.coefficient * ratio * slope).astype(x.dtype)


def _under(rules: Any, fun: Any, argnums: _Argnums, target: Any, has_aux: bool) -> Any:
    return lrp(fun, rules, argnums=argnums, target=target, has_aux=has_aux)


def _rectified(target: Any) -> Callable[[Any], Any]:
    """The positive part of what is explained."""

    def explained(value: Any) -> Any:
        seeds = _target.seeds(target, value)
        if not _target.gives_relevance(target):
            seeds = jax.tree.map(lambda z, mask: z * mask, value, seeds)
        return jax.tree.map(jax.nn.relu, seeds)

    return explained


__all__ = [
    "deconvnet",
    "deep_taylor",
    "deep_taylor_bounded",
    "elrp",
    "excitation_backprop",
    "guided_backprop",
]
