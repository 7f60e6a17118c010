"""Numbers as an unevaluated sum of two words, inside elementwise formulas.

What XLA's algebraic simplifier rewrites, on one version or another: (y + c) - c to y, (x - c) - d to x - (c + d), and
(a / b) / c to a / (b c). So a constant that enters such a shape goes through `opaque`, and quotients of quotients are
written as products. Contraction to fused multiply-add does not matter here: a product whose error is needed is exact.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ._error_free import two_sum_kernel as two_sum
from ._primitive import batch_first, linear_primitive

# Forty digits: enough for two words of float64 (32 digits).
LOG_ROOT_2_PI = "0.9189385332046727417803297364056176398614"
LN2 = "0.6931471805599453094172321214581765680755"
E = "2.718281828459045235360287471352662497757"
EXP_MINUS_1 = "0.3678794411714423215955237701614608674458"
ONE_MINUS_EXP_MINUS_1 = "0.6321205588285576784044762298385391325542"
ASINH_1 = "0.8813735870195430252326093249797923090282"


@functools.cache
def split_constant(text: str, dtype: np.dtype, bits: tuple[int, ...]) -> tuple[float, ...]:
    """A decimal constant as a sum of words with so many bits each, whose products with small integers are exact."""
    rest, parts = Fraction(text), []
    for count in bits:
        # The exponent of `rest`, from its integer bit lengths.
        exponent = abs(rest.numerator).bit_length() - rest.denominator.bit_length()
        unit = Fraction(2) ** (exponent - count)
        part = Fraction(float(dtype.type(float(round(rest / unit) * unit))))
        parts.append(float(part))
        rest -= part
    return tuple(parts)


def constant(text: str, like: Array) -> tuple[float, float]:
    """Two words of a decimal constant, in the dtype of `like`: the nearest float, and the nearest to the rest."""
    word = np.dtype(like.dtype).type
    high = float(word(float(Fraction(text))))
    return high, float(word(float(Fraction(text) - Fraction(high))))


def opaque(value: float, like: Array) -> Array:
    """A scalar constant that the compiler cannot see through."""
    return lax.optimization_barrier(jnp.asarray(value, like.dtype))


def difference(a: Array, b: Array) -> tuple[Array, Array]:
    """a - b as two words, also where a user's constant stands for `a` or `b`; infinities of one sign are equal."""
    one = opaque(1.0, a)
    a, b = a * one, b * one
    d, error = two_sum(a, -b)
    finite = jnp.isfinite(d)
    return jnp.where(a == b, 0.0, d), jnp.where(finite, error, 0.0)


def away(x: Array, text: str) -> Array:
    """x minus a decimal constant, right to the last bits where `x` is near it."""
    high, low = constant(text, x)
    return (x - high) - opaque(low, x)


def halves(x: Array) -> tuple[Array, Array]:
    """x as a sum of two words whose first has at most half of the bits, by masking."""
    integer = jnp.int32 if x.dtype == jnp.float32 else jnp.int64
    mask = np.array(-(1 << (12 if x.dtype == jnp.float32 else 27)), integer)
    high = lax.bitcast_convert_type(lax.bitcast_convert_type(x, integer) & mask, x.dtype)
    return high, x - high


def square(x: Array) -> tuple[Array, Array]:
    """x² as two words."""
    high, low = halves(x)
    s, error = two_sum(high * high, low * (x + high))
    return s, jnp.where(jnp.isfinite(s), error, 0.0)


def over_square(a: Array | float, q: Array) -> Array:
    """a/q², also where q² underflows but the quotient does not overflow."""
    small = jnp.abs(q) < 2.0**-40
    scaled = jnp.where(small, q * 2.0**40, q)
    quotient = a / (scaled * scaled)
    return jnp.where(small, (quotient * 2.0**40) * 2.0**40, quotient)


def times_e(x: Array) -> Array:
    """e x, with e in two words."""
    high, low = constant(E, x)
    return x * high + x * opaque(low, x)


def polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """Horner's rule; the constant term first."""
    value = jnp.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _power_of_two(k: Array, dtype) -> Array:
    """2ᵏ of a normal exponent; 0 of the one below."""
    integer, mantissa, bias = (jnp.int32, 23, 127) if dtype == jnp.float32 else (jnp.int64, 52, 1023)
    return lax.bitcast_convert_type((k.astype(integer) + bias) << mantissa, dtype)


def _scaled_down_by_bits(x: Array, k: Array) -> Array:
    integer, mantissa = (jnp.int32, 23) if x.dtype == jnp.float32 else (jnp.int64, 52)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, integer) - (k.astype(integer) << mantissa), x.dtype)


# x 2⁻ᵏ, of normal numbers, by the exponent's bits. A primitive: jax 0.10.2 drops the rules of custom_jvp from second
# derivatives through a scan, and a bit pattern has none.
scaled_down = linear_primitive(
    "scaled_down",
    kernels={None: _scaled_down_by_bits},
    shape=lambda x, k: x * k.astype(x.dtype),
    transposes={},
    batch=lambda size, operands, batch_axes: scaled_down(*batch_first(size, operands, batch_axes)),
    tangents={0: lambda t, k: scale(t, -k)},
)


def scale(x: Array, k: Array) -> Array:
    """x · 2ᵏ for |k| up to twice the largest exponent: in two steps, since 2ᵏ by itself may overflow."""
    half = k >> 1
    return x * _power_of_two(half, x.dtype) * _power_of_two(k - half, x.dtype)


def _reduce(x: Array) -> tuple[Array, Array, Array]:
    """k, r and its error with x = k ln 2 + r: the first part of ln 2 has so few bits that its product with k is exact."""
    bound, bits = (160.0, 14) if x.dtype == jnp.float32 else (1200.0, 40)
    x = jnp.clip(x, -bound, bound)
    k = jnp.round(x * (1 / float(Fraction(LN2))))
    first, second, third = split_constant(LN2, np.dtype(x.dtype), (bits, bits, bits))
    r, error = two_sum(x - k * first, -(k * second))
    return k.astype(jnp.int32), r, error - k * third


def _factorials(start: int, like: Array) -> list[float]:
    """1/start!, 1/(start + 1)!, ...: as many as |r| ≤ ln(2)/2 needs."""
    return [1 / math.factorial(n) for n in range(start, 9 if like.dtype == jnp.float32 else 15)]


def exp_words(x: Array, low: Array | float = 0.0) -> tuple[Array, Array, Array]:
    r"""(k, a, b) with :math:`e^{x + low} = 2^k (1 + a + b)`, about 6 bits beyond the precision.

    :math:`x = k \ln 2 + r` with ln 2 in three parts (Cody and Waite), then
    :math:`e^r - 1 = r + r^2/2 + r^3 P(r)` with r² exact and P the Taylor series.
    """
    k, r, error = _reduce(x)
    high, rest = halves(r)
    cubic = r * r * r * polynomial(r, _factorials(3, r))
    a, b = two_sum(r, 0.5 * (high * high))
    b = b + (0.5 * (rest * (r + high)) + cubic) + (error + low) * (1 + a)
    a, b = a + b, b - ((a + b) - a)
    return k, a, b


def _reduce_to_one_word(x: Array) -> tuple[Array, Array]:
    """k and r with x = k ln 2 + r, rounded: a quarter of an ulp of the exponential."""
    bound, bits, rest = (160.0, 14, 24) if x.dtype == jnp.float32 else (1200.0, 40, 53)
    x = jnp.clip(x, -bound, bound)
    k = jnp.round(x * (1 / float(Fraction(LN2))))
    first, second = split_constant(LN2, np.dtype(x.dtype), (bits, rest))
    return k.astype(jnp.int32), (x - k * first) - k * second


def _fraction(r: Array) -> Array:
    """exp(r) - 1 for |r| ≤ ln(2)/2."""
    return r + r * r * polynomial(r, _factorials(2, r))


