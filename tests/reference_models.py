"""The networks whose relevances Zennit recorded, in plain ``jax.numpy``.

``load("vgg_small")`` gives the recorded arrays and the parameters, and
``MODELS["vgg_small"](params, x)`` the logits. Layouts are channels-last; kernels are
``(*window, in / groups, out)``.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FOLDER = Path(__file__).parent / "data" / "zennit"

_LAYOUTS = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC")}


def load(name):
    """Recorded arrays of a network, and its parameters as ``{layer: {name: array}}``."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        data = dict(stored)
    params = {}
    for key, value in data.items():
        if key.startswith("param/"):
            _, layer, array = key.split("/")
            params.setdefault(layer, {})[array] = value
    return data, params


def shift(z, bias):
    return z + bias.reshape((1,) * (z.ndim - 1) + bias.shape)


def dense(p, x):
    return shift(x @ p["kernel"], p["bias"])


def conv(p, x, stride=1, pad=1, dilation=1, groups=1):
    """A convolution over all inner axes, with the same stride, padding and dilation on each."""
    spatial = x.ndim - 2
    z = lax.conv_general_dilated(
        x,
        p["kernel"],
        (stride,) * spatial,
        [(pad, pad)] * spatial,
        rhs_dilation=(dilation,) * spatial,
        dimension_numbers=_LAYOUTS[x.ndim],
        feature_group_count=groups,
    )
    return shift(z, p["bias"])


def conv_transpose(p, x, extra):
    """A transposed convolution of stride 2; PyTorch's padding 1 and ``output_padding=extra``."""
    spatial = x.ndim - 2
    inner = p["kernel"].shape[0] - 2
    z = lax.conv_transpose(
        x, p["kernel"], (2,) * spatial, [(inner, inner + extra)] * spatial, None, _LAYOUTS[x.ndim]
    )
    return shift(z, p["bias"])


def batch_norm(p, x):
    """Inference BatchNorm as scale and shift, on the last axis."""
    scale = p["scale"] * lax.rsqrt(p["var"] + p["eps"])
    wide = lambda a: a.reshape((1,) * (x.ndim - 1) + a.shape)
    return (x - wide(p["mean"])) * wide(scale) + wide(p["bias"])


def _window(x, size):
    return (1, *(size,) * (x.ndim - 2), 1)


def max_pool(x, size):
    window = _window(x, size)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def avg_pool(x, size):
    window = _window(x, size)
    return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / np.prod(window).item()


def flatten(x):
    return x.reshape(x.shape[0], -1)


def relu(x):
    return jnp.maximum(x, 0)


def relu6(x):
    return jnp.clip(x, 0, 6)


def _mlp(activation):
    def apply(params, x):
        for name in ("dense1", "dense2"):
            x = activation(dense(params[name], x))
        return dense(params["dense3"], x)

    return apply


def _vgg_small(params, x):
    for pair in (("conv1", "conv2"), ("conv3", "conv4")):
        for name in pair:
            x = relu(conv(params[name], x))
        x = max_pool(x, 2)
    return dense(params["dense2"], relu(dense(params["dense1"], flatten(x))))


def _bn_conv(params, x):
    x = relu(batch_norm(params["bn1"], conv(params["conv1"], x)))
    x = relu(batch_norm(params["bn2"], conv(params["conv2"], x, stride=2)))
    return dense(params["dense"], flatten(avg_pool(x, 2)))


def _resnet_small(params, x):
    def conv_norm(name, norm, x, **kwargs):
        return batch_norm(params[norm], conv(params[name], x, **kwargs))

    x = relu(conv_norm("stem_conv", "stem_bn", x))
    inner = relu(conv_norm("b1_conv1", "b1_bn1", x))
    x = relu(conv_norm("b1_conv2", "b1_bn2", inner) + x)
    inner = relu(conv_norm("b2_conv1", "b2_bn1", x, stride=2))
    short = conv_norm("b2_short_conv", "b2_short_bn", x, stride=2, pad=0)
    x = relu(conv_norm("b2_conv2", "b2_bn2", inner) + short)
    return dense(params["dense"], x.mean(axis=(1, 2)))


def _depthwise(params, x):
    x = relu6(conv(params["conv1"], x))
    x = relu6(conv(params["depth"], x, groups=8))
    x = relu6(conv(params["point"], x, pad=0))
    x = relu(conv(params["grouped"], x, stride=2, groups=3))
    x = relu(conv(params["dilated"], x, pad=2, dilation=2))
    x = relu(conv_transpose(params["deconv"], x, extra=1))
    return dense(params["dense"], x.mean(axis=(1, 2)))


def _conv1d(params, x):
    x = relu(conv(params["conv1"], x, pad=2))
    x = relu6(conv(params["depth"], x, groups=8))
    x = relu(conv(params["dilated"], x, stride=2, pad=2, dilation=2))
    x = relu(conv_transpose(params["deconv"], x, extra=0))
    return dense(params["dense"], flatten(max_pool(x, 3)))


MODELS = {
    "mlp": _mlp(relu),
    "mlp_tanh": _mlp(jnp.tanh),
    "mlp_sigmoid": _mlp(jax.nn.sigmoid),
    "mlp_elu": _mlp(jax.nn.elu),
    "mlp_gelu": _mlp(lambda x: jax.nn.gelu(x, approximate=False)),
    "mlp_leaky": _mlp(lambda x: jax.nn.leaky_relu(x, 0.1)),
    "vgg_small": _vgg_small,
    "bn_conv": _bn_conv,
    "resnet_small": _resnet_small,
    "depthwise": _depthwise,
    "conv1d": _conv1d,
}
