"""Layer-wise Relevance Propagation as composable JAX function transforms.

jax.jit(relax.lrp(model.apply, rules))(params, x)
"""

from relax import composites, rules, select
from relax._assign import Composite
from relax._errors import (
    ArgumentError,
    HyperparameterError,
    RelaxError,
    RelaxWarning,
    RuleError,
    TargetError,
    UnmatchedSelectorError,
    UnsupportedOperationError,
)
from relax.custom import custom_relprop
from relax.plan import Plan, layers
from relax.transform import lrp, value_and_lrp, vrp

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Composite",
    "HyperparameterError",
    "Plan",
    "RelaxError",
    "RelaxWarning",
    "RuleError",
    "TargetError",
    "UnmatchedSelectorError",
    "UnsupportedOperationError",
    "__version__",
    "composites",
    "custom_relprop",
    "layers",
    "lrp",
    "rules",
    "select",
    "value_and_lrp",
    "vrp",
]
