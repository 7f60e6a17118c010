r"""Removable cancellations of expressions of one variable: near the point a series, elsewhere the plain form.

Where the leading terms of a sum cancel at x = c, or numerator and denominator of a quotient both vanish there, the
plain form loses k log₂(1/|x - c|) bits, all of them near c, and is 0/0 at c. Its Laurent series around c does not
cancel. The radius is the largest at which at most `_MOST` terms leave a truncation error of 2⁻⁵⁶ of the value and the
terms themselves do not cancel; beyond it the plain form loses only the few bits k log₂(1/radius).

Derivatives of any order are series of their own: the derivative of such a node is the derivative of the expression that
it stands for, stabilised by itself. Source: Hamming, ch. 3.4; the radius as in Higham, Functions of Matrices, 10.3
(choice of degree).
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

from robustad.rewriting.expressions._bounds import linear
from robustad.rewriting.expressions._compound import Compound, compounds
from robustad.rewriting.expressions._derivative import derivative
from robustad.rewriting.expressions._expression import (
    ONE,
    Expr,
    call,
    const,
    div,
    mul,
    nodes,
    select,
    sub,
    substituted,
    var,
)
from robustad.rewriting.expressions._series import Laurent, expansion

_MOST = 22  # terms of a series
_LOOK, _LONG = 12, 64  # terms to find a cancellation by, and to evaluate with
_TAIL = -56.0  # log₂ of the relative truncation error


@dataclasses.dataclass(frozen=True)
class Series:
    """(x - centre)^valuation Σ coefficients[k] (x - centre)^(k stride) for `function` where |x - centre| < radius."""

    function: Expr
    centre: Fraction
    radius: Fraction
    valuation: int
    stride: int
    coefficients: tuple[Fraction, ...]

    def __repr__(self) -> str:
        return f"Series({self.function.digest.hex()}, {self.centre}, {self.radius})"


def centres(e: Expr) -> list[Fraction]:
    """Where an expression of one variable may have a removable cancellation: 0, ±1 and where a linear part of it is 0
    or 1.
    """
    found = {Fraction(0): None, Fraction(1): None, Fraction(-1): None}
    for n in nodes(e):
        line = linear(n)
        if line is not None and n.op != "var":
            _, slope, offset = line
            found[-offset / slope] = None
            found[(1 - offset) / slope] = None
    return [c for c in found if _is_float(c)][:12]


def _is_float(c: Fraction) -> bool:
    try:
        return Fraction(float(c)) == c
    except OverflowError:
        return False


def cancellations(e: Expr) -> list[Fraction | None]:
    """The centres (None: infinity) at which the terms of the sum e, or numerator and denominator of the quotient e,
    cancel.
    """
    key = "cancellations"
    if key not in e.facts:
        e.facts[key] = _cancellations(e)
    return e.facts[key]


def _cancellations(e: Expr) -> list[Fraction | None]:
    if e.size > 400:
        return []
    if len(e.leaves) != 1:
        whole = _compound(e)
        return [] if whole is None else cancellations(whole.function)
    found: list[Fraction | None] = []
    for c in centres(e):
        series = expansion(e, c, _LOOK)
        if _cancels(e, series):
            found.append(c)
    far = inverted(e)
    if _cancels(far, expansion(far, Fraction(0), _LOOK)):
        found.append(None)
    return found


def inverted(e: Expr) -> Expr:
    """The expression of 1/x in the place of x, otherwise node for node the same."""
    changes: dict[Expr, Expr] = {}
    for n in nodes(e):
        args = tuple(changes[a] for a in n.args)
        changes[n] = Expr("div", (ONE, n)) if n.op == "var" else Expr(n.op, args, n.value)
    return changes[e]


def _cancels(e: Expr, series: dict[Expr, Laurent | None]) -> bool:
    whole = series[e]
    if whole is None or not whole.coefficients:
        return False
    parts = [series[a] for a in e.args]
    if e.op in ("add", "sub"):
        terms = [series[t] for t in _terms(e)]
        lowest = min(t.valuation if t is not None and t.coefficients else 10**6 for t in terms)
        return whole.valuation > lowest
    if e.op == "div":
        below = parts[1]
        return below is not None and below.valuation > 0 and whole.valuation >= 0
    if e.op == "mul":
        return whole.valuation >= 0 and any(p is not None and p.valuation < 0 for p in parts)
    return False


def _terms(e: Expr) -> list[Expr]:
    if e.op in ("add", "sub"):
        return [t for a in e.args for t in _terms(a)]
    return _terms(e.args[0]) if e.op == "neg" else [e]


def removed(e: Expr, far: Expr) -> Expr | None:
    """The node e, given by series near each of its removable cancellations and by `far` elsewhere."""
    if len(e.leaves) > 1:
        return _removed_compound(e, far)
    made: Expr | None = None
    for c in cancellations(e):
        series = _series(e, c) if c is not None else _series(inverted(e), Fraction(0), e)
        if series is not None:
            (index,) = e.leaves
            x = Expr("var", (), index)
            far = made = Expr("series", (x if c is not None else Expr("div", (ONE, x)), far), series)
    return made


def _compound(e: Expr) -> Compound | None:
    """The compound variable in which something cancels."""
    return next((c for c in compounds(e) if cancellations(c.function)), None)


def _removed_compound(e: Expr, far: Expr) -> Expr | None:
    """The same in a compound variable: factor · series(variable) near its cancellations."""
    whole = _compound(e)
    if whole is None:
        return None
    made: Expr | None = None
    for c in cancellations(whole.function):
        if c is None:
            continue
        series = _series(whole.function, c)
        if series is not None:
            u = whole.variable
            near = mul(whole.factor, Expr("series", (u, ONE), series))
            far = made = select(Expr("lt", (call("abs", sub(u, const(c))), const(series.radius))), far, near)
    return made


def taylor(e: Expr, centre: Fraction, radius: float) -> Expr | None:
    """The expression of one variable by its series around a centre, and as it stands beyond that distance; None where it
    has none that reaches so far.
    """
    if not radius or e.size > 400 or not _is_float(centre):
        return None
    series = _series(e, centre)
    if series is None or series.radius < radius:
        return None
    (index,) = e.leaves
    return Expr("series", (Expr("var", (), index), e), series)


def _series(e: Expr, centre: Fraction, function: Expr | None = None) -> Series | None:
    whole = expansion(e, centre, _LONG, exact=False)[e]
    if whole is None or len(whole.coefficients) < 8:
        return None
    c = [Fraction(x) for x in whole.coefficients]
    stride = 2 if not any(c[1::2]) else 1
    c = c[::stride]
    for exponent in range(2, -40, -1):  # radius 2^(exponent/2)
        radius = 2.0 ** (exponent / 2)
        count = _count(c, radius**stride)
        if count is not None:
            kept = c[:count]
            return Series(
                function or e,
                centre,
                Fraction(radius),
                whole.valuation,
                stride,
                tuple(Fraction(float(k)) for k in kept),
            )
    return None


def _log2(x: Fraction) -> float:
    x = abs(x)
    shift = x.numerator.bit_length() - x.denominator.bit_length()
    return math.log2(x / Fraction(2) ** shift) + shift


def _count(c: list[Fraction], step: float) -> int | None:
    """How many terms leave a relative truncation error of 2^_TAIL at that distance; None where too many, or they cancel."""
    scale = math.log2(step)
    sizes = [(_log2(x) - _log2(c[0]) + k * scale) if x else -math.inf for k, x in enumerate(c)]
    if max(sizes) > 1.5:
        return None
    total = (
        sum(math.copysign(2.0**s, x) for s, x in zip(sizes, c)),
        sum(math.copysign(2.0**s, x) * (-1) ** k for k, (s, x) in enumerate(zip(sizes, c))),
    )
    if min(abs(t) for t in total) < 0.2:
        return None
    last = max((k for k, s in enumerate(sizes) if s > _TAIL), default=0) + 1
    if last > min(_MOST, len(c) - 4 if len(c) > 12 else len(c)) and any(c[last:]):
        return None
    # beyond the known terms they must still fall
    if any(c[-6:]) and max(sizes[-6:]) > _TAIL - 4:
        return None
    return last


def series_derivative(n: Expr, index: int) -> Expr:
    """The derivative of a series node: that of what it stands for, stabilised by itself."""
    from robustad.rewriting.expressions._calculus import stable

    if index not in n.leaves:
        return Expr("const", (), Fraction(0))
    (own,) = n.value.function.leaves
    plain = derivative(n.value.function, own)
    u = n.args[0]
    if u.leaves == {own}:
        return stable(plain).expr
    x = var(own)
    if u.op == "sqrt" and (series := expansion(plain, Fraction(0), _LOOK)[plain]) is not None and series.valuation > 0:
        over = stable(div(plain, x)).expr  # of a distance, whose own derivative is 0/0 at 0
        return mul(substituted(over, {x: u}), mul(const(Fraction(1, 2)), derivative(u.args[0], index)))
    return mul(substituted(stable(plain).expr, {x: u}), derivative(u, index))
