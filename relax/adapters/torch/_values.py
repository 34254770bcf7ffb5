"""What goes into a module and comes out of it, between arrays of JAX and tensors of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError, message
from relax.adapters.torch._environment import unwrap
from relax.adapters.torch._library import torch


def name_of(x: Any) -> str:
    """What a class is called in errors."""
    return type(x).__name__


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Names with dots as dictionaries in dictionaries."""
    nested: dict[str, Any] = {}
    for name, array in flat.items():
        *modules, last = name.split(".")
        inner = nested
        for part in modules:
            inner = inner.setdefault(part, {})
        inner[last] = array
    return nested


def weight(params: Any, name: str) -> jax.Array:
    """The array of that name."""
    inner = params
    for part in name.split("."):
        inner = inner[part]
    return jnp.asarray(inner)


def argument(x: Any) -> Any:
    """An argument of ``f`` as the module shall get it."""
    if isinstance(x, torch.Tensor):
        raise ArgumentError(
            f"f was given a tensor of torch, of shape {tuple(x.shape)}: it takes arrays.\n"
            "  Give x.numpy(), or jnp.asarray(x.numpy())."
        )
    return jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x


def chosen(result: Any, output: Any) -> Any:
    """What of the result of a module ``f`` returns."""
    if output is None:
        return result
    if callable(output):
        return output(result)
    for name in (output, *_SPELLINGS.get(output, ())):
        if isinstance(name, str) and isinstance(result, torch.Tensor):
            break  # it has no fields, but a method that is called logit
        try:
            if isinstance(name, str) and not isinstance(result, Mapping):
                return getattr(result, name)
            return result[name]
        except (AttributeError, IndexError, KeyError, TypeError):
            continue
    raise ArgumentError(f"to_jax(output={output!r}): the module returned {_described(result)}.")


_SPELLINGS = {"logit": ("logits",), "logits": ("logit",)}


def _described(result: Any) -> str:
    if isinstance(result, Mapping):
        names = ", ".join(f'"{name}"' for name, x in result.items() if x is not None)
        return f"a {name_of(result)} of {names}"
    if isinstance(result, tuple | list):
        return f"a {name_of(result)} of {len(result)} entries"
    return f"a {name_of(result)}"


def tensor_like(x: Any, like: Any) -> Any:
    """An array as a tensor on the device of another, in its dtype if both are floats."""
    if not isinstance(x, jax.Array | np.ndarray | np.generic):
        return x
    x = torch.tensor(np.asarray(x), device=like.device)
    if x.is_floating_point():
        return x.to(like.dtype)
    return x if x.dtype == torch.bool else x.long()


def arrays(result: Any) -> Any:
    """Tensors as arrays, and what holds them as what JAX knows.

    Raises:
      ArgumentError: something else is in there; what the whole has is named.
    """
    return _arrays(result, result)


def _arrays(result: Any, whole: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return unwrap(result)
    if result is None or isinstance(result, bool | int | float | complex):
        return result
    if isinstance(result, Mapping):
        found = {name: x for name, x in result.items() if x is not None}
        return {str(name): _arrays(x, whole) for name, x in found.items()}
    if isinstance(result, tuple | list):
        entries = [_arrays(x, whole) for x in result]
        if hasattr(result, "_fields"):
            return type(result)(*entries)
        return entries if isinstance(result, list) else tuple(entries)
    raise ArgumentError(
        message(
            f"The module returned {_described(whole)}, in which there is a {name_of(result)}: no "
            "array",
            remedy='Say what is explained: to_jax(module, output="logits"), an entry by its '
            "number, or a callable.",
        )
    )
