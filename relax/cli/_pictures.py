"""Pictures from files, in the size that a network takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from relax.cli._errors import InputError


def load_picture(path: str | os.PathLike[str]) -> Any:
    """A picture of pillow, from a file that pillow reads.

    Gray pictures get three equal channels, transparent ones a white ground, and the camera's note
    on how it was held is obeyed.

    Raises:
      InputError: there is no such file, or it is no picture of eight bits a channel.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{str(path)!r} has more than eight bits a channel")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(ground, image)
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(f"{str(path)!r} is no picture of a kind that Pillow knows") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise SyntaxError for a damaged header.
        raise InputError(f"{str(path)!r} is no picture that can be read ({error})") from error


def fit(image: Any, height: int, width: int, channels: int = 3) -> np.ndarray:
    """The largest central part of a picture of that shape, resized with a bicubic filter.

    Args:
      image: of pillow.
      height, width: of the result.
      channels: 3, or 1 for gray.

    Returns:
      Bytes ``(height, width, channels)``.
    """
    from PIL import Image

    scale = min(image.width / width, image.height / height)
    across, down = scale * width, scale * height
    left, top = (image.width - across) / 2, (image.height - down) / 2
    resized = image.convert("RGB" if channels == 3 else "L").resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, left + across, top + down)
    )
    return np.asarray(resized).reshape(height, width, channels)
