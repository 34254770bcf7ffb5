"""Copies of a module without numbers, into which each call puts arrays."""

from __future__ import annotations

import copy
from typing import Any

import jax

from relax._errors import ArgumentError, message
from relax.adapters._params import check_params, shapes
from relax.adapters.torch._environment import Environment, as_array
from relax.adapters.torch._library import torch
from relax.adapters.torch._values import name_of, nested, weight


class Copies:
    """Fresh copies of a module.

    So what is made of it is pure, whatever the module does to itself, and whoever trains it on.

    Attributes:
      params: its floating-point parameters and buffers, nested as its modules are.
      constants: its other tensors, by path.
    """

    def __init__(self, module: Any) -> None:
        """Raises an ArgumentError if there are no numbers yet, or it cannot be copied."""
        named = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, x in named.items():
            _check_numbers(name, x)
        weights = {k: x for k, x in named.items() if x.is_floating_point() or x.is_complex()}
        known = {id(x) for x in weights.values()}
        others = {name: x for name, x in named.items() if name not in weights}
        for prefix, part in module.named_modules():  # what nobody has registered
            for name, x in vars(part).items():
                if isinstance(x, torch.Tensor) and id(x) not in known:
                    others[f"{prefix}.{name}".lstrip(".")] = x
        self.params = nested({name: as_array(x) for name, x in weights.items()})
        self._expected = shapes(self.params)
        self.constants = {name.replace(".", "/"): as_array(x) for name, x in others.items()}

        every = (*weights.values(), *others.values())
        empty = {id(x): torch.empty_like(x, device="meta") for x in every}
        self._places = {name: empty[id(x)] for name, x in weights.items()}
        self._constant_places = [empty[id(x)] for x in others.values()]
        try:
            self._shell = copy.deepcopy(module, dict(empty)).eval()
        except Exception as error:
            raise ArgumentError(
                message(
                    f"to_jax: this {name_of(module)} cannot be copied: {error}",
                    remedy="Detach from it what copy.deepcopy refuses.",
                )
            ) from error

    def filled(self, params: Any, environment: Environment) -> Any:
        """A copy that holds arrays, with its parts known to the environment.

        deepcopy puts them wherever the module refers to a tensor, once or more.

        Raises:
          ArgumentError: params lacks weights, or has others, or of other shapes.
        """
        check_params(params, self._expected)
        own = [weight(params, name) for name in self._places]
        places = [*self._places.values(), *self._constant_places]
        arrays: list[jax.Array] = [*own, *self.constants.values()]
        put = {id(p): environment.wrap(x) for p, x in zip(places, arrays, strict=True)}
        module = copy.deepcopy(self._shell, put)
        environment.watch(module)
        return module


def unwrapped(module: Any) -> Any:
    """The module inside of what torch.compile and data parallelism put around it.

    Raises:
      ArgumentError: it is no module of Python code.
    """
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while hasattr(module, "_orig_mod") or isinstance(module, wrappers):
        module = module._orig_mod if hasattr(module, "_orig_mod") else module.module
    if isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError(
            "to_jax: a ScriptModule has no Python code that could be run.\n"
            "  Give the module that it was scripted or traced from."
        )
    if not isinstance(module, torch.nn.Module):
        raise ArgumentError(f"to_jax: a {name_of(module)} is no torch.nn.Module.")
    return module


def _check_numbers(name: str, x: Any) -> None:
    if torch.nn.parameter.is_lazy(x):
        raise ArgumentError(
            f"to_jax: `{name}` has no shape yet.\n  Call the module once on an input of torch."
        )
    if x.is_meta:
        raise ArgumentError(
            f"to_jax: `{name}` is on the meta device and holds no numbers.\n"
            "  Load the weights first."
        )
