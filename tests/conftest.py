"""What all tests share: float64 for the oracles, rank promotion is an error, small networks."""

import os
from importlib.metadata import version

os.environ.setdefault("KERAS_BACKEND", "jax")
# Compiling takes longer than running here; the FLOPs that are counted do not depend on it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_force_host_platform_device_count=4"
    # Later ones end the process at a flag that they do not know.
    + " --xla_cpu_use_fusion_emitters=false"
    * version("jaxlib").startswith("0.10."),
)

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
    """A fresh, seeded source of random arrays."""
    return np.random.default_rng(0)
