r"""Exact sums as integers: digits of 24 bits, and their one rounding back to floating point.

A finite float is an integer multiple of the smallest subnormal of its format. So the sum of any number of floats is a
fixed-point integer, here in digits of 24 bits, the lowest first. Additions of integers are exact: neither the order nor the
grouping of the terms can be seen in the digits, and the sum is rounded once, at the end (Kulisch's long accumulator).
There is room for :math:`2^{40}` terms of the largest finite magnitude.

Everything here is integer arithmetic on explicit dtypes, to be called inside `jax.enable_x64(True)` (see `wide`): no flag of
the compiler, no flushing of subnormals and no missing float64 unit can change a bit.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

WIDTH = 24  # the precision of float32: one touches at most two digits
MASK = np.int64((1 << WIDTH) - 1)
HALF = np.int64(1 << (WIDTH - 1))
TERMS = 40  # log2 of how many terms of the largest magnitude fit
SUMMANDS = 2 ** (31 - (WIDTH - 1)) - 1  # balanced digits are at most 2^23: so many add up within int32


def wide(function: Callable) -> Callable:
    """`function` with 64-bit types, whatever the caller's setting."""

    @functools.wraps(function)
    def inner(*args, **kwargs):
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return inner


def storage(dtype) -> np.dtype:
    """The format whose units are counted: half precisions are exact in float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def unit(dtype) -> int:
    """The exponent of the smallest subnormal."""
    info = jnp.finfo(dtype)
    return int(info.minexp) - int(info.nmant)


def precision(dtype) -> int:
    return int(jnp.finfo(dtype).nmant) + 1


def limbs(dtype) -> int:
    """How many digits the sums of a format take: its range and `TERMS` bits, of which the highest digit holds 31."""
    bits = int(jnp.finfo(dtype).maxexp) - unit(dtype) + TERMS
    return math.ceil((bits - 31) / WIDTH) + 1


def bits_of(x: Array) -> Array:
    """The bit pattern in the storage format, as int32 or int64; no arithmetic, so subnormals survive."""
    if x.dtype == jnp.bfloat16:
        return lax.convert_element_type(lax.bitcast_convert_type(x, np.int16), np.int32) << np.int32(16)
    if x.dtype == np.float16:
        x = lax.convert_element_type(x, np.float32)
    return lax.bitcast_convert_type(x, np.int64 if x.dtype == np.float64 else np.int32)


def magnitude(bits: Array) -> Array:
    return bits & np.iinfo(bits.dtype).max


def infinity(bits_dtype) -> int:
    """The bit pattern of inf; a larger magnitude is a NaN."""
    return 0x7F800000 if bits_dtype == np.int32 else 0x7FF0000000000000


def finite_magnitude(bits: Array) -> Array:
    """The magnitude pattern; 0 for infinities and NaN."""
    size = magnitude(bits)
    return lax.select(size < bits.dtype.type(infinity(bits.dtype)), size, lax.full_like(size, 0))


def parts(bits: Array) -> tuple[Array, Array]:
    """Mantissa (int64) and the position of its lowest bit in units (int32); infinities and NaN have mantissa 0."""
    word, fraction = bits.dtype.type, precision(np.float32 if bits.dtype == np.int32 else np.float64) - 1
    bits = finite_magnitude(bits)
    exponent = bits >> word(fraction)
    mantissa = bits & word((1 << fraction) - 1)
    mantissa = lax.select(exponent > word(0), mantissa | word(1 << fraction), mantissa)
    position = lax.max(exponent, lax.full_like(exponent, 1)) - word(1)
    return lax.convert_element_type(mantissa, np.int64), lax.convert_element_type(position, np.int32)


def shift(value: Array, left: Array) -> Array:
    """`value` times 2^left, rounded down: a shift to either side, whose count may exceed the word."""
    left = lax.convert_element_type(left, np.int64)
    zero, last = np.int64(0), np.int64(63)
    up = lax.select(left > last, lax.full_like(value, 0), value << lax.clamp(zero, left, last))
    return lax.select(left >= zero, up, value >> lax.clamp(zero, -left, last))


def deposit(value: Array, position: Array, count: int) -> Array:
    """The digits of `value` · 2^position, |value| < 2^63, each with its sign and below 2^24: int32 `(count, *shape)`."""
    size = lax.abs(value)[None]
    start = lax.broadcasted_iota(np.int32, (count, *value.shape), 0) * np.int32(WIDTH)
    digit = shift(lax.broadcast_in_dim(size[0], start.shape, tuple(range(1, start.ndim))), position[None] - start)
    digit = digit & MASK
    digit = lax.select(lax.broadcast(value < 0, (count,)), -digit, digit)
    return lax.convert_element_type(digit, np.int32)


def _carry(digits: Array, offset: np.int64) -> tuple[Array, Array]:
    """Digits in [-offset, 2^24 - offset), int64, and what is carried out of the highest."""

    def step(carry: Array, digit: Array) -> tuple[Array, Array]:
        total = digit + carry
        carry = (total + offset) >> np.int64(WIDTH)
        return carry, total - (carry << np.int64(WIDTH))

    digits = lax.convert_element_type(digits, np.int64)
    carry, digits = lax.scan(step, digits[0] - digits[0], digits)
    return digits, carry


def balanced(digits: Array) -> Array:
    """The same sum in digits of at most 2^23, but for the highest, which keeps what is carried into it; int32."""
    low, carry = _carry(digits[:-1], HALF)
    high = lax.convert_element_type(digits[-1], np.int64) + carry
    return lax.convert_element_type(lax.concatenate([low, high[None]], 0), np.int32)


def absolute(digits: Array) -> tuple[Array, Array]:
    """Of balanced digits, whether the sum is negative, and those of its magnitude: in [0, 2^24), int64, one more."""
    index = lax.broadcasted_iota(np.int32, digits.shape, 0) * np.int32(2) + np.int32(2)
    last = lax.select(
        digits == np.int32(0), lax.full_like(index, 0), index + lax.convert_element_type(digits < 0, np.int32)
    )
    negative = lax.reduce_max(last, (0,)) & np.int32(1) == np.int32(
        1
    )  # the sign is that of the highest digit that is not 0
    digits = lax.select(lax.broadcast(negative, (len(digits),)), -digits, digits)
    digits, carry = _carry(digits, np.int64(0))
    return negative, lax.concatenate([digits, carry[None]], 0)


def divided(digits: Array, divisor: Array) -> tuple[Array, Array]:
    """Digits of the magnitude over a positive integer below 2^39, two more at the low end, and whether a rest is left."""

    def step(rest: Array, digit: Array) -> tuple[Array, Array]:
        rest = (rest << np.int64(WIDTH)) | digit
        quotient = lax.div(rest, divisor)
        return rest - quotient * divisor, quotient

    zeros = digits[:1] - digits[:1]
    digits = lax.concatenate([zeros, zeros, digits], 0)
    rest, digits = lax.scan(step, zeros[0], digits, reverse=True)
    return digits, rest != np.int64(0)


def rounded(negative: Array, digits: Array, base: Array | np.int32, dtype, rest: Array | None = None) -> Array:
    r"""The float of `dtype` nearest to :math:`\pm\sum_l d_l 2^{24 l + base}` (ties to even), magnitude digits as
    from `absolute`.

    `base` is one for all, or of the shape of `negative`; `rest` says where a little more than the digits is meant.
    """
    index = lax.broadcasted_iota(np.int32, digits.shape, 0)
    length = np.int32(64) - lax.convert_element_type(lax.clz(digits), np.int32)
    length = lax.select(digits > np.int64(0), index * np.int32(WIDTH) + length, lax.full_like(length, 0))
    length = lax.reduce_max(length, (0,))
    lowest = lax.full_like(length, unit(dtype)) - base
    cut = lax.max(length - np.int32(precision(dtype)), lowest)

    start = index * np.int32(WIDTH) - cut[None]
    kept = lax.reduce(shift(digits, start), np.int64(0), lax.add, (0,))
    within = (start < np.int32(0)) & (start >= np.int32(-WIDTH))  # the bit below the cut lies in this digit
    half = within & (shift(digits, start + np.int32(1)) & np.int64(1) == np.int64(1))
    half = lax.reduce(half, np.bool_(False), lax.bitwise_or, (0,))
    below = lax.clamp(np.int32(0), -start - np.int32(1), np.int32(WIDTH))
    sticky = (digits & (shift(lax.full_like(digits, 1), below) - np.int64(1))) != np.int64(0)
    sticky = lax.reduce(sticky, np.bool_(False), lax.bitwise_or, (0,))
    return _packed(negative, kept, half, sticky if rest is None else sticky | rest, cut - lowest, dtype)


def rounded_word(word: Array, base: Array, dtype) -> Array:
    """The float of `dtype` nearest to word · 2^base, for int64 below 2^63 and an exponent of each."""
    size = lax.abs(word)
    length = np.int32(64) - lax.convert_element_type(lax.clz(size), np.int32)
    lowest = np.int32(unit(dtype)) - base
    cut = lax.max(length - np.int32(precision(dtype)), lowest)
    half = (shift(size, np.int32(1) - cut) & np.int64(1) == np.int64(1)) & (cut > np.int32(0))
    below = lax.clamp(np.int32(0), cut - np.int32(1), np.int32(63))
    sticky = (size & (shift(lax.full_like(size, 1), below) - np.int64(1))) != np.int64(0)
    return _packed(word < np.int64(0), shift(size, -cut), half, sticky, cut - lowest, dtype)


def _packed(negative: Array, kept: Array, half: Array, sticky: Array, exponent: Array, dtype) -> Array:
    """A float from a mantissa with its hidden bit, what was cut off below it, and how far it is above the subnormals."""
    info, fraction = jnp.finfo(dtype), np.int64(precision(dtype) - 1)
    infinite = (1 << (info.bits - 1 - int(fraction))) - 1
    kept = kept + lax.convert_element_type(half & (sticky | (kept & np.int64(1) == np.int64(1))), np.int64)
    # added to the exponent, the hidden bit counts as 1, and a carry out of the mantissa moves the exponent up
    normal = lax.convert_element_type(lax.min(exponent, lax.full_like(exponent, infinite - 2)), np.int64)
    pattern = (normal << fraction) + kept
    pattern = lax.select(exponent > np.int32(infinite - 2), lax.full_like(pattern, infinite << int(fraction)), pattern)
    pattern = lax.select(kept == np.int64(0), lax.full_like(pattern, 0), pattern)
    sign = np.int64(np.iinfo(np.int64).min >> (64 - info.bits))  # its low bits are the sign bit of the format
    pattern = lax.select(negative & (pattern != np.int64(0)), pattern | sign, pattern)
    return lax.bitcast_convert_type(lax.convert_element_type(pattern, np.dtype(f"int{info.bits}")), dtype)
