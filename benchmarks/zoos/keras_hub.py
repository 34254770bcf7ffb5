"""Every backbone and encoder of `keras_hub.models`, built at a tiny size, without any download.

The input is what the backbone itself says that it takes: token ids and pictures are explained,
masks, positions, segments and numbers of steps are held at plain values.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp

from benchmarks.zoos import Case, Model
from benchmarks.zoos.keras_applications import stateless
from benchmarks.zoos.keras_hub_sizes import CALLED_FIRST, COMMON, INPUTS, LEFT_OUT, OWN
from benchmarks.zoos.parameters import normal, tokens

SMALL = frozenset(
    {"BertBackbone", "GPT2Backbone", "LlamaBackbone", "ResNetBackbone", "ViTBackbone"}
)
_LENGTH = 8  # of a sequence; also of what else is left open by a backbone
_PIXELS = 32  # of a picture whose size is left open
_NUMBERS = {"num_steps": 2, "guidance_scale": 3.0}  # of a diffusion


def cases(small: bool) -> Iterator[Case]:
    import keras_hub

    base = keras_hub.models.Backbone
    for name, found in sorted(vars(keras_hub.models).items()):
        if not (inspect.isclass(found) and issubclass(found, base)):
            continue
        if not small or name in SMALL:
            build = functools.partial(_build, name, found)
            yield Case("keras_hub", name, build, LEFT_OUT.get(name, ""))


def _build(name: str, backbone: type) -> Model:
    import keras

    keras.utils.set_random_seed(0)
    known = inspect.signature(backbone.__init__).parameters
    common = {key: value for key, value in COMMON.items() if key in known}
    model: Any = backbone(**{**common, **OWN.get(name, dict)()})
    structure = model.input
    specs = structure if isinstance(structure, dict) else {s.name: s for s in model.inputs}
    shapes = INPUTS.get(name, {})
    given = {key: _input(key, spec, shapes.get(key)) for key, spec in specs.items()}
    held = {key: array for key, array in given.items() if _is_held(key)}

    def arguments(x: Any) -> Any:
        by_name = {**held, **x}
        if isinstance(structure, dict):
            return by_name
        ordered = [by_name[key] for key in specs]
        return ordered if isinstance(structure, (list, tuple)) else ordered[0]

    f, params = stateless(model, arguments)
    x = {key: array for key, array in given.items() if key not in held}
    if name in CALLED_FIRST:
        f(params, x)
    return Model(f, params, x)


def _is_held(name: str) -> bool:
    words = ("mask", "position", "segment", "label", "type", "indices", "_ids_shape", "points")
    others = ("boxes", "image_ids", "text_ids", *_NUMBERS)
    return any(word in name for word in words) or name in others


def _input(name: str, spec: Any, shape: tuple[int, ...] | None) -> jax.Array:
    """An array of the shape, unless another is given, and dtype that a backbone asks for."""
    if shape is None:
        open_ = _PIXELS if len(spec.shape) >= 4 else _LENGTH
        shape = tuple(1 if i == 0 else size or open_ for i, size in enumerate(spec.shape))
    if name in _NUMBERS:
        return jnp.full(shape, _NUMBERS[name], spec.dtype)
    if "mask" in name:
        return jnp.ones(shape, spec.dtype)
    if "position" in name:
        return jnp.broadcast_to(jnp.arange(shape[-1], dtype=spec.dtype), shape)
    if jnp.issubdtype(spec.dtype, jnp.integer):
        return jnp.zeros(shape, spec.dtype) if _is_held(name) else tokens(shape, 30)
    return normal(shape, dtype=spec.dtype)
