"""Every module of `haiku` and of `haiku.nets`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.zoos import Case, Model
from benchmarks.zoos._layers import Input, Uses, classes, given, listed
from benchmarks.zoos.parameters import drawn, normal, tokens

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Haiku imports of JAX is deprecated
    import haiku as hk

_Build = Callable[[], Model]
_LARGE = frozenset(
    {"MobileNetV1", *(f"ResNet{depth}" for depth in ("", 18, 34, 50, 101, 152, 200))}
)


def cases(small: bool) -> Iterator[Case]:
    found = classes(hk, hk.Module) | classes(hk.nets, hk.Module)
    return listed("haiku", found, _table(), small, _LARGE)


def _of(function: Callable[[Any], Any], x: Input, start: Any = None) -> _Build:
    """What builds a function of modules; its parameters and its state together are params.

    ``start``: the same function in training mode, where it alone makes all of the state.
    """

    def build() -> Model:
        model = hk.transform_with_state(function)
        data = given(x)
        first = hk.transform_with_state(start or function)
        params = drawn(first.init(jax.random.key(0), data))
        return Model(lambda params, x: model.apply(*params, None, x)[0], params, data)

    return build


def _by_mode(function: Callable[[Any, bool], Any], x: Input) -> _Build:
    """The same for a function of an input and of whether it is training."""
    return _of(lambda x: function(x, False), x, lambda x: function(x, True))


def _step(cell: Callable[[], Any], x: Input) -> _Build:
    """One step of a core, its state explained as well."""

    def pair() -> Any:
        data = given(x)
        start = hk.transform(lambda: cell().initial_state(data.shape[0])).apply({}, None)
        leaves, structure = jax.tree.flatten(start)
        states = [normal(leaf.shape, seed=i + 2) for i, leaf in enumerate(leaves)]
        return data, jax.tree.unflatten(structure, states)

    return _of(lambda x: cell()(*x), pair)


def _core(cell: Callable[[], Any], *shape: int, more: Uses | None = None) -> Uses:
    """A recurrent core: a step, and over a sequence, whose first axis is time, in two ways."""

    def unrolled(unroll: Any) -> Callable[[Any], Any]:
        def function(x: Any) -> Any:
            core = cell()
            return unroll(core, x, core.initial_state(x.shape[1]))[0]

        return function

    sequence = (3, *shape)
    return {
        "": _step(cell, shape),
        "in dynamic_unroll": _of(unrolled(hk.dynamic_unroll), sequence),
        "in static_unroll": _of(unrolled(hk.static_unroll), sequence),
        **(more or {}),
    }


def _conv(kind: Any, dimensions: int, transposed: bool = False) -> Uses:
    x = (2, *(5,) * dimensions, 4)
    config = {"stride": 2} if transposed else {"rate": 2, "feature_group_count": 2}
    return {
        "": _of(lambda x: kind(6, 3)(x), x),
        "strided" if transposed else "dilated, grouped": _of(lambda x: kind(6, 3, **config)(x), x),
        "channels first": _of(
            lambda x: kind(6, 3, padding="VALID", data_format=_FIRST[dimensions])(x),
            (2, 4, *(5,) * dimensions),
        ),
    }


_FIRST = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def _depthwise(kind: Any, dimensions: int) -> Uses:
    x = (2, *(5,) * dimensions, 4)
    return {
        "": _of(lambda x: kind(1, 3)(x), x),
        "multiplied, strided": _of(lambda x: kind(2, 3, stride=2)(x), x),
    }


def _lstm_conv(kind: Any, dimensions: int) -> Uses:
    size = (4,) * dimensions
    return _core(lambda: kind(size, 4, 3), 2, *size, 3)


def _attention() -> Uses:
    def of(call: Any = lambda m, x: m(x, x, x), x: Input = (2, 4, 6), **config: Any) -> _Build:
        make = lambda: hk.MultiHeadAttention(
            2, 3, w_init=hk.initializers.VarianceScaling(1.0), **config
        )
        return _of(lambda x: call(make(), x), x)

    causal = lambda: jnp.tril(jnp.ones((1, 1, 4, 4)))
    other = lambda: (normal((2, 3, 6)), normal((2, 4, 5), seed=2), normal((2, 4, 7), seed=3))
    return {
        "": of(),
        "causal": of(lambda m, x: m(x, x, x, mask=causal())),
        "of other sequences": of(lambda m, x: m(*x), other),
        "of other sizes": of(value_size=5, model_size=4),
        "without biases": of(with_bias=False),
    }


def _stacks() -> dict[str, Uses]:
    residual = lambda x: x + jax.nn.gelu(hk.Linear(4)(hk.LayerNorm(-1, True, True)(x)))
    return {
        "layer_stack": {
            "": _of(lambda x: hk.experimental.layer_stack(3)(residual)(x), (2, 4)),
            "of remat": _of(
                lambda x: hk.experimental.layer_stack(3)(hk.remat(residual))(x), (2, 4)
            ),
        },
        "remat": {"": _of(lambda x: hk.remat(hk.Linear(5))(x), (2, 3))},
        "avg_pool": {
            "overlapping": _of(lambda x: hk.avg_pool(x, (3, 3, 1), (2, 2, 1), "SAME"), (2, 6, 6, 3))
        },
        "max_pool": {
            "overlapping": _of(lambda x: hk.max_pool(x, (3, 3, 1), (2, 2, 1), "SAME"), (2, 6, 6, 3))
        },
    }


def _table() -> dict[str, Uses]:
    image = (2, 6, 6, 4)
    ids = lambda: tokens((2, 5), 7)
    pixels = (2, 32, 32, 3)  # of one picture the last statistics would be zero
    net = lambda kind, **config: _by_mode(lambda x, mode: kind(10, **config)(x, mode), pixels)
    batch = lambda x, *how, **config: _by_mode(
        lambda x, mode: hk.BatchNorm(*how, 0.9)(x, mode, **config), x
    )
    tree = lambda: {"layer": {"w": normal((3, 5)), "v": normal((4, 2), seed=2)}}
    norm = lambda kind, x, *rest, **config: _of(lambda x: kind(*rest, **config)(x), x)
    nets = {
        f"ResNet{depth}": {
            "": net(getattr(hk.nets, f"ResNet{depth}")),
            **({"second version": net(hk.nets.ResNet50, resnet_v2=True)} if depth == 50 else {}),
        }
        for depth in (18, 34, 50, 101, 152, 200)
    }
    vq = lambda kind, *rest: {
        what: _of(
            lambda x, what=what: kind(4, 6, 0.25, *rest)(x, is_training=False)[what], (2, 3, 4)
        )
        for what in ("quantize", "loss", "distances")
    }
    return {
        "AvgPool": {
            "": _of(lambda x: hk.AvgPool((2, 2, 1), (2, 2, 1), "VALID")(x), image),
            "overlapping": _of(lambda x: hk.AvgPool((3, 3, 1), (2, 2, 1), "SAME")(x), image),
        },
        "BatchNorm": {
            "": batch((4, 5), True, True),
            "of images": batch(image, True, True),
            "without scale and offset": batch((4, 5), False, False),
            "of the batch itself, in front of a ReLU": _by_mode(
                lambda x, mode: jax.nn.relu(
                    hk.BatchNorm(True, True, 0.9)(x, mode, test_local_stats=True)
                ),
                (4, 5),
            ),
        },
        "Bias": {"": _of(lambda x: hk.Bias()(x), (2, 5))},
        "Conv1D": _conv(hk.Conv1D, 1),
        "Conv1DLSTM": _lstm_conv(hk.Conv1DLSTM, 1),
        "Conv1DTranspose": _conv(hk.Conv1DTranspose, 1, True),
        "Conv2D": {
            **_conv(hk.Conv2D, 2),
            "masked": _of(
                lambda x: hk.Conv2D(6, 3, mask=np.arange(216).reshape(3, 3, 4, 6) % 5 > 0)(x), image
            ),
        },
        "Conv2DLSTM": _lstm_conv(hk.Conv2DLSTM, 2),
        "Conv2DTranspose": _conv(hk.Conv2DTranspose, 2, True),
        "Conv3D": _conv(hk.Conv3D, 3),
        "Conv3DLSTM": _lstm_conv(hk.Conv3DLSTM, 3),
        "Conv3DTranspose": _conv(hk.Conv3DTranspose, 3, True),
        "ConvND": {"of four dimensions": _of(lambda x: hk.ConvND(4, 3, 2)(x), (1, 3, 3, 3, 3, 2))},
        "ConvNDTranspose": {"": _of(lambda x: hk.ConvNDTranspose(2, 3, 2, 2)(x), image)},
        "DeepRNN": _core(lambda: hk.DeepRNN([hk.LSTM(4), jnp.tanh, hk.GRU(4)]), 2, 3),
        "DepthwiseConv1D": _depthwise(hk.DepthwiseConv1D, 1),
        "DepthwiseConv2D": _depthwise(hk.DepthwiseConv2D, 2),
        "DepthwiseConv3D": _depthwise(hk.DepthwiseConv3D, 3),
        "EMAParamsTree": {"": _of(lambda x: hk.EMAParamsTree(0.9)(x, update_stats=False), tree)},
        "Embed": {
            "": _of(lambda x: hk.Embed(7, 4)(x), ids),
            "by one-hot": _of(lambda x: hk.Embed(7, 4, lookup_style="ONE_HOT")(x), ids),
            "then a layer": _of(lambda x: hk.Linear(3)(hk.Embed(7, 4)(x)), ids),
        },
        "ExponentialMovingAverage": {
            "": _of(lambda x: hk.ExponentialMovingAverage(0.9)(x, update_stats=False), (2, 5))
        },
        "Flatten": {"": _of(lambda x: hk.Flatten()(x), (2, 3, 4))},
        "GRU": _core(lambda: hk.GRU(4), 2, 3),
        "GroupNorm": {
            "": norm(hk.GroupNorm, image, 2),
            "without scale and offset": norm(
                hk.GroupNorm, image, 2, create_scale=False, create_offset=False
            ),
        },
        "IdentityCore": {"": _of(lambda x: hk.IdentityCore()(x, ())[0], (2, 3))},
        "InstanceNorm": {
            "": norm(hk.InstanceNorm, image, True, True),
            "in front of a ReLU": _of(lambda x: jax.nn.relu(hk.InstanceNorm(True, True)(x)), image),
        },
        "LSTM": _core(lambda: hk.LSTM(4), 2, 3),
        "LayerNorm": {
            "": norm(hk.LayerNorm, (2, 5), -1, True, True),
            "over two axes": norm(hk.LayerNorm, (2, 3, 4), (1, 2), True, True),
            "by a fast variance": norm(
                hk.LayerNorm, (2, 5), -1, True, True, use_fast_variance=True
            ),
            "without scale and offset": norm(hk.LayerNorm, (2, 5), -1, False, False),
        },
        "Linear": {
            "": _of(lambda x: hk.Linear(5)(x), (2, 3)),
            "without bias": _of(lambda x: hk.Linear(5, with_bias=False)(x), (2, 3)),
            "of rows of rows": _of(lambda x: hk.Linear(5)(x), (2, 4, 3)),
        },
        "MLP": {
            "": _of(lambda x: hk.nets.MLP([5, 4, 3])(x), (2, 6)),
            "of tanh, active at its end": _of(
                lambda x: hk.nets.MLP([5, 3], activation=jnp.tanh, activate_final=True)(x), (2, 6)
            ),
        },
        "MaxPool": {
            "": _of(lambda x: hk.MaxPool((2, 2, 1), (2, 2, 1), "VALID")(x), image),
            "overlapping": _of(lambda x: hk.MaxPool((3, 3, 1), (2, 2, 1), "SAME")(x), image),
        },
        "MobileNetV1": {
            "": net(lambda classes: hk.nets.MobileNetV1(num_classes=classes)),
            "without BatchNorm": net(
                lambda classes: hk.nets.MobileNetV1(num_classes=classes, use_bn=False)
            ),
        },
        "MultiHeadAttention": _attention(),
        "RMSNorm": {
            "": norm(hk.RMSNorm, (2, 5), -1),
            "without scale": norm(hk.RMSNorm, (2, 5), -1, create_scale=False),
        },
        "ResNet": {
            "of narrow blocks": net(
                lambda classes: hk.nets.ResNet(
                    (1, 1, 1, 1), classes, bottleneck=False, channels_per_group=(8, 8, 16, 16)
                )
            ),
        },
        **nets,
        "ResetCore": _resetting(),
        "Reshape": {"": _of(lambda x: hk.Reshape((-1, 2))(x), (2, 3, 4))},
        "SNParamsTree": {"": _of(lambda x: hk.SNParamsTree()(x, update_stats=False), tree)},
        "SeparableDepthwiseConv2D": _depthwise(hk.SeparableDepthwiseConv2D, 2),
        "Sequential": {
            "": _of(lambda x: hk.Sequential([hk.Linear(5), jax.nn.relu, hk.Linear(3)])(x), (2, 4)),
            "of convolutions": _by_mode(
                lambda x, mode: hk.Sequential(
                    [
                        hk.Conv2D(4, 3),
                        lambda x: hk.BatchNorm(True, True, 0.9)(x, mode),
                        jax.nn.relu,
                        hk.MaxPool((2, 2, 1), (2, 2, 1), "VALID"),
                        hk.Flatten(),
                        hk.Linear(3),
                    ]
                )(x),
                image,
            ),
        },
        "SpectralNorm": {
            "of the input": _of(lambda x: hk.SpectralNorm()(x, update_stats=False), (3, 5)),
            "of a weight": _of(_spectral, (2, 3)),
        },
        "VanillaRNN": _core(lambda: hk.VanillaRNN(4), 2, 3),
        "VectorQuantizer": vq(hk.nets.VectorQuantizer),
        "VectorQuantizerEMA": vq(hk.nets.VectorQuantizerEMA, 0.9),
        **_stacks(),
    }


def _spectral(x: Any) -> Any:
    """A dense layer whose weight is normalized, as Haiku's users write it."""
    w = hk.get_parameter("w", (3, 5), init=hk.initializers.TruncatedNormal())
    return x @ hk.SpectralNorm()(w, update_stats=False)


def _resetting() -> Uses:
    """A core whose state is reset where a sequence begins: (input, whether to reset)."""

    def function(x: Any) -> Any:
        core = hk.ResetCore(hk.LSTM(4))
        reset = jnp.array([[False, True], [True, False], [False, False]])
        return hk.dynamic_unroll(core, (x, reset), core.initial_state(2))[0]

    return {"in dynamic_unroll": _of(function, (3, 2, 5))}
