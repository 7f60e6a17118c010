"""Sums and dot products of a given condition number, with their exact values."""

import math
from fractions import Fraction

import numpy as np


def exact_sum(x) -> Fraction:
    return sum((Fraction(float(v)) for v in np.ravel(x)), Fraction(0))


def exact_dot(a, b) -> Fraction:
    return sum((Fraction(float(u)) * Fraction(float(v)) for u, v in zip(a, b)), Fraction(0))


def ill_conditioned_dot(n: int, condition: float, dtype, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors with 2 Σ|a b| / |Σ a b| near `condition` (Ogita, Rump and Oishi 2005, algorithm 6.1).

    The first half has exponents up to log2(condition) / 2; the second half is chosen, one after the other, so that the exact
    partial sum falls to about 1.
    """
    top = math.log2(condition) / 2
    half = n // 2
    exponents = np.rint(random.uniform(0, top, half))
    exponents[0], exponents[-1] = round(top) + 1, 0

    def signs(size):
        return random.uniform(-1, 1, size)

    a = np.zeros(n, dtype)
    b = np.zeros(n, dtype)
    a[:half] = signs(half) * 2.0**exponents
    b[:half] = signs(half) * 2.0**exponents
    total = exact_dot(a[:half], b[:half])
    for i, exponent in zip(range(half, n), np.rint(np.linspace(top, 0, n - half))):
        a[i] = random.uniform(0.5, 1) * 2.0**exponent
        b[i] = float((Fraction(float(signs(1)[0] * 2.0**exponent)) - total) / Fraction(float(a[i])))
        total += Fraction(float(a[i])) * Fraction(float(b[i]))
    order = random.permutation(n)
    return a[order], b[order]


def ill_conditioned_sum(n: int, condition: float, dtype, random: np.random.Generator) -> np.ndarray:
    """Terms with Σ|x| / |Σx| near `condition`: the second half cancels the first down to about 1."""
    top = math.log2(condition)
    half = n // 2
    x = np.zeros(n, dtype)
    x[:half] = random.uniform(-1, 1, half) * 2.0 ** random.uniform(0, top, half)
    x[0] = 2.0**top / 4
    total = exact_sum(x[:half])
    for i, exponent in zip(range(half, n), np.linspace(top, 0, n - half)):
        x[i] = float(Fraction(float(random.uniform(0.5, 1) * 2.0**exponent)) - total)
        total += Fraction(float(x[i]))
    return x[random.permutation(n)]


def condition_of_sum(x) -> float:
    return float(exact_sum(np.abs(x)) / abs(exact_sum(x)))


def condition_of_dot(a, b) -> float:
    return float(2 * exact_dot(np.abs(a), np.abs(b)) / abs(exact_dot(a, b)))
