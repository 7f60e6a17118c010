r"""Logarithms of sums, products, quotients and exponentials.

Where it fails: log u loses log₂(1/|log u|) bits where u was rounded near 1, overflows (or is -inf) where u does and log
u does not. Here log u is log1p(u - 1) near 1, with u - 1 from the difference calculus; t + log(1 + e^(-t)) and its kin
for sums of exponentials, by the sign of t at run time; u itself for log e^u; p log u for log u^p. The error is that of
u - 1 and a few units in the last place. Sources: Higham, Accuracy and Stability, 1.14.1; Mächler, Accurately computing
log(1 - exp(-|a|)), 2012; PyTensor's list.
"""

from __future__ import annotations

from robustad.rewriting.expressions._bounds import bounds
from robustad.rewriting.expressions._exponentials import opened, scale
from robustad.rewriting.expressions._expression import (
    HALF,
    ONE,
    TWO,
    Expr,
    add,
    call,
    const,
    mul,
    neg,
    power,
    rational,
    select,
    sub,
)
from robustad.rewriting.expressions._products import built
from robustad.rewriting.expressions._samples import near_one, where
from robustad.rewriting.expressions._signs import negative, sign
from robustad.rewriting.expressions._sums import difference, visible
from robustad.rewriting.expressions._tails import erfcx, far

_DEPTH = 6


def logarithm_of(u: Expr, depth: int = 0) -> Expr | None:
    """A form of log u; None where there is none better than that."""
    if depth > _DEPTH:
        return None
    match u.op:
        case "exp":
            return u.args[0]
        case "exp2":
            from robustad.rewriting.expressions._derivative import LN2

            return mul(LN2, u.args[0])
        case "sqrt":
            return mul(HALF, _log(u.args[0], depth))
        case "rsqrt":
            return neg(mul(HALF, _log(u.args[0], depth)))
        case "pow":
            return mul(u.args[1], _log(u.args[0], depth))
        case "integer_pow" if u.value % 2 or sign(u.args[0]) > 0:
            return mul(const(u.value), _log(u.args[0], depth))
        case "logistic":
            return neg(_softplus(neg(u.args[0])))
        case "erfc":
            return _of_erfc(u.args[0])
        case "add" | "sub" | "cosh":
            return _of_sum(u, depth)
        case "mul" | "div":
            return _of_product(u, depth)
    return None


def _log(u: Expr, depth: int) -> Expr:
    made = logarithm_of(u, depth + 1)
    return call("log", u) if made is None else made


def _of_erfc(u: Expr) -> Expr:
    """log E_0(u) - u² far out, log1p(-erf u) where erfc u is near 1 or 2."""
    near = call("log1p", neg(call("erf", u)))
    middle = select(Expr("lt", (u, HALF)), call("log", call("erfc", u)), near)
    return select(far(u), middle, sub(call("log", erfcx(u)), power(u, 2)))


def _softplus(t: Expr) -> Expr:
    """log(1 + e^t)."""
    small = call("log1p", call("exp", t))
    large = add(t, call("log1p", call("exp", neg(t))))
    return {1: large, -1: small}.get(sign(t)) or select(negative(t), large, small)


def _of_sum(u: Expr, depth: int) -> Expr | None:
    near = _near_one(u, depth)
    s = opened(u)
    found = scale(s) if s is not None else None
    if found is not None:
        sides = []
        for factor, rest in (found.high, found.low):
            inner = built(rest)
            with where(negative(found.t), factor is found.low[0]):
                sides.append(add(built(factor), _log(inner, depth)) if factor else _bounded_log(inner, u, depth))
        known = sign(found.t)
        far = sides[0] if known > 0 else sides[1] if known < 0 else select(negative(found.t), sides[0], sides[1])
        # t + log(1 + ...) cancels where both are small: then u is near 1
        if near is not None and len(found.low[0]) + len(found.high[0]) > 1 and found.low[0] and found.high[0]:
            return select(Expr("lt", (near[0], ONE)), far, call("log1p", near[0]))
        return far
    return None if near is None else _from_one(*near)


def _bounded_log(inner: Expr, whole: Expr, depth: int) -> Expr:
    if inner is whole:
        near = _near_one(inner, depth)
        return call("log", inner) if near is None else _from_one(*near)
    return _log(inner, depth)


