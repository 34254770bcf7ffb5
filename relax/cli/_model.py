"""What the command line explains: a function, its parameters, and what is known around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from relax.cli._errors import InputError

_PICTURE = 3  # axes of one: height, width, channels


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as the command line takes it: what a function of yours may return to ``--model``.

    Attributes:
      f: ``f(params, x)`` of a batch ``(samples, *shape)``; it returns ``(samples, classes)``, or
        ``(samples,)``. A softmax or sigmoid at its end is taken off.
      params: of ``f``.
      shape: of one sample, such as ``(224, 224, 3)``; ``--input-size`` and an array given as the
        sample stand above it.
      preprocess: from the pixels of a picture, floats from 0 to 255, ``(height, width, channels)``,
        to a sample of the same shape; by default ``pixels / 255``. ``--mean`` and ``--std`` stand
        above it. It should rise or fall with every pixel: bounds of a sample are what it makes of
        black and of white.
      labels: of the classes in their order; a label may be several names with ", " between them.
      name: of the model, for what is printed.
      channels_first: whether ``f`` takes ``(samples, channels, height, width)``. All else here has
        channels last; ``--channels-first`` and ``--channels-last`` stand above it.

    Example:
      >>> import jax.numpy as jnp
      >>> from relax.cli import Model
      >>> def tiny():  # in tiny.py; then: python -m relax explain x.png --model tiny.py:tiny
      ...     f = lambda params, x: x.reshape(len(x), -1) @ params["w"]
      ...     params = {"w": jnp.ones((2 * 2 * 1, 3))}
      ...     return Model(f, params, shape=(2, 2, 1), labels=["cat", "dog", "bird"])
      >>> tiny().bounds()
      (0.0, 1.0)
    """

    f: Callable[..., Any]
    params: Any
    shape: tuple[int, ...] | None = None
    preprocess: Callable[[np.ndarray], Any] | None = None
    labels: Sequence[str] | None = None
    name: str = ""
    channels_first: bool = False

    def sample(self, pixels: np.ndarray) -> np.ndarray:
        """One sample of the pixels of a picture.

        Raises:
          InputError: ``preprocess`` fails, or makes something else of them.
        """
        pixels = np.asarray(pixels, np.float32)
        if self.preprocess is None:
            return pixels / 255
        try:
            x = np.asarray(self.preprocess(pixels))
        except Exception as error:
            raise InputError(
                f"preprocess of {self.name}: {type(error).__name__}: {error}"
            ) from error
        if x.shape != pixels.shape:
            raise InputError(
                f"preprocess of {self.name} makes shape {x.shape} of a picture of {pixels.shape}"
            )
        return x

    def picture_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of its pictures.

        Raises:
          InputError: it takes none, or does not say of which size.
        """
        if self.shape is None:
            raise InputError(
                f"{self.name} does not say how large its pictures are: give --input-size"
            )
        if len(self.shape) != _PICTURE or self.shape[-1] not in (1, 3):
            raise InputError(
                f"{self.name} takes samples of shape {self.shape}, and a picture is (height, "
                "width, 1 or 3); give a sample as a .npy file"
            )
        height, width, channels = self.shape
        return height, width, channels

    def bounds(self) -> tuple[Any, Any]:
        """The least and the largest that a pixel of a sample may be, as rules such as ZBox take it.

        Numbers; arrays that broadcast to a batch if they differ between pixels or channels.
        """
        pixels = np.ones(self.picture_shape(), np.float32)
        black, white = self.sample(0 * pixels), self.sample(255 * pixels)
        ends = np.minimum(black, white), np.maximum(black, white)
        low, high = (
            float(end.flat[0]) if np.ptp(end) == 0 else np.asarray(end)[None] for end in ends
        )
        return low, high
