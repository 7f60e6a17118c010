"""Functions of one product or quotient of variables: cancellations in that compound variable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad as rad
from robustad.rewriting.expressions._compound import compounds
from robustad.rewriting.expressions._expression import ONE, call, div, mul, power, sub, var
from tests.rewriting._scalar import check

CASES = {
    "sin(a x)/x": (lambda a, x: jnp.sin(a * x) / x, [(3.0, 1e-4), (-0.7, 5.0)]),
    "expm1(k t)/k": (lambda k, t: jnp.expm1(k * t) / k, [(1e-6, 2.0), (0.8, -3.0)]),
    "(e^(k t) - 1)/k": (lambda k, t: (jnp.exp(k * t) - 1) / k, [(1e-6, 2.0), (0.8, -3.0)]),
    "Ornstein-Uhlenbeck variance": (lambda k, t: (1 - jnp.exp(-2 * k * t)) / (2 * k), [(1e-6, 2.0), (0.8, 3.0)]),
    "yield curve": (lambda k, t: (1 - jnp.exp(-k * t)) / (k * t) - jnp.exp(-k * t), [(1e-4, 2.0), (0.8, 3.0)]),
    "(1 - cos(a x))/x²": (lambda a, x: (1 - jnp.cos(a * x)) / x**2, [(0.3, 1e-3), (2.0, 1.5)]),
    "x - sin(a x)/a": (lambda a, x: x - jnp.sin(a * x) / a, [(1e-3, 0.5), (2.0, 1.5)]),
    "n log(1 + x/n) - x": (lambda x, n: n * jnp.log1p(x / n) - x, [(0.5, 1e4), (2.0, 1.5)]),
    "n log(1 + x/n)": (lambda x, n: n * jnp.log1p(x / n), [(0.5, 1e4), (2.0, 1.5)]),
    "Box-Cox": (lambda x, k: (x**k - 1) / k, [(2.0, 1e-4), (0.3, 0.7)]),
    "Yeo-Johnson": (lambda x, k: ((x + 1) ** k - 1) / k, [(2.0, 1e-4), (0.3, 0.7)]),
    "a product of three": (lambda a, b, x: jnp.sin(a * b * x) / (a * b * x), [(0.1, 0.2, 1e-3), (1.0, 2.0, 0.9)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes(name):
    check(*CASES[name], bound=3, plain_fails=name != "expm1(k t)/k")  # newer versions of JAX have that one right


@pytest.mark.parametrize("x", [2.0, 0.3, 7.5])
def test_the_second_slope_of_a_power_transformation(x):
    """In a small exponent, where the cube of it is divided by; at 0 itself the limit."""
    g = rad.stabilize(lambda x, k: (x**k - 1) / k)
    slopes = jax.jit(jax.vmap(jax.hessian(g, 1), (None, 0)))(np.float32(x), np.float32([1e-3, 1e-6, -1e-9, 0.0]))
    log = np.log(np.float64(np.float32(x)))
    want = [log**3 / 3 + k * log**4 / 4 + k**2 * log**5 / 10 for k in np.float64(np.float32([1e-3, 1e-6, -1e-9, 0.0]))]
    np.testing.assert_allclose(slopes, want, rtol=1e-6)
    plain = jax.hessian(lambda x, k: (x**k - 1) / k, 1)(np.float32(x), np.float32(1e-6))
    assert not abs(plain / want[1] - 1) < 1


def test_the_compound_variable():
    a, x = var(0), var(1)
    first, second = compounds(div(call("sin", mul(a, x)), x))
    assert (first.factor, first.variable) == (a, mul(a, x)) or (first.factor, first.variable) == (a, mul(x, a))
    assert first.function is div(call("sin", x), x)
    assert second.factor is div(ONE, x)
    assert not compounds(sub(power(a, 2), power(x, 2)))
    assert not compounds(call("sin", sub(a, x)))
    assert not compounds(mul(call("sin", mul(a, x)), call("cos", x)))
