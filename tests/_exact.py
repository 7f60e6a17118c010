"""Sums, products and their one rounding in rational arithmetic: what the order-free reductions must return, to the bit."""

from collections.abc import Iterable
from fractions import Fraction

import jax.numpy as jnp
import numpy as np


def rounded(value: Fraction, dtype) -> np.ndarray:
    """The float of `dtype` nearest to a rational number, ties to even, with subnormals and overflow; zero is +0."""
    info = jnp.finfo(dtype)
    size, lowest = abs(value), int(info.minexp) - int(info.nmant)
    exponent = lowest
    if size:
        exponent = max(lowest, size.numerator.bit_length() - size.denominator.bit_length() - int(info.nmant) - 1)
        while size >= Fraction(2) ** (exponent + int(info.nmant) + 1):
            exponent += 1
    units = round(size / Fraction(2) ** exponent)  # to even
    if units * Fraction(2) ** exponent >= Fraction(2) ** int(info.maxexp):
        result = np.inf
    else:
        result = float(units) * 2.0 ** max(exponent, -1000) * 2.0 ** min(exponent + 1000, 0)
    return np.asarray(-result if value < 0 else result).astype(dtype)


def exact_sum(terms: Iterable, dtype) -> np.ndarray:
    """The sum of floats rounded once; NaN and infinities as IEEE has them."""
    terms = [float(term) for term in terms]
    special = [term for term in terms if not np.isfinite(term)]
    if special:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.sum(special)).astype(dtype)
    return rounded(sum(map(Fraction, terms), Fraction(0)), dtype)


def exact_dot(a: Iterable, b: Iterable, dtype) -> np.ndarray:
    return rounded(sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b)), Fraction(0)), dtype)


def pattern(x) -> tuple:
    """What equality of bits compares; one NaN is like another."""
    x = np.asarray(x)
    word = x.view(f"uint{8 * x.dtype.itemsize}")
    return np.where(np.isnan(x.astype(np.float64)), 0, word).tobytes(), np.isnan(x.astype(np.float64)).tobytes()
