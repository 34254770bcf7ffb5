"""A small CNN for digits of MNIST, trained within a minute: what `compare_methods.py` explains."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from decoy_mnist import CLASSES, Digits, load_digits

EPOCHS, BATCH, RATE = 8, 50, 2e-3


class Network(nn.Module):
    """Pictures ``(picture, 28, 28, 1)`` in, logits ``(picture, 10)`` out."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(16, (5, 5))(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(32, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(x)


def trained(digits: Digits) -> Any:
    """The parameters of the network after a few epochs."""
    network, optimizer = Network(), optax.adam(RATE)
    params = jax.jit(network.init)(jax.random.key(0), digits.images[:1])

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = network.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def epoch(params: Any, state: Any, x: jax.Array, labels: jax.Array) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            changes, state = optimizer.update(jax.grad(loss)(params, *batch), state)
            return (optax.apply_updates(params, changes), state), None

        return jax.lax.scan(step, (params, state), (x, labels))[0]

    state, generator = optimizer.init(params), np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = generator.permutation(len(digits.images)).reshape(-1, BATCH)
        params, state = epoch(params, state, digits.images[order], digits.labels[order])
    return params


def explained_network() -> tuple[Callable[..., Any], Any, np.ndarray, np.ndarray]:
    """The network, its parameters, and pictures: those it was trained on, and others it gets right.

    A digit that is misread would be explained as what it is taken for.
    """
    train, test = load_digits()
    params = trained(train)
    apply = Network().apply
    answers = np.asarray(jax.jit(apply)(params, test.images).argmax(-1))
    right = answers == test.labels
    print(f"The network reads {right.mean():.1%} of {len(right)} test digits.", flush=True)
    return apply, params, train.images, test.images[right]


__all__ = ["Network", "explained_network", "trained"]
