r"""Elementary functions of double words: argument reduction, then a Taylor series in double words.

No tables of function values: constants come from series in integers, coefficients are fractions. A series is a loop over
its coefficients, so that the program stays small. The relative error is a few \(2^{-2p}\), with p bits a word; `power`
multiplies it by \(|y \log x|\).
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad.arithmetic import _double_word as dw
from robustad.arithmetic._double_word import DoubleWord, add, constant, div, mul, neg, scaled, sub, where, with_sign
from robustad.arithmetic._double_word_series import log_2, pi, pieces, series, terms
from robustad.stability._error_free import opaque

# ------------------------------------------------------------------------------------------------ exponentials


def _exponential(x: DoubleWord) -> tuple[Array, DoubleWord]:
    r"""(k, q) with \(e^x = 2^k (1 + q)\): \(x = k \ln 2 + r\), and q by the Taylor series in r."""
    p = dw.precision(x)
    bound, bits = (160.0, 15) if p == 24 else (1200.0, 41)  # of k ln 2's pieces: their products with k are exact
    x = where(jnp.abs(x.hi) < bound, x, DoubleWord(jnp.clip(x.hi, -bound, bound), jnp.zeros_like(x.lo)))
    k = jnp.round(x.hi * float(1 / log_2()))
    a, b, c, d = (k * opaque(jnp.asarray(piece, k.dtype)) for piece in pieces(log_2(), bits, 4))
    r = add(add(dw.exact_sum(x.hi, -a), dw.exact_sum(x.lo, -b)), dw.exact_sum(-c, -d))
    n = terms(0.36, 2 * p + 4, lambda n: 1 / math.factorial(n + 1))
    q = mul(r, series(r, [Fraction(1, math.factorial(i + 1)) for i in range(n)]))
    return jnp.where(jnp.isnan(x.hi), 0, k).astype(jnp.int32), q


@jax.jit
def exp(x: DoubleWord) -> DoubleWord:
    k, q = _exponential(x)
    return scaled(add(constant(1, x), q), k)


@jax.jit
def exp2(x: DoubleWord) -> DoubleWord:
    limit = 250.0 if dw.precision(x) == 24 else 2000.0  # what `scaled` can do
    k = jnp.clip(jnp.round(x.hi), -limit, limit)
    rest = sub(x, dw.single(k))
    inside = jnp.where(jnp.isnan(x.hi), 0, k).astype(jnp.int32)
    value = scaled(exp(mul(rest, constant(log_2(), x))), inside)
    return where(jnp.isfinite(x.hi), value, dw.single(jnp.exp2(x.hi)))


@jax.jit
def expm1(x: DoubleWord) -> DoubleWord:
    k, q = _exponential(x)
    limit = 2 * dw.precision(x) + 4
    power = jnp.ones_like(x.hi)
    unit = dw.scaled(DoubleWord(power, jnp.zeros_like(power)), jnp.minimum(k, limit)).hi
    near = where(k == 0, q, add(dw.exact_sum(unit, -power), scaled(q, jnp.minimum(k, limit))))
    value = where(k > limit, scaled(add(constant(1, x), q), k), near)
    return dw.unless_tiny(x, value)


# -------------------------------------------------------------------------------------------------- logarithms


def _logarithm(k: Array, numerator: DoubleWord, denominator: DoubleWord) -> DoubleWord:
    r"""\(k \ln 2 + 2\,\mathrm{artanh}(n / d)\), by the series in s = n / d, |s| < 0.172."""
    p = dw.precision(numerator)
    s = div(numerator, denominator)
    n = terms(0.172**2, 2 * p + 4, lambda n: 1 / (2 * n + 1))
    near = mul(s, series(dw.square(s), [Fraction(2, 2 * i + 1) for i in range(n)]))
    k = k.astype(s.hi.dtype)
    bits = 15 if p == 24 else 41
    a, b, c, d = (k * opaque(jnp.asarray(piece, k.dtype)) for piece in pieces(log_2(), bits, 4))
    return where(k == 0, near, add(add(dw.exact_sum(a, b), dw.exact_sum(c, d)), near))


@jax.jit
def log(x: DoubleWord) -> DoubleWord:
    k, m = dw.split_exponent(x)
    one = constant(1, x)
    value = _logarithm(k, sub(m, one), add(m, one))
    plain = jnp.log(x.hi)
    return where(jnp.isfinite(plain), value, dw.single(plain))


@jax.jit
def log1p(x: DoubleWord) -> DoubleWord:
    one = constant(1, x)
    whole = add(one, x)
    k, m = dw.split_exponent(whole)
    near = jnp.abs(x.hi) < 0.25
    value = _logarithm(
        jnp.where(near, 0, k), where(near, x, sub(m, one)), where(near, add(x, constant(2, x)), add(m, one))
    )
    plain = jnp.log(whole.hi)
    return dw.unless_tiny(x, where(jnp.isfinite(plain), value, dw.single(plain)))


@jax.jit
def power(x: DoubleWord, y: DoubleWord) -> DoubleWord:
    """exp(y log |x|) with the sign that IEEE gives, and IEEE's special values."""
    plain = jnp.power(x.hi, y.hi)
    value = exp(mul(y, log(dw.absolute(x))))
    value = where(plain < 0, neg(value), value)
    special = jnp.isnan(plain) | (x.hi == 0) | (y.hi == 0) | ~jnp.isfinite(x.hi) | ~jnp.isfinite(y.hi)
    return where(special, dw.single(plain), value)


