"""What a sweep costs against as many separate runs, counted in the compiled program.

VGG16 and three sweeps: of the gamma of all layers, of the class that is explained, and of the
channel of conv_4_3 through which relevance is let (concept relevance). What does not depend on what
is swept is computed once, so that K gammas cost at most (2 + K) / 2K of K runs. Nothing is run or
timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import relax
from benchmarks import networks
from benchmarks.counting import count
from benchmarks.report import Table
from relax import composites, rules

CONCEPTS = "conv_4_3", 512


def sweeps(function: Any, params: Any, x: Any, values: int) -> dict[str, tuple[Any, Any]]:
    """For each sweep the function of one value, of the parameters and of the input; and values."""

    def gamma(value: jax.Array, params: Any, x: jax.Array) -> jax.Array:
        return relax.lrp(function, rules.Gamma(value), target=0)(params, x)

    def target(value: jax.Array, params: Any, x: jax.Array) -> jax.Array:
        return relax.lrp(function, composites.epsilon_plus(), target=value[None])(params, x)

    def channel(value: jax.Array, params: Any, x: jax.Array) -> jax.Array:
        layer, width = CONCEPTS
        mask = rules.Mask(jax.nn.one_hot(value, width))
        return relax.lrp(function, [(layer, mask), composites.epsilon_plus()], target=0)(params, x)

    number = jax.ShapeDtypeStruct((values,), jnp.int32)
    return {
        "gamma": (gamma, jax.ShapeDtypeStruct((values,), jnp.float32)),
        "target": (target, number),
        "channel": (channel, number),
    }


def ratio(one: Callable[..., Any], swept: Any, params: Any, x: Any) -> float:
    """FLOPs of a sweep by those of as many runs."""
    single = jax.ShapeDtypeStruct(swept.shape[1:], swept.dtype)
    apart = count(one, single, params, x).flops
    together = lambda v, p, x: relax.sweep(lambda v: one(v, p, x))(v)
    return count(together, swept, params, x).flops / (swept.shape[0] * apart)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--values", type=int, metavar="K", help="how many (default: 32)")


def run(arguments: argparse.Namespace) -> list[Table]:
    values = arguments.values or (4 if arguments.small else 32)
    function, params, x = networks.shapes("VGG16", 32 if arguments.small else None)
    table = Table(
        "sweep",
        f"FLOPs of a sweep over {values} values by those of {values} runs, VGG16",
        "python -m benchmarks sweep",
        ("sweep of", "FLOPs"),
        digits=3,
    )
    for name, (one, swept) in sweeps(function, params, x, values).items():
        table.add(name, ratio(one, swept, params, x))
    table.add("(2 + K) / 2K", (2 + values) / (2 * values))
    return [table]
