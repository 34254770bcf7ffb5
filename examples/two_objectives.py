"""Training with two losses at once: the weights of a network on one, a rule's gamma on another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from decoy_mnist import SIDE, Digits

BATCH = 64
FEW = 4  # pictures of a batch that gamma is trained on
OPTIMIZER = optax.transforms.partition(
    {"weights": optax.adam(2e-3), "gamma": optax.adam(5e-2)}, ("weights", "gamma")
)

Loss = Callable[..., jax.Array]  # of weights, log(gamma), pictures and labels: a number


class State(NamedTuple):
    """What a step of training changes.

    Attributes:
        parameters: the weights, and log(gamma): whatever is added to it, gamma stays positive.
        optimizer: the state of ``OPTIMIZER``.
    """

    parameters: tuple[Any, jax.Array]
    optimizer: Any

    @property
    def params(self) -> Any:
        return self.parameters[0]

    @property
    def gamma(self) -> float:
        return float(jnp.exp(self.parameters[1]))


def start(params: Any, gamma: float) -> State:
    """Where training begins."""
    parameters = params, jnp.log(jnp.float32(gamma))
    return State(parameters, OPTIMIZER.init(parameters))


def compile_step(state: State, loss: Loss, loss_of_gamma: Loss | None) -> Any:
    """One step of training.

    Args:
        state: one of the right shapes.
        loss: what the weights are trained on.
        loss_of_gamma: what gamma is trained on, with the first pictures of each batch; None leaves
            it as it is.

    Returns:
        A compiled function of a state, pictures and labels; it returns the next state.
    """

    def step(state: State, images: jax.Array, labels: jax.Array) -> State:
        of_weights = jax.grad(loss)(*state.parameters, images, labels)
        of_gamma = jnp.zeros_like(state.parameters[1])
        if loss_of_gamma is not None:
            few = images[:FEW], labels[:FEW]
            of_gamma = jax.grad(loss_of_gamma, argnums=1)(*state.parameters, *few)
        updates, optimizer = OPTIMIZER.update((of_weights, of_gamma), state.optimizer)
        return State(optax.apply_updates(state.parameters, updates), optimizer)

    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 1), np.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), np.int32)
    return jax.jit(step).lower(state, images, labels).compile()


def count_flops(step: Any) -> float:
    """The FLOPs of a compiled step, as XLA counts them."""
    return step.cost_analysis()["flops"]


def train(step: Any, state: State, digits: Digits, steps: int, seed: int = 0) -> State:
    """As many steps as asked for, on batches drawn by lot."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        batch = rng.integers(len(digits.labels), size=BATCH)
        state = step(state, digits.images[batch], digits.labels[batch])
    return state
