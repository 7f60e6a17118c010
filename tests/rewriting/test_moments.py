"""Variances, covariances, correlations and regressions by raw sums, however they are normalised and summed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from tests._subset import thinned
from tests.rewriting._weighted import plain_of, weighted

N = 6
X = (1e4 + np.random.default_rng(0).normal(size=(N, 3))).astype(np.float32)
W = jnp.array([0.1, 0.2, 0.1, 0.3, 0.2, 0.1], jnp.float32)


def correlation(x: Any) -> Any:
    a, b = x[:, 0], x[:, 1]
    above = N * jnp.sum(a * b) - jnp.sum(a) * jnp.sum(b)
    return above / jnp.sqrt((N * jnp.sum(a**2) - jnp.sum(a) ** 2) * (N * jnp.sum(b**2) - jnp.sum(b) ** 2))


def regression(x: Any) -> Any:
    a, b = x[:, 0], x[:, 1]
    return (N * jnp.sum(a * b) - jnp.sum(a) * jnp.sum(b)) / (N * jnp.sum(a**2) - jnp.sum(a) ** 2)


def _by_sum(w: Any, x: Any) -> Any:
    return w @ x**2 / jnp.sum(w) - (w @ x / jnp.sum(w)) ** 2


def scanned(x: Any) -> Any:
    def step(carry, v):
        k, s, q = carry
        return (k + 1, s + v, q + v * v), None

    zero = jnp.zeros(3, x.dtype)
    (k, s, q), _ = lax.scan(step, (jnp.zeros((), x.dtype), zero, zero), x)
    return q / k - (s / k) ** 2


def looped(x: Any) -> Any:
    def step(i, carry):
        s, q, p = carry
        v = 2 * jnp.maximum(x[i], 1.0)
        return s + v, q + v**2, p * 0.5 + v

    zero = jnp.zeros(3, x.dtype)
    s, q, p = lax.fori_loop(0, N, step, (zero, zero, zero))
    return (q - s**2 / N) / (N - 1) + 1e-3 * p


CASES: dict[str, Callable[[Any], Any]] = {
    "sums": lambda x: (jnp.sum(x**2) - jnp.sum(x) ** 2 / (3 * N)) / (3 * N - 1),
    "sums of columns": lambda x: (jnp.sum(x**2, 0) - jnp.sum(x, 0) ** 2 / N) / (N - 1),
    "n times the mean": lambda x: jnp.sum(x**2, 0) - N * jnp.mean(x, 0) ** 2,
    "n times the sum": lambda x: (N * jnp.sum(x**2, 0) - jnp.sum(x, 0) ** 2) / (N * (N - 1)),
    "with its sign changed": lambda x: jnp.mean(x, 0) ** 2 - jnp.mean(x**2, 0),
    "deviation": lambda x: jnp.sqrt(jnp.mean(x**2, 0) - jnp.mean(x, 0) ** 2),
    "weights": lambda x: jnp.sum(W[:, None] * x**2, 0) - jnp.sum(W[:, None] * x, 0) ** 2,
    "weights, dot": lambda x: W @ x**2 - (W @ x) ** 2,
    "average": lambda x: jnp.average(x**2, 0, W) - jnp.average(x, 0, W) ** 2,
    "weights by their sum": lambda x: _by_sum(W.astype(x.dtype), x),
    "softmax": lambda x: jax.nn.softmax(x[:, 1] - 1e4) @ (x[:, 0] ** 2) - (jax.nn.softmax(x[:, 1] - 1e4) @ x[:, 0]) ** 2,
    "covariance": lambda x: (jnp.sum(x[:, 0] * x[:, 1]) - jnp.sum(x[:, 0]) * jnp.sum(x[:, 1]) / N) / (N - 1),
    "covariance, dot": lambda x: (x[:, 0] @ x[:, 1]) / N - jnp.mean(x[:, 0]) * jnp.mean(x[:, 1]),
    "covariance matrix": lambda x: x.T @ x / N - jnp.outer(x.mean(0), x.mean(0)),
    "correlation": correlation,
    "regression": regression,
    "running sums": scanned,
    "running sums of a function": looped,
}  # fmt: skip


plainly = plain_of(CASES, X)


@pytest.mark.parametrize("name", thinned(list(CASES), 3))
def test_values_and_slopes(name):
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(rad.stabilize(weighted(CASES[name])))))(X[None])
    want, plain = plainly(np.float64)[name], plainly(np.float32)[name]
    largest = np.abs(want[1]).max()
    assert not abs(plain[0] - want[0]) <= 1e-3 * abs(want[0]) or not np.abs(plain[1] - want[1]).max() <= 1e-4 * largest
    np.testing.assert_allclose(value[0], want[0], rtol=2e-6)
    np.testing.assert_allclose(slope[0], want[1], rtol=1e-5, atol=2e-6 * largest)


LEFT = {
    "another axis": lambda x: jnp.mean(x**2, 1) - jnp.mean(x) ** 2,
    "another array": lambda x: jnp.mean(x**2) - jnp.mean(x + 1) ** 2,
    "another count": lambda x: jnp.mean(x, 0) ** 2 - jnp.sum(x**2, 0) / (N - 1),
    "no mean": lambda x: jnp.sum(x**2) - jnp.sum(x) ** 2,
    "a product of matrices": lambda x: x.T @ x - jnp.outer(x[0], x[1]),
    "a carry that decays": lambda x: _decaying(x),
}


def _decaying(x):
    (s, q), _ = lax.scan(lambda c, v: ((0.9 * c[0] + v, c[1] + v * v), None), (jnp.zeros(3), jnp.zeros(3)), x)
    return q / N - (s / N) ** 2


@pytest.mark.parametrize("name", LEFT)
def test_what_does_not_cancel_is_left_alone(name):
    assert not [r for r in rad.stabilize(LEFT[name]).rewrites(X) if r.rule == "variance"]


def test_weights_that_mask_what_is_far_off():
    w = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0], np.float32)
    x = np.array([10.0, 11.0, 12.0, 13.0, -1e30, 5e18], np.float32)

    def f(x):
        return jnp.sum(w * x**2) / 4 - (jnp.sum(w * x) / 4) ** 2

    np.testing.assert_allclose(rad.stabilize(f)(np.where(w > 0, x, -1e15).astype(np.float32)), 1.25, rtol=1e-6)


def test_hessian_of_a_variance():
    f = rad.stabilize(lambda x: jnp.mean(x**2) - jnp.mean(x) ** 2)
    want = 2 * (np.eye(N) / N - 1 / N**2)
    np.testing.assert_allclose(jax.jit(jax.hessian(f))(X[:, 0]), want, rtol=1e-6)
