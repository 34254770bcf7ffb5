"""The transforms: a function in, a function out, as jax.grad, jax.value_and_grad and jax.vjp."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from relax import _target
from relax._errors import ArgumentError, RelaxWarning, message
from relax.rules import Epsilon


def lrp(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),
    *,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
    at: str | Sequence[str] | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""As jax.grad, but returns relevance under rules instead of the gradient.

    The relevance of the chosen outputs, $R = z \odot \mathrm{mask}$, is propagated back through
    every layer of ``fun`` by the rule of that layer.

    Args:
      fun: any JAX function of arrays or pytrees of arrays; it may return any pytree of arrays.
      rules: one rule; a composite; a mapping or list of (selector, rule); or a callable
        ``layer -> rule | None``. The first match wins, the rest keeps its default: Epsilon for
        dense layers and convolutions, Pass for activations, the transpose for linear layers, the
        winner for max and its kin. An affine rule alone goes to every affine layer.
      argnums: which positional arguments are explained, as in jax.grad, but the default is the
        last one, the input in ``apply(params, x)``.
      target: which output is explained. None: all. An int, or an integer array of shape
        ``value.shape[:-1]``: that entry of the last axis. ``"max"``: the largest entry. A callable
        ``value -> relevance of the value``: anything else.
      at: globs, or predicates of `relax.select`: layers whose output relevance is wanted as well.
      has_aux: whether ``fun`` returns ``(value, aux)``.

    Returns:
      A function of the arguments of ``fun``. It returns the relevance, in the structure, shapes and
      dtypes of the explained argument (a tuple of them if ``argnums`` is a sequence) and the units
      of the value; with ``at``, ``(relevance, {path: relevance})``; with ``has_aux``, that and aux.

    Raises:
      RelaxError: at trace time, see its subclasses; each names the user's line and the remedy.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["w1"]) @ params["w2"]
      >>> params = {"w1": jnp.eye(2), "w2": jnp.array([[1.0, 2.0], [-1.0, 1.0]])}
      >>> rules = relax.rules.Epsilon(0.0)
      >>> print(jax.jit(relax.lrp(model, rules, target=0))(params, jnp.array([3.0, 1.0])))
      [ 3. -1.]

    Source: Bach et al. 2015; Montavon et al. 2019.
    """

    @functools.wraps(fun, updated=())
    def explained(*args: Any, **kwargs: Any) -> Any:
        _, aux, relevance = _explain(fun, rules, argnums, target, at, has_aux, args, kwargs, False)
        return (relevance, aux) if has_aux else relevance

    return explained


def value_and_lrp(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),
    *,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
    at: str | Sequence[str] | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """As jax.value_and_grad, but with relevance in the place of the gradient.

    Arguments and errors: see `lrp`.

    Returns:
      A function of the arguments of ``fun`` that returns ``(value, relevance)``, with ``has_aux``
      ``((value, aux), relevance)``. The value is that of ``fun``: to the bit outside of jit, where
      it is evaluated once more; to rounding under jit.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([2.0, 1.0]), jnp.array([1.0, 3.0])
      >>> value, relevance = relax.value_and_lrp(f, relax.rules.Epsilon(0.0))(w, x)
      >>> print(value, relevance)
      5.0 [2. 3.]
    """

    @functools.wraps(fun, updated=())
    def explained(*args: Any, **kwargs: Any) -> Any:
        value, aux, relevance = _explain(
            fun, rules, argnums, target, at, has_aux, args, kwargs, True
        )
        return ((value, aux), relevance) if has_aux else (value, relevance)

    return explained


def vrp(
    fun: Callable[..., Any],
    *primals: Any,
    rules: Any = Epsilon(),
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """As jax.vjp: the value, and a function from relevance of the value to that of the primals.

    Args:
      fun: any JAX function; all its arguments are explained, so close over parameters.
      *primals: its arguments.
      rules: see `lrp`.
      has_aux: whether ``fun`` returns ``(value, aux)``.

    Returns:
      ``(value, relprop)`` or ``(value, relprop, aux)``; ``relprop(R)`` takes relevance in the
      structure of the value and returns a tuple of relevances, one for each primal.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> w, rules = jnp.array([[2.0, 0.0], [1.0, 1.0]]), relax.rules.Epsilon(0.0)
      >>> value, relprop = relax.vrp(lambda x: x @ w, jnp.array([1.0, 3.0]), rules=rules)
      >>> (relevance,) = relprop(jnp.array([5.0, 0.0]))
      >>> print(value, relevance)
      [5. 3.] [2. 3.]
    """
    argnums = tuple(range(len(primals)))
    from relax._program import Program  # on first use: see relax/__init__.py
    from relax._run import Run

    program = Program(fun, rules, argnums, None, has_aux, primals, {}, in_relevance=True)
    run = Run(program, exact_value=True)
    value = run.value

    def relprop(relevance: Any) -> Any:
        expected = jax.tree.structure(value)
        if jax.tree.structure(relevance) != expected:
            raise ArgumentError(
                f"relprop: relevance has structure {jax.tree.structure(relevance)}; "
                f"the value has {expected}."
            )
        return run.relprop(_target.given(relevance, value))[0]

    return (value, relprop, run.aux) if has_aux else (value, relprop)


def _explain(
    fun: Any,
    rules: Any,
    argnums: Any,
    target: Any,
    at: Any,
    has_aux: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    exact_value: bool,
) -> tuple[Any, Any, Any]:
    from relax._program import Program  # on first use: see relax/__init__.py
    from relax._run import Run

    program = Program(
        fun, rules, argnums, at, has_aux, args, kwargs, _target.gives_relevance(target)
    )
    run = Run(program, exact_value)
    seeds = _target.seeds(target, run.value)
    _warn_of_probabilities(program, seeds)
    relevance, latent = run.relprop(seeds)
    return run.value, run.aux, (relevance if at is None else (relevance, latent))


def _warn_of_probabilities(program: Any, seeds: Any) -> None:
    """A softmax or sigmoid at the end is rarely what is meant to be explained.

    Of several outputs only those that surely are explained are meant.
    """
    found = program.endings()
    for end, seed in zip(found, jax.tree.leaves(seeds), strict=True):
        explained = len(found) == 1 or (not isinstance(seed, Tracer) and bool(jnp.any(seed != 0)))
        if end is None or not explained:
            continue
        if end.constant:
            what = "The output is constant, whatever the input is: a softmax over one entry"
        else:
            what = f"What is explained is a probability, not a logit: the output is a {end.name}"
        warnings.warn(
            message(
                what,
                where=end.where,
                path=end.path,
                remedy="To explain the logit: relax.lrp(relax.logits(f), rules).",
            ),
            RelaxWarning,
            stacklevel=4,
        )
