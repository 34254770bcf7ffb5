"""EfficientNet-Lite0 with its trained weights: a plain Flax module that knows nothing of relevance.

It is what ``python -m relax explain`` explains as well, so it stands with the command line, in
``relax/cli/networks/efficientnet_lite.py``.
"""

from relax.cli.networks.efficientnet_lite import (
    CLASSES,
    IMAGE_SIZE,
    EfficientNetLite0,
    InvertedBottleneck,
    load_variables,
    preprocess,
)

__all__ = [
    "CLASSES",
    "IMAGE_SIZE",
    "EfficientNetLite0",
    "InvertedBottleneck",
    "load_variables",
    "preprocess",
]
