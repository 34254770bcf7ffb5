"""Rules for whole networks, under the names of the peers: each returns a `Composite`.

| composite | conv | dense | first layer | |
|---|---|---|---|---|
| `epsilon` | Epsilon | Epsilon | | |
| `epsilon_plus`, `epsilon_plus_flat` | ZPlus | Epsilon | flat: Flat | |
| `epsilon_alpha2_beta1`, `epsilon_alpha2_beta1_flat` | AlphaBeta | Epsilon | flat: Flat | |
| `epsilon_gamma_box` | Gamma | Epsilon | conv: ZBox | |
| `excitation_backprop` | ZPlus | ZPlus | | activations: Gradient |
| `deep_taylor`, `deep_taylor_bounded` | ZPlus, no bias | same | bounded: ZBox | |
| `sequential_preset_a`, `_b` (`_flat`) | AlphaBeta | Epsilon(0.1) | flat: Flat | |
| `guided_backprop`, `deconvnet`, `beta_smooth` | Gradient | Gradient | | ReLU only |
| `arras_lstm` | Epsilon(0.001) | Epsilon(0.001) | | sums: Epsilon |
| `attnlrp` | Epsilon(0) | Epsilon(0) | | softmax: Jacobian |
| `cp_lrp` | Epsilon(0) | Epsilon(0) | | attention: Constant; products: the signal |
| `attnlrp_vit` | Gamma(0.25) | Gamma(0.05) | | softmax: Jacobian |

Every composite takes ``sums=``, a rule for residual sums, means and average pools. The default is
their transpose, which is exact; ``sums=Norm()`` is what Zennit does.
"""

from __future__ import annotations

from typing import Any

from relax import select
from relax._forms import Composite
from relax.rules import (
    AlphaBeta,
    BetaSmooth,
    Constant,
    Deconvnet,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    GuidedBackprop,
    Jacobian,
    Linear,
    Pass,
    Rule,
    SignalTakeAll,
    ZBox,
    ZPlus,
)


def _composite(*entries: tuple[Any, Rule], sums: Rule | None) -> Composite:
    """The entries, and what all composites share.

    Relevance of a picture is that of the preprocessed picture, pixel by pixel: an offset inside the
    model takes none of it. A BatchNorm of its own further up is linear.
    """
    shared = ((select.preprocessing, Pass()), (select.scale_shift, Linear()))
    last = () if sums is None else ((select.sums, sums),)
    return Composite((*entries, *shared, *last), strict=False)


def epsilon(epsilon: Any = 1e-6, *, sums: Rule | None = None) -> Composite:
    """Epsilon on every dense layer and convolution.

    Example:
      >>> import jax.numpy as jnp, relax
      >>> f = lambda w, x: x @ w
      >>> w, x = jnp.array([[1.0], [3.0]]), jnp.array([2.0, 1.0])
      >>> print(relax.lrp(f, relax.composites.epsilon(0.0))(w, x))
      [2. 3.]

    Source: Bach et al. 2015, eq. (58).
    """
    weighted = select.dense | select.conv
    return _composite((weighted, Epsilon(epsilon)), sums=sums)


def epsilon_plus(epsilon: Any = 1e-6, *, sums: Rule | None = None) -> Composite:
    """ZPlus on convolutions, Epsilon on dense layers.

    Source: Zennit's EpsilonPlus; Kohlbrenner et al. 2020 (LRP-CMP).
    """
    return _composite((select.conv, ZPlus()), (select.dense, Epsilon(epsilon)), sums=sums)


def epsilon_plus_flat(epsilon: Any = 1e-6, *, sums: Rule | None = None) -> Composite:
    """As `epsilon_plus`, with Flat on the first layer.

    Source: Zennit's EpsilonPlusFlat; Kohlbrenner et al. 2020.
    """
    return _first(Flat(), epsilon_plus(epsilon, sums=sums))


def epsilon_alpha2_beta1(epsilon: Any = 1e-6, *, sums: Rule | None = None) -> Composite:
    """AlphaBeta(2, 1) on convolutions, Epsilon on dense layers.

    Source: Zennit's EpsilonAlpha2Beta1; Kohlbrenner et al. 2020.
    """
    return _composite(
        (select.conv, AlphaBeta(2.0, 1.0)),
        (select.dense, Epsilon(epsilon)),
        sums=sums,
    )


def epsilon_alpha2_beta1_flat(epsilon: Any = 1e-6, *, sums: Rule | None = None) -> Composite:
    """As `epsilon_alpha2_beta1`, with Flat on the first layer.

    Source: Zennit's EpsilonAlpha2Beta1Flat; Kohlbrenner et al. 2020.
    """
    return _first(Flat(), epsilon_alpha2_beta1(epsilon, sums=sums))


