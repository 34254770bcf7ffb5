"""What every method is given: a function, what of its value is explained, and at which input."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from relax import _target
from relax._arguments import resolve_argnums
from relax._errors import ArgumentError
from relax._numerics import is_count, wide


class Problem:
    """A function at its arguments, as a function of what is explained alone.

    Args:
      fun, argnums, target, has_aux, args, kwargs: as in `relax.lrp`, and of the call.
      batched: whether the first axis of x and of the value are samples.
      integers: whether x may hold token ids, as nothing is added to it.

    Attributes:
      x: the explained argument, a tuple of them if ``argnums`` is a sequence.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        argnums: int | Sequence[int],
        target: Any,
        has_aux: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        batched: bool = True,
        integers: bool = False,
    ):
        self._fun, self._args, self._kwargs = fun, args, kwargs
        self.target, self._has_aux, self.batched = target, has_aux, batched
        self._numbers = resolve_argnums(argnums, len(args))
        self._several = isinstance(argnums, Sequence)
        given = tuple(args[n] for n in self._numbers)
        array = jnp.asarray if integers else _floats
        self.x = jax.tree.map(array, given if self._several else given[0])
        if not jax.tree.leaves(self.x):
            raise ArgumentError(f"argnums={argnums!r}: the explained argument holds no array.")

    def function(self, x: Any) -> tuple[Any, Any]:
        """The value and the auxiliary output, at another x."""
        args = list(self._args)
        for n, part in zip(self._numbers, x if self._several else (x,), strict=True):
            args[n] = part
        result = self._fun(*args, **self._kwargs)
        return result if self._has_aux else (result, None)

    @functools.cached_property
    def _here(self) -> tuple[Any, Any]:
        return self.function(self.x)

    @property
    def value(self) -> Any:
        """At the unchanged x."""
        return self._here[0]

    @property
    def aux(self) -> Any:
        return self._here[1]

    def explained(self, value: Any) -> Any:
        """Of a value what is explained; the rest is zero.

        ``"max"`` is the largest entry at the unchanged x, wherever the value is from.
        """
        if _target.gives_relevance(self.target):
            return _target.seeds(self.target, value)
        of = self.value if isinstance(self.target, str) else value
        return jax.tree.map(jnp.multiply, value, _target.seeds(self.target, of))

    def fix_target(self) -> None:
        """Finds the class of the unchanged x, if it is wanted, before x is changed in a loop."""
        if isinstance(self.target, str):
            self.explained(self.value)

    def total(self, x: Any) -> jax.Array:
        """The explained entries, added up: a scalar."""
        return _sum(jax.tree.leaves(self.explained(self.function(x)[0])), lambda z: z.sum())

    def gradient(self, x: Any) -> Any:
        """Of `total`."""
        return jax.grad(self.total)(x)

    def gradient_here(self) -> Any:
        """At the unchanged x, which is evaluated no second time for the auxiliary output."""
        value, pull_back, aux = jax.vjp(self.function, self.x, has_aux=True)
        self._here = value, aux
        total = lambda value: _sum(jax.tree.leaves(self.explained(value)), lambda z: z.sum())
        return pull_back(jax.grad(total, allow_int=True)(value))[0]

    def scores(self, x: Any) -> jax.Array:
        """The explained entries of each sample, added up: ``(samples,)``, or a scalar."""
        return self._scores(self.function(x)[0])

    def scores_here(self) -> jax.Array:
        """At the unchanged x."""
        return self._scores(self.value)

    def _scores(self, value: Any) -> jax.Array:
        leaves = jax.tree.leaves(self.explained(value))
        if not self.batched:
            return _sum(leaves, lambda z: _wide(z).sum())
        for z in leaves:
            if jnp.shape(z)[:1] != jnp.shape(self.array)[:1]:
                raise ArgumentError(
                    f"The value has shape {jnp.shape(z)} and x {jnp.shape(self.array)}; the first "
                    "axis of both should be the samples.\n  For one sample without that axis: "
                    "batched=False."
                )
        return _sum(leaves, lambda z: _wide(z).sum(tuple(range(1, z.ndim))))

    @property
    def array(self) -> jax.Array:
        """x, where only one array can be explained.

        Raises:
          ArgumentError: there are several, or it has no axis of samples.
        """
        leaves = jax.tree.leaves(self.x)
        if len(leaves) != 1:
            raise ArgumentError(
                f"x holds {len(leaves)} arrays; this method changes parts of one.\n"
                "  Explain them one after the other, by argnums or a function of one of them."
            )
        if self.batched and leaves[0].ndim < 2:
            raise ArgumentError(
                f"x has shape {leaves[0].shape}; expected an axis of samples and one of features.\n"
                "  For one sample without that axis: batched=False."
            )
        return leaves[0]

    def changed(self, array: jax.Array) -> Any:
        """x with another array in the place of its only one."""
        return jax.tree.unflatten(jax.tree.structure(self.x), [array])

    def baseline(self, given: Any) -> Any:
        """What x is compared with, in its structure and shapes."""
        leaves = jax.tree.leaves(self.x)
        tree = jax.tree.structure(self.x)
        if jax.tree.structure(given) == tree:
            parts = jax.tree.leaves(given)
        elif jax.tree.structure(given) == jax.tree.structure(0):
            parts = [given] * len(leaves)
        else:
            raise ArgumentError(
                f"baseline has structure {jax.tree.structure(given)}, and x {tree}; expected one "
                "number or array, or the structure of x."
            )
        return jax.tree.unflatten(tree, list(map(_fitting, parts, leaves)))


