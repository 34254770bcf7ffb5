"""One input of a model, and the output that is explained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import relax
from relax._program import Program
from relax.cli._errors import InputError
from relax.cli._labels import find_class_index, short_name
from relax.cli._model import Model
from relax.cli._pictures import fit, load_picture
from relax.rules import Epsilon


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is explained.

    Attributes:
      path: of its file.
      x: as the model takes it, without the axis of samples.
      picture: what the eye sees of it, ``(height, width, channels)``; None of an array.
    """

    path: Path
    x: np.ndarray
    picture: np.ndarray | None


def load_sample(model: Model, path: str) -> Sample:
    """A picture, cut and resized to what the model takes; or the array in a ``.npy`` file as it is.

    Raises:
      InputError: it cannot be read, or does not fit the model.
    """
    if Path(path).suffix.lower() != ".npy":
        height, width, channels = model.picture_shape()
        pixels = fit(load_picture(path), height, width, channels)
        return Sample(Path(path), model.sample(pixels), pixels)
    try:
        x = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no file {path!r}") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path!r} is no array that can be read ({error})") from error
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiub":
        raise InputError(f"{path!r} holds no array of real numbers")
    if model.shape is not None and x.shape != model.shape:
        raise InputError(
            f"{path!r} has shape {x.shape}, and a sample of {model.name} {model.shape}; the axis "
            "of samples is added"
        )
    return Sample(Path(path), x.astype(np.float32) if x.dtype.kind in "fb" else x, None)


@dataclasses.dataclass(frozen=True)
class Function:
    """A model as it is explained: without the softmax or sigmoid at its end.

    Attributes:
      f: ``f(params, x)`` of a batch; ``(samples, outputs)``.
      ending: what was taken off: ``"softmax"``, ``"sigmoid"``..., or nothing.
      outputs: how many there are.
    """

    f: Callable[..., Any]
    ending: str
    outputs: int


def bare(model: Model, shape: tuple[int, ...], dtype: Any = np.float32) -> Function:
    """The model in front of its last softmax or sigmoid.

    Args:
      model: as it was given.
      shape, dtype: of a sample.

    Raises:
      InputError: it does not take such samples, or returns something else than numbers for each.
      RelaxError: something in it has no relevance.
    """
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    try:
        value = jax.eval_shape(model.f, model.params, x)
    except Exception as error:
        raise InputError(
            f"{model.name} does not take a batch of shape {x.shape}: {type(error).__name__}: "
            f"{error}"
        ) from error
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or leaves[0].shape[:1] != (1,) or len(leaves[0].shape) > 2:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves) or "nothing"
        raise InputError(
            f"{model.name} returns {shapes} of one sample; expected (1, classes) or (1,). Choose "
            "in a function of your own: --model FILE.py:NAME"
        )
    program = Program(model.f, Epsilon(), -1, None, False, (model.params, x), {})
    (end,) = program.endings()
    f = model.f if end is None or end.constant else relax.logits(model.f)

    def one_axis(params: Any, x: Any) -> jax.Array:
        (z,) = jax.tree.leaves(f(params, x))
        return z if z.ndim == 2 else z[:, None]

    outputs = leaves[0].shape[1] if len(leaves[0].shape) == 2 else 1
    return Function(one_axis, "" if end is None or end.constant else end.name, outputs)


def find_target(model: Model, function: Function, text: str | None) -> int | None:
    """The output that the user means; None for the largest.

    Raises:
      InputError: there is none of that number or name.
    """
    if text is None:
        return None
    labels = labels_of(model, function.outputs)
    return find_class_index(text, labels)


def labels_of(model: Model, outputs: int) -> Sequence[str]:
    """A label for each output: the model's own, or its number.

    Raises:
      InputError: the model has another number of them.
    """
    if model.labels is None:
        return [f"output {i}" for i in range(outputs)]
    if len(model.labels) != outputs:
        raise InputError(f"{model.name} has {len(model.labels)} labels for {outputs} outputs")
    return model.labels


def named(model: Model, outputs: int, index: int) -> str:
    """An output, as one says it: ``espresso (967)``."""
    label = short_name(labels_of(model, outputs)[index])
    return label if model.labels is None else f"{label} ({index})"


def probabilities(function: Function, logits: np.ndarray) -> np.ndarray | None:
    """Of the outputs of one input; None of a single one that no sigmoid follows."""
    if "sigmoid" in function.ending or function.ending == "logistic":
        return np.asarray(jax.nn.sigmoid(jnp.asarray(logits)))
    return None if len(logits) == 1 else np.asarray(jax.nn.softmax(jnp.asarray(logits)))
