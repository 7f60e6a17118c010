"""Exponentials that the two cases of a sign have in common."""

from __future__ import annotations

from robustad.rewriting.expressions._expression import (
    ZERO,
    Expr,
    call,
    neg,
    nodes,
    rebuilt,
    remembered,
    select,
    substituted,
)


@remembered
def merged(e: Expr) -> Expr:
    """An expression that is evaluated with fewer exponentials: e^t where t < 0 and e^-t elsewhere are e^-|t|."""
    done: dict[Expr, Expr] = {}
    for n in nodes(e):
        args = tuple(done[a] for a in n.args)
        done[n] = _merged(*args) if n.op == "select" and _is_of_sign(args) else rebuilt(n, args)
    return done[e]


def _is_of_sign(args: tuple[Expr, ...]) -> bool:
    return len(args) == 3 and args[0].op == "lt" and args[0].args[1] is ZERO


def _merged(condition: Expr, above: Expr, below: Expr) -> Expr:
    t = condition.args[0]
    size = neg(call("abs", t))
    for f in ("exp", "expm1"):
        falling = Expr(f, (size,))
        cases = (
            substituted(above, {Expr(f, (neg(t),)): falling}),
            substituted(below, {Expr(f, (t,)): falling}),
        )
        if cases[0] is not above and cases[1] is not below:
            above, below = cases
    return select(condition, above, below)
