"""Every layer of `flax.linen`, its pools, and modules lifted by its transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.zoos import Case, Model
from benchmarks.zoos._layers import Input, Uses, classes, given, listed
from benchmarks.zoos.parameters import drawn, normal, tokens

_Build = Callable[[], Model]


def cases(small: bool) -> Iterator[Case]:
    return listed("flax.linen", classes(nn, nn.Module), _table(), small, reasons=_REASONS)


_FLOAT8 = "its product takes float8, which has no room for relevance: a clear error"
_REASONS = {name: _FLOAT8 for name in vars(nn) if "Fp8" in name}


def _of(
    module: nn.Module, x: Input, call: Any = None, fixed: tuple[str, ...] = (), **options: Any
) -> _Build:
    """What builds a module; ``call(module, x)`` calls it, by default with x alone.

    ``fixed``: collections that keep their initial values. Collections that inference changes, such
    as caches, are parameters, and what becomes of them is left.
    """
    method = call or (lambda module, x: module(x, **options))

    def build() -> Model:
        data = given(x)
        variables = module.init(jax.random.key(0), data, method=method)
        kept = {name: variables[name] for name in fixed if name in variables}
        variables = {**drawn(variables), **kept}

        def f(variables: Any, x: Any) -> Any:
            return module.apply(variables, x, method=method, mutable=list(_CHANGED))[0]

        return Model(f, variables, data)

    return build


_CHANGED = frozenset({"cache", "intermediates"})


def _function(function: Callable[[Any], Any], x: Input) -> _Build:
    return lambda: Model(lambda params, x: function(x), {}, given(x))


def _cell(make: Callable[[], nn.RNNCellBase], carry: int, *shape: int) -> Uses:
    """A recurrent cell: one step with its carry, and over a sequence.

    ``carry``: how many arrays the carry is; ``shape``: of the input of a step, and of its carry.
    """
    start = lambda: tuple(normal((*shape[:-1], 4), seed=i + 2) for i in range(carry))
    pair = lambda: (start() if carry > 1 else start()[0], normal(shape))
    sequence = (shape[0], 3, *shape[1:])
    return {
        "": _of(make(), pair, lambda cell, x: cell(*x)),
        "in nn.RNN": _of(nn.RNN(make()), sequence),
    }


def _attention(make: Callable[..., nn.Module]) -> Uses:
    causal = lambda: nn.make_causal_mask(jnp.ones((2, 4)))
    padding = lambda: nn.make_attention_mask(
        jnp.ones((2, 4)), jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    )
    return {
        "": _of(make(num_heads=2), (2, 4, 6), lambda m, x: m(x)),
        "causal": _of(make(num_heads=2), (2, 4, 6), lambda m, x: m(x, mask=causal())),
        "padded": _of(make(num_heads=2), (2, 4, 6), lambda m, x: m(x, mask=padding())),
        "normalized queries and keys": _of(make(num_heads=2, normalize_qk=True), (2, 4, 6)),
        "without biases, of other sizes": _of(
            make(num_heads=3, qkv_features=9, out_features=5, use_bias=False), (2, 4, 6)
        ),
        "dropout off": _of(make(num_heads=2, dropout_rate=0.5, deterministic=True), (2, 4, 6)),
        "a step with a cache": _decoding(make(num_heads=2, decode=True)),
    }


def _decoding(module: nn.Module) -> _Build:
    """One token behind two others: the cache of five holds their keys and values."""

    def build() -> Model:
        variables = drawn(module.init(jax.random.key(0), normal((2, 5, 6))))
        for step in range(2):
            token = normal((2, 1, 6), seed=step + 3)
            variables = {**variables, **module.apply(variables, token, mutable=["cache"])[1]}
        f = lambda variables, x: module.apply(variables, x, mutable=["cache"])[0]
        return Model(f, variables, normal((2, 1, 6)))

    return build


class _Residual(nn.Module):
    """A layer of a stack, as nn.scan takes it."""

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> tuple[Any, None]:
        return x + nn.gelu(nn.Dense(x.shape[-1])(nn.LayerNorm()(x))), None


def _lifted() -> dict[str, Uses]:
    stack = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    scanned = nn.scan(_Residual, length=3, **stack)
    rematerialized = nn.remat_scan(nn.remat(nn.Dense), lengths=(2, 2))
    mapped = nn.vmap(nn.Dense, in_axes=0, out_axes=0, **stack)
    return {
        "remat": {"": _of(nn.remat(nn.Dense)(5), (2, 3))},
        "jit": {"": _of(nn.jit(nn.Dense)(5), (2, 3))},
        "vmap": {"": _of(mapped(5), (2, 4, 3))},
        "scan": {
            "over layers": _of(scanned(), (2, 4), lambda m, x: m(x, None)[0]),
            "of remat": _of(
                nn.scan(nn.remat(_Residual, prevent_cse=False), length=3, **stack)(),
                (2, 4),
                lambda m, x: m(x, None)[0],
            ),
        },
        "remat_scan": {"": _of(rematerialized(4), (2, 4))},
    }


def _pools() -> dict[str, Uses]:
    window = {"window_shape": (2, 2), "strides": (2, 2)}
    shape = (2, 6, 6, 3)
    return {
        "max_pool": {
            "": _function(lambda x: nn.max_pool(x, **window), shape),
            "overlapping": _function(lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"), shape),
        },
        "avg_pool": {
            "": _function(lambda x: nn.avg_pool(x, **window), shape),
            "of what is no padding": _function(
                lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False), shape
            ),
        },
        "pool": {
            "the least": _function(
                lambda x: nn.pool(x, jnp.inf, jax.lax.min, (2, 2), (2, 2), "VALID"), shape
            ),
            "sums": _function(
                lambda x: nn.pool(x, 0.0, jax.lax.add, (2, 2), (1, 1), "VALID"), shape
            ),
        },
    }


def _table() -> dict[str, Uses]:
    image, circular = (2, 6, 6, 4), {"padding": "CIRCULAR"}
    mask = np.arange(3 * 3 * 4 * 4).reshape(3, 3, 4, 4) % 5 > 0
    lengths = lambda: jnp.array([2, 3])
    present = lambda *shape: normal(shape, seed=5) > -0.5
    gru = lambda: nn.RNN(nn.GRUCell(4))
    fp8 = ("_overwrite_with_gradient",)  # scales and histories of maxima, found while training
    quantized = lambda op: {"": _of(nn.Dense(5, dot_general_cls=op), (2, 3), fixed=fp8)}
    return {
        "BatchNorm": {
            "": _of(nn.BatchNorm(use_running_average=True), (4, 5)),
            "of images": _of(nn.BatchNorm(use_running_average=True), image),
            "axis 1": _of(nn.BatchNorm(use_running_average=True, axis=1), (2, 4, 6, 6)),
            "without scale and bias": _of(
                nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False), (4, 5)
            ),
        },
        "Bidirectional": {
            "": _of(nn.Bidirectional(gru(), gru()), (2, 3, 4)),
            "of lengths": _of(
                nn.Bidirectional(gru(), gru()),
                (2, 3, 4),
                lambda m, x: m(x, seq_lengths=lengths()),
            ),
        },
        "Conv": {
            "": _of(nn.Conv(5, (3, 3)), image),
            "of one dimension, causal": _of(nn.Conv(5, (3,), padding="CAUSAL"), (2, 6, 3)),
            "of three dimensions": _of(nn.Conv(3, (2, 2, 2)), (1, 4, 4, 4, 2)),
            "strided, dilated, grouped": _of(
                nn.Conv(6, (3, 3), (2, 2), kernel_dilation=2, feature_group_count=2), image
            ),
            "depthwise": _of(nn.Conv(8, (3, 3), feature_group_count=4), image),
            "circular": _of(nn.Conv(5, (3, 3), **circular), image),
            "reflected": _of(nn.Conv(5, (3, 3), padding="REFLECT"), image),
            "input dilated": _of(nn.Conv(5, (3, 3), padding=1, input_dilation=2), image),
            "masked": _of(nn.Conv(4, (3, 3), mask=mask), image),
            "several batch axes": _of(nn.Conv(5, (3, 3)), (2, 3, 6, 6, 4)),
        },
        "ConvLSTMCell": _cell(lambda: nn.ConvLSTMCell(4, (3, 3)), 2, 2, 5, 5, 3),
        "ConvLocal": {
            "": _of(nn.ConvLocal(5, (3, 3)), image),
            "strided, without padding": _of(nn.ConvLocal(5, (3, 3), 2, "VALID"), image),
        },
        "ConvTranspose": {
            "": _of(nn.ConvTranspose(5, (3, 3)), image),
            "strided": _of(nn.ConvTranspose(5, (3, 3), (2, 2), "VALID"), image),
            "circular": _of(nn.ConvTranspose(5, (3, 3), (2, 2), **circular), image),
            "transposed kernel": _of(
                nn.ConvTranspose(5, (3, 3), (2, 2), transpose_kernel=True), image
            ),
        },
        "Dense": {
            "": _of(nn.Dense(5), (2, 3)),
            "without bias": _of(nn.Dense(5, use_bias=False), (2, 3)),
            "of rows of rows": _of(nn.Dense(5), (2, 4, 3)),
            "in bfloat16": _of(nn.Dense(5, dtype=jnp.bfloat16), (2, 3)),
        },
        "DenseGeneral": {
            "": _of(nn.DenseGeneral((3, 5)), (2, 4)),
            "over two axes": _of(nn.DenseGeneral(5, axis=(-2, -1)), (2, 3, 4)),
            "over the first": _of(nn.DenseGeneral((2, 5), axis=1), (2, 3, 4)),
            "by batch": _of(nn.DenseGeneral(5, axis=-1, batch_dims=(0,)), (2, 3, 4)),
        },
        "Dropout": {"": _of(nn.Dropout(0.5, deterministic=True), (2, 3))},
        "Einsum": {
            "": _of(nn.Einsum((4, 2, 5), "bti,ihd->bthd"), (2, 3, 4)),
            "without bias": _of(nn.Einsum((4, 2, 5), "bti,ihd->bthd", use_bias=False), (2, 3, 4)),
        },
        "Embed": {
            "": _of(nn.Embed(7, 4), lambda: tokens((2, 5), 7)),
            "attend": _of(nn.Embed(7, 4), (2, 4), lambda m, x: m.attend(x)),
            "then a layer": _of(
                nn.Sequential([nn.Embed(7, 4), nn.Dense(3)]), lambda: tokens((2, 5), 7)
            ),
        },
        "Fp8DirectDotGeneralOp": quantized(nn.Fp8DirectDotGeneralOp),
        "Fp8DotGeneral": quantized(nn.Fp8DotGeneral),
        "Fp8DotGeneralOp": quantized(nn.Fp8DotGeneralOp),
        "Fp8Einsum": {
            "": _of(
                nn.Fp8Einsum(),
                (2, 3),
                lambda m, x: m("bi,ij->bj", x, normal((3, 5), seed=6)),
                fixed=fp8,
            )
        },
        "GRUCell": _cell(lambda: nn.GRUCell(4), 1, 2, 3),
        "GroupNorm": {
            "": _of(nn.GroupNorm(2), image),
            "by size": _of(nn.GroupNorm(None, group_size=2), image),
            "masked": _of(nn.GroupNorm(2), image, lambda m, x: m(x, mask=present(*image))),
            "two passes over the variance": _of(nn.GroupNorm(2, use_fast_variance=False), image),
        },
        "InstanceNorm": {
            "": _of(nn.InstanceNorm(), image),
            "in front of a ReLU": _of(nn.Sequential([nn.InstanceNorm(), nn.relu]), image),
            "masked": _of(nn.InstanceNorm(), image, lambda m, x: m(x, mask=present(*image))),
        },
        "LSTMCell": _cell(lambda: nn.LSTMCell(4), 2, 2, 3),
        "LayerNorm": {
            "": _of(nn.LayerNorm(), (2, 5)),
            "two passes over the variance": _of(nn.LayerNorm(use_fast_variance=False), (2, 5)),
            "over two axes": _of(
                nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1)), (2, 3, 4)
            ),
            "masked": _of(nn.LayerNorm(), (2, 5), lambda m, x: m(x, mask=present(2, 5))),
            "without scale and bias": _of(nn.LayerNorm(use_bias=False, use_scale=False), (2, 5)),
        },
        "MGUCell": _cell(lambda: nn.MGUCell(4), 1, 2, 3),
        "MultiHeadAttention": _attention(nn.MultiHeadAttention),
        "MultiHeadDotProductAttention": {
            **_attention(nn.MultiHeadDotProductAttention),
            "of another sequence": _of(
                nn.MultiHeadDotProductAttention(num_heads=2),
                lambda: (normal((2, 3, 6)), normal((2, 4, 5), seed=2)),
                lambda m, x: m(x[0], x[1]),
            ),
            "of keys and values apart": _of(
                nn.MultiHeadDotProductAttention(num_heads=2),
                lambda: (normal((2, 3, 6)), normal((2, 4, 5), seed=2), normal((2, 4, 3), seed=3)),
                lambda m, x: m(*x),
            ),
        },
        "NANOOFp8DotGeneralOp": quantized(nn.NANOOFp8DotGeneralOp),
        "OptimizedLSTMCell": _cell(lambda: nn.OptimizedLSTMCell(4), 2, 2, 3),
        "PReLU": {
            "": _of(nn.PReLU(), (2, 5)),
            "behind a layer": _of(nn.Sequential([nn.Dense(4), nn.PReLU()]), (2, 5)),
        },
        "RMSNorm": {
            "": _of(nn.RMSNorm(), (2, 5)),
            "without scale": _of(nn.RMSNorm(use_scale=False), (2, 5)),
            "masked": _of(nn.RMSNorm(), (2, 5), lambda m, x: m(x, mask=present(2, 5))),
        },
        "RNN": {
            "": _of(nn.RNN(nn.LSTMCell(4)), (2, 3, 5)),
            "reversed": _of(nn.RNN(nn.LSTMCell(4), reverse=True, keep_order=True), (2, 3, 5)),
            "time first": _of(nn.RNN(nn.LSTMCell(4), time_major=True), (3, 2, 5)),
            "its carry too": _of(nn.RNN(nn.LSTMCell(4), return_carry=True), (2, 3, 5)),
            "unrolled": _of(nn.RNN(nn.GRUCell(4), unroll=3), (2, 3, 5)),
            "of lengths": _of(
                nn.RNN(nn.LSTMCell(4), return_carry=True),
                (2, 3, 5),
                lambda m, x: m(x, seq_lengths=lengths()),
            ),
        },
        "SelfAttention": _attention(nn.SelfAttention),
        "Sequential": {
            "": _of(nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)]), (2, 4)),
            "of convolutions": _of(
                nn.Sequential(
                    [
                        nn.Conv(4, (3, 3)),
                        nn.BatchNorm(use_running_average=True),
                        nn.relu,
                        lambda x: nn.max_pool(x, (2, 2), (2, 2)),
                        lambda x: x.reshape(x.shape[0], -1),
                        nn.Dense(3),
                    ]
                ),
                image,
            ),
        },
        "SimpleCell": {
            **_cell(lambda: nn.SimpleCell(4), 1, 2, 3),
            "residual": _of(nn.RNN(nn.SimpleCell(4, residual=True)), (2, 3, 4)),
        },
        "SpectralNorm": {
            "": _of(nn.SpectralNorm(nn.Dense(5)), (2, 3), update_stats=False),
            "of a convolution": _of(nn.SpectralNorm(nn.Conv(5, (3, 3))), image, update_stats=False),
        },
        "WeightNorm": {
            "": _of(nn.WeightNorm(nn.Dense(5)), (2, 3)),
            "of a convolution": _of(nn.WeightNorm(nn.Conv(5, (3, 3))), image),
            "without scale": _of(nn.WeightNorm(nn.Dense(5), use_scale=False), (2, 3)),
        },
        **_lifted(),
        **_pools(),
    }
