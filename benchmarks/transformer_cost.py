"""What AttnLRP and CP-LRP cost, counted in the compiled program: FLOPs and memory.

    python benchmarks/transformer_cost.py

Each against gradient times input of the same network: the same function, traced once and compiled
for this machine. FLOPs are those of ``cost_analysis()``, memory the peak of temporaries of
``memory_analysis()``, plus the output. Nothing is run or timed, so that any machine gives these
numbers, up to the version of XLA.
"""

import argparse
from typing import Any

import jax

import relax
from networks import NETWORKS, shapes

RULES = {
    "attnlrp": relax.composites.attnlrp,
    "cp_lrp": relax.composites.cp_lrp,
    "attnlrp_vit": relax.composites.attnlrp_vit,
}


def gradient_times_input(function: Any) -> Any:
    """x times the gradient of the first logit."""

    def explain(params: Any, x: jax.Array) -> jax.Array:
        return x * jax.grad(lambda x: function(params, x)[:, 0].sum())(x)

    return explain


def count(function: Any, *args: Any) -> tuple[float, float]:
    """FLOPs, and bytes of temporaries and output, of the compiled program."""
    compiled = jax.jit(function).lower(*args).compile()
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis()
    return cost["flops"], memory.temp_size_in_bytes + memory.output_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, action="append")
    arguments = parser.parse_args()
    print(f"{'network':<18}{'rules':<14}{'FLOPs':>10}{'ratio':>8}{'MiB':>9}{'ratio':>8}")
    for name in arguments.network or NETWORKS:
        function, params, x = shapes(name)
        base = count(gradient_times_input(function), params, x)
        print(f"{name:<18}{'gradient':<14}{base[0]:>10.3g}{'':>8}{base[1] / 2**20:>9.1f}")
        for rules, make in RULES.items():
            flops, size = count(relax.lrp(function, make(), target=0), params, x)
            print(
                f"{'':<18}{rules:<14}{flops:>10.3g}{flops / base[0]:>8.3f}"
                f"{size / 2**20:>9.1f}{size / base[1]:>8.3f}"
            )


if __name__ == "__main__":
    main()
