"""From what ``--model`` says to a `Model`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.machinery
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from relax.cli._errors import InputError
from relax.cli._model import Model

DEFAULT = "EfficientNet-Lite0"
_APPLICATIONS = "keras.applications."


def load_model(
    spec: str | None,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels_first: bool | None = None,
) -> Model:
    """The model that is meant, with what the user says of it in place.

    Args:
      spec: ``"file.py:name"``, ``"module:name"``, ``"file.keras"``, ``"keras.applications.NAME"``,
        ``"file.onnx"``, ``"file.txt"``; None for EfficientNet-Lite0.
      weights: of ``keras.applications``: a file. Without one they are random.
      size: height and width of a picture.
      mean, std: of pixels from 0 to 1, one number or one for each channel.
      channels_first: whether the model takes ``(samples, channels, height, width)``; samples stay
        channels last all the same. By default as the file says, if it does, else last.

    Raises:
      InputError: there is no such model, or it does not fit.
    """
    if weights is not None and not (spec or "").startswith(_APPLICATIONS):
        raise InputError(f"--weights go with --model {_APPLICATIONS}NAME")
    model = _found(spec, weights, size)
    if size is not None:
        channels = model.shape[-1] if model.shape is not None and len(model.shape) == 3 else 3
        model = dataclasses.replace(model, shape=(*size, channels))
    if mean is not None or std is not None:
        model = dataclasses.replace(model, preprocess=_normalization(mean or [0.0], std or [1.0]))
    first = model.channels_first if channels_first is None else channels_first
    return dataclasses.replace(model, f=_turned(model.f)) if first else model


def _turned(f: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of pictures whose channels are last."""

    def turned(params: Any, x: Any) -> Any:
        return f(params, jnp.moveaxis(x, -1, 1))

    return turned


def _found(spec: str | None, weights: str | None, size: tuple[int, int] | None) -> Model:
    if spec is None:
        return _efficientnet()
    if spec.startswith(_APPLICATIONS):
        return _application(spec.removeprefix(_APPLICATIONS), weights, size)
    suffix = Path(spec).suffix.lower()
    if suffix in _FILES:
        if not Path(spec).is_file():
            raise InputError(f"--model: there is no file {spec!r}")
        return _FILES[suffix](spec)
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        known = ", ".join(_FILES)
        raise InputError(
            f"--model {spec!r}: expected FILE.py:NAME, MODULE:NAME, {_APPLICATIONS}NAME, or a file "
            f"that ends in {known}"
        )
    return _of_python(spec, place, name)


def _of_python(spec: str, place: str, name: str) -> Model:
    """Runs the user's file, or imports the user's module, and calls what is called so."""
    module = _module(spec, place)
    try:
        made = getattr(module, name)
    except AttributeError:
        known = ", ".join(n for n in vars(module) if not n.startswith("_")) or "nothing"
        raise InputError(f"--model {spec!r}: there is no {name!r} in it, but {known}") from None
    if callable(made):
        with _telling(f"--model {spec!r}: {name}()"):
            made = made()
    if isinstance(made, tuple) and len(made) == 2:
        made = Model(*made)
    if not isinstance(made, Model) or not callable(made.f):
        raise InputError(
            f"--model {spec!r}: {name} is {type(made).__name__}; expected (f, params) or a "
            "relax.cli.Model, or a function without arguments that returns one"
        )
    return made if made.name else dataclasses.replace(made, name=name)


def _module(spec: str, place: str) -> Any:
    if not place.endswith(".py"):
        with _telling(f"--model {spec!r}"):
            return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(f"--model {spec!r}: there is no file {place!r}")
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    sys.path.insert(
        0, str(path.parent)
    )  # it may import its neighbors, also later, when it is called
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    with _telling(f"--model {spec!r}"):
        loader.exec_module(module)
    return module


