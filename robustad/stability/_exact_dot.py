r"""Dot products, exact and rounded once; and by slices, for matrices.

Products of float32 are exact in float64, so a dot product of float32 is a sum of float64: one pass that proves its
last bit, as in `_exact`, or digits. Operands of float64 are scaled by a power of two and cut in halves, whose
products are exact.

By slices (Ozaki et al. 2012): an operand is rounded to `slices` slices of 20 bits below the largest of its row. Products of
slices have 40 bits, so that 2^12 of them add up exactly in float64, in whatever order a matrix product takes.
"""

import functools

import numpy as np
from jax import Array, lax

from robustad.stability import _digits, _exact

SLICE = 20  # bits
BLOCK = 1 << (52 - 2 * SLICE)  # products of slices that add up exactly in float64
DIMENSIONS = (((2,), (2,)), ((0,), (0,)))  # of `(batch, m, k)` and `(batch, n, k)`
SAFE = 52  # operands below 2^-52 may have subnormals beside them that count: one pass is not for them


def dots(a: Array, b: Array, slices: int | None, float64: bool) -> Array:
    """`(batch, m, k)` and `(batch, n, k)` to `(batch, m, n)`."""
    dtype = a.dtype
    batch, m, k = a.shape
    n = b.shape[1]
    if 0 in (batch, m, n, k):
        return lax.full((batch, m, n), 0, dtype)
    if k == 1:  # as in the gradient of a dot of vectors: one product, and no sum
        return _products(a.reshape(batch, m, 1), b.reshape(batch, 1, n), float64)
    if slices is not None and m * n > 1 and float64:
        return _by_slices(a, b, slices, dtype)

    rows = functools.partial(_rows, slices=slices, dtype=dtype, float64=float64)
    if m * n == 1 or batch * m == 1:
        return rows(a.reshape(batch * m, k), b.reshape(batch * n, k)).reshape(batch, m, n)
    return lax.map(lambda pair: lax.map(lambda row: rows(row[None], pair[1]), pair[0]), (a, b))


def _products(a: Array, b: Array, float64: bool) -> Array:
    """Rounded once; subnormal float32, which the hardware may flush, as integers."""
    if a.dtype != np.float32 or not float64:
        return a * b
    x = _float64(a) * _float64(b)
    size = lax.convert_element_type(lax.round(lax.abs(x) * 2.0**149, lax.RoundingMethod.TO_NEAREST_EVEN), np.int32)
    pattern = lax.select(x < 0, size | np.int32(-(2**31)), size)
    small = lax.bitcast_convert_type(pattern, np.float32)
    return lax.select(lax.abs(x) < 2.0**-126, small, lax.convert_element_type(x, np.float32))


def _float64(x: Array) -> Array:
    """float64 of the same value; subnormal float32, which a conversion may flush, from their integers."""
    if x.dtype == np.float64:
        return x
    bits = _digits.bits_of(x)
    mantissa, _ = _digits.parts(bits)
    small = lax.convert_element_type(mantissa, np.float64) * np.float64(2.0**-149)
    small = lax.select(bits < np.int32(0), -small, small)
    normal = lax.convert_element_type(lax.bitcast_convert_type(bits, np.float32), np.float64)
    return lax.select(_digits.magnitude(bits) < np.int32(1 << 23), small, normal)


def _exponent(x: Array) -> Array:
    """The exponent above the largest finite magnitude along the last axis, kept: |x| < 2^exponent."""
    largest = lax.reduce_max(_digits.finite_magnitude(lax.bitcast_convert_type(x, np.int64)), (x.ndim - 1,))
    return lax.convert_element_type(largest >> np.int64(52), np.int32)[..., None] - np.int32(1022)


def _power(exponent: Array | np.int32) -> Array:
    """2^exponent as float64, for normal ones."""
    return lax.bitcast_convert_type(
        lax.convert_element_type(exponent + np.int32(1023), np.int64) << np.int64(52), np.float64
    )


def _scaled(x: Array) -> tuple[Array, Array]:
    """x · 2^-exponent as float64 below 1, and the exponent; in two steps, for 2^-exponent may not be a normal number."""
    x = _float64(x)
    exponent = _exponent(x)
    half = exponent >> np.int32(1)
    return x * _power(-half) * _power(half - exponent), exponent


