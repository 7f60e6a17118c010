"""Exact partial derivatives of expressions, by forward mode: through a select only the branch taken."""

from __future__ import annotations

from fractions import Fraction

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
    nodes,
    power,
    rational,
    select,
    sub,
)
from robustad.rewriting.expressions._tails import slope as tail_slope

# Irrational constants, to 40 digits.
LN2 = const(Fraction("0.6931471805599453094172321214581765680755"))
TWO_OVER_ROOT_PI = const(Fraction("1.1283791670955125738961589031215451716881"))


def derivative(e: Expr, index: int) -> Expr:
    """∂e/∂x_index. At ties of max, min and abs it is what JAX takes: the mean, and 0."""
    key = f"derivative {index}"
    for n in nodes(e):
        if key not in n.facts:
            n.facts[key] = _one(n, index, key) if index in n.leaves else ZERO
    return e.facts[key]


def _one(n: Expr, index: int, key: str) -> Expr:
    if n.op == "var":
        return ONE
    if n.op in _DECISIONS:
        return ZERO
    d = [a.facts[key] for a in n.args]
    match n.op:
        case "add":
            return add(*d)
        case "sub":
            return sub(*d)
        case "neg":
            return neg(d[0])
        case "mul":
            a, b = n.args
            if b.op == "log" and b.args[0] is a:  # x log x: x · 1/x is 1 at 0 too
                return mul(d[0], add(b, ONE))
            return add(mul(d[0], b), mul(a, d[1]))
        case "div":
            a, b = n.args
            return sub(div(d[0], b), mul(div(a, power(b, 2)), d[1]))
        case "select":
            return select(n.args[0], d[1], d[2])
        case "max" | "min":
            a, b = n.args
            first, second = ("gt", "lt") if n.op == "max" else ("lt", "gt")
            tied = mul(HALF, add(*d))
            return select(Expr(first, (a, b)), select(Expr(second, (a, b)), tied, d[1]), d[0])
        case "pow":
            a, b = n.args
            return add(mul(_power_slope(a, b), d[0]), mul(mul(n, call("log", a)), d[1]) if d[1] is not ZERO else ZERO)
        case "atan2":
            a, b = n.args
            return div(sub(mul(b, d[0]), mul(a, d[1])), add(power(a, 2), power(b, 2)))
        case "hypot":
            a, b = n.args
            return add(mul(div(a, n), d[0]), mul(div(b, n), d[1]))
        case "series":
            from robustad.rewriting.expressions._removable import series_derivative

            return series_derivative(n, index)
        case _:
            return mul(slope(n), d[0])


_DECISIONS = frozenset("lt le gt ge eq ne and or not sign".split())


def _power_slope(a: Expr, b: Expr) -> Expr:
    return mul(b, call("pow", a, sub(b, ONE)))


def slope(n: Expr) -> Expr:
    """F'(u) of a node F(u)."""
    (u,) = n.args
    match n.op:
        case "exp" | "exp2":
            return n if n.op == "exp" else mul(LN2, n)
        case "expm1":
            return call("exp", u)
        case "log":
            return div(ONE, u)
        case "log1p":
            return div(ONE, add(ONE, u))
        case "sin":
            return call("cos", u)
        case "cos":
            return neg(call("sin", u))
        case "tan":
            return div(ONE, power(call("cos", u), 2))
        case "asin" | "acos":
            s = div(ONE, mul(call("sqrt", sub(ONE, u)), call("sqrt", add(ONE, u))))
            return s if n.op == "asin" else neg(s)
        case "atan":
            return div(ONE, add(ONE, power(u, 2)))
        case "sinh":
            return call("cosh", u)
        case "cosh":
            return call("sinh", u)
        case "tanh":  # 1 - tanh² loses its digits, 1/cosh² overflows in the middle
            return mul(const(4), mul(call("logistic", mul(TWO, u)), call("logistic", mul(const(-2), u))))
        case "logistic":
            return mul(n, call("logistic", neg(u)))
        case "asinh":
            return div(ONE, call("sqrt", add(ONE, power(u, 2))))
        case "acosh":
            return div(ONE, mul(call("sqrt", sub(u, ONE)), call("sqrt", add(u, ONE))))
        case "atanh":
            return div(ONE, mul(sub(ONE, u), add(ONE, u)))
        case "sqrt":
            return div(HALF, n)
        case "rsqrt":
            return div(mul(const(Fraction(-1, 2)), n), u)
        case "cbrt":
            return div(const(Fraction(1, 3)), power(n, 2))
        case "integer_pow":
            return mul(const(n.value), power(u, n.value - 1))
        case "erf" | "erfc":
            bell = mul(TWO_OVER_ROOT_PI, call("exp", neg(power(u, 2))))
            return bell if n.op == "erf" else neg(bell)
        case "lgamma":
            return call("digamma", u)
        case "digamma":
            return Expr("polygamma", (u,), 1)
        case "polygamma":
            return Expr("polygamma", (u,), n.value + 1)
        case "erfcx":
            factor, next_order = tail_slope(n)
            return mul(const(factor), next_order)
        case "abs":
            return call("sign", u)
        case _:
            raise NotImplementedError(f"no derivative of `{n.op}`")


def has_derivative(n: Expr) -> bool:
    """Whether `derivative` knows the node's operation."""
    return n.op in _KNOWN or rational(n) is not None


_KNOWN = frozenset(
    """var const add sub mul div neg select max min pow atan2 hypot series exp exp2 expm1 log log1p sin cos tan asin
    acos atan sinh cosh tanh asinh acosh atanh logistic sqrt rsqrt cbrt integer_pow erf erfc erfcx lgamma digamma
    polygamma abs sign lt le gt ge eq ne and or not""".split()
)
