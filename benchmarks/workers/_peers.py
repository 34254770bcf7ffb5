"""The peers: in which environment and by which worker each explains what."""

from __future__ import annotations

import dataclasses

GRADIENT = "gradient"
SHARED = ("epsilon", "epsilon_plus")
ZENNIT = (
    *SHARED,
    "epsilon_plus_flat",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "excitation_backprop",
    "guided_backprop",
    "deconvnet",
    "beta_smooth",
)
INNVESTIGATE = (
    GRADIENT,
    "z",
    "epsilon",
    "alpha2_beta1",
    "sequential_preset_a",
    "sequential_preset_b",
    "sequential_preset_a_flat",
    "sequential_preset_b_flat",
)
ATTENTION = ("attnlrp", "cp_lrp")
LXT = {"Llama": ATTENTION, "BERT": ("attnlrp",), "ViT": ("cp_lrp",)}
PICTURES = ("LeNet", "VGG16", "ResNet50")
TRANSFORMERS = ("Llama", "BERT", "ViT")


@dataclasses.dataclass(frozen=True)
class Peer:
    """A peer and what it explains.

    Attributes:
        environment: of `benchmarks.environments`, or None: this one.
        worker: a module of `benchmarks.workers`, or None: never seen to install.
        methods: of each network, under the names that relax has for them.
        floor: the peer that has the gradient of its framework.
        alone: whether each method needs a process of its own.
        differs: methods that it defines otherwise than relax, so that they cannot agree.
    """

    environment: str | None
    worker: str | None
    methods: dict[str, tuple[str, ...]]
    floor: str = "PyTorch"
    alone: bool = False
    differs: tuple[str, ...] = ()


PEERS: dict[str, Peer] = {
    "PyTorch": Peer(
        "torch", "torch_worker", dict.fromkeys((*PICTURES, *TRANSFORMERS), (GRADIENT,))
    ),
    "Zennit": Peer("torch", "zennit_worker", dict.fromkeys(PICTURES, ZENNIT)),
    "Captum": Peer(
        "torch", "captum_worker", dict.fromkeys(("LeNet", "VGG16"), SHARED), differs=SHARED[1:]
    ),
    "LXT": Peer("torch", "lxt_worker", LXT, alone=True),
    "autoLRP": Peer(
        "torch",
        "autolrp_worker",
        dict.fromkeys(PICTURES, SHARED) | dict.fromkeys(TRANSFORMERS, ATTENTION),
        differs=(*SHARED, *ATTENTION),
    ),
    "iNNvestigate": Peer(
        "innvestigate",
        "innvestigate_worker",
        {"LeNet": INNVESTIGATE},
        "iNNvestigate",
        differs=INNVESTIGATE[3:],
    ),
    "LRP Toolbox": Peer("lrp-toolbox", None, {}, "iNNvestigate"),
    "DeepExplain": Peer("deepexplain", None, {}, "iNNvestigate"),
}
