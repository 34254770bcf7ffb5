"""What a sweep costs against as many separate runs, counted in the compiled program.

    python benchmarks/sweep_cost.py
    python benchmarks/sweep_cost.py --values 8 --size 64

VGG16 and three sweeps: of the gamma of all layers, of the class that is explained, and of the
channel of conv_4_3 through which relevance is let (concept relevance). What does not depend on what
is swept is computed once, so that K gammas cost at most (2 + K) / 2K of K runs. Nothing is run or
timed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import networks
import relax
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


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Of the compiled program."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def ratio(one: Callable[..., Any], swept: Any, params: Any, x: Any) -> float:
    """FLOPs of a sweep by those of as many runs."""
    single = jax.ShapeDtypeStruct(swept.shape[1:], swept.dtype)
    apart = flops(one, single, params, x)
    together = flops(lambda v, p, x: relax.sweep(lambda v: one(v, p, x))(v), swept, params, x)
    return together / (swept.shape[0] * apart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--values", type=int, default=32, metavar="K")
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS")
    arguments = parser.parse_args()
    count = arguments.values
    module = networks.VGG16()
    x = jax.ShapeDtypeStruct((1, arguments.size, arguments.size, 3), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    print(f"VGG16 at {arguments.size} x {arguments.size}, {count} values")
    print(f"{'sweep of':<12}{'FLOPs of the sweep / of as many runs':>38}")
    for name, (one, swept) in sweeps(module.apply, params, x, count).items():
        print(f"{name:<12}{ratio(one, swept, params, x):>38.3f}")
    print(f"{'bound':<12}{(2 + count) / (2 * count):>38.3f}")


if __name__ == "__main__":
    main()
