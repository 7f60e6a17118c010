"""softmax and log_softmax: values and two orders of derivatives in ulps; masks; the policy at infinities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from robustad.stability import log_softmax, softmax
from tests._log_space import INF, Exact, rows, words
from tests._subset import thinned
from tests._ulp import ulps

BOUND = {np.float32: 4, np.float64: 8}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])


def worst(got, exact) -> float:
    return float(ulps(got, *words(exact)).max())


def in_one_call(function, xs):
    """The rows, each with the result for it."""
    return list(zip(xs, np.asarray(jax.jit(jax.vmap(function))(np.stack(xs)))))


@DTYPES
def test_values(dtype):
    with jax.enable_x64(dtype == np.float64):
        for x, y in in_one_call(softmax, rows(dtype)):
            far = x.max() > (64 if dtype == np.float32 else 512)  # then small shares have the error of their difference
            keep = Exact(x).p if not far else [p if p > 1e-28 or p < 1e-38 else None for p in Exact(x).p]
            assert (
                worst([v for v, p in zip(y, keep) if p is not None], [p for p in keep if p is not None]) <= BOUND[dtype]
            ), x
        for x, y in in_one_call(log_softmax, rows(dtype)):
            assert worst(y, Exact(x).log_softmax) <= BOUND[dtype], x


@DTYPES
def test_derivatives_of_log_softmax(dtype):
    with jax.enable_x64(dtype == np.float64):
        xs = rows(dtype, 1, count=3)
        for mode in (jax.jacfwd, jax.jacrev):
            for x, jacobian in in_one_call(mode(log_softmax), xs):
                e = Exact(x)
                n = len(x)
                exact = [[e.q[i] if i == j else -e.p[j] for j in range(n)] for i in range(n)]
                for i in range(n):
                    assert x[i] > -INF or not jacobian[:, i].any()
                    if x[i] > -INF:
                        assert worst(jacobian[i], exact[i]) <= 2 * BOUND[dtype], (x, i)
        second = [jax.hessian(lambda x: log_softmax(x)[0]), jax.jacrev(jax.jacrev(lambda x: log_softmax(x)[0]))]
        for function in second:
            for x, hessian in in_one_call(function, xs):
                if x[0] > -INF:
                    assert worst(-hessian, Exact(x).covariance()) <= 2 * BOUND[dtype], x


@DTYPES
def test_derivatives_of_softmax(dtype):
    with jax.enable_x64(dtype == np.float64):
        xs = rows(dtype, 2, count=3)
        for mode in (jax.jacfwd, jax.jacrev):
            for x, jacobian in in_one_call(mode(softmax), xs):
                assert worst(jacobian, Exact(x).covariance()) <= 2 * BOUND[dtype], x
        underflow = 4 * np.finfo(dtype).tiny  # of products of three shares
        # ∂²p₀/∂aᵢ∂aⱼ: terms may cancel where a share is near 1/2, so relative to the largest of them
        for function in (jax.hessian(lambda x: softmax(x)[0]), jax.jacrev(jax.jacrev(lambda x: softmax(x)[0]))):
            for x, hessian in in_one_call(function, xs):
                e = Exact(x)
                for i in range(len(x)):
                    for j in range(len(x)):
                        du = [(e.q[0] if k == 0 else -e.p[k]) for k in (i, j)]
                        exact = e.p[0] * (du[0] * du[1] - e.covariance()[i][j])
                        size = e.p[0] * (abs(du[0] * du[1]) + abs(e.covariance()[i][j]))
                        error = abs(hessian[i, j] - float(exact))
                        assert error <= 16 * np.finfo(dtype).eps * float(size) + underflow, (x, i, j)


def test_the_plain_forms_fail():
    x = np.array([50.3, -3.1, 20.7], np.float32)
    assert worst(jax.nn.softmax(x), Exact(x).p) > 4
    assert worst(softmax(x), Exact(x).p) <= 4
    confident = np.array([0.0, 40.0], np.float32)
    assert jax.nn.log_softmax(confident)[1] == 0 and log_softmax(confident)[1] != 0
    pull = jax.vjp(jax.nn.log_softmax, confident)[1](np.array([0, 1], np.float32))[0]
    assert pull[1] == 0
    assert np.isnan(jax.nn.softmax(jnp.array([jnp.inf, 0.0]))).any()
    with jax.enable_x64(True):  # jax issue 40384
        row = jnp.array([37.43, 0.0])
        assert jax.vjp(jax.nn.log_softmax, row)[1](jnp.array([1.0, 0.0]))[0][0] == 0
        gradient = jax.vjp(log_softmax, row)[1](jnp.array([1.0, 0.0]))[0]
        np.testing.assert_allclose(gradient, [5.55082509e-17, -5.55082509e-17], rtol=1e-8)


POLICY = {  # rows and their shares
    (-INF, -INF, -INF): (0, 0, 0),
    (INF, 0.0, -1.0): (1, 0, 0),
    (INF, INF, -INF): (0.5, 0.5, 0),
    (3e38, INF, -INF): (0, 1, 0),
    (3.4028235e38, -3.4028235e38, 0.0): (1, 0, 0),
    (1e-45, -0.0, -INF): (0.5, 0.5, 0),
}


@pytest.mark.parametrize("function", [softmax, log_softmax])
def test_policy_at_infinities(function):
    x, shares = np.array(list(POLICY), np.float32), np.array(list(POLICY.values()), np.float32)
    value = function(x)
    np.testing.assert_allclose(value if function is softmax else np.exp(value), shares, rtol=1e-6)
    for derivative in (jax.jacrev(function), jax.jacfwd(function), jax.hessian(function)):
        assert np.isfinite(jax.jit(jax.vmap(derivative))(x)).all()
    assert function(jnp.array([-jnp.inf])) == (0 if function is softmax else -jnp.inf)


def test_nan_is_not_hidden():
    assert np.isnan(softmax(jnp.array([jnp.nan, 0.0]))).all() and np.isnan(log_softmax(jnp.array([0.0, jnp.nan]))).all()


def test_where():
    x, mask = jnp.array([1.0, 1.0, 100.0]), jnp.array([True, True, False])
    np.testing.assert_array_equal(jax.grad(lambda x: softmax(x, where=mask)[0])(x), [0.25, -0.25, 0])
    np.testing.assert_array_equal(jax.grad(lambda x: log_softmax(x, where=mask)[0])(x), [0.5, -0.5, 0])
    masked_nan = x.at[2].set(jnp.nan)
    np.testing.assert_array_equal(jax.grad(lambda x: softmax(x, where=mask)[0])(masked_nan), [0.25, -0.25, 0])


@pytest.mark.parametrize("function", thinned([log_softmax, softmax], 2))
def test_axes_and_transformations(function):
    x = jax.random.normal(jax.random.key(0), (3, 4, 5)) * 9
    for axis in (1, (0, 2), None):
        with jax.enable_x64(True):
            wanted = np.asarray(function(np.asarray(x, np.float64), axis))
        assert ulps(function(x, axis), wanted).max() <= 4
    by_row = jax.jit(jax.vmap(jax.vmap(lambda x: jax.grad(lambda x: function(x)[1])(x), 1, 1)))(x)
    whole = jax.jit(jax.grad(lambda x: function(x, 1)[:, 1].sum()))(x)
    np.testing.assert_allclose(by_row, whole, rtol=1e-6)
    in_scan = jax.jit(lambda x: lax.scan(lambda c, x: (c, jax.grad(lambda x: function(x)[0, 0])(x)), 0, x)[1])(x)
    np.testing.assert_array_equal(in_scan, jax.jit(jax.vmap(jax.grad(lambda x: function(x)[0, 0])))(x))


@pytest.mark.parametrize("function", thinned([softmax, log_softmax], 2))
def test_dtypes(function):
    with jax.numpy_dtype_promotion("strict"):
        for dtype in (jnp.float16, jnp.bfloat16):
            x = jnp.array([3.0, -2.0, 0.5], dtype)
            assert function(x).dtype == dtype
            np.testing.assert_array_equal(function(x), function(x.astype(jnp.float32)).astype(dtype))
            assert jax.hessian(lambda x: function(x)[0])(x).dtype == dtype
        assert function(jnp.array([1, 2])).dtype == jnp.float32
    with pytest.raises(TypeError, match="has dtype complex64; expected real numbers"):
        function(jnp.array([1j]))
    with pytest.raises(ValueError, match="`axis` 3 is out of range"):
        function(jnp.zeros(2), axis=3)


def test_long_rows():
    """Sums of many terms, the careful sums by blocks."""
    x = np.random.default_rng(0).normal(size=(2, 150_001)).astype(np.float32)
    x[1, 77_777] = 24.0
    wide = x.astype(np.float64)
    others = np.exp(np.delete(wide[1], 77_777) - 24).sum()
    np.testing.assert_allclose(log_softmax(jnp.asarray(x))[1, 77_777], -np.log1p(others), rtol=1e-6)
    gradient = jax.grad(lambda x: log_softmax(x)[1, 77_777])(jnp.asarray(x))[1, 77_777]
    np.testing.assert_allclose(gradient, others / (1 + others), rtol=1e-6)
    shares = np.exp(wide[0] - wide[0].max())
    np.testing.assert_allclose(softmax(jnp.asarray(x))[0], shares / shares.sum(), rtol=1e-6)


def test_a_mask_may_add_axes():
    x, where = jnp.array([0.0, 1.0, 5.0]), jnp.array([[True, True, True], [True, True, False]])
    np.testing.assert_array_equal(softmax(x, where=where), jnp.stack([softmax(x, where=row) for row in where]))
    assert jax.nn.softmax(x, where=where).shape == (2, 3)
