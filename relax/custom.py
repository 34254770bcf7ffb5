"""A user's own relevance rule on a whole function, as jax.custom_vjp has own derivatives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from relax._errors import ArgumentError


@dataclasses.dataclass(frozen=True, eq=False)
class Relprop:
    """A function with its rule, on flat lists of arrays.

    Attributes:
      fun: ``(*args) -> outputs``.
      fwd: ``(*args) -> (outputs, residuals)``.
      bwd: ``(residuals, relevances of the outputs) -> relevances of the arguments``.
      coefficients: whether ``bwd`` takes and returns coefficients c, with R = x c, instead.
      name: what the function is called.
    """

    fun: Callable[..., list[Any]]
    fwd: Callable[..., tuple[list[Any], Any]]
    bwd: Callable[[Any, list[Any]], list[Any]]
    coefficients: bool
    name: str


class custom_relprop:
    """As jax.custom_vjp, but sets the relevance rule of a function instead of its derivative.

    For what `lrp` cannot look into or should not: a fused attention kernel, a solver, a whole block
    under one rule. Outside of `lrp` the function is what it was, derivative included.

    Args:
      fun: a function of arrays or pytrees of arrays, by position. What is traced around it, such as
        the parameters of a jitted model, must be an argument: neither ``fun`` nor its rule may
        close over it. Residuals are arrays, too.

    Raises:
      ArgumentError: when it is called before `defrelprop`, closes over a traced value, or has a
        rule that returns what does not fit.

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

    def __init__(self, fun: Callable[..., Any]):
        functools.update_wrapper(self, fun)
        self.fun = fun
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
          bwd: ``(residuals, relevance of the value) -> tuple of relevances``, one for each
            argument, in its structure; None for one that gets nothing.
          coefficients: whether ``bwd`` takes and returns coefficients c, with R = x c, in the place
            of relevance. Then the rule of a linear function is its transpose, and no division is
            lost at zero.
        """
        self.fwd, self.bwd, self.coefficients = fwd, bwd, coefficients

    def __call__(self, *args: Any) -> Any:
        name = getattr(self.fun, "__name__", "function")
        if self.fwd is None or self.bwd is None:
            raise ArgumentError(
                f"`{name}` has no relevance rule.\n  Call {name}.defrelprop(fwd, bwd) first."
            )
        fwd, bwd = self.fwd, self.bwd
        leaves, tree = jax.tree.flatten(args)
        trees: dict[str, Any] = {}

        def flat_fun(*flat: Any) -> list[Any]:
            outputs, trees["out"] = jax.tree.flatten(self.fun(*jax.tree.unflatten(tree, flat)))
            return outputs

        def flat_fwd(*flat: Any) -> tuple[list[Any], Any]:
            pair = fwd(*jax.tree.unflatten(tree, flat))
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ArgumentError(
                    f"The forward rule of `{name}` must return a pair (value, residuals)."
                )
            value, residuals = pair
            if jax.tree.structure(value) != trees["out"]:
                raise ArgumentError(
                    f"The forward rule of `{name}` returned a value of structure "
                    f"{jax.tree.structure(value)}; the function returns {trees['out']}."
                )
            return jax.tree.leaves(value), residuals

        def flat_bwd(residuals: Any, relevances: list[Any]) -> list[Any]:
            given = bwd(residuals, jax.tree.unflatten(trees["out"], relevances))
            if not isinstance(given, tuple) or len(given) != len(args):
                raise ArgumentError(
                    f"The rule of `{name}` must return a tuple of {len(args)} relevances, one for "
                    f"each argument; it returned {type(given).__name__}."
                )
            flat: list[Any] = []
            for argument, part in zip(args, given, strict=True):
                own = jax.tree.leaves(argument)
                parts = [None] * len(own) if part is None else jax.tree.leaves(part)
                expected, got = jax.tree.structure(argument), jax.tree.structure(part)
                if part is not None and expected != got:
                    raise ArgumentError(
                        f"The rule of `{name}` returned relevance of structure {got} for an "
                        f"argument of structure {expected}."
                    )
                flat += [
                    jnp.zeros(jnp.shape(x), float) if p is None else p
                    for x, p in zip(own, parts, strict=True)
                ]
            return flat

        closed = jax.make_jaxpr(flat_fun)(*leaves)
        if any(isinstance(const, Tracer) for const in closed.consts):
            raise ArgumentError(
                f"`{name}` closes over a value that is traced around it, such as a parameter of a "
                "jitted model.\n  Make it an argument of the function, and of its rule."
            )
        rule = Relprop(flat_fun, flat_fwd, flat_bwd, self.coefficients, name)
        outputs = custom_relprop_p.bind(*map(jnp.asarray, leaves), rule=rule)
        return jax.tree.unflatten(trees["out"], outputs)


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


def _batch(args: Sequence[Any], axes: Sequence[Any], *, rule: Relprop) -> Any:
    def bwd(residuals: Any, relevances: list[Any]) -> list[Any]:
        given = jax.vmap(rule.bwd)(residuals, relevances)
        return [
            r.sum(0) if axis is None else jnp.moveaxis(r, 0, axis)
            for r, axis in zip(given, axes, strict=True)
        ]

    mapped = dataclasses.replace(
        rule,
        fun=jax.vmap(rule.fun, in_axes=tuple(axes)),
        fwd=jax.vmap(rule.fwd, in_axes=tuple(axes)),
        bwd=bwd,
    )
    outputs = custom_relprop_p.bind(*args, rule=mapped)
    return outputs, [0] * len(outputs)


ad.primitive_jvps[custom_relprop_p] = _jvp
batching.primitive_batchers[custom_relprop_p] = _batch
mlir.register_lowering(
    custom_relprop_p,
    mlir.lower_fun(lambda *args, rule: rule.fun(*args), multiple_results=True),
)
