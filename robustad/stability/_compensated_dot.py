"""Compensated dot product and matrix product: as if computed in twice the precision and rounded once."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from robustad.stability._arguments import numbers
from robustad.stability._backend import require_error_free
from robustad.stability._error_free import rounded_once, split_kernel, two_prod_kernel, two_sum_kernel
from robustad.stability._primitive import linear_primitive
from robustad.stability._two_words import (
    Words,
    finish_or_scale,
    from_float64,
    rounded,
    sum_in_float64,
    sum_in_two_words,
)

# Measured: a matrix product is one loop over k that updates the whole result, unless the result is this small.
SMALL = 2**22
UNROLL = 4

# ---- kernels: (batch, m, k) times (batch, k, n)


def matmul_kernel(a: Array, b: Array) -> Array:
    """For hardware with float64."""
    if a.dtype == jnp.float64:
        return two_word_matmul_kernel(a, b)
    if a.shape[2] == 1:
        return _outer(a, b)
    dtype = a.dtype

    def product(u: Array, v: Array) -> Array:  # exact: 48 bits
        return lax.convert_element_type(u, jnp.float64) * lax.convert_element_type(v, jnp.float64)

    with jax.enable_x64(True):
        if min(a.shape[1], b.shape[2]) == 1:
            pair, axes = _rows_and_columns(a, b)
            result = sum_in_float64(product, pair, axes)
        else:
            a, b = (lax.convert_element_type(x, jnp.float64) for x in (a, b))
            result = lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST)
        return from_float64(result, dtype)


def two_word_matmul_kernel(a: Array, b: Array) -> Array:
    """For float64, and for hardware without it."""
    dtype = a.dtype
    if dtype != jnp.float64:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if a.shape[2] == 1:
        return _outer(a, b).astype(dtype)
    small = min(a.shape[1], b.shape[2]) == 1 or a.size * b.shape[2] <= SMALL

    def words(a: Array, b: Array, fast: bool = True) -> Words:
        if not small:
            return _words_by_updates(a, b)
        pair, axes = _rows_and_columns(a, b)
        return sum_in_two_words(two_prod_kernel, pair, axes, fast)

    def scaled() -> Array:
        (u, u_scale), (v, v_scale) = _scaled(a, 2), _scaled(b, 1)
        return rounded(words(u, v, fast=False)) * u_scale * v_scale

    return finish_or_scale(words(a, b), rounded, scaled).astype(dtype)


def _words_by_updates(a: Array, b: Array) -> Words:
    """A loop over k that adds the products of a column and a row, with their errors, to the whole result."""
    steps = math.ceil(a.shape[2] / UNROLL)
    missing = steps * UNROLL - a.shape[2]
    a = jnp.pad(a, ((0, 0), (0, 0), (0, missing)))
    b = jnp.pad(b, ((0, 0), (0, missing), (0, 0)))
    columns, rows = [a, *split_kernel(a)], [b, *split_kernel(b)]

    def step(i: Array, packed: Array) -> Array:
        s, e = lax.real(packed), lax.imag(packed)
        for k in range(UNROLL):
            u, u_high, u_low = (lax.dynamic_slice_in_dim(x, i * UNROLL + k, 1, axis=2) for x in columns)
            v, v_high, v_low = (lax.dynamic_slice_in_dim(x, i * UNROLL + k, 1, axis=1) for x in rows)
            p = rounded_once(u * v)
            s, error = two_sum_kernel(s, p)
            e = e + (error + (((u_high * v_high - p) + u_high * v_low + u_low * v_high) + u_low * v_low))
        return lax.complex(s, e)

    zero = jnp.zeros((a.shape[0], a.shape[1], b.shape[2]), a.dtype)
    packed = lax.fori_loop(0, steps, step, lax.complex(zero, zero))
    return lax.real(packed), lax.imag(packed)


def _rows_and_columns(a: Array, b: Array) -> tuple[list[Array], tuple[int, ...]]:
    """Both as (batch, m, n, k), and the axis to sum."""
    shape = (a.shape[0], a.shape[1], b.shape[2], a.shape[2])
    a = lax.broadcast_in_dim(a, shape, (0, 1, 3))
    return [a, lax.broadcast_in_dim(lax.transpose(b, (0, 2, 1)), shape, (0, 2, 3))], (3,)


def _outer(a: Array, b: Array) -> Array:
    return a * b


def _scaled(x: Array, axis: int) -> tuple[Array, Array]:
    """Along `axis`, `x` by a power of two so that no sum of 2 ** 32 products of such vectors overflows; and the inverse."""
    middle = jnp.finfo(x.dtype).maxexp // 2
    large = jnp.any(jnp.isfinite(x) & (jnp.abs(x) >= x.dtype.type(2.0 ** (middle - 16))), axis, keepdims=True)
    shift = x.dtype.type(2.0 ** (middle + 16))
    return x * jnp.where(large, 1 / shift, x.dtype.type(1)), jnp.where(large, shift, x.dtype.type(1))


# ---- the primitive


def _plain(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))))


def _transpose(x: Array) -> Array:
    return lax.transpose(x, (0, 2, 1))


def _batch(size: int, operands, batch_axes) -> Array:
    (a, b), (i, j) = operands, batch_axes
    if j is None:  # the batch joins the rows of a
        a = jnp.moveaxis(a, i, 1)
        n, _, m, k = a.shape
        return jnp.moveaxis(_matmul(a.reshape(n, size * m, k), b).reshape(n, size, m, b.shape[2]), 1, 0)
    if i is None:  # the columns of b
        b = jnp.moveaxis(b, j, 2)
        n, k, _, m = b.shape
        return jnp.moveaxis(_matmul(a, b.reshape(n, k, size * m)).reshape(n, a.shape[1], size, m), 2, 0)
    a, b = jnp.moveaxis(a, i, 0), jnp.moveaxis(b, j, 0)
    n = a.shape[1]
    result = _matmul(a.reshape(size * n, *a.shape[2:]), b.reshape(size * n, *b.shape[2:]))
    return result.reshape(size, n, *result.shape[1:])


_matmul = linear_primitive(
    "compensated_matmul",
    kernels={None: matmul_kernel, "tpu": two_word_matmul_kernel},
    shape=_plain,
    transposes={
        0: lambda cotangent, a, b: _matmul(cotangent, _transpose(b)),
        1: lambda cotangent, a, b: _matmul(_transpose(a), cotangent),
    },
    batch=_batch,
)


def _real_or_complex(a: Array, b: Array) -> Array:
    if not jnp.iscomplexobj(a):
        return _matmul(a, b)
    # One sum for each part, so that what cancels between the real and imaginary products is compensated too.
    parts = jnp.concatenate([b.real, b.imag], 1)
    crossed = jnp.concatenate([b.imag, b.real], 1)
    return lax.complex(
        _matmul(jnp.concatenate([a.real, -a.imag], 2), parts), _matmul(jnp.concatenate([a.real, a.imag], 2), crossed)
    )


# ---- the functions


def compensated_dot(a: ArrayLike, b: ArrayLike) -> Array:
    r"""The dot product, as if computed in twice the precision and rounded once.

    For vectors of length $n$, $|\hat r - a^T b| \le u |a^T b| + (n u)^2 |a|^T |b|$ to first order, barring underflow: half
    an ulp while the condition number $2 |a|^T|b| / |a^T b|$ stays below $2 / (n^2 u)$; `jnp.dot` loses all digits at $1/u$.
    float32 and narrower products are exact in float64 and are accumulated there; float64 products (and all on TPU) are split
    by `two_prod` and accumulated as two words.

    Infinities and NaN come out as IEEE arithmetic gives them. Where a product or partial sum overflows and the result does
    not, it is computed again from scaled factors. An error term below the smallest normal is lost: products should be 0 or
    above $2^{e_{\min} + 2p}$ in float64.

    Args:
        a, b: arrays as in `jnp.dot`: the last axis of `a` against the last but one of `b` (the only one of a vector). A
            scalar multiplies. Real or complex (not conjugated). Integers and booleans become the default float.

    Returns:
        The product. Its tangent is the sum of the compensated products with the tangents, its cotangents are compensated
        products.

    Raises:
        TypeError, ValueError: where dtypes or lengths do not fit.
        BackendError: if the backend's arithmetic does not round each operation once.

    Source: Ogita, Rump and Oishi, Accurate Sum and Dot Product, SIAM J. Sci. Comput. 26 (2005), algorithm 5.3.

    >>> a, b = jnp.array([1e8, 1.0, -1e8], jnp.float32), jnp.array([1.0, 1.0, 1.0], jnp.float32)
    >>> float(compensated_dot(a, b)), float(1e8 * b[0] + b[1] - 1e8 * b[2])
    (1.0, 0.0)
    """
    a, b = _factors("compensated_dot", a, b)
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    inner = b.ndim - 2 if b.ndim > 1 else 0
    _check_lengths("compensated_dot", a, b, inner)
    columns = jnp.moveaxis(b, inner, 0)
    result = _real_or_complex(_stack_rows(a), columns.reshape(1, b.shape[inner], math.prod(columns.shape[1:])))
    return result.reshape(a.shape[:-1] + columns.shape[1:])


def compensated_matmul(a: ArrayLike, b: ArrayLike) -> Array:
    r"""The matrix product, each entry as `compensated_dot`.

    Args:
        a, b: arrays as in `jnp.matmul`: matrices in the last two axes, vectors, and leading axes that broadcast.

    Returns, derivatives and errors as for `compensated_dot`; scalars are refused.

    >>> a = jnp.array([[1e8, 1.0, -1e8]], jnp.float32)
    >>> float(compensated_matmul(a, jnp.ones((3, 1)))[0, 0])
    1.0
    """
    a, b = _factors("compensated_matmul", a, b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(
            "compensated_matmul takes vectors, matrices or stacks of them, got a scalar. Multiply with `*`."
        )
    _check_lengths("compensated_matmul", a, b, b.ndim - 2 if b.ndim > 1 else 0)
    row, column = a.ndim == 1, b.ndim == 1
    a, b = a[None] if row else a, b[:, None] if column else b
    if b.ndim == 2:  # every matrix of the stack meets the same b: one product
        result = _real_or_complex(_stack_rows(a), b[None]).reshape(*a.shape[:-1], b.shape[-1])
    else:
        stack = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        flat = [jnp.broadcast_to(x, stack + x.shape[-2:]).reshape(math.prod(stack), *x.shape[-2:]) for x in (a, b)]
        result = _real_or_complex(*flat).reshape(*stack, a.shape[-2], b.shape[-1])
    if column:
        result = result[..., 0]
    return result[..., 0, :] if row and not column else result[..., 0] if row else result


def _stack_rows(a: Array) -> Array:
    return a.reshape(1, math.prod(a.shape[:-1]), a.shape[-1])


def _factors(name: str, a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    require_error_free()
    numbers(name, a=a, b=b)
    dtype = jnp.result_type(a, b)  # refuses what strict promotion refuses
    if not jnp.issubdtype(dtype, jnp.inexact):
        dtype = jnp.result_type(float)
    return jnp.asarray(a, dtype), jnp.asarray(b, dtype)


def _check_lengths(name: str, a: Array, b: Array, inner: int) -> None:
    if a.shape[-1] != b.shape[inner]:
        raise ValueError(
            f"{name}: the last axis of `a` must be as long as axis {inner} of `b`, got shapes {a.shape} and {b.shape}."
        )
