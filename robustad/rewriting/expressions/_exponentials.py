r"""Exponentials: multiples of one exponent, and products and quotients whose parts overflow where they do not.

In a quotient such as e^x/(e^x - 1) numerator and denominator overflow together at x = 710 (89 in float32) to inf/inf;
in its derivative, where the denominator is squared, at half of that. Every sum of exponentials Σ cᵢ e^(kᵢ t) is written
as its largest exponential, chosen by the sign of t at run time, times a sum of exponentials that are at most 1; the
largest ones are then gathered into one exponential, whose exponent cancels symbolically. Exact but for the usual
roundings. Source: the scaling of logsumexp (Blanchard, Higham, Higham, IMA J. Numer. Anal. 2021) applied to any
quotient.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

from robustad.rewriting.expressions._expression import Expr, const, power, select, sub
from robustad.rewriting.expressions._polynomials import rational_roots
from robustad.rewriting.expressions._products import (
    Monomial,
    Product,
    Sum,
    TooLong,
    accumulate,
    built,
    collected,
    multiplied,
    of_product,
    product,
    raised,
    times,
)
from robustad.rewriting.expressions._samples import where
from robustad.rewriting.expressions._signs import negative, sign
from robustad.rewriting.expressions._tails import FROM, erfcx

_ONE = Fraction(1)


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


def opened(atom: Expr) -> Sum | None:
    """A function as a sum of exponentials; a sum with those in it written out. None for others, and where that is long."""
    try:
        return _opened(atom)
    except TooLong:
        return None


def _opened(atom: Expr) -> Sum | None:
    match atom.op:
        case "expm1":
            return {((_exp(collected(atom.args[0])), 1),): _ONE, (): -_ONE}
        case "sinh" | "cosh":
            u = collected(atom.args[0])
            s = -1 if atom.op == "sinh" else 1
            return {((_exp(u), 1),): Fraction(1, 2), ((_exp(_negated(u)), 1),): Fraction(s, 2)}
        case "add" | "sub":
            total: Sum = {}
            for m, c in collected(atom).items():
                accumulate(total, _opened_term(m), c)
            return total
        case _:
            return None


def _opened_term(m: Monomial) -> Sum:
    result: Sum = {(): _ONE}
    for a, n in m:
        inner = opened(a) if a.op in ("expm1", "sinh", "cosh") and n == 1 else None
        result = multiplied(result, inner if inner is not None else {((a, n),): _ONE})
    return result


def _exp(exponent: Sum) -> Expr:
    return Expr("exp", (built(exponent),))


def _negated(s: Sum) -> Sum:
    return {m: -c for m, c in s.items()}


def _exponent(m: Monomial) -> tuple[Sum, Monomial]:
    """The exponent of the exponential in a monomial, and the other factors."""
    total: Sum = {}
    for a, n in m:
        if a.op == "exp":
            accumulate(total, collected(a.args[0]), Fraction(n))
    return total, tuple((a, n) for a, n in m if a.op != "exp")


class Scale:
    """A sum of exponentials as the largest one times the rest, for t ≥ 0 and for t < 0."""

    def __init__(self, t: Expr, high: tuple[Sum, Sum], low: tuple[Sum, Sum]):
        self.t, self.high, self.low = t, high, low


def scale(s: Sum) -> Scale | None:
    """The two ways to write a sum whose exponents differ by multiples of one t; None for other sums."""
    terms = [(*_exponent(m), c) for m, c in s.items()]
    if len(terms) < 2 or not any(exponent for exponent, _, _ in terms):
        return None
    base = terms[0][0]
    offsets = []
    for exponent, _, _ in terms:
        offset: Sum = dict(exponent)
        accumulate(offset, base, Fraction(-1))
        offsets.append(offset)
    differing = [built(o) for o in offsets if o]
    if not differing or (step := common_exponent(differing)) is None:
        return None
    t, multiples = step
    if not t.leaves:
        return None
    counts = [multiples[built(o)] if o else 0 for o in offsets]
    sides = []
    for extreme in (max(counts), min(counts)):
        factor: Sum = dict(base)
        accumulate(factor, collected(t), Fraction(extreme))
        rest: Sum = {}
        for (_, others, c), k in zip(terms, counts):
            exponent: Sum = {}
            accumulate(exponent, collected(t), Fraction(k - extreme))
            m: Product = (_ONE, others)
            if exponent:
                m = times(m, (_ONE, ((_exp(exponent), 1),)))
            accumulate(rest, {m[1]: c * m[0]})
        sides.append((factor, rest))
    return Scale(t, sides[0], sides[1])


def _tail(atom: Expr) -> Scale:
    """erfc u as e^(-u²) E_0(u) where u is large."""
    (u,) = atom.args
    exponent: Sum = {}
    accumulate(exponent, collected(power(u, 2)), Fraction(-1))
    plain: Sum = {((atom, 1),): _ONE}
    return Scale(sub(u, const(FROM)), (exponent, {((erfcx(u), 1),): _ONE}), ({}, plain))


def _grows(rest: Sum) -> bool:
    """Whether some exponential in a sum can be large."""
    exponents = [_exponent(m)[0] for m in rest]
    return any(e and sign(built(e)) >= 0 for e in exponents)


def scaled(e: Expr) -> Expr | None:
    """A product or quotient with sums of exponentials in its denominator, in a form that cannot be inf/inf or 0 · inf."""
    try:
        return _scaled(e)
    except TooLong:
        return None


def _scaled(e: Expr) -> Expr | None:
    c, m = _reduced(product(e))
    parts: list[tuple[Scale, int]] = []
    others: Product = (c, ())
    loose = 0
    tails = [n for atom, n in m if atom.op == "erfc"]
    meets = any(atom.op == "exp" for atom, _ in m) or (tails and min(tails) < 0 < max(tails))
    for atom, n in m:
        if atom.op == "erfc" and meets:
            parts.append((_tail(atom), n))
            loose += 1
            continue
        s = opened(atom)
        found = scale(s) if s is not None else None
        if found is not None and s is not None and _grows(s):
            parts.append((found, n))
        else:
            others = times(others, (_ONE, ((atom, n),)))
            loose += atom.op == "exp"
    if (not parts or len(parts) > 3) and (c, m) != product(e):
        return of_product((c, m))
    if not parts or len(parts) > 3 or not (any(n < 0 for _, n in parts) or (loose and len(parts) + loose > 1)):
        return None
    return _cases(parts, others)


def _reduced(p: Product) -> Product:
    """Sums that are polynomials in one exponential, factored, so that common factors cancel: (e^2x - 1)/(e^x - 1) = e^x
    + 1.
    """
    sums = {a: s for a, _ in p[1] if (s := opened(a)) and all(len(m) <= 1 for m in s)}  # without those that are 0
    atoms = {m[0][0] for s in sums.values() for m in s if m}
    if len(sums) < 2 or not all(a.op == "exp" for a in atoms):
        return p
    step = common_exponent(sorted((a.args[0] for a in atoms), key=lambda a: a.digest))
    if step is None:
        return p
    t, multiples = step
    result: Product = (p[0], ())
    for atom, n in p[1]:
        if atom not in sums:
            result = times(result, (_ONE, ((atom, n),)))
            continue
        terms = {(multiples[m[0][0].args[0]] if m else 0): c for m, c in sums[atom].items()}
        low, high = min(terms), max(terms)
        if high - low > 24:
            return p
        roots, rest = rational_roots([terms.get(i, Fraction(0)) for i in range(low, high + 1)])
        factor = _power(t, low)
        for root, k in roots:
            line: Sum = {_power(t, 1)[1]: _ONE} | ({(): -root} if root else {})
            factor = times(factor, (_ONE, ((built(line), k),)))
        if len(rest) > 1:
            others: Sum = {}
            for i, c in enumerate(rest):
                if c:
                    accumulate(others, {_power(t, i)[1]: c})
            factor = times(factor, (_ONE, ((built(others), 1),)))
        else:
            factor = times(factor, (rest[0], ()))
        result = times(result, raised(factor, n))
    return result


def _power(t: Expr, k: int) -> Product:
    exponent: Sum = {}
    accumulate(exponent, collected(t), Fraction(k))
    return _ONE, (((_exp(exponent), 1),) if exponent else ())


def _cases(parts: list[tuple[Scale, int]], done: Product) -> Expr:
    if not parts:
        return of_product(done)
    (part, n), *rest = parts

    def side(factor: Sum, inner: Sum) -> Expr:
        p = times(done, (_ONE, ((built(inner), n),)) if len(inner) > 1 else _whole(inner, n))
        if factor:
            exponent: Sum = {}
            accumulate(exponent, factor, Fraction(n))
            p = times(p, (_ONE, ((_exp(exponent), 1),)))
        return _cases(rest, p)

    known = sign(part.t)
    if known:
        return side(*(part.high if known > 0 else part.low))
    condition = negative(part.t)
    with where(condition, False):
        high = side(*part.high)
    with where(condition, True):
        low = side(*part.low)
    return select(condition, high, low)


def _whole(inner: Sum, n: int) -> Product:
    ((m, c),) = inner.items()
    return c**n, tuple((a, k * n) for a, k in m)
