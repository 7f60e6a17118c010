r"""The normal distribution and the error functions, by Mills' ratio.

With Q and φ the normal tail and density, :math:`m(y) = Q(y)/φ(y)` for y ≥ 0 falls like 1/y and is smooth, and so is
:math:`w(y) = 1/m(y) - y`; both are fitted (experiments/coefficients.py). Then :math:`Q = m φ`, the hazard is 1/m, and its
derivative :math:`w/m` is a product, where :math:`h (h - y)` cancels.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from . import _coefficients as fitted
from . import _words as words
from ._elementwise import elementwise


def _fit(y: Array, single: tuple[float, ...], double: tuple[float, ...]) -> Array:
    t = 1 - 2 * fitted.CENTRE / (y + fitted.CENTRE)
    return words.polynomial(t, single if y.dtype == jnp.float32 else double)


def _mills(y: Array) -> Array:
    return _fit(y, fitted.MILLS_32, fitted.MILLS_64) / (y + 1)


def _hazard_slope(y: Array) -> Array:
    """w(y)/m(y), in which the common factor 1/(y + 1) drops out."""
    excess = _fit(y, fitted.HAZARD_EXCESS_32, fitted.HAZARD_EXCESS_64)
    return excess / _fit(y, fitted.MILLS_32, fitted.MILLS_64)


def _gauss(x: Array, half: float, factor: Array | float) -> Array:
    """factor · exp(-half · x²), with the square in two words."""
    high, low = words.square(jnp.clip(x, -100.0, 100.0))
    return words.exp(-half * high, -half * low, factor)


_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)
_ROOT_2_OVER_PI = math.sqrt(2 / math.pi)
# erf x / x = 2/√π Σ (-x²)ⁿ / (n! (2n + 1))
_ERF_SERIES = tuple(_TWO_OVER_ROOT_PI * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(16))


def _erf_near(x: Array) -> Array:
    terms = 9 if x.dtype == jnp.float32 else 16
    z = jnp.clip(x, -0.75, 0.75)
    return z * words.polynomial(z * z, _ERF_SERIES[:terms])


def _erfc_far(y: Array) -> Array:
    """erfc y for y > 0."""
    return _gauss(y, 1.0, _ROOT_2_OVER_PI * _mills(math.sqrt(2) * jnp.minimum(y, 100.0)))


_erf_second = elementwise()(lambda x: _gauss(x, 1.0, -2 * _TWO_OVER_ROOT_PI * jnp.clip(x, -100.0, 100.0)))
_erf_first = elementwise(_erf_second)(lambda x: _gauss(x, 1.0, _TWO_OVER_ROOT_PI))
_erfc_second = elementwise()(lambda x: _gauss(x, 1.0, 2 * _TWO_OVER_ROOT_PI * jnp.clip(x, -100.0, 100.0)))
_erfc_first = elementwise(_erfc_second)(lambda x: _gauss(x, 1.0, -_TWO_OVER_ROOT_PI))


@elementwise(_erf_first)
def erf(x: Array) -> Array:
    r""":math:`\frac{2}{\sqrt\pi} \int_0^x e^{-t^2} dt`.

    Its derivative :math:`\frac{2}{\sqrt\pi} e^{-x^2}` needs the square in two words: rounded, it loses 6 bits in the tail.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.erf)(0.0))
    1.1283792
    """
    y = jnp.abs(x)
    return jnp.where(y < 0.75, jnp.where(x == 0, x, _erf_near(x)), jnp.sign(x) * (1 - _erfc_far(jnp.maximum(y, 0.75))))


@elementwise(_erfc_first)
def erfc(x: Array) -> Array:
    r""":math:`1 - \operatorname{erf} x`, to the last bits of its tail, where XLA's is off by 60 ulp.

    >>> from robustad import stability as st
    >>> print(st.erfc(9.0))
    4.1370317e-37
    """
    y = jnp.abs(x)
    far = _erfc_far(jnp.maximum(y, 0.5))
    return jnp.where(y < 0.5, 1 - _erf_near(x), jnp.where(x < 0, 2 - far, far))


def _density(y: Array, factor: Array | float = 1.0) -> Array:
    """factor · φ(y); the constant goes into the exponent, in two words, where it costs no rounding."""
    high, low = words.square(jnp.clip(y, -100.0, 100.0))
    first, second = words.constant(words.LOG_ROOT_2_PI, y)
    exponent, error = words.two_sum(-0.5 * high, words.opaque(-first, y))
    return words.exp(exponent, error - (0.5 * low + second), factor)


def _tail(y: Array) -> Array:
    """Q(y) for y ≥ 0: near 0 one half less a small part, so that the errors of density and ratio do not enter."""
    half = 0.5 * _erf_near(math.sqrt(0.5) * jnp.minimum(y, 1.0))
    return jnp.where(y < 0.7, 0.5 - half, _density(y, _mills(jnp.minimum(y, 100.0))))


def _log_ndtr_second(x: Array) -> Array:
    y = jnp.maximum(x, 0.0)
    body = 1 - _tail(y)
    hazard = _density(y) / body
    # One factor keeps the exponential in, so that the product does not underflow early.
    right = -_density(y, jnp.minimum(y, 100.0) + hazard) / body
    return jnp.where(x > 0, right, -_hazard_slope(jnp.maximum(-x, 0.0)))


def _log_ndtr_first(x: Array) -> Array:
    y = jnp.maximum(x, 0.0)
    return jnp.where(x > 0, _density(y) / (1 - _tail(y)), 1 / _mills(jnp.maximum(-x, 0.0)))


@elementwise(elementwise(elementwise()(_log_ndtr_second))(_log_ndtr_first))
def log_ndtr(x: Array) -> Array:
    r""":math:`\log Φ(x)`, the logarithm of the normal distribution function.

    The naive form is -inf below -14 (float32) and 0 above 5.5. Left of 0 :math:`-x^2/2 + \log m(-x) - \log\sqrt{2π}`; right
    of it :math:`\log(1 - Q(x))` by log1p.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.log_ndtr(-100.0), jax.grad(st.log_ndtr)(-100.0))
    -5005.5244 100.01
    """
    z = jnp.maximum(-x, 0.0)
    far = -0.5 * z * z + (lax.log(_mills(z)) - 0.5 * math.log(2 * math.pi))
    left = jnp.where(z < 0.7, lax.log(_tail(z)), far)
    return jnp.where(x > 0, words.log1p(-_tail(jnp.maximum(x, 0.0))), left)
