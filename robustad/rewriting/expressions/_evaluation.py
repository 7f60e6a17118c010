"""Expressions evaluated on arrays, in one working precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jax import Array, lax

from robustad.rewriting.expressions import _tails as tails
from robustad.rewriting.expressions._expression import Expr, nodes
from robustad.rewriting.expressions._products import Monomial, Sum, collected, own_weight

# lax alone: functions of jax.numpy convert their operands by rules that depend on the x64 mode around them.
_FUNCTIONS: dict[str, Callable[..., Array]] = {
    name: getattr(lax, name)
    for name in """add sub mul div neg exp exp2 expm1 log log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh
    atanh logistic sqrt rsqrt cbrt pow erf erfc abs sign max min lt le gt ge eq ne""".split()
}
_FUNCTIONS |= {"and": lax.bitwise_and, "or": lax.bitwise_or, "not": lax.bitwise_not, "select": lax.select_n}


def evaluate(e: Expr, leaves: Sequence[Array], dtype: Any, careful: bool = False) -> Array:
    """The expression on arrays of one shape; floating ones are taken in `dtype`, which is float32 or float64.

    careful: where `dtype` has no more range than the operands had. Factors of quotients then are multiplied and divided
    by in turn, and roots of quadratic forms are scaled: squares and products seldom overflow or underflow in the middle.
    """
    values: dict[Expr, Any] = {}

    def constant(value: Any) -> Array:
        return lax.full_like(like, rounded(value, dtype), dtype)

    operands = [lax.convert_element_type(x, dtype) if _is_floating(x) else x for x in leaves]
    like = operands[0]
    for n in nodes(e):
        match n.op:
            case "var":
                values[n] = operands[n.value]
            case "const":
                values[n] = constant(n.value)
            case "integer_pow":
                values[n] = lax.integer_pow(values[n.args[0]], n.value)
            case "div" if careful and n.args[1].op in ("mul", "integer_pow"):
                values[n] = _in_turn(n, values)
            case "sqrt" if careful and (form := _quadratic(n.args[0])) is not None:
                values[n] = _scaled_root(form, values, constant)
            case "series":
                values[n] = _series(n, [values[a] for a in n.args], constant)
            case "mul" if (weight := own_weight(n)) is not None:
                product, zero = lax.mul(*(values[a] for a in n.args)), constant(Fraction(0))
                values[n] = lax.select_n(lax.eq(values[weight], zero), product, zero)
            case "erfcx":
                values[n] = tails.scaled(n.value, values[n.args[0]], constant)
            case "hypot":
                values[n] = _hypot(*(values[a] for a in n.args))
            case _:
                values[n] = _FUNCTIONS[n.op](*_alike([values[a] for a in n.args], n, dtype))
    return values[e]


def _factors(e: Expr) -> list[Expr]:
    if e.op == "mul":
        return [f for a in e.args for f in _factors(a)]
    if e.op == "integer_pow" and 0 < e.value <= 4:
        return _factors(e.args[0]) * e.value
    return [e]


def _in_turn(n: Expr, values: dict[Expr, Any]) -> Array:
    """Sums that grow in the numerator meet the denominator's factors one by one."""
    above, below = (_factors(a) for a in n.args)
    total, above = values[above[0]], above[1:]
    while above or below:
        if below:
            total = lax.div(total, values[below.pop(0)])
        if above:
            total = lax.mul(total, values[above.pop(0)])
    return total


def _quadratic(e: Expr) -> Sum | None:
    """A sum of at least two terms of second or lower degree, one of them of second degree."""
    if e.op not in ("add", "sub"):
        return None
    s = collected(e)
    degrees = [sum(n for _, n in m) for m in s]
    whole = all(n > 0 and a.op != "exp" for m in s for a, n in m)
    return s if whole and len(s) > 1 and max(degrees) == 2 and all(set(_atoms(m)) <= set(nodes(e)) for m in s) else None


