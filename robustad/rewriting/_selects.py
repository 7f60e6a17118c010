"""Selects brought outside of products, so that what cancels in a product cancels within each case."""

from __future__ import annotations

from robustad.rewriting._expression import Expr, rebuilt, select

_MOST = 4000  # nodes of a tree beyond which a select stays where it is


def hoisted(e: Expr) -> Expr:
    """f(select(c, a, b)) as select(c, f(a), f(b)) for products, quotients, signs and integer powers."""
    if e.op not in ("mul", "div", "neg", "integer_pow") or e.size > _MOST:
        return e
    args = tuple(hoisted(a) for a in e.args)
    for i, a in enumerate(args):
        if a.op == "select" and len(a.args) == 3:
            no, yes = (rebuilt(e, (*args[:i], case, *args[i + 1 :])) for case in a.args[1:])
            return select(a.args[0], hoisted(no), hoisted(yes))
    return rebuilt(e, args)
