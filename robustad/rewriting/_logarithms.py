"""Logarithms of sums, products and quotients."""

from __future__ import annotations

from robustad.rewriting._expression import ONE, Expr, call
from robustad.rewriting._sums import difference


def logarithm_of(e: Expr) -> Expr | None:
    (u,) = e.args
    if e.op != "log" or u.op not in ("add", "sub"):
        return None
    d = difference(u, ONE)
    if d.hazards or d.expr.size >= u.size:
        return None
    return call("log1p", d.expr)
