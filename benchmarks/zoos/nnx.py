"""Every layer of `flax.nnx`, its pools, and modules under its transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.zoos import Case, Model
from benchmarks.zoos._layers import Input, Uses, classes, given, listed
from benchmarks.zoos.parameters import drawn, normal, tokens

_Build = Callable[[], Model]


def cases(small: bool) -> Iterator[Case]:
    return listed("flax.nnx", classes(nnx, nnx.Module), _table(), small)


def _of(make: Callable[[nnx.Rngs], Any], x: Input, call: Any = None) -> _Build:
    """What builds a module in inference mode; ``call(module, x)`` calls it, by default alone."""

    def build() -> Model:
        module = make(nnx.Rngs(0))
        module.eval()
        graph, rngs, state = nnx.split(module, nnx.RngState, ...)

        def f(params: Any, x: Any) -> Any:
            module = nnx.merge(graph, *params, copy=True)  # or a call would change params
            return call(module, x) if call else module(x)

        return Model(f, (rngs, drawn(state)), given(x))

    return build


def _function(function: Callable[[Any], Any], x: Input) -> _Build:
    return lambda: Model(lambda params, x: function(x), {}, given(x))


def _cell(make: Callable[[nnx.Rngs], Any], carry: int) -> Uses:
    """A recurrent cell: one step with its carry of so many arrays, and over a sequence."""
    start = lambda: tuple(normal((2, 4), seed=i + 2) for i in range(carry))
    pair = lambda: (start() if carry > 1 else start()[0], normal((2, 3)))
    return {
        "": _of(make, pair, lambda cell, x: cell(*x)),
        "in nnx.RNN": _of(lambda rngs: nnx.RNN(make(rngs), rngs=rngs), (2, 3, 3)),
    }


def _attention() -> Uses:
    def of(call: Any = None, x: Input = (2, 4, 6), heads: int = 2, **config: Any) -> _Build:
        make = lambda rngs: nnx.MultiHeadAttention(heads, 6, decode=False, rngs=rngs, **config)
        return _of(make, x, call)

    causal = lambda: nnx.make_causal_mask(jnp.ones((2, 4)))
    padding = lambda: nnx.make_attention_mask(
        jnp.ones((2, 4)), jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    )
    other = lambda: (normal((2, 3, 6)), normal((2, 4, 5), seed=2))
    return {
        "": of(),
        "causal": of(lambda m, x: m(x, is_causal=True)),
        "with a causal mask": of(lambda m, x: m(x, mask=causal())),
        "padded": of(lambda m, x: m(x, mask=padding())),
        "of another sequence": of(lambda m, x: m(*x), other, in_kv_features=5),
        "grouped queries": of(num_kv_heads=1),
        "normalized queries and keys": of(normalize_qk=True),
        "without biases, of other sizes": of(
            heads=3, qkv_features=9, out_features=5, use_bias=False
        ),
        "dropout off": of(dropout_rate=0.5),
        "a step with a cache": _decoding,
    }


def _decoding() -> Model:
    """One token behind two others: the cache of five holds their keys and values."""
    module = nnx.MultiHeadAttention(2, 6, decode=True, rngs=nnx.Rngs(0))
    nnx.update(module, drawn(nnx.state(module, nnx.Param)))
    module.init_cache((2, 5, 6))
    module.eval()
    for step in range(2):
        module(normal((2, 1, 6), seed=step + 3))
    graph, state = nnx.split(module)
    f = lambda state, x: nnx.merge(graph, state, copy=True)(x)
    return Model(f, state, normal((2, 1, 6)))


class _Residual(nnx.Module):
    """A layer of a stack."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.dense = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + nnx.gelu(self.dense(self.norm(x)))


class _Stack(nnx.Module):
    """Three layers whose parameters have one more axis, run by nnx.scan."""

    def __init__(self, rngs: nnx.Rngs, remat: bool = False):
        make = nnx.vmap(_Residual, in_axes=(0,), out_axes=0)
        self.blocks = nnx.split_rngs(splits=3)(make)(rngs)
        self.remat = remat

    def __call__(self, x: Any) -> Any:
        step = lambda x, block: block(x)
        step = nnx.remat(step) if self.remat else step
        return nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)


