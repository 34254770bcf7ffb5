"""Models of other libraries as JAX functions, ready to be explained.

Nothing is imported from those libraries before a model of theirs is given.
"""

from relax.adapters import equinox, haiku, keras, lrp_toolbox, nnx, onnx, sklearn, torch

__all__ = ["equinox", "haiku", "keras", "lrp_toolbox", "nnx", "onnx", "sklearn", "torch"]
