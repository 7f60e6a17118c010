r"""Sums over one axis, exact in integers; and the same sums in one fast pass over float32 where that is enough.

`digits_of_sum` is defined for every input. A term is cut into pieces of as many bits as leave room for the number of
terms in int64, at positions that start below the largest term; all pieces of one position add up exactly. A few
passes reach the lowest bit of the smallest term.

`rounded_sum` of float32 first tries one pass: terms are rounded to a multiple of q, 51 bits below the largest, by adding
:math:`M = 1.5\cdot 2^{52} q` in float64, whose low bits are then the integer x/q. The n integers add up exactly, and
the exact sum of the terms is within :math:`nq/2`. If both ends of that interval round to one float32, it is the
rounded exact sum; otherwise `digits_of_sum` decides. So the result is always the exact sum rounded once, and no
order, layout or choice of path can be seen in it.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import numpy as np
from jax import Array, lax

from robustad.stability import _digits

FAN = 32  # XLA:CPU unrolls and vectorises a reduction over so many major rows; over 40 it takes 20 times as long
WINDOW = 51  # bits of x/q in x + M: M's low 52 bits, and the sign

CHUNK = 1 << 16  # terms summed exactly at a time: XLA reserves memory for what it may have to hold, and that takes time
MANY = (
    1 << 16
)  # of more terms, whether each is a multiple of q is not looked at: ends that differ are rare, a pass is not

Value = Callable[..., Array]  # from bit patterns to what is reduced
Factors = Sequence[Callable[[Array], Array]] | None


def _lanes(n: int) -> int:
    """How long the rows of a first stage are; the next one must not be a mere reshape of all of them, or XLA merges the two
    in spite of the barrier (measured: 15 times slower)."""
    lanes = n // FAN
    return lanes - 1 if lanes > FAN and lanes % FAN == 0 else lanes


def first_stage(
    patterns: Sequence[Array], value: Value, initial, combine: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """Reductions of 32 rows each, `(outer, n // 32, inner)`, and of the rows that are left over, `(outer, inner)`."""
    n = patterns[0].shape[1]
    lanes = _lanes(n)
    # the rows are cut from the input, not from the values, lest XLA writes the values to memory
    rows = [lax.slice_in_dim(x, 0, FAN * lanes, axis=1).reshape(x.shape[0], FAN, lanes, x.shape[2]) for x in patterns]
    main = lax.optimization_barrier(lax.reduce(value(*rows), initial, combine, (1,)))  # else the stages are merged
    rest = [lax.slice_in_dim(x, FAN * lanes, n, axis=1) for x in patterns]
    return main, lax.reduce(value(*rest), initial, combine, (1,))


def over_axis(patterns: Sequence[Array], value: Value, initial, combine: Callable[[Array, Array], Array]) -> Array:
    """Reduce `value(*patterns)` over the middle axis of `(outer, n, inner)`, 32 rows at a time."""
    n = patterns[0].shape[1]
    if n <= FAN:
        return lax.reduce(value(*patterns), initial, combine, (1,))
    main, rest = first_stage(patterns, value, initial, combine)
    main = over_axis((main,), lambda x: x, initial, combine)
    return main if n == FAN * _lanes(n) else combine(main, rest)


def reach(bits: Array) -> tuple[Array, Array]:
    """The positions between which the bits of the finite terms lie: above the highest, and of the lowest."""

    def low(bits: Array) -> Array:
        mantissa, position = _digits.parts(bits)
        zeros = lax.population_count((mantissa - np.int64(1)) & ~mantissa)
        position = position + lax.convert_element_type(zeros, np.int32)
        return lax.select(mantissa == np.int64(0), lax.full_like(position, last), position)

    last = np.iinfo(np.int32).max
    _, top = _digits.parts(over_axis((bits,), _digits.finite_magnitude, bits.dtype.type(0), lax.max))
    top = top + np.int32(_digits.precision(np.float32 if bits.dtype == np.int32 else np.float64))
    return top, over_axis((bits,), low, np.int32(last), lax.min)


def piece(bits: Array, low: Array, width: Array) -> Array:
    """The bits of each term at the positions [low, low + width), with its sign, as an integer."""
    mantissa, position = _digits.parts(bits)
    kept = _digits.shift(lax.full_like(mantissa, 1), lax.full_like(position, 0) + width) - np.int64(1)
    kept = _digits.shift(mantissa, position - low) & kept
    return lax.select(bits < bits.dtype.type(0), -kept, kept)


def _one_term(bits: Array, dtype) -> Array:
    mantissa, position = _digits.parts(bits)
    signed = lax.select(bits < bits.dtype.type(0), -mantissa, mantissa)
    return _digits.deposit(signed, position, _digits.limbs(dtype))


def flags(bits: Array) -> Array:
    """1 for +inf, 2 for -inf, both for a NaN, 0 for the rest."""
    inf, size = bits.dtype.type(_digits.infinity(bits.dtype)), _digits.magnitude(bits)
    one, two, three = (lax.full(bits.shape, np.int32(flags)) for flags in (1, 2, 3))
    signed = lax.select(size > inf, three, lax.select(bits < bits.dtype.type(0), two, one))
    return lax.select(size >= inf, signed, lax.full_like(signed, 0))


def _infinities(bits: Array) -> Array:
    """Whether there is +inf and whether there is -inf, as int32 `(2, outer, inner)`; a NaN counts as both."""
    # by maxima: of arrays that are sharded, XLA:CPU has no reduction by `or`
    met = [
        over_axis((bits,), lambda bits, i=i: flags(bits) >> np.int32(i) & np.int32(1), np.int32(0), lax.max)
        for i in (0, 1)
    ]
    return lax.concatenate([has[None] for has in met], 0)


def digits_of_sum(x: Array) -> Array:
    """The exact sum over the middle axis: balanced digits and two rows of `_infinities`: int32 `(rows, outer, inner)`."""
    outer, n, inner = x.shape
    rows = 1
    while rows < n and rows * FAN * outer * inner <= CHUNK:
        rows *= FAN  # so that no rows are left over in `over_axis`, which would have to be compiled
    if n <= rows:
        return _digits_of_few(x)

    def chunk(i: Array, digits: Array) -> Array:
        first = i * np.int32(rows)
        start = lax.min(first, np.int32(n - rows))  # the last chunk laps over the one before it
        terms = lax.dynamic_slice(x, (np.int32(0), start, np.int32(0)), (outer, rows, inner))
        new = lax.broadcasted_iota(np.int32, terms.shape, 1) >= first - start
        return merged(digits, _digits_of_few(lax.select(new, terms, lax.full_like(terms, 0))))

    zeros = lax.full((_digits.limbs(_digits.storage(x.dtype)) + 2, outer, inner), np.int32(0))
    return lax.fori_loop(np.int32(0), np.int32(-(-n // rows)), chunk, zeros)


def merged(*digits: Array) -> Array:
    """The sum of at most `SUMMANDS` results of `digits_of_sum`."""
    return normal(functools.reduce(lax.add, digits))


def normal(digits: Array) -> Array:
    """Digits that were added up, balanced again."""
    flags = lax.min(digits[-2:], lax.full_like(digits[-2:], 1))
    return lax.concatenate([_digits.balanced(digits[:-2]), lax.convert_element_type(flags, np.int32)], 0)


def _digits_of_few(x: Array) -> Array:
    dtype, bits, n = _digits.storage(x.dtype), _digits.bits_of(x), x.shape[1]
    if n == 1:
        return lax.concatenate([_digits.balanced(_one_term(bits[:, 0], dtype)), _infinities(bits)], 0)
    count, room = _digits.limbs(dtype), 62 - max(n - 1, 1).bit_length()
    top, lowest = reach(bits)

    def unfinished(state: tuple[Array, Array]) -> Array:
        return lax.reduce_or(state[0] > lowest, (0, 1))

    def window(state: tuple[Array, Array]) -> tuple[Array, Array]:
        top, digits = state
        low = lax.max(top - np.int32(room), lax.full_like(top, 0))
        width = top - low

        def value(bits: Array) -> Array:
            middle = tuple(range(1, bits.ndim - 1))
            return piece(bits, *(lax.expand_dims(of, middle) for of in (low, width)))

        pieces = over_axis((bits,), value, np.int64(0), lax.add)
        return low, digits + _digits.deposit(pieces, low, count)

    digits = lax.full((count, *top.shape), np.int32(0))
    _, digits = lax.while_loop(unfinished, window, (top, digits))
    return lax.concatenate([_digits.balanced(digits), _infinities(bits)], 0)


def _quotient(negative: Array, size: Array, base, dtype, divisor: Array | None) -> Array:
    """Sign and digits rounded to `dtype`, over `divisor` where there is one; a quotient by 0 is NaN."""
    if divisor is None:
        return _digits.rounded(negative, size, base, dtype)
    size, rest = _digits.divided(size, lax.max(divisor, lax.full_like(divisor, 1)))
    result = _digits.rounded(negative, size, base - np.int32(2 * _digits.WIDTH), dtype, rest)
    return lax.select(divisor == np.int64(0), lax.full_like(result, np.nan), result)


def float_of(digits: Array, dtype, divisor: Array | None = None, scale: Array | None = None) -> Array:
    """The digits of `digits_of_sum`, times 2^scale, rounded once to `dtype`; or the quotient by integers, rounded once."""
    count = len(digits) - 2
    base = np.int32(_digits.unit(np.float64 if count == _digits.limbs(np.float64) else np.float32))
    result = _quotient(*_digits.absolute(digits[:-2]), base if scale is None else base + scale, dtype, divisor)
    return with_infinities(result, digits[-2] > np.int32(0), digits[-1] > np.int32(0))


def with_infinities(result: Array, positive: Array, negative: Array) -> Array:
    result = lax.select(positive, lax.full_like(result, np.inf), result)
    result = lax.select(negative, lax.full_like(result, -np.inf), result)
    return lax.select(positive & negative, lax.full_like(result, np.nan), result)


# ---- one pass in float64


def window(largest: Array) -> Array:
    """The exponent of q for float32 terms up to a bit pattern: 51 bits below, or above what the conversion may flush."""
    exponent = largest >> np.int32(23)
    return lax.max(exponent - np.int32(126 + WINDOW), lax.full_like(exponent, -125))


def shifter(exponent: Array) -> Array:
    """The bit pattern of M = 1.5 · 2^52 q as float64, for q = 2^exponent."""
    return (lax.convert_element_type(exponent + np.int32(1023 + 52), np.int64) << np.int64(52)) | np.int64(1 << 51)


def _shifted(patterns: Sequence[Array], shifter: Array, factors: Factors = None) -> tuple[Array, Array]:
    """A float32, or the product of two, each through its function if there are `factors`; and the same plus M."""
    wide = [lax.convert_element_type(lax.bitcast_convert_type(bits, np.float32), np.float64) for bits in patterns]
    x = functools.reduce(operator.mul, wide if factors is None else [f(x) for f, x in zip(factors, wide)])
    return x, x + lax.bitcast_convert_type(shifter, np.float64)


def count(patterns: Sequence[Array], shifter: Array, factors: Factors = None) -> Array:
    """round(x/q): the low bits of x + M."""
    return lax.bitcast_convert_type(_shifted(patterns, shifter, factors)[1], np.int64) - shifter


def inexact(patterns: Sequence[Array], shifter: Array, factors: Factors = None) -> Array:
    """1 where x is not a multiple of q, or subnormal: those the conversion may flush."""
    x, shifted = _shifted(patterns, shifter, factors)
    loses = shifted - lax.bitcast_convert_type(shifter, np.float64) != x
    for size in map(_digits.magnitude, patterns):
        loses |= (size > np.int32(0)) & (size < np.int32(1 << 23))
    return lax.convert_element_type(loses, np.int32)


def counts(
    patterns: Sequence[Array], exponent: Array, terms: int, factors: Factors = None
) -> tuple[Array, Array, Array]:
    """The sum of round(x/q) as low + 2^26 high, and how many x are not multiples of q (of many terms: how many may be).

    `patterns` are of the terms, or of two factors `(1 or outer, n, inner)`. `terms` is how many there are in all, if
    the sums of several parts are to be added.
    """
    n = patterns[0].shape[1]
    pattern, zero, low_half = shifter(exponent), np.int64(0), np.int64((1 << 26) - 1)

    def per_term(function: Callable[..., Array]) -> Value:
        return lambda *patterns: function(
            patterns, lax.expand_dims(pattern, tuple(range(1, patterns[0].ndim - 1))), factors
        )

    loses = (
        over_axis(patterns, per_term(inexact), np.int32(0), lax.add) if terms <= MANY else lax.full_like(exponent, n)
    )
    if terms <= FAN**2:
        low = over_axis(patterns, per_term(count), zero, lax.add)
        return low, lax.full_like(low, 0), loses
    # 32 counts at a time are below 2^56; then halves of 26 and of 30 bits, of which 2^33 add up
    main, rest = first_stage(patterns, per_term(count), zero, lax.add)
    low = over_axis((main,), lambda x: x & low_half, zero, lax.add) + (rest & low_half)
    high = over_axis((main,), lambda x: x >> np.int64(26), zero, lax.add) + (rest >> np.int64(26))
    return low, high, loses


def between(
    low: Array, high: Array, loses: Array, exponent: Array, zero: Array, dtype, divisor: Array | None
) -> tuple[Array, Array]:
    """The rounded sum from its `counts`, and whether it is certain: a term that loses is q/2 off at most. 0 where `zero`."""
    error = lax.convert_element_type((loses + np.int32(1)) >> np.int32(1), np.int64)
    ends = [_rounded_counts(end, high, exponent, dtype, divisor) for end in (low - error, low + error)]
    word = np.dtype(f"int{8 * np.dtype(dtype).itemsize}")
    same = lax.bitcast_convert_type(ends[0], word) == lax.bitcast_convert_type(ends[1], word)
    return lax.select(zero, lax.full_like(ends[0], 0), ends[0]), same | zero


def settled(
    low: Array, high: Array, loses: Array, largest: Array, dtype, divisor: Array | None = None
) -> tuple[Array, Array]:
    """As `between`, of terms up to a bit pattern."""
    zero = largest == np.int32(0)
    if divisor is not None:
        zero &= divisor != np.int64(0)
    result, certain = between(low, high, loses, window(largest), zero, dtype, divisor)
    return result, certain & (largest < np.int32(_digits.infinity(np.int32)))


def _rounded_counts(low: Array, high: Array, exponent: Array, dtype, divisor: Array | None) -> Array:
    # one word: all of it if high is small; else without the lowest 24 bits, but odd if there is something in them
    high = high + (low >> np.int64(26))
    low = low & np.int64((1 << 26) - 1)
    small = lax.abs(high) < np.int64(1 << 36)
    short = (high << np.int64(2)) | (low >> np.int64(24))
    short = short | lax.convert_element_type(low & _digits.MASK != np.int64(0), np.int64)
    word = lax.select(small, (high << np.int64(26)) | low, short)
    exponent = lax.select(small, exponent, exponent + np.int32(24))
    if divisor is None:
        return _digits.rounded_word(word, exponent, dtype)
    up = lax.clz(lax.abs(word)) - np.int64(1)
    word = word << lax.min(up, lax.full_like(up, 62))
    quotient = lax.div(word, lax.max(divisor, lax.full_like(divisor, 1)))
    rest = word - quotient * divisor != np.int64(0)
    # towards zero, and odd if there is a rest
    quotient = lax.select(rest & (quotient == np.int64(0)), lax.sign(word), quotient)
    quotient = lax.sign(quotient) * (lax.abs(quotient) | lax.convert_element_type(rest, np.int64))
    result = _digits.rounded_word(quotient, exponent - lax.convert_element_type(up, np.int32), dtype)
    return lax.select(divisor == np.int64(0), lax.full_like(result, np.nan), result)


def rounded_sum(x: Array, dtype, float64: bool, divisor: Array | None = None) -> Array:
    """The exact sum over the middle axis of `(outer, n, inner)`, or its quotient by `(outer, inner)` integers, rounded once.

    `float64`: float64 is IEEE arithmetic here.
    """
    n = x.shape[1]
    if n == 0:
        empty = lax.full((x.shape[0], x.shape[2]), 0, dtype)
        return empty if divisor is None else lax.full_like(empty, np.nan)
    if x.dtype == np.float64 or not float64:
        return float_of(digits_of_sum(x), dtype, divisor)
    bits = _digits.bits_of(x)
    largest = over_axis((bits,), _digits.magnitude, np.int32(0), lax.max)
    result, certain = settled(*counts((bits,), window(largest), n), largest, dtype, divisor)
    # a loop that runs once at most would have its body moved in front of it
    return lax.cond(
        lax.reduce_and(certain, (0, 1)), lambda x: result, lambda x: float_of(digits_of_sum(x), dtype, divisor), x
    )