def _lifted() -> dict[str, Uses]:
    dense = lambda rngs: nnx.Linear(3, 5, rngs=rngs)
    return {
        "jit": {"": _of(dense, (2, 3), lambda m, x: nnx.jit(lambda m, x: m(x))(m, x))},
        "remat": {"": _of(dense, (2, 3), lambda m, x: nnx.remat(lambda m, x: m(x))(m, x))},
        "vmap": {
            "over samples": _of(
                dense, (2, 3), lambda m, x: nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(m, x)
            )
        },
        "scan": {
            "over layers": _of(_Stack, (2, 4)),
            "of remat": _of(lambda rngs: _Stack(rngs, remat=True), (2, 4)),
        },
    }


def _pools() -> dict[str, Uses]:
    window = {"window_shape": (2, 2), "strides": (2, 2)}
    shape = (2, 6, 6, 3)
    return {
        "max_pool": {
            "": _function(lambda x: nnx.max_pool(x, **window), shape),
            "overlapping": _function(lambda x: nnx.max_pool(x, (3, 3), (2, 2), "SAME"), shape),
        },
        "avg_pool": {
            "": _function(lambda x: nnx.avg_pool(x, **window), shape),
            "of what is no padding": _function(
                lambda x: nnx.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False), shape
            ),
        },
        "min_pool": {"": _function(lambda x: nnx.min_pool(x, **window), shape)},
        "pool": {
            "sums": _function(
                lambda x: nnx.pool(x, 0.0, jax.lax.add, (2, 2), (1, 1), "VALID"), shape
            )
        },
    }


