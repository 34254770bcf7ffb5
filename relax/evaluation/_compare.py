"""Measures over a data set, batch by batch, of one explanation or of many methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax._errors import ArgumentError, RelaxWarning
from relax._progress import progress
from relax.evaluation._batches import rows_of, split_batches
from relax.evaluation._curve import Curve
from relax.evaluation._features import real_relevance
from relax.evaluation._finite import finite, listed, paired
from relax.evaluation._perturbation import perturbation
from relax.evaluation._sensitivity import sensitivity_n
from relax.evaluation._table import Table
from relax.sweeps import sweep


def faithfulness(
    fun: Callable[..., Any],
    *args: Any,
    relevance: Any,
    key: jax.Array,
    steps: int | None = None,
    until: float = 1.0,
    n: int | None = None,
    subsets: int = 100,
    groups: Any = None,
    replacement: Any = 0.0,
    target: Any = None,
    batch_size: int | None = None,
) -> dict[str, jax.Array]:
    """The usual measures at once: area under MoRF and LeRF, what lies between, sensitivity-n.

    Arguments and errors: see `perturbation` and `sensitivity_n`; ``replacement`` is the baseline of
    both. For `compare`, bind them with functools.partial.

    Returns:
      ``(samples,)`` for each of ``"ABPC"``, ``"MoRF"``, ``"LeRF"`` and ``"sensitivity-n"``.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> f, x = lambda x: x.sum(1), jnp.array([[3.0, 1.0]])
      >>> found = relax.evaluation.faithfulness(f, x, relevance=x, key=jax.random.key(0))
      >>> print({name: float(score[0]) for name, score in found.items()})
      {'ABPC': 1.0, 'MoRF': 1.5, 'LeRF': 2.5, 'sensitivity-n': 1.0}
    """
    for_curves, for_subsets = jax.random.split(key)
    common: dict[str, Any] = {
        "groups": groups,
        "target": target,
        "batch_size": batch_size,
    }
    morf, lerf = (
        perturbation(
            fun,
            *args,
            relevance=relevance,
            order=order,
            steps=steps,
            until=until,
            replacement=replacement,
            key=for_curves,
            **common,
        ).area()
        for order in ("morf", "lerf")
    )
    score = sensitivity_n(
        fun, *args, key=for_subsets, n=n, subsets=subsets, baseline=replacement, **common
    )
    return {"ABPC": lerf - morf, "MoRF": morf, "LeRF": lerf, "sensitivity-n": score(relevance)}


def evaluate_batches(
    measure: Callable[..., Any],
    *args: Any,
    key: jax.Array | None = None,
    show: bool | None = None,
) -> Any:
    """A measure over a data set: compiled, batch by batch, its results put together on the host.

    Args:
      measure: ``(*leading, *batch) -> scores`` of the samples, a pytree of arrays with the samples
        in front, or of `Curve`; with a key, ``(..., key=...)``.
      *args: leading arguments, and an iterable of batches. A batch is the last argument, or a tuple
        of the last ones. Batches of one shape are compiled once.
      key: of jax.random; another is made of it for each batch.
      show: a progress bar; by default, if stderr is a terminal and rich is installed.

    Returns:
      What the measure returns, of all samples, as numpy arrays. Samples that are not finite keep
      their places and values, and a `RelaxWarning` tells their numbers.

    Raises:
      ArgumentError: there is no batch, a result has no axis of samples, or several results have
        not the same samples.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> from relax import evaluation
      >>> f = lambda w, x: x @ w
      >>> def measure(w, x):
      ...     relevance = relax.lrp(f, relax.rules.Epsilon(0.0))(w, x)
      ...     return evaluation.deletion(f, w, x, relevance=relevance)
      >>> w, data = jnp.array([[1.0], [2.0]]), jnp.ones((6, 2))
      >>> print(evaluation.evaluate_batches(measure, w, [data[:3], data[3:]]))
      Curve(morf: 6 samples, 2 steps to 1; value 3 to 0, area 1.25)
    """
    leading, batches = split_batches("evaluate_batches", args)
    step, results = jax.jit(measure), []
    for number, batch in enumerate(progress(batches, "evaluating", show=show)):
        more = {} if key is None else {"key": jax.random.fold_in(key, number)}
        found = step(*leading, *rows_of("evaluate_batches", batch), **more)
        results.append(jax.tree.map(np.asarray, found))
    if not results:
        raise ArgumentError("evaluate_batches: there is no batch.")
    is_curve = lambda leaf: isinstance(leaf, Curve)
    joined = jax.tree.map(_joined, *results, is_leaf=is_curve)
    leaves = jax.tree.leaves(joined, is_leaf=is_curve)
    wrong = _not_finite([leaf.values if is_curve(leaf) else leaf for leaf in leaves])
    if wrong.any():
        warnings.warn(
            f"evaluate_batches: {wrong.sum()} of {wrong.size} samples are not finite: "
            f"{listed(np.flatnonzero(wrong))}.\n  Their numbers count from 0, in the order of the "
            "data set. Leave them out of what you compute of the result.",
            RelaxWarning,
            stacklevel=2,
        )
    return joined


def _not_finite(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Which samples are not finite in one of the arrays, ``(samples,)``."""
    if not arrays:
        raise ArgumentError("evaluate_batches: the measure returns no array.")
    if len({len(array) for array in arrays}) > 1:
        raise ArgumentError(
            "evaluate_batches: the results have shapes "
            f"{', '.join(str(array.shape) for array in arrays)}; the first axis of all should be "
            "the samples."
        )
    return np.asarray(~jnp.stack([finite(array) for array in arrays]).all(0))


