"""What relevance through loops costs, counted in the compiled program: memory, FLOPs and size.

    python benchmarks/loop_cost.py

Each against gradient times input of the same function. First 48 transformer blocks in a
``lax.scan``, plain and under `jax.checkpoint` with two policies: what is saved in the forward pass
is most of the memory. Then an LSTM over sequences of three lengths: the size of the program does
not depend on the number of steps. XLA counts the FLOPs of one round of a loop only, so they are
shown where that is the program: for the blocks, and for eight steps that are unrolled. Nothing is
run or timed.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import relax
from transformer_cost import gradient_times_input

POLICIES = jax.checkpoint_policies
BLOCKS: dict[str, Any] = {
    "48 blocks": lambda step: step,
    "checkpoint": jax.checkpoint,
    "checkpoint, products saved": lambda step: jax.checkpoint(
        step, policy=POLICIES.dots_with_no_batch_dims_saveable
    ),
}
LENGTHS = (32, 256, 2048)


def blocks(wrap: Any, depth: int = 48, width: int = 128, time: int = 128) -> tuple[Any, Any, Any]:
    """Pre-norm transformer blocks with stacked parameters; function, parameters and input."""

    def norm(x: jax.Array) -> jax.Array:
        return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def step(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        q, k, v = (norm(x) @ p[name] for name in "qkv")
        weights = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / width**0.5)
        x = x + weights @ v @ p["o"]
        return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"], None

    def network(params: Any, x: jax.Array) -> jax.Array:
        return lax.scan(wrap(step), x, params)[0].mean(1)

    shapes = dict.fromkeys("qkvo", (width, width))
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    params = {n: jax.ShapeDtypeStruct((depth, *s), jnp.float32) for n, s in shapes.items()}
    return network, params, jax.ShapeDtypeStruct((4, time, width), jnp.float32)


def lstm(time: int, width: int = 128, unroll: bool = False) -> tuple[Any, Any, Any]:
    """An LSTM and a dense layer on its last state; function, parameters and input."""

    def network(p: Any, x: jax.Array) -> jax.Array:
        def step(carry: Any, x: jax.Array) -> tuple[Any, None]:
            h, c = carry
            i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((x.shape[0], width))
        (h, _), _ = lax.scan(step, (start, start), jnp.swapaxes(x, 0, 1), unroll=unroll)
        return h @ p["head"]

    shapes = {"w": (width, 4 * width), "u": (width, 4 * width), "b": (1, 4 * width)}
    shapes["head"] = (width, 10)
    params = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    return network, params, jax.ShapeDtypeStruct((16, time, width), jnp.float32)


def count(function: Any, *args: Any) -> tuple[float, float, int]:
    """FLOPs, bytes of temporaries and output, and instructions of the compiled program."""
    compiled = jax.jit(function).lower(*args).compile()
    memory = compiled.memory_analysis()
    instructions = sum(" = " in line for line in compiled.as_text().splitlines())
    size = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return compiled.cost_analysis()["flops"], size, instructions


def compare(name: str, network: tuple[Any, Any, Any], rules: Any, rounds: bool = False) -> None:
    """Prints one row: the gradient, and relevance against it; ``rounds``: FLOPs are of one."""
    function, params, x = network
    base = count(gradient_times_input(function), params, x)
    own = count(relax.lrp(function, rules, target=0), params, x)
    print(
        f"{name:<28}{base[1] / 2**20:>8.1f}{own[1] / 2**20:>8.1f}{own[1] / base[1]:>8.2f}"
        f"{'' if rounds else format(own[0] / base[0], '.3f'):>8}{base[2]:>8}{own[2]:>8}"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    print(f"{'':<28}{'gradient':>8}{'relax':>8}{'':>8}{'FLOPs':>8}{'instructions':>16}")
    print(f"{'':<28}{'MiB':>8}{'MiB':>8}{'ratio':>8}{'ratio':>8}{'grad.':>8}{'relax':>8}")
    for name, wrap in BLOCKS.items():
        compare(name, blocks(wrap), relax.composites.attnlrp())
    rules = relax.composites.arras_lstm()
    compare("LSTM, 8 steps unrolled", lstm(8, unroll=True), rules)
    for time in LENGTHS:
        compare(f"LSTM, {time} steps", lstm(time), rules, rounds=True)


if __name__ == "__main__":
    main()
