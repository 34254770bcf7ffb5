"""A zoo with one model of each outcome, for tests of the coverage benchmark."""

import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.zoos import Case, Model


def perceptron(params, x):
    return jax.nn.relu(x @ params["hidden"]) @ params["head"]


def sound() -> Model:
    first, second, third = jax.random.split(jax.random.key(0), 3)
    params = {
        "hidden": jax.random.normal(first, (64, 128)),
        "head": jax.random.normal(second, (128, 32)),
    }
    return Model(perceptron, params, jax.random.normal(third, (8, 64)))


def refused() -> Model:
    return Model(lambda params, x: jnp.linalg.qr(x)[0], {}, jnp.eye(3))


def absent() -> Model:
    raise ValueError("no such size")


def crash() -> Model:
    os._exit(3)


def cases(small: bool) -> Iterator[Case]:
    yield Case("planted", "Sound", sound)
    yield Case("planted", "Refused", refused)
    yield Case("planted", "Absent", absent)
    yield Case("planted", "Crash", crash)
    yield Case("planted", "After", sound)
    yield Case("planted", "Abstract", absent, "a base class")
    if not small:
        yield Case("planted", "Large", sound)
