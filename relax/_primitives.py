"""What each primitive does to relevance, and how to read its parameters: tables, no code paths.

A primitive that is in none of these tables cannot be passed by relevance and is a clear error.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from relax._jaxpr import evaluation

DOT = lax.dot_general_p
CONV = lax.conv_general_dilated_p


def _collectives() -> tuple[Any, Any]:
    """Two primitives of shard_map that JAX gives no public object: pvary and psum_invariant."""
    mesh = jax.sharding.AbstractMesh((1,), ("i",))
    spec = jax.sharding.PartitionSpec()
    function = lambda x: lax.psum(lax.pcast(x, "i", to="varying"), "i")
    with evaluation():  # whatever mesh or trace surrounds the first use of relax
        mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)
        (equation,) = jax.make_jaxpr(mapped)(jax.ShapeDtypeStruct((), np.float32)).eqns
    first, second = equation.params["jaxpr"].eqns
    return first.primitive, second.primitive


PVARY, _PSUM_INVARIANT = _collectives()
DEVICE_SUMS = frozenset({p.psum_p, _PSUM_INVARIANT})

# Moves values about without changing them: the transpose carries coefficient and relevance alike.
ROUTING = frozenset(
    {
        lax.reshape_p,
        lax.transpose_p,
        lax.rev_p,
        lax.squeeze_p,
        lax.broadcast_in_dim_p,
        lax.slice_p,
        lax.dynamic_slice_p,
        lax.dynamic_update_slice_p,
        lax.gather_p,
        lax.scatter_p,
        lax.concatenate_p,
        lax.pad_p,
        lax.copy_p,
        lax.convert_element_type_p,
        lax.reduce_precision_p,
        lax.sharding_constraint_p,
        lax.optimization_barrier_p,
        lax.split_p,
        lax.stack_p,
        lax.unstack_p,
        lax.tile_p,
        lax.select_n_p,
        p.name_p,
        p.device_put_p,
        p.all_gather_p,
        p.ppermute_p,
        PVARY,
    }
)

# As ROUTING: primitives that JAX gives no public object.
_ROUTING_BY_NAME = frozenset(
    {"reshard", "mesh_cast", "all_gather_invariant", "all_gather_reduced", "all_to_all"}
)


def is_routing(primitive: Any) -> bool:
    return primitive in ROUTING or primitive.name in _ROUTING_BY_NAME


# The winner takes all: relevance follows the gradient, which is zero or one.
WINNER = frozenset(
    {
        lax.max_p,
        lax.min_p,
        lax.clamp_p,
        lax.reduce_max_p,
        lax.reduce_min_p,
        lax.reduce_window_max_p,
        lax.reduce_window_min_p,
        lax.cummax_p,
        lax.cummin_p,
        lax.sort_p,
        lax.top_k_p,
        lax.approx_top_k_p,
        lax.scatter_max_p,
        lax.scatter_min_p,
        lax.select_and_gather_add_p,
    }
)

MAX_POOL = frozenset({lax.reduce_window_max_p, lax.reduce_window_min_p})

# Linear in all operands that depend on the input together.
LINEAR = frozenset(
    {
        lax.add_p,
        lax.sub_p,
        lax.neg_p,
        p.add_jaxvals_p,
        lax.reduce_sum_p,
        lax.cumsum_p,
        lax.reduce_window_sum_p,
        lax.fft_p,
        lax.real_p,
        lax.imag_p,
        lax.complex_p,
        lax.conj_p,
        lax.scatter_add_p,
        lax.scatter_sub_p,
        *DEVICE_SUMS,
    }
)
_LINEAR_BY_NAME = frozenset({"reduce_scatter"})  # as LINEAR, without a public object


def is_linear(primitive: Any) -> bool:
    return primitive in LINEAR or primitive.name in _LINEAR_BY_NAME


# Linear in the one operand at the given position that depends on the input; the rest is constant.
LINEAR_IN = {
    lax.mul_p: (0, 1),
    lax.div_p: (0,),
    lax.scatter_mul_p: (0,),
    DOT: (0, 1),
    CONV: (0, 1),
    p.triangular_solve_p: (1,),
}

# Linear in each of two operands, which may both depend on the input; a quotient counts as one.
PRODUCT = frozenset({lax.mul_p, lax.div_p, DOT, CONV})

SUM = frozenset({lax.add_p, lax.sub_p, p.add_jaxvals_p})

# One output element from one element of each operand.
ELEMENTWISE = frozenset(
    {
        lax.add_p,
        lax.sub_p,
        lax.mul_p,
        lax.div_p,
        lax.neg_p,
        lax.max_p,
        lax.min_p,
        lax.clamp_p,
        lax.select_n_p,
        lax.pow_p,
        lax.integer_pow_p,
        lax.square_p,
        lax.sqrt_p,
        lax.rsqrt_p,
        lax.cbrt_p,
        lax.exp_p,
        lax.exp2_p,
        lax.expm1_p,
        lax.log_p,
        lax.log1p_p,
        lax.logistic_p,
        lax.tanh_p,
        lax.sinh_p,
        lax.cosh_p,
        lax.asinh_p,
        lax.acosh_p,
        lax.atanh_p,
        lax.sin_p,
        lax.cos_p,
        lax.tan_p,
        lax.asin_p,
        lax.acos_p,
        lax.atan_p,
        lax.atan2_p,
        lax.erf_p,
        lax.erfc_p,
        lax.erf_inv_p,
        lax.lgamma_p,
        lax.digamma_p,
        lax.bessel_i0e_p,
        lax.bessel_i1e_p,
        lax.abs_p,
        lax.sign_p,
        lax.floor_p,
        lax.ceil_p,
        lax.round_p,
        lax.rem_p,
        lax.nextafter_p,
        lax.is_finite_p,
        lax.eq_p,
        lax.ne_p,
        lax.lt_p,
        lax.le_p,
        lax.gt_p,
        lax.ge_p,
        lax.and_p,
        lax.or_p,
        lax.xor_p,
        lax.not_p,
        lax.convert_element_type_p,
        lax.reduce_precision_p,
        lax.copy_p,
    }
)

# Elementwise and affine in the operand that depends on the input, the others being constant.
SCALE = frozenset({lax.mul_p, lax.div_p, lax.neg_p})
SHIFT = frozenset({lax.add_p, lax.sub_p})
CAST = frozenset({lax.convert_element_type_p, lax.reduce_precision_p, lax.copy_p})

# Elementwise, piecewise linear: what a rectifier can be built from.
PIECEWISE_LINEAR = (
    CAST
    | SCALE
    | SHIFT
    | {
        lax.max_p,
        lax.min_p,
        lax.clamp_p,
        lax.select_n_p,
        lax.abs_p,
        lax.eq_p,
        lax.ne_p,
        lax.lt_p,
        lax.le_p,
        lax.gt_p,
        lax.ge_p,
        lax.and_p,
        lax.or_p,
        lax.not_p,
    }
)


def is_ragged_dot(primitive: Any) -> bool:
    """A matrix product by groups of rows, as of experts; JAX gives it no public object."""
    return primitive.name == "ragged_dot_general"


def is_core(primitive: Any) -> bool:
    """Whether a primitive is what an affine layer is built around."""
    return primitive in (DOT, CONV) or is_ragged_dot(primitive)


class DotAxes(NamedTuple):
    """Axes of a ``dot_general``: contracting and batch, left and right."""

    lhs_contract: tuple[int, ...]
    rhs_contract: tuple[int, ...]
    lhs_batch: tuple[int, ...]
    rhs_batch: tuple[int, ...]


def dot_axes(params: dict[str, Any]) -> DotAxes:
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = params["dimension_numbers"]
    return DotAxes(*map(tuple, (lhs_contract, rhs_contract, lhs_batch, rhs_batch)))


def ragged_features(params: dict[str, Any]) -> dict[int, int]:
    """Output axis to weight axis of a ragged product ``(rows, in) x (group, in, out)``."""
    plain = (((1,), (1,)), ((), ()))
    numbers = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    found = tuple(tuple(tuple(axes) for axes in pair) for pair in numbers)
    return {1: 2} if found == plain else {}


class ConvAxes(NamedTuple):
    """Where batch and features stand in the operands and the output of a convolution."""

    lhs_batch: int
    rhs_out: int
    out_batch: int
    out_feature: int
    batch_groups: int
    feature_groups: int


def conv_axes(params: dict[str, Any]) -> ConvAxes:
    numbers = params["dimension_numbers"]
    return ConvAxes(
        numbers.lhs_spec[0],
        numbers.rhs_spec[0],
        numbers.out_spec[0],
        numbers.out_spec[1],
        params["batch_group_count"],
        params["feature_group_count"],
    )


# Moves that keep every element, so that an axis can be followed through them.
RESHAPING = CAST | {
    PVARY,
    p.name_p,
    lax.optimization_barrier_p,
    lax.reshape_p,
    lax.transpose_p,
    lax.squeeze_p,
    lax.broadcast_in_dim_p,
    lax.sharding_constraint_p,
}


def followed_axes(
    primitive: Any, params: dict[str, Any], old: tuple[int, ...], new: tuple[int, ...]
) -> dict[int, int] | None:
    """Which axis of the operand (shape ``old``) each axis of the result (shape ``new``) is.

    Axes that were split or merged are left out; None if elements were repeated.
    """
    if primitive is lax.transpose_p:
        return dict(enumerate(params["permutation"]))
    if primitive is lax.squeeze_p:
        kept = [axis for axis in range(len(old)) if axis not in params["dimensions"]]
        return dict(enumerate(kept))
    if primitive is lax.broadcast_in_dim_p:
        if math.prod(old) != math.prod(new):
            return None
        return {axis: i for i, axis in enumerate(params["broadcast_dimensions"])}
    if primitive is lax.reshape_p:
        places = {(math.prod(old[:i]), size): i for i, size in enumerate(old)}
        found = {i: places.get((math.prod(new[:i]), size)) for i, size in enumerate(new)}
        return {i: place for i, place in found.items() if place is not None}
    return {axis: axis for axis in range(len(old))}


def applies_function(primitive: Any, params: dict[str, Any]) -> bool:
    """Whether a scatter applies a function of the user's: ``x.at[i].apply(f)``."""
    return primitive is lax.scatter_p and params["update_jaxpr"] is not None


def is_one_to_one(primitive: Any) -> bool:
    """Whether each output is the operand at its place, and no other takes part in it."""
    return primitive is lax.optimization_barrier_p


def gather_axes(
    params: dict[str, Any], index_shape: tuple[int, ...]
) -> tuple[tuple[int, ...], int]:
    """Axes of a gather's output that hold features, and the length of an index vector."""
    return tuple(params["dimension_numbers"].offset_dims), index_shape[-1]
