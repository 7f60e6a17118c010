"""Two classic sums in the working precision: by a tree of pairs, and Kahan's, one term after the other."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from robustad.stability._arguments import (
    Axes,
    Axis,
    axes_of,
    inexact,
    keep,
    mask_of,
    masked,
    real_or_complex,
    real_part_of,
)
from robustad.stability._backend import require_error_free
from robustad.stability._sum_primitive import sum_primitive
from robustad.stability._two_words import LANES, merge_axes

ROWS = 16  # four levels of the tree at once

# ---- kernels


def _pairwise_kernel(x: Array, *, axes: Axes, dtype: np.dtype) -> Array:
    x, axis = _one_axis(x, axes)
    while x.shape[axis] > 1:
        x = _sum_rows(x, axis)
    total = lax.reduce_sum(x, (axis,))  # of one term, or none
    return total.astype(dtype)


def _sum_rows(x: Array, axis: int) -> Array:
    """The axis cut into ROWS rows (or fewer, a power of two) that are added as a tree: log2(ROWS) of the levels at once."""
    n = x.shape[axis]
    rows = min(ROWS, 2 ** math.ceil(math.log2(n)))
    length = math.ceil(n / rows)
    if length > LANES:  # rounding up to the vector's length does not change ⌈log2 length⌉, the depth of what follows
        length = math.ceil(length / LANES) * LANES
    terms = []
    for i in range(rows):
        row = lax.slice_in_dim(x, min(i * length, n), min((i + 1) * length, n), axis=axis)
        missing = [(0, length - m if i == axis else 0, 0) for i, m in enumerate(row.shape)]
        terms.append(row if row.shape[axis] == length else lax.pad(row, np.zeros((), x.dtype), missing))
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2])]
    return lax.optimization_barrier(terms[0])


def _kahan_kernel(x: Array, *, axes: Axes, dtype: np.dtype) -> Array:
    x, axis = _one_axis(x, axes)

    def step(state: tuple[Array, Array], term: Array) -> tuple[tuple[Array, Array], None]:
        s, c = state
        y = term - c
        t = s + y
        return (t, jnp.where(jnp.isfinite(t), (t - s) - y, 0)), None

    x = jnp.moveaxis(x, axis, 0)
    zero = jnp.zeros_like(x, shape=x.shape[1:])
    return lax.scan(step, (zero, zero), x)[0][0].astype(dtype)


def _one_axis(x: Array, axes: tuple[int, ...]) -> tuple[Array, int]:
    """`x` in float32 or float64, with the summed axes as one."""
    x = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    x, axes = merge_axes(x, axes)
    if len(axes) == 1:
        return x, axes[0]
    x = jnp.moveaxis(x, axes, range(len(axes)))
    return x.reshape(math.prod(x.shape[: len(axes)]), *x.shape[len(axes) :]), 0


_pairwise = sum_primitive("pairwise_sum", {None: _pairwise_kernel})
_kahan = sum_primitive("kahan_sum", {None: _kahan_kernel})

# ---- the functions


def pairwise_sum(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""The sum by a tree of pairs of fixed shape: $|\hat s - s| \le \lceil \log_2 n \rceil u \sum |x_i|$.

    The shape of the tree depends only on the number of terms, so the bits do not depend on how a backend arranges
    `jnp.sum`. Adding one term after the other has $(n - 1) u$ in place of $\lceil \log_2 n \rceil u$. float16 and bfloat16
    are summed in float32 and rounded once.

    Args, returns, derivative and errors as for `compensated_sum`; a partial sum may overflow.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), section 4.2.

    >>> x = jnp.full(1000, 0.1, jnp.float32)
    >>> one_by_one = jnp.cumsum(x)[-1]
    >>> bool(abs(pairwise_sum(x) - 100) <= abs(one_by_one - 100))
    True
    """
    return _sum_by(_pairwise, "pairwise_sum", x, axis, dtype, keepdims, where)


def kahan_sum(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kahan's sum, one term after the other: $|\hat s - s| \le (2u + O(n u^2)) \sum |x_i|$. A reference, and slow.

    `compensated_sum` is faster and better: for 1, 1e100, 1, -1e100 in float64 it gives 2, this 0.

    Args, returns, derivative and errors as for `compensated_sum`; a partial sum may overflow.

    Source: Kahan, Further remarks on reducing truncation errors, CACM 8 (1965).

    >>> float(kahan_sum(jnp.array([1.0] + [2.0**-24] * 4, jnp.float32))) == 1 + 2.0**-22
    True
    """
    require_error_free()
    return _sum_by(_kahan, "kahan_sum", x, axis, dtype, keepdims, where)


def _sum_by(primitive, name: str, x, axis: Axis, dtype, keepdims: bool, where) -> Array:
    x, result = inexact(name, x, dtype)
    axes, mask = axes_of(name, axis, x.ndim), mask_of(name, where, x.shape)
    if not axes:
        return masked(x, mask).astype(result)
    real = real_part_of(result)
    total = real_or_complex(lambda part: primitive(part, axes=axes, dtype=real), masked(x, mask))
    return keep(total.astype(result), axes, keepdims)
