"""What becomes of samples that are not finite: who finds them, who is told, what they leave out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def finite(values: Any) -> jax.Array:
    """Which samples have only finite numbers, ``(samples,)``."""
    return jnp.isfinite(values).all(tuple(range(1, jnp.ndim(values))))


def or_nan(score: jax.Array, *relevances: jax.Array) -> jax.Array:
    """The score, ``(samples, ...)``; NaN where relevance is not finite, which jit cannot raise."""
    valid = jnp.stack([finite(r) for r in relevances]).all(0)
    return jnp.where(valid.reshape(-1, *(1,) * (score.ndim - 1)), score, jnp.nan)


def listed(numbers: Iterable[int], most: int = 5) -> str:
    """Numbers of samples as text, the first few of them."""
    numbers = [int(i) for i in numbers]
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more


def how_many(count: int, total: int) -> str:
    """``9 samples``, or ``8 of 9 samples`` where some do not count."""
    return f"{total} samples" if count == total else f"{count} of {total} samples"


def paired(
    methods: Sequence[str], scores: Mapping[str, np.ndarray], explained: np.ndarray
) -> tuple[dict[str, np.ndarray], tuple[int, ...], str]:
    """Leaves out, for all methods, the samples that are not finite for one of them.

    What one method has in no sample at all leaves out none: it would void the table of the others.
    It stays, as NaN.

    Args:
      methods: their names.
      scores: for each measure ``(methods, samples)``.
      explained: where the relevance is finite, ``(methods, samples)``.

    Returns:
      The scores of the samples that count, the numbers of the others, and what to warn of, if
      anything.
    """
    # A measure may give numbers to a relevance that has none: they mean nothing.
    scores = {name: np.where(explained, score, np.nan) for name, score in scores.items()}
    fine = np.stack([explained, *map(np.isfinite, scores.values())])
    if fine.all():
        return scores, (), ""
    never = np.asarray(~fine.any(2))
    counts = fine[~never].all(0)
    out = np.flatnonzero(~counts)

    reasons: dict[str, list[str]] = {}
    for what, rows, nothing in zip(("relevance", *scores), fine, never, strict=True):
        for i, name in enumerate(methods):
            # A score that is NaN because the relevance is has been told of already.
            wrong = np.flatnonzero(~rows[i] & (explained[i] | (what == "relevance")))
            if wrong.size:
                where = (
                    "every sample, which leaves out none and stays NaN"
                    if nothing[i]
                    else f"sample{'s' if wrong.size > 1 else ''} {listed(wrong)}"
                )
                reasons.setdefault(f"{what} of {where}", []).append(repr(name))
    lines = [f"\n  {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    head = (
        f"{out.size} of {counts.size} samples are left out for all methods, so that these stay "
        "paired."
        if out.size
        else "No sample is left out."
    )
    warning = f"{head} What is not finite:{''.join(lines)}"
    kept = {name: score[:, counts] for name, score in scores.items()}
    return kept, tuple(map(int, out)), warning