# ------------------------------------------------------------------------------------------------- hyperbolics


@jax.jit
def tanh(x: DoubleWord) -> DoubleWord:
    bound = dw.precision(x) + 4.0
    size = dw.absolute(x)
    size = where(size.hi > bound, DoubleWord(jnp.full_like(size.hi, bound), jnp.zeros_like(size.lo)), size)
    t = expm1(dw.twice(size))
    return dw.unless_tiny(x, with_sign(div(t, add(t, constant(2, x))), x))


@jax.jit
def logistic(x: DoubleWord) -> DoubleWord:
    e = exp(neg(dw.absolute(x)))
    one = constant(1, x)
    return div(where(x.hi < 0, e, DoubleWord(jnp.ones_like(e.hi), jnp.zeros_like(e.lo))), add(one, e))


def _half_exponential(size: DoubleWord) -> tuple[DoubleWord, DoubleWord]:
    """exp(x) / 2 and exp(-x) / 2, where exp(x) may overflow."""
    k, q = _exponential(size)
    half = scaled(add(constant(1, size), q), k - 1)
    half = where(jnp.isinf(size.hi), size, half)
    return half, div(constant(Fraction(1, 4), size), half)


@jax.jit
def sinh(x: DoubleWord) -> DoubleWord:
    size = dw.absolute(x)
    large, small = _half_exponential(size)
    t = expm1(where(size.hi < 1, size, DoubleWord(jnp.zeros_like(size.hi), jnp.zeros_like(size.lo))))
    near = dw.twice(add(t, div(t, add(t, constant(1, x)))), 0.5)
    return dw.unless_tiny(x, with_sign(where(size.hi < 1, near, sub(large, small)), x))


@jax.jit
def cosh(x: DoubleWord) -> DoubleWord:
    return add(*_half_exponential(dw.absolute(x)))


@jax.jit
def asinh(x: DoubleWord) -> DoubleWord:
    size, one = dw.absolute(x), constant(1, x)
    limit = 2.0 ** (dw.precision(x) + 2)  # beyond, 1 + x² is x² in two words
    inside = where(size.hi < limit, size, DoubleWord(jnp.ones_like(size.hi), jnp.zeros_like(size.lo)))
    squared = dw.square(inside)
    near = log1p(add(inside, div(squared, add(one, dw.sqrt(add(one, squared))))))
    far = add(log(size), constant(log_2(), x))
    return dw.unless_tiny(x, with_sign(where(size.hi < limit, near, far), x))


@jax.jit
def acosh(x: DoubleWord) -> DoubleWord:
    t = sub(x, constant(1, x))
    limit = 2.0 ** (dw.precision(x) + 2)
    near = log1p(add(t, dw.sqrt(mul(t, add(t, constant(2, x))))))
    return where(x.hi < limit, near, where(jnp.isnan(x.hi), x, add(log(x), constant(log_2(), x))))


@jax.jit
def atanh(x: DoubleWord) -> DoubleWord:
    size = dw.absolute(x)
    t = div(dw.twice(size), sub(constant(1, x), size))
    return dw.unless_tiny(x, with_sign(dw.twice(log1p(t), 0.5), x))


# -------------------------------------------------------------------------------------------------------- erf


@jax.jit
def erf(x: DoubleWord) -> DoubleWord:
    r"""\(\frac{2}{\sqrt\pi} x e^{-x^2} \sum_n \frac{(2 x^2)^n}{(2n+1)!!}\): all terms positive, no cancellation."""
    bound, count = (6.0, 190) if dw.precision(x) == 24 else (9.0, 420)
    size = dw.absolute(x)
    size = where(size.hi < bound, size, DoubleWord(jnp.full_like(size.hi, bound), jnp.zeros_like(size.lo)))
    squared = dw.square(size)
    z = dw.twice(squared)

    def step(i: Array, state: tuple[DoubleWord, DoubleWord]) -> tuple[DoubleWord, DoubleWord]:
        term, total = state
        odd = dw.single((2 * i + 1).astype(z.hi.dtype))
        term = div(mul(term, z), odd)
        return term, add(total, term)

    one = DoubleWord(jnp.ones_like(z.hi) + (z.hi - z.hi), jnp.zeros_like(z.lo) + (z.hi - z.hi))
    _, total = lax.fori_loop(1, count, step, (one, one))
    root = dw.sqrt(constant(pi(), x))
    value = mul(mul(dw.twice(size), div(exp(neg(squared)), root)), total)
    return where(jnp.isnan(x.hi), x, with_sign(value, x))
