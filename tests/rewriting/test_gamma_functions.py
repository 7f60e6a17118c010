"""Log-densities made of logarithms of gamma functions, which are large and cancel."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from jax.scipy import stats
from jax.scipy.special import digamma, gammaln, xlog1py, xlogy

import robustad as rad
from tests._subset import thinned

lg = mp.loggamma


def student(x: Any, v: Any) -> Any:
    return gammaln((v + 1) / 2) - gammaln(v / 2) - 0.5 * jnp.log(v) - 0.5 * (v + 1) * jnp.log(1 + x * x / v)


def student_exactly(x: Any, v: Any) -> Any:
    return lg((v + 1) / 2) - lg(v / 2) - mp.log(v) / 2 - (v + 1) / 2 * mp.log1p(x * x / v)


def poisson(k: Any, rate: Any) -> Any:
    return k * jnp.log(rate) - rate - gammaln(k + 1)


# name: (function, the same by mpmath, points, units in the last place of float32)
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[tuple[float, ...]], float]] = {
    "Student by hand": (student, student_exactly, [(3.0, 1e5), (3.0, 5.0)], 30),
    "Student": (
        stats.t.logpdf,
        lambda x, v: student_exactly(x, v) - mp.log(mp.pi) / 2,
        [(0.5, 1e4), (3.0, 4.0)],
        30,
    ),
    "Poisson by hand": (poisson, lambda k, r: k * mp.log(r) - r - lg(k + 1), [(1e6, 1.01e6), (3.0, 2.5)], 8),
    "Poisson": (
        lambda r: stats.poisson.logpmf(10**6, r),
        lambda r: 10**6 * mp.log(r) - r - lg(10**6 + 1),
        [(1.01e6,)],
        8,
    ),
    "gamma": (stats.gamma.logpdf, lambda x, a: (a - 1) * mp.log(x) - x - lg(a), [(1e6, 1.01e6), (2.5, 3.0)], 8),
    "beta": (
        lambda x, a, b: gammaln(a + b) - gammaln(a) - gammaln(b) + xlogy(a - 1, x) + xlog1py(b - 1, -x),
        lambda x, a, b: lg(a + b) - lg(a) - lg(b) + (a - 1) * mp.log(x) + (b - 1) * mp.log1p(-x),
        [(0.501, 1e6, 1e6), (0.3, 2.0, 3.0)],
        8,
    ),
    "negative binomial": (
        lambda r, p: gammaln(7 + r) - gammaln(r) - gammaln(8.0) + r * jnp.log1p(-p) + 7 * jnp.log(p),
        lambda r, p: lg(7 + r) - lg(r) - lg(8) + r * mp.log1p(-p) + 7 * mp.log(p),
        [(1e5, 7.3e-5), (3.0, 0.4)],
        8,
    ),
    "a rising factorial": (lambda a, b: gammaln(a + b) - gammaln(a), lambda a, b: lg(a + b) - lg(a), [(1e7, 3.0)], 4),
    "digamma": (lambda a: digamma(a + 1) - digamma(a), lambda a: 1 / a, [(1e7,), (2.0,)], 4),
    "log less digamma": (lambda a: jnp.log(a) - digamma(a), lambda a: mp.log(a) - mp.digamma(a), [(1e5,), (1.5,)], 30),
}


@pytest.mark.parametrize("name", thinned(list(CASES), 2))
def test_values_and_slopes(name):
    f, exact, points, bound = CASES[name]
    g = jax.jit(jax.value_and_grad(rad.stabilize(f), tuple(range(len(points[0])))))
    for point in points:
        x = [jnp.float32(v) for v in point]
        value, slopes = g(*x)
        with mp.workdps(50):
            at = [mp.mpf(float(v)) for v in x]
            n = len(at)
            want = [exact(*at), *(mp.diff(exact, tuple(at), tuple(int(i == j) for j in range(n))) for i in range(n))]
        wrong = [abs(float(mp.mpf(float(a)) / b - 1)) * 2**23 for a, b in zip((value, *slopes), want)]
        assert max(wrong) < bound, (point, wrong)
    plain = float(f(*(jnp.float32(v) for v in points[0])))
    with mp.workdps(50):
        truly = float(exact(*(mp.mpf(float(jnp.float32(v))) for v in points[0])))
    assert abs(plain / truly - 1) * 2**23 > 100


def test_a_weight_of_0():
    """(a - 1) log x at a = 1 has a derivative in a; 0 log 0 is 0."""
    g = rad.stabilize(stats.gamma.logpdf)
    np.testing.assert_allclose(jax.grad(g, 1)(2.0, 1.0), np.log(2.0) + np.euler_gamma, rtol=1e-6)
    assert g(0.0, 1.0) == 0
    np.testing.assert_allclose(rad.stabilize(lambda r: stats.poisson.logpmf(0, r))(0.0), 0)


def test_in_float64_and_with_examples():
    """Where no format is wider the value is the plain one's, or closer; decimals have no gamma function."""
    with jax.enable_x64(True):
        x = np.float64(2.5), np.float64(3.5)
        np.testing.assert_allclose(
            rad.stabilize(student)(*x), float(student_exactly(mp.mpf(2.5), mp.mpf(3.5))), rtol=1e-14
        )
        assert np.isfinite(jax.hessian(rad.stabilize(poisson), (0, 1))(np.float64(3), np.float64(1e8))).all()
    measured = rad.stabilize(poisson, examples=[(3.0, 2.5), (1e6, 1.01e6)])
    np.testing.assert_allclose(measured(3.0, 2.5), 3 * np.log(2.5) - 2.5 - np.log(6), rtol=1e-6)
