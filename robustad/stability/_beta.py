"""The beta density and the binomial probability, with partial derivatives in which no term cancels."""

import jax.numpy as jnp
from jax import Array, lax

from . import _deviance as deviance
from ._deviance import ratio
from ._division import divide, inverse
from ._elementwise import elementwise
from ._pairs import complement, exactly, excess, minus, successor
from ._standardized import standardized, standardized_rest
from ._two_words import Words


@elementwise(lambda z, low: -jnp.ones_like(z), lambda z, low: jnp.zeros_like(z))
def _one_minus(z: Array, low: Array) -> Array:
    return complement((z, low))[0]


def _one_minus_words(z: Array, low: Array) -> Words:
    return _one_minus(z, low), complement((lax.stop_gradient(z), low))[1]


def _score(x: Words, y: Words, z: Words) -> Array:
    """x/z - y/(1 - z), at 0 and 1 its limits."""
    rest = complement(z)[0]
    interior = (z[0] > 0) & (rest > 0)
    difference = excess(x, y, z) / jnp.where(interior, z[0] * rest, 1.0)
    return jnp.where(interior, difference, ratio(x[0], z[0]) - ratio(y[0], rest))


def _square_times(k: Array, y: Array) -> Array:
    """k y², 0 where k is 0."""
    y = jnp.where((k == 0) & jnp.isinf(y), 0.0, y)
    return (k * y) * y


# ---- beta: of z = (x - loc)/s, 0 ≤ z ≤ 1, j = a - 1 and k = b - 1: the score is (j/z - k/(1 - z))/s,
# in s (k z - a (1 - z))/((1 - z) s)


def _less_one(a: Array) -> Words:
    return minus(exactly(a), exactly(jnp.ones_like(a)))


def _share(x: Array, loc: Array, scale: Array) -> Words:
    """z as two words, of which the first carries the derivative; an x that is rounded to loc + scale has z = 1."""
    z, low = standardized(x, loc, scale), standardized_rest(x, loc, scale)
    over = complement((lax.stop_gradient(z), low))[0] < 0
    return jnp.where(over, 1.0, z), jnp.where(over, 0.0, low)


def _over_distances(x: Array, loc: Array, scale: Array) -> tuple[Array, Array]:
    """1/(x - loc) and 1/(loc + s - x)."""
    z = _share(x, loc, scale)
    return divide(inverse(z[0]), scale), divide(inverse(_one_minus(*z)), scale)


def _by_xx(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    first, last = _over_distances(x, loc, scale)
    return -_square_times(a - 1, first) - _square_times(b - 1, last)


def _by_xa(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    return _over_distances(x, loc, scale)[0]


def _by_xb(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    return -_over_distances(x, loc, scale)[1]


def _by_x_loc(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    return -_by_xx(x, a, b, loc, scale)


def _by_x_scale(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    return _square_times(b - 1, _over_distances(x, loc, scale)[1])


@elementwise(_by_xx, _by_xa, _by_xb, _by_x_loc, _by_x_scale)
def _by_x(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    return _score(_less_one(a), _less_one(b), _share(x, loc, scale)) / scale


def _by_loc(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    return -_by_x(x, a, b, loc, scale)


def _by_a(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    zero = jnp.zeros_like(a)
    return deviance.beta_by_shape(*_share(x, loc, scale), a, zero, b, zero)


def _by_b(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    zero = jnp.zeros_like(a)
    return deviance.beta_by_shape(*_one_minus_words(*_share(x, loc, scale)), b, zero, a, zero)


def _scale_score_by_z(z: Array, low: Array, a: Array, b: Array) -> Array:
    return _square_times(b - 1, inverse(_one_minus(z, low)))


def _scale_score_by_b(z: Array, low: Array, a: Array, b: Array) -> Array:
    return divide(z, _one_minus(z, low))


@elementwise(_scale_score_by_z, lambda *xs: jnp.zeros_like(xs[0]), lambda *xs: -jnp.ones_like(xs[0]), _scale_score_by_b)
def _scale_score(z: Array, low: Array, a: Array, b: Array) -> Array:
    rest, k = complement((z, low))[0], _less_one(b)
    interior = rest > 0
    difference = -excess(exactly(a), k, (z, low)) / jnp.where(interior, rest, 1.0)
    return jnp.where(interior, difference, ratio(k[0], rest) - a)


def _by_scale(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    return divide(_scale_score(*_share(x, loc, scale), a, b), scale)


@elementwise(_by_x, _by_a, _by_b, _by_loc, _by_scale)
def beta(x: Array, a: Array, b: Array, loc: Array, scale: Array) -> Array:
    """The logarithm of the density."""
    value = deviance.binomial(_share(x, loc, scale), _less_one(a), _less_one(b), a, b, density=True)
    return value - lax.log(scale)


# ---- binomial


def _rest(k: Array, n: Array) -> Words:
    """n - k as two words, of which the first carries the derivative."""
    return n - k, lax.stop_gradient(minus(exactly(n), exactly(k))[1])


def _by_pp(k: Array, n: Array, p: Array) -> Array:
    return -_square_times(k, inverse(p)) - _square_times(n - k, _by_pn(k, n, p))


def _by_pk(k: Array, n: Array, p: Array) -> Array:
    return inverse(p) - _by_pn(k, n, p)


def _by_pn(k: Array, n: Array, p: Array) -> Array:
    return -inverse(1 - p)


@elementwise(_by_pk, _by_pn, _by_pp)
def _by_p(k: Array, n: Array, p: Array) -> Array:
    return _score(exactly(k), _rest(k, n), exactly(p))


def _by_success(k: Array, n: Array, p: Array) -> Array:
    """In k, for fixed n - k."""
    return deviance.beta_by_shape(*exactly(p), *successor(exactly(k)), *_rest(k, n))


def _by_n(k: Array, n: Array, p: Array) -> Array:
    rest = _one_minus_words(*exactly(p))
    return deviance.beta_by_shape(*rest, *successor(_rest(k, n)), *exactly(k))


def _by_k(k: Array, n: Array, p: Array) -> Array:
    return _by_success(k, n, p) - _by_n(k, n, p)


@elementwise(_by_k, _by_n, _by_p)
def binom(k: Array, n: Array, p: Array) -> Array:
    """The logarithm of the probability, of real k and n."""
    rest = minus(exactly(n), exactly(k))
    return deviance.binomial(exactly(p), exactly(k), rest, k + 1, rest[0] + 1, density=False)
