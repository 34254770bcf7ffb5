"""Models that the LRP Toolbox has written as plain text, as JAX functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from relax._errors import ArgumentError, message
from relax.adapters._params import check_params, shapes


def to_jax(
    path: str | Path, *, output: str = "logits"
) -> tuple[Callable[[Any, Any], jax.Array], dict[str, dict[str, jax.Array]]]:
    r"""A text file of the LRP Toolbox as ``(f, params)``, so that `lrp` explains ``f``.

    $$\mathrm{Linear}: x W + b \qquad
      \mathrm{Convolution}: x * W + b, \ \text{no padding} \qquad
      \mathrm{SumPool}: \tfrac{1}{\sqrt{h w}} \sum_{h \times w} x$$

    Rect is a rectifier, MaxPool the maximum of a window, Flatten row-major; SoftMax goes along
    axis 1. The legacy form, one line for each row of a dense weight, is read as well. A model that
    was pickled is not: unpickling runs whatever code the file holds.

    Args:
      path: a file that ``model_io.write(model, "name.txt")`` of the Toolbox has written, in Python
        or Matlab.
      output: what ``f`` returns. ``"logits"``, what should be explained: without a SoftMax at the
        end, as after the Toolbox' ``drop_softmax_output_layer``; ``"logit"`` is the same.
        ``"probability"``: with it.

    Returns:
      ``f``, pure, of params and ``x``: images ``(samples, height, width, channels)`` if a
      Convolution or a pool is there before anything flattens, else ``(samples, features)``; or one
      sample, without the axis of samples. ``params``, a dict of dicts of arrays,
      ``Linear0/kernel`` ``(inputs, outputs)`` or ``Convolution0/kernel``
      ``(height, width, channels, filters)``, and ``.../bias``. The number is that of the module in
      the Toolbox, ``model.modules[0]``, and the layers have the same names in selectors and plans.
      Arrays are float32, or float64 if ``jax_enable_x64`` is set.

    Raises:
      ArgumentError: the file is a pickle or not of this format (the message has the number of the
        line), the model has no SoftMax to give probabilities; when ``f`` is called: ``x`` does not
        fit; ``params`` lacks weights, or has others, or of other shapes.
      FileNotFoundError: there is no such file.

    Example:
      >>> import pathlib, tempfile
      >>> import jax.numpy as jnp, numpy as np, relax
      >>> from relax.adapters import lrp_toolbox
      >>> text = "Linear 2 3\n1 0 2 0 1 -1\n0 0 0\nRect\nLinear 3 1\n1 1 1\n0.5\n"
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "model.txt"
      ...     _ = path.write_text(text)
      ...     f, params = lrp_toolbox.to_jax(path)
      >>> x = jnp.array([[1.0, 1.0]])
      >>> print(f(params, x))
      [[3.5]]
      >>> print(np.round(np.asarray(relax.lrp(f)(params, x)), 3))
      [[3. 0.]]

    Source:
      S. Lapuschkin, A. Binder, G. Montavon, K.-R. Mueller, W. Samek, "The LRP Toolbox for
      Artificial Neural Networks", Journal of Machine Learning Research 17(114), 2016.
    """
    layers = _read(Path(path))
    ends_in_softmax = layers[-1].kind == "SoftMax"
    output = "logits" if output == "logit" else output
    if output not in ("logits", "probability"):
        raise ArgumentError(f'to_jax(output={output!r}): expected "logits" or "probability".')
    if output == "probability" and not ends_in_softmax:
        raise ArgumentError(
            message(
                f'to_jax(output="probability"): {path} ends in {layers[-1].kind}, not in SoftMax',
                remedy='Its output is output="logits".',
            )
        )
    applied = layers[:-1] if output == "logits" and ends_in_softmax else layers
    rank = next((_RANKS[layer.kind] for layer in layers if layer.kind in _RANKS), None)
    params = {
        layer.name: {"kernel": jnp.asarray(layer.kernel), "bias": jnp.asarray(layer.bias)}
        for layer in layers
        if layer.kernel is not None
    }
    expected = shapes(params)

    def network(params: Any, x: Any) -> jax.Array:
        check_params(params, expected)
        h = jnp.asarray(x)
        if not jnp.issubdtype(h.dtype, jnp.floating):  # pixels as integers
            h = h.astype(jnp.result_type(float))
        alone = rank is not None and h.ndim == rank - 1
        if alone:
            h = jnp.expand_dims(h, 0)
        if h.ndim < 2 or (rank is not None and h.ndim != rank):
            raise ArgumentError(f"x has shape {jnp.shape(x)}; expected {_EXPECTED[rank]}.")
        for layer in applied:
            with jax.named_scope(layer.name):
                h = _APPLY[layer.kind](layer, params.get(layer.name), h)
        return h[0] if alone else h

    return network, params


class _Layer(NamedTuple):
    """One module of the file.

    Attributes:
      kind: what the file calls it.
      name: kind and number, ``SumPool2``.
      line: of its header, from 1.
      sizes: the numbers in its header.
      kernel, bias: of a Linear or a Convolution.
    """

    kind: str
    name: str
    line: int
    sizes: tuple[int, ...]
    kernel: np.ndarray | None = None
    bias: np.ndarray | None = None


# What follows a name in its header.
_HEADERS = {
    "Linear": ("inputs", "outputs"),
    "Convolution": ("height", "width", "channels", "filters", "stride", "stride"),
    "SumPool": ("height", "width", "stride", "stride"),
    "MaxPool": ("height", "width", "stride", "stride"),
    "Rect": (),
    "Tanh": (),
    "SoftMax": (),
    "Flatten": (),
}
_RANKS = {"Linear": 2, "Convolution": 4, "SumPool": 4, "MaxPool": 4, "Flatten": None}
_EXPECTED = {
    None: "(samples, ...)",
    2: "(samples, features), or (features,)",
    4: "(samples, height, width, channels), or (height, width, channels)",
}

# Reading


class _Lines:
    """Lines of a file, one after another, and errors that say where."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self._path, self._lines, self.number = path, lines, 0

    def __bool__(self) -> bool:
        return self.number < len(self._lines)

    def peek(self) -> list[str]:
        return self._lines[self.number].split() if self else []

    def next(self, what: str) -> list[str]:
        if not self:
            raise self.wrong(f"the file ends, and {what} should follow")
        self.number += 1
        return self._lines[self.number - 1].split()

    def numbers(self, count: int, what: str) -> np.ndarray:
        words = self.next(f"{what}, {count} numbers,")
        if len(words) != count:
            raise self.wrong(f"{len(words)} numbers; {what} has {count}")
        try:
            values = np.array(words, np.float64)
        except ValueError:
            culprit = next(word for word in words if not _is_number(word))
            raise self.wrong(f"`{culprit[:40]}` is no number; {what} has {count}") from None
        if not np.isfinite(values).all():
            raise self.wrong(f"{what} has numbers that are not finite")
        return values

    def wrong(self, what: str) -> ArgumentError:
        return ArgumentError(f"{self._path}, line {self.number}: {what}.")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# Pickles, arrays of numpy, archives of them, Matlab's.
