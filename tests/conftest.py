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


_ROWS = 0.2  # of those of a long table
_GOLDEN = (5**0.5 - 1) / 2


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Marks as ``more`` four fifths of the rows of each table of three and more.

    Which ones is always the same, and goes round in every parameter: the first, and those to which
    multiples of the golden ratio fall.
    """
    tables = {}
    for item in items:
        if item.get_closest_marker("slow") is None:
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for rows in tables.values():
        if len(rows) >= 3:
            for number, item in enumerate(rows):
                if number * _GOLDEN % 1 >= _ROWS:
                    item.add_marker("more")
