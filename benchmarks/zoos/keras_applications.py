"""Every architecture of `keras.applications`: small pictures, random weights."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

from benchmarks.zoos import Case, Model
from benchmarks.zoos.parameters import drawn, normal

# In pixels, ascending; each architecture is built at the first that it accepts.
SIZES = (32, 64, 75, 96, 128, 224, 331)
SMALL = frozenset({"MobileNet", "MobileNetV2", "MobileNetV3Small", "ResNet50", "VGG16"})


def cases(small: bool) -> Iterator[Case]:
    import keras

    for name, make in vars(keras.applications).items():
        if not callable(make) or "weights" not in inspect.signature(make).parameters:
            continue
        if not small or name in SMALL:
            yield Case("keras.applications", name, functools.partial(_build, make))


def _build(make: Callable[..., Any]) -> Model:
    import keras

    keras.utils.set_random_seed(0)
    refused: Exception | None = None
    for size in SIZES:
        try:
            shape = (size, size, 3)
            model = make(input_shape=shape, weights=None, classifier_activation=None)
        except ValueError as error:  # too small
            refused = error
            continue
        f, params = stateless(model)
        x = normal((1, *shape))
        return Model(f, params, x, functools.partial(_double, make, params, x))
    assert refused is not None
    raise refused


def _double(make: Callable[..., Any], params: dict[str, Any], x: Any) -> Model:
    """The same architecture and parameters in float64."""
    import keras

    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        model = make(input_shape=x.shape[1:], weights=None, classifier_activation=None)
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])
    f, drawn_anew = stateless(model)
    values = zip(drawn_anew.items(), params.values(), strict=True)
    same = {name: np.asarray(value, new.dtype) for (name, new), value in values}
    return Model(f, same, np.asarray(x, np.float64))


def stateless(
    model: Any, arguments: Callable[[Any], Any] = lambda x: x
) -> tuple[Callable[[Any, Any], Any], dict[str, Any]]:
    """A built Keras model as a function of its variables, by path, and x, in inference mode.

    ``arguments`` makes of x what the model is called with.
    """
    trained, fixed = model.trainable_variables, model.non_trainable_variables
    # A path may occur twice, in models that are put together.
    names = [f"{number}:{v.path}" for number, v in enumerate([*trained, *fixed])]
    params = dict(zip(names, drawn([v.value for v in [*trained, *fixed]]), strict=True))

    def f(params: dict[str, Any], x: Any) -> Any:
        values = [params[name] for name in names]
        first, rest = values[: len(trained)], values[len(trained) :]
        return model.stateless_call(first, rest, arguments(x), training=False)[0]

    return f, params
