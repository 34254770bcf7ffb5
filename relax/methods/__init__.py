"""Every method of the seed systems in one calling convention: ``method(f, ...)(params, x)``."""

from relax.methods._controls import input, random
from relax.methods._deeplift import deeplift_rescale
from relax.methods._gradients import (
    gradient,
    gradient_x_input,
    integrated_gradients,
    saliency,
    smoothgrad,
)
from relax.methods._modified import (
    deconvnet,
    deep_taylor,
    deep_taylor_bounded,
    elrp,
    excitation_backprop,
    guided_backprop,
)
from relax.methods._occlusion import occlusion, shapley_sampling
from relax.methods._patterns import fit_patterns, pattern_attribution, pattern_net
from relax.methods._rollout import attention_rollout

__all__ = [
    "attention_rollout",
    "deconvnet",
    "deep_taylor",
    "deep_taylor_bounded",
    "deeplift_rescale",
    "elrp",
    "excitation_backprop",
    "fit_patterns",
    "gradient",
    "gradient_x_input",
    "guided_backprop",
    "input",
    "integrated_gradients",
    "occlusion",
    "pattern_attribution",
    "pattern_net",
    "random",
    "saliency",
    "shapley_sampling",
    "smoothgrad",
]
