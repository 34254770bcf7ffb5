"""A user's own relevance rule on a whole function, as jax.custom_vjp has own derivatives."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from relax import _jaxpr
from relax._errors import ArgumentError, RuleError


@dataclasses.dataclass(frozen=True, eq=False)
class Relprop:
    """A function with its rule, on flat lists of arrays: arguments, then what it closes over.

    Attributes:
      fun: ``(*args) -> outputs``.
      fwd: ``(*args) -> (outputs, residuals)``.
      bwd: ``(residuals, relevances of the outputs) -> relevances of the arguments``.
      coefficients: whether ``bwd`` takes and returns coefficients c, with R = x c, instead.
      name: what the function is called.
      closed_over: how many of the last arguments are what the function or its rule closes over.
    """

    fun: Callable[..., list[Any]]
    fwd: Callable[..., tuple[list[Any], Any]]
    bwd: Callable[[Any, list[Any]], list[Any]]
    coefficients: bool
    name: str
    closed_over: int = 0


class custom_relprop:
    """As jax.custom_vjp, but sets the relevance rule of a function instead of its derivative.

    For what `lrp` cannot look into or should not: a fused attention kernel, a solver, a whole block
    under one rule. Outside of `lrp` the function is what it was, derivative included.

    Args:
      fun: a function of arrays or pytrees of arrays. It and its rule may close over anything that
        does not depend on the explained input, such as parameters.
      nondiff_argnums: positions of arguments that take no relevance and need not be arrays, such as
        functions; the rule's ``bwd`` is given them first.

    Raises:
      ArgumentError: when it is called before `defrelprop`, is given what is no array, closes over a
        value that is explained, or has a rule that returns what does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> @relax.custom_relprop
      ... def softplus(x):
      ...     return jnp.log1p(jnp.exp(x))
      >>> def fwd(x):
      ...     return softplus(x), None
      >>> def bwd(residuals, relevance):
      ...     return (relevance,)  # passes unchanged
      >>> softplus.defrelprop(fwd, bwd)
      >>> print(relax.lrp(lambda x: 2 * softplus(x))(jnp.array([0.0, 1.0])))
      [1.3862944 2.6265233]
    """

    def __init__(self, fun: Callable[..., Any], nondiff_argnums: Sequence[int] = ()):
        functools.update_wrapper(self, fun)
        self.fun = fun
        self.nondiff_argnums = tuple(sorted(nondiff_argnums))
        self.fwd: Callable[..., Any] | None = None
        self.bwd: Callable[..., Any] | None = None
        self.coefficients = False

    def defrelprop(
        self,
        fwd: Callable[..., Any],
        bwd: Callable[..., Any],
        *,
        coefficients: bool = False,
    ) -> None:
        """Sets the rule.

        Args:
          fwd: ``(*args) -> (value, residuals)``.
          bwd: ``(*nondiff_args, residuals, relevance of the value) -> tuple of relevances``, one
            for each other argument, in its structure; None for one that gets nothing.
          coefficients: whether ``bwd`` takes and returns coefficients c, with R = x c, in the place
            of relevance. Then the rule of a linear function is its transpose, and no division is
            lost at zero.
        """
        self.fwd, self.bwd, self.coefficients = fwd, bwd, coefficients

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = getattr(self.fun, "__name__", "function")
        if self.fwd is None or self.bwd is None:
            raise ArgumentError(
                f"`{name}` has no relevance rule.\n  Call {name}.defrelprop(fwd, bwd) first."
            )
        args = _by_position(self.fun, name, args, kwargs)
        if _WITHIN.get():  # part of another such function: called for its value alone
            return self.fun(*args)
        call = _Call(name, self.fun, self.fwd, self.bwd, args, self.nondiff_argnums)
        leaves = call.leaves()
        with _within():
            rule, closed_over = call.rule(leaves, self.coefficients)
        outputs = custom_relprop_p.bind(*leaves, *closed_over, rule=rule)
        return jax.tree.unflatten(call.out_tree, outputs)


_WITHIN: contextvars.ContextVar[bool] = contextvars.ContextVar("within", default=False)


@contextlib.contextmanager
def _within() -> Iterator[None]:
    token = _WITHIN.set(True)
    try:
        yield
    finally:
        _WITHIN.reset(token)


def _by_position(
    fun: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The arguments by position, with the defaults of those that were left out."""
    try:
        signature = inspect.signature(fun)
    except ValueError:  # a function in C may have none
        return args
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.kwargs:
        raise ArgumentError(
            f"`{name}` takes {', '.join(bound.kwargs)} by keyword only, and a function with a rule "
            "of its own takes arguments by position.\n  Wrap it in one that does."
        )
    return bound.args