def _joined(*parts: Any) -> Any:
    if isinstance(parts[0], Curve):
        values: Any = np.concatenate([curve.values for curve in parts])
        return Curve(parts[0].fractions, values, parts[0].order)
    if not np.ndim(parts[0]):
        raise ArgumentError(
            "evaluate_batches: a result is one number; return one for each sample, so that batches "
            "of different sizes count as they should."
        )
    return np.concatenate(parts)


def compare(
    methods: Mapping[str, Callable[..., Any]],
    fun: Callable[..., Any],
    *args: Any,
    key: jax.Array,
    measures: Callable[..., Mapping[str, Any]] = faithfulness,
    cost: Mapping[str, float] | None = None,
    lower: Sequence[str] = ("MoRF", "deletion", "entropy"),
    show: bool | None = None,
) -> Table:
    """Many methods of explanation on one data set: a table of what they score.

    Every method explains every batch; the measures see all of them in one program, which computes
    what does not depend on the explanation once. All methods meet the same random numbers.

    All methods are scored on the same samples: one that is not finite for some method is left out
    for all of them, and a `RelaxWarning` tells why. What a method has in no sample at all leaves
    out none, and stays NaN.

    Args:
      methods: by name, ``(*leading, *batch) -> relevance`` of its last argument. They are compiled.
      fun: as in `perturbation`.
      *args: leading arguments of ``fun``, and an iterable of batches. A batch is the last argument,
        or a tuple of the last ones, of which the very last is explained: with batches
        ``(labels, x)``, let ``fun`` and the methods take ``(params, labels, x)``.
      key: of jax.random; another is made of it for each batch.
      measures: ``(fun, *args, relevance=..., key=...) -> {name: (samples,)}``. By default
        `faithfulness`; mostly ``functools.partial(faithfulness, target=..., groups=...)``.
      cost: of the methods, in gradients; a column of its own.
      lower: names of measures of which less is better.
      show: a progress bar; by default, if stderr is a terminal and rich is installed.

    Returns:
      A `Table`, of the samples that count.

    Raises:
      ArgumentError: there is no method or no batch; a cost belongs to no method; a relevance has
        another shape than x: the method is named.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> from relax import evaluation
      >>> f = lambda w, x: x @ w
      >>> methods = {"gradient": lambda w, x: jnp.ones_like(x) * w.T, "lrp": relax.lrp(f)}
      >>> w, x = jnp.array([[1.0], [-2.0], [3.0]]), jnp.array([[4.0, 1.0, 1.0]])
      >>> table = evaluation.compare(methods, f, w, [x], key=jax.random.key(0))
      >>> print(table.methods, table.mean("ABPC").round(2))
      ('gradient', 'lrp') [3.33 4.  ]
    """
    leading, batches = split_batches("compare", args)
    if not methods:
        raise ArgumentError("compare: there are no methods.")
    unknown = set(cost or ()) - set(methods)
    if unknown:
        raise ArgumentError(f"compare: a cost is given for {sorted(unknown)}, which is no method.")
    compiled = {name: jax.jit(method) for name, method in methods.items()}
    names: list[str] = []  # of the measures, as they are given: jit returns dicts sorted

    @jax.jit
    def scores(key: jax.Array, relevances: jax.Array, *args: Any) -> list[jax.Array]:
        def one(relevance: jax.Array) -> list[Any]:
            each = measures(fun, *args, relevance=relevance, key=key)
            names[:] = each
            return list(each.values())

        return sweep(one, batch_size=1)(relevances)

    found: list[dict[str, np.ndarray]] = []
    explained: list[np.ndarray] = []
    for number, batch in enumerate(progress(batches, "comparing", show=show)):
        given = (*leading, *rows_of("compare", batch))
        relevances = [
            real_relevance(
                f"compare, {name!r}, batch {number}", method(*given), np.shape(given[-1])
            )
            for name, method in compiled.items()
        ]
        explained.append(np.stack([np.asarray(finite(r)) for r in relevances]))
        each = scores(jax.random.fold_in(key, number), jnp.stack(relevances), *given)
        found.append(dict(zip(names, map(np.asarray, each), strict=True)))
        for name, score in found[-1].items():
            if score.shape != (len(methods), np.shape(given[-1])[0]):
                raise ArgumentError(
                    f"compare: the measure {name!r} has shape {score.shape[1:]}; expected a number "
                    f"for each of {np.shape(given[-1])[0]} samples."
                )
    if not found:
        raise ArgumentError("compare: there is no batch.")
    columns = {name: np.concatenate([each[name] for each in found], 1) for name in found[0]}
    columns, left_out, warning = paired(tuple(methods), columns, np.concatenate(explained, 1))
    if warning:
        warnings.warn(f"compare: {warning}", RelaxWarning, stacklevel=2)
    return Table(tuple(methods), columns, cost, tuple(lower), left_out)
