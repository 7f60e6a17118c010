"""Differences, quotients, logarithms and exponentials that cancel or overflow: values and slopes within 2 ulp where the
plain form is far off.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rewriting._scalar import check, firings, stable

cbrt = jnp.cbrt


def _entropy_of_sigmoid(x):
    p = 1 / (1 + jnp.exp(x))
    return p * jnp.log(p) + (1 - p) * jnp.log(1 - p)


def _matern_3(x):
    r = jnp.sqrt(3.0) * jnp.abs(x)
    return (1 + r) * jnp.exp(-r)


def _matern_5(x):
    r = jnp.sqrt(5.0) * jnp.abs(x)
    return (1 + r + r * r / 3) * jnp.exp(-r)


def _heron(a, b, c):
    s = (a + b + c) / 2
    return jnp.sqrt(s * (s - a) * (s - b) * (s - c))


def _central_angle(a, b, c, d):
    """Of two places on a sphere, by the law of cosines."""
    return jnp.arccos(jnp.sin(a) * jnp.sin(b) + jnp.cos(a) * jnp.cos(b) * jnp.cos(d - c))


# name: (function, points at which the plain form is wrong)
CASES = {
    "sqrt": (lambda x: jnp.sqrt(x + 1) - jnp.sqrt(x), [(1e10,), (3e20,)]),
    "sqrt of two variables": (lambda x, y: jnp.sqrt(x) - jnp.sqrt(x + y), [(1e10, 3.0)]),
    "sin": (lambda x, h: jnp.sin(x + h) - jnp.sin(x), [(1e10, 3.0), (0.7, 1e-9)]),
    "cos": (lambda x, h: jnp.cos(x + h) - jnp.cos(x), [(1e10, 3.0), (0.7, 1e-9)]),
    "tan": (lambda x, h: jnp.tan(x + h) - jnp.tan(x), [(1e10, 3.0), (0.7, 1e-9)]),
    "atan": (lambda x: jnp.arctan(x + 1) - jnp.arctan(x), [(1e6,), (3e10,)]),
    "log": (lambda x: jnp.log(x + 2) - jnp.log(x), [(1e8,), (1e20,)]),
    "cbrt": (lambda x: cbrt(x + 1) - cbrt(x), [(1e9,), (-3e15,)]),
    "power": (lambda x, n: (x + 1) ** (1 / n) - x ** (1 / n), [(1e9, 3.5)]),
    "exp": (lambda x, y: jnp.exp(x) - jnp.exp(y), [(3.0, 3.0000002)]),
    "tanh": (lambda x, y: jnp.tanh(x + y) - jnp.tanh(x), [(0.4, 1e-10)]),
    "logistic": (lambda x, y: jax.nn.sigmoid(x + y) - jax.nn.sigmoid(x), [(0.4, 1e-10)]),
    "reciprocal": (lambda x: 1 / (x + 1) - 1 / x, [(1e8,)]),
    "second difference": (lambda x: 1 / (x + 1) - 2 / x + 1 / (x - 1), [(1e5,)]),
    "reciprocal roots": (lambda x: 1 / jnp.sqrt(x) - 1 / jnp.sqrt(x + 1), [(1e9,)]),
    "products": (lambda x: (x + 1) * jnp.log(x + 1) - x * jnp.log(x) - 1, [(1e9,)]),
    "1 - cos": (lambda x: 1 - jnp.cos(x), [(1e-6,)]),
    "1 - sin": (lambda x: 1 / jnp.cos(x) - 1, [(1e-6,)]),
    "exp - 1": (lambda a, x: jnp.exp(a * x) - 1, [(1e-6, 0.3)]),
    "second difference of exp": (lambda x: jnp.exp(x) - 2 + jnp.exp(-x), [(1e-5,)]),
    "quadratic": (lambda a, b, c: (-b + jnp.sqrt(b * b - 4 * a * c)) / (2 * a), [(1.0, 1e7, 1.0), (1e-20, 3.0, 2.0)]),
    "conjugate of a sum": (lambda x, y: jnp.sqrt(x * x + y * y) - x, [(1e10, 1.0)]),
    "log1p": (lambda x: jnp.log(1 + x), [(1e-9,)]),
    "log of a ratio": (lambda x: jnp.log((1 - x) / (1 + x)), [(1e-9,)]),
    "softplus": (lambda x: jnp.log(1 + jnp.exp(x)), [(100.0,), (-30.0,)]),
    "log sigmoid": (lambda x: jnp.log(1 / (1 + jnp.exp(-x))), [(-100.0,), (20.0,)]),
    "log of 1 - sigmoid": (lambda x: jnp.log(1 - jax.nn.sigmoid(x)), [(100.0,)]),
    "entropy of a sigmoid": (_entropy_of_sigmoid, [(-30.0,), (30.0,), (2.0,)]),
    "log cosh": (lambda x: jnp.log((jnp.exp(x) + jnp.exp(-x)) / 2), [(100.0,), (1e-3,)]),
    "logaddexp": (lambda x, y: jnp.log(jnp.exp(x) + jnp.exp(y)), [(100.0, 99.0)]),
    "log of a product": (lambda x, y: jnp.log(y * jnp.exp(x)), [(100.0, 3.0), (-200.0, 0.5)]),
    "exponential quotient": (lambda x: jnp.exp(x) / (jnp.exp(x) - 1), [(100.0,), (1e-9,)]),
    "softmax": (lambda x, y: jnp.exp(x) / (jnp.exp(x) + jnp.exp(y)), [(100.0, 99.0)]),
    "tanh of exponentials": (
        lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)),
        [(100.0,), (1e-9,)],
    ),
    "asinh": (lambda x: jnp.log(x + jnp.sqrt(x * x + 1)), [(1e-9,), (-1e10,)]),
    "compound interest": (lambda x, n: (1 + x) ** n - 1, [(1e-9, 12.0)]),
    "acos": (lambda x: jnp.arccos(1 - x), [(1e-9,)]),
    "norm": (lambda x, y: jnp.sqrt(x * x + y * y), [(1e-30, 2e-30), (3e30, 1e30)]),
    "difference of products": (lambda a, b, c, d: a * b - c * d, [(2396747.0, 7.0, 7.0, 2396747.5)]),
    "root of a square": (lambda a, x: jnp.sqrt((a * x) * (a * x)), [(1e-15, 1e-10), (1e15, -1e10)]),
    "range": (lambda a, b, t: a * b / ((t + a) * (t + a)), [(1e25, 3.0, 2e25)]),
    "like terms": (lambda a, b: a - (a + b) / 2, [(16777215.0, 16777214.0), (3.0, 3.0000002)]),
    "area of a triangle": (_heron, [(1.0, 1.0, 1.9999999), (3.0, 3.0000002, 5.9999998)], 16.0),
    "central angle": (_central_angle, [(0.5, 0.5001, 1.0, 1.0002), (-0.3, -0.3, 2.0, 2.0001)]),
    "weight of a slerp": (lambda x, t: jnp.sin((1 - t) * x) / jnp.sin(x), [(1e-3, 0.3), (1e-2, 0.75)]),
    "quotient of logarithms": (lambda x, t: jnp.log1p(t * x) / jnp.log1p(x), [(1e-3, 0.3), (1e-2, 2.0)]),
    "slope of a decaying sum": (lambda x: (1 + x) * jnp.exp(-x), [(1e-4,), (-1e-6,), (20.0,)]),
    "Matérn 3/2": (_matern_3, [(1e-4,), (-1e-6,), (10.0,)]),
    "Matérn 5/2": (_matern_5, [(1e-3,), (-1e-6,), (10.0,)]),
    "slope of a ratio": (lambda x: (x - 1) / (x + 1), [(1e10,)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes(name):
    check(*CASES[name])


@pytest.mark.parametrize(("kernel", "curvature"), [(_matern_3, -3), (_matern_5, -5 / 3)])
def test_second_derivatives_of_even_functions(kernel, curvature):
    """At 0, where |x| has no derivative, and near it, within 4 ulp."""
    second = jax.jit(jax.grad(jax.grad(stable(kernel))))
    for x in (0.0, 1e-12, -1e-12):
        np.testing.assert_allclose(second(jnp.float32(x)), curvature, rtol=4 * 2**-24)
    with jax.enable_x64(True):
        wanted = jax.grad(jax.grad(kernel))(np.float64(np.float32(0.3)))
    np.testing.assert_allclose(second(np.float32(0.3)), np.asarray(wanted), rtol=2**-22)


HEALTHY = {
    "axpy": lambda a, b, c: a * b + c,
    "centred": lambda x, m: x - m,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "interpolation": lambda a, b, t: a + (b - a) * t,
    "gate": lambda z, n, h: (1 - z) * n + z * h,
    "layer norm": lambda x, m, v, g: (x - m) * jax.lax.rsqrt(v + 1e-5) * g,
    "softmax, shifted": lambda x, m, s: jnp.exp(x - m) / s,
    "cross entropy": lambda x, y: jnp.maximum(x, 0) - x * y + jnp.log1p(jnp.exp(-jnp.abs(x))),
    "huber": lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_code_is_left_alone(name):
    f = HEALTHY[name]
    arity = 1 if name in ("gelu", "silu", "softplus") else f.__code__.co_argcount
    assert not firings(f, arity)


def two_sum(a, b):
    s = a + b
    t = s - a
    return (a - (s - t)) + (b - t)


def kahan_step(s, c, x):
    y = x - c
    t = s + y
    return (t - s) - y


def split(a):
    c = 4097 * a
    return c - (c - a)


def log1p_of_the_hp15c(x):
    u = 1 + x
    return jnp.log(u) * x / (u - 1)


@pytest.mark.parametrize("f", [two_sum, kahan_step, split, log1p_of_the_hp15c])
def test_error_free_transforms_are_left_alone(f):
    assert not firings(f, f.__code__.co_argcount)


def test_a_firing_says_what_it_did():
    (firing,) = firings(lambda x: jnp.sqrt(x + 1) - jnp.sqrt(x), 1)
    assert firing.before == "sqrt(x + 1) - sqrt(x)"
    assert firing.after == "1/(sqrt(x + 1) + sqrt(x))"
    assert firing.rule and firing.reason
