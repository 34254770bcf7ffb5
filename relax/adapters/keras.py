"""Keras models and layers as JAX functions of their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from relax._errors import ArgumentError, message
from relax.adapters._params import check_params, shapes

_OUTPUTS = ("value", "logits")


def to_jax(
    model: Any, *, training: bool = False, output: str = "value"
) -> tuple[Callable[..., Any], dict[str, jax.Array]]:
    """A built Keras model or layer as ``(f, params)``, so that `lrp` explains ``f``.

    ``f(params, x)`` is ``model(x, training=False)`` with ``params`` in the place of its weights. It
    is pure: the model is not changed by it, and changes nothing in it.

    Args:
      model: a keras.Model or keras.Layer, built, on the JAX backend; also one of several inputs or
        outputs, recurrent, of mixed precision, or a subclass of your own.
      training: what the layers are told. By default they infer: BatchNormalization uses its moving
        statistics and Dropout does nothing. If True, statistics are those of the batch, so that its
        samples explain each other, and Dropout draws the same mask at every call; what training
        would update is dropped.
      output: ``"value"``, what the model returns, or ``"logits"``, what goes into the softmax or
        sigmoid that it ends in, as by `relax.logits`; ``"logit"`` is the same.

    Returns:
      ``f``, of params and what the model is called with: an array, or the list or dict of them
      that the model takes, each ``(batch, ...)``; keyword arguments, such as ``mask``, are handed
      on. It returns what the model returns.
      ``params``, a dict from paths, as Keras names them, to copies of all weights: kernels and
      biases, and what is not trained, such as ``bn/moving_mean``. Of weights with one path the
      second is that of ``layer#1``. States of random seeds are no weights; they stay as they were.

    Raises:
      ArgumentError: Keras runs on another backend; the model is none, or not built, or has no such
        output; when ``f`` is called: ``params`` lacks weights, or has others, or of other shapes.
      ImportError: Keras is not installed.

    Example:
      >>> import os
      >>> os.environ["KERAS_BACKEND"] = "jax"  # before Keras is imported
      >>> import keras, numpy as np, relax
      >>> from relax.adapters.keras import to_jax
      >>> hidden = keras.layers.Dense(4, activation="relu", name="hidden")
      >>> model = keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(2, name="head")])
      >>> f, params = to_jax(model)
      >>> x = np.ones((5, 3), "float32")
      >>> print(np.allclose(f(params, x), model(x), atol=1e-6), relax.lrp(f)(params, x).shape)
      True (5, 3)
    """
    keras = _keras()
    output = "logits" if output == "logit" else output
    if output not in _OUTPUTS:
        known = " or ".join(f'"{name}"' for name in _OUTPUTS)
        raise ArgumentError(f"to_jax(output={output!r}): expected {known}.")
    if not isinstance(model, keras.layers.Layer):
        raise ArgumentError(
            message(
                f"to_jax: a {type(model).__name__} is no keras.Model or keras.Layer",
                remedy="Any other function of JAX can be explained as it is, f(params, x).",
            )
        )
    _check_built(model, bool(model.built))

    variables = list(model.weights)
    names = _names([variable.path for variable in variables])
    # Copies: fit() donates the buffers that the model holds.
    params = {n: jnp.array(v.value) for n, v in zip(names, variables, strict=True)}
    expected = shapes(params)
    weights = {id(variable) for variable in variables}
    seeds = [(v, jnp.array(v.value)) for v in model.variables if id(v) not in weights]
    count = len(model.variables)

    def call(params: Any, *inputs: Any, **kwargs: Any) -> Any:
        check_params(params, expected)
        given = [(v, params[name]) for name, v in zip(names, variables, strict=True)]
        # Not model.stateless_call: that goes around __call__, and with it around the casts of the
        # precision policy, the masks, and the scopes.
        with keras.StatelessScope(state_mapping=given + seeds):
            value = model(*inputs, training=training, **kwargs)
        _check_built(model, len(model.variables) == count)
        return value

    if output == "logits":
        from relax.outputs import logits  # here: adapters are imported before the transforms

        return logits(call), params
    return call, params


def _keras() -> Any:
    try:
        import keras
    except ImportError as error:
        missing = error.name or "keras"
        if missing.partition(".")[0] != "keras":  # its default backend, TensorFlow
            raise ImportError(
                f"Keras wants {missing}, which is not installed.\n"
                "  Set the environment variable KERAS_BACKEND=jax before Keras is imported."
            ) from error
        raise ImportError(
            'relax.adapters.keras needs Keras: pip install "relax-lrp[keras]".'
        ) from error
    backend = keras.config.backend()
    if backend != "jax":
        raise ArgumentError(
            message(
                f"to_jax: Keras runs on {backend}, and only what it computes with JAX can be "
                "explained",
                remedy="Set the environment variable KERAS_BACKEND=jax before Keras is imported. "
                "A model made with another backend: model.save(path) there, "
                "keras.saving.load_model(path) here.",
            )
        )
    return keras


def _check_built(model: Any, built: bool) -> None:
    if not built:
        raise ArgumentError(
            message(
                f"to_jax: {type(model).__name__} `{model.name}` is not built: it has layers "
                "without weights yet",
                remedy="Call it once, model(x), before to_jax; or begin it with keras.Input.",
            )
        )


def _names(paths: Sequence[str]) -> list[str]:
    """Paths, each once: of layers with one name the second is ``layer#1``."""
    seen: Counter[str] = Counter()
    names = []
    for path in paths:
        module, _, leaf = path.rpartition("/")
        names.append(f"{module}#{seen[path]}/{leaf}" if seen[path] else path)
        seen[path] += 1
    return names


__all__ = ["to_jax"]
