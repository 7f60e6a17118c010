"""Intervals that contain the value of an expression wherever it is defined: enough to know the signs of terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from robustad.rewriting.expressions._expression import Expr, nodes, rational, remembered
from robustad.rewriting.expressions._samples import conditions

Interval = tuple[float, float]
_ALL: Interval = (-math.inf, math.inf)
_RANGES: dict[str, Interval] = {
    "exp": (0, math.inf), "exp2": (0, math.inf), "expm1": (-1, math.inf), "sin": (-1, 1), "cos": (-1, 1), "tanh": (-1, 1),
    "cosh": (1, math.inf), "logistic": (0, 1), "sqrt": (0, math.inf), "rsqrt": (0, math.inf), "abs": (0, math.inf),
    "erf": (-1, 1), "erfc": (0, 2), "atan": (-1.6, 1.6), "asin": (-1.6, 1.6), "acos": (0, 3.2), "acosh": (0, math.inf),
    "sign": (-1, 1), "hypot": (0, math.inf), "erfcx": (0, math.inf),
}  # fmt: skip
_ODD_INCREASING = frozenset("sin tan asin atan sinh tanh asinh atanh expm1 log1p cbrt erf sign".split())


@remembered
def domain(e: Expr) -> Mapping[int, Interval]:
    """For some variables, where they must lie for the expression to be defined, whatever is selected."""
    found: dict[int, Interval] = {}

    def narrow(index: int, low: float, high: float) -> None:
        old = found.get(index, _ALL)
        found[index] = (max(old[0], low), min(old[1], high))

    args = e.args if e.op != "select" else ()
    for a in args:
        for index, (low, high) in domain(a).items():
            narrow(index, low, high)
    if e.op in ("sqrt", "rsqrt", "log", "log1p", "acosh") or (e.op == "pow" and _broken(e.args[1])):
        limit = {"log1p": Fraction(-1), "acosh": Fraction(1)}.get(e.op, Fraction(0))
        line = linear(e.args[0])
        if line is not None:
            index, slope, offset = line
            edge = _float((limit - offset) / slope)
            narrow(index, *((edge, math.inf) if slope > 0 else (-math.inf, edge)))
    if e.op in ("asin", "acos", "atanh") and e.args[0].op == "var":
        narrow(e.args[0].value, -1, 1)
    return found


def _broken(exponent: Expr) -> bool:
    p = rational(exponent)
    return p is None or p.denominator != 1


@remembered
def linear(e: Expr) -> tuple[int, Fraction, Fraction] | None:
    """(variable, slope, offset) of an expression that is linear in one variable."""
    p = _line(e)
    if p is None or p[0] is None or p[1] == 0:
        return None
    return p[0], p[1], p[2]


def _line(e: Expr) -> tuple[int | None, Fraction, Fraction] | None:
    zero = Fraction(0)
    if e.op == "var":
        return e.value, Fraction(1), zero
    constant = rational(e)
    if constant is not None:
        return None, zero, constant
    if e.op not in ("add", "sub", "neg", "mul", "div") or len(e.leaves) != 1:
        return None
    parts = [_line(a) for a in e.args]
    if any(p is None for p in parts):
        return None
    (i, a, b), *rest = parts  # pyright: ignore[reportGeneralTypeIssues]
    if e.op == "neg":
        return i, -a, -b
    j, c, d = rest[0]  # pyright: ignore[reportGeneralTypeIssues]
    index = i if i is not None else j
    match e.op:
        case "add":
            return index, a + c, b + d
        case "sub":
            return index, a - c, b - d
        case "mul" if a == 0 or c == 0:
            return index, a * d + b * c, b * d
        case "div" if c == 0 and d != 0:
            return index, a / d, b / d
        case _:
            return None


def _float(x: Fraction) -> float:
    try:
        return float(x)
    except OverflowError:
        return math.inf if x > 0 else -math.inf


def bounds(e: Expr, within: Mapping[int, Interval] | None = None) -> Interval:
    """An interval that contains e (to rounding), its variables being in the intervals `within`."""
    known: dict[Expr, Interval] = {}
    within = assumed(domain(e)) if within is None else within
    for n in nodes(e):
        known[n] = _one(n, [known[a] for a in n.args], within)
    return known[e]


def assumed(within: Mapping[int, Interval]) -> Mapping[int, Interval]:
    """The intervals of the variables, narrowed by the conditions under which a case is looked at."""
    result = dict(within)
    for condition, holds in conditions():
        if condition.op not in ("lt", "gt") or (line := linear(condition.args[0])) is None:
            continue
        limit = rational(condition.args[1])
        if limit is None:
            continue
        index, slope, offset = line
        edge, (low, high) = _float((limit - offset) / slope), result.get(index, _ALL)
        below = (condition.op == "lt") == (slope > 0)
        if below == holds:
            result[index] = low, min(high, edge)
        else:
            result[index] = max(low, edge), high
    return result


def _one(n: Expr, of: list[Interval], within: Mapping[int, Interval]) -> Interval:
    match n.op:
        case "var":
            return within.get(n.value, _ALL)
        case "const":
            p = rational(n)
            x = _float(p) if p is not None else n.value
            return _ALL if math.isnan(x) else (x, x)
        case "add":
            return _whole(of[0][0] + of[1][0], of[0][1] + of[1][1])
        case "sub":
            return _whole(of[0][0] - of[1][1], of[0][1] - of[1][0])
        case "neg":
            return -of[0][1], -of[0][0]
        case "mul":
            if n.args[0] is n.args[1]:
                return _power(of[0], 2)
            return _hull([_times(a, b) for a in of[0] for b in of[1]])
        case "div":
            low, high = of[1]
            if low < 0 < high:
                return _ALL
            ends = [math.inf if x == 0 else 1 / x for x in (high, low)]
            ends = (-math.inf, ends[0]) if high == 0 else (ends[0], ends[1])
            if low == 0 == high:
                return _ALL
            return _hull([_times(a, b) for a in of[0] for b in ends])
        case "integer_pow" if n.value > 0:
            return _power(of[0], n.value)
        case "select":
            return min(of[1][0], of[2][0]), max(of[1][1], of[2][1])
        case "max":
            return max(of[0][0], of[1][0]), max(of[0][1], of[1][1])
        case "min":
            return min(of[0][0], of[1][0]), min(of[0][1], of[1][1])
        case "pow" if of[0][0] >= 0:
            return 0, math.inf
        case "exp" if of[0][1] <= 0:
            return 0, 1
        case "exp" if of[0][0] >= 0:
            return 1, math.inf
        case "log" if of[0][0] >= 1:
            return 0, math.inf
        case "log" if of[0][1] <= 1:
            return -math.inf, 0
        case "sin" | "cos" | "tan":
            return _RANGES.get(n.op, _ALL)
        case _ if n.op in _ODD_INCREASING and of[0][0] >= 0:
            return 0, _RANGES.get(n.op, _ALL)[1]
        case _ if n.op in _ODD_INCREASING and of[0][1] <= 0:
            return _RANGES.get(n.op, _ALL)[0], 0
        case _:
            return _RANGES.get(n.op, _ALL)


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _hull(ends: list[float]) -> Interval:
    return _whole(min(ends), max(ends))


def _whole(low: float, high: float) -> Interval:
    return (-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


def _power(x: Interval, n: int) -> Interval:
    try:
        ends = [x[0] ** n, x[1] ** n]
    except OverflowError:
        return (0, math.inf) if n % 2 == 0 else _ALL
    if n % 2:
        return ends[0], ends[1]
    return (0 if x[0] <= 0 <= x[1] else min(ends)), max(ends)
