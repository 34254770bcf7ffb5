"""Transformed functions of Haiku as JAX functions of their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax

from relax._errors import ArgumentError, message


def to_jax(
    net: Any, params: Any, state: Any = None, *, rng: Any = None, **kwargs: Any
) -> tuple[Callable[..., Any], Any]:
    """A transformed function of Haiku as ``(f, params)``, so that `lrp` explains ``f``.

    ``f(params, x)`` is ``net.apply(params, rng, x)``, or with state
    ``net.apply(params, state, rng, x)[0]``; without ``rng`` if `hk.without_apply_rng` took it away.

    Args:
      net: what hk.transform or hk.transform_with_state returned.
      params: what ``net.init`` returned, or training made of it.
      state: the same, of a function with state.
      rng: a key of jax.random, if the function draws random numbers; the same at every call.
      **kwargs: handed to the function at every call, such as ``is_training=False``; those that
        ``f`` is given go first.

    Returns:
      ``f``, of params and what the function takes; it returns what the function returns, without
      the new state.
      ``params``, as given; with state ``{"params": params, "state": state}``, so that averages of
      a BatchNorm are arguments as well.

    Raises:
      ArgumentError: ``net`` is no transformed function of one method; its state is missing, or it
        has none; it takes no rng.
      ImportError: Haiku is not installed.

    Example:
      >>> import haiku as hk, jax, jax.numpy as jnp, relax
      >>> from relax.adapters.haiku import to_jax
      >>> net = hk.transform(lambda x: hk.nets.MLP([4, 2], name="mlp")(x))
      >>> x = jnp.ones((5, 3))
      >>> f, params = to_jax(net, net.init(jax.random.key(0), x))
      >>> print(relax.lrp(f)(params, x).shape)
      (5, 3)
    """
    hk = _haiku()
    stateful = isinstance(net, hk.TransformedWithState)
    _check(hk, net, state, stateful)
    leading = 2 if stateful else 1
    takes_rng = list(inspect.signature(net.apply).parameters)[leading : leading + 1] == ["rng"]
    if rng is not None and not takes_rng:
        raise ArgumentError(
            "to_jax: rng is given, but hk.without_apply_rng took it away from this function.\n"
            "  Leave it out, or give the function that hk.transform returned."
        )
    key = (rng,) if takes_rng else ()
    # New dicts: those of Haiku may be changed in place.
    held = {"params": params, "state": state} if stateful else params
    held = jax.tree.map(lambda array: array, held)

    def call(params: Any, *inputs: Any, **given: Any) -> Any:
        options = {**kwargs, **given}
        if not stateful:
            return net.apply(params, *key, *inputs, **options)
        if not (isinstance(params, dict) and {"params", "state"} <= set(params)):
            raise ArgumentError(
                'params of a function with state is {"params": ..., "state": ...}, as to_jax '
                "returned it."
            )
        return net.apply(params["params"], params["state"], *key, *inputs, **options)[0]

    return call, held


def _haiku() -> Any:
    try:
        import haiku
    except ImportError as error:
        raise ImportError(
            'relax.adapters.haiku needs Haiku: pip install "relax-lrp[haiku]".'
        ) from error
    return haiku


def _check(hk: Any, net: Any, state: Any, stateful: bool) -> None:
    several = isinstance(net, hk.MultiTransformed | hk.MultiTransformedWithState)
    if several or not isinstance(net, hk.Transformed | hk.TransformedWithState):
        if several:
            remedy = "Choose one of its functions: hk.Transformed(net.init, net.apply[...])."
        elif isinstance(net, hk.Module):
            remedy = "Give hk.transform(lambda x: Module(...)(x)): a module lives inside of it."
        else:
            remedy = "Give what hk.transform or hk.transform_with_state returned."
        raise ArgumentError(
            message(f"to_jax: a {type(net).__name__} is no transformed function", remedy=remedy)
        )
    if stateful and state is None:
        raise ArgumentError(
            message(
                "to_jax: the function has state, such as the averages of a BatchNorm",
                remedy="Give it: params, state = net.init(key, x); to_jax(net, params, state).",
            )
        )
    if not stateful and state is not None:
        raise ArgumentError(
            "to_jax: state is given, but the function has none: hk.transform made it, and not "
            "hk.transform_with_state."
        )


__all__ = ["to_jax"]