def method(
    fun: Callable[..., Any],
    argnums: int | Sequence[int],
    target: Any,
    has_aux: bool,
    explain: Callable[[Problem], Any],
    batched: bool = True,
    integers: bool = False,
) -> Callable[..., Any]:
    """A function of the arguments of ``fun`` that explains it, as `relax.lrp` returns one."""

    @functools.wraps(fun, updated=())
    def explained(*args: Any, **kwargs: Any) -> Any:
        problem = Problem(fun, argnums, target, has_aux, args, kwargs, batched, integers)
        relevance = explain(problem)
        return (relevance, problem.aux) if has_aux else relevance

    return explained


def summed(
    function: Callable[[Any], Any], points: Any, batch_size: int, who: str = "batch_size"
) -> Any:
    """The sum of a function over the first axis of ``points``, ``batch_size`` of them at a time."""
    if not is_count(batch_size):
        raise ArgumentError(f"{who}={batch_size!r}: expected a positive integer.")
    count = len(jax.tree.leaves(points)[0])
    size = min(batch_size, count)
    whole = count // size
    together = lambda some: jax.tree.map(lambda a: a.sum(0), jax.vmap(function)(some))
    cut = lambda a: a[: whole * size].reshape(whole, size, *a.shape[1:])
    chunks = jax.tree.map(cut, points)
    first = together(jax.tree.map(lambda a: a[0], chunks))
    add = lambda total, some: (jax.tree.map(jnp.add, total, together(some)), None)
    total, _ = lax.scan(add, first, jax.tree.map(lambda a: a[1:], chunks))
    if whole * size < count:
        total, _ = add(total, jax.tree.map(lambda a: a[whole * size :], points))
    return total


def _wide(z: Any) -> jax.Array:
    """In a type in which small differences of sums survive."""
    z = jnp.asarray(z)
    return wide(z) if jnp.issubdtype(z.dtype, jnp.inexact) else z


def _floats(leaf: Any) -> jax.Array:
    """One explained array.

    Raises:
      ArgumentError: it holds no floats.
    """
    array = jnp.asarray(leaf)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise ArgumentError(
            f"The explained argument has dtype {array.dtype}; this method needs floats.\n"
            "  Explain the embedded input, or token ids by relax.lrp."
        )
    return array


def _fitting(given: Any, x: jax.Array) -> jax.Array:
    try:
        return jnp.broadcast_to(jnp.asarray(given, x.dtype), x.shape)
    except ValueError:
        raise ArgumentError(
            f"baseline of shape {jnp.shape(given)} does not broadcast to x of shape {x.shape}."
        ) from None


def _sum(leaves: Sequence[Any], each: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return sum(map(each, leaves[1:]), each(leaves[0]))
