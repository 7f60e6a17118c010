"""The gamma density and the Poisson probability, with partial derivatives in which no term cancels."""

import jax.numpy as jnp
from jax import Array, lax

from . import _deviance as deviance
from ._deviance import ratio
from ._division import divide, inverse
from ._elementwise import elementwise
from ._pairs import exactly, minus, successor
from ._standardized import standardized, standardized_rest, standardized_words


def _score(k: Array, k_low: Array, z: Array, z_low: Array) -> Array:
    """k/z - 1, at z = 0 its limit."""
    interior = (z > 0) & (z < jnp.inf)
    y = jnp.where(interior, z, 1.0)
    difference = ((k - y) + (k_low - z_low)) / y
    return jnp.where(interior, difference, jnp.where(z == 0, ratio(k, z), 0.0) - 1)


def _curvature(k: Array, y: Array) -> Array:
    """-k y², 0 where k is 0."""
    y = jnp.where((k == 0) & jnp.isinf(y), 0.0, y)
    return -(k * y) * y


# ---- gamma: of d = x - loc, k = a - 1 and z = d/s: the score is (k/z - 1)/s, in s (z - a)/s


def _by_xx(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    return _curvature(a - 1, _by_xa(x, a, loc, scale))


def _by_xa(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    return divide(inverse(standardized(x, loc, scale)), scale)


def _by_x_loc(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    return -_by_xx(x, a, loc, scale)


def _by_x_scale(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    return divide(inverse(scale), scale)


@elementwise(_by_xx, _by_xa, _by_x_loc, _by_x_scale)
def _by_x(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    k = minus(exactly(a), exactly(jnp.ones_like(a)))
    return _score(*k, *standardized_words(x, loc, scale)) / scale


def _by_loc(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    return -_by_x(x, a, loc, scale)


def _by_a(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    z, low = standardized(x, loc, scale), standardized_rest(x, loc, scale)
    return deviance.gamma_by_shape(z, low, a, jnp.zeros_like(a))


@elementwise()
def _gap(z: Array, low: Array, a: Array) -> Array:
    return (z - a) + low


def _by_scale(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    z, low = standardized(x, loc, scale), standardized_rest(x, loc, scale)
    return divide(_gap(z, low, a), scale)


@elementwise(_by_x, _by_a, _by_loc, _by_scale)
def gamma(x: Array, a: Array, loc: Array, scale: Array) -> Array:
    """The logarithm of the density."""
    z = standardized_words(x, loc, scale)
    k = minus(exactly(a), exactly(jnp.ones_like(a)))
    return deviance.poisson(k[0], z[0], (z[0] - k[0]) + (z[1] - k[1]), a) - lax.log(scale)


# ---- Poisson


def _by_mu_k(k: Array, mu: Array) -> Array:
    return inverse(mu)


def _by_mu_mu(k: Array, mu: Array) -> Array:
    return _curvature(k, inverse(mu))


@elementwise(_by_mu_k, _by_mu_mu)
def _by_mu(k: Array, mu: Array) -> Array:
    return _score(k, jnp.zeros_like(k), mu, jnp.zeros_like(mu))


def _by_k(k: Array, mu: Array) -> Array:
    return deviance.gamma_by_shape(mu, jnp.zeros_like(mu), *successor(exactly(k)))


@elementwise(_by_k, _by_mu)
def poisson(k: Array, mu: Array) -> Array:
    """The logarithm of the probability, of real k."""
    return deviance.poisson(k, mu, mu - k, k + 1)
