r"""The complementary error function far out, where it underflows and its logarithm and its quotients do not.

With the repeated integrals of DLMF 7.18, \(E_n(x) = e^{x^2} i^n \operatorname{erfc}(x)\): erfc x is \(e^{-x^2} E_0(x)\). The
derivative of \(E_n\) is \(-2 (n + 1) E_{n+1}\), so no order of derivative cancels, as \(2 x E_0 - 2/\sqrt\pi\) does. By DLMF
7.18.7, \(E_n / E_{n-1} = 1/(2 x + 2 (n + 1) E_{n+1}/E_n)\) with \(E_{-1} = 2/\sqrt\pi\): a continued fraction, whose first
40 terms (with as many more as the order) leave a relative error below 2⁻⁵⁶ for \(x \ge 3\) and n ≤ 2. Below 3 nothing
underflows and erfc itself is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robustad.rewriting.expressions._expression import Expr, const

FROM = 3  # where the continued fraction is used
_TERMS = 40


def scaled(n: int, x: Any, number: Callable[[float], Any]) -> Any:
    """E_n(x) for x ≥ 3, of NumPy's or JAX's arrays; `number` makes a constant."""
    ratio, total = number(0.0), number(1.1283791670955126)
    for k in range(_TERMS + n, -1, -1):
        ratio = number(1.0) / (number(2.0) * x + number(2.0 * (k + 1)) * ratio)
        if k <= n:
            total = total * ratio
    return total


def erfcx(u: Expr) -> Expr:
    return Expr("erfcx", (u,), 0)


def slope(n: Expr) -> tuple[int, Expr]:
    """The factor and the function of the derivative of E_n."""
    return -2 * (n.value + 1), Expr("erfcx", n.args, n.value + 1)


def far(u: Expr) -> Expr:
    """Whether the continued fraction is used."""
    return Expr("gt", (u, const(FROM)))
