"""Arguments as sums of two words, of which the first carries the derivative: differences that keep their digits."""

import jax.numpy as jnp
from jax import Array, lax

from . import _words as words
from ._error_free import two_prod_kernel
from ._two_words import Words


def exactly(x: Array) -> Words:
    """x, and nothing beyond it."""
    return x, jnp.zeros_like(x)


def minus(x: Words, y: Words) -> Words:
    """x - y, right to the last bits of the result's first word."""
    d, error = words.difference(x[0], y[0])
    low = error + (x[1] - y[1])
    total = d + low
    return total, jnp.where(jnp.isfinite(total), low - (total - d), 0.0)


def successor(k: Words) -> Words:
    """k + 1; the first word carries the derivative."""
    error = words.difference(lax.stop_gradient(k[0]), -jnp.ones_like(k[0]))[1]
    return k[0] + 1, error + lax.stop_gradient(k[1])


def complement(z: Words) -> Words:
    return minus(exactly(jnp.ones_like(z[0])), z)


def excess(x: Words, y: Words, z: Words) -> Array:
    """x (1 - z) - y z: what x exceeds its share z of x + y by."""
    rest = complement(z)
    first, second = two_prod_kernel(x[0], rest[0]), two_prod_kernel(y[0], z[0])
    low = (first[1] - second[1]) + ((x[0] * rest[1] + x[1] * rest[0]) - (y[0] * z[1] + y[1] * z[0]))
    return (first[0] - second[0]) + low
