"""Powers with a real exponent."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from . import _words as words
from ._elementwise import elementwise
from ._error_free import fast_two_sum_kernel, opaque, two_prod_kernel, two_sum_kernel

_Words = tuple[Array, Array]


def _product(a: _Words, b: _Words) -> _Words:
    p, error = two_prod_kernel(a[0], b[0])
    return fast_two_sum_kernel(p, error + (a[0] * b[1] + a[1] * b[0]))


def log_words(x: Array) -> _Words:
    r"""log x of a positive normal float as two words, with about 20 bits beyond the precision.

    :math:`x = 2^k m`, :math:`s = (m - 1)/(m + 1)`, :math:`\log m = 2 s (1 + s^2/3 + s^4/5 + \dots)`; s and the
    first terms are pairs of words, the terms from :math:`s^8` on (below :math:`2^{-23}`) single ones.
    """
    single = x.dtype == jnp.float32
    integer, mantissa, terms = (jnp.int32, 23, 5) if single else (jnp.int64, 52, 12)
    root = lax.bitcast_convert_type(np.sqrt(np.array(0.5, x.dtype)), integer)
    bits = lax.bitcast_convert_type(x, integer)
    k = (bits - root) >> mantissa
    m = words.scaled_down(x, k)
    one = opaque(jnp.ones_like(x))
    above, (below, rest) = m - one, two_sum_kernel(m, one)
    s = above / below
    p, error = two_prod_kernel(s, below)
    ratio = s, (((above - p) - error) - s * rest) / below
    square = _product(ratio, ratio)
    series: _Words = words.polynomial(square[0], [1 / (2 * j + 9) for j in range(terms)]), jnp.zeros_like(x)
    for text in ("1/7", "1/5", "1/3"):
        high, low = words.constant(text, x)
        scaled = _product(square, series)
        total, error = two_sum_kernel(opaque(jnp.full_like(x, high)), scaled[0])
        series = fast_two_sum_kernel(total, error + (scaled[1] + low))
    double = 2 * ratio[0], 2 * ratio[1]
    tail = _product(double, _product(square, series))
    total, error = two_sum_kernel(double[0], tail[0])
    logarithm = fast_two_sum_kernel(total, error + (tail[1] + double[1]))
    # ln 2 in parts whose products with k are exact.
    bits_of_parts = (14, 14, 24) if single else (40, 40, 53)
    first, second, third = words.split_constant(words.LN2, np.dtype(x.dtype), bits_of_parts)
    k = k.astype(x.dtype)
    whole, lost = two_sum_kernel(k * first, k * second)
    total, error = two_sum_kernel(whole, logarithm[0])
    return fast_two_sum_kernel(total, error + (lost + (k * third + logarithm[1])))


def _ordinary(x: Array) -> Array:
    return jnp.isfinite(x) & (jnp.abs(x) >= float(np.finfo(x.dtype).smallest_normal))


def _logarithm(x: Array) -> _Words:
    """log |x|, also at 0, infinity and NaN."""
    ordinary = _ordinary(x)
    high, low = log_words(jnp.where(ordinary, jnp.abs(x), 1.0))
    return jnp.where(ordinary, high, lax.log(jnp.abs(x))), jnp.where(ordinary, low, 0.0)


def _odd(y: Array) -> Array:
    half = 0.5 * y
    return (y == jnp.floor(y)) & (half != jnp.floor(half))


def _scaled_power(factor: Array, x: Array, y: Array, shift: int) -> Array:
    r"""factor · :math:`x^{y - shift}`, in halves where the power by itself leaves the range.

    y - shift is rounded; what that loses, times log x, is put right. A zero factor or power decides over
    an infinite other one: those are the limits of y xʸ⁻¹, xʸ log x and so on.
    """
    high, low = two_sum_kernel(y, opaque(jnp.full_like(y, -shift)))
    whole, half = lax.pow(jnp.abs(x), high), lax.pow(jnp.abs(x), 0.5 * high)
    within = jnp.abs(jnp.log2(whole)) < np.finfo(x.dtype).maxexp / 2
    first, second = jnp.where(within, whole, half), jnp.where(within, 1.0, half)
    finite = jnp.isfinite(y) & _ordinary(x)
    lost = jnp.where(finite, low * _logarithm(x)[0], 0.0)
    value = (factor * (first + jnp.where(jnp.isfinite(first), first * lost, 0.0))) * second
    value = jnp.where((factor == 0) | (first == 0), 0.0, value)
    value = jnp.where(jnp.signbit(x) & (_odd(y) != bool(shift % 2)), -value, value)
    noninteger = jnp.isfinite(x) & (x < 0) & (y != jnp.floor(y))
    return jnp.where(noninteger | jnp.isnan(x) & (factor != 0), jnp.nan, value)


def _falling(y: Array, order: int) -> Array:
    """y (y - 1) ... (y - order + 1)."""
    return functools.reduce(operator.mul, [y - j for j in range(1, order)], y)


@functools.cache
def _in_x(order: int) -> Callable[..., Array]:
    """The derivative of that order in x."""

    def value(x: Array, y: Array) -> Array:
        return _scaled_power(_falling(y, order), x, y, order)

    def in_y(x: Array, y: Array) -> Array:
        factor, slope = jax.jvp(lambda y: _falling(y, order), (y,), (jnp.ones_like(y),))
        logarithm = jnp.where(factor == 0, 0.0, factor * _logarithm(x)[0])
        return jnp.where(x < 0, jnp.nan, _scaled_power(slope + logarithm, x, y, order))

    return elementwise(lambda x, y: _in_x(order + 1)(x, y), _mixed if order == 1 else elementwise()(in_y))(value)


def _power_y(x: Array, y: Array) -> Array:
    return jnp.where(x < 0, jnp.nan, _scaled_power(_logarithm(x)[0], x, y, 0))


def _power_yy(x: Array, y: Array) -> Array:
    logarithm = _logarithm(x)[0]
    return jnp.where(x < 0, jnp.nan, _scaled_power(logarithm * logarithm, x, y, 0))


def _power_xy(x: Array, y: Array) -> Array:
    logarithm = _logarithm(x)
    ordinary = jnp.isfinite(logarithm[0]) & (jnp.abs(y) < 1e9)
    bounded = jnp.where(ordinary, y, 0.0)
    p, error = two_prod_kernel(jnp.where(ordinary, logarithm[0], 0.0), bounded)
    total, rest = two_sum_kernel(p, opaque(jnp.ones_like(x)))
    near = total + (rest + (error + bounded * logarithm[1]))
    product = jnp.where((y == 0) | (logarithm[0] == 0), 0.0, y * logarithm[0])
    return jnp.where(x < 0, jnp.nan, _scaled_power(jnp.where(ordinary, near, 1 + product), x, y, 1))


_mixed = elementwise()(_power_xy)


@elementwise(
    _in_x(1),
    elementwise(_mixed, elementwise()(_power_yy))(_power_y),
)
def power(x: Array, y: Array) -> Array:
    r""":math:`x^y`, with derivatives that are right at x = 0, at y = 0 and where a part of them leaves the range.

    .. math:: \partial_x = y x^{y-1}, \quad \partial_y = x^y \log x, \quad \partial_{xy} = x^{y-1} (1 + y \log x)

    JAX gives NaN for the derivative of :math:`x^{0.0}` at 0; here a zero factor decides, and the limits are kept otherwise:
    the derivative of :math:`x^{1/2}` at 0 is +inf, of :math:`x^0` 0, of :math:`0^y` in y 0 for y > 0 and -inf for y ≤ 0. The
    rounding of y - 1, and the cancellation in :math:`1 + y \log x`, are made good by a logarithm of two words.

    Args:
      x, y: real arrays. For x < 0 the value is NaN if y is not an integer, and derivatives in y are NaN.

    Returns:
      An array of the broadcast shape and promoted dtype (integers become floats; use `x**2` for exact integer powers); value
      (XLA's) within 1 ulp on CPU, derivatives within 4 ulp in float32 and 8 in float64.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.power)(0.0, 0.0), jax.grad(st.power)(0.0, 0.5))
    0.0 inf
    """
    return lax.pow(x, y)
