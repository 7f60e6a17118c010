"""The order-free sum, its mean and its broadcast as linear primitives, each the transpose of another."""

import functools
import math

import numpy as np
from jax import Array, lax
from jax.interpreters import ad, batching

from robustad.stability import _digits, _exact
from robustad.stability._operator import no_tangent, operator

Axes = tuple[int, ...]
Shape = tuple[int, ...]


def without(shape: Shape, axes: Axes) -> Shape:
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def in_the_middle(x: Array, axes: Axes) -> Array:
    """`x` as `(outer, n, inner)`, `axes` in the middle, which must be sorted; moved only where they are not neighbours."""
    if axes and axes[-1] - axes[0] + 1 != len(axes):
        rest = [axis for axis in range(x.ndim) if axis not in axes]
        x, axes = lax.transpose(x, [*axes, *rest]), tuple(range(len(axes)))
    first = axes[0] if axes else x.ndim
    size = math.prod
    return x.reshape(
        size(x.shape[:first]), size(x.shape[first : first + len(axes)]), size(x.shape[first + len(axes) :])
    )


def _sum(x: Array, *, axes: Axes, dtype: np.dtype, float64: bool) -> Array:
    return _exact.rounded_sum(in_the_middle(x, axes), dtype, float64).reshape(without(x.shape, axes))


def _mean(x: Array, count: Array, *, axes: Axes, dtype: np.dtype, float64: bool) -> Array:
    middle = in_the_middle(x, axes)
    count = lax.convert_element_type(count, np.int64).reshape(middle.shape[0], middle.shape[2])
    return _exact.rounded_sum(middle, dtype, float64, count).reshape(without(x.shape, axes))


def _broadcast(x: Array, *, shape: Shape, axes: Axes, dtype: np.dtype, float64: bool) -> Array:
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    return lax.broadcast_in_dim(lax.convert_element_type(x, dtype), shape, rest)


def _digits_of(x: Array, *, axes: Axes, float64: bool) -> Array:
    digits = _exact.digits_of_sum(in_the_middle(x, axes))
    return digits.reshape(len(digits), *without(x.shape, axes))


sum_p = operator("order_free_sum", _sum, lambda x, axes, dtype: (without(x.shape, axes), dtype))
mean_p = operator("order_free_mean", _mean, lambda x, count, axes, dtype: (without(x.shape, axes), dtype))
broadcast_p = operator("order_free_broadcast", _broadcast, lambda x, shape, axes, dtype: (shape, dtype))
digits_p = operator(  # of integers, so without derivative: for operands that carry no tangents
    "order_free_digits",
    _digits_of,
    lambda x, axes: ((_digits.limbs(_digits.storage(x.dtype)) + 2, *without(x.shape, axes)), np.int32),
)


zero_p = operator(  # which moves as the sum does, but stands still
    "order_free_zero",
    lambda x, axes, dtype, float64: lax.full(without(x.shape, axes), 0, dtype),
    lambda x, axes, dtype: (without(x.shape, axes), dtype),
)


# ---- derivatives


def _sum_transpose(ct: Array, x, *, axes: Axes, dtype: np.dtype) -> list[Array]:
    return [broadcast_p.bind(ct, shape=x.aval.shape, axes=axes, dtype=x.aval.dtype)]


def _broadcast_transpose(ct: Array, x, *, shape: Shape, axes: Axes, dtype: np.dtype) -> list[Array]:
    return [sum_p.bind(ct, axes=axes, dtype=x.aval.dtype)]


def _mean_jvp(primals, tangents, *, axes: Axes, dtype: np.dtype):
    (x, count), (t, _) = primals, tangents
    value = mean_p.bind(x, count, axes=axes, dtype=dtype)
    if type(t) is ad.Zero:
        return value, no_tangent(value)
    return value, mean_p.bind(t, count, axes=axes, dtype=dtype)


def _mean_transpose(ct, x, count: Array, *, axes: Axes, dtype: np.dtype):
    if type(ct) is ad.Zero:
        return ad.Zero(x.aval), None
    return broadcast_p.bind(ct / count.astype(ct.dtype), shape=x.aval.shape, axes=axes, dtype=x.aval.dtype), None


def _zero_jvp(primals, tangents, **parameters):
    value = zero_p.bind(*primals, **parameters)
    if type(tangents[0]) is ad.Zero:
        return value, no_tangent(value)
    return value, sum_p.bind(*tangents, **parameters)


ad.deflinear2(sum_p, _sum_transpose)
ad.deflinear2(broadcast_p, _broadcast_transpose)
ad.primitive_jvps[mean_p] = _mean_jvp
ad.primitive_jvps[zero_p] = _zero_jvp
ad.primitive_transposes[mean_p] = _mean_transpose


# ---- vmap: the batch comes first


def _first(x: Array, axis: int | None, size: int) -> Array:
    if axis is None:
        return lax.broadcast(x, (size,))
    return lax.transpose(x, [axis, *(other for other in range(x.ndim) if other != axis)])


def _later(axes: Axes) -> Axes:
    return tuple(axis + 1 for axis in axes)


def _sum_batch(primitive, operands, dims, *, axes: Axes, dtype: np.dtype):
    return primitive.bind(_first(operands[0], dims[0], 0), axes=_later(axes), dtype=dtype), 0


def _mean_batch(operands, dims, *, axes: Axes, dtype: np.dtype):
    size = next(x.shape[axis] for x, axis in zip(operands, dims) if axis is not None)
    x, count = (_first(x, axis, size) for x, axis in zip(operands, dims))
    return mean_p.bind(x, count, axes=_later(axes), dtype=dtype), 0


def _broadcast_batch(operands, dims, *, shape: Shape, axes: Axes, dtype: np.dtype):
    x = _first(operands[0], dims[0], 0)
    return broadcast_p.bind(x, shape=(len(x), *shape), axes=_later(axes), dtype=dtype), 0


def _digits_batch(operands, dims, *, axes: Axes):
    return digits_p.bind(_first(operands[0], dims[0], 0), axes=_later(axes)), 1


batching.primitive_batchers[sum_p] = functools.partial(_sum_batch, sum_p)
batching.primitive_batchers[zero_p] = functools.partial(_sum_batch, zero_p)
batching.primitive_batchers[mean_p] = _mean_batch
batching.primitive_batchers[broadcast_p] = _broadcast_batch
batching.primitive_batchers[digits_p] = _digits_batch
