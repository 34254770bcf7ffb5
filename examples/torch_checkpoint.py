"""Reads a PyTorch checkpoint without PyTorch and without running what is in it.

The reader stands in ``relax/cli/networks/torch_checkpoint.py``, where the command line needs it.
"""

from relax.cli.networks.torch_checkpoint import CheckpointError, load_checkpoint, load_nested

__all__ = ["CheckpointError", "load_checkpoint", "load_nested"]
