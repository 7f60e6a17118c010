"""Sums that cancel in a part, whatever else is added to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad as rad
from tests.rewriting._scalar import check, firings

# name: (function of another summand and of what cancels, points)
CASES = {
    "second difference": (lambda c, x: c + (jnp.exp(x) - 2 + jnp.exp(-x)), [(0.0, 1e-4)]),
    "in another order": (lambda c, x: (c + jnp.exp(x)) - (2 - jnp.exp(-x)), [(0.0, 1e-4)]),
    "cos": (lambda c, x: c + (1 - jnp.cos(x)), [(1e-10, 1e-4)]),
    "conjugates, subtracted": (lambda c, x: c - (jnp.sqrt(x + 1) - jnp.sqrt(x)), [(1e-5, 1e10)]),
    "log": (lambda c, x, y: c + (jnp.log(x + y) - jnp.log(x)), [(1e-9, 1e8, 2.0)]),
    "reciprocals": (lambda c, x: c + (1 / (x + 1) - 2 / x + 1 / (x - 1)), [(1e-15, 1e5)]),
    "a series": (lambda c, x: c + (x - jnp.sin(x)), [(1e-12, 1e-4)]),
    "two parts": (lambda c, x, y: c + (1 - jnp.cos(x)) + (jnp.exp(y) - 1 - y), [(1e-10, 1e-4, 1e-5)]),
    "a product": (lambda c, w, x: c * w + (1 - jnp.cos(x)), [(1e-10, 1.0, 1e-4)]),
    "a function": (lambda c, x: jnp.sin(c) + (1 - jnp.cos(x)), [(1e-10, 1e-4)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes(name):
    check(*CASES[name])


def test_the_whole_is_not_taken_apart_where_it_cancels_as_a_whole():
    (firing,) = firings(lambda x, y: (1 - jnp.cos(x)) - (1 - jnp.cos(y)), 2)
    assert firing.rule == "difference of cos"


def test_in_the_carry_of_a_scan():
    def f(xs):
        return jax.lax.scan(lambda c, x: (c + (jnp.exp(x) - 2 + jnp.exp(-x)), None), jnp.float32(0), xs)[0]

    xs = jnp.full(3, 1e-4, jnp.float32)
    assert jax.grad(f)(xs)[0] != jax.grad(rad.stabilize(f))(xs)[0]
    np.testing.assert_allclose(jax.grad(rad.stabilize(f))(xs), 2 * np.sinh(np.float64(xs)), rtol=3e-7)
    np.testing.assert_allclose(rad.stabilize(f)(xs), 3 * 4 * np.sinh(np.float64(xs[0]) / 2) ** 2, rtol=3e-7)


def test_weights_in_a_difference():
    """x log x is a factor like another where it cancels, and still 0 at 0."""
    f = lambda n: ((n + 1) * jnp.log(n + 1) - n * jnp.log(n)) - 1  # noqa: E731
    value, slope = jax.value_and_grad(rad.stabilize(f))(1e9)
    np.testing.assert_allclose([value, slope], [np.log(1e9), 1e-9], rtol=1e-6)
    entropy = rad.stabilize(lambda p: -(p * jnp.log(p) + (1 - p) * jnp.log(1 - p)))
    np.testing.assert_allclose(jax.vmap(entropy)(jnp.array([0.0, 1.0, 1e-10])), [0, 0, 2.402585e-9], rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(jax.grad(entropy))(jnp.array([0.0, 1.0])), [np.inf, -np.inf])


def test_a_number_beside_arrays_is_mended_once():
    """Bias correction: the step's number is a scalar, and the arrays around it are left alone."""

    def f(m, t):
        return m * 2.0 / (1 - 0.999**t)

    program = jax.make_jaxpr(rad.stabilize(f))(jnp.ones(8), 1.0)
    shapes = [e.outvars[0].aval.shape for e in program.eqns if e.primitive.name == "stable"]
    assert shapes == [()]


def test_an_optimizer_step_is_left_alone():
    def step(p, g, m, v):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return p - 1e-3 * (m / (1 - 0.9**3)) / (jnp.sqrt(v / (1 - 0.999**3)) + 1e-8)

    assert not firings(step, 4)


def test_a_difference_of_products_is_exact():
    cross = rad.stabilize(lambda a, b, c, d: a * b - c * d)
    values = [np.float32(x) for x in (2396747, 7, 7, 2396747)]
    assert cross(*values) == jax.jit(cross)(*values) == 0
