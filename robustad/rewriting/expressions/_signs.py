"""Which sign an expression has, where that is known: from its form, or from the condition of the case that it stands in."""

from __future__ import annotations

from robustad.rewriting.expressions._bounds import bounds
from robustad.rewriting.expressions._expression import ZERO, Expr, rational
from robustad.rewriting.expressions._products import product
from robustad.rewriting.expressions._samples import conditions


def sign(e: Expr) -> int:
    """1 where e ≥ 0, -1 where e ≤ 0 (wherever it is defined), 0 where that is not known."""
    low, high = bounds(e)
    if low >= 0:
        return 1
    if high <= 0:
        return -1
    c, m = product(e)
    for condition, holds in conditions():
        if condition.op in ("lt", "gt") and rational(condition.args[1]) == 0:
            k, n = product(condition.args[0])
            if n == m and c and k:
                below = (condition.op == "lt") == holds
                return (-1 if below else 1) * (1 if (c > 0) == (k > 0) else -1)
    return 0


def negative(e: Expr) -> Expr:
    """The condition e < 0."""
    return Expr("lt", (e, ZERO))