def _parts(x: Array, low: Array | float) -> tuple[Array, Array]:
    """k and m with exp(x + low) = 2ᵏ m, m near 1; `low` is at most an ulp of `x`."""
    k, r = _reduce_to_one_word(x)
    p = _fraction(r)
    if isinstance(low, Array):
        p = p + low * (1 + p)
    return k, 1 + p


def exp(x: Array, low: Array | float = 0.0, factor: Array | float = 1.0) -> Array:
    """factor · exp(x + low), where `low` is at most an ulp of `x`; the exponential by itself may underflow."""
    k, m = _parts(x, low)
    return scale(factor * m, k)


def decay(x: Array, low: Array | float = 0.0) -> Array:
    """exp(x + low) for x ≤ 0: one power of two, which is 0 where the exponential is below the normal numbers."""
    k, m = _parts(x, low)
    least = int(jnp.finfo(x.dtype).minexp) - 1
    return m * _power_of_two(jnp.maximum(k, least), x.dtype)


def exp2(x: Array, factor: float = 1.0) -> Array:
    """factor · 2ˣ: the integer part of x is split off, exactly, and the rest multiplied by ln 2."""
    limit = 1.5 * float(jnp.finfo(x.dtype).maxexp)
    x = jnp.clip(x, -limit, limit)
    k = jnp.round(x)
    first, second = constant(LN2, x)
    p = _fraction((x - k) * first) + (x - k) * second
    return scale(factor * (1 + p), k.astype(jnp.int32))


def expm1(x: Array) -> Array:
    """exp(x) - 1, without cancellation: 2ᵏ (e^r - 1) + (2ᵏ - 1), where the difference in brackets is exact."""
    k, r = _reduce_to_one_word(x)
    p = _fraction(r)
    limit = int(jnp.finfo(x.dtype).nmant) + 2
    power = _power_of_two(jnp.clip(k, -limit, limit), x.dtype)
    return jnp.where(k > limit, scale(1 + p, k), jnp.where(x == 0, x, power * p + (power - 1)))


def decayed(x: Array) -> Array:
    """1 - exp(x) for x ≤ 0, as `expm1`."""
    k, r = _reduce_to_one_word(x)
    power = _power_of_two(jnp.maximum(k, -int(jnp.finfo(x.dtype).nmant) - 2), x.dtype)
    return (1 - power) - power * _fraction(r)


def log1p_words(x: Array) -> tuple[Array, Array, Array]:
    r"""log(1 + x) as a sum (exact, its rounding error, the small rest), for finite x > -1.

    :math:`1 + x = 2^k (1 + f)`, :math:`s = f / (2 + f)`,
    :math:`\log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2))` (fdlibm), R by the series of the inverse hyperbolic tangent.
    """
    single = x.dtype == jnp.float32
    integer, mantissa, terms = (jnp.int32, 23, 5) if single else (jnp.int64, 52, 11)
    one = opaque(1.0, x)
    near = (x > -0.29) & (x < 0.41)
    u = one + x
    lost = jnp.where(x > 1, one - (u - x), x - (u - one)) / u
    root = lax.bitcast_convert_type(np.sqrt(np.array(0.5, x.dtype)), integer)
    bits = lax.bitcast_convert_type(u, integer)
    k = (bits - root) >> mantissa
    f = jnp.where(near, x, scaled_down(jnp.where(near, one, u), jnp.where(near, 0, k)) - 1)
    k = jnp.where(near, 0, k).astype(x.dtype)
    s = f / (2 + f)
    z = s * s
    h = 0.5 * f * f
    tail = z * polynomial(z, [2 / (2 * j + 3) for j in range(terms)])
    first, second = split_constant(LN2, np.dtype(x.dtype), (14 if single else 40, mantissa))
    total, error = two_sum(k * first, f)
    return total, error, jnp.where(near, 0.0, lost) + k * second - (h - s * (h + tail))


def log1p(x: Array) -> Array:
    """log(1 + x), without cancellation."""
    total, error, rest = log1p_words(x)
    value = total + (error + rest)
    value = jnp.where(x == 0, x, value)
    return jnp.where(x == -1, -jnp.inf, jnp.where(x > -1, jnp.where(jnp.isinf(x), x, value), jnp.nan))