def _atoms(m: Monomial) -> list[Expr]:
    return [a for a, n in m for _ in range(n)]


def _scaled_root(s: Sum, values: dict[Expr, Any], constant: Callable[[Any], Array]) -> Array:
    """scale · √(Σ c (a/scale)(b/scale)), the scale a power of two near the root of the largest term."""
    pairs = []
    for m, c in s.items():
        first, second = ([values[a] for a in _atoms(m)] + [constant(Fraction(1))] * 2)[:2]
        pairs.append((constant(c), first, second))
    sizes = [lax.mul(lax.sqrt(lax.abs(a)), lax.sqrt(lax.abs(b))) for _, a, b in pairs]
    largest = functools.reduce(lax.max, sizes)
    scale = _power_of_two(largest)
    usable = lax.bitwise_and(lax.gt(largest, constant(Fraction(0))), lax.lt(largest, constant(Fraction(2) ** 1000)))
    scale = lax.select_n(usable, constant(Fraction(1)), scale)
    terms = [lax.mul(c, lax.mul(lax.div(a, scale), lax.div(b, scale))) for c, a, b in pairs]
    return lax.mul(scale, lax.sqrt(functools.reduce(lax.add, terms)))


def _power_of_two(x: Array) -> Array:
    """The largest power of two that is at most x: its bits without the fraction."""
    bits = lax.bitcast_convert_type(x, np.uint64)
    mask = lax.full_like(bits, np.uint64(0x7FF0000000000000))
    return lax.bitcast_convert_type(lax.bitwise_and(bits, mask), x.dtype)


def _is_floating(x: Array) -> bool:
    return np.dtype(x.dtype).kind in "fV" and x.dtype != np.bool_


def _alike(operands: list[Array], n: Expr, dtype: Any) -> list[Array]:
    """Integer operands beside floating ones in the working precision, as a program that is converted had them."""
    kinds = {np.dtype(x.dtype).kind for x in operands}
    if n.op in ("and", "or", "not") or len(kinds) == 1:
        return operands
    first = 1 if n.op == "select" else 0
    return [x if i < first or _is_floating(x) else lax.convert_element_type(x, dtype) for i, x in enumerate(operands)]


def rounded(value: Any, dtype: Any) -> np.ndarray:
    """A constant in a dtype, rounded once; beyond the range it is infinite."""
    if isinstance(value, Fraction):
        try:
            value = float(value)
        except OverflowError:
            value = float("inf") if value > 0 else float("-inf")
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(value, np.float64).astype(dtype)


def _series(n: Expr, operands: list[Array], constant: Callable[[Any], Array]) -> Array:
    """Horner's rule on the node's coefficients where the operand is near the centre, the other form elsewhere."""
    x, far = operands
    s = n.value
    t = lax.sub(x, constant(s.centre)) if s.centre else x
    step = t if s.stride == 1 else lax.integer_pow(t, s.stride)
    total = constant(s.coefficients[-1])
    for c in reversed(s.coefficients[:-1]):
        total = lax.add(lax.mul(total, step), constant(c))
    if s.valuation:
        total = lax.mul(total, lax.integer_pow(t, s.valuation))
    return lax.select_n(lax.lt(lax.abs(t), constant(s.radius)), far, total)


def _hypot(x: Array, y: Array) -> Array:
    """√(x² + y²) without overflow or underflow in the middle: scaled by the larger one."""
    a, b = lax.abs(x), lax.abs(y)
    large, small = lax.max(a, b), lax.min(a, b)
    ratio = lax.div(small, large)
    plain = lax.mul(large, lax.sqrt(lax.add(lax.full_like(x, 1), lax.mul(ratio, ratio))))
    # 0/0 at the origin, inf/inf where both are infinite
    return lax.select_n(lax.bitwise_or(lax.eq(large, lax.full_like(x, 0)), lax.eq(large, small)), plain, _equal(large))


def _equal(a: Array) -> Array:
    return lax.mul(a, lax.sqrt(lax.full_like(a, 2)))
