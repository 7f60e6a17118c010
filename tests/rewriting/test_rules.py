"""The rules over whole arrays: what they match and what they must not, against float64 of the stable form."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad as rad

INF = np.inf


def _log_mean_exp(x: Any) -> Any:
    m = x.max(-1, keepdims=True)
    return np.log(np.mean(np.exp(x - m), -1)) + m[..., 0]


def _softmax(x: Any, axis: int = -1) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


X = np.array([[700.0, -300.0, 20.0], [-900.0, -901.0, -905.0]])
RULES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], np.ndarray, str]] = {
    "logsumexp of rows": (
        lambda x: jnp.log(jnp.sum(jnp.exp(x), -1)), lambda x: _log_mean_exp(x) + np.log(3), X, "log-space"),
    "logsumexp of columns, kept": (
        lambda x: jnp.log(jnp.sum(jnp.exp(x), 0, keepdims=True)),
        lambda x: (_log_mean_exp(x.T) + np.log(2))[None], X, "log-space"),
    "log of a mean": (lambda x: jnp.log(jnp.exp(x).mean(1)), _log_mean_exp, X, "log-space"),
    "softmax of rows": (lambda x: jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True), _softmax, X, "softmax"),
    "softmax of columns": (lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), 0), lambda x: _softmax(x, 0), X, "softmax"),
    "log of a picked probability": (
        lambda x: jnp.log((jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True))[jnp.arange(2), jnp.array([0, 2])]),
        lambda x: np.array([0.0, -905 + 900 - np.log(np.exp(0) + np.exp(-1) + np.exp(-5))]), X, "log-space"),
    "log-softmax by hand": (
        lambda x: x - jnp.log(jnp.sum(jnp.exp(x), 1, keepdims=True)),
        lambda x: x - (_log_mean_exp(x) + np.log(3))[:, None], X, "log_softmax"),
    "log of a product": (lambda x: jnp.log(jnp.prod(jnp.exp(x), 1)), lambda x: x.sum(1), X, "log-space"),
    "log of a ratio of sums": (
        lambda x: jnp.log(jnp.sum(jnp.exp(x), 1) / jnp.sum(jnp.exp(x - 3), 1)), lambda x: np.full(2, 3.0), X, "log-space"),
    "log of a squared sum": (
        lambda x: jnp.log(jnp.sum(jnp.exp(x), 1) ** 2), lambda x: 2 * (_log_mean_exp(x) + np.log(3)), X, "log-space"),
    "log of weights of both signs": (
        lambda x: jnp.log(jnp.sum(jnp.array([2.0, -1.0, 1.0]) * jnp.exp(x), 1)),
        lambda x: np.array([700 + np.log(2), -900 + np.log(2 - np.exp(-1) + np.exp(-5))]), X, "log-space"),
    "product of mixtures": (
        lambda x: jnp.log(jnp.prod(jnp.sum(0.5 * jnp.exp(x), 1))),
        lambda x: np.sum(_log_mean_exp(x) + np.log(1.5)), X, "log-space"),
    "1 - product": (
        lambda x: 1 - jnp.prod(jax.nn.sigmoid(x), 1), lambda x: -np.expm1(-np.log1p(np.exp(-x)).sum(1)),
        np.array([[30.0, 25.0], [40.0, 20.0]]), "log-space"),
    "norm of rows": (lambda x: jnp.sqrt(jnp.sum(x**2, 1)), lambda x: np.hypot(x[:, 0], x[:, 1]),
                     np.array([[3e25, 4e25], [3e-25, 4e-25]]), "norm"),
    "root mean square": (lambda x: jnp.sqrt(jnp.mean(x * x, 1)), lambda x: np.hypot(x[:, 0], x[:, 1]) / np.sqrt(2),
                         np.array([[3e25, 4e25], [3e-25, 4e-25]]), "norm"),
    "dot with itself": (lambda x: jnp.sqrt(x @ x), np.linalg.norm, np.array([3e25, 4e25]), "norm"),
    "eighth power mean": (lambda x: jnp.mean(x**8, -1) ** (1 / 8), lambda x: (np.mean(x**8, -1)) ** (1 / 8),
                          np.array([[1e7, 2e7], [1e-8, 2e-8]]), "norm"),
    "norm of a real exponent": (
        lambda x: jnp.sum(jnp.abs(x) ** 20.0) ** (1 / 20), lambda x: np.sum(np.abs(x) ** 20) ** (1 / 20),
        np.array([1e-3, 2e-3, -3e-3]), "norm"),
    "geometric mean": (lambda x: jnp.prod(x) ** (1 / 30), lambda x: np.exp(np.mean(np.log(x))),
                       1e-3 * np.arange(1.0, 31.0), "log-space"),
    "variance": (lambda x: jnp.mean(x**2, 1) - jnp.mean(x, 1) ** 2, lambda x: x.var(1),
                 np.array([[4096.0, 4097.0, 4098.0]]), "variance"),
    "covariance": (lambda x: jnp.mean(x[0] * x[1]) - jnp.mean(x[0]) * jnp.mean(x[1]),
                   lambda x: np.mean((x[0] - x[0].mean()) * (x[1] - x[1].mean())),
                   np.array([[4096.0, 4097.0, 4099.0], [8192.0, 8190.0, 8194.0]]), "variance"),
    "entropy with a zero": (lambda x: -jnp.sum(x * jnp.log(x)), lambda x: np.log(2), np.array([0.0, 0.5, 0.5]), "limit"),
    "product in a scan": (
        lambda x: jnp.log(jax.lax.scan(lambda c, y: (c * y, None), 1.0, x)[0]), lambda x: np.sum(np.log(x)),
        np.linspace(0.01, 0.1, 100), "log-space"),
    "forward algorithm": (
        lambda x: jnp.log(jnp.sum(jax.lax.scan(lambda c, y: ((x @ c) * y, None), jnp.ones(2), jnp.full(90, 0.01))[0])),
        lambda x: np.log(2) + 90 * np.log(0.01 * 0.75), np.array([[0.5, 0.25], [0.25, 0.5]]), "log-space"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    f, truth, x, rule = RULES[name]
    given = jnp.asarray(x, jnp.float32)
    want = truth(np.asarray(given, np.float64))
    stable = rad.stabilize(f)
    got = np.asarray(stable(given), np.float64)
    assert got.shape == np.shape(f(given))
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-37)
    assert rule in {r.rule for r in stable.rewrites(given)}
    plain = np.asarray(f(given), np.float64)
    with np.errstate(invalid="ignore"):
        assert not np.all(np.abs(plain - want) <= 1e-5 * np.abs(want)), (
            "the plain form is right: the test shows nothing"
        )
    gradient = jax.grad(lambda x: jnp.sum(stable(x)))(given)
    assert not np.isnan(np.asarray(gradient)).any()


UNLIKE: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "normalised over another axis": (lambda x: jnp.exp(x) / jnp.exp(x).sum(0, keepdims=True).T, np.ones((3, 3))),
    "normalised by another sum": (lambda x: jnp.exp(x) / jnp.exp(2 * x).sum(1, keepdims=True), np.ones((2, 3))),
    "less another normaliser": (lambda x: x - jnp.log(jnp.sum(jnp.exp(2 * x), 1, keepdims=True)), np.ones((2, 3))),
    "square array, wrong axis": (lambda x: x - jnp.log(jnp.sum(jnp.exp(x), 1))[None, :], np.arange(9.0).reshape(3, 3)),
    "mean of another": (lambda x: jnp.mean(x**2, 1) - jnp.mean(x + 1, 1) ** 2, np.arange(6.0).reshape(2, 3)),
    "mean over another axis": (lambda x: jnp.mean(x**2, 1) - jnp.mean(x, 0) ** 2, np.arange(9.0).reshape(3, 3)),
    "sum, not mean": (lambda x: jnp.mean(x**2) - jnp.sum(x) ** 2, np.arange(6.0)),
    "odd power": (lambda x: jnp.sum(jnp.abs(x) * x**2) ** (1 / 3), np.arange(6.0)),
    "negative sum under the logarithm": (lambda x: jnp.log(-jnp.sum(jnp.exp(x))), np.ones(3)),
    "negative product under the logarithm": (lambda x: jnp.log(jnp.prod(x)), np.array([-1.0, 2.0])),
    "positive product of negatives": (lambda x: jnp.log(jnp.prod(x)), np.array([-1.0, -2.0])),
    "two carries": (
        lambda x: jnp.log(jax.lax.scan(lambda c, y: ((c[0] * y, c[1] + c[0]), None), (1.0, 0.5), x)[0][0]), np.ones(3)),
    "affine carry": (lambda x: jnp.log(jax.lax.scan(lambda c, y: (c * y + 1, None), 1.0, x)[0]), np.ones(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_rules_do_not_match_what_looks_alike(name: str) -> None:
    f, x = UNLIKE[name]
    given = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(rad.stabilize(f)(given), f(given), rtol=2e-6)
    total = lambda h: jax.grad(lambda x: jnp.nansum(h(x)))(given)  # noqa: E731
    np.testing.assert_allclose(total(rad.stabilize(f)), total(f), rtol=1e-5, atol=1e-5)