class _telling:
    """Whatever a user's code raises is an `InputError` that names it."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            raise InputError(f"{self.what}: {kind.__name__}: {error}") from error


def _efficientnet() -> Model:
    from relax.cli.networks import efficientnet_lite as network
    from relax.cli.networks.imagenet import load_labels

    side = network.IMAGE_SIZE
    return Model(
        network.EfficientNetLite0().apply,
        network.load_variables(),
        (side, side, 3),
        network.preprocess,
        load_labels(),
        DEFAULT,
    )


def _application(name: str, weights: str | None, size: tuple[int, int] | None) -> Model:
    keras = _keras()
    make = getattr(keras.applications, name, None)
    if not callable(make):
        known = [n for n in dir(keras.applications) if n[0].isupper()]
        raise InputError(f"--model: keras.applications has no {name!r}, but {', '.join(known)}")
    if weights is not None and not Path(weights).is_file():
        raise InputError(f"--weights: there is no file {weights!r}")
    shape = None if size is None else (*size, 3)
    with _telling(f"--model {_APPLICATIONS}{name}"):
        model: Any = make(weights=weights, **({} if shape is None else {"input_shape": shape}))
    preprocess = sys.modules[make.__module__].preprocess_input
    # Of arrays it works in place, and some only warn of types that they cannot hold.
    prepared = lambda pixels: preprocess(np.array(pixels, np.float32))
    labels = _imagenet() if model.output_shape[-1] == 1000 else None
    title = name if weights is not None else f"{name} with random weights"
    return _of_keras(model, title, prepared, labels)


def _imagenet() -> Sequence[str] | None:
    """Names of the classes, if the package that has them is there."""
    try:
        from relax.cli.networks.imagenet import load_labels
    except ModuleNotFoundError:
        return None
    return load_labels()


def _keras_file(path: str) -> Model:
    keras = _keras()
    with _telling(f"--model {path!r}"):
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return _of_keras(model, Path(path).stem, None, None)


def _of_keras(
    model: Any, name: str, preprocess: Callable[..., Any] | None, labels: Sequence[str] | None
) -> Model:
    from relax.adapters.keras import to_jax

    f, params = to_jax(model)
    shape = model.input_shape
    if not isinstance(shape, tuple):
        raise InputError(f"{name} takes several inputs; the command line explains one")
    known = None if None in shape[1:] else tuple(shape[1:])
    return Model(f, params, known, preprocess, labels, name)


def _keras() -> Any:
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "jax"  # what another backend computes cannot be explained
    try:
        return importlib.import_module("keras")
    except ModuleNotFoundError as missing:
        raise InputError(
            'a model of Keras needs Keras: pip install "relax-lrp[keras]"'
        ) from missing


def _lrp_toolbox(path: str) -> Model:
    from relax.adapters.lrp_toolbox import to_jax

    with _telling(f"--model {path!r}"):
        f, params = to_jax(path)
    return Model(f, params, name=Path(path).stem)


def _onnx(path: str) -> Model:
    from relax.adapters.onnx import to_jax

    with _telling(f"--model {path!r}"):
        f, params = to_jax(path)
        sizes = _onnx_sizes(path)
    first = len(sizes) == 4 and sizes[1] in (1, 3)
    if first:
        sizes = [sizes[0], *sizes[2:], sizes[1]]
    shape = None if not sizes or None in sizes[1:] else tuple(sizes[1:])
    return Model(f, params, shape, name=Path(path).stem, channels_first=first)


def _onnx_sizes(path: str) -> list[Any]:
    """The shape that the file declares for its one input; None for an axis of any size."""
    onnx = importlib.import_module("onnx")
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise InputError(f"{path!r} takes {len(inputs)} inputs; the command line explains one")
    axes = inputs[0].type.tensor_type.shape.dim
    return [axis.dim_value if axis.HasField("dim_value") else None for axis in axes]


_FILES: dict[str, Callable[[str], Model]] = {
    ".keras": _keras_file,
    ".onnx": _onnx,
    ".txt": _lrp_toolbox,
}


def _normalization(mean: Sequence[float], std: Sequence[float]) -> Callable[[np.ndarray], Any]:
    if 0 in std:
        raise InputError("--std 0: nothing can be divided by it")

    def normalized(pixels: np.ndarray) -> np.ndarray:
        for name, given in (("--mean", mean), ("--std", std)):
            if len(given) not in (1, pixels.shape[-1]):
                raise InputError(
                    f"{name}: {len(given)} numbers for {pixels.shape[-1]} channels; give one, or "
                    "one for each"
                )
        center, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        return (pixels / 255 - center) / scale

    return normalized
