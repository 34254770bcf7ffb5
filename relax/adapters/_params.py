"""Whether what `f` is given as params is what `to_jax` returned, with other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError
from relax._paths import nearest

# A float may have another width: bfloat16 to save memory, float64 to check.
_KINDS = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_, jax.dtypes.prng_key)


def shapes(params: Any) -> Any:
    """The arrays of a pytree as shapes and dtypes: what is expected later holds no numbers."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)


def check_params(given: Any, expected: Mapping[str, Any], name: str = "params") -> None:
    """Whether dicts of arrays, nested or not, have the keys and the arrays that are expected.

    Args:
      given: what a user calls ``f`` with.
      expected: `shapes` of what to_jax returned.
      name: of what is given, for errors.

    Raises:
      ArgumentError: it is no dict; a key is missing or unknown; an array has another shape or is of
        another kind, such as integers for floats.
    """
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f"{name} is a {type(given).__name__}; expected the dict that to_jax returned, or one "
            "with the same keys."
        )
    missing = next((key for key in expected if key not in given), None)
    if missing is not None:
        raise ArgumentError(f"{name} lacks `{missing}`.\n  It has {_near(missing, given)}.")
    unknown = next((key for key in given if key not in expected), None)
    if unknown is not None:
        raise ArgumentError(
            f"{name} has `{unknown}`, which is no weight of the model.\n"
            f"  The model has {_near(unknown, expected)}."
        )
    for key, inner in expected.items():
        check = check_params if isinstance(inner, Mapping) else check_array
        check(given[key], inner, f"{name}[{key!r}]")


def check_array(given: Any, expected: Any, name: str) -> None:
    """Whether an array has the shape of another and is of its kind; any float will do for a float.

    Raises:
      ArgumentError: not, or it is no array.
    """
    if isinstance(given, bool | int | float | complex):
        given = np.asarray(given)
    dtype = _dtype(given)
    if dtype is None:
        raise ArgumentError(
            f"{name} is a {type(given).__name__}; expected an array of JAX or numpy of shape "
            f"{expected.shape}."
        )
    if given.shape != expected.shape:
        raise ArgumentError(f"{name} has shape {given.shape}; the model has {expected.shape}.")
    if not any(_are(kind, dtype, expected.dtype) for kind in _KINDS):
        raise ArgumentError(f"{name} is of {dtype}; the model has {expected.dtype}.")


def _dtype(given: Any) -> Any:
    """None of what is no array of JAX or numpy."""
    if not hasattr(given, "dtype"):  # jnp.result_type knows one of None, and of text
        return None
    try:
        return jnp.result_type(given)
    except TypeError:  # another library's
        return None


def _are(kind: Any, *dtypes: Any) -> bool:
    return all(jnp.issubdtype(dtype, kind) for dtype in dtypes)


def _near(key: Any, keys: Mapping[Any, Any]) -> str:
    found = nearest(str(key), map(str, keys))
    return ", ".join(found) + ", ..." * (len(found) < len(keys)) if found else "nothing"
