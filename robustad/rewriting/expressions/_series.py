"""Laurent series of expressions of one variable, with exact rational coefficients.

A cancellation at a point is a fact about leading coefficients, so it is found exactly, not by sampling: with
`Fraction`s. Where one is found the coefficients to evaluate with come from the same functions with decimals of 220
digits, which is much faster.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from math import isqrt
from typing import Any

from robustad.rewriting.expressions._derivative import LN2, TWO_OVER_ROOT_PI
from robustad.rewriting.expressions._expression import Expr, nodes, rational

Coefficients = list[Any]  # Fractions, or Decimals
_ZERO = 0
_ONE = 1
_DIGITS = 220
_NOISE = Decimal(10) ** -140  # what cancellation leaves of a decimal: less than any coefficient


class Unavailable(Exception):  # noqa: N818 (not an error: a search that ends)
    """No Laurent series with rational coefficients, or none that is known to enough terms."""


class Laurent:
    """t^valuation (c₀ + c₁ t + ...), c₀ ≠ 0, known to as many terms as there are coefficients.

    Without coefficients it is 0 or not known.
    """

    __slots__ = ("coefficients", "valuation")

    def __init__(self, valuation: int, coefficients: Coefficients):
        if any(isinstance(c, Decimal) for c in coefficients):
            coefficients = [Decimal(c) if abs(c) > _NOISE else _ZERO for c in coefficients]
        first = next((i for i, c in enumerate(coefficients) if c), len(coefficients))
        self.valuation = valuation + first
        self.coefficients = coefficients[first:]

    @property
    def end(self) -> int:
        """The first power that is not known."""
        return self.valuation + len(self.coefficients)

    def regular(self, length: int) -> Coefficients:
        """As a power series of at most `length` terms."""
        if self.valuation < 0:
            raise Unavailable
        return ([_ZERO] * self.valuation + self.coefficients)[: max(length, 0)]


def expansion(e: Expr, centre: Fraction, length: int, exact: bool = True) -> dict[Expr, Laurent | None]:
    """The series of every node around the centre, started with `length` terms; None where there is none."""
    found: dict[Expr, Laurent | None] = {}
    number = Fraction if exact else _decimal
    with decimal.localcontext(prec=_DIGITS, Emin=-(10**9), Emax=10**9):
        for n in nodes(e):
            try:
                found[n] = _one(n, found, number(centre), length, number)
            except (Unavailable, ZeroDivisionError, decimal.DecimalException):
                found[n] = None
    return found


def _decimal(x: Fraction) -> Decimal:
    return Decimal(x.numerator) / Decimal(x.denominator)


def _one(
    n: Expr, found: dict[Expr, Laurent | None], centre: Any, length: int, number: Callable[[Fraction], Any]
) -> Laurent:
    if n.op == "var":
        return Laurent(0, [centre, number(Fraction(1))] + [_ZERO] * (length - 2))
    p = rational(n)
    if p is not None:
        p = number(p)
        return Laurent(0, [p] + [_ZERO] * (length - 1)) if p else Laurent(length, [])
    args = [found[a] for a in n.args]
    if any(a is None for a in args) or not args:
        raise Unavailable
    a: Laurent = args[0]  # pyright: ignore[reportAssignmentType]
    match n.op:
        case "add" | "sub":
            return _sum(a, args[1], 1 if n.op == "add" else -1)  # pyright: ignore[reportArgumentType]
        case "neg":
            return Laurent(a.valuation, [-c for c in a.coefficients])
        case "mul":
            return _product(a, args[1])  # pyright: ignore[reportArgumentType]
        case "div":
            return _product(a, _inverse(args[1]))  # pyright: ignore[reportArgumentType]
        case "integer_pow":
            return _integer_power(a, n.value)
        case "sqrt":
            return _power(a, Fraction(1, 2))
        case "rsqrt":
            return _power(a, Fraction(-1, 2))
        case "cbrt":
            return _power(a, Fraction(1, 3))
        case "pow" if (exponent := rational(n.args[1])) is not None:
            return _power(a, exponent)
        case "series":
            raise Unavailable
        case _ if n.op in _FUNCTIONS:
            return Laurent(0, _FUNCTIONS[n.op](a.regular(length)))
        case _:
            raise Unavailable


def _sum(a: Laurent, b: Laurent, sign: int) -> Laurent:
    low = min(a.valuation, b.valuation)
    high = min(a.end, b.end)
    total = [_ZERO] * max(high - low, 0)
    for s, series in ((1, a), (sign, b)):
        for i, c in enumerate(series.coefficients):
            k = series.valuation + i - low
            if k < len(total):
                total[k] += s * c
    return Laurent(low, total) if total else Laurent(high, [])


def _product(a: Laurent, b: Laurent) -> Laurent:
    length = min(len(a.coefficients), len(b.coefficients))
    return Laurent(a.valuation + b.valuation, _times(a.coefficients, b.coefficients, length))


def _times(a: Coefficients, b: Coefficients, length: int) -> Coefficients:
    total = [_ZERO] * length
    for i, c in enumerate(a[:length]):
        if c:
            for j, d in enumerate(b[: length - i]):
                if d:
                    total[i + j] += c * d
    return total


def _inverse(a: Laurent) -> Laurent:
    if not a.coefficients:
        raise Unavailable
    first = 1 / _number(a.coefficients[0])
    known = [(j, c) for j, c in enumerate(a.coefficients) if c and j]
    out: Coefficients = []
    for k in range(len(a.coefficients)):
        rest = sum(c * out[k - j] for j, c in known if j <= k and out[k - j])
        out.append(first * ((_ONE if k == 0 else _ZERO) - rest))
    return Laurent(-a.valuation, out)


def _number(x: Any) -> Any:
    return Fraction(x) if isinstance(x, int) else x


def _integer_power(a: Laurent, n: int) -> Laurent:
    base = a if n > 0 else _inverse(a)
    total = base
    for _ in range(abs(n) - 1):
        total = _product(total, base)
    return total


def _power(a: Laurent, p: Fraction) -> Laurent:
    """(c₀ (1 + ...))^p by the differential equation of powers (J.C.P. Miller); c₀^p must be rational."""
    if not a.coefficients or (a.valuation * p).denominator != 1:
        raise Unavailable
    c = a.coefficients
    first = _first_power(_number(c[0]), p)
    if first is None or (a.valuation and p.denominator % 2 == 0):  # √(t²) is |t|, which has no series
        raise Unavailable
    out = [first]
    for k in range(1, len(c)):
        total = sum((p.numerator * j - p.denominator * (k - j)) * c[j] * out[k - j] for j in range(1, k + 1) if c[j])
        out.append(total / _number(k * p.denominator * c[0]))
    return Laurent(int(a.valuation * p), out)


def _first_power(c: Any, p: Fraction) -> Any:
    if isinstance(c, Fraction):
        return rational_root(c**p.numerator, p.denominator)
    size = abs(c) ** (Decimal(p.numerator) / Decimal(p.denominator))
    return size if c > 0 or p.numerator % 2 == 0 else -size


def rational_root(x: Fraction, n: int) -> Fraction | None:
    """The nth root where it is rational."""
    if n == 1:
        return x
    if x < 0:
        root = rational_root(-x, n) if n % 2 else None
        return None if root is None else -root
    above, below = _integer_root(x.numerator, n), _integer_root(x.denominator, n)
    return None if above is None or below is None else Fraction(above, below)


def _integer_root(x: int, n: int) -> int | None:
    root = isqrt(x) if n == 2 else round(x ** (1 / n)) if x < 2**900 else 0
    return root if root**n == x else None


# ------------------------------------------------------------------------------------ functions of power series


def _needs(a: Coefficients, value: int) -> None:
    if not a or abs(a[0] - value) > (0 if isinstance(a[0], Fraction) else _NOISE):
        raise Unavailable


def _derived(a: Coefficients) -> Coefficients:
    return [k * c for k, c in enumerate(a)][1:]


def _integrated(a: Coefficients) -> Coefficients:
    return [_ZERO, *(_divided(c, k + 1) for k, c in enumerate(a))]


def _over(a: Coefficients, b: Coefficients) -> Coefficients:
    if any(isinstance(c, Decimal) for c in (*a, *b)):
        a, b = [Decimal(c) for c in a], [Decimal(c) for c in b]
    quotient = _product(Laurent(0, a), _inverse(Laurent(0, b)))
    return quotient.regular(min(len(a), len(b)))


def _divided(x: Any, k: int) -> Any:
    return x / k if isinstance(x, Decimal) else Fraction(x) / k if x else 0


def _exp(a: Coefficients) -> Coefficients:
    _needs(a, 0)
    out = [_ONE]
    for k in range(1, len(a)):
        out.append(_divided(sum(j * a[j] * out[k - j] for j in range(1, k + 1) if a[j]), k))
    return out


def _log(a: Coefficients) -> Coefficients:
    _needs(a, 1)
    return _integrated(_over(_derived(a), a[: len(a) - 1]))


def _sin_cos(a: Coefficients, sign: int = -1) -> tuple[Coefficients, Coefficients]:
    """(sin, cos), or with sign 1 (sinh, cosh)."""
    _needs(a, 0)
    s, c = [_ZERO], [_ONE]
    for k in range(1, len(a)):
        terms = [(j * a[j], k - j) for j in range(1, k + 1) if a[j]]
        s.append(_divided(sum(w * c[i] for w, i in terms if c[i]), k))
        c.append(_divided(sign * sum(w * s[i] for w, i in terms if s[i]), k))
    return s, c


def _plus(a: Coefficients, c: int) -> Coefficients:
    return [a[0] + c, *a[1:]] if a else a


def _scaled(a: Coefficients, c: Any) -> Coefficients:
    if isinstance(c, Fraction) and any(isinstance(x, Decimal) for x in a):
        c = _decimal(c)
    return [c * x for x in a]


def _from_slope(a: Coefficients, exponent: Fraction, sign: int) -> Coefficients:
    """∫ a' (1 + sign a²)^exponent."""
    _needs(a, 0)
    inner = _plus(_scaled(_times(a, a, len(a)), sign), 1)
    return _integrated(_times(_derived(a), _power(Laurent(0, inner), exponent).regular(len(a)), len(a) - 1))