class _Call:
    """One call of a function with a rule: from pytrees and closures to flat lists."""

    def __init__(
        self,
        name: str,
        fun: Callable[..., Any],
        fwd: Callable[..., Any],
        bwd: Callable[..., Any],
        args: tuple[Any, ...],
        nondiff_argnums: tuple[int, ...],
    ):
        self.name, self.fun, self.fwd, self.bwd = name, fun, fwd, bwd
        positions = range(len(args))
        if any(i not in positions for i in nondiff_argnums):
            raise ArgumentError(
                f"nondiff_argnums={nondiff_argnums}, but `{name}` has {len(args)} arguments."
            )
        self.fixed = {i: args[i] for i in nondiff_argnums}
        self.given = {i: args[i] for i in positions if i not in self.fixed}
        self.flat, self.tree = jax.tree.flatten(self.given)
        self.out_tree: Any = None
        self.residual_tree: Any = None
        self.fixed_residuals: dict[int, Any] = {}

    def leaves(self) -> list[Any]:
        """The arguments as arrays."""
        for leaf in self.flat:
            if not isinstance(leaf, (int, float, complex)) and not hasattr(leaf, "dtype"):
                raise ArgumentError(
                    f"`{self.name}` was given {leaf!r}, which is no array.\n"
                    "  Put its position in nondiff_argnums, or close over it."
                )
        return [jnp.asarray(leaf) for leaf in self.flat]

    def rule(self, leaves: list[Any], coefficients: bool) -> tuple[Relprop, list[Any]]:
        """The function and its rule, traced here, where what they close over is alive."""
        fun, of_fun, expected = _jaxpr.hoisted(self._flat_fun, leaves)
        try:
            fwd, of_fwd, saved, values = self._traced_fwd(leaves)
            self._require_same(values, expected)
            bwd, of_bwd, _ = _jaxpr.hoisted(self._flat_bwd, [*saved, *values])
        except Exception as error:  # of the rule, which nothing but lrp uses
            refuse = _raising(error)
            made = Relprop(fun, refuse, refuse, coefficients, self.name, len(of_fun))
            return made, of_fun
        count, first, second = len(leaves), len(of_fun), len(of_fwd)
        closed_over = [*of_fun, *of_fwd, *of_bwd]

        def flat_fun(*flat: Any) -> list[Any]:
            return fun(*flat[: count + first])

        def flat_fwd(*flat: Any) -> tuple[list[Any], Any]:
            own, more = flat[:count], flat[count + first :]
            results = fwd(*own, *more[:second])
            return results[: len(values)], [*results[len(values) :], *more[second:]]

        def flat_bwd(residuals: Any, relevances: list[Any]) -> list[Any]:
            residuals, more = residuals[: len(saved)], residuals[len(saved) :]
            cast = [r.astype(v.dtype) for r, v in zip(relevances, values, strict=True)]
            given = bwd(*residuals, *cast, *more)
            return [*given, *(jnp.zeros(jnp.shape(x), float) for x in closed_over)]

        made = Relprop(flat_fun, flat_fwd, flat_bwd, coefficients, self.name, len(closed_over))
        return made, closed_over

    def _traced_fwd(self, leaves: list[Any]) -> Any:
        counts: list[int] = []

        def flat(*flat: Any) -> list[Any]:
            outputs, residuals = self._flat_fwd(*flat)
            counts.append(len(outputs))
            return [*outputs, *residuals]

        fwd, closed_over, results = _jaxpr.hoisted(flat, leaves)
        return fwd, closed_over, results[counts[0] :], results[: counts[0]]

    def _require_same(self, values: Sequence[Any], expected: Sequence[Any]) -> None:
        for got, own in zip(values, expected, strict=True):
            if (got.shape, got.dtype) != (own.shape, own.dtype):
                raise ArgumentError(
                    f"The forward rule of `{self.name}` returned a value of shape {got.shape} and "
                    f"type {got.dtype}; the function returns {own.shape} and {own.dtype}."
                )

    def _arguments(self, flat: Sequence[Any]) -> list[Any]:
        together = self.fixed | jax.tree.unflatten(self.tree, flat)
        return [together[i] for i in range(len(together))]

    def _flat_fun(self, *flat: Any) -> list[Any]:
        outputs, self.out_tree = jax.tree.flatten(self.fun(*self._arguments(flat)))
        return outputs

    def _flat_fwd(self, *flat: Any) -> tuple[list[Any], list[Any]]:
        pair = self.fwd(*self._arguments(flat))
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ArgumentError(
                f"The forward rule of `{self.name}` must return a pair (value, residuals)."
            )
        value, residuals = pair
        if jax.tree.structure(value) != self.out_tree:
            raise ArgumentError(
                f"The forward rule of `{self.name}` returned a value of structure "
                f"{jax.tree.structure(value)}; the function returns {self.out_tree}."
            )
        leaves, self.residual_tree = jax.tree.flatten(residuals)
        self.fixed_residuals = {i: x for i, x in enumerate(leaves) if not hasattr(x, "dtype")}
        arrays = [x for i, x in enumerate(leaves) if i not in self.fixed_residuals]
        return jax.tree.leaves(value), arrays

    def _flat_bwd(self, *flat: Any) -> list[Any]:
        total = self.residual_tree.num_leaves
        count = total - len(self.fixed_residuals)
        arrays = iter(flat[:count])
        leaves = [
            self.fixed_residuals[i] if i in self.fixed_residuals else next(arrays)
            for i in range(total)
        ]
        residuals = jax.tree.unflatten(self.residual_tree, leaves)
        relevance = jax.tree.unflatten(self.out_tree, flat[count:])
        given = self.bwd(*self.fixed.values(), residuals, relevance)
        if not isinstance(given, tuple) or len(given) != len(self.given):
            raise ArgumentError(
                f"The rule of `{self.name}` must return a tuple of {len(self.given)} relevances, "
                f"one for each argument; it returned {_counted(given)}."
            )
        found: list[Any] = []
        for argument, part in zip(self.given.values(), given, strict=True):
            own = jax.tree.leaves(argument)
            parts = [None] * len(own) if part is None else jax.tree.leaves(part)
            expected, got = jax.tree.structure(argument), jax.tree.structure(part)
            if part is not None and expected != got:
                raise ArgumentError(
                    f"The rule of `{self.name}` returned relevance of structure {got} for an "
                    f"argument of structure {expected}."
                )
            found += [self._checked(p, x) for x, p in zip(own, parts, strict=True)]
        return found

    def _checked(self, part: Any, argument: Any) -> Any:
        if part is None:
            return jnp.zeros(jnp.shape(argument), float)
        if jnp.shape(part) != jnp.shape(argument):
            raise RuleError(
                f"The rule of `{self.name}` returned relevance of shape {jnp.shape(part)} for an "
                f"argument of shape {jnp.shape(argument)}."
            )
        return part


