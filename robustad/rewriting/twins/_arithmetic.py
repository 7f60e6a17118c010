"""Twins of division, powers, remainders and the arc tangent of a point: derivatives in which no power leaves the range."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad._jaxpr import Equation
from robustad.stability import _plane, _power
from robustad.stability._elementwise import elementwise as accurate
from robustad.stability._words import opaque

from ._complex import quotient
from ._twin import Arrays, Bound, Entry, by_slope, by_terms, constant, elementwise, is_real, smooth

# ---- division


def _divide_by(t: Array, q: Array, x: Array, y: Array) -> Array:
    return divide(t, y)


def _divided_into(t: Array, q: Array, x: Array, y: Array) -> Array:
    """In this order the transpose is (cotangent · q)/y, whose derivative never has 1/y² by itself.

    The opaque 1 keeps XLA from making x/(y y) of (x/y)/y, where the cotangent is ±1.
    """
    return divide(t, y) * -(q * opaque(1.0, q))


def _divide_transposed(linear: tuple[int, ...], cotangent: Array, x: Array, y: Array) -> tuple[Array]:
    return (divide(cotangent * opaque(1.0, cotangent), y),)


_DIVISION = by_terms(
    "x y⁻²: y² overflows above 1.8e19 and underflows below 1e-19 (float32)",
    _divide_by,
    _divided_into,
    transposed=_divide_transposed,
)
divide: Callable[..., Array] = elementwise(
    Bound(lax.div_p, ()), _divide_by, _divided_into, transposed=_divide_transposed
)


# ---- log: of division


def _over(t: Array, y: Array, x: Array) -> Array:
    return divide(t, x)


# ---- integer powers


def _power_term(n: int, t: Array, y: Array, x: Array) -> Array:
    """n t xⁿ⁻¹: in two halves around t, or from the value where n < 0."""
    if n == 0:
        return jnp.zeros_like(t)
    if n < 0:
        return divide(t, x) * (n * y)
    half = (n - 1) // 2
    return ((n * t) * power_of(half, x)) * power_of(n - 1 - half, x)


@functools.cache
def _integer_power(n: int) -> Callable[..., Array]:
    return elementwise(Bound(lax.integer_pow_p, (("y", n),)), functools.partial(_power_term, n))


def power_of(n: int, x: Array) -> Array:
    return x if n == 1 else jnp.ones_like(x) if n == 0 else _integer_power(n)(x)


def _integer_pow(eqn: Equation) -> Arrays | None:
    n = eqn.params["y"]
    if not is_real(eqn) or n in (0, 1, 2):
        return None
    power = _integer_power(n)
    return lambda x: [power(x)]


# ---- powers


def _is_ordinary(x: Array) -> Array:
    size = lax.abs(x)
    return (size >= float(np.finfo(x.dtype).smallest_normal)) & (size < np.inf)


@smooth(_power._in_x(2), _power._mixed)
def _power_x(x: Array, y: Array) -> Array:
    """y xʸ⁻¹: from the value where it is in range, which saves the rounding of y - 1; 0 for y = 0, also at x = 0."""
    value = lax.pow(x, y)
    from_value = (y * value) / x
    direct = y * lax.pow(x, y - 1)
    slope = lax.select(_is_ordinary(value) & _is_ordinary(x), from_value, direct)
    return lax.select(y == 0, constant(x, 0), slope)


@smooth(_power._mixed, accurate()(_power._power_yy))
def _power_y(x: Array, y: Array) -> Array:
    """xʸ log x; at x = 0 it is 0 for y ≥ 0 (as in JAX at y = 0, where the value jumps) and -inf for y < 0."""
    value = lax.pow(x, y)
    slope = lax.select((value == 0) & (x > 0), constant(x, 0), value * lax.log(x))
    return lax.select(x == 0, lax.select(y < 0, constant(x, -np.inf), constant(x, 0)), slope)


# ---- remainder


def _quotient(t: Array, r: Array, x: Array, y: Array) -> Array:
    """-trunc(x/y) t, the quotient from the remainder itself: x/y may round up to the next integer."""
    return -t * lax.round((x - r) / y, lax.RoundingMethod.TO_NEAREST_EVEN)


def _same(t: Array, r: Array, x: Array, y: Array) -> Array:
    return t


# ---- the angle of a point


def _over_square(a: Array, y: Array, x: Array) -> Array:
    """a/(x² + y²) for a coordinate a: all in units of m, the larger one, and by its inverse, since XLA makes
    a/(m m) of (a/m)/m. The quarter keeps the inverse of a large m normal."""
    m = lax.max(lax.abs(x), lax.abs(y))
    quarter = lax.select(m > 1, constant(m, 0.25), constant(m, 1))
    inverse = 1 / (m * quarter)
    a, x, y = ((z * quarter) * inverse for z in (a, x, y))
    slope = ((a / (x * x + y * y)) * inverse) * quarter
    return lax.select(m == np.inf, constant(m, 0), slope)


@smooth(_plane._angle_yy, _plane._angle_xy)
def _angle_y(y: Array, x: Array) -> Array:
    return _over_square(x, y, x)


@smooth(_plane._angle_xy, _plane._angle_xx)
def _angle_x(y: Array, x: Array) -> Array:
    return _over_square(-y, y, x)


TABLE: dict[str, Entry] = {
    "div": Entry(_DIVISION.reason, lambda eqn: _DIVISION.make(eqn) or quotient(eqn)),
    "log": by_terms("the second derivative squares x: infinite below 1e-19 (float32)", _over),
    "integer_pow": Entry("xⁿ⁻¹ leaves the range where its product with the cotangent does not", _integer_pow),
    "pow": by_slope("NaN at x = 0 for exponents 0.0 and below; y - 1 is rounded", _power_x, _power_y),
    "rem": by_terms("x/y may round up to the next integer", _same, _quotient),
    "atan2": by_slope("x² + y² underflows below 1e-19 and overflows above 1.8e19 (float32)", _angle_y, _angle_x),
}