def epsilon_gamma_box(
    low: Any = -1.0,
    high: Any = 1.0,
    gamma: Any = 0.25,
    epsilon: Any = 1e-6,
    *,
    sums: Rule | None = None,
) -> Composite:
    """Gamma on convolutions, Epsilon on dense layers, ZBox on a first convolution.

    Args:
      low, high: bounds of the first layer's input, after preprocessing; scalars or arrays.
      gamma: of `Gamma`; epsilon: of `Epsilon`.
      sums: rule for residual sums, means and average pools; default exact.

    Raises:
      HyperparameterError: ``low > high``.

    Source: Zennit's EpsilonGammaBox; Montavon et al. 2019, section 10.3.
    """
    return _composite(
        (select.first & select.conv, ZBox(low, high)),
        (select.conv, Gamma(gamma)),
        (select.dense, Epsilon(epsilon)),
        sums=sums,
    )


def excitation_backprop(*, sums: Rule | None = None) -> Composite:
    """ZPlus on every dense layer and convolution; activations take their gradient.

    Source: Zhang et al. 2016, eq. (5); Zennit's ExcitationBackprop.
    """
    return _composite(
        (select.dense | select.conv, ZPlus()),
        (select.activation, Gradient()),
        sums=sums,
    )


def deep_taylor(*, sums: Rule | None = None) -> Composite:
    """Deep Taylor decomposition: ZPlus without bias everywhere.

    Meant for explaining an output through a ReLU: ``target=jax.nn.relu``.

    Source: Montavon et al. 2017, section 5.
    """
    weighted = select.dense | select.conv
    return _composite((weighted, ZPlus(zero_bias=True)), sums=sums)


def deep_taylor_bounded(low: Any = -1.0, high: Any = 1.0, *, sums: Rule | None = None) -> Composite:
    """As `deep_taylor`, with ZBox on the first layer.

    Source: Montavon et al. 2017, section 5; iNNvestigate's deep_taylor.bounded.
    """
    return _first(ZBox(low, high), deep_taylor(sums=sums))


def sequential_preset_a(epsilon: Any = 0.1, *, sums: Rule | None = None) -> Composite:
    """AlphaBeta(1, 0) on convolutions, Epsilon(0.1) on dense layers.

    Source: iNNvestigate's lrp.sequential_preset_a.
    """
    return _preset(AlphaBeta(1.0, 0.0), epsilon, sums)


def sequential_preset_a_flat(epsilon: Any = 0.1, *, sums: Rule | None = None) -> Composite:
    """As `sequential_preset_a`, with Flat on the first layer.

    Source: iNNvestigate's lrp.sequential_preset_a_flat.
    """
    return _first(Flat(), sequential_preset_a(epsilon, sums=sums))


def sequential_preset_b(epsilon: Any = 0.1, *, sums: Rule | None = None) -> Composite:
    """AlphaBeta(2, 1) on convolutions, Epsilon(0.1) on dense layers.

    Source: iNNvestigate's lrp.sequential_preset_b.
    """
    return _preset(AlphaBeta(2.0, 1.0), epsilon, sums)


def sequential_preset_b_flat(epsilon: Any = 0.1, *, sums: Rule | None = None) -> Composite:
    """As `sequential_preset_b`, with Flat on the first layer.

    Source: iNNvestigate's lrp.sequential_preset_b_flat.
    """
    return _first(Flat(), sequential_preset_b(epsilon, sums=sums))


def _preset(conv: Rule, epsilon: Any, sums: Rule | None) -> Composite:
    dense = (select.dense, Epsilon(epsilon))
    return _composite((select.conv, conv), dense, sums=sums)


def guided_backprop(*, sums: Rule | None = None) -> Composite:
    """Guided backpropagation of the seed: the gradient, its positive part at every ReLU.

    Not conserving. The seed is the value of the target, as everywhere in relax.

    Source: Springenberg et al. 2015.
    """
    return _modified_gradient(GuidedBackprop(), sums)


def deconvnet(*, sums: Rule | None = None) -> Composite:
    """Deconvnet: the gradient, with a ReLU on what passes back through every ReLU.

    Not conserving. The seed is the value of the target, as everywhere in relax.

    Source: Zeiler and Fergus 2014.
    """
    return _modified_gradient(Deconvnet(), sums)


def beta_smooth(beta: Any = 10.0, *, sums: Rule | None = None) -> Composite:
    """The gradient with every ReLU smoothed to a softplus of sharpness ``beta``.

    Source: Dombrowski et al. 2019.
    """
    return _modified_gradient(BetaSmooth(beta), sums)


def _modified_gradient(relu: Rule, sums: Rule | None) -> Composite:
    summed = () if sums is None else ((select.sums, sums),)
    return Composite(
        (*summed, (select.activation, relu), (select.anything, Gradient())), strict=False
    )


