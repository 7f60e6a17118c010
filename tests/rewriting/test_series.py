"""Laurent series with rational coefficients, and the removable cancellations that they mend at every order of derivative."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.rewriting.expressions._derivative import derivative
from robustad.rewriting.expressions._expression import ONE, add, call, div, power, sub, var
from robustad.rewriting.expressions._removable import cancellations
from robustad.rewriting.expressions._series import expansion
from tests.rewriting._scalar import exact, expression, firings, stable, ulps

x = var(0)


@pytest.mark.parametrize("exactly", [True, False])
@pytest.mark.parametrize(
    ("e", "centre", "valuation", "coefficients"),
    [
        (call("tan", x), 0, 1, [1, 0, Fraction(1, 3), 0, Fraction(2, 15)]),
        (call("log", x), 1, 1, [1, Fraction(-1, 2), Fraction(1, 3)]),
        (call("sqrt", add(ONE, x)), 0, 0, [1, Fraction(1, 2), Fraction(-1, 8)]),
        (sub(div(ONE, x), div(ONE, call("tan", x))), 0, 1, [Fraction(1, 3), 0, Fraction(1, 45)]),
        (call("atanh", x), 0, 1, [1, 0, Fraction(1, 3), 0, Fraction(1, 5)]),
        (call("asin", x), 0, 1, [1, 0, Fraction(1, 6), 0, Fraction(3, 40)]),
        (call("logistic", x), 0, 0, [Fraction(1, 2), Fraction(1, 4), 0, Fraction(-1, 48)]),
        (div(power(x, 2), sub(call("cosh", x), ONE)), 0, 0, [2, 0, Fraction(-1, 6)]),
    ],
)
def test_coefficients(e, centre, valuation, coefficients, exactly):
    series = expansion(e, Fraction(centre), 16, exactly)[e]
    assert series is not None and series.valuation == valuation
    got = [Fraction(c) for c in series.coefficients[: len(coefficients)]]
    if exactly:
        assert got == coefficients
    else:
        np.testing.assert_allclose([float(c) for c in got], [float(c) for c in coefficients], rtol=1e-15)


def test_where_it_cancels():
    assert cancellations(sub(ONE, call("cos", x))) == [0]
    assert cancellations(div(call("log", x), sub(x, ONE))) == [1]
    assert cancellations(sub(call("atan", x), x)) == [0]
    assert cancellations(add(ONE, call("exp", x))) == []
    assert None in cancellations(sub(div(x, add(x, ONE)), ONE))  # at infinity


CASES = {
    "(1 - cos x)/x²": (lambda x: (1 - jnp.cos(x)) / (x * x), [1e-20, 1e-4, 0.5, 3.0]),
    "1/x - 1/tan x": (lambda x: 1 / x - 1 / jnp.tan(x), [1e-20, 1e-4, 0.5, -2.0]),
    "(x - sin x)/(x - tan x)": (lambda x: (x - jnp.sin(x)) / (x - jnp.tan(x)), [1e-10, 1e-3, 0.5]),
    "(e^x - 1)/x": (lambda x: (jnp.exp(x) - 1) / x, [1e-20, -1e-4, 0.7, 5.0]),
    "expm1(x)/x": (lambda x: jnp.expm1(x) / x, [1e-20, -1e-4, 0.7, 5.0]),
    "x/tan x": (lambda x: x / jnp.tan(x), [1e-20, 1e-4, 0.9]),
    "log(x)/(x - 1)": (lambda x: jnp.log(x) / (x - 1), [1.0001, 0.9, 3.0]),
    "sin x/x": (lambda x: jnp.sin(x) / x, [1e-20, 1e-4, 0.7]),
    "atan x - x": (lambda x: jnp.arctan(x) - x, [1e-6, 1e-3, 0.4]),
    "log(1 - x)/log(1 + x)": (lambda x: jnp.log(1 - x) / jnp.log(1 + x), [1e-20, 1e-4, 0.3]),
    "√((e^2x - 1)/(e^x - 1))": (lambda x: jnp.sqrt((jnp.exp(2 * x) - 1) / (jnp.exp(x) - 1)), [1e-20, 1e-4, 2.0]),
    "x/(x + 1) - atan": (lambda x: jnp.cosh(x) - 1 - x * x / 2, [1e-3, 0.1, 0.8]),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_two_derivatives(name):
    f, points = CASES[name]
    assert firings(f, 1)
    e = expression(f, 1)
    g = stable(f)
    orders = [e, derivative(e, 0), derivative(derivative(e, 0), 0)]
    plain_is_right = True
    for h, order in ((f, 0), (jax.grad(f), 1)):
        want = exact(orders[order], [np.float32(points[0])])
        plain_is_right &= bool(ulps(h(np.float32(points[0])), want) < 30)
    assert not plain_is_right
    compiled = [jax.jit(h) for h in (g, jax.grad(g), jax.grad(jax.grad(g)))]
    for p in map(np.float32, points):
        for h, order in zip(compiled, orders):
            want = exact(order, [p])
            if abs(want) > 1.2e-38:
                assert ulps(h(p), want) <= 2, (p, h(p), want)


def test_the_limit_itself():
    for name, limit, slope in (("(e^x - 1)/x", 1, 0.5), ("x/tan x", 1, 0), ("expm1(x)/x", 1, 0.5), ("sin x/x", 1, 0)):
        g = stable(CASES[name][0])
        assert g(np.float32(0)) == limit
        assert jax.grad(g)(np.float32(0)) == slope