_BINARY = {
    b"\x80": "a pickle",
    b"\x93NUMPY": "an array of numpy",
    b"PK\x03\x04": "a zip archive",
    b"MATLAB": "a file of Matlab",
}


def _read(path: Path) -> list[_Layer]:
    content = path.read_bytes()
    found = next((kind for start, kind in _BINARY.items() if content.startswith(start)), None)
    if found is None and path.suffix.lower() in (".nn", ".pickle", ".pickled", ".pkl"):
        found = "a pickle"
    if found is None and not content.isascii():
        found = "not plain text"
    if found is not None:
        raise ArgumentError(
            message(
                f"to_jax: {path} is {found}; the text format of the LRP Toolbox is read, and "
                "nothing is ever unpickled",
                remedy='In the Toolbox: model_io.write(model_io.read("model.nn"), "model.txt").',
            )
        )
    # Under numpy 2 the Toolbox writes `np.float64(0.5)`.
    text = re.sub(r"np\.float\d+\(([^()\s]*)\)", r"\1", content.decode("ascii"))
    lines = _Lines(path, text.rstrip().splitlines())
    layers: list[_Layer] = []
    while lines:
        layers.append(_layer(lines, len(layers)))
        _check_sizes(layers, lines)
    if not layers:
        raise ArgumentError(f"to_jax: {path} is empty; expected a model of the LRP Toolbox.")
    return layers


