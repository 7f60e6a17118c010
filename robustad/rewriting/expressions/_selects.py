"""Selects brought outside of products, so that what cancels in a product cancels within each case."""

from __future__ import annotations

from robustad.rewriting.expressions._expression import Expr, rebuilt, select
from robustad.rewriting.expressions._products import of_product
from robustad.rewriting.expressions._sums import visible

_MOST = 4000  # nodes of a tree beyond which a select stays where it is


def hoisted(e: Expr) -> Expr:
    """f(select(c, a, b)) as select(c, f(a), f(b)) for products, quotients, signs and integer powers."""
    if e.op not in ("mul", "div", "neg", "integer_pow") or e.size > _MOST:
        return e
    args = tuple(hoisted(a) for a in e.args)
    for i, a in enumerate(args):
        if a.op == "select" and len(a.args) == 3:
            no, yes = (rebuilt(e, (*args[:i], case, *args[i + 1 :])) for case in a.args[1:])
            return select(a.args[0], _shorter(hoisted(no)), _shorter(hoisted(yes)))
    return rebuilt(e, args)


def _shorter(e: Expr) -> Expr:
    """The product with what is common to numerator and denominator gone, where that is shorter."""
    if e.op not in ("mul", "div", "neg"):
        return e
    short = of_product(visible(e))
    return short if short.size < e.size else e
