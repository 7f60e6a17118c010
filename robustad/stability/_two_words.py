"""Sums of many terms in about twice the precision: the kernels under the compensated functions.

Two ways. A sum of float32 (or narrower) terms is accumulated in float64 where the hardware has it. A sum of float64 terms,
or of float32 on hardware without float64 (TPU), is accumulated as two words (s, e): s by `two_sum`, whose errors are summed
in e (Ogita, Rump and Oishi, Accurate Sum and Dot Product, SIAM J. Sci. Comput. 26, 2005).

What decides the speed on CPU: a loop over few long rows, fused into one kernel, reads the input once, is vectorised and runs
on all threads; a reduction of two operands is neither. So a long axis is first folded: about 24 rows are added elementwise,
and only the short rest goes through a reduction. A fused kernel has one result: the two words leave it as one complex
number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.stability._error_free import opaque, two_sum_kernel

Words = tuple[Array, Array]

# Measured: 16 to 32 rows are equally fast, 8 or 64 slower; rows whose length is no multiple of 8 are 3 times slower; below
# 2 ** 16 elements one more kernel costs more than it saves.
STREAMS = 24  # rows that are read at the same time, of all operands
LANES = 8
LARGE = 2**16


def sum_in_float64(load: Callable[..., Array], operands: Sequence[Array], axes: Sequence[int]) -> Array:
    """Σ load(*operands) over `axes`, in float64; call inside `jax.enable_x64(True)`. `load` is elementwise, to float64."""
    axis = _axis_to_fold(operands[0].shape, axes)
    if axis is None:
        return lax.reduce_sum(load(*operands), axes)
    rows, tail = _rows(operands, axis)
    total = load(*rows[0])
    for row in rows[1:]:
        total = total + load(*row)
    # `opaque`, or XLA takes the rows apart again and gives the sum to a library (measured: 12 times slower).
    total = lax.reduce_sum(opaque(total), axes)
    return total if tail is None else total + sum_in_float64(load, tail, axes)


def from_float64(x: Array, dtype: np.dtype) -> Array:
    """x rounded once; call inside `jax.enable_x64(True)`.

    XLA rounds to float16 and bfloat16 by way of float32: that step is to odd here, so that the last one decides (Boldo and
    Melquiond, Emulation of FMA and correctly rounded sums, IEEE Trans. Comput. 57, 2008).
    """
    near = lax.convert_element_type(x, jnp.float32)
    if jnp.dtype(dtype).itemsize >= 4:
        return lax.convert_element_type(x, dtype)
    back, bits = lax.convert_element_type(near, jnp.float64), lax.bitcast_convert_type(near, jnp.int32)
    bits = lax.select(lax.abs(back) > lax.abs(x), bits - np.int32(1), bits)  # towards zero
    odd = lax.bitcast_convert_type(lax.select(back == x, bits, bits | np.int32(1)), jnp.float32)
    return lax.convert_element_type(lax.select(lax.is_finite(near), odd, near), dtype)


def sum_in_two_words(
    load: Callable[..., Words], operands: Sequence[Array], axes: Sequence[int], fast: bool = True
) -> Words:
    """Σ load(*operands) over `axes` as (s, e), not normalised; where s is not finite, e means nothing.

    `fast=False` compiles less, for what is rarely run.
    """
    axis = _axis_to_fold(operands[0].shape, axes) if fast else None
    if axis is None:
        return _reduce(load(*operands), axes)
    rows, tail = _rows(operands, axis)
    total = load(*rows[0])
    for row in rows[1:]:
        total = add_words(total, load(*row))
    total = _reduce(_folded_in_a_loop(lax.complex(*total), axis), axes)
    return total if tail is None else add_words(total, sum_in_two_words(load, tail, axes))


def _folded_in_a_loop(packed: Array, axis: int) -> Words:
    """The axis folded to an eighth. In a loop, which XLA cannot merge with what computes `packed`.

    It would merge a reduction with that (measured on jax 0.10.2, where `optimization_barrier` is dropped early: rows of
    float64 are then summed 5 times slower), and look through `lax.complex` into a branch of a `cond` (20 times slower).
    """
    step = packed.shape[axis] // LANES

    def body(i: Array, total: Array) -> Array:
        part = lax.dynamic_slice_in_dim(packed, i * step, step, axis)
        return lax.complex(*add_words(_unpack(total), _unpack(part)))

    shape = [step if i == axis else n for i, n in enumerate(packed.shape)]
    return _unpack(lax.fori_loop(0, LANES, body, jnp.zeros(shape, packed.dtype)))


def finish_or_scale(words: Words, finish: Callable[[Words], Array], scaled: Callable[[], Array]) -> Array:
    """finish(words), but scaled() where s overflowed on the way (or is truly not finite: then that is the same again)."""

    def careful() -> Array:
        return jnp.where(finite, finish(words), scaled())

    finite = jnp.isfinite(words[0]) & jnp.isfinite(words[1])
    return lax.cond(jnp.all(finite), lambda: finish(words), careful)


def add_words(a: Words, b: Words) -> Words:
    s, error = two_sum_kernel(a[0], b[0])
    return s, error + (a[1] + b[1])


def rounded(words: Words) -> Array:
    """s + e, or s where s is an infinity or NaN."""
    s, e = words
    return jnp.where(jnp.isfinite(s), s + e, s)


def merge_axes(x: Array, axes: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """`x` with neighbouring summed axes merged into one, and the axes that are then summed."""
    shape: list[int] = []
    summed: list[bool] = []
    for i, n in enumerate(x.shape):
        if summed and i in axes and summed[-1]:
            shape[-1] *= n
        else:
            shape.append(n)
            summed.append(i in axes)
    return x.reshape(shape), tuple(i for i, s in enumerate(summed) if s)


def _unpack(z: Array) -> Words:
    return lax.real(z), lax.imag(z)


def _reduce(words: Words, axes: Sequence[int]) -> Words:
    zero = np.zeros((), words[0].dtype)
    return lax.reduce(words, (zero, zero), add_words, axes)


def _axis_to_fold(shape: Sequence[int], axes: Sequence[int]) -> int | None:
    longest = max(axes, key=lambda i: shape[i], default=None)
    if longest is None or shape[longest] < 2 * LANES or math.prod(shape) < LARGE:
        return None
    return longest


def _rows(operands: Sequence[Array], axis: int) -> tuple[list[list[Array]], list[Array] | None]:
    """The axis cut into rows of one length, and what is left, or None."""
    n = operands[0].shape[axis]
    length = max(LANES, n // (STREAMS // len(operands)) // LANES * LANES)
    rows = n // length

    def cut(start: int, stop: int) -> list[Array]:
        return [lax.slice_in_dim(x, start, stop, axis=axis) for x in operands]

    tail = cut(rows * length, n) if rows * length < n else None
    return [cut(i * length, (i + 1) * length) for i in range(rows)], tail
