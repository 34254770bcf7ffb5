"""Resizing of images: one axis after another, each a matrix that is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relax.adapters.onnx._node import Node, Value, axes_of, known, known_ints


def _resize(node: Node, x: Value, *given: Value) -> Value:
    if node.opset < 11:
        given = (None, *given)
    _, scales, sizes = (*given, None, None, None)[:3]
    axes = axes_of(node, node.get("axes") or list(range(x.ndim)), x.ndim)
    if sizes is not None and sizes.size:
        new = known_ints(node, sizes, "its size")
        factors = [n / x.shape[axis] for n, axis in zip(new, axes, strict=True)]
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [(min if policy == "not_larger" else max)(factors)] * len(factors)
            new = [int(f * x.shape[a] + 0.5) for f, a in zip(factors, axes, strict=True)]
    else:
        factors = [float(f) for f in known(node, scales, "its scale").ravel()]
        new = [int(np.floor(f * x.shape[a])) for f, a in zip(factors, axes, strict=True)]
    return _resized(node, x, axes, factors, new)


def _resized(
    node: Node, x: Value, axes: tuple[int, ...], factors: list[float], new: list[int]
) -> Value:
    for axis, factor, size in zip(axes, factors, new, strict=True):
        if factor == 1 and size == x.shape[axis]:
            continue
        if node.get("mode", "nearest") == "nearest":
            places = _places(node, np.arange(size, dtype=float), x.shape[axis], factor)
            x = jnp.take(x, _nearest(node, places, x.shape[axis]), axis, mode="clip")
            continue
        # Of literals, as in jax.image.resize: a matrix that is an array would be a layer's weight.
        places = _places(node, jnp.arange(size, dtype=float), x.shape[axis], factor)
        weights = _weights(node, places, x.shape[axis], factor).astype(x.dtype)
        x = jnp.moveaxis(jnp.tensordot(x, weights, [[axis], [1]]), -1, axis)
    return x


def _places(node: Node, i: Any, old: int, factor: float) -> Any:
    """Where, in the coordinates of the input, the elements i of the output lie."""
    new = len(i)
    default = "asymmetric" if node.opset < 11 else "half_pixel"
    mode = node.get("coordinate_transformation_mode", default)
    if mode == "align_corners":
        return i * (old - 1) / (factor * old - 1) if new > 1 else 0 * i
    if mode == "asymmetric":
        return i / factor
    if mode == "pytorch_half_pixel":
        return (i + 0.5) / factor - 0.5 if new > 1 else 0 * i
    if mode == "half_pixel":
        return (i + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        return (old / 2) * (1 - new / (factor * old)) + (i + 0.5) / factor - 0.5
    raise node.unsupported(f"coordinate_transformation_mode {mode}")


def _nearest(node: Node, places: np.ndarray, old: int) -> np.ndarray:
    default = "floor" if node.opset < 11 else "round_prefer_floor"
    found = {
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
        "floor": np.floor(places),
        "ceil": np.ceil(places),
    }[node.get("nearest_mode", default)]
    return np.clip(found, 0, old - 1).astype(np.int32)


def _weights(node: Node, places: jax.Array, old: int, factor: float) -> jax.Array:
    """Output by input: what an element of the output takes of each of the input.

    With ``antialias`` the kernel is as much wider as the image gets smaller.
    """
    cubic = node.get("mode") == "cubic"
    narrow = min(factor, 1.0) if node.get("antialias", 0) else 1.0
    reach = int(np.ceil((2 if cubic else 1) / narrow))
    first = jnp.floor(places).astype(jnp.int32) - reach
    around = first[:, None] + jnp.arange(2 * reach + 2, dtype=jnp.int32)[None]
    distance = jnp.abs(around - places[:, None]) * narrow
    kernel = _cubic(distance, node.get("cubic_coeff_a", -0.75)) if cubic else 1 - distance
    kernel = jnp.where(distance < (2 if cubic else 1), kernel, 0.0)
    if node.get("exclude_outside", 0):
        kernel = jnp.where((around >= 0) & (around < old), kernel, 0.0)
    if node.get("exclude_outside", 0) or narrow < 1:
        kernel = kernel / kernel.sum(1, keepdims=True)
    inside = jnp.clip(around, 0, old - 1)[:, :, None] == jnp.arange(old)[None, None]
    return jnp.sum(jnp.where(inside, kernel[:, :, None], 0.0), 1)


def _cubic(d: jax.Array, a: float) -> jax.Array:
    """The kernel of Keys 1981, "Cubic convolution interpolation for digital image processing"."""
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return jnp.where(d <= 1, near, far)


def _upsample(node: Node, x: Value, scales: Value = None) -> Value:
    given = node.get("scales") if scales is None else known(node, scales, "its scale").ravel()
    factors = [float(f) for f in given]
    new = [int(np.floor(f * size)) for f, size in zip(factors, x.shape, strict=True)]
    return _resized(node, x, tuple(range(x.ndim)), factors, new)


RESIZE: dict[str, Callable[..., Value]] = {"Resize": _resize, "Upsample": _upsample}
