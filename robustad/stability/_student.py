r"""Student's t with ν degrees of freedom, whose derivatives are differences of nearly equal terms in the far tail and for
large ν.

With :math:`q = z/\sqrt ν` the terms are the shares :math:`u = q^2/(1 + q^2)` and :math:`v = 1 - u`, both kept, and

.. math:: f_x = -\frac{(ν + 1) z}{s (ν + z^2)}, \quad f_s = \frac{ν u - v}{s}, \quad
    f_ν = \tfrac12 c'(ν/2) + \tfrac12 (u + \log v) + \frac{u}{2ν}

where c is what `half_step_remainder` computes. Each is of the size of its terms, but for zeros.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from ._division import divide
from ._elementwise import elementwise
from ._log_gamma import LOG_ROOT_2_PI, half_step_remainder, half_step_remainder_slope
from ._logarithm import log1pmx, log1psq
from ._roots import sqrt
from ._standardized import square_less_one, standardized, standardized_rest


def _folded(q: Array) -> tuple[Array, Array, Array]:
    """(far, r, 1/(1 + r²)) where r is |q|, or 1/|q| where that is above 1."""
    far = jnp.abs(q) > 1
    r = jnp.where(far, 1 / jnp.where(far, jnp.abs(q), 1.0), jnp.where(far, 0.0, jnp.abs(q)))
    return far, r, 1 / (1 + r * r)


def _shares(q: Array) -> tuple[Array, Array, Array]:
    """(u, v, q/(1 + q²))."""
    far, r, large = _folded(q)
    small = r * r * large
    w = jnp.where(far, jnp.sign(q) * r, jnp.where(far, 0.0, q)) * large
    return jnp.where(far, large, small), jnp.where(far, small, large), w


def _share_slope(q: Array) -> Array:
    _, v, w = _shares(q)
    return 2 * w * v


def _log_less_share_slope(q: Array) -> Array:
    u, _, w = _shares(q)
    return 2 * w * u


@elementwise(elementwise()(_share_slope))
def _share(q: Array) -> Array:
    """u of q."""
    return _shares(q)[0]


@elementwise(elementwise()(_log_less_share_slope))
def _log_less_share(q: Array) -> Array:
    """log(1 + q²) - u = -(u + log v)."""
    u = _shares(q)[0]
    near = u < 0.5
    return jnp.where(near, -log1pmx(-jnp.where(near, u, 0.0)), log1psq(q) - u)


def _terms(x: Array, nu: Array, loc: Array, scale: Array) -> tuple[Array, ...]:
    """z, √ν, and of q: u, v, w, 1/(1 + r²), and y with 1/(s² (ν + z²)) = y²/(1 + r²)."""
    z, root = standardized(x, loc, scale), sqrt(nu)
    q = divide(z, root)
    far, r, large = _folded(q)
    y = divide(jnp.where(far, r, 1.0) / root, scale)
    return z, root, *_shares(q), large, y


@elementwise()
def _by_xx(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    """(ν + 1)(z² - ν)/(s (ν + z²))²"""
    _, _, u, v, _, large, y = _terms(x, nu, loc, scale)
    return ((nu + 1) * (u - v) * large * y) * y


@elementwise()
def _by_x_nu(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    """-z (z² - 1)/(s (ν + z²)²)"""
    _, root, u, v, w, _, _ = _terms(x, nu, loc, scale)
    return divide(-w / root * (u - v / nu), scale)


@elementwise()
def _by_x_scale(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    """2 ν (ν + 1) z/(s (ν + z²))²"""
    _, root, _, _, w, large, y = _terms(x, nu, loc, scale)
    return 2 * (nu + 1) * (root * w * y) * y * large


def _by_x_loc(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    return -_by_xx(x, nu, loc, scale)


@elementwise(_by_xx, _by_x_nu, _by_x_loc, _by_x_scale)
def student_by_x(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    _, root, _, _, w, _, _ = _terms(x, nu, loc, scale)
    return -(((nu + 1) / root) * w / scale)


def student_by_loc(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    return -student_by_x(x, nu, loc, scale)


def _score_by_z(z: Array, low: Array, nu: Array) -> Array:
    return _score_slopes(z, nu)[0]


def _score_by_nu(z: Array, low: Array, nu: Array) -> Array:
    return _score_slopes(z, nu)[1]


def _score_slopes(z: Array, nu: Array) -> tuple[Array, Array]:
    root = sqrt(nu)
    u, v, w = _shares(divide(z, root))
    return 2 * (nu + 1) * v * (w / root), u * (u - v / nu)


@elementwise(_score_by_z, lambda z, low, nu: jnp.zeros_like(z), _score_by_nu)
def _scale_score(z: Array, low: Array, nu: Array) -> Array:
    """ν (z² - 1)/(ν + z²)"""
    u, v, _ = _shares(z / lax.sqrt(nu))
    near = jnp.abs(z) < 2
    return jnp.where(near, square_less_one(jnp.where(near, z, 0.0), low) * v, nu * u - v)


def student_by_scale(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    z, low = standardized(x, loc, scale), standardized_rest(x, loc, scale)
    return divide(_scale_score(z, low, nu), scale)


def _by_nu(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    q = divide(standardized(x, loc, scale), sqrt(nu))
    return 0.5 * (half_step_remainder_slope(0.5 * nu) - _log_less_share(q) + divide(_share(q), nu))


@elementwise(student_by_x, _by_nu, student_by_loc, student_by_scale)
def student(x: Array, nu: Array, loc: Array, scale: Array) -> Array:
    """The logarithm of the density."""
    z = standardized(x, loc, scale)
    constant = half_step_remainder(0.5 * nu) - LOG_ROOT_2_PI - lax.log(scale)
    return constant - 0.5 * (nu + 1) * log1psq(z / lax.sqrt(nu))


def _of_one(partial: Callable[..., Array]) -> Callable[..., Array]:
    return lambda x, loc, scale: partial(x, jnp.ones_like(x), loc, scale)


@elementwise(*map(_of_one, (student_by_x, student_by_loc, student_by_scale)))
def cauchy(x: Array, loc: Array, scale: Array) -> Array:
    """The logarithm of the density for ν = 1."""
    return -log1psq(standardized(x, loc, scale)) - (math.log(math.pi) + lax.log(scale))
