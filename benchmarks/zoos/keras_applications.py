"""Every architecture of `keras.applications`: small pictures, random weights."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

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
        return Model(f, params, normal((1, *shape)))
    assert refused is not None
    raise refused


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
