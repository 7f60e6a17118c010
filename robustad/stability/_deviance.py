r"""Densities of the Poisson and of the binomial distribution as functions of real arguments, in their saddle-point form.

With the deviance :math:`D(x, m) = x \log(x/m) + m - x \ge 0` and the remainder μ of Stirling's series

.. math::
    \log\frac{m^x e^{-m}}{Γ(x + 1)} = -D(x, m) - \tfrac12 \log 2πx - μ(x), \qquad
    \log\frac{n!}{x! y!} p^x q^y = \log\frac{(np)^x e^{-np}}{x!} - D(y, nq) + \tfrac12 \log\frac ny + μ(n) - μ(y).

Nothing cancels, as long as m - x does not: it is the argument `gap`, made of words. The gamma density is the first in x =
a - 1, the beta density (n + 1) times the second in x = a - 1, y = b - 1. Their derivatives in a shape a are
:math:`\log(m/a) + (\log a - ψ(a))`, two terms of order :math:`a^{-1/2}` and 1/a near the mode.

Source: Loader, Fast and accurate computation of binomial probabilities (2000).
"""

import jax.numpy as jnp
from jax import Array, lax

from . import _words as words
from ._division import divide, inverse
from ._elementwise import elementwise
from ._log_gamma import (
    LOG_ROOT_2_PI,
    digamma_gap,
    digamma_gap_fall,
    digamma_gap_fall_slope,
    digamma_gap_slope,
    log_gamma,
    stirling_remainder,
)
from ._logarithm import log1pmx
from ._pairs import complement, excess
from ._two_words import Words


def ratio(x: Array, y: Array) -> Array:
    """x/y, 0 where x is 0."""
    return jnp.where(x == 0, jnp.where(jnp.isnan(y), y, 0.0), x / y)


def log_quotient(x: Array, quotient: Array, gap: Array) -> Array:
    """log(m/x), of the rounded quotient and of m - x."""
    near = jnp.abs(gap) < 0.5 * x
    return jnp.where(near, words.log1p(jnp.where(near, gap / x, 0.0)), lax.log(jnp.where(near, 1.0, quotient)))


def minus_deviance(x: Array, m: Array, gap: Array) -> Array:
    """x log(m/x) - gap, with gap = m - x."""
    near = (gap > -0.75 * x) & (gap < 3 * x)
    t = jnp.where(near, gap / x, 0.0)
    return jnp.where(near, x * log1pmx(t), x * lax.log(jnp.where(near, 1.0, m / x)) - gap)


def _times_log(x: Array, m: Array) -> Array:
    return jnp.where((x == 0) & ~jnp.isnan(m), 0.0, x * lax.log(m))


def poisson(x: Array, m: Array, gap: Array, next_: Array) -> Array:
    """The logarithm of mˣ e⁻ᵐ/Γ(x + 1), with gap = m - x and next_ = x + 1."""
    large = x > 1
    big = jnp.where(large, x, 1.0)
    saddle = minus_deviance(big, m, gap) - (LOG_ROOT_2_PI + 0.5 * lax.log(big) + stirling_remainder(big))
    plain = _times_log(x, m) - m - log_gamma(jnp.where(large, 1.0, next_))
    value = jnp.where(large, saddle, plain)
    return jnp.where(jnp.isinf(x) | jnp.isinf(m), -(x + m), value)


def binomial(z: Words, x: Words, y: Words, next_x: Array, next_y: Array, density: bool) -> Array:
    """The logarithm of zˣ (1 - z)ʸ Γ(n + 1)/(Γ(x + 1) Γ(y + 1)), n = x + y; times n + 1 if that is a `density` of z."""
    n, rest = x[0] + y[0], complement(z)[0]
    swap = x[0] > y[0]
    low, high = jnp.where(swap, y[0], x[0]), jnp.where(swap, x[0], y[0])
    p, q = jnp.where(swap, rest, z[0]), jnp.where(swap, z[0], rest)
    gap = jnp.where(swap, 1.0, -1.0) * excess(x, y, z)
    large = (high > 1) & (n > 1)
    m, big = jnp.where(large, n, 1.0), jnp.where(large, high, 1.0)
    rare = poisson(low, m * p, gap, jnp.where(swap, next_y, next_x))
    saddle = rare + (minus_deviance(big, m * q, -gap) - 0.5 * words.log1p(-jnp.where(large, low, 0.0) / m))
    saddle = saddle + (stirling_remainder(m) - stirling_remainder(big))
    small_x, small_y = (jnp.where(large, 1.0, v) for v in (next_x, next_y))
    plain = _times_log(x[0], z[0]) + _times_log(y[0], rest) - log_gamma(small_x) - log_gamma(small_y)
    total = small_x + small_y
    plain = plain + log_gamma(total if density else total - 1)
    return jnp.where(large, saddle + words.log1p(m) if density else saddle, plain)


def _one_over(z: Array, *others: Array) -> Array:
    return inverse(z)


def _no_derivative(*args: Array) -> Array:
    return jnp.zeros_like(args[0])


def _gamma_shape_slope(z: Array, low: Array, a: Array, a_low: Array) -> Array:
    return digamma_gap_slope(a) - inverse(a)


@elementwise(_one_over, _no_derivative, _gamma_shape_slope, _no_derivative)
def gamma_by_shape(z: Array, low: Array, a: Array, a_low: Array) -> Array:
    """log z - ψ(a), of words."""
    return log_quotient(a, z / a, (z - a) + (low - a_low)) + digamma_gap(a)


def _beta_shape_slope(z: Array, low: Array, a: Array, a_low: Array, b: Array, b_low: Array) -> Array:
    return digamma_gap_fall_slope(a, b) - divide(b, a + b) * inverse(a)


def _beta_other_slope(z: Array, low: Array, a: Array, a_low: Array, b: Array, b_low: Array) -> Array:
    return inverse(a + b) - digamma_gap_slope(a + b)


@elementwise(_one_over, _no_derivative, _beta_shape_slope, _no_derivative, _beta_other_slope, _no_derivative)
def beta_by_shape(z: Array, low: Array, a: Array, a_low: Array, b: Array, b_low: Array) -> Array:
    """log z + ψ(a + b) - ψ(a), of words."""
    gap = -excess((a, a_low), (b, b_low), (z, low))
    return log_quotient(a, z * ((a + b) / a), gap) + digamma_gap_fall(a, b)
