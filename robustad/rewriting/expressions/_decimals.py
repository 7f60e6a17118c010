"""Expressions at points in decimals, as many digits as it takes: the truth that a search measures against.

Python's decimals have exp, log and square roots; the other functions are made of these and of power series after an
argument reduction, with digits to spare. A value is settled when twice the digits round to the same number of the format.
"""

from __future__ import annotations

import decimal
import functools
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from robustad.rewriting.expressions._expression import Expr, nodes

_DIGITS = (60, 150, 400, 1000)
_SPARE = 12
_MOST = 3000  # digits that an argument reduction or a cancellation may ask for


class Undefined(ArithmeticError):  # noqa: N818 (not an error: a value that there is not)
    """No finite real number."""


def settled(forms: Sequence[Expr], point: Sequence[Any], dtype: Any) -> list[float | None]:
    """The values rounded to the format; None where one is undefined, infinite there or not settled."""
    found: list[float | None] = [None] * len(forms)
    last: list[float | None] = [None] * len(forms)
    open_: list[int] = list(range(len(forms)))
    for digits in _DIGITS:
        values = exact([forms[i] for i in open_], point, digits)
        for i, value in zip(tuple(open_), values):
            number = None if value is None else _rounded(value, dtype)
            if number is None or (number == last[i] and value):  # an exact 0 may be a cancellation of all the digits
                found[i] = number
                open_.remove(i)
            last[i] = number
        if not open_:
            break
    for i in open_:
        found[i] = 0.0 if last[i] == 0 else None
    return found


def _rounded(value: Decimal, dtype: Any) -> float | None:
    with np.errstate(over="ignore", under="ignore"):
        number = float(dtype(float(value)))
    return number if math.isfinite(number) else None


def exact(forms: Sequence[Expr], point: Sequence[Any], digits: int) -> list[Decimal | None]:
    """The values in that many digits, less what cancels; None where one is no finite real number."""
    values: dict[Expr, Any] = {}
    with decimal.localcontext(prec=digits, Emin=-(10**12), Emax=10**12) as context:
        context.traps[decimal.Overflow] = False  # infinite, as in 1/(1 + e^x)
        for n in nodes(*forms):
            of = [values[a] for a in n.args]
            try:
                values[n] = None if _needs(n, of) is None else _one(n, of, point)
            except (ArithmeticError, ValueError, KeyError):
                values[n] = None
    return [v if isinstance(v, Decimal) and v.is_finite() else None for v in map(values.__getitem__, forms)]


def _needs(n: Expr, of: list[Any]) -> Any:
    """None where an operand that counts is undefined: of a select the case that is taken."""
    if n.op == "select" and len(of) == 3:
        return None if of[0] is None else of[2 if of[0] is True else 1]
    return None if any(v is None for v in of) else True


def _one(n: Expr, of: list[Any], point: Sequence[Any]) -> Any:
    match n.op:
        case "var":
            x = point[n.value]
            return bool(x) if isinstance(x, bool | np.bool_) else Decimal(float(x))
        case "const":
            if not isinstance(n.value, Fraction):
                return Decimal(n.value)
            return Decimal(n.value.numerator) / Decimal(n.value.denominator)
        case "integer_pow":
            return of[0] ** n.value
        case "select":
            which = of[0] if isinstance(of[0], bool) else of[0] > 0
            return of[2] if which else of[1]
        case _:
            if n.op not in _FUNCTIONS:
                raise Undefined
            return _FUNCTIONS[n.op](*of)


def _wider(extra: int) -> Any:
    """More digits, for a step that cancels that many."""
    if extra > _MOST:
        raise Undefined
    return decimal.localcontext(prec=decimal.getcontext().prec + max(extra, 0) + _SPARE)


def _size(x: Decimal) -> int:
    """How many digits stand before the point; 0 for 0."""
    return x.adjusted() + 1 if x else 0


def _unary(f: Callable[[Decimal], Decimal]) -> Callable[[Decimal], Decimal]:
    @functools.wraps(f)
    def padded(x: Decimal) -> Decimal:
        if not x.is_finite():
            raise Undefined
        with _wider(0):
            y = f(x)
        return +y

    return padded


@functools.lru_cache(maxsize=64)
def _pi_of(digits: int) -> Decimal:
    """Machin's formula."""
    with decimal.localcontext(prec=digits + _SPARE):
        return 4 * (4 * _arctan_series(Decimal(1) / 5) - _arctan_series(Decimal(1) / 239))


def _pi() -> Decimal:
    return _pi_of(decimal.getcontext().prec)


def _series(first: Decimal, ratio: Callable[[int], Decimal]) -> Decimal:
    """The sum of terms, each the ratio(k) times the one before."""
    total, term, k = first, first, 0
    while True:
        k += 1
        term = term * ratio(k)
        new = total + term
        if new == total:
            return total
        total = new


def _arctan_series(x: Decimal) -> Decimal:
    if not x:
        return x
    square, power, total, k = x * x, x, x, 1
    while True:
        power, k = -power * square, k + 2
        new = total + power / k
        if new == total:
            return total
        total = new


def _expm1(x: Decimal) -> Decimal:
    with _wider(-_size(x)):
        return x.exp() - 1


def _log1p(x: Decimal) -> Decimal:
    with _wider(-_size(x)):
        return (1 + x).ln()


