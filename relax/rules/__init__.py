"""The catalogue of rules: each a frozen pytree dataclass, hyper-parameters are leaves.

| rule | for | in one line |
|---|---|---|
| `Epsilon`, `Norm` | affine; sums | proportional shares, stabilized |
| `ZPlus`, `ExcitationBackprop` | affine | positive contributions only |
| `AlphaBeta` | affine | positive and negative contributions apart |
| `Gamma` (`GeneralizedGamma`), `TextbookGamma` | affine | favors positive weights |
| `WSquare`, `Flat`, `ZBox` | first layer | independent of the input, or for inputs in a box |
| `Pass` | activations | unchanged |
| `GuidedBackprop`, `Deconvnet`, `BetaSmooth` | ReLU | modified gradients |
| `Rescale` | activations | DeepLIFT's difference quotient |
| `Linear`, `Winner` | linear layers; max and its kin | the transpose; the chosen one |
| `Jacobian`, `Constant` | softmax | first-order expansion; nothing passes |
| `Uniform`, `SignalTakeAll`, `Left`, `Right` | products | half each; all to the signal or a side |
| `Identity`, `LayerNormRule` | normalizations | unchanged; the LN-rule |
| `Lookup` | embeddings | sum over the features |
| `Custom` | functions under `relax.custom_relprop` | their own |
| `Gradient`, `Mask` | any | plain gradient; a mask in front of another rule |

`PerRound` gives a hyper-parameter, or a mask, a value for each round of a scan.
"""

from relax._numerics import divide, stabilize
from relax.rules._base import PerRound, Rule, static
from relax.rules._maps import AffineMap, ElementwiseMap, LinearMap
from relax.rules.activation import (
    ActivationRule,
    BetaSmooth,
    Deconvnet,
    GuidedBackprop,
    Pass,
    Rescale,
)
from relax.rules.affine import (
    AffineRule,
    AlphaBeta,
    Epsilon,
    ExcitationBackprop,
    Norm,
    ZPlus,
)
from relax.rules.gamma import Gamma, GeneralizedGamma, TextbookGamma
from relax.rules.general import Custom, Gradient, Linear, Lookup, Mask, Winner
from relax.rules.input import Flat, WSquare, ZBox
from relax.rules.normalization import Identity, LayerNormRule, NormalizationRule
from relax.rules.product import Left, ProductRule, Right, SignalTakeAll, Uniform
from relax.rules.softmax import Constant, Jacobian, SoftmaxRule

__all__ = [
    "ActivationRule",
    "AffineMap",
    "AffineRule",
    "AlphaBeta",
    "BetaSmooth",
    "Constant",
    "Custom",
    "Deconvnet",
    "ElementwiseMap",
    "Epsilon",
    "ExcitationBackprop",
    "Flat",
    "Gamma",
    "GeneralizedGamma",
    "Gradient",
    "GuidedBackprop",
    "Identity",
    "Jacobian",
    "LayerNormRule",
    "Left",
    "Linear",
    "LinearMap",
    "Lookup",
    "Mask",
    "Norm",
    "NormalizationRule",
    "Pass",
    "PerRound",
    "ProductRule",
    "Rescale",
    "Right",
    "Rule",
    "SignalTakeAll",
    "SoftmaxRule",
    "TextbookGamma",
    "Uniform",
    "WSquare",
    "Winner",
    "ZBox",
    "ZPlus",
    "divide",
    "stabilize",
    "static",
]
