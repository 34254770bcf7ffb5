"""The samples of a data set in which each concept is strongest: by relevance or by activation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from relax import _target
from relax._errors import ArgumentError
from relax._numerics import divide, is_count, wide
from relax._program import Program
from relax._progress import progress
from relax._run import Run
from relax.concepts._places import Place, find_places
from relax.rules import Epsilon


class Top(NamedTuple):
    """The strongest samples of each concept of a layer, the strongest first; a pytree.

    The leading axes are those of the concepts; the rounds of a scan are one more, in front.

    Attributes:
      values: ``(concepts, k)``, what was maximized; minus infinity where there were fewer samples.
      samples: ``(concepts, k)``, the number of the sample in the data set; -1 where there is none.
      positions: ``(concepts, k)``, where in the layer's output it is strongest: an index into its
        other axes, without that of the samples, flat.
    """

    values: jax.Array
    samples: jax.Array
    positions: jax.Array


class State(NamedTuple):
    """How far a search has come; a pytree.

    Attributes:
      top: for each layer, by path.
      seen: samples so far.
      invalid: samples left out, because they had a value that is not finite.
    """

    top: dict[str, Top]
    seen: jax.Array
    invalid: jax.Array


class Maximization(NamedTuple):
    """A search for the strongest samples, as three functions.

    Attributes:
      init: ``init(*args) -> State`` before the first batch; shapes suffice.
      update: ``update(state, *args) -> State`` with one batch more; to be compiled or scanned.
      run: ``run(*leading, batches, show=None) -> State``, compiled, over an iterable of batches of
        the last argument, or of tuples of the last arguments; ``leading`` are those before. There
        is a progress bar if ``show``; by default, if stderr is a terminal and rich is installed.
    """

    init: Callable[..., State]
    update: Callable[..., State]
    run: Callable[..., State]


def maximization(
    fun: Callable[..., Any],
    rules: Any = Epsilon(),
    *,
    at: Any,
    by: Literal["relevance", "activation"] = "relevance",
    k: int = 8,
    reduce: Literal["sum", "max"] = "sum",
    normalize: bool = True,
    axis: int | Sequence[int] = -1,
    batch_axis: int = 0,
    argnums: int | Sequence[int] = -1,
    target: Any = None,
) -> Maximization:
    r"""Relevance maximization: in which samples of a data set does a concept matter most?

    $$\mathrm{score}_c(x) = \frac{r_c(x)}{\sum_{c'} |r_{c'}(x)|}, \qquad r_c = \sum_i R_{ci}$$

    with the positions i of the layer's output; with ``by="activation"``, the activation in the
    place of R: activation maximization, in which samples is it strongest?

    The data set is streamed: of each concept only the k strongest samples are kept, on the device.

    Args:
      fun, rules, argnums, target: as in `lrp`; ``fun`` takes a batch. For the relevance of each
        sample's own label, let it take the labels too: ``lambda params, x, labels: ...`` with
        ``argnums=1``, and batches that are tuples.
      at: globs of layers, or names of values: all of them in one pass.
      by: what is maximized.
      k: how many samples are kept for each concept.
      reduce: whether the positions are summed, or the largest counts.
      normalize: whether it is divided by the magnitudes of all concepts of the layer, so that
        samples compare whose output is larger or smaller; each round of a scan is a layer.
      axis: of the concepts in the layer's output, or several.
      batch_axis: of the samples in the layer's output.

    Returns:
      A `Maximization`.

    Raises:
      ArgumentError: there is no such axis, ``by``, ``reduce`` or k; no batch was given.
      UnmatchedSelectorError: ``at`` names nothing.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda p, x: (x @ p["hidden"]["w"]) @ p["head"]["w"]
      >>> p = {"hidden": {"w": jnp.eye(2)}, "head": {"w": jnp.ones((2, 1))}}
      >>> search = relax.concepts.maximization(f, at="hidden", k=2)
      >>> batches = [jnp.array([[1.0, 3.0], [1.0, 1.0]]), jnp.array([[9.0, 1.0]])]
      >>> print(search.run(p, batches).top["hidden"].samples)  # for either unit
      [[2 1]
       [0 1]]

    Source: Achtibat et al. 2023, section "Relevance maximization".
    """
    if by not in ("relevance", "activation"):
        raise ArgumentError(f'maximization(by={by!r}): expected "relevance" or "activation".')
    if reduce not in ("sum", "max"):
        raise ArgumentError(f'maximization(reduce={reduce!r}): expected "sum" or "max".')
    if not is_count(k):
        raise ArgumentError(f"maximization(k={k!r}): expected a positive integer.")

    def program_of(args: tuple[Any, ...]) -> tuple[Program, list[Place]]:
        given = _target.gives_relevance(target)
        program = Program(fun, rules, argnums, at, False, args, {}, given)
        places = find_places(program, axis, batch_axis)
        first = jnp.shape(program.traced.leaves[program.traced.explained[0]])
        for place in places:
            if first[:1] != (place.shape[place.batch],):
                raise ArgumentError(
                    f"maximization: the explained argument, of shape {first}, should be a batch of "
                    f"the samples along axis {batch_axis} of `{place.path}`, of shape "
                    f"{place.shape[place.rounds :]}."
                )
        return program, places

    def init(*args: Any) -> State:
        program, places = program_of(args)
        shapes = program.shapes()
        top = {
            place.path: Top(
                jnp.full((*place.sizes, k), -jnp.inf, _wide(shapes[place.path].dtype)),
                jnp.full((*place.sizes, k), -1, jnp.int32),
                jnp.full((*place.sizes, k), -1, jnp.int32),
            )
            for place in places
        }
        return State(top, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(state: State, *args: Any) -> State:
        program, places = program_of(args)
        run = Run(program)
        latent = run.latent_values
        if by == "relevance":
            _, latent = run.relprop(_target.seeds(target, run.value))
        parts = {place.path: place.per_sample(wide(latent[place.path])) for place in places}
        finite = [jnp.isfinite(x).all((1, 2)) for x in parts.values()]
        valid = jnp.stack(finite).all(0)
        top = {
            place.path: _merged(
                state.top[place.path],
                parts[place.path],
                place,
                valid,
                state.seen,
                reduce,
                normalize,
            )
            for place in places
        }
        invalid = state.invalid + jnp.sum(~valid, dtype=jnp.int32)
        return State(top, state.seen + valid.size, invalid)

    def run_all(*args: Any, show: bool | None = None) -> State:
        *leading, batches = args
        if not isinstance(batches, Iterable):
            raise ArgumentError("run(*leading, batches): the last argument is no iterable.")
        step, state = jax.jit(update), None
        for batch in progress(batches, "searching", show=show):
            args = (*leading, *batch) if isinstance(batch, tuple) else (*leading, batch)
            state = step(init(*args) if state is None else state, *args)
        if state is None:
            raise ArgumentError("run(*leading, batches): there is no batch.")
        return state

    return Maximization(init, update, run_all)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _merged(
    top: Top,
    x: jax.Array,
    place: Place,
    valid: jax.Array,
    seen: jax.Array,
    reduce: str,
    normalize: bool,
) -> Top:
    """The strongest of those that were known and those of a batch: samples, concepts, positions."""
    x = jnp.where(valid[:, None, None], x, 0)
    rounds = x.reshape(x.shape[0], *place.sizes, x.shape[-1])
    score = rounds.sum(-1) if reduce == "sum" else rounds.max(-1)
    if normalize:
        whole = jnp.abs(score).sum(tuple(range(1 + place.rounds, score.ndim)), keepdims=True)
        score = divide(score, whole)
    score = jnp.where(score == 0, 0, score)  # -0.0 and 0.0 are a tie
    score = jnp.where(valid.reshape(-1, *(1,) * (score.ndim - 1)), score, -jnp.inf)
    ones = jnp.ones_like(score, jnp.int32)
    numbers = (seen + jnp.arange(valid.size, dtype=jnp.int32)).reshape(-1, *(1,) * (score.ndim - 1))
    fresh = Top(score, numbers * ones, jnp.argmax(rounds, -1).astype(jnp.int32))
    both = [
        jnp.concatenate([old, jnp.moveaxis(new, 0, -1).astype(old.dtype)], -1)
        for old, new in zip(top, fresh, strict=True)
    ]
    values, order = jax.lax.top_k(both[0], top.values.shape[-1])
    samples, positions = (jnp.take_along_axis(a, order, -1) for a in both[1:])
    none = values == -jnp.inf
    return Top(values, jnp.where(none, -1, samples), jnp.where(none, -1, positions))
