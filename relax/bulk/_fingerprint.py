"""What makes a result: parameters, rules, program, data and versions, as plain text to compare."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from relax._errors import ArgumentError
from relax._jaxpr import constants
from relax._paths import path_name
from relax.rules._base import describe

_PROBED = 16  # samples that stand for the data
OBJECT = re.compile(r" at 0x[0-9a-f]+")  # an address, which is another in each run
_ID = re.compile(r"\bid=\d+")


def parameters(params: Any) -> dict[str, str]:
    """A fingerprint of each array, which does not depend on how it is sharded.

    It is computed where the array lies: 128 bits of four sums of its bits, each of them mixed with
    its place. It tells changes apart; it is no protection against somebody who wants a collision.
    """
    found = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = path_name(keys) or "params"
        if not hasattr(leaf, "dtype"):
            found[name] = repr(leaf)
            continue
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            leaf = jax.random.key_data(leaf)
        sums = np.asarray(_everywhere(leaf)(leaf))
        found[name] = f"{leaf.dtype}{list(leaf.shape)} " + "".join(f"{int(s):08x}" for s in sums)
    return found


def shardings(params: Any) -> dict[str, str]:
    """How each array lies on a mesh."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {path_name(keys) or "params": str(leaf.sharding.spec) for keys, leaf in leaves}


def _everywhere(leaf: Any) -> Any:
    """`_mixed`, with the sums on every device that has a part of the array."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return jax.jit(_mixed)
    return jax.jit(_mixed, out_shardings=jax.sharding.NamedSharding(sharding.mesh, P()))


def _mixed(a: jax.Array) -> jax.Array:
    """Four sums of 32 bits."""
    words = _words(a)
    place = jnp.zeros(words.shape, jnp.uint32)  # without a reshape, which would gather the shards
    for axis, size in enumerate(words.shape):
        own = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * jnp.uint32(size % 2**32) + own
    sums = [_scrambled(words ^ _scrambled(place + jnp.uint32(seed))).sum() for seed in _SEEDS]
    return jnp.stack(sums).astype(jnp.uint32)


_SEEDS = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def _scrambled(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit of x moves about half of all bits."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def _words(a: jax.Array) -> jax.Array:
    """The bits of an array as uint32."""
    if a.dtype == bool:
        return a.astype(jnp.uint32)
    if jnp.iscomplexobj(a):
        return jnp.stack([_words(a.real), _words(a.imag)])
    bits = jnp.dtype(a.dtype).itemsize * 8
    if jnp.issubdtype(a.dtype, jnp.integer) and bits < 32:
        return a.astype(jnp.int32).astype(jnp.uint32)
    if bits in (16, 32, 64):
        unsigned = lax.bitcast_convert_type(a, f"uint{bits}" if bits < 64 else jnp.uint32)
        return unsigned.astype(jnp.uint32)
    return lax.bitcast_convert_type(a.astype(jnp.float32), jnp.uint32)


def program(function: Any, *shapes: Any) -> str:
    """A digest of all that a function computes: of its jaxpr, and of the arrays in it."""
    closed = jax.make_jaxpr(function)(*shapes)
    text = str(closed.jaxpr) + str(parameters(list(constants(closed))))
    return _digest(_ID.sub("", OBJECT.sub("", text)).encode())


def rule_of_each_layer(f: Any, rules: Any, params: Any, x: Any) -> dict[str, str]:
    """The plan, as a line for each layer."""
    from relax.plan import layers

    found: dict[str, str] = {}
    for row in layers(f, rules)(params, x):
        path = row.path
        while path in found:
            path += "+"
        found[path] = f"{row.kind}: {describe(row.rule)}"
    return found


def explained_by(method: Any) -> str:
    """A method in words: its name, and the options it was given by functools.partial."""
    if isinstance(method, functools.partial):
        options = [*map(repr, method.args), *(f"{k}={v!r}" for k, v in method.keywords.items())]
        text = f"{explained_by(method.func)}({', '.join(options)})"
    else:
        text = f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', method)}"
    return OBJECT.sub("", text)


def data(samples: Any) -> dict[str, str]:
    """Of what some samples hold, spread evenly over all; those that cannot be read are left out."""
    count, found = samples.count, {}
    for number in sorted({count * i // _PROBED for i in range(_PROBED)} | {count - 1}):
        leaves, target, _, _ = samples.read(number)
        if leaves is None:
            continue
        digest = hashlib.sha256(str(target).encode())
        for leaf in leaves:
            digest.update(str(leaf.dtype).encode() + np.ascontiguousarray(leaf).tobytes())
        found[f"sample {number}"] = digest.hexdigest()
    return found


def targets(target: Any) -> str:
    """What is explained, in words."""
    if target is None or isinstance(target, str):
        return repr(target)
    if isinstance(target, int | np.integer):
        return repr(int(target))
    if hasattr(target, "__len__"):
        return f"of each sample, {_digest(np.asarray(target).tobytes())}"
    raise ArgumentError(
        f'Job(target={target!r}): expected None, an int, "max", "data", or an array of one '
        "integer for each sample."
    )


def array_digest(rows: np.ndarray) -> str:
    """Of rows as they are stored."""
    digest = hashlib.sha256(str((rows.dtype, rows.shape)).encode())
    digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)  # no copy
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Each place at which two manifests differ, in words."""
    for key in [*old, *(k for k in new if k not in old)]:
        name = f"{where}{key}"
        if key not in new:
            yield f"{name}: the store has {old[key]}, the job has none"
        elif key not in old:
            yield f"{name}: the job has {new[key]}, the store has none"
        elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            yield from differences(old[key], new[key], f"{name} ")
        elif old[key] != new[key]:
            yield f"{name}: the store has {old[key]}, the job {new[key]}"
