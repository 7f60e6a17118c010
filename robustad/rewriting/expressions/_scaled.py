r"""Arithmetic with an exponent of its own: what overflows or underflows only in the middle does neither.

A number is m 2^e with 1 ≤ |m| < 2 in the working precision and e an integer array; zeros, infinities and NaN keep e = 0.
Products add exponents, sums are taken at the larger one, and the result is put together once, at the end. Scaling by
powers of two is exact, so each operation has the error that it has in the format, wherever that has the range. This is the
scaling of hypot and of Smith's complex division (1962), done for any expression of sums, products, quotients and roots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import Array, lax

from robustad.rewriting.expressions._expression import Expr, nodes, rational, remembered

_FAR = -(2**28)  # the exponent of 0 beside another number


class Scaled(NamedTuple):
    """m 2^e."""

    m: Array
    e: Array


def _layout(dtype: Any) -> tuple[Any, int, int]:
    """The integers that hold a format's bits, how many bits its fraction has, and its exponent's bias."""
    return (np.int64, 52, 1023) if np.dtype(dtype) == np.float64 else (np.int32, 23, 127)


def _like(x: Array, value: Any) -> Array:
    return lax.full_like(x, value)


def scaled(x: Array, e: Array | None = None) -> Scaled:
    """x 2^e with the exponent of x taken out."""
    kind, fraction, bias = _layout(x.dtype)
    bits = lax.bitcast_convert_type(x, kind)
    own = lax.bitwise_and(lax.shift_right_logical(bits, _like(bits, fraction)), _like(bits, 2 * bias + 1))
    usual = lax.bitwise_and(lax.gt(own, _like(own, 0)), lax.lt(own, _like(own, 2 * bias + 1)))
    mask = ~np.array((2 * bias + 1) << fraction, kind)
    unit = lax.bitwise_or(lax.bitwise_and(bits, _like(bits, mask)), _like(bits, bias << fraction))
    m = lax.select(usual, lax.bitcast_convert_type(unit, x.dtype), x)
    shift = lax.select(usual, lax.sub(own, _like(own, bias)), _like(own, 0))
    if e is None:
        return Scaled(m, shift)
    return Scaled(m, lax.select(usual, lax.add(shift, e), _like(e, 0)))


def _power_of_two(e: Array, dtype: Any) -> Array:
    """2^e, e within the normal exponents."""
    _, fraction, bias = _layout(dtype)
    return lax.bitcast_convert_type(lax.shift_left(lax.add(e, _like(e, bias)), _like(e, fraction)), dtype)


def together(x: Scaled) -> Array:
    """The number in the format: infinite or 0 beyond its range."""
    _, _, bias = _layout(x.m.dtype)
    e = lax.clamp(_like(x.e, -2 * bias), x.e, _like(x.e, 2 * bias))
    half = lax.shift_right_arithmetic(e, _like(e, 1))
    rest = lax.sub(e, half)
    return lax.mul(lax.mul(x.m, _power_of_two(half, x.m.dtype)), _power_of_two(rest, x.m.dtype))


def _add(a: Scaled, b: Scaled, sign: int = 1) -> Scaled:
    _, _, bias = _layout(a.m.dtype)
    zero = _like(a.m, 0)
    ea = lax.select(lax.eq(a.m, zero), _like(a.e, _FAR), a.e)
    eb = lax.select(lax.eq(b.m, zero), _like(b.e, _FAR), b.e)
    e = lax.max(ea, eb)
    e = lax.select(lax.eq(e, _like(e, _FAR)), _like(e, 0), e)
    low = _like(e, 1 - bias)
    x = lax.mul(a.m, _power_of_two(lax.max(lax.sub(ea, e), low), a.m.dtype))
    y = lax.mul(b.m, _power_of_two(lax.max(lax.sub(eb, e), low), b.m.dtype))
    return scaled(lax.add(x, y) if sign > 0 else lax.sub(x, y), e)


def _mul(a: Scaled, b: Scaled) -> Scaled:
    return scaled(lax.mul(a.m, b.m), lax.add(a.e, b.e))


def _div(a: Scaled, b: Scaled) -> Scaled:
    return scaled(lax.div(a.m, b.m), lax.sub(a.e, b.e))


def _sqrt(x: Scaled) -> Scaled:
    odd = lax.bitwise_and(x.e, _like(x.e, 1))
    m = lax.select(lax.eq(odd, _like(odd, 1)), lax.mul(x.m, _like(x.m, 2)), x.m)
    return scaled(lax.sqrt(m), lax.shift_right_arithmetic(lax.sub(x.e, odd), _like(odd, 1)))


def _integer_pow(x: Scaled, n: int) -> Scaled:
    if n < 0:
        return _div(scaled(_like(x.m, 1)), _integer_pow(x, -n))
    total: Scaled | None = None
    square = x
    while n:
        if n & 1:
            total = square if total is None else _mul(total, square)
        n >>= 1
        square = _mul(square, square) if n else square
    return scaled(_like(x.m, 1)) if total is None else total


def _select(which: Array, no: Scaled, yes: Scaled) -> Scaled:
    return Scaled(lax.select_n(which, no.m, yes.m), lax.select_n(which, no.e, yes.e))


def log(x: Scaled) -> Array:
    """log m + e log 2, with m between 1/√2 and √2, so that a number near 1 has e = 0."""
    large = lax.gt(x.m, _like(x.m, 1.4142135623730951))
    m = lax.select(large, lax.mul(x.m, _like(x.m, 0.5)), x.m)
    e = lax.convert_element_type(lax.select(large, lax.add(x.e, _like(x.e, 1)), x.e), x.m.dtype)
    return lax.add(lax.log(m), lax.mul(e, _like(e, 0.6931471805599453)))


def operation(n: Expr, of: Callable[[Expr], Scaled], plain: Callable[[Expr], Array]) -> Scaled | Array | None:
    """The operation of a node on scaled operands; None where there is none."""
    match n.op:
        case "add" | "sub":
            return _add(of(n.args[0]), of(n.args[1]), 1 if n.op == "add" else -1)
        case "neg" | "abs":
            x = of(n.args[0])
            return Scaled(lax.neg(x.m) if n.op == "neg" else lax.abs(x.m), x.e)
        case "mul":
            return _mul(of(n.args[0]), of(n.args[1]))
        case "div":
            return _div(of(n.args[0]), of(n.args[1]))
        case "integer_pow":
            return _integer_pow(of(n.args[0]), n.value)
        case "sqrt":
            return _sqrt(of(n.args[0]))
        case "rsqrt":
            root = _sqrt(of(n.args[0]))
            return _div(scaled(_like(root.m, 1)), root)
        case "log":
            return log(of(n.args[0]))
        case "select" if len(n.args) == 3:
            return _select(plain(n.args[0]), of(n.args[1]), of(n.args[2]))
        case "lt" | "gt" | "le" | "ge":
            d = _add(of(n.args[0]), of(n.args[1]), -1).m
            return getattr(lax, n.op)(d, _like(d, 0))
        case _:
            return None


@remembered
def degrees(e: Expr) -> dict[Expr, float]:
    """Of which power of the variables the size of each node is, at most: how soon it overflows or underflows."""
    found: dict[Expr, float] = {}
    for n in nodes(e):
        of = [found[a] for a in n.args]
        match n.op:
            case "const" | "cos" | "logistic" | "sign" | "acos" | "atan2" | "erfc":
                found[n] = 0.0
            case "mul":
                found[n] = of[0] + of[1]
            case "div":
                found[n] = of[0] - of[1]
            case "add" | "sub" | "max" | "min" | "hypot":
                found[n] = max(of, key=abs)
            case "neg" | "abs":
                found[n] = of[0]
            case "select":
                found[n] = max(of[1:], key=abs)
            case "integer_pow":
                found[n] = of[0] * n.value
            case "sqrt" | "rsqrt":
                found[n] = of[0] / (2 if n.op == "sqrt" else -2)
            case "cbrt":
                found[n] = of[0] / 3
            case "pow" if (p := rational(n.args[1])) is not None:
                found[n] = of[0] * float(p)
            case _:
                found[n] = 1.0
    return found


@remembered
def exceeding(e: Expr) -> frozenset[Expr]:
    """The nodes in the middle whose size is of more than the first power of the variables."""
    of = degrees(e)
    return frozenset(n for n in nodes(e) if n is not e and abs(of[n]) > 1 and n.op not in ("exp", "series"))
