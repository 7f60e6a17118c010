"""Scalar functions made stable by the calculus alone, and their values and derivatives from mpmath."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from robustad import _jaxpr
from robustad.rewriting.expressions._calculus import Firing, stabilized
from robustad.rewriting.expressions._conversion import expressions
from robustad.rewriting.expressions._derivative import derivative
from robustad.rewriting.expressions._expression import Expr, nodes, rational
from robustad.rewriting.expressions._region import region


def expression(f: Callable[..., Any], arity: int, dtype: Any = np.float32) -> Expr:
    """The expression of a scalar function."""
    program, _ = _jaxpr.trace(f, *[np.asarray(1, dtype)] * arity)
    (e,) = expressions(program)
    return e


def stable(f: Callable[..., Any]) -> Callable[..., Any]:
    """f with its expression in stable form; f itself where no rule fires."""

    def function(*args: Any) -> Any:
        arrays = [jnp.asarray(a) for a in args]
        program, _ = _jaxpr.trace(f, *arrays)
        (e,) = expressions(program)
        (form,), firings = stabilized([e])
        return region(form, len(arrays), plain=e)(*arrays) if firings else f(*arrays)

    return function


def firings(f: Callable[..., Any], arity: int) -> tuple[Firing, ...]:
    return stabilized([expression(f, arity)])[1]


_MP: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "neg": lambda a: -a, "exp": mp.exp, "exp2": lambda a: mp.power(2, a), "expm1": mp.expm1, "log": mp.log,
    "log1p": lambda a: mp.log(1 + a), "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "asin": mp.asin, "acos": mp.acos,
    "atan": mp.atan, "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh, "asinh": mp.asinh, "acosh": mp.acosh,
    "atanh": mp.atanh, "logistic": lambda a: 1 / (1 + mp.exp(-a)), "sqrt": mp.sqrt, "rsqrt": lambda a: 1 / mp.sqrt(a),
    "cbrt": lambda a: mp.cbrt(a) if a >= 0 else -mp.cbrt(-a), "pow": mp.power, "abs": abs, "erf": mp.erf, "erfc": mp.erfc,
    "lt": lambda a, b: a < b, "gt": lambda a, b: a > b, "max": max, "min": min, "sign": mp.sign,
    "le": lambda a, b: a <= b, "ge": lambda a, b: a >= b, "select": lambda c, a, b: b if c else a,
    "atan2": mp.atan2,
}  # fmt: skip


def exact(e: Expr, point: Sequence[float], digits: int = 400) -> Any:
    """The expression as it stands, in decimals of that many digits; None where it is no finite real number."""
    values: dict[Expr, Any] = {}
    with mp.workdps(digits):
        try:
            for n in nodes(e):
                p = rational(n)
                if n.op == "var":
                    values[n] = mp.mpf(float(point[n.value]))
                elif p is not None:
                    values[n] = mp.mpf(p.numerator) / p.denominator
                elif n.op == "integer_pow":
                    values[n] = values[n.args[0]] ** n.value
                else:
                    values[n] = _MP[n.op](*(values[a] for a in n.args))
                if isinstance(values[n], mp.mpc) or (
                    isinstance(values[n], mp.mpf) and abs(mp.mag(values[n] or 1)) > 1000
                ):
                    return None  # beyond float64's range: there sin and cos would take for ever
        except (ZeroDivisionError, ValueError, OverflowError):
            return None
        return values[e] if mp.isfinite(values[e]) else None


def evaluated(e: Expr, point: Sequence[float], digits: int = 700) -> Any:
    """The same for expressions without functions, of any size."""
    values: dict[Expr, Any] = {}
    with mp.workdps(digits):
        for n in nodes(e):
            p = rational(n)
            if n.op == "var":
                values[n] = mp.mpf(float(point[n.value]))
            elif p is not None:
                values[n] = mp.mpf(p.numerator) / p.denominator
            elif n.op == "integer_pow":
                values[n] = values[n.args[0]] ** n.value
            else:
                values[n] = _MP[n.op](*(values[a] for a in n.args))
        return values[e]


def ulps(got: Any, want: Any, dtype: Any = np.float32) -> float:
    """The distance in units in the last place of the right result."""
    with mp.workdps(400):
        unit = float(np.spacing(np.abs(np.asarray(float(want)).astype(dtype))))
        return float(abs(mp.mpf(float(got)) - want) / unit) if np.isfinite(got) else float("inf")


def check(
    f: Callable[..., Any],
    points: Sequence[Sequence[float]],
    bound: float = 2.0,
    dtype: Any = np.float32,
    plain_fails: bool = True,
) -> None:
    """Asserts that the stable form and its slopes are right at the points, and (`plain_fails`) the plain ones are not."""
    arity = len(points[0])
    assert stabilized([expression(f, arity, dtype)])[1]
    e = expression(f, arity, dtype)
    wanted = [e] + [derivative(e, i) for i in range(arity)]
    least = float(np.finfo(dtype).tiny)
    plain_is_right = True
    both = [jax.jit(jax.value_and_grad(h, tuple(range(arity)))) for h in (f, stable(f))]
    for point in points:
        point = [dtype(p) for p in point]
        exacts = [exact(w, point) for w in wanted]
        plain, ours = ((value, *slopes) for value, slopes in (h(*point) for h in both))
        for got, before, want in zip(ours, plain, exacts):
            assert want is not None
            if want == 0 or abs(want) < least:
                assert abs(got) < least
                continue
            assert ulps(got, want, dtype) <= bound, (point, got, want)
            plain_is_right &= bool(ulps(before, want, dtype) < 30)
    assert not (plain_fails and plain_is_right)