def _table() -> dict[str, Uses]:
    image = (2, 6, 6, 4)
    mask = np.arange(3 * 3 * 4 * 4).reshape(3, 3, 4, 4) % 5 > 0
    lengths = lambda: jnp.array([2, 3])
    present = lambda *shape: normal(shape, seed=5) > -0.5

    def conv(*rest: Any, x: Input = image, ins: int = 4, outs: int = 5, **config: Any) -> _Build:
        return _of(lambda rngs: nnx.Conv(ins, outs, *rest, rngs=rngs, **config), x)

    def transposed(*rest: Any, **config: Any) -> _Build:
        return _of(lambda rngs: nnx.ConvTranspose(4, 5, *rest, rngs=rngs, **config), image)

    def rnn(cell: Any = nnx.LSTMCell, call: Any = None, x: Input = (2, 3, 5), **how: Any) -> _Build:
        return _of(lambda rngs: nnx.RNN(cell(5, 4, rngs=rngs), rngs=rngs, **how), x, call)

    def norm(kind: Any, size: int, x: Input, call: Any = None, **config: Any) -> _Build:
        return _of(lambda rngs: kind(size, rngs=rngs, **config), x, call)

    def both(rngs: nnx.Rngs) -> Any:
        gru = lambda: nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs), rngs=rngs)
        return nnx.Bidirectional(gru(), gru(), rngs=rngs)

    dense = lambda rngs: nnx.Linear(3, 5, rngs=rngs)
    filters = lambda rngs: nnx.Conv(4, 5, (3, 3), rngs=rngs)

    def wrapped(kind: Any, inner: Any, x: Input, **config: Any) -> _Build:
        return _of(lambda rngs: kind(inner(rngs), rngs=rngs, **config), x)

    return {
        "BatchNorm": {
            "": norm(nnx.BatchNorm, 5, (4, 5)),
            "of images": norm(nnx.BatchNorm, 4, image),
            "axis 1": norm(nnx.BatchNorm, 4, (2, 4, 6, 6), axis=1),
            "without scale and bias": norm(
                nnx.BatchNorm, 5, (4, 5), use_bias=False, use_scale=False
            ),
        },
        "Bidirectional": {
            "": _of(both, (2, 3, 4)),
            "of lengths": _of(both, (2, 3, 4), lambda m, x: m(x, seq_lengths=lengths())),
        },
        "Conv": {
            "": conv((3, 3)),
            "of one dimension, causal": conv((3,), padding="CAUSAL", x=(2, 6, 4)),
            "of three dimensions": conv((2, 2, 2), x=(1, 4, 4, 4, 2), ins=2, outs=3),
            "strided, dilated, grouped": conv(
                (3, 3), (2, 2), kernel_dilation=2, feature_group_count=2, outs=6
            ),
            "depthwise": conv((3, 3), feature_group_count=4, outs=8),
            "circular": conv((3, 3), padding="CIRCULAR"),
            "reflected": conv((3, 3), padding="REFLECT"),
            "input dilated": conv((3, 3), padding=1, input_dilation=2),
            "masked": conv((3, 3), mask=mask, outs=4),
            "several batch axes": conv((3, 3), x=(2, 3, 6, 6, 4)),
        },
        "ConvTranspose": {
            "": transposed((3, 3)),
            "strided": transposed((3, 3), (2, 2), padding="VALID"),
            "circular": transposed((3, 3), (2, 2), padding="CIRCULAR"),
            "transposed kernel": transposed((3, 3), (2, 2), transpose_kernel=True),
        },
        "Dropout": {"": _of(lambda rngs: nnx.Dropout(0.5, rngs=rngs), (2, 3))},
        "Einsum": {
            "": _of(
                lambda rngs: nnx.Einsum("bti,ihd->bthd", (4, 2, 5), (2, 5), rngs=rngs), (2, 3, 4)
            ),
            "without bias": _of(
                lambda rngs: nnx.Einsum("bti,ihd->bthd", (4, 2, 5), rngs=rngs), (2, 3, 4)
            ),
        },
        "Embed": {
            "": _of(lambda rngs: nnx.Embed(7, 4, rngs=rngs), lambda: tokens((2, 5), 7)),
            "attend": _of(
                lambda rngs: nnx.Embed(7, 4, rngs=rngs), (2, 4), lambda m, x: m.attend(x)
            ),
            "then a layer": _of(
                lambda rngs: nnx.Sequential(
                    nnx.Embed(7, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
                ),
                lambda: tokens((2, 5), 7),
            ),
        },
        "GRUCell": _cell(lambda rngs: nnx.GRUCell(3, 4, rngs=rngs), 1),
        "GroupNorm": {
            "": norm(nnx.GroupNorm, 4, image, num_groups=2),
            "by size": norm(nnx.GroupNorm, 4, image, num_groups=None, group_size=2),
            "masked": norm(
                nnx.GroupNorm, 4, image, lambda m, x: m(x, mask=present(*image)), num_groups=2
            ),
        },
        "InstanceNorm": {
            "": norm(nnx.InstanceNorm, 4, image),
            "in front of a ReLU": norm(nnx.InstanceNorm, 4, image, lambda m, x: nnx.relu(m(x))),
            "masked": norm(nnx.InstanceNorm, 4, image, lambda m, x: m(x, mask=present(*image))),
        },
        "LSTMCell": _cell(lambda rngs: nnx.LSTMCell(3, 4, rngs=rngs), 2),
        "LayerNorm": {
            "": norm(nnx.LayerNorm, 5, (2, 5)),
            "two passes over the variance": norm(nnx.LayerNorm, 5, (2, 5), use_fast_variance=False),
            "masked": norm(nnx.LayerNorm, 5, (2, 5), lambda m, x: m(x, mask=present(2, 5))),
            "without scale and bias": norm(
                nnx.LayerNorm, 5, (2, 5), use_bias=False, use_scale=False
            ),
        },
        "Linear": {
            "": _of(dense, (2, 3)),
            "without bias": _of(lambda rngs: nnx.Linear(3, 5, use_bias=False, rngs=rngs), (2, 3)),
            "of rows of rows": _of(dense, (2, 4, 3)),
            "in bfloat16": _of(
                lambda rngs: nnx.Linear(3, 5, dtype=jnp.bfloat16, rngs=rngs), (2, 3)
            ),
        },
        "LinearGeneral": {
            "": _of(lambda rngs: nnx.LinearGeneral(4, (3, 5), rngs=rngs), (2, 4)),
            "over two axes": _of(
                lambda rngs: nnx.LinearGeneral((3, 4), 5, axis=(-2, -1), rngs=rngs), (2, 3, 4)
            ),
            "by batch": _of(
                lambda rngs: nnx.LinearGeneral(4, 5, batch_axis={0: 2}, rngs=rngs), (2, 3, 4)
            ),
        },
        "LoRA": {
            "": _of(lambda rngs: nnx.LoRA(3, 2, 5, rngs=rngs), (2, 3)),
            "of a layer": _of(
                lambda rngs: nnx.LoRA(3, 2, 5, base_module=dense(rngs), rngs=rngs), (2, 3)
            ),
        },
        "LoRALinear": {"": _of(lambda rngs: nnx.LoRALinear(3, 5, lora_rank=2, rngs=rngs), (2, 3))},
        "MultiHeadAttention": _attention(),
        "OptimizedLSTMCell": _cell(lambda rngs: nnx.OptimizedLSTMCell(3, 4, rngs=rngs), 2),
        "PReLU": {
            "": _of(lambda rngs: nnx.PReLU(), (2, 5)),
            "behind a layer": _of(
                lambda rngs: nnx.Sequential(nnx.Linear(5, 4, rngs=rngs), nnx.PReLU()), (2, 5)
            ),
        },
        "RMSNorm": {
            "": norm(nnx.RMSNorm, 5, (2, 5)),
            "without scale": norm(nnx.RMSNorm, 5, (2, 5), use_scale=False),
            "masked": norm(nnx.RMSNorm, 5, (2, 5), lambda m, x: m(x, mask=present(2, 5))),
        },
        "RNN": {
            "": rnn(),
            "reversed": rnn(reverse=True, keep_order=True),
            "time first": rnn(time_major=True, x=(3, 2, 5)),
            "its carry too": rnn(return_carry=True),
            "unrolled": rnn(nnx.GRUCell, unroll=3),
            "of lengths": rnn(call=lambda m, x: m(x, seq_lengths=lengths()), return_carry=True),
        },
        "Sequential": {
            "": _of(
                lambda rngs: nnx.Sequential(
                    nnx.Linear(4, 5, rngs=rngs), nnx.relu, nnx.Linear(5, 3, rngs=rngs)
                ),
                (2, 4),
            ),
            "of convolutions": _of(
                lambda rngs: nnx.Sequential(
                    nnx.Conv(4, 4, (3, 3), rngs=rngs),
                    nnx.BatchNorm(4, rngs=rngs),
                    nnx.relu,
                    lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
                    lambda x: x.reshape(x.shape[0], -1),
                    nnx.Linear(36, 3, rngs=rngs),
                ),
                image,
            ),
        },
        "SimpleCell": {
            **_cell(lambda rngs: nnx.SimpleCell(3, 4, rngs=rngs), 1),
            "residual": _of(
                lambda rngs: nnx.RNN(nnx.SimpleCell(4, 4, residual=True, rngs=rngs), rngs=rngs),
                (2, 3, 4),
            ),
        },
        "SpectralNorm": {
            "": wrapped(nnx.SpectralNorm, dense, (2, 3), update_stats=False),
            "of a convolution": wrapped(nnx.SpectralNorm, filters, image, update_stats=False),
        },
        "WeightNorm": {
            "": wrapped(nnx.WeightNorm, dense, (2, 3)),
            "of a convolution": wrapped(nnx.WeightNorm, filters, image),
            "without scale": wrapped(nnx.WeightNorm, dense, (2, 3), use_scale=False),
        },
        **_lifted(),
        **_pools(),
    }
