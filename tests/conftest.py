"""What all tests share: float64 for the oracles, rank promotion is an error, small networks."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
    """A fresh, seeded source of random arrays."""
    return np.random.default_rng(0)
