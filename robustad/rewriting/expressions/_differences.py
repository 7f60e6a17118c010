r"""Differences of one function at two places, F(u) - F(v), from the difference h = u - v of the places.

The plain form loses log₂(|F|/|F(u) - F(v)|) bits where u ≈ v, all of them where u and v round to the same number. Each
form here is a product or quotient of h (which is exact, or accurate, where something cancels in u - v) with factors
that do not cancel, so its relative error is that of h plus a few units in the last place. Where exponentials occur the
larger one is taken out as a factor, so that nothing overflows before the result does.

Sources: Hamming, Numerical Methods for Scientists and Engineers, ch. 3; Kahan, Branch cuts, 1987; Higham, Accuracy and
Stability of Numerical Algorithms, ch. 1; Herbie's rules (PLDI 2015). The forms for cube roots, tangents and logistics
are the field's textbook identities.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from robustad.rewriting.expressions._derivative import LN2
from robustad.rewriting.expressions._expression import (
    HALF,
    ONE,
    TWO,
    ZERO,
    Expr,
    add,
    call,
    const,
    div,
    mul,
    neg,
    power,
    rational,
    select,
    sub,
)
from robustad.rewriting.expressions._products import Sum, accumulate, built, collected, of_product
from robustad.rewriting.expressions._signs import sign

# F(u) - F(v) of (u, v, h)
_DIFFERENCE: dict[str, Callable[[Expr, Expr, Expr], Expr]] = {}
# F(u) - c of u, for the constants c that are values of F or limits of it
_AT: dict[tuple[str, Fraction], Callable[[Expr], Expr]] = {}


def function_difference(a: Expr, b: Expr, h: Callable[[Expr, Expr], Expr]) -> Expr | None:
    """a - b for two nodes of one function; `h` gives the difference of two operands."""
    if a.op != b.op:
        return None
    if a.op == "pow":
        return _powers(a, b, h)
    if a.op in _DIFFERENCE and len(a.args) == len(b.args) == 1:
        (u,), (v,) = a.args, b.args
        return _DIFFERENCE[a.op](u, v, h(u, v))
    return None


def from_constant(a: Expr, c: Fraction, h: Callable[[Expr, Expr], Expr]) -> Expr | None:
    """a - c where c is a value of the function that a is."""
    if (a.op, c) in _AT:
        return _AT[a.op, c](a.args[0])
    if a.op == "sqrt" and c > 0:
        return div(h(a.args[0], const(c * c)), add(a, const(c)))
    if a.op == "cbrt":
        k = const(c)
        return div(h(a.args[0], const(c**3)), add(add(power(a, 2), mul(a, k)), power(k, 2)))
    if a.op == "pow" and c == 1:
        return call("expm1", mul(a.args[1], logarithm(a.args[0], h)))
    return None


def logarithm(u: Expr, h: Callable[[Expr, Expr], Expr]) -> Expr:
    """log u, through log1p where u - 1 is simpler than u."""
    return call("log1p", h(u, ONE)) if u.op in ("add", "sub") and h(u, ONE).size < u.size else call("log", u)


def on_sign(h: Expr, positive: Expr, negative: Expr) -> Expr:
    """One form where h ≥ 0, another where h < 0; no select where the sign is known."""
    known = sign(h)
    if known:
        return positive if known > 0 else negative
    return select(Expr("lt", (h, ZERO)), positive, negative)


# ------------------------------------------------------------------------------------------- exponentials


def _rise(h: Expr) -> Expr:
    """1 - e^(-h)."""
    return neg(call("expm1", neg(h)))


def _exp(u: Expr, v: Expr, h: Expr) -> Expr:
    """e^u (1 - e^(-h)) where u > v, e^v (e^h - 1) elsewhere: neither expm1 leaves [-1, 1]."""
    return on_sign(h, mul(call("exp", u), _rise(h)), mul(call("exp", v), call("expm1", h)))


def _exp2(u: Expr, v: Expr, h: Expr) -> Expr:
    k = mul(LN2, h)
    return on_sign(h, mul(call("exp2", u), _rise(k)), mul(call("exp2", v), call("expm1", k)))


def _logistic(u: Expr, v: Expr, h: Expr) -> Expr:
    """σ(u) σ(-v) (1 - e^(-h)): of σ(u) (1 - σ(v)) - σ(v) (1 - σ(u))."""
    s = lambda x: call("logistic", x)  # noqa: E731
    return on_sign(h, mul(mul(s(u), s(neg(v))), _rise(h)), mul(mul(s(v), s(neg(u))), call("expm1", h)))


def _tanh(u: Expr, v: Expr, h: Expr) -> Expr:
    """tanh u = 2 σ(2u) - 1."""
    return mul(TWO, _logistic(mul(TWO, u), mul(TWO, v), mul(TWO, h)))


def _powers(a: Expr, b: Expr, h: Callable[[Expr, Expr], Expr]) -> Expr | None:
    """u^p - v^p and u^p - u^q, the larger power taken out: u^p (1 - (v/u)^p) with (v/u)^p = exp(-p log(u/v))."""
    (u, p), (v, q) = a.args, b.args
    if p is q:
        rise = mul(p, _log(u, v, h(u, v)))
    elif u is v:
        rise = mul(h(p, q), logarithm(u, h))
    else:
        return None
    return on_sign(rise, mul(a, _rise(rise)), mul(b, call("expm1", rise)))


# --------------------------------------------------------------------------------------------- logarithms


def _log(u: Expr, v: Expr, h: Expr) -> Expr:
    """log(u/v): log1p of a positive ratio, from whichever side it is positive."""
    if rational(h) == 0:
        return ZERO
    return on_sign(h, call("log1p", div(h, v)), neg(call("log1p", neg(div(h, u)))))


def _log1p(u: Expr, v: Expr, h: Expr) -> Expr:
    return _log(add(ONE, u), add(ONE, v), h)


# ------------------------------------------------------------------------------------------- trigonometry


def angle(op: str, terms: Sum) -> Expr:
    """sin or cos of a sum of terms of different size, whose rounded sum would be no angle at all: angle addition."""
    exact = all(len(m) <= 1 and all(a.op == "var" for a, _ in m) for m in terms)
    if len(terms) > 3 or len(terms) < 2 or not exact:
        return call(op, built(terms))
    (m, c), *rest = terms.items()
    one, others = of_product((c, m)), dict(rest)
    s, k = call("sin", one), call("cos", one)
    if op == "cos":
        return sub(mul(k, angle("cos", others)), mul(s, angle("sin", others)))
    return add(mul(s, angle("cos", others)), mul(k, angle("sin", others)))


def _of(op: str, u: Expr) -> Expr:
    return angle(op, collected(u))


def _middle(op: str, u: Expr, v: Expr) -> Expr:
    total: Sum = {}
    accumulate(total, collected(u), Fraction(1, 2))
    accumulate(total, collected(v), Fraction(1, 2))
    return angle(op, total)


def _sin(u: Expr, v: Expr, h: Expr) -> Expr:
    return mul(mul(TWO, call("sin", mul(HALF, h))), _middle("cos", u, v))


def _cos(u: Expr, v: Expr, h: Expr) -> Expr:
    return mul(mul(const(-2), call("sin", mul(HALF, h))), _middle("sin", u, v))


def _tan(u: Expr, v: Expr, h: Expr) -> Expr:
    return div(call("sin", h), mul(_of("cos", u), _of("cos", v)))


def _atan(u: Expr, v: Expr, h: Expr) -> Expr:
    """atan2 gives the quadrant: cos(atan u - atan v) has the sign of 1 + uv."""
    return call("atan2", h, add(ONE, mul(u, v)))


# ----------------------------------------------------------------------------------- roots, hyperbolic functions


def _sqrt(u: Expr, v: Expr, h: Expr) -> Expr:
    return div(h, add(call("sqrt", u), call("sqrt", v)))


def _cbrt(u: Expr, v: Expr, h: Expr) -> Expr:
    a, b = call("cbrt", u), call("cbrt", v)
    return div(h, add(add(power(a, 2), mul(a, b)), power(b, 2)))


def _sinh(u: Expr, v: Expr, h: Expr) -> Expr:
    return mul(mul(TWO, call("sinh", mul(HALF, h))), call("cosh", mul(HALF, add(u, v))))


def _cosh(u: Expr, v: Expr, h: Expr) -> Expr:
    return mul(mul(TWO, call("sinh", mul(HALF, h))), call("sinh", mul(HALF, add(u, v))))


_DIFFERENCE.update(
    exp=_exp, exp2=_exp2, expm1=_exp, logistic=_logistic, tanh=_tanh, log=_log, log1p=_log1p, sin=_sin, cos=_cos,
    tan=_tan, atan=_atan, sqrt=_sqrt, cbrt=_cbrt, sinh=_sinh, cosh=_cosh,
)  # fmt: skip

_half_sin = lambda u: call("sin", mul(HALF, u))  # noqa: E731
_half_sinh = lambda u: call("sinh", mul(HALF, u))  # noqa: E731
_AT.update(
    {
        ("exp", Fraction(1)): lambda u: call("expm1", u),
        ("exp2", Fraction(1)): lambda u: call("expm1", mul(LN2, u)),
        ("cos", Fraction(1)): lambda u: mul(const(-2), power(_half_sin(u), 2)),
        ("cos", Fraction(-1)): lambda u: mul(TWO, power(call("cos", mul(HALF, u)), 2)),
        ("cosh", Fraction(1)): lambda u: mul(TWO, power(_half_sinh(u), 2)),
        ("logistic", Fraction(1)): lambda u: neg(call("logistic", neg(u))),
        ("logistic", Fraction(1, 2)): lambda u: mul(HALF, call("tanh", mul(HALF, u))),
        ("tanh", Fraction(1)): lambda u: mul(const(-2), call("logistic", mul(const(-2), u))),
        ("tanh", Fraction(-1)): lambda u: mul(TWO, call("logistic", mul(TWO, u))),
        ("erf", Fraction(1)): lambda u: neg(call("erfc", u)),
        ("erf", Fraction(-1)): lambda u: call("erfc", neg(u)),
        ("erfc", Fraction(1)): lambda u: neg(call("erf", u)),
        ("erfc", Fraction(2)): lambda u: neg(call("erfc", neg(u))),
    }
)
