"""Logarithms of probabilities that were moved, joined, sorted or multiplied by a matrix before."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from tests._subset import thinned
from tests.rewriting._weighted import plain_of, weighted

X = np.array([[0.0, 200.0, 10.0], [300.0, -5.0, 0.0], [1.0, 2.0, 150.0]], np.float32)
LABELS = np.array([0, 1, 2], np.int32)


def softmax(x: Any) -> Any:
    e = jnp.exp(x)
    return e / e.sum(-1, keepdims=True)


p = jax.nn.softmax
CASES: dict[str, Callable[[Any], Any]] = {
    "one-hot, einsum": lambda x: jnp.log(jnp.einsum("ij,ij->i", jax.nn.one_hot(LABELS, 3), p(x))),
    "one-hot, dot": lambda x: jnp.log(jnp.dot(jax.nn.one_hot(0, 3), p(x[0]))),
    "weights": lambda x: jnp.log(softmax(x) @ jnp.array([0.2, 0.3, 0.0])),
    "selection by a mask": lambda x: jnp.log(
        softmax(x) @ (jnp.arange(3)[:, None] <= jnp.arange(2)).astype(jnp.float32)
    ),
    "mixture as a dot": lambda x: jnp.log(jnp.dot(x[2] / 200, jnp.exp(x[0]))),
    "product of two": lambda x: jnp.log(softmax(x) @ softmax(x.T)),
    "matrix of exponentials": lambda x: jnp.log(jnp.exp(x[0]) @ jnp.exp(x) @ jnp.exp(-x[1] / 8)),
    "InfoNCE by diag": lambda x: -jnp.mean(jnp.log(jnp.diag(jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True)))),
    "diagonal": lambda x: jnp.log(jnp.diagonal(p(x))),
    "sort": lambda x: jnp.log(jnp.sort(softmax(x), -1))[:, :2],
    "top_k": lambda x: jnp.log(lax.top_k(p(x), 2)[0]),
    "pad": lambda x: jnp.log(jnp.pad(softmax(x), ((0, 0), (1, 1)), constant_values=1.0)),
    "at set": lambda x: jnp.log(p(x).at[0, 1].set(1.0)),
    "set into ones": lambda x: jnp.log(jnp.ones((3, 4)).at[:, 1:].set(softmax(x))),
    "dynamic_update_slice": lambda x: jnp.log(lax.dynamic_update_slice(jnp.ones((4, 3)), p(x), (1, 0))),
    "maximum with 0": lambda x: jnp.log(jnp.maximum(p(x), 0)),
    "clip": lambda x: jnp.log(jnp.clip(softmax(x), 0, 1)),
    "running sum": lambda x: jnp.log(jnp.cumsum(jnp.exp(x), -1)),
    "running sum from the end": lambda x: jnp.log(lax.cumsum(jnp.exp(x), 0, reverse=True) / 3),
    "sums of segments": lambda x: jnp.log(
        jax.ops.segment_sum(jnp.exp(x).ravel(), jnp.array([0, 0, 1, 2, 2, 1, 0, 1, 1]), 3)
    ),
    "rows of segments": lambda x: jnp.log(jnp.zeros((2, 3)).at[jnp.array([0, 1, 0])].add(p(x))),
    "stack": lambda x: jnp.log(jnp.stack([p(x)[:, 0], p(x)[:, 1]], -1)),
}


plainly = plain_of(CASES, X)


@pytest.mark.parametrize("name", thinned(list(CASES), 3))
def test_values_and_slopes(name):
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(rad.stabilize(weighted(CASES[name])))))(X[None])
    assert not np.isfinite(plainly(np.float32)[name][1]).all()
    want = plainly(np.float64)[name]
    np.testing.assert_allclose(value[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(slope[0], want[1], rtol=1e-5, atol=1e-5)


def test_a_layer_under_a_logarithm_stays_a_matrix_product():
    def f(w, x):
        return jnp.log(jnp.maximum(jax.nn.sigmoid(x @ w) @ w, 1e-6))

    rules = [r.rule for r in rad.stabilize(f).rewrites(np.ones((4, 4), np.float32), np.ones((2, 4), np.float32))]
    assert "log-space" not in rules


def test_weights_that_are_0():
    """Their own derivative is that of a sum: finite."""
    f = lambda w, x: jnp.log(jnp.dot(w, jnp.exp(x)))  # noqa: E731
    w, x = np.array([0.0, 0.7], np.float32), np.array([100.0, 90.0], np.float32)
    of_weights, of_logits = jax.grad(rad.stabilize(f), (0, 1))(w, x)
    np.testing.assert_allclose(of_weights, [np.exp(10) / np.float64(w[1]), 1 / np.float64(w[1])], rtol=2e-6)
    np.testing.assert_allclose(of_logits, [0, 1], rtol=1e-6)


def test_a_network_below_a_logarithm_is_not_searched_for_ever():
    def f(x):
        for _ in range(80):
            x = x + x * jax.nn.relu(x + x)
        return jnp.log(jnp.sum(x))

    assert [r.rule for r in rad.stabilize(f).rewrites(np.ones(4, np.float32)) if r.rule == "log-space"] == []


@pytest.mark.parametrize("mu", [(0.1, 3.0), (4.0, 5.5), (4.99, 5.01), (5.0, -40.0)])
def test_responsibilities(mu):
    """Shares of exponentials with weights, that all vanish, that one outweighs, and moderate ones; against mpmath."""
    weights, scale = np.float32([0.25, 0.75]), np.float32([0.01, 0.02])

    def responsibility(mu):
        density = weights * jnp.exp(-((5.0 - mu) ** 2) / (2 * scale**2)) / scale
        return (density / jnp.sum(density))[0]

    def exact(a, b):
        d = [
            mp.mpf(float(w)) * mp.exp(-((5 - m) ** 2) / (2 * mp.mpf(float(s)) ** 2)) / mp.mpf(float(s))
            for m, w, s in zip((a, b), weights, scale)
        ]
        return d[0] / (d[0] + d[1])

    point = np.float32(mu)
    value, slope = jax.jit(jax.value_and_grad(rad.stabilize(responsibility)))(point)
    with mp.workdps(60):
        at = [mp.mpf(float(m)) for m in point]
        want = [exact(*at), mp.diff(exact, at, (1, 0)), mp.diff(exact, at, (0, 1))]
    np.testing.assert_allclose([value, *slope], [float(w) for w in want], rtol=3e-5, atol=1e-30)
    if mu == (0.1, 3.0):
        assert np.isnan(responsibility(point))


@pytest.mark.parametrize("weights", [[0.2, 0.0, 1.0], [0.2, -0.3, 1.0], [1.0, 0.5, 0.0]])
def test_shares_with_weights_of_any_sign(weights):
    """Slopes in weights that are 0, too, and second slopes."""

    def f(x, w):
        e = w * jnp.exp(x)
        return jnp.sum(e / jnp.sum(e) * jnp.array([1.0, 2.0, 3.0]))

    x, w = np.float32([1.0, 2.0, 3.0]), np.float32(weights)
    g = rad.stabilize(f)
    got = jax.jit(lambda x, w: (jax.grad(g, (0, 1))(x, w), jax.hessian(g, (0, 1))(x, w)))(x, w)
    with jax.enable_x64(True):
        want = jax.grad(f, (0, 1))(np.float64(x), np.float64(w)), jax.hessian(f, (0, 1))(np.float64(x), np.float64(w))
    chex.assert_trees_all_close(got, jax.tree.map(np.asarray, want), rtol=2e-5, atol=2e-6)


def test_a_mask_as_weights():
    mask = np.float32([1.0, 1.0, 0.0])

    def f(x):
        e = jnp.exp(x) * mask
        return (e / jnp.sum(e))[0]

    x = np.float32([100.0, 101.0, 500.0])
    value, slope = jax.value_and_grad(rad.stabilize(f))(x)
    share = 1 / (1 + np.e)
    np.testing.assert_allclose(value, share, rtol=1e-6)
    np.testing.assert_allclose(slope, [share * (1 - share), -share * (1 - share), 0], rtol=1e-6)
