"""Twins of library functions of each element."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy import special

from robustad import stability
from robustad.stability import _logarithm, _logistic, _plane, _words
from robustad.stability._elementwise import elementwise as accurate

from ._elementwise import logistic
from ._library import Call, of
from ._log_add import log_sum_terms
from ._twin import Term, constant, elementwise, smooth

Row = tuple[str, Call, Callable[..., Array]]
"""Why, which library function, and its twin."""


def _by_terms(reason: str, call: Call, *terms: Term) -> Row:
    """A twin with the value of the library function."""
    return reason, call, elementwise(call, *terms)


def _softplus_term(t: Array, y: Array, x: Array) -> Array:
    return t * logistic(x)


# ---- silu: x s(x), in the tail x eˣ in halves, since s underflows before x s does


def _tail(x: Array, factor: Array) -> tuple[Array, Array]:
    """Where s is below the normal numbers, nearly; and factor · eˣ there."""
    low = float(np.log(jnp.finfo(x.dtype).smallest_normal)) + 2
    half = lax.exp(0.5 * lax.min(x, constant(x, 0)))
    return x < low, (lax.max(factor, constant(x, 4 * low)) * half) * half


def _silu_value(x: Array) -> Array:
    """The tail in float64 only: in float32 it is five units long (-92 to -87), and would cost as much as all the rest."""
    plain = x * lax.logistic(x)
    return lax.select(*_tail(x, x), plain) if x.dtype == jnp.float64 else plain


@smooth(accurate()(_logistic._silu_second))
def _silu_slope(x: Array) -> Array:
    s = lax.logistic(x)
    y = lax.min(x, constant(x, 4 * float(jnp.finfo(x.dtype).maxexp)))  # 1 - s is 0 from there on
    return lax.select(*_tail(x, 1 + x), s * (1 + y * (1 - s)))


# ---- sin πx/(πx)


def _sinc_part(order: int, y: Array) -> Array:
    """The derivative of that order of sin y/y, of y² and without its factor y where it is odd, by its series, |y| ≤ 2."""
    count = 9 if y.dtype == jnp.float32 else 14
    coefficients = []
    for k in range(count):
        n = k + (order + 1) // 2
        power = 2 * n
        factor = math.prod(range(power - order + 1, power + 1))
        coefficients.append((-1) ** n * factor / math.factorial(power + 1))
    return _words.polynomial(y * y, coefficients)


def _sinc_slope_formula(x: Array) -> Array:
    y = math.pi * x
    near = lax.abs(y) < 2
    small = lax.select(near, y, constant(y, 0))
    large = lax.select(near, constant(y, 2), y)
    far = (lax.cos(large) - lax.sin(large) / large) / large
    return math.pi * lax.select(near, small * _sinc_part(1, small), far)


@smooth()
def _sinc_curvature(x: Array) -> Array:
    y = math.pi * x
    near = lax.abs(y) < 2
    small = lax.select(near, y, constant(y, 0))
    large = lax.select(near, constant(y, 2), y)
    slope = (lax.cos(large) - lax.sin(large) / large) / large
    return math.pi**2 * lax.select(near, _sinc_part(2, small), -(lax.sin(large) + 2 * slope) / large)


_sinc_slope = smooth(_sinc_curvature)(_sinc_slope_formula)


def _sinc_term(t: Array, y: Array, x: Array) -> Array:
    return t * _sinc_slope(x)


def _log1mexp(x: Array) -> Array:
    """NaN for x < 0, as JAX's."""
    return jnp.where(x < 0, jnp.nan, stability.log1mexp(x))


TABLE: dict[str, Row] = {
    "logaddexp": _by_terms(
        "NaN where both are -inf; the second derivative is exp(x - z) (1 - exp(x - z)) of rounded differences",
        of(jnp.logaddexp),
        *log_sum_terms(1.0),
    ),
    "logaddexp2": _by_terms("as logaddexp", of(jnp.logaddexp2), *log_sum_terms(math.log(2))),
    "softplus": _by_terms("the second derivative is 0 from 37.43 on (float64)", of(jax.nn.softplus), _softplus_term),
    "silu": (
        "s underflows before x s and its derivative do: 0 from -709 on (float64)",
        of(jax.nn.silu),
        elementwise(_silu_value, lambda t, y, x: t * _silu_slope(x)),
    ),
    "hypot": _by_terms(
        "NaN at the origin, and where a coordinate is infinite",
        of(jnp.hypot),
        lambda t, h, x, y: t * _plane._hypot_x(x, y),
        lambda t, h, x, y: t * _plane._hypot_y(x, y),
    ),
    "sinc": _by_terms("the derivative cancels near 0: few digits at 1e-3", of(jnp.sinc), _sinc_term),
    "xlogy": _by_terms(
        "x/y is NaN where both are 0",
        of(special.xlogy),
        lambda t, z, x, y: t * _logarithm._xlogy_x(x, y),
        lambda t, z, x, y: t * _logarithm._xlogy_y(x, y),
    ),
    "xlog1py": _by_terms(
        "x/(1 + y) is NaN at (0, -1)",
        of(special.xlog1py),
        lambda t, z, x, y: t * _logarithm._xlog1py_x(x, y),
        lambda t, z, x, y: t * _logarithm._xlog1py_y(x, y),
    ),
    "logit": ("the value cancels near its zero 1/2", of(special.logit), stability.logit),
    "log_ndtr": (
        "the tail's series has few terms; the derivative loses digits",
        of(special.log_ndtr),
        stability.log_ndtr,
    ),
    "log1mexp": ("the second derivative squares exp(x) - 1", of(jax.nn.log1mexp), _log1mexp),
}