def _counted(given: Any) -> str:
    kind = type(given).__name__
    return f"a {kind} of {len(given)}" if isinstance(given, (tuple, list)) else f"a {kind}"


def _raising(error: Exception) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function


custom_relprop_p = core.Primitive("custom_relprop")
custom_relprop_p.multiple_results = True


@custom_relprop_p.def_impl
def _impl(*args: Any, rule: Relprop) -> list[Any]:
    return rule.fun(*args)


@custom_relprop_p.def_abstract_eval
def _abstract(*args: Any, rule: Relprop) -> Sequence[Any]:
    return jax.make_jaxpr(rule.fun)(*args).out_avals


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, rule: Relprop) -> Any:
    filled = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(lambda *args: rule.fun(*args), tuple(primals), tuple(filled))


def _batch(axis: Any, args: Sequence[Any], axes: Sequence[Any], *, rule: Relprop) -> Any:
    mapped_over = {"axis_name": axis.name, "axis_size": axis.size, "spmd_axis_name": axis.spmd_name}

    def bwd(residuals: Any, relevances: list[Any]) -> list[Any]:
        given = jax.vmap(rule.bwd, **mapped_over)(residuals, relevances)
        return [
            r.sum(0) if axis is None else jnp.moveaxis(r, 0, axis)
            for r, axis in zip(given, axes, strict=True)
        ]

    mapped = dataclasses.replace(
        rule,
        fun=jax.vmap(rule.fun, in_axes=tuple(axes), **mapped_over),
        fwd=jax.vmap(rule.fwd, in_axes=tuple(axes), **mapped_over),
        bwd=bwd,
    )
    outputs = custom_relprop_p.bind(*args, rule=mapped)
    return outputs, [0] * len(outputs)


ad.primitive_jvps[custom_relprop_p] = _jvp
batching.fancy_primitive_batchers[custom_relprop_p] = _batch
mlir.register_lowering(
    custom_relprop_p,
    mlir.lower_fun(lambda *args, rule: rule.fun(*args), multiple_results=True),
)
