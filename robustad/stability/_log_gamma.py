r"""The logarithm of the gamma function for positive arguments, and differences of it that cancel.

Near 2, :math:`\log Γ(2 + z) = (1 - γ) z + \sum_{k \ge 2} (ζ(k) - 1) (-z)^k / k` keeps the zeros at 1 and 2; from there
by :math:`Γ(x + 1) = x Γ(x)`. From 10 on Stirling's series: :math:`(x - \frac12) \log x - x + \log\sqrt{2π} + μ(x)` with
:math:`μ(x) = \sum_k B_{2k}/(2k (2k-1) x^{2k-1})`; of a difference the large parts are combined in closed form, and only
the remainders μ, below 1/100, are subtracted. On jax 0.10.2 XLA's is off by 5e-7 at its zero 1 in float32.

Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 6.1.33 and 6.1.41.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._logarithm import log, log1p, log1pmx

# B_2k of k = 1, 2, ...; at x = 10 the first term that is left out is 6e-17.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_COEFFICIENTS = tuple(b / (2 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI, 1))
_LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)
LARGE = 10.0


@functools.cache
def _near_two(terms: int) -> tuple[float, ...]:
    """The coefficients of the series in -z after the first: (ζ(k) - 1)/k."""
    from scipy.special import zetac

    return tuple(float(zetac(k)) / k for k in range(2, terms + 2))


@jax.jit
def log_gamma(x: Array) -> Array:
    r""":math:`\log Γ(x)` for x ≥ 0."""
    big = jnp.where(x > LARGE, x, LARGE)
    stirling = (big - 0.5) * log(big) - big + (_LOG_ROOT_2_PI + _remainder(big))
    y = jnp.where(x > LARGE, LARGE, x)
    factor = jnp.ones_like(y)
    for _ in range(8):  # Γ(y) = (y - 1) Γ(y - 1), down to 2.5
        above = y > 2.5
        factor, y = jnp.where(above, factor * (y - 1), factor), jnp.where(above, y - 1, y)
    # Γ(x) = Γ(x + 1)/x below 1.5, once more below 0.5
    low, lower = x < 1.5, x < 0.5
    z = jnp.where(low, jnp.where(lower, y, y - 1), y - 2)
    terms = 13 if x.dtype == jnp.float32 else 27
    series = jnp.full_like(z, _near_two(terms)[-1])
    for coefficient in _near_two(terms)[-2::-1]:
        series = coefficient - z * series
    near = z * ((1 - float(np.euler_gamma)) + z * series)
    near = near + log(factor) - jnp.where(low, log1p(jnp.where(low, z, 0.0)), 0.0)
    near = near - jnp.where(lower, log(jnp.where(lower, y, 1.0)), 0.0)
    return jnp.where(x > LARGE, stirling, near)


def _remainder(x: Array) -> Array:
    r""":math:`μ(x)` for x ≥ 10."""
    y = 1 / x
    square, value = y * y, jnp.full_like(x, _COEFFICIENTS[-1])
    for coefficient in _COEFFICIENTS[-2::-1]:
        value = value * square + coefficient
    return value * y


@jax.jit
def log_gamma_half_step(a: Array) -> Array:
    r""":math:`\log Γ(a + \tfrac12) - \log Γ(a)` for a > 0: :math:`\tfrac12 \log a` and what is left of order 1/a."""
    big = jnp.where(a > LARGE, a, LARGE)
    half = 0.5 / big
    far = 0.5 * log(big) + (big * log1pmx(half) + _remainder(big + 0.5) - _remainder(big))
    small = jnp.where(a > LARGE, LARGE, a)
    return jnp.where(a > LARGE, far, log_gamma(small + 0.5) - log_gamma(small))


@jax.jit
def log_beta(a: Array, b: Array) -> Array:
    r""":math:`\log B(a, b) = \log Γ(a) + \log Γ(b) - \log Γ(a + b)` for a, b > 0."""
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    big = jnp.where(high > LARGE, high, LARGE)
    # log Γ(high) - log Γ(low + high), with the logarithm's large part in closed form
    ratio = low / big
    step = -(big - 0.5) * log1p(ratio) + low - low * log(low + big) + (_remainder(big) - _remainder(low + big))
    small = jnp.where(high > LARGE, LARGE, high)
    near = log_gamma(small) - log_gamma(low + small)
    one_large = log_gamma(jnp.where(low > LARGE, LARGE, low)) + jnp.where(high > LARGE, step, near)
    # both large: Stirling's form of all three
    p = jnp.where(low > LARGE, low, LARGE)
    both = 0.5 * math.log(2 * math.pi) - 0.5 * log(big) + (p - 0.5) * log(p / (p + big)) - big * log1p(p / big)
    both = both + (_remainder(p) + (_remainder(big) - _remainder(p + big)))
    return jnp.where(low > LARGE, both, one_large)
