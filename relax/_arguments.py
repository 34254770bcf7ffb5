"""The user's arguments: which leaves are arrays, which are explained, and what they are called."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax import _jaxpr
from relax._errors import ArgumentError
from relax._paths import argument_names, closure_names, path_name

_Argnums = int | Sequence[int]


@dataclasses.dataclass(eq=False, repr=False)
class Traced:
    """A function traced on its arguments.

    Attributes:
      closed: its jaxpr; ``leaves``: the array arguments it takes; ``explained``: positions in them.
      names: path of each leaf; ``closure_names``: of closed-over arrays, by identity, where known.
      value_tree: structure of the value; ``count``: number of its leaves, the first outputs.
      rebuild_aux: the auxiliary output from the remaining outputs.
      rebuild: explained arguments from a list of their leaves.
    """

    closed: Any
    leaves: list[Any]
    explained: list[int]
    names: list[str]
    closure_names: dict[int, str]
    value_tree: Any
    count: int
    rebuild_aux: Callable[[Sequence[Any]], Any]
    rebuild: Callable[[Sequence[Any]], Any]


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)) or (
        hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    )


def resolve_argnums(argnums: _Argnums, count: int) -> tuple[int, ...]:
    """Non-negative argument positions.

    Raises:
      ArgumentError: out of range, repeated, or not integers.
    """
    given = (argnums,) if isinstance(argnums, (int, np.integer)) else argnums
    try:
        numbers = [operator.index(n) for n in given]
    except (TypeError, ValueError):
        raise ArgumentError(
            f"argnums must be an int or a tuple of ints, not {argnums!r}."
        ) from None
    if not numbers:
        raise ArgumentError("argnums is empty: name at least one argument to explain.")
    for number in numbers:
        if not -count <= number < count:
            raise ArgumentError(
                f"argnums={argnums!r} is out of range for a call with {count} positional "
                f"argument{'s' * (count != 1)}.\n  Explained arguments must be passed by position."
            )
    resolved = tuple(number % count for number in numbers)
    if len(set(resolved)) != len(resolved):
        raise ArgumentError(f"argnums={argnums!r} names an argument twice.")
    return resolved


def trace(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: _Argnums,
    has_aux: bool,
) -> Traced:
    """Traces ``fun`` on its arguments; what is no array is passed as it is, as in jax.grad."""
    numbers = resolve_argnums(argnums, len(args))
    titles = argument_names(fun, len(args))
    flat, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
    static: list[Any] = []
    leaves: list[Any] = []
    names: list[str] = []
    explained: list[int] = []
    owners: list[int] = []
    for keys, leaf in flat:
        position = keys[1].idx if keys[0].idx == 0 else None
        wanted = position in numbers
        name = path_name(keys[2:]) or (
            titles[position] if position is not None else str(keys[1].key)
        )
        if wanted:
            leaf = _explainable(leaf, name)
            explained.append(len(leaves))
            owners.append(position)
        if is_array(leaf):
            static.append(None)
            leaves.append(leaf)
            names.append(name)
        else:
            static.append((leaf,))
    if not explained:
        raise ArgumentError(f"argnums={argnums!r}: the explained argument holds no array.")

    shape: dict[str, Any] = {}

    def flat_fun(*arrays: Any) -> list[Any]:
        rest = iter(arrays)
        inputs = [next(rest) if item is None else item[0] for item in static]
        full_args, full_kwargs = jax.tree.unflatten(tree, inputs)
        result = fun(*full_args, **full_kwargs)
        aux = None
        if has_aux:
            if not (isinstance(result, tuple) and len(result) == 2):
                raise ArgumentError(
                    "has_aux=True: the function must return a pair (value, aux), "
                    f"not {type(result).__name__}."
                )
            result, aux = result
        values, shape["value_tree"] = jax.tree.flatten(result)
        shape["count"] = len(values)
        if not values:
            raise ArgumentError(
                f"The function returned {result!r}, which holds no array: there is nothing to "
                "explain.\n  Does it end in a return statement?"
            )
        for value in values:
            if not (is_array(value) or isinstance(value, (int, float, complex))):
                raise ArgumentError(
                    f"The function returned a {type(value).__name__}; its value must be arrays. "
                    "Pass what is no array as auxiliary output, has_aux=True."
                )
        extra, shape["aux_tree"] = jax.tree.flatten(aux)
        shape["aux_static"] = [None if is_array(a) else (a,) for a in extra]
        return [*values, *(a for a in extra if is_array(a))]

    closed = _jaxpr.trace(flat_fun, leaves)
    by_identity = closure_names(fun)

    def rebuild_aux(arrays: Sequence[Any]) -> Any:
        rest = iter(arrays)
        extra = [next(rest) if item is None else item[0] for item in shape["aux_static"]]
        return jax.tree.unflatten(shape["aux_tree"], extra)

    def rebuild(parts: Sequence[Any]) -> Any:
        results = []
        for number in numbers:
            own = [part for part, owner in zip(parts, owners, strict=True) if owner == number]
            results.append(jax.tree.unflatten(jax.tree.structure(args[number]), own))
        return results[0] if isinstance(argnums, (int, np.integer)) else tuple(results)

    return Traced(
        closed,
        leaves,
        explained,
        names,
        by_identity,
        shape["value_tree"],
        shape["count"],
        rebuild_aux,
        rebuild,
    )


def _explainable(leaf: Any, name: str) -> Any:
    if isinstance(leaf, (float, complex)) and not is_array(leaf):
        return jnp.asarray(leaf)
    if not is_array(leaf):
        instead = "Give numpy.asarray of it, close" if isinstance(leaf, int) else "Close"
        raise ArgumentError(
            f"The explained argument `{name}` holds {leaf!r}, which is no array.\n"
            f"  {instead} over it, or choose other argnums."
        )
    dtype: Any = getattr(leaf, "dtype", None)
    try:
        fits = jnp.issubdtype(dtype, jnp.inexact) or jnp.issubdtype(dtype, jnp.integer)
    except TypeError:  # a dtype that numpy does not know
        library = type(leaf).__module__.partition(".")[0]
        raise ArgumentError(
            f"The explained argument `{name}` is a {type(leaf).__name__} of {library}.\n"
            "  Give an array of JAX or numpy: numpy.asarray(x)."
        ) from None
    if not fits:
        raise ArgumentError(
            f"The explained argument `{name}` has dtype {dtype}; relevance needs floats, or "
            "integers that are looked up in an embedding.\n"
            "  Convert it to a float, or choose other argnums."
        )
    return leaf
