"""Trained models of other libraries as JAX functions, ready to be explained.

Nothing is imported from those libraries before a model of theirs is given.
"""

from relax.adapters import sklearn

__all__ = ["sklearn"]
