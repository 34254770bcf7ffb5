"""The models of the frameworks, enumerated from the frameworks themselves, for `coverage`.

A zoo is a module with one function, `cases(small)`, which yields a `Case` for every model or
layer that its framework has today: nothing is listed by hand, so a model that a new version of
the framework brings turns up by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Model(NamedTuple):
    """A model built, and one input of it.

    f: the framework's own call, in inference mode, f(params, x).
    params: its parameters, a pytree.
    x: the explained input: a float array (or a pytree of them), or integer tokens.
    double: builds the same model in float64, within ``jax.enable_x64``, for one whose rounding in
      float32 is magnified so much that two programs of it cannot be compared.
    """

    f: Callable[..., Any]
    params: Any
    x: Any
    double: Callable[[], Any] | None = None


class Case(NamedTuple):
    """A model or layer of a framework.

    zoo: the name of the zoo, such as "keras.applications" or "flax.linen".
    name: the framework's name of the model, such as "ResNet50" or "LSTMCell".
    build: returns the model; it is built only when its turn comes.
    reason: not empty: the case cannot be built or explained, and why, in one short sentence. It
        is shown in the table, and the case is counted apart.
    """

    zoo: str
    name: str
    build: Callable[[], Model]
    reason: str = ""


# Zoo name -> the module that enumerates it, with `def cases(small: bool) -> Iterator[Case]`.
# `small` asks for what takes seconds rather than minutes: it leaves cases out, and changes none.
ZOOS: dict[str, str] = {
    "keras.applications": "benchmarks.zoos.keras_applications",
    "keras_hub": "benchmarks.zoos.keras_hub",
    "flax.linen": "benchmarks.zoos.linen",
    "flax.nnx": "benchmarks.zoos.nnx",
    "equinox": "benchmarks.zoos.equinox",
    "haiku": "benchmarks.zoos.haiku",
}