def arras_lstm(
    epsilon: Any = 1e-3, bias_factor: float = 0.0, *, sums: Rule | None = None
) -> Composite:
    """The rules of Arras et al. for LSTMs, and for every other recurrent network with gates.

    Epsilon on dense layers and convolutions, and on sums: that of the cell state, ``f c + i g``. A
    gate, known to lie in [0, 1], takes nothing, and the signal all; activations pass. What is
    computed from the input and from the previous state together, ``x w + h u + b``, is one layer
    with one epsilon.

    Args:
      epsilon: of `Epsilon`; default 0.001.
      bias_factor: the part of biases and epsilons that the inputs share equally; 1 conserves
        relevance exactly.
      sums: rule for sums, means and average pools; default as above.

    Raises:
      HyperparameterError: a negative or non-finite epsilon, a bias factor that is no number.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> def cell(x):  # a gate and a signal
      ...     return jax.nn.sigmoid(x[0]) * jnp.tanh(x[1])
      >>> print(relax.lrp(cell, relax.composites.arras_lstm())(jnp.array([0.0, 1.0])))
      [0.        0.3807971]

    Source: Arras et al. 2017, section 3; bias factor: Arras et al. 2019.
    """
    rule = Epsilon(epsilon, bias_share=bias_factor)
    return _composite((select.dense | select.conv, rule), sums=rule if sums is None else sums)


def attnlrp(epsilon: Any = 0.0, *, sums: Rule | None = None) -> Composite:
    """AttnLRP, for transformers: costs what gradient times input costs.

    Epsilon on dense layers and convolutions; activations pass; the softmax is its Jacobian; a
    product gives half to each operand, but nothing to a gate known to lie in [0, 1]; a
    normalization holds its statistic; shifts, such as position embeddings, absorb their share.

    Args:
      epsilon: of `Epsilon`; 0 is the plain transpose.
      sums: rule for residual sums, means and average pools; default exact.

    Example:
      >>> import jax, jax.numpy as jnp, relax
      >>> def attention(x):
      ...     return jax.nn.softmax(x @ x.T) @ x
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> relax.lrp(attention, relax.composites.attnlrp(), target=0)(x).shape
      (2, 2)

    Source: Achtibat et al. 2024 (AttnLRP).
    """
    return _transformer(Epsilon(epsilon), Epsilon(epsilon), Jacobian(), SignalTakeAll(), sums)


def cp_lrp(epsilon: Any = 0.0, *, sums: Rule | None = None) -> Composite:
    """CP-LRP, conservative propagation: attention weights and gates are constants.

    As `attnlrp`, but nothing passes the softmax of an attention, and a product gives all to its
    signal: to the values of attention, to the linear branch of a SwiGLU. A softmax that multiplies
    nothing, as at the end of a classifier, is its Jacobian. Without biases it conserves exactly.

    Args:
      epsilon, sums: see `attnlrp`.

    Source: Ali et al. 2022 (conservative propagation), sections 4 and 5.
    """
    products = SignalTakeAll(("unit", "softmax", "activation"))
    rest = _transformer(Epsilon(epsilon), Epsilon(epsilon), Jacobian(), products, sums)
    return Composite(((select.attention, Constant()), *rest.entries), strict=False)


def attnlrp_vit(conv: Any = 0.25, dense: Any = 0.05, *, sums: Rule | None = None) -> Composite:
    """AttnLRP for vision transformers: Gamma on the patch embedding and on dense layers.

    Args:
      conv, dense: gamma of convolutions and of dense layers.
      sums: see `attnlrp`.

    Source: Achtibat et al. 2024 (AttnLRP), section 4.1 and appendix.
    """
    rest = _transformer(Gamma(conv), Gamma(dense), Jacobian(), SignalTakeAll(), sums)
    return Composite(((select.preprocessing, Pass()), *rest.entries), strict=False)


def _transformer(
    conv: Rule, dense: Rule, softmax: Rule, product: Rule, sums: Rule | None
) -> Composite:
    summed = () if sums is None else ((select.sums, sums),)
    return Composite(
        (
            (select.conv, conv),
            (select.dense, dense),
            (select.scale_shift | select.norm, Linear()),
            (select.softmax, softmax),
            (select.product, product),
            *summed,
        ),
        strict=False,
    )


def _first(rule: Rule, rest: Composite) -> Composite:
    return Composite(((select.first, rule), *rest.entries), strict=False)


__all__ = [
    "Composite",
    "arras_lstm",
    "attnlrp",
    "attnlrp_vit",
    "beta_smooth",
    "cp_lrp",
    "deconvnet",
    "deep_taylor",
    "deep_taylor_bounded",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "guided_backprop",
    "sequential_preset_a",
    "sequential_preset_a_flat",
    "sequential_preset_b",
    "sequential_preset_b_flat",
]
