r"""Double words: a number as the unevaluated sum of two floats, and its arithmetic.

A value is \(x = hi + lo\) with \(hi = \mathrm{fl}(hi + lo)\), twice the precision p of its words in the same exponent range.
Each operation here keeps its exact error terms until the last rounding of the low word, so that its relative error is
about \(\tfrac12 u^2\), \(u = 2^{-p}\), and at most \(u^2\): 14 digits with float32, 31 with float64. The textbook forms
(Joldes, Muller and Popescu, Tight and rigorous error bounds for basic building blocks of double-word arithmetic, ACM TOMS
44, 2017) are 3 to 10 times cheaper and less exact, which float32 cannot afford.

Below \(2^{e_{\min} + 2p}\) (float32: \(2^{-78}\)) the error of a product is no longer representable, and products lose the
second word little by little. Where the high word is not finite the low word is 0.

Every product and quotient goes through `opaque`: the compiler then rounds it once wherever it puts it, and a sum that it
computes in two places has the same bits in both.
"""

import dataclasses
from collections.abc import Iterator
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.stability._error_free import fast_two_sum_kernel, opaque, split_kernel, two_prod_kernel, two_sum_kernel
from robustad.stability._words import scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoubleWord:
    """The unevaluated sum `hi + lo`; `hi` is the sum rounded to its dtype.

    Inside a walk `lo` is None for integers, booleans, complex numbers and keys, and the words of a dtype narrower than
    float32 are float32.
    """

    hi: Array
    lo: Array | None

    def __iter__(self) -> Iterator[Array | None]:
        return iter((self.hi, self.lo))


def single(x: Array) -> DoubleWord:
    """A float as a double word; what the compiler knows of it stays behind."""
    return DoubleWord(opaque(x), jnp.zeros_like(x))


def constant(value: Fraction | int, like: DoubleWord) -> DoubleWord:
    """A scalar constant."""
    word = np.dtype(like.hi.dtype).type
    high = word(float(value))
    low = word(float(Fraction(value) - Fraction(float(high))))
    return DoubleWord(opaque(jnp.asarray(high)), opaque(jnp.asarray(low)))


def precision(x: DoubleWord) -> int:
    """The bits of a word."""
    return int(jnp.finfo(x.hi.dtype).nmant) + 1


def normal(s: Array, e: Array) -> DoubleWord:
    """s + e for |s| >= |e|; s alone where the sum is not finite."""
    high = s + e
    low = e - (high - s)
    kept = (e != 0) & jnp.isfinite(high)
    return DoubleWord(jnp.where(kept, high, s), jnp.where(kept, low, jnp.zeros_like(low)))


def exact_sum(a: Array, b: Array) -> DoubleWord:
    return DoubleWord(*two_sum_kernel(a, b))


def where(predicate: Array, x: DoubleWord, y: DoubleWord) -> DoubleWord:
    return DoubleWord(jnp.where(predicate, x.hi, y.hi), jnp.where(predicate, x.lo, y.lo))


# ------------------------------------------------------------------------------------------------- arithmetic


def neg(x: DoubleWord) -> DoubleWord:
    return DoubleWord(-x.hi, -x.lo)


def absolute(x: DoubleWord) -> DoubleWord:
    return DoubleWord(jnp.abs(x.hi), jnp.where(x.hi < 0, -x.lo, x.lo))


def unless_tiny(x: DoubleWord, value: DoubleWord) -> DoubleWord:
    """The value of an f with f(x) = x + O(x²) at 0: x itself where no second term counts, zeros with their sign."""
    return where(jnp.abs(x.hi) < 2.0 ** (-2 * precision(x) - 2), x, value)


def with_sign(size: DoubleWord, like: DoubleWord) -> DoubleWord:
    return where(jnp.signbit(like.hi), neg(size), size)


def scaled(x: DoubleWord, k: Array) -> DoubleWord:
    """x · 2ᵏ."""
    high = scale(x.hi, k)
    return DoubleWord(high, jnp.where(jnp.isfinite(high), scale(x.lo, k), 0))


