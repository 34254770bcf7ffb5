"""Modules of Flax NNX as JAX functions of their state, with the paths of modules as names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from relax._errors import ArgumentError, message
from relax._paths import nearest
from relax.adapters._params import check_array, shapes
from relax.adapters._scopes import called_in_scope

_INFERENCE = ("deterministic", "use_running_average")  # what nnx.Module.eval() sets


def to_jax(
    module: Any, *, method: str = "__call__", inference: bool = True
) -> tuple[Callable[..., Any], Any]:
    """An NNX module as ``(f, state)``, so that `lrp` explains ``f``.

    ``f(state, x)`` is ``module(x)`` after ``module.eval()``, with ``state`` in the place of its
    variables. It works on a copy: the module keeps its mode, its random state and its variables.
    Each submodule is called in the scope of its path, so that the layers of the plan, its
    activations and attention too, are named as the attributes are: ``blocks/0/attention/softmax``.

    Args:
      module: an nnx.Module.
      method: which of its methods ``f`` calls.
      inference: whether the copy is in the mode of ``module.eval()``: BatchNorm uses its running
        statistics, Dropout does nothing. If False, each module has the mode it is in; Dropout then
        draws the same mask at every call, and what training would update is dropped.

    Returns:
      ``f``, of state and what the method takes, keyword arguments too; it returns what the method
      returns.
      ``state``, an nnx.State of all variables, parameters and statistics alike, but not of what
      `sow` collected before, nor of random keys, which stay as they are. Another state of the same
      module, such as ``nnx.state(trained)``, may be given in its place.

    Raises:
      ArgumentError: ``module`` is no nnx.Module, or has no such method; when ``f`` is called: the
        state is none, lacks variables, or has others of other shapes.
      ImportError: Flax is not installed.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> from flax import nnx
      >>> from relax.adapters.nnx import to_jax
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Dropout(0.5, rngs=rngs))
      >>> f, state = to_jax(model)
      >>> print(relax.lrp(f)(state, jnp.ones((5, 3))).shape)
      (5, 3)
      >>> print([row.path for row in relax.layers(f)(state, jnp.ones((5, 3)))])
      ['layers/0', 'relu']
    """
    nnx = _nnx()
    _check_module(nnx, module, method)

    def copied(path: tuple[Any, ...], node: Any) -> Any:
        if isinstance(node, nnx.Module):
            for name in _INFERENCE if inference else ():
                if hasattr(node, name):
                    setattr(node, name, True)
            if path and callable(node):
                object.__setattr__(node, "__class__", _scoped(type(node), _text(path)))
        return node

    copy = nnx.recursive_map(copied, module)
    nnx.pop(copy, nnx.Intermediate)
    graph, state, random = nnx.split(copy, nnx.Not(nnx.RngState), ...)
    state = jax.tree.map(lambda array: array, state)  # new boxes: the module trains on in its own
    expected = {path: _shapes(variable) for path, variable in nnx.to_flat_state(state)}

    def call(state: Any, *inputs: Any, **kwargs: Any) -> Any:
        model = nnx.merge(graph, _chosen(nnx, state, expected), random, copy=True)
        return getattr(model, method)(*inputs, **kwargs)

    return call, state


def _nnx() -> Any:
    try:
        from flax import nnx
    except ImportError as error:
        raise ImportError(
            'relax.adapters.nnx needs Flax, which relax-lrp depends on: pip install "flax>=0.12".'
        ) from error
    return nnx


def _check_module(nnx: Any, module: Any, method: str) -> None:
    if not isinstance(module, nnx.Module):
        from flax import linen

        name = module.__name__ if isinstance(module, type) else f"a {type(module).__name__}"
        if isinstance(module, linen.Module):
            remedy = "A module of Flax Linen needs no adapter: relax.lrp(module.apply)."
        elif isinstance(module, type):
            remedy = "Give a module, not its class."
        else:
            remedy = "Any other function of JAX can be explained as it is, f(params, x)."
        raise ArgumentError(message(f"to_jax: {name} is no nnx.Module", remedy=remedy))
    if not callable(getattr(module, method, None)):
        raise ArgumentError(
            f"to_jax(method={method!r}): {type(module).__name__} has no such method."
        )


def _shapes(variable: Any) -> list[Any]:
    """Of the arrays of a variable; it may hold something else, of which nothing is expected."""
    leaves = jax.tree.leaves(variable)
    return [shapes(leaf) if isinstance(leaf, jax.Array) else None for leaf in leaves]


def _chosen(nnx: Any, state: Any, expected: dict[tuple[Any, ...], list[Any]]) -> Any:
    """What f needs of a state, which may hold more."""
    if not isinstance(state, nnx.State):
        raise ArgumentError(
            f"state is a {type(state).__name__}; expected the nnx.State that to_jax returned, or "
            "nnx.state(module)."
        )
    given = dict(nnx.to_flat_state(state))
    missing = [_text(path) for path in expected if path not in given]
    if missing:
        others = ", ".join(nearest(missing[0], map(_text, given)))
        raise ArgumentError(f"state lacks `{missing[0]}`.\n  It has {others or 'nothing'}.")
    for path, wanted in expected.items():
        for leaf, shape in zip(jax.tree.leaves(given[path]), wanted, strict=False):
            if shape is not None:
                check_array(leaf, shape, f"state `{_text(path)}`")
    return nnx.from_flat_state({path: given[path] for path in expected})


def _scoped(cls: Any, path: str) -> Any:
    """The class, with calls in the scope of a path."""
    options = (("pytree", cls._pytree__is_pytree),)  # it is not inherited
    return called_in_scope(cls, path, cls.__call__, options)


def _text(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


__all__ = ["to_jax"]
