"""Compensated sum and mean: as if computed in twice the precision and rounded once."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from robustad.stability._arguments import (
    Axes,
    Axis,
    axes_of,
    counted,
    inexact,
    keep,
    mask_of,
    masked,
    real_or_complex,
    real_part_of,
)
from robustad.stability._backend import require_error_free
from robustad.stability._sum_primitive import sum_primitive
from robustad.stability._two_words import (
    Words,
    finish_or_scale,
    from_float64,
    merge_axes,
    rounded,
    sum_in_float64,
    sum_in_two_words,
)

# ---- kernels: the sum over `axes`, divided by `count` if there is one


def sum_kernel(x: Array, *count: Array, axes: Axes, dtype: np.dtype) -> Array:
    """For hardware with float64."""
    if x.dtype == jnp.float64:
        return two_word_sum_kernel(x, *count, axes=axes, dtype=dtype)
    with jax.enable_x64(True):
        x, merged = merge_axes(x, axes)
        total = sum_in_float64(lambda v: lax.convert_element_type(v, jnp.float64), [x], merged)
        for n in count:
            total = total / lax.convert_element_type(n, jnp.float64)
        return from_float64(total, dtype)


def two_word_sum_kernel(x: Array, *count: Array, axes: Axes, dtype: np.dtype) -> Array:
    """For float64, and for hardware without it."""
    x, axes = merge_axes(x, axes)
    x = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    # A sum of n terms of at most 2 ** (1 - k) of the largest float, k = ⌈log2 n⌉ + 1, does not overflow.
    scale = x.dtype.type(2.0 ** -(1 + math.ceil(math.log2(max(1, math.prod(x.shape[i] for i in axes))))))

    def words(v: Array) -> Words:
        return v, jnp.zeros_like(v)

    def finish(total: Words) -> Array:
        value = rounded(total)
        for n in count:
            value = value / n.astype(value.dtype)
        return value

    def scaled() -> Array:
        return finish(sum_in_two_words(words, [x * scale], axes, fast=False)) / scale

    return finish_or_scale(sum_in_two_words(words, [x], axes), finish, scaled).astype(dtype)


_sum = sum_primitive("compensated_sum", {None: sum_kernel, "tpu": two_word_sum_kernel})


# ---- the functions


def compensated_sum(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""The sum, as if computed in twice the precision and rounded once.

    With $n$ terms and unit roundoff $u$, $|\hat s - s| \le u |s| + (n u)^2 \sum |x_i|$, barring underflow: half an ulp while
    the condition number $\sum|x_i| / |\sum x_i|$ stays below $1 / (n^2 u)$; `jnp.sum` loses all digits at $1/u$.
    float32 and narrower input is accumulated in float64, float64 input (and all input on TPU, then with $u = 2^{-24}$) as
    two words by `two_sum`.

    Infinities and NaN come out as IEEE arithmetic gives them, infinity minus infinity is NaN; where the partial sums
    overflow and the sum does not, it is computed again from scaled terms. The order of the terms still matters in the last
    bit at large condition numbers: for an order-free sum see `reproducible_sum`.

    Args:
        x: array, real or complex (by its parts). Integers and booleans become the default float.
        axis: the axis or axes to sum; None for all.
        dtype: of the result; the terms are not rounded to it. Default: that of `x`.
        keepdims: keep the summed axes with length 1.
        where: a mask that broadcasts to the shape of `x`: which terms count.

    Returns:
        The sum, 0 where there are no terms. Its tangent is the compensated sum of the tangents, its cotangent is broadcast
        exactly.

    Raises:
        TypeError: for a `dtype` that is not floating.
        ValueError: for an `axis` out of range.
        BackendError: if the backend's arithmetic does not round each operation once.

    Source: Ogita, Rump and Oishi, Accurate Sum and Dot Product, SIAM J. Sci. Comput. 26 (2005), algorithm 4.4,
    proposition 4.5.

    >>> x = jnp.array([1e8, 1.0, -1e8], jnp.float32)
    >>> float(compensated_sum(x)), float(jnp.float32(1e8) + 1 - 1e8)
    (1.0, 0.0)
    """
    require_error_free()
    x, result = inexact("compensated_sum", x, dtype)
    axes, mask = axes_of("compensated_sum", axis, x.ndim), mask_of("compensated_sum", where, x.shape)
    real = real_part_of(result)
    total = real_or_complex(lambda part: _sum(part, axes=axes, dtype=real), masked(x, mask))
    return keep(total.astype(result), axes, keepdims)


def compensated_mean(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""The mean, as if the sum were computed in twice the precision; within one ulp where the sum is.

    It does not overflow where the mean is representable: the mean of two of the largest float is that float.

    Args, derivative and errors as for `compensated_sum`; NaN where there are no terms, as `jnp.mean`.

    >>> float(compensated_mean(jnp.array([3e38, 3e38, 1e38, 1e38], jnp.float32)) / 2e38)
    1.0
    """
    require_error_free()
    x, result = inexact("compensated_mean", x, dtype)
    axes, mask = axes_of("compensated_mean", axis, x.ndim), mask_of("compensated_mean", where, x.shape)
    count, real = counted(x, axes, mask), real_part_of(result)
    total = real_or_complex(lambda part: _sum(part, count, axes=axes, dtype=real), masked(x, mask))
    return keep(total.astype(result), axes, keepdims)
