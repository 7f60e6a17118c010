"""Sine, cosine, tangent and their inverses of double words, right for every finite argument."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.arithmetic import _double_word as dw
from robustad.arithmetic._double_word import DoubleWord, add, constant, div, mul, neg, scaled, sub, where
from robustad.arithmetic._double_word_series import BITS, pi, pieces, selected_series, terms
from robustad.stability._error_free import opaque, two_prod_kernel, two_sum_kernel

_WORDS = 5
"""Words of π/2, of a power of two modulo π/2, and of what remains of an argument."""


@functools.cache
def _quarter_turn(p: int) -> list[float]:
    return pieces(pi() / 2, p, _WORDS)


@functools.cache
def _powers_of_two(p: int) -> tuple[np.ndarray, np.ndarray]:
    """2ᵉ = n π/2 + r for every exponent e >= 0 of the last bit of a float: r in words, and n modulo 4."""
    dtype, exponents, bits = (np.float32, 128, 300) if p == 24 else (np.float64, 1024, BITS)
    unit = int(pi() / 2 * (1 << bits))
    words, turns = [], []
    for e in range(exponents - p + 1):
        n, rest = divmod(1 << (e + bits), unit)
        over = 2 * rest > unit
        words.append(pieces(Fraction(rest - unit * over, 1 << bits), p, _WORDS))
        turns.append((n + over) % 4)
    return np.array(words, dtype), np.array(turns, np.int32)


Expansion = tuple[Array, ...]


def _grow(total: Expansion, x: Array) -> Expansion:
    """A sum of words, largest first, and one float more."""
    words = []
    for word in total:
        s, x = two_sum_kernel(word, x)
        words.append(s)
    return (*words[:-1], words[-1] + x)


def _add_multiple(total: Expansion, factor: Array, words: Array) -> Expansion:
    """total + factor · Σ words, the words along the leading axis."""

    def step(i: Array, total: Expansion) -> Expansion:
        high, low = two_prod_kernel(factor, lax.dynamic_index_in_dim(words, i, 0, False))
        return _grow(_grow(total, high), low)

    return lax.fori_loop(0, _WORDS, step, total)


def _modulo_quarter_turn(x: DoubleWord) -> tuple[Array, DoubleWord]:
    """(n mod 4, r) with x = n π/2 + r and |r| a little above π/4 at most, for every finite x (Payne and Hanek's problem)."""
    p, dtype = dw.precision(x), x.hi.dtype
    mantissa = p - 1
    integer = jnp.int32 if p == 24 else jnp.int64
    bias = 127 if p == 24 else 1023
    powers, whole = _powers_of_two(p)
    powers = opaque(jnp.asarray(powers))
    quarter = opaque(jnp.asarray(_quarter_turn(p), dtype))
    zero = x.hi - x.hi
    total: Expansion = (zero,) * _WORDS
    turns = jnp.zeros_like(x.hi, jnp.int32)
    for word in (x.hi, x.lo):
        # A large word is an integer m times 2ᵉ; the turns that 2ᵉ holds count m times.
        exponent = ((lax.bitcast_convert_type(word, integer) >> mantissa) & (2 * bias + 1)) - bias - mantissa
        large = exponent > 0
        e = jnp.where(large, exponent, 0).astype(jnp.int32)
        m = jnp.where(large, dw.scale(word, -e), 0)
        total = _grow(total, jnp.where(large, 0, word))
        total = _add_multiple(total, m, jnp.moveaxis(powers[e], -1, 0))
        turns = turns + _modulo_4(m) * jnp.asarray(whole)[e]
    for _ in range(2):  # the first quotient may be rounded
        n = jnp.round(total[0] * float(2 / pi()))
        total = _add_multiple(total, -n, quarter)
        turns = turns + _modulo_4(n)
        for _ in range(2):
            total = _renormalised(total)
    s = dw.normal(total[0], total[1])
    return turns & 3, add(s, DoubleWord(total[2], total[3]))


def _modulo_4(n: Array) -> Array:
    """An integer in a float, modulo 4, of its own sign."""
    return lax.rem(n, jnp.full_like(n, 4)).astype(jnp.int32)


def _renormalised(total: Expansion) -> Expansion:
    words = list(total)
    for i in reversed(range(len(words) - 1)):
        words[i], words[i + 1] = two_sum_kernel(words[i], words[i + 1])
    return tuple(words)


def _sine_series(quadrant: Array, r: DoubleWord) -> DoubleWord:
    """sin r where `quadrant` is even, cos r where it is odd; |r| < 0.8."""
    p = dw.precision(r)
    z = dw.square(r)
    n = terms(0.64, 2 * p + 4, lambda n: 1 / math.factorial(2 * n))
    sine = [Fraction((-1) ** i, math.factorial(2 * i + 1)) for i in range(n)]
    cosine = [Fraction((-1) ** i, math.factorial(2 * i)) for i in range(n)]
    even = quadrant % 2 == 0
    value = selected_series(even, z, sine, cosine)
    return where(even, mul(r, value), value)


def _sine_and_cosine(quadrant: Array, r: DoubleWord) -> tuple[DoubleWord, DoubleWord]:
    """Up to their signs; in one loop, for half of the program."""
    both = jax.tree.map(lambda x: jnp.stack([x, x]), r)
    value = _sine_series(jnp.stack([quadrant, quadrant + 1]), both)
    return jax.tree.map(lambda x: x[0], value), jax.tree.map(lambda x: x[1], value)


def _turned(x: DoubleWord, quadrant: Array, r: DoubleWord) -> DoubleWord:
    value = _sine_series(quadrant, r)
    value = where(quadrant >= 2, neg(value), value)
    return where(jnp.isfinite(x.hi), value, DoubleWord(jnp.full_like(x.hi, jnp.nan), jnp.zeros_like(x.lo)))


@jax.jit
def sin(x: DoubleWord) -> DoubleWord:
    return dw.unless_tiny(x, _turned(x, *_modulo_quarter_turn(x)))


@jax.jit
def cos(x: DoubleWord) -> DoubleWord:
    quadrant, r = _modulo_quarter_turn(x)
    return _turned(x, (quadrant + 1) & 3, r)


@jax.jit
def tan(x: DoubleWord) -> DoubleWord:
    quadrant, r = _modulo_quarter_turn(x)
    sine, cosine = _sine_and_cosine(quadrant, r)
    tangent = div(sine, cosine)
    tangent = where(quadrant % 2 == 0, tangent, neg(tangent))
    nan = DoubleWord(jnp.full_like(x.hi, jnp.nan), jnp.zeros_like(x.lo))
    return dw.unless_tiny(x, where(jnp.isfinite(x.hi), tangent, nan))


@jax.jit
def atan2(y: DoubleWord, x: DoubleWord) -> DoubleWord:
    """The plain angle φ, and the angle from there: the one of (x cos φ + y sin φ, y cos φ - x sin φ)."""
    first = dw.single(jnp.arctan2(y.hi, x.hi))
    one = constant(1, x)
    zero = jnp.zeros_like(first.hi, jnp.int32)
    # sin and cos by series after halving twice: no reduction, as |φ| <= π.
    quarter = dw.twice(first, 0.25)
    # A loop: the compiler would repeat one straight line for each of its results.
    s, c = lax.fori_loop(0, 2, lambda _, sc: _doubled(*sc), _sine_and_cosine(zero, quarter))
    s = dw.unless_tiny(first, s)  # a quarter of it may underflow
    size = jnp.maximum(jnp.abs(x.hi), jnp.abs(y.hi))
    unit, _ = dw.split_exponent(dw.single(size))
    x, y = scaled(x, -unit), scaled(y, -unit)
    t = div(sub(mul(y, c), mul(x, s)), add(mul(x, c), mul(y, s)))
    turn = mul(t, sub(one, div(dw.square(t), constant(3, t))))
    value = add(first, turn)
    return where(jnp.isfinite(value.hi) & (first.hi != 0), value, first)


def _doubled(s: DoubleWord, c: DoubleWord) -> tuple[DoubleWord, DoubleWord]:
    """The sine and cosine of the double angle."""
    return dw.twice(mul(s, c)), mul(sub(c, s), add(c, s))


@jax.jit
def atan(x: DoubleWord) -> DoubleWord:
    limit = 2.0 ** (3 * dw.precision(x))  # beyond, π/2 in two words
    far = DoubleWord(jnp.clip(x.hi, -limit, limit), jnp.zeros_like(x.lo))
    x = where(jnp.abs(x.hi) < limit, x, far)
    return dw.unless_tiny(x, atan2(x, DoubleWord(jnp.ones_like(x.hi), jnp.zeros_like(x.lo))))


@jax.jit
def asin(x: DoubleWord) -> DoubleWord:
    return dw.unless_tiny(x, atan2(x, _other_leg(x)))


@jax.jit
def acos(x: DoubleWord) -> DoubleWord:
    return atan2(_other_leg(x), x)


def _other_leg(x: DoubleWord) -> DoubleWord:
    one = constant(1, x)
    return dw.sqrt(mul(sub(one, x), add(one, x)))
