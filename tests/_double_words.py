"""Errors of double words against mpmath numbers of 100 digits; a function that cancels."""

from fractions import Fraction

import jax.numpy as jnp
import mpmath
import numpy as np

from robustad.arithmetic._double_word import DoubleWord

mpmath.mp.dps = 100
ROUNDED = 2.0**-24  # a result that is right but for its last rounding


def exactly(x):
    """A double word, or an array, as rational numbers."""
    words = [x.hi, x.lo] if isinstance(x, DoubleWord) else [x]
    flat = [np.asarray(w).ravel() for w in words]
    return [sum(map(Fraction, map(float, numbers))) for numbers in zip(*flat)]


def error(got, truths):
    """The largest relative error."""
    worst = mpmath.mpf(0)
    for x, truth in zip(exactly(got), truths, strict=True):
        x, truth = mpmath.mpf(x.numerator) / x.denominator, mpmath.mpmathify(truth)
        worst = max(worst, abs(x - truth) / abs(truth) if truth else abs(x))
    return float(worst)


def as_mp(fractions):
    return [mpmath.mpf(q.numerator) / q.denominator for q in fractions]


def random_words(rng, low, high, dtype, n=60):
    x = rng.uniform(low, high, n).astype(dtype)
    rest = (x * rng.uniform(-0.25, 0.25, n) * np.finfo(dtype).eps).astype(dtype)
    return DoubleWord(jnp.asarray(x), jnp.asarray(rest))


def difference_of_roots(x):
    return jnp.sqrt(x + 1) - jnp.sqrt(x)