def split_exponent(x: DoubleWord) -> tuple[Array, DoubleWord]:
    """(k, m) with x = 2ᵏ m and m between the roots of 1/2 and 2; for a normal x > 0."""
    integer, mantissa = (jnp.int32, 23) if x.hi.dtype == jnp.float32 else (jnp.int64, 52)
    root = lax.bitcast_convert_type(jnp.sqrt(jnp.asarray(0.5, x.hi.dtype)), integer)
    k = ((lax.bitcast_convert_type(x.hi, integer) - root) >> mantissa).astype(jnp.int32)
    return k, scaled(x, -k)


def twice(x: DoubleWord, factor: float = 2.0) -> DoubleWord:
    """x times a power of two."""
    high = x.hi * factor
    return DoubleWord(high, jnp.where(jnp.isfinite(high), x.lo * factor, 0))


def add_words(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    """x + y, not compiled by itself: for the inside of a reduction."""
    s, e = two_sum_kernel(x.hi, y.hi)
    t, f = two_sum_kernel(x.lo, y.lo)
    c, d = two_sum_kernel(e, t)
    v, w = fast_two_sum_kernel(s, c)
    high, low = two_sum_kernel(v, w + (d + f))  # after cancellation v may be the smaller
    fine = lax.is_finite(high)
    zeros = (s == 0) & (x.hi == -y.hi) & (high == 0)  # of one sign: s has it
    # Not jnp.where, which is a call: XLA crashes on calls inside a reduction whose result is not used.
    return DoubleWord(lax.select(fine & ~zeros, high, s), lax.select(fine, low, lax.full_like(low, 0)))


@jax.jit
def add(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    return add_words(x, y)


def sub(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    return add(x, neg(y))


@jax.jit
def mul(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    (xh, xl), (yh, yl) = (split_kernel(v.hi) for v in (x, y))
    (ah, al), (bh, bl) = (split_kernel(v.lo) for v in (x, y))
    p, t, r = opaque(x.hi * y.hi), opaque(x.hi * y.lo), opaque(x.lo * y.hi)
    e = _product_error(p, xh, xl, yh, yl)
    f = _product_error(t, xh, xl, bh, bl) + _product_error(r, ah, al, yh, yl)
    a, b = two_sum_kernel(t, r)
    c, d = two_sum_kernel(e, a)
    v, w = fast_two_sum_kernel(p, c)
    product = normal(v, w + ((b + d) + (f + opaque(x.lo * y.lo))))
    fine = jnp.isfinite(c) & (p != 0)
    return DoubleWord(jnp.where(fine, product.hi, p), jnp.where(fine, product.lo, 0))


def _product_error(p: Array, ah: Array, al: Array, bh: Array, bl: Array) -> Array:
    """a b - p (Dekker) of numbers in halves, whose products are exact: contraction does no harm."""
    return ((ah * bh - p) + ah * bl + al * bh) + al * bl


@jax.jit
def div(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    """Long division: three quotients of words, each of what the ones before leave."""
    first = opaque(x.hi / y.hi)
    p, e = two_prod_kernel(first, y.hi)
    t, f = two_prod_kernel(first, y.lo)
    rest = add_words(exact_sum(x.hi - p, x.lo), exact_sum(-e, -t))
    second = opaque(rest.hi / y.hi)
    p, e = two_prod_kernel(second, y.hi)
    rest = (((rest.hi - p) - e) + (rest.lo - f)) - opaque(second * y.lo)
    v, w = fast_two_sum_kernel(first, second)
    quotient = normal(v, w + opaque(rest / y.hi))
    fine = jnp.isfinite(v) & (first != 0)
    return DoubleWord(jnp.where(fine, quotient.hi, first), jnp.where(fine, quotient.lo, 0))


@jax.jit
def sqrt(x: DoubleWord) -> DoubleWord:
    """Two steps of Newton's from the root of the high word, with exact residuals."""
    first = opaque(jnp.sqrt(x.hi))
    half = opaque(0.5 / first)
    p, e = two_prod_kernel(first, first)
    rest = add_words(exact_sum(x.hi - p, x.lo), exact_sum(-e, jnp.zeros_like(e)))
    second = opaque(rest.hi * half)
    p, e = two_prod_kernel(2 * first, second)
    rest = (((rest.hi - p) - e) + rest.lo) - opaque(second * second)
    v, w = fast_two_sum_kernel(first, second)
    root = normal(v, w + opaque(rest * half))
    fine = jnp.isfinite(v)
    return DoubleWord(jnp.where(fine, root.hi, first), jnp.where(fine, root.lo, 0))


def square(x: DoubleWord) -> DoubleWord:
    return mul(x, x)


def reciprocal(x: DoubleWord) -> DoubleWord:
    return div(constant(1, x), x)


def integer_power(x: DoubleWord, n: int) -> DoubleWord:
    """xⁿ by repeated squaring; each of up to 2 log₂ n products adds its error."""
    if n == 0:
        return DoubleWord(jnp.ones_like(x.hi), jnp.zeros_like(x.lo))
    result = x
    for bit in bin(abs(n))[3:]:
        result = square(result)
        if bit == "1":
            result = mul(result, x)
    return reciprocal(result) if n < 0 else result


@jax.jit
def cbrt(x: DoubleWord) -> DoubleWord:
    """Two steps of Newton's in double words from the cube root of the high word."""
    first = single(jnp.cbrt(x.hi))
    root, slope = first, mul(square(first), constant(3, x))
    for _ in range(2):
        root = add(root, div(sub(x, mul(square(root), root)), slope))
    fine = jnp.isfinite(root.hi) & (first.hi != 0)
    return where(fine, root, first)


# -------------------------------------------------------------------------------------- comparisons, rounding


def less(x: DoubleWord, y: DoubleWord) -> Array:
    return (x.hi < y.hi) | ((x.hi == y.hi) & (x.lo < y.lo))


def equal(x: DoubleWord, y: DoubleWord) -> Array:
    return (x.hi == y.hi) & (x.lo == y.lo)


def maximum(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    """The larger one; NaN where one of them is."""
    low = lax.select(x.hi == y.hi, lax.max(x.lo, y.lo), lax.select(x.hi > y.hi, x.lo, y.lo))
    return DoubleWord(lax.max(x.hi, y.hi), low)


def minimum(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    return neg(maximum(neg(x), neg(y)))


def floor(x: DoubleWord) -> DoubleWord:
    """A high word that is no integer is further from the next one than the low word reaches."""
    high = jnp.floor(x.hi)
    low = jnp.where(high == x.hi, jnp.floor(x.lo), 0)
    return normal(high, low)


def ceil(x: DoubleWord) -> DoubleWord:
    return neg(floor(neg(x)))


def truncate(x: DoubleWord) -> DoubleWord:
    return where(x.hi < 0, ceil(x), floor(x))


def nearest(x: DoubleWord, ties_to_even: bool) -> DoubleWord:
    """The nearest integer; a tie to the even one, or away from zero."""
    below = floor(x)
    one, half = constant(1, x), constant(Fraction(1, 2), x)
    over = sub(x, below)
    odd = ~equal(twice(floor(twice(below, 0.5))), below)
    up = odd if ties_to_even else x.hi > 0
    goes_up = less(half, over) | (equal(half, over) & up)
    whole = where(goes_up, add(below, one), below)
    fine = jnp.isfinite(x.hi) & (whole.hi != 0)
    return DoubleWord(jnp.where(fine, whole.hi, jnp.round(x.hi)), jnp.where(fine, whole.lo, 0))


def remainder(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    """x - y trunc(x / y), of the sign of x; of the high words alone where the quotient has more bits than two words."""
    size, step = absolute(x), absolute(y)
    quotient = floor(div(size, step))
    rest = sub(size, mul(quotient, step))
    rest = where(rest.hi < 0, add(rest, step), rest)  # the quotient may have been rounded across an integer
    rest = where(less(rest, step), rest, sub(rest, step))
    rest = where(less(size, step), size, rest)
    rest = where(x.hi < 0, neg(rest), rest)
    plain = lax.rem(*jnp.broadcast_arrays(x.hi, y.hi))
    special = ~jnp.isfinite(x.hi) | ~jnp.isfinite(y.hi) | ~(quotient.hi < 2.0 ** (2 * precision(x)))
    kept = jnp.where(jnp.isinf(y.hi), x.lo, 0)
    return where(special, DoubleWord(plain, jnp.where(jnp.isfinite(plain), kept, 0)), rest)
