"""Expressions evaluated on arrays, in one working precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jax import Array, lax

from robustad.rewriting.expressions import _tails as tails
from robustad.rewriting.expressions._expression import Expr, nodes
from robustad.rewriting.expressions._products import own_weight
from robustad.rewriting.expressions._scaled import Scaled, exceeding, operation, scaled, together

# lax alone: functions of jax.numpy convert their operands by rules that depend on the x64 mode around them.
_FUNCTIONS: dict[str, Callable[..., Array]] = {
    name: getattr(lax, name)
    for name in """add sub mul div neg exp exp2 expm1 log log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh
    atanh logistic sqrt rsqrt cbrt pow erf erfc digamma abs sign max min lt le gt ge eq ne""".split()
}
_FUNCTIONS |= {"and": lax.bitwise_and, "or": lax.bitwise_or, "not": lax.bitwise_not, "select": lax.select_n}


def evaluate(e: Expr, leaves: Sequence[Array], dtype: Any, careful: bool = False) -> Array:
    """The expression on arrays of one shape; floating ones are taken in `dtype`, which is float32 or float64.

    careful: where `dtype` has no more range than the operands had. What could overflow or underflow in the middle then has
    an exponent of its own (`_scaled`).
    """
    values: dict[Expr, Any] = {}

    def constant(value: Any) -> Array:
        return lax.full_like(like, rounded(value, dtype), dtype)

    def plain(n: Expr) -> Array:
        x = values[n]
        return together(x) if isinstance(x, Scaled) else x

    def of(n: Expr) -> Scaled:
        x = values[n]
        return x if isinstance(x, Scaled) else scaled(x if _is_floating(x) else lax.convert_element_type(x, dtype))

    operands = [lax.convert_element_type(x, dtype) if _is_floating(x) else x for x in leaves]
    like = operands[0]
    wide = exceeding(e) if careful else frozenset()
    for n in nodes(e):
        if n in wide or (wide and any(isinstance(values[a], Scaled) for a in n.args)):
            values[n] = operation(n, of, plain)
            if values[n] is not None:
                continue
        match n.op:
            case "var":
                values[n] = operands[n.value]
            case "const":
                values[n] = constant(n.value)
            case "integer_pow":
                values[n] = lax.integer_pow(plain(n.args[0]), n.value)
            case "series":
                values[n] = _series(n, [plain(a) for a in n.args], constant)
            case "mul" if (weight := own_weight(n)) is not None:
                product, zero = lax.mul(*map(plain, n.args)), constant(Fraction(0))
                values[n] = lax.select_n(lax.eq(plain(weight), zero), product, zero)
            case "erfcx":
                values[n] = tails.scaled(n.value, plain(n.args[0]), constant)
            case "lgamma":
                values[n] = _log_gamma(plain(n.args[0]), constant)
            case "polygamma":
                values[n] = lax.polygamma(constant(Fraction(n.value)), plain(n.args[0]))
            case "hypot":
                values[n] = _hypot(*map(plain, n.args))
            case _:
                values[n] = _FUNCTIONS[n.op](*_alike([plain(a) for a in n.args], n, dtype))
    return plain(e)


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


def _log_gamma(x: Array, constant: Callable[[Any], Array]) -> Array:
    """0 at 1 and 2, where XLA has 9e-16."""
    zero = lax.bitwise_or(*(lax.eq(x, constant(Fraction(i))) for i in (1, 2)))
    return lax.select(zero, constant(Fraction(0)), lax.lgamma(x))


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
