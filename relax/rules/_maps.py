"""What rules see of a layer: a map with weights, a linear map without, or a function of one value.

Nothing here knows how the layer was written; the engine hands in plain functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from relax._numerics import divide, negative, positive, power_of_two, varying_like


def transposed(
    function: Callable[[Any], jax.Array], example: Any, s: jax.Array, dtype: Any = None
) -> Any:
    """The transpose of a linear function, applied to ``s``; ``dtype``: of its output, if known."""
    if dtype is None:
        dtype = jax.eval_shape(function, example).dtype
    transpose = jax.linear_transpose(function, example)
    narrow = jnp.float16 in (dtype, *(a.dtype for a in jax.tree.leaves(example)))
    if narrow and s.dtype != jnp.float16:
        return _in_float16(transpose, dtype, s)
    (result,) = transpose(s.astype(dtype))
    return result


def _in_float16(transpose: Callable[[Any], Any], dtype: Any, s: jax.Array) -> Any:
    """A transpose that computes in float16, applied to an ``s`` that does not fit.

    What is beyond the range belongs to denominators near zero, which have next to no share in any
    input: it is clipped, as in `narrow`. The rest is scaled to numbers up to 2: sums of tens of
    thousands of them do not overflow, and what is a ten-thousandth of the largest is exact.
    """
    largest = float(jnp.finfo(jnp.float16).max)
    s = jnp.clip(s, -largest, largest)
    scale = power_of_two(s)
    (result,) = transpose((s / scale).astype(dtype))
    return jax.tree.map(lambda a: jnp.clip(a, -largest, largest).astype(s.dtype) * scale, result)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AffineMap:
    """An affine layer ``z = x w + b``, merged with whatever BatchNorm and scale followed it.

    Attributes:
      core: ``(x, w) -> x w``, the matrix product or convolution.
      move: rearranges the output of the core into that of the layer.
      make_weight: the effective weight w; computed only by rules that ask for it.
      bias: the effective bias b in the output's shape, or None.
      example: shape and dtype of x; ``core_shape``: shape of the output of the core.
      native: the linear map as the model itself computes it, used where w is not modified.
      input, output: the layer's own input and output in this evaluation.
      batch_axes: axes of the output along which samples stand.
      input_batch_axes: the same axes of the input.
      nonnegative: x is known to be >= 0.
      dead_below: no coefficient reaches outputs < 0.
      dtype: of the output, or None if it is not known.
    """

    core: Callable[[jax.Array, jax.Array], jax.Array]
    move: Callable[[jax.Array], jax.Array]
    make_weight: Callable[[], Any]
    bias: jax.Array | None
    example: Any
    core_shape: tuple[int, ...]
    native: Callable[[jax.Array], jax.Array] | None
    input: Any = None
    output: Any = None
    batch_axes: tuple[int, ...] = ()
    input_batch_axes: tuple[int, ...] = ()
    nonnegative: bool = False
    dead_below: bool = False
    dtype: Any = None

    @property
    def weight(self) -> Any:
        """The effective weight, BatchNorm folded in; of a layer of several inputs their tuple."""
        return self.make_weight()

    def __call__(self, x: Any) -> jax.Array:
        """``x w + b``."""
        if x is self.input and self.output is not None:
            return self.output
        z = self.linear(x)
        return z if self.bias is None else z + self.bias

    def linear(self, x: Any) -> jax.Array:
        """``x w``. An ``x`` of size one along the batch axes is computed once and repeated."""
        if self.native is not None and tuple(x.shape) == tuple(self.example.shape):
            return self.native(x)
        z = self.core(x, self.weight)
        return self.move(jnp.broadcast_to(z, self.core_shape))

    def transpose(self, s: jax.Array) -> Any:
        """``s w^T``, in the shape of the input."""
        function = self.native
        if function is None:
            weight = self.weight
            function = lambda x: self.move(self.core(x, weight))
        return transposed(function, self.example, s, self.dtype)

    pull_back = transpose

    def map(self, weight: Callable, bias: Callable | None = None) -> AffineMap:
        """The same layer with its weight, and its bias if a function is given, changed."""
        plain = self.weight
        # a wider hyper-parameter must not widen it
        changed = jax.tree.map(lambda w: weight(w).astype(w.dtype), plain)
        return dataclasses.replace(
            self,
            make_weight=lambda: changed,
            bias=None if bias is None or self.bias is None else bias(self.bias),
            native=None,
            output=None,
        )

    def without_bias(self) -> AffineMap:
        return dataclasses.replace(self, bias=None, output=None)

    def positive(self) -> AffineMap:
        """``w+, b+``."""
        return self.map(positive, positive)

    def negative(self) -> AffineMap:
        """``w-, b-``."""
        return self.map(negative, negative)

    def squared(self) -> AffineMap:
        """``w^2, b^2``."""
        return self.map(jnp.square, jnp.square)

    def ones(self) -> AffineMap:
        """All weights one, no bias: the receptive field."""
        return self.map(jnp.ones_like)

    def constant(self, value: Any) -> jax.Array:
        """An input filled with ``value`` (a scalar or broadcastable); size one on batch axes."""
        value = jnp.asarray(value, self.example.dtype)
        full = tuple(self.example.shape)
        offset = len(full) - value.ndim
        shape = tuple(
            1
            if axis in self.input_batch_axes and (axis < offset or value.shape[axis - offset] == 1)
            else size
            for axis, size in enumerate(full)
        )
        return varying_like(jnp.broadcast_to(value, shape), self.example)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LinearMap:
    """A sum, mean, pooling or other linear layer: its inputs are a tuple.

    ``monotone`` says that all coefficients are >= 0, as in a sum or an average; then the layer is
    its own positive part. ``one_to_one``: it multiplies each element by a constant. ``unscaled``:
    the layer without the division that makes a sum a mean.
    """

    function: Callable[[tuple[Any, ...]], jax.Array]
    unscaled: Callable[[tuple[Any, ...]], jax.Array]
    example: tuple[Any, ...]
    output: Any = None
    input: Any = None
    monotone: bool = False
    one_to_one: bool = False
    batch_axes: tuple[int, ...] = (0,)
    nonnegative: bool = False
    dead_below: bool = False
    bias: None = None

    def __call__(self, x: Any) -> jax.Array:
        return self.output if x is self.input and self.output is not None else self.function(x)

    def linear(self, x: Any) -> jax.Array:
        return self.function(x)

    def transpose(self, s: jax.Array) -> Any:
        return transposed(self.function, self.example, s)

    pull_back = transpose

    def positive(self) -> LinearMap:
        return self

    def negative(self) -> LinearMap:
        return dataclasses.replace(self, function=lambda x: 0 * self.function(x), output=None)

    def squared(self) -> LinearMap:
        """Every output is a sum times a number of its own, so squares scale by it once more."""
        ones = self.constant(1)
        scale = divide(self.function(ones), self.unscaled(ones))
        return dataclasses.replace(self, function=lambda x: scale * self.function(x), output=None)

    def ones(self) -> LinearMap:
        """The sum without the division: the receptive field."""
        return dataclasses.replace(self, function=self.unscaled, output=None)

    def without_bias(self) -> LinearMap:
        return self

    def constant(self, value: Any) -> tuple[jax.Array, ...]:
        return tuple(jnp.full(a.shape, value, a.dtype) for a in self.example)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ElementwiseMap:
    """An activation ``y = phi(x)``.

    Attributes:
      function: phi; ``kinked``: the same, differentiable at a kink, as of a ReLU at 0, where its
        derivative is that of the constant side, which is 0.
      inner: what its nonlinear part sees of x, which may be scaled and shifted in front.
      passes_zero: ``phi(0) = 0``.
      is_relu: it is ``max(x, 0)``.
      dead_below: ``phi(x) = 0`` for all ``x <= 0``.
      slope, curvature: ``phi'(0)``, ``phi''(0)``, or None if they are to be computed.
    """

    function: Callable[[jax.Array], jax.Array]
    input: Any
    output: Any
    passes_zero: bool
    is_relu: bool
    slope: float | None
    curvature: float | None
    batch_axes: tuple[int, ...] = (0,)
    dead_below: bool = False
    kinked: Callable[[jax.Array], jax.Array] | None = None
    inner: Callable[[jax.Array], jax.Array] = lambda x: x

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output if x is self.input and self.output is not None else self.function(x)

    def derivative(self, x: jax.Array) -> jax.Array:
        """``phi'(x)``."""
        return jax.jvp(self.kinked or self.function, (x,), (jnp.ones_like(x),))[1]

    def pull_back(self, cotangent: jax.Array) -> jax.Array:
        """The transposed Jacobian at the layer's own input."""
        (result,) = jax.vjp(self.kinked or self.function, self.input)[1](cotangent)
        return result

    def ratio(self, x: jax.Array) -> jax.Array:
        """``phi(x) / x``; at 0 its limit ``phi'(0) + x phi''(0) / 2``, so derivatives are exact."""
        if self.is_relu:
            return jnp.where(x > 0, jnp.ones_like(x), 0)
        if self.dead_below:
            return (self(x) / jnp.where(x > 0, x, 1)).astype(x.dtype)
        at_zero = x == 0
        safe = jnp.where(at_zero, 1, x)
        if self.slope is None or self.curvature is None:
            zeros = jnp.zeros_like(x)
            slope, curvature = jax.jvp(self.derivative, (zeros,), (jnp.ones_like(x),))
        else:
            slope, curvature = self.slope, self.curvature
        limit = slope + (x / 2 * curvature if not _is_flat(curvature) else 0)
        quotient = jnp.where(at_zero, 0, self(x)) / safe
        return jnp.where(at_zero, limit, quotient).astype(x.dtype)


def _is_flat(curvature: Any) -> bool:
    return isinstance(curvature, float) and curvature == 0


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GeneralMap:
    """Any other differentiable layer: a tuple of inputs to a tuple of outputs."""

    function: Callable[[tuple[Any, ...]], tuple[jax.Array, ...]]
    input: tuple[Any, ...]

    def pull_back(self, cotangents: tuple[jax.Array, ...]) -> Any:
        """The transposed Jacobian."""
        return jax.vjp(self.function, self.input)[1](cotangents)[0]
