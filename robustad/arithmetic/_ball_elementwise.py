"""Elementwise functions of balls: Arb's, which are right inside their domains, and elsewhere `_ball_limits`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robustad._jaxpr import Equation
from robustad.arithmetic._ball import Ball, boxed, exact, flint, is_finite, mapped
from robustad.arithmetic._ball_limits import LIMITS, over_zero


def _method(name: str) -> Callable[..., Any]:
    return lambda x: getattr(x, name)()


def _logistic(x: Any) -> Any:
    if x.real < 0:
        e = x.exp()
        return e / (1 + e)
    return 1 / (1 + (-x).exp())


def _cbrt(x: Any) -> Any:
    size = over_zero(abs(x), lambda v: v.root(3))
    return -size if x < 0 else size if x >= 0 else size.union(-size)


def _pow(x: Any, y: Any) -> Any:
    if isinstance(x, flint().acb) or isinstance(y, flint().acb):
        return flint().acb(x) ** y
    return x**y


def _igamma_grad_a(a: Any, x: Any) -> Any:
    """A central difference with a third of the digits."""
    ctx = flint().ctx
    bits = ctx.prec
    with ctx.workprec(3 * bits + 64):
        h = abs(a) * flint().arb(2) ** -bits
        slope = (x.gamma_lower(a + h, regularized=1) - x.gamma_lower(a - h, regularized=1)) / (2 * h)
        return slope + flint().arb(0, abs(slope).upper() * flint().arb(2) ** -bits)


def _polygamma(m: Any, x: Any) -> Any:
    return flint().acb(x).polygamma(m).real


def _complex(re: Any, im: Any) -> Any:
    return flint().acb(re, im)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "atan2": lambda y, x: flint().arb.atan2(y, x),
    "bessel_i0e": lambda x: abs(x).bessel_i(0, scaled=True),
    "bessel_i1e": lambda x: x.bessel_i(1, scaled=True) if x >= 0 else -(-x).bessel_i(1, scaled=True),
    "cbrt": _cbrt,
    "complex": _complex,
    "conj": lambda x: x.conjugate() if isinstance(x, flint().acb) else flint().acb(x),
    "erf_inv": _method("erfinv"),
    "exp2": lambda x: type(x)(2) ** x,
    "igamma": lambda a, x: x.gamma_lower(a, regularized=1),
    "igamma_grad_a": _igamma_grad_a,
    "igammac": lambda a, x: x.gamma_upper(a, regularized=1),
    "imag": lambda x: x.imag,
    "lgamma": lambda x: flint().acb(x).lgamma().real if x < 0 else x.lgamma(),
    "log2": lambda x: x.log() / flint().arb.const_log2(),
    "logistic": _logistic,
    "one_minus_square": lambda x: 1 - x * x,
    "polygamma": _polygamma,
    "pow": _pow,
    "real": lambda x: x.real,
    "regularized_incomplete_beta": lambda a, b, x: x.beta_lower(a, b, regularized=1),
    "zeta": lambda s, q: s.zeta(q),
} | {
    name: _method(name)
    for name in """acos acosh asin asinh atan atanh cos cosh digamma erf erfc exp expm1 log log1p rsqrt sin sinh sqrt tan
    tanh""".split()
}


def _polynomial(x: np.ndarray, *coefficients: np.ndarray) -> np.ndarray:
    """Horner's rule, the constant term first."""
    value = x - x
    for coefficient in coefficients[::-1]:
        value = value * x + coefficient
    return value


_UFUNCS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "div": np.true_divide,
    "mul": np.multiply,
    "neg": np.negative,
    "polynomial": _polynomial,
    "square": lambda x: x * x,
    "sub": np.subtract,
}
"""What NumPy's own loops over Python's operators compute: three times faster than calls."""

ELEMENTWISE = frozenset(_FUNCTIONS) | frozenset(_UFUNCS) | {"integer_pow"}


def elementwise(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> list[np.ndarray | None]:
    name, xs = eqn.primitive.name, [exact(v) for v in operands]
    if name == "integer_pow":
        power = int(eqn.params["y"])
        out = mapped(lambda x: x**power, xs[0])
    elif name in _UFUNCS:
        out = boxed(_UFUNCS[name](*xs))
    else:
        out = mapped(_FUNCTIONS[name], *xs)
    wrong = ~is_finite(out)
    if name in ("sin", "cos"):
        wrong |= ~is_finite(xs[0])
    if name == "atan2":
        wrong |= np.asarray(operands[0].working) == 0
    if not wrong.any() or (limit := LIMITS.get(name)) is None:
        return [out]
    xs = [np.broadcast_to(x, out.shape) for x in xs]
    held = [np.broadcast_to(np.asarray(v.working), out.shape) for v in operands]
    options = {"power": int(eqn.params["y"])} if name == "integer_pow" else {}
    for at in np.argwhere(wrong):
        at = tuple(at)
        arguments = [x[at] for x in xs]
        if all(isinstance(x, flint().arb) for x in arguments):
            found = limit(*arguments, *(w[at] for w in held), **options)
            out[at] = out[at] if found is None else found
    return [out]
