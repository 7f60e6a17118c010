"""The order-free sum, and the digits of it, as primitives."""

import functools
import math

import numpy as np
from jax import Array, lax

from robustad.stability import _digits, _exact
from robustad.stability._arguments import Axes, without
from robustad.stability._primitive import Kernel, batch_first, linear_primitive
from robustad.stability._sum_primitive import sum_primitive


def kernels(kernel: Kernel) -> dict[str | None, Kernel]:
    """Of one that is told by `float64` whether the platform's is IEEE arithmetic; the bits are the same either way."""
    wide = _digits.wide(kernel)
    return {None: functools.partial(wide, float64=True), "tpu": functools.partial(wide, float64=False)}


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


def _sum(x: Array, *count: Array, axes: Axes, dtype: np.dtype, float64: bool) -> Array:
    middle = in_the_middle(x, axes)
    counts = (lax.convert_element_type(n, np.int64).reshape(middle.shape[0], middle.shape[2]) for n in count)
    return _exact.rounded_sum(middle, dtype, float64, *counts).reshape(without(x.shape, axes))


def _digits_of(x: Array, *, axes: Axes, float64: bool = True) -> Array:
    digits = _exact.digits_of_sum(in_the_middle(x, axes))
    return digits.reshape(len(digits), *without(x.shape, axes))


def _shape_of_digits(x: Array, *, axes: Axes) -> Array:
    total = lax.convert_element_type(lax.reduce_sum(x, axes), np.int32)
    return lax.broadcast(total, (_digits.limbs(_digits.storage(x.dtype)) + 2,))


def _batch_of_digits(size: int, operands, batch_axes, *, axes: Axes) -> Array:
    digits = order_free_digits(*batch_first(size, operands, batch_axes), axes=tuple(a + 1 for a in axes))
    return lax.transpose(digits, [1, 0, *range(2, digits.ndim)])


order_free_sum = sum_primitive("order_free_sum", kernels(_sum))
order_free_digits = linear_primitive(  # integers: without derivative
    "order_free_digits",
    kernels=kernels(_digits_of),
    shape=_shape_of_digits,
    transposes={},
    batch=_batch_of_digits,
)


order_free_zero = linear_primitive(  # zeros that have the tangent of the sum
    "order_free_zero",
    kernels={None: lambda x, *, axes, dtype: lax.full(without(x.shape, axes), 0, dtype)},
    shape=lambda x, *, axes, dtype: lax.convert_element_type(lax.reduce_sum(x, axes), dtype),
    transposes={},
    batch=lambda size, operands, batch_axes, *, axes, dtype: order_free_zero(
        *batch_first(size, operands, batch_axes), axes=tuple(a + 1 for a in axes), dtype=dtype
    ),
    tangents={0: order_free_sum},
)
