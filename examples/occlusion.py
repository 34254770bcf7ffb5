"""What a network loses when a square of a picture is black: the yardstick for relevance."""

from collections.abc import Callable

import jax
import numpy as np
import optax

from decoy_mnist import SIDE

SQUARE = 4
_ROWS = SIDE // SQUARE
# One mask for each square, (square, 1, 28, 28, 1).
_SQUARES = np.kron(
    np.eye(_ROWS**2, dtype=np.float32).reshape(-1, _ROWS, _ROWS),
    np.ones((SQUARE, SQUARE), np.float32),
).reshape(-1, 1, SIDE, SIDE, 1)


def occlude(f: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """How much the value for each picture falls when a square of 4 by 4 pixels is blackened.

    Args:
        f: pictures to one number for each.
        images: ``(picture, 28, 28, 1)``; black is 0.

    Returns:
        An array ``(picture, 49)``.
    """
    without = jax.vmap(lambda square: f(images * (1 - square)))(_SQUARES)
    return f(images)[:, None] - without.T


def agreement(relevance: jax.Array, lost: jax.Array) -> jax.Array:
    """The cosine between the relevance of the squares and what is lost without them, on average.

    Args:
        relevance: of each pixel, ``(picture, 28, 28, 1)``.
        lost: see ``occlude``.
    """
    squares = relevance.reshape(-1, _ROWS, SQUARE, _ROWS, SQUARE).sum((2, 4)).reshape(lost.shape)
    return optax.cosine_similarity(squares, lost, epsilon=1e-6).mean()
