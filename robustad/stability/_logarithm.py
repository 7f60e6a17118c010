"""Logarithms and products with logarithms, right at zeros, at cancellations and at the edge of the domain."""

import jax.numpy as jnp
from jax import Array, lax

from . import _words as words
from ._elementwise import elementwise

_minus_inverse_square = elementwise()(lambda x: -(1 / x) * (1 / x))
_inverse = elementwise(_minus_inverse_square)(lambda x: 1 / x)


@elementwise(_inverse)
def log(x: Array) -> Array:
    r""":math:`\log x`; its derivatives at 0 are signed infinities.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.log)(0.0), jax.grad(jax.grad(st.log))(0.0))
    inf -inf
    """
    return lax.log(x)


_log1p_second = elementwise()(lambda x: -(1 / (1 + x)) * (1 / (1 + x)))
_log1p_first = elementwise(_log1p_second)(lambda x: jnp.where(x < -1, jnp.nan, 1 / (1 + x)))


@elementwise(_log1p_first)
def log1p(x: Array) -> Array:
    r""":math:`\log(1 + x)`.

    `jnp.log(1 + x)` loses what 1 + x rounds away; XLA's log1p is off by up to 120 ulp in float64 on some versions.

    >>> from robustad import stability as st
    >>> print(st.log1p(1e-10))
    1e-10
    """
    return words.log1p(x)


def _log1pmx(x: Array) -> Array:
    total, error, rest = words.log1p_words(x)
    value = (total - x) + (error + rest)
    value = jnp.where(x == -1, -jnp.inf, jnp.where(x == jnp.inf, -jnp.inf, value))
    return jnp.where(x < -1, jnp.nan, value)


_log1pmx_first = elementwise(_log1p_second)(lambda x: jnp.where(x == jnp.inf, -1.0, -x / (1 + x)))


@elementwise(_log1pmx_first)
def log1pmx(x: Array) -> Array:
    r""":math:`\log(1 + x) - x`.

    The difference cancels near 0, where it is :math:`-x^2/2`. Here the terms of the logarithm's expansion are summed without
    the x in them. Name after LogExpFunctions.jl.

    >>> from robustad import stability as st
    >>> print(st.log1pmx(1e-5))
    -4.9999664e-11
    """
    return _log1pmx(x)


def _logmxp1(x: Array) -> Array:
    middle = (x > 0.25) & (x < 4)
    near = _log1pmx(jnp.where(middle, x - 1, 0.0))
    return jnp.where(middle, near, jnp.where(x == jnp.inf, -jnp.inf, lax.log(x) - (x - 1)))


_logmxp1_first = elementwise(_minus_inverse_square)(lambda x: jnp.where(x == jnp.inf, -1.0, (1 - x) / x))


@elementwise(_logmxp1_first)
def logmxp1(x: Array) -> Array:
    r""":math:`\log x - x + 1`, without the cancellation near 1. Name after LogExpFunctions.jl.

    >>> from robustad import stability as st
    >>> print(st.logmxp1(1.0001))
    -5.001326e-09
    """
    return _logmxp1(x)


