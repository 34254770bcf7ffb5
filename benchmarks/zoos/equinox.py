"""Every layer of `equinox.nn`, mapped over a batch by jax.vmap, as Equinox's are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import nn

from benchmarks.zoos import Case, Model
from benchmarks.zoos._layers import Input, Uses, classes, given, listed
from benchmarks.zoos.parameters import drawn, normal, tokens

_Build = Callable[[], Model]


def cases(small: bool) -> Iterator[Case]:
    return listed("equinox", classes(nn, eqx.Module), _table(), small)


def _of(make: Callable[[Any], Any], x: Input, call: Any = None) -> _Build:
    """What builds a layer; ``call(layer, x)`` calls it on one sample, by default with x alone."""

    def build() -> Model:
        layer = eqx.nn.inference_mode(make(jax.random.key(0)))
        arrays, static = eqx.partition(layer, eqx.is_array)

        def f(arrays: Any, x: Any) -> Any:
            layer = eqx.combine(arrays, static)
            return jax.vmap(lambda x: call(layer, x) if call else layer(x))(x)

        return Model(f, drawn(arrays), _precise(given(x)))

    return build


def _stateful(make: Callable[[Any], Any], x: Input) -> _Build:
    """As `_of`, for a layer with a state, which one call in training mode on other data fills."""

    def build() -> Model:
        layer, state = eqx.nn.make_with_state(make)(jax.random.key(0))
        data = _precise(given(x))
        arrays, static = eqx.partition(layer, eqx.is_array)
        layer = eqx.combine(drawn(arrays), static)
        step = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        _, state = step(2 * data + 1, state)
        arrays, static = eqx.partition(eqx.nn.inference_mode(layer), eqx.is_array)

        def f(params: Any, x: Any) -> Any:
            arrays, state = params
            layer = eqx.combine(arrays, static)
            return jax.vmap(lambda x: layer(x, state)[0])(x)

        return Model(f, (arrays, state), data)

    return build


def _precise(x: Any) -> Any:
    """Floats in the default precision of jax, as Equinox makes parameters; it casts nothing."""
    cast = lambda a: a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(cast, x)


def _conv(kind: Any, size: int, dimensions: int) -> Uses:
    make = lambda *rest, **config: lambda key: kind(4, 6, 3, *rest, key=key, **config)
    shape = (2, 4, *(size,) * dimensions)
    return {
        "": _of(make(), shape),
        "strided, grouped": _of(make(2, groups=2, padding=1), shape),
    }


def _pools() -> dict[str, Uses]:
    shape = {1: (2, 3, 7), 2: (2, 3, 7, 7), 3: (2, 3, 5, 5, 5)}
    table: dict[str, Uses] = {}
    for d, x in shape.items():
        for kind in ("Avg", "Max"):
            pool = getattr(nn, f"{kind}Pool{d}d")
            table[f"{kind}Pool{d}d"] = {
                "": _of(lambda key, pool=pool: pool(2, 2), x),
                "overlapping, padded": _of(lambda key, pool=pool: pool(3, 2, 1), x),
                "up to the edge": _of(lambda key, pool=pool: pool(2, 2, use_ceil=True), x),
            }
            adaptive = getattr(nn, f"Adaptive{kind}Pool{d}d")
            table[f"Adaptive{kind}Pool{d}d"] = {
                "": _of(lambda key, adaptive=adaptive: adaptive(3), x),
                "to one": _of(lambda key, adaptive=adaptive: adaptive(1), x),
            }
    return {
        **table,
        "AdaptivePool": {"of the least": _of(lambda key: nn.AdaptivePool(3, 2, jnp.min), shape[2])},
        "Pool": {
            "of the least": _of(lambda key: nn.Pool(jnp.inf, jax.lax.min, 2, 2, 2), shape[2]),
            "of sums": _of(lambda key: nn.Pool(0.0, jax.lax.add, 2, 2, 2), shape[2]),
        },
    }


def _cell(kind: Any, carry: int) -> Uses:
    """A recurrent cell: one step with its carry of so many arrays, and over a sequence."""
    make = lambda key: kind(3, 4, key=key)
    start = lambda *lead: tuple(normal((*lead, 4), seed=i + 2) for i in range(carry))
    wrapped = lambda states: states if carry > 1 else states[0]

    def unrolled(cell: Any, x: Any) -> Any:
        step = lambda state, x: (cell(x, state), None)
        return jax.lax.scan(step, _precise(wrapped(start())), x)[0]

    return {
        "": _of(make, lambda: (normal((2, 3)), wrapped(start(2))), lambda cell, x: cell(*x)),
        "in lax.scan": _of(make, (2, 3, 3), unrolled),
    }


def _attention() -> Uses:
    def of(call: Any = lambda m, x: m(x, x, x), x: Input = (2, 4, 6), **config: Any) -> _Build:
        heads = config.pop("heads", 2)
        return _of(lambda key: nn.MultiheadAttention(heads, 6, key=key, **config), x, call)

    every = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
    causal = lambda: jnp.tril(jnp.ones((4, 4), bool))
    other = lambda: (normal((2, 3, 6)), normal((2, 4, 5), seed=2), normal((2, 4, 7), seed=3))

    def turned(q: Any, k: Any, v: Any) -> Any:
        turn = jax.vmap(nn.RotaryPositionalEmbedding(4), in_axes=1, out_axes=1)
        return turn(q), turn(k), v

    return {
        "": of(),
        "with biases": of(**every),
        "causal": of(lambda m, x: m(x, x, x, mask=causal())),
        "of other sequences": of(lambda m, x: m(*x), other, key_size=5, value_size=7),
        "of other sizes": of(heads=3, qk_size=2, vo_size=5, output_size=4),
        "rotary": of(lambda m, x: m(x, x, x, process_heads=turned), qk_size=4),
        "dropout off": of(dropout_p=0.5),
    }


def _table() -> dict[str, Uses]:
    dense = lambda key: nn.Linear(3, 5, key=key)
    filters = lambda key: nn.Conv2d(4, 5, 3, key=key)
    image = (2, 4, 6, 6)
    layer = lambda kind, x, *rest, **config: _of(lambda key: kind(*rest, **config), x)

    def convolutional(key: Any) -> nn.Sequential:
        first, last = jax.random.split(key)
        return nn.Sequential(
            [
                nn.Conv2d(4, 4, 3, padding=1, key=first),
                nn.BatchNorm(4, "batch", mode="batch"),
                nn.Lambda(jax.nn.relu),
                nn.MaxPool2d(2, 2),
                nn.Lambda(jnp.ravel),
                nn.Linear(36, 3, key=last),
            ]
        )

    def tied(key: Any) -> nn.Shared:
        """An embedding whose matrix is the head's as well."""
        first, last = jax.random.split(key)
        pair = nn.Linear(4, 4, use_bias=False, key=first), nn.Linear(4, 4, key=last)
        return nn.Shared(pair, lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def both(shared: Any, x: Any) -> Any:
        first, last = shared()
        return last(jax.nn.relu(first(x)))

    return {
        "BatchNorm": {
            "": _stateful(lambda key: nn.BatchNorm(5, "batch", mode="batch"), (4, 5)),
            "by moving averages": _stateful(
                lambda key: nn.BatchNorm(5, "batch", mode="ema"), (4, 5)
            ),
            "of images": _stateful(lambda key: nn.BatchNorm(4, "batch", mode="batch"), image),
        },
        "Conv": {
            "": _of(lambda key: nn.Conv(2, 4, 5, 3, key=key), image),
            "circular": _of(
                lambda key: nn.Conv(2, 4, 5, 3, padding=1, padding_mode="CIRCULAR", key=key), image
            ),
            "reflected": _of(
                lambda key: nn.Conv(2, 4, 5, 3, padding=1, padding_mode="REFLECT", key=key), image
            ),
            "replicated": _of(
                lambda key: nn.Conv(2, 4, 5, 3, padding=1, padding_mode="REPLICATE", key=key), image
            ),
        },
        "Conv1d": _conv(nn.Conv1d, 7, 1),
        "Conv2d": _conv(nn.Conv2d, 6, 2),
        "Conv3d": _conv(nn.Conv3d, 4, 3),
        "ConvTranspose": {
            "": _of(lambda key: nn.ConvTranspose(2, 4, 5, 3, 2, key=key), image),
            "circular": _of(
                lambda key: nn.ConvTranspose(
                    2, 4, 5, 3, 2, padding="SAME", padding_mode="CIRCULAR", key=key
                ),
                image,
            ),
        },
        "ConvTranspose1d": _conv(nn.ConvTranspose1d, 5, 1),
        "ConvTranspose2d": _conv(nn.ConvTranspose2d, 4, 2),
        "ConvTranspose3d": _conv(nn.ConvTranspose3d, 3, 3),
        "Dropout": {"": layer(nn.Dropout, (2, 5), 0.5)},
        "Embedding": {
            "": _of(lambda key: nn.Embedding(7, 4, key=key), lambda: tokens((6,), 7)),
            "of sentences": _of(
                lambda key: nn.Embedding(7, 4, key=key),
                lambda: tokens((2, 5), 7),
                lambda m, x: jax.vmap(m)(x),
            ),
        },
        "GRUCell": _cell(nn.GRUCell, 1),
        "GroupNorm": {
            "": layer(nn.GroupNorm, image, 2, 4),
            "without scale and bias": layer(nn.GroupNorm, image, 2, channelwise_affine=False),
        },
        "Identity": {"": layer(nn.Identity, (2, 5))},
        "LSTMCell": _cell(nn.LSTMCell, 2),
        "Lambda": {"": layer(nn.Lambda, (2, 5), jax.nn.gelu)},
        "LayerNorm": {
            "": layer(nn.LayerNorm, (2, 5), 5),
            "over two axes": layer(nn.LayerNorm, (2, 3, 4), (3, 4)),
            "without weight and bias": layer(
                nn.LayerNorm, (2, 5), 5, use_weight=False, use_bias=False
            ),
        },
        "Linear": {
            "": _of(dense, (2, 3)),
            "without bias": _of(lambda key: nn.Linear(3, 5, use_bias=False, key=key), (2, 3)),
            "to a scalar": _of(lambda key: nn.Linear(3, "scalar", key=key), (2, 3)),
            "from a scalar": _of(lambda key: nn.Linear("scalar", 3, key=key), (4,)),
            "of a sequence": _of(dense, (2, 4, 3), lambda m, x: jax.vmap(m)(x)),
        },
        "MLP": {
            "": _of(lambda key: nn.MLP(4, 3, 5, 2, key=key), (2, 4)),
            "by a scan": _of(lambda key: nn.MLP(4, 3, 5, 3, scan=True, key=key), (2, 4)),
            "of tanh, to a scalar": _of(
                lambda key: nn.MLP(4, "scalar", 5, 2, jnp.tanh, key=key), (2, 4)
            ),
        },
        "MultiheadAttention": _attention(),
        "PReLU": {
            "": layer(nn.PReLU, (2, 5)),
            "a slope each": layer(nn.PReLU, (2, 5), jnp.linspace(0.1, 0.5, 5)),
        },
        "RMSNorm": {
            "": layer(nn.RMSNorm, (2, 5), 5),
            "without weight and bias": layer(
                nn.RMSNorm, (2, 5), 5, use_weight=False, use_bias=False
            ),
        },
        "RotaryPositionalEmbedding": {"": layer(nn.RotaryPositionalEmbedding, (2, 5, 4), 4)},
        "Sequential": {
            "": _of(
                lambda key: nn.Sequential(
                    [nn.Linear(4, 5, key=key), nn.Lambda(jax.nn.relu), nn.Linear(5, 3, key=key)]
                ),
                (2, 4),
            ),
            "of convolutions": _stateful(convolutional, image),
        },
        "Shared": {"": _of(tied, (2, 4), both)},
        "SpectralNorm": {
            "": _stateful(lambda key: nn.SpectralNorm(dense(key), "weight", key=key), (2, 3)),
            "of a convolution": _stateful(
                lambda key: nn.SpectralNorm(filters(key), "weight", key=key), image
            ),
        },
        "WeightNorm": {
            "": _of(lambda key: nn.WeightNorm(dense(key)), (2, 3)),
            "of a convolution": _of(lambda key: nn.WeightNorm(filters(key)), image),
            "of the whole": _of(lambda key: nn.WeightNorm(dense(key), axis=None), (2, 3)),
        },
        **_pools(),
    }
