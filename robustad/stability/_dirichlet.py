r"""The Dirichlet density, from Poisson probabilities that have its coordinates as their means.

With :math:`A = \sum_i a_i` and P of `_deviance.py`, :math:`\log f = \sum_i P(a_i - 1, A x_i) + (n - \tfrac12) \log A +
\log\sqrt{2π} + μ(A) + A (\sum_i x_i - 1)`, whose last term counts what x is off the simplex.
"""

import functools

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from . import _deviance as deviance
from ._compensated_sum import compensated_sum
from ._custom_jvp import custom_jvp
from ._deviance import ratio
from ._division import inverse
from ._elementwise import elementwise
from ._error_free import two_prod_kernel
from ._log_gamma import LOG_ROOT_2_PI, log_gamma, stirling_remainder
from ._pairs import exactly, minus
from ._two_words import Words


def _sum(a: Array, *others: Array) -> Array:
    return compensated_sum(jnp.concatenate([a, *others], -1), axis=-1)[..., None]


def _total(a: Array) -> Words:
    total = _sum(a)
    return total, _sum(a, -total)


def _others(a: Array) -> Words:
    """The sum of the other elements, of which the first word carries the derivative."""
    constant = lax.stop_gradient(a)
    total, rest = (jnp.broadcast_to(word, a.shape) for word in _total(constant))
    first, low = minus((total, rest), exactly(constant))
    step = a - constant
    return first + (jnp.sum(step, -1, keepdims=True) - step), low


def _ratio_by_x(k: Array, x: Array) -> Array:
    return -_ratio(_ratio(k, x), x)


@elementwise(lambda k, x: inverse(x), _ratio_by_x)
def _ratio(k: Array, x: Array) -> Array:
    return ratio(k, x)


@custom_jvp
def dirichlet(x: Array, a: Array) -> Array:
    """The logarithm of the density, with the coordinates in the last axis."""
    (total, rest), k = _total(a), minus(exactly(a), exactly(jnp.ones_like(a)))
    mean, error = two_prod_kernel(jnp.broadcast_to(total, x.shape), x)
    gap = (mean - k[0]) + ((error + rest * x) - k[1])
    parts = jnp.sum(deviance.poisson(k[0], mean, gap, a), -1)
    off, total = _sum(x, -jnp.ones_like(x[..., :1]))[..., 0], total[..., 0]
    large = total > 1
    big, small = jnp.where(large, total, 1.0), jnp.where(large, 1.0, total)
    saddle = LOG_ROOT_2_PI - 0.5 * jnp.log(big) + stirling_remainder(big)
    plain = log_gamma(small) + small - small * jnp.log(small)
    return parts + (jnp.where(large, saddle, plain) + x.shape[-1] * jnp.log(total)) + total * off


@functools.partial(dirichlet.defjvp, symbolic_zeros=True)
def _dirichlet_jvp(primals, tangents):
    (x, a), (step_x, step_a) = primals, tangents
    terms = []  # of the tangents that there are: a derivative may be infinite
    if not isinstance(step_x, SymbolicZero):
        terms.append(_ratio(a - 1, x) * step_x)
    if not isinstance(step_a, SymbolicZero):
        zero = jnp.zeros_like(a)
        terms.append(deviance.beta_by_shape(x, zero, a, zero, *_others(a)) * step_a)
    return dirichlet(x, a), jnp.sum(functools.reduce(jnp.add, terms), -1)
