"""What functions of balls are where Arb gives no finite one: IEEE's answers at poles and infinities, and what is known of
balls that reach over the end of a domain by their radius alone.

A limit takes the operands, then their working values, for the sign of a zero. None: what Arb said stands.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from robustad.arithmetic._ball import flint


def _number(x: float) -> Any:
    return flint().arb(x)


_INF, _NAN = float("inf"), float("nan")


def over_zero(x: Any, f: Callable[[Any], Any]) -> Any:
    """An increasing f of numbers >= 0 with f(0) = 0, of a ball that reaches below 0 by its radius alone."""
    if x > 0 or x.is_zero() or not x.is_finite():
        return f(x)
    top = x.upper()
    return f(top).union(flint().arb(0)) if top >= 0 else _number(_NAN)


def _sign(x: Any, working: Any) -> float:
    """The sign of a number; of a zero, where the working one is zero too: its sign bit; 0 where it is unknown."""
    if x > 0:
        return 1.0
    if x < 0:
        return -1.0
    if x.is_zero() and working == 0:
        return -1.0 if np.signbit(np.float64(working)) else 1.0
    return 0.0


def _infinite(x: Any) -> bool:
    return x == _number(_INF) or x == _number(-_INF)


def _signed_infinity(sign: float) -> Any:
    return _number(sign * _INF) if sign else _number(_NAN)


def _at_ends(below: float, above: float) -> Callable[..., Any]:
    """A function with limits at -inf and at inf."""

    def limit(x: Any, working: Any) -> Any:
        return _number(above if x > 0 else below) if _infinite(x) else None

    return limit


def _at(points: dict[float, float]) -> Callable[..., Any]:
    """A function with poles or limits at some points, the infinite ones included."""

    def limit(x: Any, working: Any) -> Any:
        return next((_number(value) for point, value in points.items() if x == _number(point)), None)

    return limit


def _div(x: Any, y: Any, wx: Any, wy: Any) -> Any:
    if y.is_zero() and not x.is_zero() and not x.is_nan():
        return _signed_infinity(_sign(x, wx) * _sign(y, wy))
    if _infinite(x) and y.is_finite():
        return _signed_infinity(_sign(x, wx) * _sign(y, wy))
    return None


def _integer_pow(x: Any, working: Any, power: int) -> Any:
    odd = power % 2
    if _infinite(x):
        value = 0.0 if power < 0 else _INF
        return _number(-value if x < 0 and odd else value) if power else _number(1)
    if x.is_zero() and power < 0:
        return _signed_infinity(_sign(x, working) if odd else 1.0)
    return None


def _pow_limit(x: Any, y: Any, wx: Any, wy: Any) -> Any:
    if x.is_zero() and y < 0:
        odd = y.is_integer() and not (y / 2).is_integer()
        return _signed_infinity(_sign(x, wx) if odd else 1.0)
    if y.is_zero() or x == _number(1):
        return _number(1)
    if x.is_nan() or y.is_nan():
        return _number(_NAN)
    if _infinite(x) or _infinite(y):
        with np.errstate(all="ignore"):
            return _number(float(np.power(np.float64(_like(x)), np.float64(_like(y)))))
    if y > 0 and x.is_finite() and not x < 0 and not y.is_integer():
        return over_zero(x, lambda v: v**y)
    return None


def _like(x: Any) -> float:
    """A float on the same side of -1, 0 and 1, as odd as the number."""
    if not x.is_finite():
        return float(x)
    if x.is_integer():
        n = int(x.unique_fmpz())
        return float(n if abs(n) <= 2 else np.copysign(3 if n % 2 else 4, n))
    return float(x) if abs(x) < 1e10 else np.copysign(1e10, float(x.mid()))


def _sqrt(x: Any, working: Any) -> Any:
    return over_zero(x, lambda v: v.sqrt()) if x.is_finite() and x.upper() >= 0 else None


def _rsqrt(x: Any, working: Any) -> Any:
    return _signed_infinity(_sign(x, working)) if x.is_zero() else None


def _lgamma(x: Any, working: Any) -> Any:
    return _number(_INF) if _infinite(x) or (x.is_integer() and x <= 0) else None


def _digamma(x: Any, working: Any) -> Any:
    if x.is_zero():
        return _signed_infinity(-_sign(x, working))
    return _number(_INF) if _infinite(x) and x > 0 else None


def _atan2(y: Any, x: Any, wy: Any, wx: Any) -> Any:
    """Multiples of π/4 at infinities; the half plane of a signed zero."""
    quarter = flint().arb.pi() / 4
    if y.is_zero() and wy == 0 and (x < 0 or (x.is_zero() and np.signbit(np.float64(wx)))):
        return quarter * (-4 if np.signbit(np.float64(wy)) else 4)
    if (_infinite(x) or _infinite(y)) and not x.is_nan() and not y.is_nan():
        corner = np.arctan2(np.float64(_like(y)), np.float64(_like(x)))
        return quarter * round(float(corner) / (np.pi / 4))
    return None


def _igamma(at_zero: float, at_infinity: float) -> Callable[..., Any]:
    def limit(a: Any, x: Any, wa: Any, wx: Any) -> Any:
        return _number(at_zero) if x.is_zero() else _number(at_infinity) if _infinite(x) and x > 0 else None

    return limit


LIMITS: dict[str, Callable[..., Any]] = {
    "acos": _at({}),
    "atan2": _atan2,
    "atanh": _at({1.0: _INF, -1.0: -_INF}),
    "bessel_i0e": _at_ends(0.0, 0.0),
    "bessel_i1e": _at_ends(0.0, 0.0),
    "cbrt": _at_ends(-_INF, _INF),
    "cos": lambda x, working: None if x.is_finite() else _number(_NAN),
    "cosh": _at_ends(_INF, _INF),
    "digamma": _digamma,
    "div": _div,
    "erf": _at_ends(-1.0, 1.0),
    "erf_inv": _at({1.0: _INF, -1.0: -_INF}),
    "erfc": _at_ends(2.0, 0.0),
    "exp2": _at_ends(0.0, _INF),
    "igamma": _igamma(0.0, 1.0),
    "igammac": _igamma(1.0, 0.0),
    "integer_pow": _integer_pow,
    "lgamma": _lgamma,
    "log": _at({0.0: -_INF, _INF: _INF}),
    "log1p": _at({-1.0: -_INF, _INF: _INF}),
    "log2": _at({0.0: -_INF, _INF: _INF}),
    "logistic": _at_ends(0.0, 1.0),
    "one_minus_square": _at_ends(-_INF, -_INF),
    "pow": _pow_limit,
    "rsqrt": _rsqrt,
    "sin": lambda x, working: None if x.is_finite() else _number(_NAN),
    "sinh": _at_ends(-_INF, _INF),
    "asinh": _at_ends(-_INF, _INF),
    "sqrt": _sqrt,
}


def logarithm(x: Any) -> Any:
    return flint().arb(-_INF) if x.is_zero() else x.log()


def square_root(x: Any) -> Any:
    return x.sqrt() if isinstance(x, flint().acb) else over_zero(x, lambda v: v.sqrt())
