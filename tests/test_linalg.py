"""Factorisations with repeated, zero and tiny values, against float64 and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability as st
from tests._subset import thinned


def random(shape, seed=0, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


def with_spectrum(values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    return jnp.asarray((q * values) @ q.T, jnp.float32)


def recomposed(a):
    u, s, vh = st.svd(a)
    return (u * s) @ vh


def in_float64(f, a):
    with jax.enable_x64(True):
        return np.asarray(f(jnp.asarray(np.asarray(a, np.float64))))


# ---- eigenvalues


@pytest.mark.parametrize(
    "values", [[1, 1, 2, 3], [2, 2, 2, 2], [-1, -1, 1, 1], [1e-20, 1e-20, 3e-20, 4e-20], [0, 0, 1, 5]]
)
def test_symmetric_functions_of_tied_eigenvalues(values):
    a = with_spectrum(np.array(values, float))
    scale = float(np.abs(values).max())
    for power in (1, 2, 3):

        def f(a, power=power):
            return ((st.eigh(a)[0] / scale) ** power).sum() * scale

        b = np.asarray(a, np.float64) / scale
        exact = power * np.linalg.matrix_power(b, power - 1)
        np.testing.assert_allclose(jax.grad(f)(a), exact, atol=5e-6)
        assert jnp.isfinite(jax.hessian(f)(a)).all()


def test_plain_eigh_is_nan_at_ties():
    a = jnp.diag(jnp.array([4.0, 1.0, 1.0]))
    assert np.isnan(jax.grad(lambda a: jnp.linalg.eigh(a)[1][0, 2])(a)).any()
    np.testing.assert_array_equal(jax.grad(lambda a: st.eigh(a)[1][0, 2])(a), 0)


def test_a_simple_eigenvector_and_a_projection_beside_a_tie():
    """The projection onto the simple eigenvector of (1, 1, 4) has a smooth derivative: finite differences in float64."""
    a = with_spectrum(np.array([1.0, 1.0, 4.0]))
    c = random((3, 3), 1)
    c = c + c.T

    def f(a):
        v = st.eigh(a)[1]
        return jnp.sum(c * (v[:, 2:] @ v[:, 2:].T)), jnp.sum(c * (v[:, :2] @ v[:, :2].T))

    b, d = np.asarray(a, np.float64), np.asarray(c, np.float64)

    def exact(h):
        v = np.linalg.eigh(b + h)[1][:, 2]
        return v @ d @ v

    steps = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            h = np.zeros((3, 3))
            h[i, j] += 5e-6
            h[j, i] += 5e-6
            steps[i, j] = (exact(h) - exact(-h)) / 2e-5
    np.testing.assert_allclose(jax.grad(lambda a: f(a)[0])(a), steps, atol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda a: f(a)[1])(a), -steps, atol=1e-5)


@pytest.mark.parametrize("scale", thinned([1e-20, 1.0, 1e18], 2))
def test_distinct_eigenvalues_as_float64_in_any_scale(scale):
    b = random((4, 4))
    b = b + b.T

    def f(eigh):
        return lambda a: (eigh(a / scale)[0][1] + (eigh(a / scale)[1] ** 4).sum()) * scale

    a = b * scale
    first, second = jax.grad(f(st.eigh))(a), jax.hessian(f(st.eigh))(a)
    with jax.enable_x64(True):
        c = jnp.asarray(np.asarray(b, np.float64))

        def g(a):
            return jnp.linalg.eigh(a)[0][1] + (jnp.linalg.eigh(a)[1] ** 4).sum()

        np.testing.assert_allclose(first, jax.grad(g)(c), rtol=1e-4, atol=1e-5)
        exact = np.asarray(jax.hessian(g)(c))
    np.testing.assert_allclose(np.asarray(second, np.float64) * scale, exact, atol=2e-5 * np.abs(exact).max())


def test_tiny_matrices_directly():
    a = jnp.diag(jnp.array([1e-20, 2e-20, 4e-20]))
    np.testing.assert_allclose(st.eigh(a)[0], [1e-20, 2e-20, 4e-20], rtol=1e-6)
    slope = jax.jacobian(lambda a: st.eigh(a)[1])(a)
    np.testing.assert_allclose(np.abs(slope).max(), 0.5e20, rtol=1e-5)
    curvature = jax.hessian(lambda a: st.eigh(a)[0][0])(a)  # 2 P₀₁²/(w₀ - w₁), symmetrised
    np.testing.assert_allclose(curvature.min(), -0.5e20, rtol=1e-5)
    slope = jax.jacobian(lambda a: st.svd(a)[0])(a)
    np.testing.assert_allclose(np.abs(slope).max(), 2 / 3 * 1e20, rtol=1e-5)


def test_hermitian_and_batches():
    h = jnp.array([[2.0, 1j], [-1j, 2.0]])
    np.testing.assert_allclose(st.eigh(h)[0], [1, 3], rtol=1e-6)
    gradient = jax.grad(lambda h: (st.eigh(h)[0] ** 2).sum())(h)
    np.testing.assert_allclose(gradient, 2 * np.conj(h), rtol=1e-5)
    stack = jnp.stack([jnp.eye(3), jnp.diag(jnp.array([2.0, 0.0, 1.0]))])
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda a: (st.eigh(a)[0] ** 2).sum()))(stack), 2 * stack, atol=1e-6)
    assert st.eigh(stack.astype(jnp.bfloat16))[0].dtype == jnp.bfloat16
    with jax.enable_x64(True):
        a = jnp.diag(jnp.array([1.0, 1.0, 2.0]))
        np.testing.assert_allclose(
            jax.grad(lambda a: jnp.log(st.eigh(a)[0]).sum())(a), jnp.diag(1 / a.diagonal()), atol=1e-14
        )


# ---- singular values


def test_the_norm_of_the_product_at_a_tie():
    a = jnp.diag(jnp.array([1.0, 1.0, 2.0, 3.0]))

    def f(a):
        return st.norm(recomposed(a))

    np.testing.assert_allclose(jax.grad(f)(a), a / 15**0.5, atol=1e-6)
    assert jnp.isfinite(jax.hessian(f)(a)).all()

    def plain(a):
        u, s, v = jnp.linalg.svd(a)
        return jnp.linalg.norm((u * s) @ v)

    assert np.isnan(jax.grad(plain)(a)).any()


@pytest.mark.parametrize("shape", thinned([[5, 3], [3, 3], [3, 5]], 3))
def test_nuclear_norm_and_rotations(shape):
    rng = np.random.default_rng(0)
    k = min(shape)
    u, v = np.linalg.qr(rng.normal(size=(shape[0], k)))[0], np.linalg.qr(rng.normal(size=(shape[1], k)))[0]
    tied = jnp.asarray((u * [2, 2, 1]) @ v.T, jnp.float32)
    gradient = jax.grad(lambda a: st.svd(a)[1].sum())(tied)
    np.testing.assert_allclose(gradient, u @ v.T, atol=2e-6)  # the polar factor, which does not depend on the basis
    assert jnp.isfinite(jax.hessian(lambda a: st.svd(a)[1].sum())(tied)).all()
    polar = jax.jacobian(lambda a: (lambda u, s, vh: u @ vh)(*st.svd(a)))(tied)
    assert jnp.isfinite(polar).all()
    a = random(shape, 2)

    def f(svd):
        def of(a):
            u, s, vh = svd(a)
            return (u**4).sum() + (vh**4).sum() + s[1]

        return of

    def thin(a):
        return jnp.linalg.svd(a, full_matrices=False)

    first = in_float64(jax.grad(f(thin)), a)
    np.testing.assert_allclose(jax.grad(f(st.svd))(a), first, atol=1e-5 * np.abs(first).max())
    second = in_float64(jax.hessian(f(thin)), a)
    np.testing.assert_allclose(jax.hessian(f(st.svd))(a), second, atol=3e-5 * np.abs(second).max())


def test_zero_singular_values():
    np.testing.assert_array_equal(jax.grad(lambda a: (st.svd(a)[1] ** 2).sum())(jnp.zeros((3, 2))), 0)
    low = jnp.outer(jnp.arange(1.0, 4), jnp.ones(2))
    np.testing.assert_allclose(jax.grad(lambda a: (st.svd(a)[1] ** 2).sum())(low), 2 * low, atol=1e-5)
    for output in range(3):
        assert jnp.isfinite(jax.jacobian(lambda a: st.svd(a)[output])(low)).all()  # noqa: B023


# ---- Cholesky


def test_cholesky_of_definite_matrices_as_in_jnp():
    b = random((4, 4))
    a = b @ b.T + jnp.eye(4)
    np.testing.assert_array_equal(st.cholesky(a), jnp.linalg.cholesky(a))
    for derivative in (jax.grad, jax.hessian):
        np.testing.assert_allclose(
            derivative(lambda a: st.cholesky(a).sum())(a),
            derivative(lambda a: jnp.linalg.cholesky(a).sum())(a),
            atol=2e-6,
        )


def test_cholesky_of_singular_matrices():
    x = jnp.arange(1.0, 4)
    a = jnp.outer(x, x)
    assert np.isnan(jnp.linalg.cholesky(a)).any()
    np.testing.assert_array_equal(st.cholesky(a), jnp.zeros((3, 3)).at[:, 0].set(x))
    # A path of matrices of rank 1: d/dt of the factor of (x + t y)(x + t y)ᵀ is y in the first column.
    y = jnp.array([0.5, -1.0, 2.0])
    tangent = jax.jvp(st.cholesky, (a,), (jnp.outer(x, y) + jnp.outer(y, x),))[1]
    np.testing.assert_allclose(tangent, jnp.zeros((3, 3)).at[:, 0].set(y), atol=1e-6)
    assert jnp.isfinite(jax.hessian(lambda a: st.cholesky(a).sum())(a)).all()
    np.testing.assert_array_equal(jax.grad(lambda a: st.cholesky(a).sum())(jnp.zeros((2, 2))), 0)
    stack = jnp.stack([jnp.eye(3), a, jnp.diag(jnp.array([4.0, 0.0, 1.0]))])
    np.testing.assert_array_equal(jax.vmap(st.cholesky)(stack), st.cholesky(stack))
    np.testing.assert_array_equal(st.cholesky(stack)[2], jnp.diag(jnp.array([2.0, 0.0, 1.0])))


def test_indefinite_matrices_and_nan():
    for a in ([[0.0, 1], [1, 0]], [[1.0, 2], [2, 1]], [[-1.0, 0], [0, 1]], [[np.nan, 0], [0, 1]]):
        assert np.isnan(st.cholesky(jnp.array(a))).any()
    assert np.isnan(st.eigh(jnp.full((2, 2), np.nan))[0]).all()


def test_errors():
    for f in (st.eigh, st.cholesky):
        with pytest.raises(ValueError, match=r"square matrices in its last two axes, got shape \(2, 3\)"):
            f(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="`full_matrices` must be False"):
        st.svd(jnp.ones((2, 3)), full_matrices=True)
    with pytest.raises(ValueError, match="must be matrices"):
        st.svd(jnp.ones(3))


def test_cholesky_of_nothing():
    assert st.cholesky(jnp.zeros((0, 0))).shape == (0, 0)


def test_cholesky_of_gram_matrices_with_rounding_errors():
    """Rank 2 of 6: within a hundred times n ε of a definite one, where jnp gives NaN; NaN of indefinite ones."""
    failed = 0
    for seed in range(12):
        x = np.random.default_rng(seed).normal(size=(6, 2)).astype(np.float32)
        a = x @ x.T
        factor = np.asarray(st.cholesky(a))
        assert np.abs(factor @ factor.T - a).max() <= 600 * np.finfo(np.float32).eps * np.abs(a).max()
        failed += bool(np.isnan(jnp.linalg.cholesky(a)).any())
    assert failed
    np.testing.assert_array_equal(st.cholesky(jnp.diag(jnp.array([1.0, -1.0]))), [[np.nan, 0], [np.nan, np.nan]])


def test_results_have_the_names_of_jnp():
    a = jnp.diag(jnp.array([3.0, 1.0]))
    for ours, theirs in ((st.eigh(a), jnp.linalg.eigh(a)), (st.svd(a), jnp.linalg.svd(a))):
        assert ours._fields == theirs._fields