def _logistic(a: Coefficients) -> Coefficients:
    return _over([_ONE] + [_ZERO] * (len(a) - 1), _plus(_exp(_scaled(a, -_ONE)), 1))


def _erf(a: Coefficients) -> Coefficients:
    _needs(a, 0)
    bell = _exp(_scaled(_times(a, a, len(a)), -_ONE))
    constant = rational(TWO_OVER_ROOT_PI)
    assert constant is not None
    return _scaled(_integrated(_times(_derived(a), bell, len(a) - 1)), constant)


def _exp2(a: Coefficients) -> Coefficients:
    ln2 = rational(LN2)
    assert ln2 is not None
    return _exp(_scaled(a, ln2))


_FUNCTIONS = {
    "exp": _exp,
    "exp2": _exp2,
    "expm1": lambda a: _plus(_exp(a), -1),
    "log": _log,
    "log1p": lambda a: _log(_plus(a, 1)),
    "sin": lambda a: _sin_cos(a)[0],
    "cos": lambda a: _sin_cos(a)[1],
    "tan": lambda a: _over(*_sin_cos(a)),
    "sinh": lambda a: _sin_cos(a, 1)[0],
    "cosh": lambda a: _sin_cos(a, 1)[1],
    "tanh": lambda a: _over(*_sin_cos(a, 1)),
    "asin": lambda a: _from_slope(a, Fraction(-1, 2), -1),
    "asinh": lambda a: _from_slope(a, Fraction(-1, 2), 1),
    "atan": lambda a: _from_slope(a, Fraction(-1), 1),
    "atanh": lambda a: _from_slope(a, Fraction(-1), -1),
    "logistic": _logistic,
    "erf": _erf,
    "erfc": lambda a: _plus(_scaled(_erf(a), -_ONE), 1),
}
