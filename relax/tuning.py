"""Hyper-parameters of rules, chosen layer by layer: what scores best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from relax import select
from relax._display import html_lines, html_table, rich_lines, rich_table
from relax._errors import ArgumentError
from relax._forms import before
from relax._program import Program
from relax._progress import progress
from relax.rules import PerRound
from relax.rules.general import unmasked
from relax.sweeps import sweep
from relax.transform import lrp

GRID = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


class Tuned(NamedTuple):
    """What `tune` has found.

    Attributes:
      rules: for `lrp`, of the same function: the tuned rule of each layer, and what was given.
      values: the hyper-parameter of each layer, by path; in a scan one for each round.
      score: what they score; ``start``: what the rules scored as they were given.
      history: the best score after each step.
    """

    rules: list[Any]
    values: dict[str, Any]
    score: jax.Array
    start: jax.Array
    history: jax.Array

    def __str__(self) -> str:
        if self._is_traced():
            return f"<tuned, {len(self.values)} layers, traced>"
        lines = [f"{path:<40} {value}" for path, value in self._rows()]
        return "\n".join([*lines, self._summary()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if self._is_traced():
            return html_lines(str(self))
        return html_table(("layer", "value"), self._rows(), right=(1,), note=self._summary())

    def __rich__(self) -> Any:
        if self._is_traced():
            return rich_lines(str(self))
        return rich_table(("layer", "value"), self._rows(), right=(1,), note=self._summary())

    def _is_traced(self) -> bool:
        return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((self.values, self.score)))

    def _rows(self) -> list[tuple[str, str]]:
        return [
            (path, np.array2string(np.asarray(value), precision=4))
            for path, value in self.values.items()
        ]

    def _summary(self) -> str:
        return f"score {float(self.start):.4f} -> {float(self.score):.4f}"


def tune(
    fun: Callable[..., Any],
    rules: Any,
    score: Callable[[Any], Any],
    *,
    name: str = "gamma",
    grid: Sequence[float] | None = GRID,
    optimizer: Any = None,
    steps: int = 100,
    batch_size: int | None = None,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
    show: bool | None = None,
) -> Callable[..., Tuned]:
    """Chooses a hyper-parameter for each layer, so that the explanation scores best.

    By grid: layer after layer from the output down, all values of the grid in one sweep that shares
    the forward pass, and the best is kept. By gradient, if an optimizer is given: on the logarithm
    of the values, so that they stay positive; the best of all steps is kept.

    Args:
      fun, rules, argnums, target: as in `lrp`. Tuned are the layers whose rule has that
        hyper-parameter; the others keep their rule.
      score: of the relevance, the higher the better, such as `relax.evaluation.sensitivity_n`; the
        mean, if it returns an array. By gradient it must be differentiable.
      name: of the hyper-parameter.
      grid: the values that are tried, beside the present one.
      optimizer: of optax, or anything with ``init`` and ``update``.
      steps: of the optimizer.
      batch_size: how many values of the grid are evaluated at a time; by default all.
      show: a progress bar over the layers, by grid; by default, if stderr is a terminal and rich is
        installed.

    Returns:
      A function of the arguments of ``fun`` that returns a `Tuned`. What was chosen on some samples
      should be judged on others.

    Raises:
      ArgumentError: no rule has such a hyper-parameter; the grid is empty; a score is not finite.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> p = {"a": {"w": jnp.array([[1.0, -1.0], [2.0, 1.0]])}, "b": {"w": jnp.ones((2, 1))}}
      >>> f = lambda p, x: jax.nn.relu(x @ p["a"]["w"]) @ p["b"]["w"]
      >>> wanted = lambda relevance: -jnp.abs(relevance[0] - 0.7)  # say, that is what we like
      >>> found = relax.tune(f, {"a": relax.rules.Gamma(0.25)}, wanted)(p, jnp.array([1.0, 2.0]))
      >>> print(found)
      a                                        1.
      score -0.3667 -> -0.0333

    Source: Pahde et al. 2023, section 4; of gamma by layer: Montavon et al. 2019, section 10.3.
    """
    if optimizer is None and (grid is None or np.size(grid) == 0):
        raise ArgumentError("tune: the grid is empty, and there is no optimizer.")

    def tuned(*args: Any, **kwargs: Any) -> Tuned:
        program = Program(fun, rules, argnums, None, False, args, kwargs)
        start = _present(program, name)
        if not start:
            raise ArgumentError(f"tune: no layer has a rule with the hyper-parameter {name!r}.")

        def scored(values: dict[str, Any]) -> jax.Array:
            given = _with(rules, program, name, values)
            relevance = lrp(fun, given, argnums=argnums, target=target)(*args, **kwargs)
            return jnp.mean(jnp.asarray(score(relevance)))

        if optimizer is None:
            best, found, history = _by_grid(scored, start, jnp.asarray(grid), batch_size, show)
        else:
            best, found, history = _by_gradient(scored, start, optimizer, steps)
        if not isinstance(history, Tracer) and not np.all(np.isfinite(np.asarray(history))):
            raise ArgumentError("tune: a score is not finite.")
        return Tuned(_with(rules, program, name, best), best, found, history[0], history)

    return tuned


def _present(program: Program, name: str) -> dict[str, jax.Array]:
    """The hyper-parameter of each layer that has it, in a scan one for each round."""
    lengths = {
        layer.index: section.lengths
        for section, _ in program.of_section.values()
        for layer in section.layers
    }
    found = {}
    for layer, rule in zip(program.layers, program.rules, strict=True):
        if name not in _hyper_parameters(unmasked(rule)):
            continue
        value = getattr(unmasked(rule), name)
        value = jnp.asarray(value.values if isinstance(value, PerRound) else value, float)
        rounds = lengths[layer.index]
        if value.ndim not in (0, len(rounds)):
            raise ArgumentError(
                f"tune: {name} of `{layer.label}` has shape {value.shape}; expected one number "
                "for the layer."
            )
        found[layer.label] = jnp.broadcast_to(value, rounds)
    return found


def _with(rules: Any, program: Program, name: str, values: dict[str, Any]) -> list[Any]:
    """Rules, with those of the layers that are tuned in front."""
    tuned = []
    for layer, rule in zip(program.layers, program.rules, strict=True):
        if layer.label in values:
            value = values[layer.label]
            value = PerRound(value) if jnp.ndim(value) else value
            plain: Any = unmasked(rule)  # conditions are put in front of it again
            changed: Any = dataclasses.replace(plain, **{name: value})
            tuned.append((select.only(layer.label), changed))
    return before(tuned, rules)


def _hyper_parameters(rule: Any) -> set[str]:
    """The fields of a rule that are leaves: numbers and arrays."""
    return {path[0].name for path, _ in jax.tree_util.tree_leaves_with_path(rule)}


def _by_grid(
    scored: Callable[[Any], jax.Array],
    start: dict[str, jax.Array],
    grid: jax.Array,
    batch_size: int | None,
    show: bool | None,
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Coordinate ascent, from the output down: the values, their score, and the scores so far."""
    flat, unflatten = ravel_pytree(dict(enumerate(start.values())))
    names = list(start)
    by_name = lambda flat: {names[i]: value for i, value in unflatten(flat).items()}

    @jax.jit
    def improve(flat: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        candidates = jnp.concatenate([flat[i][None], grid.astype(flat.dtype)])
        of_one = lambda value: scored(by_name(flat.at[i].set(value)))
        scores = sweep(of_one, batch_size=batch_size)(candidates)
        best = jnp.argmax(scores)
        return flat.at[i].set(candidates[best]), scores[best]

    history = [jax.jit(lambda flat: scored(by_name(flat)))(flat)]
    if isinstance(history[0], Tracer):
        show = False  # nothing is computed yet
    for i in progress(range(flat.size)[::-1], "tuning", show=show):
        flat, score = improve(flat, jnp.asarray(i))
        history.append(score)
    return by_name(flat), history[-1], jnp.stack(history)


def _by_gradient(
    scored: Callable[[Any], jax.Array], start: dict[str, jax.Array], optimizer: Any, steps: int
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Ascent on the logarithms: the best values, their score, and the best scores so far."""
    given = jax.jit(scored)(start)
    logs = jax.tree.map(lambda v: jnp.log(jnp.maximum(v, 1e-3)), start)
    loss = lambda logs: -scored(jax.tree.map(jnp.exp, logs))

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        logs, state, best, found = carry
        value, slope = jax.value_and_grad(loss)(logs)
        better = -value > found
        best = jax.tree.map(lambda new, old: jnp.where(better, jnp.exp(new), old), logs, best)
        found = jnp.where(better | jnp.isnan(value), -value, found)
        updates, state = optimizer.update(slope, state, logs)
        return (jax.tree.map(jnp.add, logs, updates), state, best, found), found

    carry = (logs, optimizer.init(logs), start, given)
    (_, _, best, found), history = jax.jit(
        lambda carry: jax.lax.scan(step, carry, None, length=steps)
    )(carry)
    return best, found, jnp.concatenate([given[None], history])


__all__ = ["GRID", "Tuned", "tune"]
