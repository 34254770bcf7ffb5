"""One batch: from samples to what is kept of them, as one pure function."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax import _target
from relax._errors import ArgumentError
from relax._paths import path_name
from relax.account import ledger
from relax.bulk._keep import Explained, computed, wanted
from relax.bulk._samples import ABSENT, BAD_TARGET, GOOD, NOT_FINITE_RELEVANCE
from relax.transform import value_and_lrp

# A name of an array becomes a folder of the store.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.#()\[\]-]*(/[A-Za-z0-9][A-Za-z0-9_.#()\[\]-]*)*")

Step = Callable[[Any, Any, Any, jax.Array], tuple[dict[str, jax.Array], dict[str, jax.Array]]]


def is_name(name: str) -> bool:
    """Whether an array may be called so: no way leads out of the store."""
    parts = name.split("/")
    return _NAME.fullmatch(name) is not None and ".." not in name and "zarr.json" not in parts


def make(f: Any, rules: Any, method: Any, target: Any, keep: Mapping[str, Any], dtype: Any) -> Step:
    """The function of ``(params, x, target, status)``.

    It returns the kept arrays by name, and ``status``, ``explained`` and ``received`` of each
    sample: what became of it, the value that was explained, and the relevance that arrived. What is
    kept of a sample that is not good is NaN, or -1 where it is an integer.
    """
    at, account = wanted(list(keep.values()))
    if method is not None and (at or account):
        raise ArgumentError("Job(method=...): Latent and Absorbed are kept under rules alone.")
    of_each = hasattr(target, "__len__") and not (isinstance(target, str) and target == "max")

    def explain(params: Any, x: Any, chosen: Any) -> Explained:
        chosen = chosen if of_each else target
        if method is not None:
            return Explained(x, f(params, x), method(f, target=chosen)(params, x), {}, {})
        got = value_and_lrp(f, rules, target=chosen, at=list(at) or None)(params, x)
        value, relevance = got[0], got[1]
        latent: dict[str, jax.Array] = {}
        if at:
            relevance, latent = relevance
        absorbed = _absorbed(f, rules, chosen, params, x) if account else {}
        return Explained(x, value, relevance, latent, absorbed)

    def step(params: Any, x: Any, chosen: Any, status: jax.Array) -> Any:
        if dtype is not None:
            x = jax.tree.map(lambda a: a.astype(dtype) if _is_float(a) else a, x)
        explained = explain(params, x, chosen)
        samples = status.shape[0]
        kept: dict[str, jax.Array] = {}
        for name, kind in keep.items():
            kept.update(_named(name, computed(kind, explained), samples))
        kept = _unnested(kept)
        masks = [_finite(a) for a in (*kept.values(), *jax.tree.leaves(explained.relevance))]
        finite = jnp.stack(masks).all(0)
        status = jnp.where((status == GOOD) & ~finite, NOT_FINITE_RELEVANCE, status)
        if of_each:
            inside = _inside(explained.value, chosen)
            status = jnp.where(~inside & (status != ABSENT), BAD_TARGET, status)
        good = status == GOOD
        kept = {name: _blanked(a, good) for name, a in kept.items()}
        seeds = _target.seeds(chosen if of_each else target, explained.value)
        shown = seeds
        if not _target.gives_relevance(chosen if of_each else target):
            shown = jax.tree.map(jnp.multiply, explained.value, seeds)
        sums = {
            "status": status,
            "explained": _blanked(_sums(shown), good),
            "received": _blanked(_sums(explained.relevance), good),
        }
        return kept, sums

    return step


def _absorbed(f: Any, rules: Any, chosen: Any, params: Any, x: Any) -> dict[str, jax.Array]:
    """What each layer keeps of each sample, which is a batch of one for that."""
    each = lambda a: a[None]

    def one(x: Any, chosen: Any) -> dict[str, jax.Array]:
        target = each(chosen) if isinstance(chosen, jax.Array) and chosen.ndim else chosen
        _, account = ledger(f, rules, target=target)(params, jax.tree.map(each, x))
        sums: dict[str, jax.Array] = {}
        for entry in account:
            sums[entry.path] = sums.get(entry.path, jnp.zeros(())) + jnp.sum(entry.kept)
        return sums

    if isinstance(chosen, jax.Array):
        return jax.vmap(lambda x, c: one(x, c[None]))(x, chosen)
    return jax.vmap(lambda x: one(x, chosen))(x)


def _named(name: str, kept: Any, samples: int) -> dict[str, jax.Array]:
    named = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(kept)[0]:
        path = "/".join(part for part in (name, path_name(keys)) if part)
        shape = getattr(leaf, "shape", ())
        if not shape or shape[0] != samples:
            raise ArgumentError(
                f"keep: {path!r} has shape {tuple(shape)}; expected the samples of the batch, "
                f"{samples}, in front."
            )
        if not is_name(path):
            path = re.sub(r"[^A-Za-z0-9_.#()\[\]/-]+", "_", path).strip("/._")
        if not is_name(path) or path in named:
            raise ArgumentError(f"keep: {path!r} is no name of an array. Use letters and digits.")
        named[path] = leaf
    return named


def _unnested(kept: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """An array is a folder, in which no other can be: one that has others below it is ``/self``."""
    inner = {name for name in kept if any(other.startswith(f"{name}/") for other in kept)}
    return {f"{name}/self" if name in inner else name: a for name, a in kept.items()}


def _inside(value: Any, chosen: jax.Array) -> jax.Array:
    """For each sample whether its target is one of the outputs."""
    counts = [leaf.shape[-1] for leaf in jax.tree.leaves(value)]
    return (chosen >= -min(counts)) & (chosen < min(counts))


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def _finite(a: jax.Array) -> jax.Array:
    """For each sample."""
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return jnp.ones(a.shape[0], bool)
    return jnp.isfinite(a).all(tuple(range(1, a.ndim)))


def blank(dtype: Any) -> Any:
    """What stands in the place of a sample that could not be explained."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.nan
    return 0 if jnp.issubdtype(dtype, jnp.unsignedinteger) or dtype == np.bool_ else -1


def _blanked(a: jax.Array, good: jax.Array) -> jax.Array:
    good = good.reshape(good.shape + (1,) * (a.ndim - 1))
    return jnp.where(good, a, jnp.asarray(blank(a.dtype), a.dtype))


def _sums(tree: Any) -> jax.Array:
    """Of each sample, in at least float32."""
    leaves = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    wide = [a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in leaves]
    parts = [a.sum(tuple(range(1, a.ndim))) for a in wide]
    return functools.reduce(jnp.add, parts)
