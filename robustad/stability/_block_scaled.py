"""A sum with an exponent of its own, which neither overflows nor underflows."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from robustad.stability._arguments import Axis, axes_of, inexact, mask_of, masked, refuse_complex
from robustad.stability._compensated_sum import compensated_sum


def block_scaled_sum(
    x: ArrayLike, axis: Axis = None, *, keepdims: bool = False, where: ArrayLike | None = None
) -> tuple[Array, Array]:
    r"""The sum as mantissa and exponent, $\sum x_i = m \, 2^k$ with $1/2 \le |m| < 1$, for sums out of the dtype's range.

    The terms are scaled by the power of two that brings the largest near 1, and summed by `compensated_sum`; terms smaller
    than the largest by $2^{e_{\min}}$ may be lost. `m` is right as that sum is. The largest magnitude is found first, in a
    pass of its own.

    Args:
        x: real array. Integers and booleans become the default float.
        axis: the axis or axes to sum; None for all.
        keepdims: keep the summed axes with length 1.
        where: a mask that broadcasts to the shape of `x`: which terms count.

    Returns:
        `(m, k)`: `m` in the dtype of `x` (float32 for narrower floats), `k` int32. A sum of 0 is (0, 0); a sum that is
        infinite or NaN is `(sum, 0)`. The tangent of `m` is the sum of the tangents times $2^{-k}$, so that $m \, 2^k$ has
        the tangent of the sum.

    Raises:
        TypeError: for complex `x`.
        ValueError: for an `axis` out of range.
        BackendError: if the backend's arithmetic does not round each operation once.

    >>> m, k = block_scaled_sum(jnp.full(1024, 2.0**127, jnp.float32))
    >>> float(m), int(k)
    (0.5, 138)
    """
    x, _ = inexact("block_scaled_sum", x)
    refuse_complex("block_scaled_sum", "x", x.dtype, "Sum `x.real` and `x.imag`.")
    axes = axes_of("block_scaled_sum", axis, x.ndim)
    x = masked(x if x.dtype == jnp.float64 else x.astype(jnp.float32), mask_of("block_scaled_sum", where, x.shape))
    magnitude = jnp.abs(lax.stop_gradient(x))
    largest = jnp.max(jnp.where(jnp.isfinite(magnitude), magnitude, 0), axes, keepdims=True, initial=0)
    k = _exponent(largest)
    total = compensated_sum(_times_power(x, -k), axes, keepdims=True)
    more = _exponent(lax.stop_gradient(total))
    ordinary = jnp.isfinite(total) & (total != 0)
    # The exponent of a sum of 0 is 0: its mantissa then has the tangent of the sum.
    rest = jnp.where(total == 0, _times_power(total, k), total)
    m = jnp.where(ordinary, _times_power(total, jnp.where(ordinary, -more, 0)), rest)
    k = jnp.where(ordinary, k + more, 0)
    if not keepdims:
        m, k = jnp.squeeze(m, axes), jnp.squeeze(k, axes)
    return m, k


def _exponent(x: Array) -> Array:
    """k with 1/2 <= |x| 2 ** -k < 1, of a normal number; int32."""
    info = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"int{info.bits}"))
    field = lax.shift_right_logical(bits, bits.dtype.type(info.nmant)) & bits.dtype.type(2**info.nexp - 1)
    return field.astype(jnp.int32) - jnp.int32(info.maxexp - 2)


def _times_power(x: Array, k: Array) -> Array:
    """x 2 ** k, by two factors, as one may be out of range."""
    half = k // 2
    return x * _power(half, x.dtype) * _power(k - half, x.dtype)


def _power(k: Array, dtype) -> Array:
    """2 ** k, for k in the normal range."""
    info = jnp.finfo(dtype)
    integer = jnp.dtype(f"int{info.bits}")
    field = k.astype(integer) + integer.type(info.maxexp - 1)
    return lax.bitcast_convert_type(lax.shift_left(field, integer.type(info.nmant)), dtype)