def _on_grid(x: Array, unit: Array) -> Array:
    """The multiple of `unit` nearest to x, for |x| < 2^51 units: by a constant that the compiler must not see through."""
    shifter = lax.optimization_barrier(unit * np.float64(1.5 * 2.0**52))
    return (x + shifter) - shifter


def _slices(x: Array, count: int) -> list[Array]:
    """Of scaled operands: x ≈ Σ slice_i 2^(-20 (i + 1)), integers of 20 bits and a sign as float64; 0 for inf and NaN."""
    x = lax.select(lax.abs(x) <= np.float64(1), x, lax.full_like(x, 0))
    taken = []
    for i in range(count):
        unit = 2.0 ** (-SLICE * (i + 1))
        slice = _on_grid(x, lax.full((1,) * x.ndim, np.float64(unit)))
        x = x - slice
        taken.append(slice * np.float64(1 / unit))
    return taken


def _rounded_operand(x: Array, scale: Array | np.int32, count: int | None) -> Array:
    """x below 2^scale, or what `count` slices hold of it."""
    if count is None:
        return x
    rest = x
    for i in sorted({*range(2, count, 2), count}):  # two slices at a time leave what slices one by one do
        rest = rest - _on_grid(rest, _power(scale - np.int32(SLICE * i)))
    return x - rest


def _halves(x: Array) -> tuple[Array, Array]:
    """26 and 27 bits of float64."""
    high = lax.bitcast_convert_type(lax.bitcast_convert_type(x, np.int64) & np.int64(-(1 << 27)), np.float64)
    finite = lax.abs(x) <= np.float64(1)
    return lax.select(finite, high, x), lax.select(finite, x - high, lax.full_like(x, 0))


def norms(x: Array, float64: bool) -> Array:
    """The square roots of the sums of squares of `(n, k)`: `(n,)`."""
    if 0 in x.shape:
        return lax.full((x.shape[0],), 0, x.dtype)
    wide = np.dtype(_digits.storage(x.dtype))
    root = lax.sqrt(_float64(_rows(x, x, None, wide, float64, relative=True)))
    bits = _digits.bits_of(x)[:, :, None]
    largest = _exact.over_axis((bits,), _digits.finite_magnitude, bits.dtype.type(0), lax.max)
    exponent = _exponent(_float64(lax.bitcast_convert_type(largest, wide)))[:, 0]
    half = exponent >> np.int32(1)
    return lax.convert_element_type(root * _power(half) * _power(exponent - half), x.dtype)


def _rows(a: Array, b: Array, slices: int | None, dtype, float64: bool, relative: bool = False) -> Array:
    """`(n, k)` or `(1, k)` and `(n, k)` to `(n,)`; `relative` to the powers of two above the largest of each."""
    exact = functools.partial(_exactly, slices=slices, dtype=dtype, relative=relative)
    if a.dtype == np.float64 or not float64:
        return exact(a, b)
    result, certain = _one_pass(a, b, slices, dtype, relative)
    return lax.cond(lax.reduce_and(certain, (0,)), lambda a, b: result, exact, a, b)


def _exactly(a: Array, b: Array, slices: int | None, dtype, relative: bool) -> Array:
    narrow = a.dtype != np.float64
    (a, scale_a), (b, scale_b) = _scaled(a), _scaled(b)
    a, b = (_rounded_operand(x, np.int32(0), slices) for x in (a, b))
    # a scaled product of float32 is exact in float64; the halves of float64 have four that are
    pairs = [(a, b)] if narrow else [(x, y) for x in _halves(a) for y in _halves(b)]
    digits = [_exact.digits_of_sum((x * y)[:, :, None]) for x, y in pairs]
    scale = None if relative else scale_a + scale_b
    return _exact.float_of(_exact.merged(*digits), dtype, scale=scale)[:, 0]


def _one_pass(a: Array, b: Array, slices: int | None, dtype, relative: bool) -> tuple[Array, Array]:
    """As `_exact.counts` of the products, which are never written to memory."""
    n, k = b.shape
    patterns = [_digits.bits_of(x) for x in (a[:, :, None], b[:, :, None])]
    largest = [_exact.over_axis((bits,), _digits.magnitude, np.int32(0), lax.max) for bits in patterns]
    exponents = [(bits >> np.int32(23)) - np.int32(126) for bits in largest]
    exponent = exponents[0] + exponents[1] - np.int32(_exact.WINDOW)
    safe = functools.reduce(
        lax.bitwise_and, (lax.broadcast_in_dim(e > np.int32(-SAFE), (n, 1), (0, 1)) for e in exponents)
    )
    factors = None
    if slices is not None:
        factors = [functools.partial(_rounded_along, scale=e, slices=slices) for e in exponents]
    low, high, loses = _exact.counts(patterns, exponent, k, factors)
    inf = np.int32(_digits.infinity(np.int32))
    finite = (largest[0] < inf) & (largest[1] < inf)
    zero = (largest[0] == np.int32(0)) | (largest[1] == np.int32(0))
    if relative:
        exponent = lax.full_like(exponent, -_exact.WINDOW)
    result, certain = _exact.between(low, high, loses, exponent, zero, dtype, None)
    return result[:, 0], ((certain & safe | zero) & finite)[:, 0]


