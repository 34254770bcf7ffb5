"""The table of names that users of other systems know, and what each stands for here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from relax import composites, methods, rules
from relax.rules._base import text


@dataclasses.dataclass(frozen=True)
class Entry:
    """One name of one system.

    Attributes:
      system, name: such as "innvestigate" and "lrp.epsilon".
      path: what it is here: a function of `relax.methods`, a composite, or a rule that is given
        alone and so goes to every dense layer and convolution.
      fixed: options that the name stands for.
      options: the system's own options, and what they are called here. A pair: the name here, and
        a function of the value.
      note: where the two differ.
    """

    system: str
    name: str
    path: str
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def call(self) -> str:
        """How it is written here."""
        return written(self.path, self.fixed)


def written(path: str, options: Mapping[str, Any]) -> str:
    """A call of relax, as one would write it."""
    words = ", ".join(f"{name}={_shown(value)}" for name, value in options.items())
    if path.startswith("methods."):
        return f"relax.{path}(f{', ' if words else ''}{words})"
    return f"relax.lrp(f, relax.{path}({words}))"


def _shown(value: Any) -> str:
    if isinstance(value, rules.Rule):
        return f"relax.rules.{text(value)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_shown(v)}" for k, v in value.items()) + "}"
    return repr(value) if isinstance(value, (str, bool, int, float, tuple)) else text(value)


def _not(value: Any) -> bool:
    return not value


_BIAS = {"bias": ("zero_bias", _not)}
_RANGE = {"low": "low", "high": "high"}
_UNIFORM = {"sums": rules.Flat()}  # in average pools every input gets the same
_NORM = {"sums": rules.Norm()}
_FULL_BIAS = "iNNvestigate has the whole bias in both denominators; here it is split by its sign"
_ONE = "starts from a gradient of one, here from the value of the target"
_NOT_SHARED = "each part gets the whole change; here it is shared by the numbers of the window"


def _relax() -> list[Entry]:
    own = [
        Entry("relax", name, f"methods.{name}")
        for name in methods.__all__
        if name != "fit_patterns"
    ]
    taken = {entry.name for entry in own}
    makers = [name for name in composites.__all__ if name[0].islower() and name not in taken]
    return own + [Entry("relax", name, f"composites.{name}") for name in makers]


def _innvestigate() -> list[Entry]:
    make = functools.partial(Entry, "innvestigate")
    presets = [
        make(f"lrp.sequential_preset_{x}", f"composites.sequential_preset_{x}", note=_FULL_BIAS)
        for x in ("a", "a_flat", "b", "b_flat")
    ]
    alpha_beta = [
        make(
            f"lrp.alpha_{a}_beta_{b}{ending}",
            "rules.AlphaBeta",
            {"alpha": float(a), "beta": float(b), "zero_bias": bool(ending)},
            note="" if ending else _FULL_BIAS,
        )
        for a, b in ((2, 1), (1, 0))
        for ending in ("", "_IB")
    ]
    return [
        make("input", "methods.input"),
        make("random", "methods.random", note="normal numbers, from a key"),
        make("gradient", "methods.gradient"),
        make("gradient.baseline", "methods.gradient"),
        make("input_t_gradient", "methods.gradient_x_input"),
        make("deconvnet", "methods.deconvnet"),
        make("guided_backprop", "methods.guided_backprop"),
        make(
            "integrated_gradients",
            "methods.integrated_gradients",
            {"steps": 64, "quadrature": "left"},
            {"reference_inputs": "baseline"},
        ),
        make(
            "smoothgrad",
            "methods.smoothgrad",
            {"samples": 64, "stdev": 1.0},
            {"augment_by_n": "samples", "noise_scale": "stdev"},
            "needs a key",
        ),
        make("lrp.z", "rules.Epsilon", {"epsilon": 0.0}, _BIAS),
        make("lrp.epsilon", "rules.Epsilon", {"epsilon": 1e-7, "zero_bias": False}, _BIAS),
        make("lrp.w_square", "rules.WSquare", {"zero_bias": True}),
        make("lrp.flat", "rules.Flat"),
        make("lrp.alpha_beta", "rules.AlphaBeta", {}, _BIAS, _FULL_BIAS),
        *alpha_beta,
        make("lrp.z_plus", "rules.ZPlus", {"zero_bias": True}),
        make(
            "lrp.z_plus_fast",
            "rules.ZPlus",
            {"zero_bias": True},
            note="iNNvestigate's holds for inputs >= 0 only, where both agree",
        ),
        *presets,
        make("deep_taylor", "methods.deep_taylor", _UNIFORM),
        make("deep_taylor.bounded", "methods.deep_taylor_bounded", _UNIFORM, _RANGE),
        make("pattern.net", "methods.pattern_net", note="patterns: relax.methods.fit_patterns"),
        make(
            "pattern.attribution",
            "methods.pattern_attribution",
            note="patterns: relax.methods.fit_patterns",
        ),
    ]


def _deepexplain() -> list[Entry]:
    make = functools.partial(Entry, "deepexplain")
    return [
        make("saliency", "methods.saliency"),
        make("grad*input", "methods.gradient_x_input"),
        make("intgrad", "methods.integrated_gradients", {"steps": 100, "quadrature": "right"}),
        make("elrp", "methods.elrp"),
        make(
            "deeplift",
            "methods.deeplift_rescale",
            note="max-pools: by their gradient there, so that the sum is not complete",
        ),
        make(
            "occlusion",
            "methods.occlusion",
            {"strides": 1},
            {"window_shape": "window", "step": "strides"},
            "windows are cut off at the border, not left out",
        ),
        make(
            "shapley_sampling",
            "methods.shapley_sampling",
            {"permutations": 5},
            {"samples": "permutations"},
            "needs a key; sampling_dims: groups",
        ),
    ]


def _zennit() -> list[Entry]:
    make = functools.partial(Entry, "zennit")
    named = {
        "EpsilonGammaBox": "epsilon_gamma_box",
        "EpsilonPlus": "epsilon_plus",
        "EpsilonPlusFlat": "epsilon_plus_flat",
        "EpsilonAlpha2Beta1": "epsilon_alpha2_beta1",
        "EpsilonAlpha2Beta1Flat": "epsilon_alpha2_beta1_flat",
        "ExcitationBackprop": "excitation_backprop",
    }
    modified = {
        "GuidedBackprop": "guided_backprop",
        "Deconvnet": "deconvnet",
        "BetaSmooth": "beta_smooth",
    }
    return [
        *(make(name, f"composites.{path}", _NORM) for name, path in named.items()),
        *(make(name, f"composites.{path}") for name, path in modified.items()),
        make("Gradient", "methods.gradient"),
        make(
            "SmoothGrad",
            "methods.smoothgrad",
            {"samples": 20},
            {"n_iter": "samples"},
            "needs a key; there the last of the samples has no noise",
        ),
        make(
            "IntegratedGradients",
            "methods.integrated_gradients",
            {"steps": 20, "quadrature": "right"},
            {"n_iter": "steps"},
        ),
        make(
            "Occlusion",
            "methods.occlusion",
            {"window": 8, "strides": 8},
            {"stride": "strides"},
            "gives the output with all but the window removed, not what the window changes",
        ),
    ]


def _captum() -> list[Entry]:
    make = functools.partial(Entry, "captum")
    baselines = {
        "baselines": "baseline",
        "internal_batch_size": "batch_size",
        "perturbations_per_eval": "batch_size",
    }
    return [
        make("Saliency", "methods.saliency"),
        make("InputXGradient", "methods.gradient_x_input"),
        make(
            "IntegratedGradients",
            "methods.integrated_gradients",
            {"quadrature": "gauss_legendre"},
            baselines | {"n_steps": "steps"},
        ),
        make("DeepLift", "methods.deeplift_rescale", {}, {"baselines": "baseline"}),
        make("GuidedBackprop", "methods.guided_backprop", note=_ONE),
        make("Deconvolution", "methods.deconvnet", note=_ONE),
        make("FeatureAblation", "methods.occlusion", {}, baselines, "feature_mask: see shapley"),
        make(
            "Occlusion",
            "methods.occlusion",
            {"strides": 1},
            baselines | {"sliding_window_shapes": "window"},
            _NOT_SHARED,
        ),
        make(
            "ShapleyValueSampling",
            "methods.shapley_sampling",
            {"permutations": 25},
            baselines | {"n_samples": "permutations", "feature_mask": "groups"},
            "needs a key; a group shares what it adds",
        ),
        make(
            "NoiseTunnel",
            "methods.smoothgrad",
            {"samples": 5, "stdev": 1.0},
            {"nt_samples": "samples", "stdevs": "stdev"},
            "needs a key; what is averaged: explain",
        ),
        make(
            "LRP", "rules.Epsilon", {"epsilon": 1e-9}, note="its default rule; rules by layer: lrp"
        ),
    ]


OTHERWISE = {
    "lrp": "relax.lrp(f, rules), where rules is a rule, a composite or a mapping by layer.",
    "lrp.sequential_preset_b_flat_until_idx": "layers have names in the place of numbers: "
    "relax.lrp(f, [('conv_1', rules.Flat()), ('conv_2', rules.Flat()), "
    "composites.sequential_preset_b()]).",
    "deep_lift.wrapper": "relax.methods.deeplift_rescale(f).",
    "zero": "jax.numpy.zeros_like(x).",
    "DeepLiftShap": "the mean of relax.methods.deeplift_rescale over baselines, by jax.vmap.",
    "GradientShap": "the mean of relax.methods.integrated_gradients over baselines, by jax.vmap.",
    "LayerGradCam": "no Grad-CAM; relax.lrp(f, rules, at=layer) has relevance at any layer.",
    "LayerLRP": "relax.lrp(f, rules, at=layer).",
}

TABLE: tuple[Entry, ...] = (
    *_relax(),
    *_innvestigate(),
    *_deepexplain(),
    *_zennit(),
    *_captum(),
)

__all__ = ["OTHERWISE", "TABLE", "Entry", "written"]
