"""Products and sums in normal form: what is equal as a polynomial in the functions that occur becomes equal as data.

A `Product` is a rational coefficient times integer powers of *atoms*: variables, functions, and sums that stand as a
factor. A `Sum` maps products (without coefficient) to coefficients. e^a e^b is one atom e^(a+b); √u² is u, which holds
wherever √u is defined; a sum that stands as a factor is made primitive, so that 1 - x and 2x - 2 are multiples of one
atom.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, lcm

from robustad.rewriting.expressions._expression import (
    ONE,
    ZERO,
    Expr,
    add,
    call,
    const,
    div,
    mul,
    neg,
    power,
    rational,
    sub,
)

Monomial = tuple[tuple[Expr, int], ...]  # atoms and their exponents, ordered by the atoms' digests
Product = tuple[Fraction, Monomial]
Sum = dict[Monomial, Fraction]

_ONE = Fraction(1)
_MOST_TERMS = 48  # beyond which nothing is multiplied out


class TooLong(Exception):  # noqa: N818 (not an error: a search that ends)
    """A sum with more terms than anyone could want."""


def monomial(powers: Mapping[Expr, int]) -> Monomial:
    return tuple(sorted(((a, n) for a, n in powers.items() if n), key=lambda pair: pair[0].digest))


def product(e: Expr) -> Product:
    """The normal form of an expression as one product."""
    key = "product"
    if key not in e.facts:
        e.facts[key] = _product(e)
    return e.facts[key]


def _product(e: Expr) -> Product:
    match e.op:
        case "const":
            p = rational(e)
            return (p, ()) if p is not None else (_ONE, ((e, 1),))
        case "neg":
            c, m = product(e.args[0])
            return -c, m
        case "mul":
            return times(product(e.args[0]), product(e.args[1]))
        case "div":
            below = product(e.args[1])
            return (_ONE, ((e, 1),)) if below[0] == 0 else times(product(e.args[0]), raised(below, -1))
        case "integer_pow":
            c, m = product(e.args[0])
            return (_ONE, ((e, 1),)) if c == 0 and e.value < 0 else raised((c, m), e.value)
        case "rsqrt":
            return _ONE, ((call("sqrt", e.args[0]), -1),)
        case "exp":
            return _exponential(collected(e.args[0]))
        case "add" | "sub":
            return primitive(collected(e))
        case _:
            return _ONE, ((e, 1),)


def _exponential(exponent: Sum) -> Product:
    if not exponent:
        return _ONE, ()
    return _ONE, ((Expr("exp", (built(exponent),)), 1),)


def times(a: Product, b: Product) -> Product:
    if a[0] == 0 or b[0] == 0:
        return Fraction(0), ()
    powers = dict(a[1])
    for atom, n in b[1]:
        powers[atom] = powers.get(atom, 0) + n
    return _settled(a[0] * b[0], powers)


def raised(a: Product, n: int) -> Product:
    return _settled(a[0] ** n, {atom: k * n for atom, k in a[1]})


def _settled(coefficient: Fraction, powers: dict[Expr, int]) -> Product:
    """Even powers of roots and of absolute values taken out, sign(u) |u| as u, exponentials gathered into one."""
    powers = {a: n for a, n in powers.items() if n}
    for a in [a for a in powers if a.op == "abs"]:
        turned = call("sign", a.args[0])
        n = min(powers[a], powers.get(turned, 0))
        n = n if n > 0 else int(powers[a] / 2) * 2
        if n:
            powers[a] -= n
            powers[turned] = powers.get(turned, 0) - (n if powers.get(turned, 0) > 0 else 0)
            return times(raised(product(a.args[0]), n), (coefficient, monomial(powers)))
    roots = [a for a, n in powers.items() if a.op == "sqrt" and abs(n) >= 2]
    exponentials = [a for a in powers if a.op == "exp"]
    result: Product = (coefficient, ())
    if roots:
        whole = [(a, int(powers[a] / 2)) for a in roots]
        for a, half in whole:
            powers[a] -= 2 * half
        for a, half in whole:
            result = times(result, raised(product(a.args[0]), half))
    if len(exponentials) > 1 or any(powers[a] != 1 for a in exponentials):
        exponent: Sum = {}
        for a in exponentials:
            accumulate(exponent, collected(a.args[0]), Fraction(powers.pop(a)))
        result = times(result, _exponential(exponent))
    if not result[1]:
        return result[0], monomial(powers)
    return times(result, (_ONE, monomial(powers)))


# ---------------------------------------------------------------------------------------------------- sums


def accumulate(total: Sum, terms: Mapping[Monomial, Fraction], factor: Fraction = _ONE) -> None:
    for m, c in terms.items():
        new = total.get(m, Fraction(0)) + c * factor
        if new:
            total[m] = new
        else:
            total.pop(m, None)


def collected(e: Expr) -> Sum:
    """The terms of a sum, like ones put together; factors that are sums stay as they are."""
    key = "collected"
    if key not in e.facts:
        e.facts[key] = _collected(e)
    return dict(e.facts[key])


def _collected(e: Expr) -> Sum:
    total: Sum = {}
    match e.op:
        case "add" | "sub":
            accumulate(total, collected(e.args[0]))
            accumulate(total, collected(e.args[1]), Fraction(1 if e.op == "add" else -1))
        case "neg":
            accumulate(total, collected(e.args[0]), Fraction(-1))
        case _:
            c, m = product(e)
            if len(m) == 1 and m[0][1] == 1 and m[0][0].op in ("add", "sub"):
                accumulate(total, collected(m[0][0]), c)
            elif c:
                total[m] = c
    return total


def expanded(e: Expr) -> Sum:
    """The terms of a sum, multiplied out; what stands in a denominator stays as it is."""
    return expanded_sum(collected(e))


def expanded_sum(s: Sum) -> Sum:
    total: Sum = {}
    for m, c in s.items():
        accumulate(total, _multiplied_out(m), c)
        if len(total) > _MOST_TERMS:
            raise TooLong
    return total


def _multiplied_out(m: Monomial) -> Sum:
    result: Sum = {(): _ONE}
    rest = {}
    for atom, n in m:
        if atom.op in ("add", "sub") and n > 0:
            terms = expanded(atom)
            for _ in range(n):
                result = multiplied(result, terms)
        else:
            rest[atom] = n
    return multiplied(result, {monomial(rest): _ONE}) if rest else result


def multiplied(a: Sum, b: Sum) -> Sum:
    total: Sum = {}
    if len(a) * len(b) > 16 * _MOST_TERMS:
        raise TooLong
    for m, c in a.items():
        for n, d in b.items():
            k, o = times((c, m), (d, n))
            accumulate(total, {o: k} if _is_plain(o) else _multiplied_out(o), _ONE if _is_plain(o) else k)
    if len(total) > _MOST_TERMS:
        raise TooLong
    return total


def _is_plain(m: Monomial) -> bool:
    return not any(a.op in ("add", "sub") and n > 0 for a, n in m)


def common(s: Sum) -> Product:
    """The greatest monomial that divides every term (denominators are taken out whole) and the content of the coefficients,
    with the sign of the first term in order.
    """
    lowest: dict[Expr, int] = {}
    for i, m in enumerate(s):
        powers = dict(m)
        for atom in {*lowest, *powers}:
            before = lowest.get(atom, 0) if i else powers.get(atom, 0)
            lowest[atom] = min(before, powers.get(atom, 0))
    numerator, denominator = 0, 1
    for c in s.values():
        numerator, denominator = gcd(numerator, abs(c.numerator)), lcm(denominator, c.denominator)
    sign = 1 if s[_ordered(s)[0]] > 0 else -1
    return Fraction(sign * numerator, denominator), monomial(lowest)


def divided(s: Sum, by: Product) -> Sum:
    inverse = raised(by, -1)
    total: Sum = {}
    for m, c in s.items():
        k, o = times((c, m), inverse)
        accumulate(total, {o: k})
    return total


def primitive(s: Sum) -> Product:
    """A sum as a product: what is common to its terms, times an atom."""
    if not s:
        return Fraction(0), ()
    if len(s) == 1:
        ((m, c),) = s.items()
        return c, m
    shared = common(s)
    if any(a.op == "exp" for a, _ in shared[1]):  # e^x + e^(2x): factors of exponentials are `_exponentials`' business
        shared = shared[0], tuple((a, n) for a, n in shared[1] if a.op != "exp")
    rest = divided(s, shared)
    if len(rest) == 1:
        ((m, c),) = rest.items()
        return times(shared, (c, m))
    return times(shared, (_ONE, ((_sum(rest), 1),)))


# --------------------------------------------------------------------------------------------- back to expressions


def _ordered(s: Sum) -> list[Monomial]:
    """Terms in the same order in every process: constants last."""
    return sorted(s, key=lambda m: (not m, [(a.digest, n) for a, n in m]))


def built(s: Sum) -> Expr:
    """The sum as an expression."""
    return _sum(s)


def _sum(s: Sum) -> Expr:
    positive = [m for m in _ordered(s) if s[m] > 0]
    negative = [m for m in _ordered(s) if s[m] < 0]
    total: Expr | None = None
    for m in positive:
        term = of_product((s[m], m))
        total = term if total is None else add(total, term)
    for m in negative:
        term = of_product((-s[m], m))
        total = neg(term) if total is None else sub(total, term)
    return ZERO if total is None else total


def of_product(p: Product) -> Expr:
    """The product as an expression: a numerator over a denominator."""
    c, m = p
    if c == 0:
        return ZERO
    above, below = const(c.numerator), const(c.denominator)
    if m and below is not ONE and (c.denominator & (c.denominator - 1)) == 0:  # powers of two are exact factors
        above, below = const(c), ONE
    top = bottom = ONE
    for atom, n in m:
        if n > 0:
            top = _by(top, power(atom, n))
        else:
            bottom = _by(bottom, power(atom, -n))
    return div(_by(above, top), _by(below, bottom))


def _by(a: Expr, b: Expr) -> Expr:
    return mul(a, b)


def own_weight(e: Expr) -> Expr | None:
    """The u of a product of u and log u: 0 at 0, not 0 · inf."""
    for factor, logarithm in (e.args, e.args[::-1]):
        if logarithm.op not in ("log", "log1p"):
            continue
        (of,) = logarithm.args
        for u in _positive_factors(factor):
            if u is of or collected(u) == collected(of if logarithm.op == "log" else add(ONE, of)):
                return u
    return None


def _positive_factors(e: Expr) -> list[Expr]:
    match e.op:
        case "mul":
            return [u for a in e.args for u in _positive_factors(a)]
        case "neg" | "div":
            return _positive_factors(e.args[0])
        case "integer_pow" if e.value > 0:
            return [e.args[0]]
        case _:
            return [e]
