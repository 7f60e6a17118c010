"""Exponentials of multiples of one exponent."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

from robustad.rewriting._expression import Expr
from robustad.rewriting._products import Sum, accumulate, built, collected


def common_exponent(exponents: Sequence[Expr]) -> tuple[Expr, dict[Expr, int]] | None:
    """t and integers k with each exponent equal to k t; None where there is no such t."""
    sums = [collected(e) for e in exponents]
    first = sums[0]
    if not first:
        return None
    pivot = min(first, key=lambda m: [(a.digest, n) for a, n in m])
    ratios: list[Fraction] = []
    for s in sums:
        if s.keys() != first.keys():
            return None
        ratio = s[pivot] / first[pivot]
        if any(s[m] != ratio * first[m] for m in s):
            return None
        ratios.append(ratio)
    unit = Fraction(gcd(*(abs(r.numerator) for r in ratios)), lcm(*(r.denominator for r in ratios)))
    if first[pivot] < 0:
        unit = -unit
    t: Sum = {}
    accumulate(t, first, unit)
    return built(t), {e: int(r / unit) for e, r in zip(exponents, ratios)}


def scaled(e: Expr) -> Expr | None:
    return None
