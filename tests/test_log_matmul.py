"""log_matmul: both ends of the range, masks, gradients; the forward algorithm of a hidden Markov model."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax

from robustad.stability import log_matmul
from tests._subset import thinned

INF = float("inf")


def reference(a, b):
    """The value and the weights of each term, in float64."""
    terms = a.astype(np.float64)[..., :, :, None] + b.astype(np.float64)[..., None, :, :]
    m = np.maximum(terms.max(-2, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        value = m[..., 0, :] + np.log(np.exp(terms - m).sum(-2))
    return value, np.exp(terms - np.where(np.isfinite(value), value, 0)[..., :, None, :])


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(np.float32) * 3 for s in ((2, 5, 6), (2, 6, 7)))
    meets_a, meets_b = a.copy(), b.copy()  # the maximum of a row of a meets the low end of a column of b
    meets_a[0, 0, 0], meets_b[0, 0, 1], meets_b[0, 1, 1] = 300, -300, -150
    masked_a, masked_b = a.copy(), b.copy()
    masked_a[0, 0], masked_b[1, :, 2], masked_a[1, 2, 3] = -INF, -INF, -INF
    both_a, both_b = np.where(np.isinf(masked_a), masked_a, meets_a), np.where(np.isinf(masked_b), masked_b, meets_b)
    return {
        "small": (np.full((4, 4), -200, np.float32), np.full((4, 4), -200, np.float32)),
        "plain": (a, b),
        "meets": (meets_a, meets_b),
        "masked": (masked_a, masked_b),
        "both": (both_a, both_b),
    }


@pytest.mark.parametrize("name", thinned(list(cases()), 2))
def test_values_and_gradients(name):
    a, b = cases()[name]
    exact, weights = reference(a, b)
    value = np.asarray(log_matmul(a, b))
    np.testing.assert_array_equal(np.isfinite(value), np.isfinite(exact))
    # relative to the result as a number, and to the largest term's logarithms
    size = 1 + np.abs(a).max(where=np.isfinite(a), initial=0) + np.abs(b).max(where=np.isfinite(b), initial=0)
    finite = np.isfinite(exact)
    assert np.abs(np.where(finite, value, 0) - np.where(finite, exact, 0)).max() <= size * 2.0**-23
    g = np.where(finite, np.cos(np.arange(value.size)).reshape(value.shape), 0).astype(np.float32)

    def total(a, b):
        return jnp.sum(jnp.where(finite, log_matmul(a, b), 0) * g)

    in_a, in_b = jax.jit(jax.grad(total, (0, 1)))(a, b)
    tolerance = 4 * size * 2.0**-23
    np.testing.assert_allclose(in_a, (weights * g[..., :, None, :]).sum(-1), atol=tolerance)
    np.testing.assert_allclose(in_b, (weights * g[..., :, None, :]).sum(-3), atol=tolerance)
    forward = jax.jit(lambda a, b: jax.jvp(log_matmul, (a, b), (jnp.ones_like(a), jnp.zeros_like(b))))(a, b)[1]
    np.testing.assert_allclose(forward, finite, atol=tolerance)
    assert np.isfinite(jax.jit(jax.grad(lambda a: jnp.sum(jnp.tanh(jax.grad(total)(a, b)))))(a)).all()


def test_the_plain_forms_fail():
    x = np.full((4, 4), -200, np.float32)
    assert (jnp.log(jnp.exp(x) @ jnp.exp(x)) == -INF).all()
    np.testing.assert_allclose(log_matmul(x, x), -400 + np.log(4), rtol=1e-7)
    a, b = cases()["meets"]
    scaled = jnp.log(jnp.exp(a - a.max(-1, keepdims=True)) @ jnp.exp(b - b.max(-2, keepdims=True)))
    value = scaled + a.max(-1, keepdims=True) + b.max(-2, keepdims=True)
    assert not np.allclose(value, reference(a, b)[0], rtol=1e-3)


def test_second_derivatives():
    a, b = (z[0] for z in cases()["plain"])
    plain = jax.jit(jax.hessian(lambda a: jnp.log(jnp.exp(a) @ jnp.exp(b))[0, 0]))(a)
    for mode in (jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        np.testing.assert_allclose(jax.jit(mode(lambda a: log_matmul(a, b)[0, 0]))(a), plain, atol=1e-6)
    a, b = (z[0] for z in cases()["meets"])
    weights = reference(a, b)[1][0, :, 1]
    second = jax.jit(jax.hessian(lambda a: log_matmul(a, b)[0, 1]))(a)[0, :, 0]
    np.testing.assert_allclose(second, np.diag(weights) - np.outer(weights, weights), atol=2e-4)


def test_infinities_shapes_and_errors():
    a = jnp.array([[INF, 1.0]])
    b = jnp.array([[1.0], [2.0]])
    assert log_matmul(a, b)[0, 0] == INF
    np.testing.assert_array_equal(jax.grad(lambda a: log_matmul(a, b)[0, 0])(a), [[1, 0]])
    assert np.isnan(log_matmul(jnp.array([[jnp.nan, 1.0]]), b)).all()
    x, y = jnp.zeros((5, 3, 4)), jnp.zeros((4, 2))
    assert log_matmul(x, y).shape == (5, 3, 2) and log_matmul(x, y[:, 0]).shape == (5, 3)
    assert log_matmul(x[0, 0], y).shape == (2,) and log_matmul(x[0, 0], y[:, 0]).shape == ()
    assert jax.vmap(log_matmul, (0, None))(x, y).shape == (5, 3, 2)
    assert log_matmul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"`a` has shape \(5, 3, 4\) and `b` \(5, 3, 4\)"):
        log_matmul(x, x)


def test_the_forward_algorithm():
    """log p(observations) of a hidden Markov model with forbidden transitions; the gradients are expected counts."""
    steps, states = 120, 4
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(states), states)
    transition[0, 2] = transition[3, 1] = 0
    with np.errstate(divide="ignore"):
        transition = np.log(transition / transition.sum(1, keepdims=True)).astype(np.float32)
    emission = (rng.normal(size=(steps, states)) * 5 - 50).astype(np.float32)

    def log_likelihood(transition, emission):
        def step(alpha, e):
            return log_matmul(alpha, transition) + e, None

        alpha = lax.scan(step, emission[0], emission[1:])[0]
        return log_matmul(alpha, jnp.zeros(states))

    value, (counts, posterior) = jax.jit(jax.value_and_grad(log_likelihood, (0, 1)))(transition, emission)
    with mpmath.workprec(100):
        t = mpmath.matrix([[mpmath.exp(float(v)) if v > -INF else 0 for v in row] for row in transition])
        alpha = mpmath.matrix([[mpmath.exp(float(v)) for v in emission[0]]])
        for row in emission[1:]:
            alpha = alpha * t
            alpha = mpmath.matrix([[alpha[0, j] * mpmath.exp(float(row[j])) for j in range(states)]])
        exact = float(mpmath.log(mpmath.fsum(alpha)))
    assert value == pytest.approx(exact, rel=1e-6)
    np.testing.assert_allclose(posterior.sum(1), 1, rtol=1e-3)
    assert counts[0, 2] == 0 and counts[3, 1] == 0
    assert counts.sum() == pytest.approx(steps - 1, rel=1e-3)


@pytest.mark.parametrize("t", [40.0, 45.0, 60.0])
def test_second_derivatives_of_small_entries(t):
    """Two equal terms e^-t: the products of inverse sums are out of range from 44 on. Relative to e^ of a value near t."""
    b = jnp.array([[-t], [0.0]])
    got = jax.hessian(lambda a: log_matmul(a[None], b)[0, 0])(jnp.array([0.0, -t]))
    np.testing.assert_allclose(got, np.array([[1, -1], [-1, 1]]) / 4, rtol=t * np.finfo(np.float32).eps)


def test_gradient_of_a_mapped_product():
    """With entries that are summed term by term, and others."""
    a = jnp.array([[[0.0, -50.0]], [[0.3, 0.1]]])
    b = jnp.array([[[-50.0], [0.0]], [[0.2], [0.7]]])
    got = jax.grad(lambda a: jax.vmap(log_matmul)(a, b).sum())(a)
    want = jnp.stack([jax.nn.softmax(row[0] + column[:, 0])[None] for row, column in zip(a, b)])
    np.testing.assert_allclose(got, want, rtol=50 * np.finfo(np.float32).eps)
    shared = jax.grad(lambda a: jax.vmap(log_matmul, (0, None))(a, b[0]).sum())(a)
    want = jnp.stack([jax.nn.softmax(row[0] + b[0, :, 0])[None] for row in a])
    np.testing.assert_allclose(shared, want, rtol=50 * np.finfo(np.float32).eps)
