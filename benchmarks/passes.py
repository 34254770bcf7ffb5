"""FLOPs of each composite against the gradient: how often it applies a layer's map or transpose.

A gradient is one pass forward and one back. Epsilon needs no more; a rule that keeps one sign of
the contributions needs one pass more, if the inputs of a layer have one sign, and another if they
have two, as the narrow ends of MobileNetV2 have.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any

import jax

import relax
from benchmarks import networks
from benchmarks.counting import Cost, count, gradient_times_input
from benchmarks.report import Table, progress

PICTURES = (
    "epsilon",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
)
TRANSFORMERS = ("attnlrp", "cp_lrp", "attnlrp_vit")
# The most that the FLOPs may be of the gradient's; MobileNetV2 has signed inputs, and none.
CEILINGS = {
    "epsilon": 1.02,
    "epsilon_plus": 1.55,
    "epsilon_plus_flat": 1.55,
    "excitation_backprop": 1.55,
    "epsilon_gamma_box": 1.75,
    "epsilon_alpha2_beta1": 2.6,
    "epsilon_alpha2_beta1_flat": 2.6,
    "attnlrp": 1.05,
    "cp_lrp": 1.05,
}


def composite(name: str) -> Any:
    """A function of `relax.composites`; one that is bounded gets the bounds of pictures."""
    make = getattr(relax.composites, name)
    bounded = "low" in inspect.signature(make).parameters
    return make(low=-3.0, high=3.0) if bounded else make()


def composites_of(network: str) -> tuple[str, ...]:
    """The composites that suit it."""
    return PICTURES if network in networks.PICTURES else TRANSFORMERS


def explained(function: Any, name: str) -> Callable[[Any, jax.Array], jax.Array]:
    """The gradient times the input, or relevance by a composite, of the first logit."""
    if name == "gradient":
        return gradient_times_input(function)
    return relax.lrp(function, composite(name), target=0)


def costs(
    network: str, names: tuple[str, ...], size: int | None = None, batch: int = 1
) -> dict[str, Cost]:
    """The cost of the gradient, under "gradient", and of each composite."""
    function, params, x = networks.shapes(network, size, batch)
    found = {}
    for name in ("gradient", *names):
        progress(f"{network}: {name}")
        found[name] = count(explained(function, name), params, x)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--network", choices=networks.NETWORKS, action="append")
    parser.add_argument("--size", type=int, help="of pictures, in pixels (default: 224)")


def run(arguments: argparse.Namespace) -> list[Table]:
    table = Table(
        "passes",
        "FLOPs by those of the gradient",
        "python -m benchmarks passes",
        ("network", "composite", "FLOPs"),
        labels=2,
    )
    chosen = arguments.network or (["VGG16"] if arguments.small else list(networks.NETWORKS))
    size = arguments.size or (32 if arguments.small else None)
    for network in chosen:
        found = costs(network, composites_of(network), size)
        base = found.pop("gradient")
        for name, cost in found.items():
            table.add(network, name, cost.flops / base.flops)
    return [table]
