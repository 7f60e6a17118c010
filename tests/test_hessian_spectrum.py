"""Eigenvalues and traces of Hessians of quadratics, which NumPy knows."""

import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from robustad.diagnosis import HessianEigenvalues, hessian_eigenvalues, hessian_trace

EPS = 2.0**-23
RNG = np.random.default_rng(0)


def symmetric(n):
    a = RNG.standard_normal((n, n))
    return (a + a.T) / 2


def quadratic(x, a):
    return x @ (a @ x) / 2


@functools.cache
def compiled(tool, **options):
    return jax.jit(tool(quadratic, **options))


SMALL, LARGE = symmetric(12), symmetric(150)
FACTOR = RNG.standard_normal((150, 4))
CASES = {
    "small": SMALL,
    "small, large elements": SMALL * 1e25,
    "large": LARGE,
    "large, tiny elements": LARGE * 1e-25,
    "rank 4": FACTOR @ FACTOR.T,
    "two eigenvalues": np.diag(np.r_[10.0, -5.0, np.zeros(148)]),
    "identity": np.eye(150),
    "zero": np.zeros((150, 150)),
    "graded": np.diag(2.0 ** -np.arange(150.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_quadratics(name):
    a = jnp.asarray(CASES[name], jnp.float32)
    expected = np.linalg.eigvalsh(np.asarray(a, np.float64))
    x, size = jnp.ones(len(a)), abs(expected).max()
    found = compiled(hessian_eigenvalues, k=2)(x, a)
    np.testing.assert_allclose(found.top, expected[::-1][:2], atol=40 * EPS * size)
    np.testing.assert_allclose(found.bottom, expected[:2], atol=40 * EPS * size)
    assert found.converged and found.size == len(a)
    trace = compiled(hessian_trace)(x, a)
    true = np.trace(np.asarray(a, np.float64))
    assert trace.exact == (len(a) == 12)
    within = 20 * EPS * np.abs(expected).sum() + 4 * float(trace.standard_error)
    assert abs(float(trace.trace) - true) <= within
    if name in ("small", "rank 4", "two eigenvalues", "identity", "graded"):  # exact, or what is left is small
        assert trace.trace == pytest.approx(true, rel=1e-5)


def test_equal_eigenvalues_come_in_order():
    found = hessian_eigenvalues(lambda x: x @ x / 2, k=3)(jnp.linspace(0, 1, 200))
    assert (np.diff(found.top) <= 0).all() and (np.diff(found.bottom) >= 0).all()
    np.testing.assert_allclose(found.top, 1, rtol=16 * EPS)


def test_the_error_that_it_states():
    a = jnp.asarray(LARGE, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 20)
    found = jax.vmap(lambda key: hessian_trace(quadratic, samples=20, key=key)(jnp.ones(150), a))(keys)
    errors = (np.asarray(found.trace) - np.trace(LARGE)) / np.asarray(found.standard_error)
    assert 0.4 < np.sqrt(np.mean(errors**2)) < 2
    assert "a batch of (20,)" in str(found)


def test_what_has_not_converged_says_so():
    near = np.diag(1 - np.arange(150) * 1e-3)
    found = hessian_eigenvalues(quadratic, iterations=4, rtol=1e-6)(jnp.ones(150), jnp.asarray(near, jnp.float32))
    assert not found.converged and "NOT converged: more `iterations`" in str(found)
    bad = compiled(hessian_eigenvalues, k=2)(jnp.ones(12), jnp.full((12, 12), jnp.nan))
    assert not bad.converged and "the derivative is not finite" in str(bad)


def test_a_loss_that_is_not_quadratic():
    def rosenbrock(p):
        return (1 - p["x"]) ** 2 + 100 * (p["y"] - p["x"] ** 2) ** 2, "aux"

    with jax.enable_x64(True):
        at = {"x": jnp.float64(0.5), "y": jnp.float64(-1.0)}
        found = hessian_eigenvalues(rosenbrock, has_aux=True)(at)
        trace = hessian_trace(rosenbrock, has_aux=True)(at)
    x, y = 0.5, -1.0
    matrix = np.array([[2 - 400 * (y - 3 * x**2), -400 * x], [-400 * x, 200]])
    low, high = np.linalg.eigvalsh(matrix)
    assert (float(found.top[0]), float(found.bottom[0])) == pytest.approx((high, low), rel=1e-12)
    assert float(trace) == pytest.approx(low + high, rel=1e-12)


def test_modules_and_argnums():
    x, y = jnp.asarray(RNG.standard_normal((7, 3)), jnp.float32), jnp.zeros((7, 2))

    def loss(model, x, y):
        return jnp.mean(jnp.sum((jax.vmap(model)(x) - y) ** 2, axis=1))

    design = np.c_[np.asarray(x, np.float64), np.ones(7)]
    expected = np.linalg.eigvalsh(2 * design.T @ design / 7)
    for model in (nnx.Linear(3, 2, rngs=nnx.Rngs(0)), eqx.nn.Linear(3, 2, key=jax.random.key(0))):
        found = hessian_eigenvalues(loss, k=2)(model, x, y)
        np.testing.assert_allclose(found.top, [expected[-1]] * 2, rtol=1e-5)  # once for each output
        assert found.bottom[0] == pytest.approx(expected[0], rel=1e-4) and found.size == 8
    outputs = hessian_trace(loss, argnums=2)(eqx.nn.Linear(3, 2, key=jax.random.key(0)), x, y)
    assert outputs.trace == pytest.approx(4, rel=1e-6) and outputs.exact  # 14 times 2 / 7
    assert isinstance(found, HessianEigenvalues) and found.scalars()["converged"] == 1.0
    assert "8 parameters" in str(found) and "14 parameters: 4" in str(outputs)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hessian_eigenvalues(3), "`f` must be a function; got int"),
        (lambda: hessian_trace(jnp.sum, samples=1), "`samples` must be an integer >= 2"),
        (
            lambda: hessian_eigenvalues(jnp.sum, k=4)(jnp.ones(3)),
            "`k`=4 eigenvalues were asked for at each end, but .* 3",
        ),
        (lambda: hessian_trace(jnp.exp)(jnp.ones(3)), r"must return a scalar; it returned float32\[3\]"),
        (lambda: hessian_trace(jnp.sum, has_aux=True)(jnp.ones(3)), r"has_aux=True expects .*value, aux"),
        (lambda: hessian_trace(jnp.sum)(jnp.ones(3, jnp.complex64)), "has complex parameters"),
        (lambda: hessian_trace(jnp.sum)(3), "nothing to differentiate"),
        (
            lambda: hessian_trace(lambda x: lax.while_loop(lambda y: y < 9, lambda y: 2 * y, x))(1.0),
            "cannot be differentiated twice",
        ),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_without_matfree_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree.decomp", None)
    with pytest.raises(ImportError, match=r"pip install 'robustad\[spectra\]'"):
        hessian_eigenvalues(jnp.sum)(jnp.ones(100))
    assert hessian_eigenvalues(lambda x: 3 * x @ x)(jnp.ones(2)).top[0] == pytest.approx(6)  # small ones do without
