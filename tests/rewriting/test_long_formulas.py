"""Formulas that are long: nothing takes long, and nothing fails."""

import functools
import operator
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad as rad


def nested(x, y):
    for _ in range(3):
        x, y = jnp.sin(x * y) + jnp.exp(-x) - 1, jnp.log1p(y * y) - x
    return x + y


def sums_of_many(*x):
    terms = [jnp.exp(a) * b - jnp.log(jnp.abs(a)) for a, b in zip(x, x[1:] + x[:1])]
    return functools.reduce(operator.add, terms)


def products_of_sums(*x):
    return functools.reduce(operator.mul, [a - b + 1 for a, b in zip(x, x[1:] + x[:1])])


def determinant(*x):
    def minor(rows):
        if len(rows) == 1:
            return rows[0][0]
        return sum((-1.0) ** j * rows[0][j] * minor([r[:j] + r[j + 1 :] for r in rows[1:]]) for j in range(len(rows)))

    return minor([list(x[4 * i : 4 * i + 4]) for i in range(4)])


def black_scholes(s, k, r, v, t):
    d = (jnp.log(s / k) + (r + v * v / 2) * t) / (v * jnp.sqrt(t))
    cdf = lambda x: 0.5 * (1 + jax.scipy.special.erf(x * 0.7071067811865476))  # noqa: E731
    return s * cdf(d) - k * jnp.exp(-r * t) * cdf(d - v * jnp.sqrt(t))


@pytest.mark.parametrize(
    ("f", "arity"), [(nested, 2), (sums_of_many, 16), (products_of_sums, 14), (determinant, 16), (black_scholes, 5)]
)
def test_time(f, arity):
    x = [1.1 + 0.1 * i for i in range(arity)]
    start = time.process_time()
    value, slopes = jax.value_and_grad(rad.stabilize(f), tuple(range(arity)))(*x)
    assert time.process_time() - start < 20
    plain, plain_slopes = jax.value_and_grad(f, tuple(range(arity)))(*x)
    np.testing.assert_allclose(value, plain, rtol=1e-4, atol=1e-4 * np.max(np.abs(plain_slopes)))
    np.testing.assert_allclose(slopes, plain_slopes, rtol=2e-3, atol=1e-4 * np.max(np.abs(plain_slopes)))


def test_a_power_near_1_has_its_form_once():
    def focal(x, g):
        return -((1 - jax.nn.sigmoid(x)) ** g) * jnp.log(jax.nn.sigmoid(x))

    g = rad.stabilize(focal)
    sizes = [e.params["formula"].stable.size for e in jax.make_jaxpr(g)(5.0, 2.0).eqns if "formula" in e.params]
    assert max(sizes) < 100
    with jax.enable_x64(True):
        want = jax.hessian(lambda x, g: jax.nn.sigmoid(-x) ** g * jax.nn.softplus(-x), (0, 1))(
            np.float64(5), np.float64(2)
        )
    chex.assert_trees_all_close(jax.hessian(g, (0, 1))(5.0, 2.0), want, rtol=1e-6)
    assert not np.any(np.isnan(jax.hessian(g, (0, 1))(50.0, 2.0)))


def test_constants_stay_in_the_range_of_float64():
    def boys(x):  # the numbers of its series' denominators grow without bound
        return (jnp.sqrt(jnp.pi / x) * jax.scipy.special.erf(jnp.sqrt(x)) / 2 - jnp.exp(-x)) / (2 * x)

    got = [jax.grad(rad.stabilize(boys))(x) for x in (0.1, 0.5, 2.0)]
    np.testing.assert_allclose(got, [-0.186255005, -0.140750537, -0.0529428148], rtol=1e-5)
