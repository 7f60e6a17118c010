r"""Expressions whose value is right in a wider format alone: squares and products that overflow or underflow in the middle.

√(x² + y²), x/(x² + y²) or a b/(t + u)² are wrong in float32 for half of its range, though every operation is backward
stable. A region evaluates float32 in float64, whose range holds the squares and products of any float32, and rounds
once. The rule fires where evaluation in float32 at the sample points differs from that in float64 by more than
rounding, for roots, logarithms and quotients of sums and products; polynomials stay as they are. log(1 + x²) is wrong
where x² overflows, for half as many points.
"""

from __future__ import annotations

from fractions import Fraction

from robustad.rewriting.expressions._derivative import derivative
from robustad.rewriting.expressions._expression import Expr, call, nodes, rational, remembered
from robustad.rewriting.expressions._products import of_product, product
from robustad.rewriting.expressions._samples import narrow_errors
from robustad.rewriting.expressions._scaled import degrees
from robustad.rewriting.expressions._series import rational_root

_SMALL = Fraction(1, 1000)  # constants that guard a denominator
_PART, _PART_OF_SLOPES, _PART_OF_LOG1P = 0.08, 0.02, 0.05  # of the points


@remembered
def needs_range(e: Expr) -> bool:
    """Whether float32 in the middle spoils the value at a fair part of the points."""
    if _products_cancel(e):
        return True
    part = _PART if _roots_or_quotients(e) else _PART_OF_LOG1P if _logs_of_squares(e) else 1.0
    return part < 1 and not _is_guarded(e) and narrow_errors(e) > part


@remembered
def meets_branch_point(e: Expr) -> bool:
    """Whether acos, asin or acosh, whose slopes at ±1 are infinite, is taken of a sum that is rounded there."""
    return any(
        n.op in ("acos", "asin", "acosh")
        and any(m.op in ("add", "sub") and len(m.leaves) > 1 for m in nodes(n.args[0]))
        for n in nodes(e)
    )


@remembered
def slope_needs_range(e: Expr) -> bool:
    """Whether that is so of a derivative: 1/(x² + y²) is out of range only where its denominator is, its slopes before."""
    if not any(_divides_by_sum(n) or _divides_by_power(n) or n.op == "atan2" for n in nodes(e)) or _is_guarded(e):
        return False
    return any(narrow_errors(derivative(e, i)) > _PART_OF_SLOPES for i in sorted(e.leaves))


def _divides_by_sum(n: Expr) -> bool:
    return n.op == "div" and _compound(n.args[1]) and n.args[1].op in ("add", "sub")


def _divides_by_power(n: Expr) -> bool:
    """By a power of an exponential, as a variance is one of a deviation's logarithm."""
    return n.op == "div" and any(p.op == "integer_pow" and p.args[0].op in ("exp", "exp2") for p in nodes(n.args[1]))


def _logs_of_squares(e: Expr) -> bool:
    return any(n.op == "log1p" and _compound(n.args[0]) for n in nodes(e))


def _is_guarded(e: Expr) -> bool:
    """Whether the user has put a small constant beside a root or a square: x/(√v + ε). Then its size has been thought of."""
    sums = [n for n in nodes(e) if n.op == "add" and any(a.op in ("sqrt", "integer_pow", "mul", "div") for a in n.args)]
    return any((c := rational(a)) is not None and 0 < c <= _SMALL for n in sums for a in n.args)


def _roots_or_quotients(e: Expr) -> bool:
    return any(
        (n.op in ("sqrt", "rsqrt", "log") and _compound(n.args[0])) or (n.op == "div" and _compound(n.args[1]))
        for n in nodes(e)
    )


def _compound(e: Expr) -> bool:
    """Whether there is a product or power of variables below sums and products."""
    if e.op in ("mul", "integer_pow"):
        return sum(1 for a in e.args if rational(a) is None) > (e.op == "mul") or any(_compound(a) for a in e.args)
    return e.op in ("add", "sub", "neg", "div", "sqrt") and any(_compound(a) for a in e.args)


def _products_cancel(e: Expr) -> bool:
    """a b - c d of variables: the products are exact in float64."""
    return any(n.op == "sub" and all(_is_product(a) for a in n.args) for n in nodes(e))


def _is_product(e: Expr) -> bool:
    return e.op == "mul" and all(a.op == "var" for a in e.args)


def root_of_square(e: Expr) -> Expr | None:
    """√(u²) as |u|."""
    c, m = product(e.args[0])
    root = rational_root(c, 2) if c > 0 else None
    if root is None or not m or any(n % 2 for _, n in m):
        return None
    return call("abs", of_product((root, tuple((a, n // 2) for a, n in m))))


@remembered
def has_quotient(e: Expr) -> bool:
    """Whether a sum that shares a variable with the numerator is divided by, or a variable that is also a factor."""
    return not _is_guarded(e) and any(
        (
            n.op == "div"
            and n.args[1].op in ("add", "sub", "mul", "integer_pow", "sqrt")
            and n.args[0].leaves & n.args[1].leaves
        )
        or (n.op == "mul" and any(_divides_by(b, a) for a, b in (n.args, n.args[::-1])))
        for n in nodes(e)
    )


def has_quotient_of_functions(e: Expr) -> bool:
    """Whether functions of a variable are divided by each other: sin(t x)/sin(x), in whose slope the terms cancel near 0."""
    return any(
        n.op == "div"
        and n.args[0].op in _VANISHING
        and n.args[1].op in _VANISHING
        and n.args[0].leaves & n.args[1].leaves
        for n in nodes(e)
    )


_VANISHING = ("sin", "tan", "sinh", "tanh", "expm1", "log1p", "log", "atan", "asin", "asinh", "atanh")


def has_decaying_sum(e: Expr) -> bool:
    """Whether a sum and an exponential of the same variable are multiplied: (1 + r) exp(-r), whose slope is -r exp(-r)."""
    return any(
        _is_sum(a) and b.op == "exp" and a.leaves & b.leaves
        for n in nodes(e)
        if n.op in ("mul", "div")
        for a, b in (n.args, n.args[::-1])
    )


def _is_sum(e: Expr) -> bool:
    while e.op in ("mul", "div") and rational(e.args[1]) is not None:
        e = e.args[0]
    return e.op in ("add", "sub")


def _divides_by(e: Expr, x: Expr) -> bool:
    """Whether a function of something divided by the variable x stands in e."""
    return (
        x.op == "var"
        and e.op not in ("div", "mul", "add", "sub")
        and any(n.op == "div" and n.args[1] is x for n in nodes(e))
    )


def height(e: Expr) -> float:
    """The largest power of the variables that the expression has in the middle: what overflows first."""
    return max(map(abs, degrees(e).values()))