def _sin_cos(x: Decimal) -> tuple[Decimal, Decimal]:
    with _wider(abs(_size(x))):
        quarter = _pi() / 2
        k = (x / quarter).to_integral_value()
        r = (x - k * quarter) / 16
        if not r:
            s, c = r, Decimal(1)
        else:
            q = -r * r
            s = _series(r, lambda i: q / ((2 * i) * (2 * i + 1)))
            c = _series(Decimal(1), lambda i: q / ((2 * i - 1) * (2 * i)))
        for _ in range(4):
            s, c = 2 * s * c, c * c - s * s
        turn = int(k % 4)
    return [(s, c), (c, -s), (-s, -c), (-c, s)][turn]


def _arctan(x: Decimal) -> Decimal:
    if abs(x) > 1:
        return _pi() / 2 * _sign(x) - _arctan(1 / x)
    for _ in range(4):
        x = x / (1 + (1 + x * x).sqrt())
    return 16 * _arctan_series(x)


def _sign(x: Decimal) -> Decimal:
    return Decimal((x > 0) - (x < 0))


def _arcsin(x: Decimal) -> Decimal:
    if abs(x) == 1:
        return _pi() / 2 * x
    return _arctan(x / ((1 - x) * (1 + x)).sqrt())


def _arccos(x: Decimal) -> Decimal:
    return _pi() if x == -1 else 2 * _arctan(((1 - x) / (1 + x)).sqrt())


def _arctan2(y: Decimal, x: Decimal) -> Decimal:
    with _wider(0):
        if not x:
            return _pi() / 2 * _sign(y)
        if x > 0:
            return _arctan(y / x)
        return _arctan(y / x) + (_pi() if y >= 0 else -_pi())


def _sinh(x: Decimal) -> Decimal:
    t = _expm1(x)
    return (t + t / (t + 1)) / 2


def _tanh(x: Decimal) -> Decimal:
    if abs(x) > 10**6:
        return _sign(x)
    t = _expm1(2 * x)
    return t / (t + 2)


def _arcsinh(x: Decimal) -> Decimal:
    a = abs(x)
    return _sign(x) * _log1p(a + a * a / (1 + (1 + a * a).sqrt()))


def _power(x: Decimal, p: Decimal) -> Decimal:
    if p == p.to_integral_value() and abs(p) < 10**6:
        return x ** int(p)
    if x < 0 or (not x and p <= 0):
        raise Undefined
    if not x:
        return x
    with _wider(abs(_size(x)) + abs(_size(p))):
        return (p * x.ln()).exp()


def _cbrt(x: Decimal) -> Decimal:
    return _sign(x) * (abs(x).ln() / 3).exp() if x else x


def _erf(x: Decimal) -> Decimal:
    if abs(x) > 5:
        return _sign(x) * (1 - _erfc_far(abs(x)))
    if not x:
        return x
    square = x * x
    total = _series(x, lambda k: 2 * square / (2 * k + 1))
    return 2 / _pi().sqrt() * (-square).exp() * total


def _erfc(x: Decimal) -> Decimal:
    if x > 5:
        return _erfc_far(x)
    with _wider(12):
        return 1 - _erf(x)


def _erfc_far(x: Decimal) -> Decimal:
    """The continued fraction of `_tails`."""
    digits = decimal.getcontext().prec
    terms = int(digits**2 / float(min(x, Decimal(10**6))) ** 2) + 20
    ratio = Decimal(0)
    for k in range(terms, -1, -1):
        ratio = 1 / (2 * x + 2 * (k + 1) * ratio)
    return 2 / _pi().sqrt() * ratio * (-x * x).exp()


_UNARY: dict[str, Callable[[Decimal], Decimal]] = {
    "exp": lambda x: x.exp(), "expm1": _expm1, "log1p": _log1p, "sin": lambda x: _sin_cos(x)[0],
    "cos": lambda x: _sin_cos(x)[1], "atan": _arctan, "asin": _arcsin, "acos": _arccos, "sinh": _sinh,
    "cosh": lambda x: (x.exp() + (-x).exp()) / 2, "tanh": _tanh, "asinh": _arcsinh,
    "acosh": lambda x: _log1p((x - 1) + ((x - 1) * (x + 1)).sqrt()), "atanh": lambda x: _log1p(2 * x / (1 - x)) / 2,
    "logistic": lambda x: 1 / (1 + (-x).exp()), "sqrt": lambda x: x.sqrt(), "rsqrt": lambda x: 1 / x.sqrt(), "cbrt": _cbrt,
    "erf": _erf, "erfc": _erfc, "exp2": lambda x: (x * Decimal(2).ln()).exp(),
}  # fmt: skip


def _tan(x: Decimal) -> Decimal:
    s, c = _sin_cos(x)
    return s / c


def _log(x: Decimal) -> Decimal:
    if x <= 0:
        raise Undefined
    return x.ln()


_FUNCTIONS: dict[str, Callable[..., Any]] = {name: _unary(f) for name, f in _UNARY.items()}
_FUNCTIONS |= {
    "tan": _unary(_tan), "log": _unary(_log), "add": lambda a, b: a + b, "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b, "div": lambda a, b: a / b, "neg": lambda a: -a, "abs": abs, "sign": _sign, "max": max,
    "min": min, "pow": _power, "atan2": _arctan2, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "eq": lambda a, b: a == b, "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b, "or": lambda a, b: a or b, "not": lambda a: not a,
}  # fmt: skip
