"""Compensated cumulative sum."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from robustad.stability._arguments import axis_of, inexact, real_or_complex
from robustad.stability._backend import require_error_free
from robustad.stability._primitive import linear_primitive
from robustad.stability._two_words import Words, add_words, finish_or_scale, from_float64, rounded


def _kernel(x: Array, *, axis: int, reverse: bool) -> Array:
    """For hardware with float64."""
    if x.dtype == jnp.float64:
        return two_word_cumsum_kernel(x, axis=axis, reverse=reverse)
    dtype = x.dtype
    with jax.enable_x64(True):
        total = lax.cumsum(lax.convert_element_type(x, jnp.float64), axis, reverse)
        return from_float64(total, dtype)


def two_word_cumsum_kernel(x: Array, *, axis: int, reverse: bool) -> Array:
    """For float64, and for hardware without it."""
    dtype = x.dtype
    x = x if dtype == jnp.float64 else x.astype(jnp.float32)
    scale = x.dtype.type(2.0 ** -(1 + math.ceil(math.log2(max(1, x.shape[axis])))))

    def words(v: Array) -> Words:
        return lax.associative_scan(add_words, (v, jnp.zeros_like(v)), reverse=reverse, axis=axis)

    def scaled() -> Array:
        return rounded(words(x * scale)) / scale

    return finish_or_scale(words(x), rounded, scaled).astype(dtype)


_cumsum = linear_primitive(
    "compensated_cumsum",
    kernels={None: _kernel, "tpu": two_word_cumsum_kernel},
    shape=lambda x, *, axis, reverse: lax.cumsum(x, axis, reverse),
    transposes={0: lambda cotangent, x, *, axis, reverse: _cumsum(cotangent, axis=axis, reverse=not reverse)},
    batch=lambda size, operands, batch_axes, *, axis, reverse: _cumsum(
        jnp.moveaxis(operands[0], batch_axes[0], 0), axis=axis + 1, reverse=reverse
    ),
)


def compensated_cumsum(
    x: ArrayLike, axis: int | None = None, dtype: DTypeLike | None = None, *, reverse: bool = False
) -> Array:
    r"""Cumulative sums, each as if computed in twice the precision and rounded once, with the bound of `compensated_sum`.

    The partial sums are combined as a tree of two words, so an error does not grow along the axis. The tangent is the
    compensated cumulative sum of the tangents, the cotangent that of the cotangents from the other end.

    Args:
        x: array, real or complex. Integers and booleans become the default float.
        axis: the axis to sum along; None for the flattened array.
        dtype: of the result; the terms are not rounded to it. Default: that of `x`.
        reverse: sum from the end.

    Returns:
        An array of the shape of `x` (one-dimensional for `axis=None`). From an infinity or NaN on, as IEEE arithmetic gives
        it.

    Raises:
        TypeError, ValueError, BackendError: as `compensated_sum`.

    >>> x = jnp.array([1e8, 1.0, -1e8, 1.0], jnp.float32)
    >>> compensated_cumsum(x)[2:].tolist(), jnp.cumsum(x)[2:].tolist()
    ([1.0, 2.0], [0.0, 1.0])
    """
    require_error_free()
    x, result = inexact("compensated_cumsum", x, dtype)
    x = x.ravel() if axis is None else x
    along = axis_of("compensated_cumsum", 0 if axis is None else axis, x.ndim)
    total = real_or_complex(lambda part: _cumsum(part, axis=along, reverse=reverse), x)
    return total.astype(result)