def _layer(lines: _Lines, number: int) -> _Layer:
    kind, *words = lines.next("a layer") or [""]
    line = lines.number
    if kind not in _HEADERS:
        known = ", ".join(_HEADERS)
        found = f"`{kind[:40]}` is no layer" if kind else "a blank line"
        raise lines.wrong(f"{found}; expected one of {known}")
    header = _HEADERS[kind]
    if len(words) != len(header) or not all(w.isdigit() and int(w) > 0 for w in words):
        raise lines.wrong(
            f"`{' '.join([kind, *words])[:60]}`; expected `{' '.join([kind, *header])}`, with "
            f"{len(header)} positive integers"
            if header
            else f"`{' '.join([kind, *words])[:60]}`; nothing follows {kind} on its line"
        )
    sizes = tuple(map(int, words))
    layer = _Layer(kind, f"{kind}{number}", line, sizes)
    if kind == "Linear":
        inputs, outputs = sizes
        if inputs > 1 and len(lines.peek()) == outputs:  # the legacy form
            rows = [
                lines.numbers(outputs, f"row {row + 1} of the weights of {layer.name}")
                for row in range(inputs)
            ]
            kernel = np.stack(rows)
        else:
            weights = lines.numbers(inputs * outputs, f"the weights of {layer.name}")
            kernel = weights.reshape(sizes)
    elif kind == "Convolution":
        shape = sizes[:4]
        count = int(np.prod(shape))
        kernel = lines.numbers(count, f"the filters of {layer.name}").reshape(shape)
    else:
        return layer
    bias = lines.numbers(kernel.shape[-1], f"the bias of {layer.name}")
    return layer._replace(kernel=kernel, bias=bias)


def _check_sizes(layers: Sequence[_Layer], lines: _Lines) -> None:
    """The last layer fits the weights before it, as far as this does not depend on the input."""
    last = layers[-1]
    if last.kernel is None:
        return
    for before in reversed(layers[:-1]):
        if before.kind == "Flatten":
            return
        if before.kernel is not None:
            given, taken = before.kernel.shape[-1], last.kernel.shape[-2]
            if given != taken:
                lines.number = last.line
                raise lines.wrong(f"{last.name} takes {taken} inputs; {before.name} gives {given}")
            return


# Applying


def _linear(layer: _Layer, p: Any, x: jax.Array) -> jax.Array:
    _fits(layer, p, x, 2)
    y = x @ p["kernel"]
    return y + jnp.broadcast_to(p["bias"], y.shape)


def _convolution(layer: _Layer, p: Any, x: jax.Array) -> jax.Array:
    _fits(layer, p, x, 4)
    kernel = p["kernel"]
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    y = lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        layer.sizes[4:],
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + jnp.broadcast_to(p["bias"], y.shape)


def _fits(layer: _Layer, p: Any, x: jax.Array, rank: int) -> None:
    taken = p["kernel"].shape[-2]
    if x.ndim != rank or x.shape[-1] != taken:
        what = "features" if rank == 2 else "channels"
        raise ArgumentError(
            f"{layer.name} (line {layer.line}) takes {taken} {what}; what comes in has shape "
            f"{x.shape}. x does not have the size that the model was made for."
        )
    if rank == 4:
        _holds(layer, x)


def _holds(layer: _Layer, x: jax.Array) -> None:
    """A window fits into the image; an empty image would be the answer otherwise."""
    height, width = layer.sizes[:2]
    if x.ndim != 4 or x.shape[1] < height or x.shape[2] < width:
        raise ArgumentError(
            f"{layer.name} (line {layer.line}) has windows of {height} x {width}; what comes in "
            f"has shape {x.shape}. x does not have the size that the model was made for."
        )


def _sum_pool(layer: _Layer, _: Any, x: jax.Array) -> jax.Array:
    _holds(layer, x)
    height, width, *stride = layer.sizes
    window, strides = (1, height, width, 1), (1, *stride, 1)
    sums = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, window, strides, "VALID")
    return sums / np.asarray(np.sqrt(height * width), x.dtype)


def _max_pool(layer: _Layer, _: Any, x: jax.Array) -> jax.Array:
    _holds(layer, x)
    height, width, *stride = layer.sizes
    lowest = np.asarray(-np.inf, x.dtype)
    window, strides = (1, height, width, 1), (1, *stride, 1)
    return lax.reduce_window(x, lowest, lax.max, window, strides, "VALID")


def _flatten(_: _Layer, __: Any, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


_APPLY: dict[str, Callable[[_Layer, Any, jax.Array], jax.Array]] = {
    "Linear": _linear,
    "Convolution": _convolution,
    "SumPool": _sum_pool,
    "MaxPool": _max_pool,
    "Flatten": _flatten,
    "Rect": lambda _, __, x: jax.nn.relu(x),
    "Tanh": lambda _, __, x: jnp.tanh(x),
    "SoftMax": lambda _, __, x: jax.nn.softmax(x, axis=1),
}


__all__ = ["to_jax"]