def square_hides_1(x: Array) -> float:
    """From there on, 1 + x² is x²: a power of two."""
    return 2.0 ** (jnp.finfo(x.dtype).nmant // 2 + 2)


def _log1psq_first(x: Array) -> Array:
    far = jnp.abs(x) > square_hides_1(x)
    y = jnp.where(far, 1.0, x)
    return jnp.where(far, 2 / x, 2 * y / (1 + y * y))


def _log1psq_second(x: Array) -> Array:
    far = jnp.abs(x) > square_hides_1(x)
    y = jnp.where(far, 1.0, x)
    high, low = words.square(y)
    d, error = words.two_sum(high, words.opaque(1.0, x))
    near = 2 * (1 - y) * (1 + y) / (d * d)
    z = jnp.where(far, x, 1.0)
    return jnp.where(far, -2 * (1 / z) * (1 / z), near - near * (2 * (error + low) / d))


@elementwise(elementwise(elementwise()(_log1psq_second))(_log1psq_first))
def log1psq(x: Array) -> Array:
    r""":math:`\log(1 + x^2)`; the square neither overflows nor is rounded away. Name after LogExpFunctions.jl.

    >>> from robustad import stability as st
    >>> print(st.log1psq(1e30))
    138.1551
    """
    far = jnp.abs(x) > square_hides_1(x)
    return jnp.where(far, 2 * lax.log(jnp.abs(x)), words.log1p(jnp.square(jnp.where(far, 1.0, x))))


def _log_plus_1(x: Array) -> Array:
    """log(x) + 1, right at its zero 1/e."""
    near = (x > 0.2) & (x < 0.6)
    step = words.away(jnp.where(near, x, 0.5), words.EXP_MINUS_1)
    return jnp.where(near, words.log1p(words.times_e(step)), lax.log(x) + 1)


_xlogx_first = elementwise(_inverse)(_log_plus_1)


@elementwise(_xlogx_first)
def xlogx(x: Array) -> Array:
    r""":math:`x \log x`, 0 at 0; its derivative :math:`\log x + 1` keeps its digits at its zero 1/e.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.xlogx(0.0), jax.grad(st.xlogx)(0.0))
    0.0 -inf
    """
    return jnp.where(x == 0, 0.0, x * lax.log(x))


_entr_second = elementwise()(lambda x: jnp.where(x < 0, 0.0, -1 / x))
_entr_first = elementwise(_entr_second)(lambda x: jnp.where(x < 0, 0.0, -_log_plus_1(jnp.abs(x))))


@elementwise(_entr_first)
def entr(x: Array) -> Array:
    r"""The entropy of a probability, :math:`-x \log x`: 0 at 0, -inf below.

    At 0 the derivative is its limit +inf; below 0, where the value is constant, it is 0.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.entr(0.0), jax.grad(st.entr)(0.0), st.entr(-1.0))
    0.0 inf -inf
    """
    return jnp.where(x < 0, -jnp.inf, jnp.where(x == 0, 0.0, -x * lax.log(x)))


def _ratio(x: Array, y: Array) -> Array:
    return jnp.where(x == 0, jnp.where(jnp.isnan(y), y, 0.0), x / y)


_zero = elementwise()(lambda x, y: jnp.zeros_like(x))
_xlogy_xy = elementwise()(lambda x, y: 1 / y)
_xlogy_yy = elementwise()(lambda x, y: -_ratio(_ratio(x, y), y))
_xlogy_x = elementwise(_zero, _xlogy_xy)(lambda x, y: lax.log(y))
_xlogy_y = elementwise(_xlogy_xy, _xlogy_yy)(_ratio)


@elementwise(_xlogy_x, _xlogy_y)
def xlogy(x: Array, y: Array) -> Array:
    r""":math:`x \log y`, 0 where x is 0, whatever y is (but NaN).

    The derivative in y is x/y, 0 where x is 0; in x it is log y, -inf where y is 0.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.xlogy(0.0, 0.0), jax.grad(st.xlogy, 1)(0.0, 0.0))
    0.0 0.0
    """
    return jnp.where((x == 0) & ~jnp.isnan(y), 0.0, x * lax.log(y))


_xlog1py_xy = elementwise()(lambda x, y: 1 / (1 + y))
_xlog1py_yy = elementwise()(lambda x, y: -_ratio(_ratio(x, 1 + y), 1 + y))
_xlog1py_x = elementwise(_zero, _xlog1py_xy)(lambda x, y: words.log1p(y))
_xlog1py_y = elementwise(_xlog1py_xy, _xlog1py_yy)(lambda x, y: _ratio(x, 1 + y))


@elementwise(_xlog1py_x, _xlog1py_y)
def xlog1py(x: Array, y: Array) -> Array:
    r""":math:`x \log(1 + y)`, 0 where x is 0, whatever y is (but NaN).

    >>> from robustad import stability as st
    >>> print(st.xlog1py(0.0, -1.0), st.xlog1py(2.0, 1e-10))
    0.0 2e-10
    """
    return jnp.where((x == 0) & ~jnp.isnan(y), 0.0, x * words.log1p(y))
