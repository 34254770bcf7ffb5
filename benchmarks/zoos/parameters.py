"""Parameters such that a check means something: none of them at the value it starts from."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def drawn(params: Any, seed: int = 0) -> Any:
    """The parameters, but what a framework fills with one number is drawn anew.

    Biases, scales and running statistics start as zeros and ones, under which a bias, a scale or a
    BatchNorm does nothing. Around zero: normal, 0.1 wide; around another number: between half and
    one and a half of it, so that variances stay positive. What is random already, and integers,
    stay as they are.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> Any:
        if not (hasattr(leaf, "dtype") and np.issubdtype(np.asarray(leaf).dtype, np.floating)):
            return leaf
        old = np.asarray(leaf)
        if old.size == 0 or np.any(old != old.flat[0]):
            return leaf
        start = float(old.flat[0])
        new = (
            start * rng.uniform(0.5, 1.5, old.shape) if start else 0.1 * rng.normal(size=old.shape)
        )
        return jax.numpy.asarray(new, old.dtype)

    return jax.tree.map(draw, params)


def normal(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> jax.Array:
    """An input: standard normal."""
    return jax.numpy.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def tokens(shape: tuple[int, ...], count: int, seed: int = 0) -> jax.Array:
    """An input: ids from 1 to below ``count``; 0 often means padding."""
    return jax.numpy.asarray(np.random.default_rng(seed).integers(1, count, shape), np.int32)
