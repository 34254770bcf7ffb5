"""Two primitives of our own, by which a compiled program keeps less, or computes less.

Both are their first operand, bit for bit. `after`: not made before another value is there. A rule's
weights depend on nothing that comes back, so XLA may make them, and the sums they enter, all at
once, and keep them until they are used. `kept`: made once for all its readers. XLA may fuse it into
each of them, computes it again there, and keeps what it was made of. JAX's barrier says both, but
XLA drops it on a CPU before it fuses and orders; there a test stands in its place that never holds,
which XLA does not see through.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

after_p = Primitive("after")
kept_p = Primitive("kept")
OWN = frozenset({after_p, kept_p})


def after(x: jax.Array, token: jax.Array) -> jax.Array:
    """``x``; a compiled program makes it once it has ``token``."""
    if not all(isinstance(n, int) and n > 0 for n in token.shape):
        return x
    return after_p.bind(x, token)


after_p.def_impl(lambda x, token: x)
after_p.def_abstract_eval(lambda x, token: x)


def _jvp(primals: Any, tangents: Any) -> Any:
    return after_p.bind(*primals), tangents[0]


def _batch(operands: Any, axes: Any) -> Any:
    """A token is one whatever its shape, so that a value which all samples share stays one."""
    return after_p.bind(*operands), axes[0]


def _barrier(x: jax.Array, token: jax.Array) -> jax.Array:
    return lax.optimization_barrier((x, token))[0]


def _never(token: jax.Array) -> jax.Array:
    if 0 in token.shape:  # a batch of none
        return jnp.array(False)
    token = token[(0,) * token.ndim]
    return (token != token) & (token == token)


def _selected(x: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.where(_never(token), jnp.zeros((), x.dtype), x)


def _on_one_device(function: Any, otherwise: Any) -> Any:
    """A lowering: a token that lies on another device would have to be sent here."""

    def lower(context: Any, *operands: Any) -> Any:
        alone = getattr(context.module_context.axis_context, "num_devices", None) == 1
        return mlir.lower_fun(function if alone else otherwise, False)(context, *operands)

    return lower


ad.primitive_jvps[after_p] = _jvp
batching.primitive_batchers[after_p] = _batch
mlir.register_lowering(after_p, mlir.lower_fun(_barrier, False))
mlir.register_lowering(after_p, _on_one_device(_selected, _barrier), platform="cpu")


def kept(x: jax.Array) -> jax.Array:
    """``x``, which XLA is to keep for all its readers, rather than compute for each again."""
    return kept_p.bind(x)


kept_p.def_impl(lambda x: x)
kept_p.def_abstract_eval(lambda x: x)


def _conditional(x: jax.Array) -> jax.Array:
    return lax.cond(_never(x), jnp.zeros_like, lambda x: x, x)


ad.primitive_jvps[kept_p] = lambda primals, tangents: (kept_p.bind(*primals), tangents[0])
ad.primitive_transposes[kept_p] = lambda cotangent, x: [cotangent]
batching.primitive_batchers[kept_p] = lambda operands, axes: (kept_p.bind(*operands), axes[0])
mlir.register_lowering(kept_p, mlir.lower_fun(lax.optimization_barrier, False))
mlir.register_lowering(
    kept_p, _on_one_device(_conditional, lax.optimization_barrier), platform="cpu"
)
