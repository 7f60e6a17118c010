"""A user's error-free transforms, which no rule may touch.

two_sum, Kahan's sum, Dekker's split and the HP-15C's log1p compute the rounding error of an operation by a subtraction
that is 0 in real arithmetic: one operand of it is a sum that contains the other, as in (a + b) - a, c - (c - a), (1 +
x) - 1.
"""

from __future__ import annotations

from robustad.rewriting.expressions._expression import Expr, nodes, rational, remembered


@remembered
def has_error_free(e: Expr) -> bool:
    """Whether some subtraction below takes a term from a sum that was rounded with it."""
    return any(_recovers(n) for n in nodes(e))


def _recovers(n: Expr) -> bool:
    if n.op not in ("add", "sub"):
        return False
    a, b = n.args
    sign = 1 if n.op == "add" else -1
    return _contains(a, b, -sign) or _contains(b, a, -sign)


def _contains(whole: Expr, part: Expr, sign: int) -> bool:
    """Whether sign · part is a term of the rounded sum `whole`."""
    inner, s = _signed(part, sign)
    if whole.op == "neg":
        return _contains(whole.args[0], part, -sign)
    if whole.op not in ("add", "sub") or (rational(inner) is not None and rational(inner) == 0):
        return False
    for term, own in zip(whole.args, (1, 1 if whole.op == "add" else -1)):
        t, k = _signed(term, own)
        if t is inner and k == s:
            return True
        p, q = rational(t), rational(inner)
        if p is not None and q is not None and p * k == q * s:
            return True
    return False


def _signed(e: Expr, sign: int) -> tuple[Expr, int]:
    while e.op == "neg":
        e, sign = e.args[0], -sign
    return e, sign
