"""Polynomials in one variable with rational coefficients, lowest power first."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np

from robustad.rewriting.expressions._expression import Expr, add, const, mul, power

Polynomial = list[Fraction]
_LARGEST = 10**6  # the constants whose divisors are tried as roots


def value(p: Sequence[Fraction], x: Fraction) -> Fraction:
    total = Fraction(0)
    for c in reversed(p):
        total = total * x + c
    return total


def deflated(p: Sequence[Fraction], root: Fraction) -> Polynomial:
    """p/(x - root)."""
    out: Polynomial = []
    carry = Fraction(0)
    for c in reversed(p):
        carry = carry * root + c
        out.append(carry)
    return out[-2::-1]


def rational_roots(p: Sequence[Fraction]) -> tuple[list[tuple[Fraction, int]], Polynomial]:
    """The rational roots with their multiplicities, and what is left."""
    rest = list(p)
    while rest and rest[-1] == 0:
        rest.pop()
    roots: dict[Fraction, int] = {}
    while len(rest) > 1:
        root = next((r for r in _candidates(rest) if value(rest, r) == 0), None)
        if root is None:
            break
        roots[root] = roots.get(root, 0) + 1
        rest = deflated(rest, root)
    return sorted(roots.items()), rest


def _candidates(p: Sequence[Fraction]) -> list[Fraction]:
    if p[0] == 0:
        return [Fraction(0)]
    scale = lcm(*(c.denominator for c in p))
    first, last = abs(int(p[0] * scale)), abs(int(p[-1] * scale))
    if len(p) == 2:
        return [-p[0] / p[1]]
    if max(first, last) > _LARGEST:
        return [Fraction(1), Fraction(-1)]
    return [Fraction(s * a, b) for a in _divisors(first) for b in _divisors(last) for s in (1, -1)]


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small[:24] + [n // d for d in reversed(small[:24])]


def without_real_roots(p: Sequence[Fraction]) -> bool:
    """Whether the polynomial is nowhere near 0."""
    roots = np.roots([float(c) for c in reversed(p)])
    return bool(np.all(np.abs(roots.imag) > 1e-3 * np.abs(roots)))


def over_rationals(p: Sequence[Fraction], g: Expr) -> Expr:
    """The polynomial in g, the lowest powers added first."""
    total: Expr | None = None
    for i, c in enumerate(p):
        if c:
            term = mul(const(c), power(g, i))
            total = term if total is None else add(total, term)
    assert total is not None
    return total
