"""Attention rollout, weighted by the gradient: from which tokens a token of the last layer is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax import select
from relax._errors import ArgumentError
from relax._numerics import divide, positive, wide
from relax._program import Program
from relax._run import Run
from relax.methods._problem import Problem, method
from relax.rules import Gradient

_Argnums = int | Sequence[int]


def attention_rollout(
    fun: Callable[..., Any],
    *,
    position: int,
    weighted: bool = True,
    at: Any = select.attention,
    batched: bool = True,
    argnums: _Argnums = -1,
    target: Any = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    r"""Attention, followed from one token of the last layer down to the tokens of the input.

    $$R = e_p^\top \bar A_L \cdots \bar A_1, \qquad
      \bar A_l = I + \tfrac{1}{H} \sum_h (\nabla A_l^h \odot A_l^h)^+$$

    The gradient is that of the target, so that R is of a class; without it,
    $\bar A = \tfrac12 I + \tfrac{1}{2 H} \sum_h A^h$, which is the same for every class.

    Args:
      fun, argnums, target, has_aux: as in `relax.lrp`; the input may be token ids.
      position: p, of the token that the output is made of: 0 for a class token in front, -1 for the
        last token of a language model.
      weighted: whether by the gradient.
      at: the softmaxes of attention, as in `relax.lrp`; by default all whose weights multiply
        values. All are over the same tokens; they may stand in a scan over layers.
      batched: whether the first axis of the attention weights are samples.

    Returns:
      A function of the arguments of ``fun``. It returns relevance for each token, not for each
      feature: ``(samples, tokens)``, or ``(tokens,)``; no share of the value, but a weight.

    Raises:
      UnmatchedSelectorError: there is no attention.
      ArgumentError: it is not over the same tokens; no such position.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f = lambda x: (jax.nn.softmax(x @ x.T) @ x)[0]
      >>> explain = relax.methods.attention_rollout(f, position=0, weighted=False, batched=False)
      >>> print(explain(jnp.zeros((2, 3))))
      [0.75 0.25]

    Source: Abnar and Zuidema 2020, section 3; by the gradient: Chefer et al. 2021 (Generic
    Attention-model Explainability), eqs. (5) and (6).
    """

    def explain(problem: Problem) -> Any:
        function = lambda x: problem.function(x)[0]
        one = lambda value: jax.tree.map(jnp.ones_like, value)
        total = lambda value: _total(problem.explained(value))
        seeds = jax.grad(total, allow_int=True)
        program = Program(function, Gradient(), -1, at, False, (problem.x,), {}, True)
        run = Run(program)
        _, gradients = run.relprop(seeds(run.value) if weighted else one(run.value))
        samples = jnp.shape(jax.tree.leaves(problem.x)[0])[0] if problem.batched else None
        whole = None
        for path in program.in_order():
            a, c = wide(run.latent_values[path]), wide(gradients[path])
            rounds = program.rounds_of(path)
            a, c = (v.reshape(-1, *v.shape[rounds:]) for v in (a, c))
            for i in range(a.shape[0]):  # layers of a scan, in order
                step = _step(a[i], c[i] if weighted else None, samples, path)
                if whole is not None and step.shape[-2:] != whole.shape[-2:]:
                    raise ArgumentError(
                        f"The attention `{path}` is over {step.shape[-1]} tokens, and another over "
                        f"{whole.shape[-1]}.\n  Name the layers that are over the same, by `at`."
                    )
                whole = step if whole is None else step @ whole
        assert whole is not None
        tokens = whole.shape[-1]
        if not -tokens <= position < tokens:
            raise ArgumentError(f"position={position} is out of range: there are {tokens} tokens.")
        return whole[..., position, :]

    return method(fun, argnums, target, has_aux, explain, batched, integers=True)


def _total(value: Any) -> jax.Array:
    return functools.reduce(jnp.add, [z.sum() for z in jax.tree.leaves(value)])


def _step(a: jax.Array, c: jax.Array | None, samples: int | None, path: str) -> jax.Array:
    """What one layer makes of the tokens: the residual stream, and attention over all heads."""
    given, batched = a.shape, samples is not None
    while batched and a.ndim > 3 and a.shape[0] == 1 != samples:  # some put an axis in front
        a, c = a[0], None if c is None else c[0]
    fits = not batched or a.shape[:1] == (samples,)
    if a.ndim < 2 + batched or a.shape[-1] != a.shape[-2] or not fits:
        first = "" if samples is None else f", of which there are {samples}"
        raise ArgumentError(
            f"The attention `{path}` has weights of shape {given}; expected "
            f"(samples, heads, tokens, tokens){first}.\n  Without samples: batched=False; "
            "cross-attention is left out by `at`."
        )
    heads = tuple(range(int(batched), a.ndim - 2))
    shape = (*a.shape[: int(batched)], *a.shape[-2:])
    eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), shape)
    if c is None:
        mixed = eye + a.mean(heads)
        return divide(mixed, jnp.broadcast_to(mixed.sum(-1, keepdims=True), mixed.shape))
    return eye + positive(a * c).mean(heads)


__all__ = ["attention_rollout"]
