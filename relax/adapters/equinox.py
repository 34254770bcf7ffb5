"""Equinox modules as JAX functions of their arrays, with the paths of modules as names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from relax._errors import ArgumentError, message
from relax._paths import path_name
from relax.adapters._params import check_array, shapes
from relax.adapters._scopes import called_in_scope


class Stateful(NamedTuple):
    """Arrays of a module with state.

    Attributes:
      module: the module, with None for what is no array.
      state: its eqx.nn.State, with None for what is no array.
    """

    module: Any
    state: Any


def to_jax(
    module: Any,
    state: Any = None,
    *,
    method: str = "__call__",
    batched: bool = False,
    inference: bool = True,
) -> tuple[Callable[..., Any], Any]:
    """An Equinox module as ``(f, params)``, so that `lrp` explains ``f``.

    ``f(params, x)`` is ``eqx.nn.inference_mode(module)(x)`` with ``params`` in the place of its
    arrays. The module itself is not changed. Each submodule is called in the scope of its path, so
    that the layers of the plan, its activations and attention too, are named as the fields are:
    ``blocks/0/attention/softmax``.

    Args:
      module: an eqx.Module; of eqx.filter_jit(module) the module is meant.
      state: its eqx.nn.State, if it has one, as made by eqx.nn.make_with_state. The module then
        takes it behind its inputs and returns ``(value, state)``; the new state is dropped.
      method: which of its methods ``f`` calls.
      batched: whether the inputs have an axis of samples in front, which the module has not:
        ``f`` is then its `jax.vmap`, over an axis of the name of its BatchNorm if there is one.
      inference: whether the copy is in inference mode: BatchNorm uses its running statistics,
        Dropout does nothing and needs no key. If False, each module has the mode it is in.

    Returns:
      ``f``, of params and the inputs of the method. Keyword arguments, such as ``key``, are handed
      on as they are, the same for all samples.
      ``params``, the module with None for what is no array, as by ``eqx.filter(module,
      eqx.is_array)``; with state a `Stateful` of both. Another one of the same structure may be
      given in its place; so may the trained module itself: only its arrays are read.

    Raises:
      ArgumentError: ``module`` is no eqx.Module, or has no such method; ``state`` is none, or is
        wanted; when ``f`` is called: ``params`` has another structure, or arrays of other shapes.
      ImportError: Equinox is not installed.

    Example:
      >>> import equinox as eqx, jax, jax.numpy as jnp, relax
      >>> from relax.adapters.equinox import to_jax
      >>> model = eqx.nn.MLP(3, 2, width_size=4, depth=1, key=jax.random.key(0))
      >>> f, params = to_jax(model, batched=True)
      >>> print(relax.lrp(f)(params, jnp.ones((5, 3))).shape)
      (5, 3)
      >>> print([row.path for row in relax.layers(f)(params, jnp.ones((5, 3)))])
      ['layers/0', 'relu', 'layers/1']
    """
    eqx = _equinox()
    while isinstance(module, type(eqx.filter_jit(len))):  # it hides modes and modules
        module = module.__wrapped__
    _check(eqx, module, state, method)
    whole = module if state is None else Stateful(module, state)
    params = eqx.filter(whole, eqx.is_array)
    expected = _named(shapes(params))

    model = eqx.nn.inference_mode(module) if inference else module
    model = _with_scopes(eqx, model, "")
    arrays, rest = eqx.partition(model if state is None else Stateful(model, state), eqx.is_array)
    tree = jax.tree.structure(arrays)
    axis = _axis_name(eqx, module)

    def call(params: Any, *inputs: Any, **kwargs: Any) -> Any:
        leaves = _leaves(eqx.filter(params, eqx.is_array), expected)
        own = eqx.combine(jax.tree.unflatten(tree, leaves), rest)

        def one(*inputs: Any) -> Any:
            if state is None:
                return getattr(own, method)(*inputs, **kwargs)
            value, _ = getattr(own.module, method)(*inputs, own.state, **kwargs)
            return value

        return jax.vmap(one, axis_name=axis)(*inputs) if batched else one(*inputs)

    return call, params


def _equinox() -> Any:
    try:
        import equinox
    except ImportError as error:
        raise ImportError(
            'relax.adapters.equinox needs Equinox: pip install "relax-lrp[equinox]".'
        ) from error
    return equinox


def _check(eqx: Any, module: Any, state: Any, method: str) -> None:
    if not isinstance(module, eqx.Module):
        name = module.__name__ if isinstance(module, type) else f"a {type(module).__name__}"
        if isinstance(module, tuple) and any(isinstance(part, eqx.nn.State) for part in module):
            remedy = "Of eqx.nn.make_with_state give both: to_jax(module, state)."
        elif isinstance(module, type):
            remedy = "Give a module, not its class."
        else:
            remedy = "Any other function of JAX can be explained as it is, f(params, x)."
        raise ArgumentError(message(f"to_jax: {name} is no eqx.Module", remedy=remedy))
    if not callable(getattr(module, method, None)):
        raise ArgumentError(
            f"to_jax(method={method!r}): {type(module).__name__} has no such method."
        )
    is_index = lambda part: isinstance(part, eqx.nn.StateIndex)
    stateful = any(map(is_index, jax.tree.leaves(module, is_leaf=is_index)))
    if stateful and state is None:
        raise ArgumentError(
            message(
                f"to_jax: {type(module).__name__} has state, such as the statistics of a BatchNorm",
                remedy="Give it: to_jax(module, state), as made by eqx.nn.make_with_state.",
            )
        )
    if state is not None and not isinstance(state, eqx.nn.State):
        raise ArgumentError(f"to_jax: state is a {type(state).__name__}; expected an eqx.nn.State.")


def _axis_name(eqx: Any, module: Any) -> Any:
    """Of the axis of samples, as the BatchNorms of a module call it; None if there are none."""
    is_norm = lambda part: isinstance(part, eqx.nn.BatchNorm)
    parts = jax.tree.leaves(module, is_leaf=is_norm)
    names = (part.axis_name for part in parts if is_norm(part))
    return next(names, None)


def _named(arrays: Any) -> list[tuple[str, Any]]:
    """Leaves with their paths."""
    found = jax.tree_util.tree_leaves_with_path(arrays)
    return [(path_name(keys), leaf) for keys, leaf in found]


def _leaves(params: Any, expected: list[tuple[str, Any]]) -> list[Any]:
    """The arrays in order, if they are those of the module."""
    given = _named(params)
    for (want, _), (got, _) in zip(expected, given, strict=False):
        if want != got:
            raise ArgumentError(f"params has `{got}` where the module has `{want}`.")
    if len(given) != len(expected):
        raise ArgumentError(
            f"params has {len(given)} arrays; the module has {len(expected)}.\n"
            "  Give what to_jax returned, or the same module with other numbers."
        )
    for (name, array), (_, shape) in zip(given, expected, strict=True):
        check_array(array, shape, f"params `{name}`")
    return [array for _, array in given]


def _with_scopes(eqx: Any, module: Any, path: str) -> Any:
    """A copy whose submodules are called in the scopes of their paths."""
    is_child = lambda part: isinstance(part, eqx.Module) and part is not module
    found, tree = jax.tree_util.tree_flatten_with_path(module, is_leaf=is_child)
    parts = []
    for keys, part in found:
        below = "/".join(filter(None, (path, path_name(keys))))
        parts.append(_with_scopes(eqx, part, below) if is_child(part) else part)
    copy = jax.tree.unflatten(tree, parts)
    if callable(module):
        object.__setattr__(copy, "__class__", _scoped(type(module), path))
    return copy


def _scoped(cls: Any, path: str) -> Any:
    """The class, with calls in the scope of a path."""
    call = cls.__call__
    if cls.__module__.startswith("equinox.nn"):  # the path takes the place of the class's name
        call = getattr(call, "__wrapped__", call)
    return called_in_scope(cls, path, call)


__all__ = ["Stateful", "to_jax"]
