"""Layer-wise Relevance Propagation as composable JAX function transforms.

jax.jit(relax.lrp(model.apply, rules))(params, x)
"""

import importlib
from typing import TYPE_CHECKING, Any

from relax import rules
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
from relax.transform import lrp, value_and_lrp, vrp

if TYPE_CHECKING:
    from relax import adapters, bulk, composites, concepts, evaluation, methods, select, viz
    from relax._forms import Composite
    from relax.account import Ledger, ledger
    from relax.concepts import crp
    from relax.custom import custom_relprop
    from relax.names import method
    from relax.outputs import logits
    from relax.plan import Plan, layers
    from relax.sweeps import sweep
    from relax.tuning import tune

__version__ = "0.1.0"

# Imported on first use, with the engine, so that `import relax` stays light.
_LAZY = {
    "Composite": "relax._forms",
    "Ledger": "relax.account",
    "Plan": "relax.plan",
    "adapters": "",
    "bulk": "",
    "composites": "",
    "concepts": "",
    "crp": "relax.concepts",
    "custom_relprop": "relax.custom",
    "evaluation": "",
    "layers": "relax.plan",
    "ledger": "relax.account",
    "logits": "relax.outputs",
    "method": "relax.names",
    "methods": "",
    "select": "",
    "sweep": "relax.sweeps",
    "tune": "relax.tuning",
    "viz": "",
}

__all__ = [
    "ArgumentError",
    "Composite",
    "HyperparameterError",
    "Ledger",
    "Plan",
    "RelaxError",
    "RelaxWarning",
    "RuleError",
    "TargetError",
    "UnmatchedSelectorError",
    "UnsupportedOperationError",
    "__version__",
    "adapters",
    "bulk",
    "composites",
    "concepts",
    "crp",
    "custom_relprop",
    "evaluation",
    "layers",
    "ledger",
    "logits",
    "lrp",
    "method",
    "methods",
    "rules",
    "select",
    "sweep",
    "tune",
    "value_and_lrp",
    "viz",
    "vrp",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'relax' has no attribute {name!r}")
    home = _LAZY[name]
    value = (
        getattr(importlib.import_module(home), name)
        if home
        else importlib.import_module(f"relax.{name}")
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
