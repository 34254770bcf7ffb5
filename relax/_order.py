"""The one primitive of our own: a value that is not computed before another.

A rule's weights depend on nothing that comes back, so a compiler may make them, and the sums they
enter, all at once and keep them until they are used: memory for nothing. JAX's own barrier is
dropped by XLA on a CPU before it orders a program, so there the value takes its place behind the
other by a test that never holds, but which XLA does not see through.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

after_p = Primitive("after")


def after(x: jax.Array, token: jax.Array) -> jax.Array:
    """``x``, bit for bit; a compiled program makes it once it has ``token``."""
    if not all(isinstance(n, int) and n > 0 for n in token.shape):
        return x
    return after_p.bind(x, token[(0,) * token.ndim])


after_p.def_impl(lambda x, token: x)
after_p.def_abstract_eval(lambda x, token: x)


def _jvp(primals: Any, tangents: Any) -> Any:
    return after_p.bind(*primals), tangents[0]


def _batch(operands: Any, axes: Any) -> Any:
    """The first token stands for all, so that a value which all samples share stays one."""
    (x, token), (axis, tokens) = operands, axes
    if tokens is not None:
        token = lax.index_in_dim(token, 0, tokens, keepdims=False)
    return after_p.bind(x, token), axis


def _barrier(x: jax.Array, token: jax.Array) -> jax.Array:
    return lax.optimization_barrier((x, token))[0]


def _selected(x: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.where((token != token) & (token == token), jnp.zeros((), x.dtype), x)


def _lower_for_cpu(context: Any, *operands: Any) -> Any:
    # a token that lies on another device would have to be sent here
    alone = getattr(context.module_context.axis_context, "num_devices", None) == 1
    return mlir.lower_fun(_selected if alone else _barrier, False)(context, *operands)


ad.primitive_jvps[after_p] = _jvp
batching.primitive_batchers[after_p] = _batch
mlir.register_lowering(after_p, mlir.lower_fun(_barrier, False))
mlir.register_lowering(after_p, _lower_for_cpu, platform="cpu")
