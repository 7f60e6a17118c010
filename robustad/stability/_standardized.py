"""(x - loc)/scale, whose difference may overflow or lose digits where the quotient need not."""

import jax.numpy as jnp
from jax import Array, lax

from . import _words as words
from ._division import divide, inverse
from ._elementwise import elementwise
from ._error_free import rounded_once, two_prod_kernel
from ._significand import shifted, significand


def halved(x: Array, *others: Array) -> tuple[Array, ...]:
    """All of them halved where one is so large that a sum of two could overflow; there the halves are exact or 0."""
    limit = float(jnp.finfo(x.dtype).max) / 4
    largest = jnp.abs(x)
    for other in others:
        largest = jnp.maximum(largest, jnp.abs(other))
    half = jnp.where(largest > limit, 0.5, 1.0).astype(x.dtype)
    return x * half, *(other * half for other in others)


def standardized_words(x: Array, loc: Array, scale: Array) -> tuple[Array, Array]:
    """(x - loc)/scale as two words; of formulas that are not differentiated."""
    d, error = words.difference(*halved(x, loc, scale)[:2])
    (m, i), (s, j) = significand(d), significand(halved(x, loc, scale)[2])
    quotient = m / s
    product, rest = two_prod_kernel(quotient, s)
    low = (((m - product) - rest) + words.scale(error, -i)) / s
    z = shifted(quotient, i - j)
    return z, jnp.where(jnp.isfinite(z) & (d != 0), shifted(low, i - j), 0.0)


def _by_x(x: Array, loc: Array, scale: Array) -> Array:
    return inverse(scale)


def _by_scale(x: Array, loc: Array, scale: Array) -> Array:
    return -divide(standardized(x, loc, scale), scale)


@elementwise(_by_x, lambda x, loc, scale: -_by_x(x, loc, scale), _by_scale)
def standardized(x: Array, loc: Array, scale: Array) -> Array:
    """(x - loc)/scale: the first of `standardized_words`."""
    x, loc, scale = halved(x, loc, scale)
    return rounded_once((x - loc) / scale)  # or XLA makes d/(s s) of (d/s)/s, which overflows


def standardized_rest(x: Array, loc: Array, scale: Array) -> Array:
    """The second word, which carries no derivative: that of the first is the whole quotient's."""
    return standardized_words(*map(lax.stop_gradient, (x, loc, scale)))[1]


@elementwise(lambda z, low: 2 * z, lambda z, low: jnp.zeros_like(z))
def square_less_one(z: Array, low: Array) -> Array:
    """z² - 1 of words, right to the last bits near its zeros."""
    near = jnp.abs(z) < 2
    y = jnp.where(near, z, 1.0)
    first, last = (y - 1) + low, (y + 1) + low
    return jnp.where(near, first * last, z * z - 1)
