r"""Functions of a distance r = ‖d‖ that are smooth in d: those with f'(0) = 0.

The chain rule goes through d/r, which jumps at r = 0, and in the Hessian 0 meets infinity there. But

.. math:: \mathrm df = f'(r) \frac{d \cdot \dot d}{r} = \frac{f'(r)}{r} (d \cdot \dot d),

in which nothing is singular: f'(r)/r has a limit, and its derivative in r is multiplied by d · ḋ, which is 0 at 0. Far out,
beyond r = 1, the first form stays: there f'(r)/r may underflow where f'(r) does not.
"""

from __future__ import annotations

import math
import operator
from fractions import Fraction

from robustad.rewriting.expressions._derivative import derivative
from robustad.rewriting.expressions._expression import (
    ONE,
    ZERO,
    Expr,
    const,
    div,
    mul,
    nodes,
    rational,
    rebuilt,
    select,
    substituted,
    var,
)
from robustad.rewriting.expressions._products import TooLong, built, divided, expanded
from robustad.rewriting.expressions._series import expansion

_LARGEST = 400


def is_smooth(e: Expr, radius: int) -> bool:
    """Whether ∂e/∂r is 0 at r = 0, whatever the other variables are."""
    return e.size <= _LARGEST and _vanishes(derivative(_sides(e, radius)[0], radius), radius)


def turned(e: Expr, radius: int) -> Expr:
    """∂e/∂r beyond r = 1, and (∂e/∂r)/r below, where it is smooth."""
    near, far = (derivative(side, radius) for side in _sides(e, radius))
    return select(_is_far(radius), _over(near, radius), far)


def _is_far(radius: int) -> Expr:
    return Expr("gt", (var(radius), ONE))


def _sides(e: Expr, radius: int) -> tuple[Expr, Expr]:
    """What an expression is below r = 1, and beyond."""
    return e.args[1:] if e.op == "select" and e.args[0] is _is_far(radius) else (e, e)  # pyright: ignore[reportReturnType]


def _vanishes(slope: Expr, radius: int) -> bool:
    others = sorted(slope.leaves - {radius})
    if not others or all(n.op != "select" for n in nodes(slope)):  # else other values may take another branch
        at = substituted(slope, {var(i): const(Fraction(13 + 4 * k, 11)) for k, i in enumerate(others)})
        if (series := expansion(at, Fraction(0), 8)[at]) is not None:
            return series.valuation > 0
    try:
        at = substituted(_decided(slope, radius), {var(radius): ZERO})
        return all(map(_is_regular, nodes(at))) and not expanded(at)
    except (TooLong, ZeroDivisionError):
        return False


def _decided(e: Expr, radius: int) -> Expr:
    """An expression without the branches that are not taken at r = 0."""
    done: dict[Expr, Expr] = {}
    for n in nodes(e):
        taken = _holds(n.args[0], radius) if n.op == "select" and len(n.args) == 3 else None
        done[n] = rebuilt(n, tuple(done[a] for a in n.args)) if taken is None else done[n.args[1 + taken]]
    return done[e]


_COMPARED = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
}


def _holds(condition: Expr, radius: int) -> bool | None:
    """Whether a comparison of r with a constant holds at r = 0; None for others."""
    if condition.op == "not":
        held = _holds(condition.args[0], radius)
        return None if held is None else not held
    sides = [Fraction(0) if a is var(radius) else rational(a) for a in condition.args]
    if condition.op not in _COMPARED or None in sides:
        return None
    return _COMPARED[condition.op](*sides)


def _is_regular(n: Expr) -> bool:
    """Whether an operation is none of those that are singular at 0, at 0."""
    if n.op == "const":
        return not isinstance(n.value, float) or math.isfinite(n.value)
    if n.op in ("div", "atan2"):
        return rational(n.args[1]) != 0
    return n.op not in ("log", "rsqrt", "pow", "sqrt", "abs", "cbrt") or rational(n.args[0]) != 0


def _over(slope: Expr, radius: int) -> Expr:
    """slope / r, without the quotient where r is a factor of every term."""
    if slope.op == "select" and len(slope.args) == 3:
        condition, no, yes = slope.args
        return select(condition, _over(no, radius), _over(yes, radius))
    r = var(radius)
    try:
        terms = expanded(slope)
        if all(dict(m).get(r, 0) >= 1 for m in terms):
            return built(divided(terms, (Fraction(1), ((r, 1),))))
    except TooLong:
        pass
    if slope.op == "mul":
        for a, b in (slope.args, slope.args[::-1]):
            if radius not in a.leaves:
                return mul(a, _over(b, radius))
    if slope.op in ("add", "sub") and len(slope.leaves) > 1 and all(_vanishes(a, radius) for a in slope.args):
        return rebuilt(slope, tuple(_over(a, radius) for a in slope.args))
    return div(slope, r)
