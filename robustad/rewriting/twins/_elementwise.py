"""Twins of functions of one argument whose plain derivative loses digits in a tail, at an edge or by a square.

The slopes are cheap: one exponential at most. Their own derivatives, for second order, are those of `robustad.stability`.
Not here, since the plain derivative is right: exp, log, log1p, sin, cos, tan, sinh, cosh, sqrt, rsqrt, cbrt, square, abs.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import stability
from robustad.stability import _exponential, _hyperbolic, _logarithm, _logistic, _normal, _roots
from robustad.stability import _words as words
from robustad.stability._elementwise import elementwise as accurate

from ._twin import Entry, by_slope, by_terms, constant, elementwise, smooth, with_value

# ---- exponentials and sigmoids


@with_value(accurate()(lambda x: _logistic.sigmoid_curvature(x)))
def _logistic_term(x: Array, y: Array) -> Array:
    """e s², e = exp(-|x|), s = logistic |x|: a product, without 1 - s of an s near 1."""
    s = lax.max(y, 1 - y)
    return lax.exp(-lax.abs(x)) * (s * s)


logistic = elementwise(lax.logistic, _logistic_term)


@with_value(accurate()(lambda x: _logistic.sigmoid_curvature(2 * x, 8.0)))
def _tanh_term(x: Array, y: Array) -> Array:
    """e (1 + |tanh x|)², e = exp(-2|x|), since 1 - |tanh x| = e (1 + |tanh x|)."""
    u = 1 + lax.abs(y)
    return lax.exp(-2 * lax.abs(x)) * (u * u)


# ---- the error function


def _gauss(x: Array) -> Array:
    """exp(-x²), the square in two words."""
    high, low = words.square(lax.clamp(constant(x, -100), x, constant(x, 100)))
    return lax.exp(-high) * (1 - low)


_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)


@smooth(_normal._erf_second)
def _erf_slope(x: Array) -> Array:
    return _TWO_OVER_ROOT_PI * _gauss(x)


@smooth(_normal._erfc_second)
def _erfc_slope(x: Array) -> Array:
    return -_TWO_OVER_ROOT_PI * _gauss(x)


# ---- inverse functions


@smooth(_roots._asin_2)
def _asin_slope(x: Array) -> Array:
    return lax.rsqrt((1 - x) * (1 + x))


@smooth(_roots._acos_2)
def _acos_slope(x: Array) -> Array:
    return -lax.rsqrt((1 - x) * (1 + x))


def _far(x: Array) -> Array:
    """|x| from which on 1 is lost beside x²."""
    return lax.abs(x) > _logarithm.square_hides_1(x)


def _within_rounding(x: Array) -> Array:
    """Whether x is ±1, or beyond, but for rounding."""
    return lax.abs(x) >= 1 - 4 * float(jnp.finfo(x.dtype).eps)


def _acos_term(t: Array, y: Array, x: Array) -> Array:
    at_kink = _within_rounding(x)
    slope = _acos_slope(lax.select(at_kink, constant(x, 0), x))
    return lax.select(at_kink, constant(t, 0), t * slope)


# For the cosine that a contraction of two unit vectors is: it exceeds 1 by rounding, and where the vectors agree, a finite
# kink of the angle, the subgradient is 0.
acos_of_contraction = elementwise(lambda x: lax.acos(lax.clamp(constant(x, -1), x, constant(x, 1))), _acos_term)


@smooth(accurate()(_hyperbolic._asinh_second))
def _asinh_slope(x: Array) -> Array:
    far = _far(x)
    near = lax.select(far, constant(x, 0), x)
    return lax.select(far, 1 / lax.abs(x), lax.rsqrt(1 + near * near))


@smooth(accurate()(_hyperbolic._acosh_second))
def _acosh_slope(x: Array) -> Array:
    far = _far(x)
    near = lax.select(far, constant(x, 2), x)
    return lax.select(far, 1 / x, lax.rsqrt((near - 1) * (near + 1)))


@smooth(accurate()(_hyperbolic._atanh_second))
def _atanh_slope(x: Array) -> Array:
    return 1 / ((1 - x) * (1 + x))


@smooth()
def _atan_curvature(x: Array) -> Array:
    r = 1 / (1 + x * x)
    return lax.select(lax.abs(x) == np.inf, constant(x, 0), -2 * ((x * r) * r))


@smooth(_atan_curvature)
def _atan_slope(x: Array) -> Array:
    return 1 / (1 + x * x)


@smooth()
def _exp(x: Array) -> Array:
    return lax.exp(x)


TABLE: dict[str, Entry] = {
    "tanh": by_terms("1 - tanh² of the rounded value: 0 from 9.01 on (float32), and few digits before", _tanh_term),
    "logistic": by_terms("s (1 - s) of the rounded value: 0 from 17 on (float32), 37.43 (float64)", _logistic_term),
    "expm1": by_slope("the value plus 1, 0 below -17 (float32), -37.4 (float64)", _exp),
    "exp2": by_slope(
        "the value overflows before the derivative does; it is exp(x log 2), off by up to 2⁷ ulp in float32",
        _exponential._exp2_first,
        value=stability.exp2,
    ),
    "asin": by_slope(
        "1 - x² loses half of the digits near ±1; the value is 0 below 2e-38", _asin_slope, value=stability.asin
    ),
    "acos": by_slope("1 - x² loses half of the digits near ±1", _acos_slope),
    "asinh": by_slope("x² overflows: 0 from 1.8e19 on (float32)", _asinh_slope),
    "acosh": by_slope("x² overflows: 0 from 1.8e19 on (float32); x² - 1 cancels near 1", _acosh_slope),
    "atanh": by_slope("on some versions the second derivative overflows near ±1", _atanh_slope),
    "atan": by_slope("the second derivative squares 1 + x² : 0 from 3e9 on (float32)", _atan_slope),
    "erf": by_slope("exp(-x²) of the rounded square: up to 7 bits in the tail", _erf_slope),
    "erfc": by_slope("exp(-x²) of the rounded square: up to 7 bits in the tail", _erfc_slope),
}