def _rounded_along(x: Array, scale: Array, slices: int) -> Array:
    scale = lax.max(scale, lax.full_like(scale, -SAFE))
    return _rounded_operand(x, lax.expand_dims(scale, tuple(range(1, x.ndim - 1))), slices)


def _by_slices(a: Array, b: Array, slices: int, dtype) -> Array:
    (x, scale_a), (y, scale_b) = _scaled(a), _scaled(b)
    scale = scale_a + lax.transpose(scale_b, (0, 2, 1))
    levels: list = [None] * (2 * slices - 1)
    for i, of_a in enumerate(_slices(x, slices)):
        for j, of_b in enumerate(_slices(y, slices)):
            product = _integer_products(of_a, of_b)
            levels[i + j] = product if levels[i + j] is None else levels[i + j] + product
    scale = scale - np.int32(2 * SLICE)  # of the first level
    result = _of_levels(levels, scale, dtype) if dtype != np.float64 else _of_digits(levels, scale, dtype)
    finite = lax.reduce_and(lax.is_finite(x), (0, 1, 2)) & lax.reduce_and(lax.is_finite(y), (0, 1, 2))
    return lax.cond(finite, lambda: result, lambda: _special(x, y, result))


def _of_levels(levels: list[Array], scale: Array, dtype) -> Array:
    """Σ level_l 2^(scale - 20 l), rounded to 24 bits at most: a word of as many levels as it holds, odd for what is left."""
    mask, carry, low = np.int64((1 << SLICE) - 1), np.int64(0), []
    for level in levels[:0:-1]:
        carry = level + carry
        low.append(carry & mask)
        carry = carry >> np.int64(SLICE)
    word, odd = levels[0] + carry, lax.full_like(levels[0], 0)
    for digit in low[::-1]:
        room = lax.abs(word) < np.int64(1 << (62 - SLICE))
        odd = lax.select(room, odd, odd | lax.min(digit, lax.full_like(digit, 1)))
        word = lax.select(room, (word << np.int64(SLICE)) | digit, word)
        scale = lax.select(room, scale - np.int32(SLICE), scale)
    return _digits.rounded_word(word | odd, scale, dtype)


def _of_digits(levels: list[Array], scale: Array, dtype) -> Array:
    last = len(levels) - 1
    count = -(-(last * SLICE + 64) // _digits.WIDTH)
    parts = (
        _digits.deposit(level, lax.full(level.shape, np.int32(SLICE * (last - l))), count)
        for l, level in enumerate(levels)
    )
    digits = _digits.balanced(functools.reduce(lax.add, parts))
    return _digits.rounded(*_digits.absolute(digits), scale - np.int32(SLICE * last), dtype)


def _integer_products(a: Array, b: Array) -> Array:
    """The matrix product of integers of 20 bits, as int64."""
    total = lax.full((a.shape[0], a.shape[1], b.shape[1]), np.int64(0))
    for first in range(0, a.shape[2], BLOCK):
        x, y = (lax.slice_in_dim(x, first, min(first + BLOCK, x.shape[2]), axis=2) for x in (a, b))
        product = lax.dot_general(x, y, DIMENSIONS, precision=lax.Precision.HIGHEST)
        total = total + lax.convert_element_type(product, np.int64)
    return total


def _special(a: Array, b: Array, result: Array) -> Array:
    """`result`, but for the rows in which infinities or NaN take part: these follow from signs alone."""
    signs_a, signs_b = (lax.select(lax.is_finite(x), lax.sign(x), x) for x in (a, b))
    kind = lax.dot_general(signs_a, signs_b, DIMENSIONS, precision=lax.Precision.HIGHEST)
    return lax.select(lax.is_finite(kind), result, lax.convert_element_type(kind, result.dtype))
