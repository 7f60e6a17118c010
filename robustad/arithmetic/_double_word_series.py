"""Power series in double words, and the constants that argument reductions need, both from fractions."""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.arithmetic._double_word import DoubleWord, add, mul, where
from robustad.stability._error_free import opaque

BITS = 1400  # of π: the largest float64 modulo π/2 takes 1024, and five words more


def _inverse_series(n: int, sign: int) -> int:
    """arctan(1/n) (sign -1) or artanh(1/n) (sign 1) by its series, times 2 ** BITS, within a few units."""
    term, total, k = (1 << BITS) // n, 0, 0
    while term:
        total += sign**k * (term // (2 * k + 1))
        term, k = term // (n * n), k + 1
    return total


@functools.cache
def pi() -> Fraction:
    """Machin's formula."""
    return Fraction(16 * _inverse_series(5, -1) - 4 * _inverse_series(239, -1), 1 << BITS)


@functools.cache
def log_2() -> Fraction:
    total = 18 * _inverse_series(26, 1) - 2 * _inverse_series(4801, 1) + 8 * _inverse_series(8749, 1)
    return Fraction(total, 1 << BITS)


def pieces(value: Fraction, bits: int, count: int) -> list[float]:
    """A number as a sum of floats with at most so many bits each."""
    pieces = []
    for _ in range(count):
        if value == 0:
            pieces.append(0.0)
            continue
        exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
        unit = Fraction(2) ** (exponent - bits + 1)
        piece = round(value / unit) * unit
        pieces.append(float(piece))
        value -= piece
    return pieces


def series(z: DoubleWord, coefficients: Sequence[Fraction]) -> DoubleWord:
    """Horner's rule, as a loop; the constant term first."""
    return selected_series(None, z, coefficients, coefficients)


def selected_series(
    predicate: Array | None, z: DoubleWord, first: Sequence[Fraction], second: Sequence[Fraction]
) -> DoubleWord:
    """The first series where the predicate holds, the second one elsewhere."""
    word = np.dtype(z.hi.dtype).type

    def table(coefficients: Sequence[Fraction]) -> DoubleWord:
        high = [word(float(c)) for c in coefficients]
        low = [word(float(c - Fraction(float(h)))) for c, h in zip(coefficients, high)]
        return DoubleWord(opaque(jnp.asarray(high)), opaque(jnp.asarray(low)))

    tables = table(first), table(second)

    def coefficient(k: Array | int) -> DoubleWord:
        a, b = (jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, k, 0, False), t) for t in tables)
        return a if predicate is None else where(predicate, a, b)

    last = len(first) - 1

    def step(k: Array, total: DoubleWord) -> DoubleWord:
        return add(mul(total, z), coefficient(last - k))

    start = add(mul(z, coefficient(last)), coefficient(last - 1))
    return lax.fori_loop(2, last + 1, step, start)


def terms(z: float, bits: int, size: Callable[[int], float]) -> int:
    """How many terms of a power series in |z| matter, `size(n)` being the size of coefficient n."""
    n = 2
    while math.log2(z) * n + math.log2(size(n)) > -bits:
        n += 1
    return n