def _near_one(u: Expr, depth: int) -> tuple[Expr, Expr] | None:
    """(u - 1, u), where u comes near 1 and u - 1 has a form without hazards there."""
    if not near_one(u):
        return None
    with where(Expr("lt", (call("abs", sub(u, ONE)), HALF)), True):
        d = difference(u, ONE)
    if d.hazards or rational(d.expr) is not None:
        return None
    return d.expr, u


def _from_one(d: Expr, u: Expr) -> Expr:
    """log1p(d), but log u where u is small: there d is near -1 and has lost what u has."""
    low, _ = bounds(d)
    if low >= 0 or (d.op in ("var", "neg") and d.leaves and d.size <= 2):  # exact, however near -1
        return call("log1p", d)
    closed = difference(u, const(0)).expr
    small = _of_erfc(closed.args[0]) if closed.op == "erfc" else call("log", closed)
    return select(Expr("lt", (closed, HALF)), call("log1p", d), small)


def _of_product(u: Expr, depth: int) -> Expr | None:
    c, m = visible(u)
    if c != 1 and len(m) == 1 and m[0][1] == 1:  # (e^x + e^(-x))/2
        near, far = _near_one(u, depth), logarithm_of(m[0][0], depth + 1)
        if near is not None:
            wide = call("log", u) if far is None else add(far, call("log", const(c)))
            return select(Expr("lt", (call("abs", near[0]), HALF)), wide, call("log1p", near[0]))
    exponentials = [(a, n) for a, n in m if a.op in _LOGARITHMIC or _is_exponential(a)]
    # log of a product is the sum of logs where at most one factor's sign is not known: then it is positive with the product
    unknown = [n for a, n in m if sign(a) <= 0]
    if exponentials and c > 0 and (not unknown or (len(unknown) == 1 and unknown[0] % 2)):
        total: Expr | None = None
        for a, n in m:
            term = mul(const(n), _log(a, depth))
            total = term if total is None else add(total, term)
        assert total is not None
        return total if c == 1 else add(total, call("log", const(c)))
    if any(n < 0 for _, n in m):
        near = _near_one(u, depth)
        if near is not None:
            return _from_one(*near)
    return None


_LOGARITHMIC = frozenset("exp exp2 pow sqrt logistic cosh erfc erfcx".split())  # of which logarithms are known


def _is_exponential(a: Expr) -> bool:
    s = opened(a)
    return s is not None and scale(s) is not None


def logarithm(e: Expr) -> Expr | None:
    """The form of a node log u or log1p u."""
    u = e.args[0]
    if e.op == "log1p":
        if u.op == "exp":
            return None if sign(u.args[0]) < 0 else _softplus(u.args[0])
        if u.op == "neg" and u.args[0].op == "logistic":
            return neg(_softplus(u.args[0].args[0]))
        return None
    if u.op in ("add", "sub"):  # what cancels in the operand first
        closed = difference(u, const(0))
        if closed.expr is not u and closed.rules:
            made = logarithm_of(closed.expr)
            if made is not None and closed.expr.op not in ("add", "sub"):
                near = _near_one(u, 0) if closed.expr.op in ("mul", "div") else None
                if near is None:
                    return made
                return select(Expr("lt", (call("abs", near[0]), HALF)), made, call("log1p", near[0]))
    return logarithm_of(u)


def power_near_one(e: Expr) -> Expr | None:
    """u^p as exp(p log1p(u - 1)) where u is near 1: the power multiplies the rounding error of u by p.

    For constant exponents only large ones.
    """
    u, p = e.args
    exponent = rational(p)
    if u.op not in ("add", "sub") or (exponent is not None and abs(exponent) < 32):
        return None
    near = _near_one(u, 0)
    if near is None:
        return None
    close = Expr("lt", (call("abs", near[0]), HALF))
    return select(close, e, call("exp", mul(p, call("log1p", near[0]))))


def arc_cosine(e: Expr) -> Expr | None:
    """acos u as 2 asin √((1 - u)/2) where u is near 1 and 1 - u is known better than u."""
    u = e.args[0]
    if u.op not in ("add", "sub"):
        return None
    near = _near_one(u, 0)
    if near is None:
        return None
    half = mul(HALF, neg(near[0]))
    return select(Expr("lt", (u, HALF)), mul(TWO, call("asin", call("sqrt", half))), e)
