"""logsumexp, logmeanexp, logcumsumexp: values and two orders of derivatives in ulps; weights, masks, infinities."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads

from robustad.stability import LogSumExp, logcumsumexp, logmeanexp, logsumexp
from tests._log_space import INF, Exact, rows, words
from tests._ulp import ulps

BOUND = {np.float32: 4, np.float64: 8}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])


def worst(got, exact) -> float:
    return float(ulps(got, *words(exact)).max())


def by_row(function, xs):
    return list(zip(xs, np.asarray(jax.jit(jax.vmap(function))(np.stack(xs)))))


@DTYPES
def test_values(dtype):
    with jax.enable_x64(dtype == np.float64):
        for x, y in by_row(logsumexp, rows(dtype)):
            exact = Exact(x).logsumexp
            if dtype == np.float64 and x.max() < 0 and abs(exact) < abs(x.max()) / 4:
                # near 0 with a negative maximum: relative to the maximum
                assert abs(float(mpmath.mpf(float(y)) - exact)) <= 4 * np.spacing(abs(x.max())), x
            else:
                assert worst(y, exact) <= BOUND[dtype], x


@DTYPES
def test_derivatives(dtype):
    with jax.enable_x64(dtype == np.float64):
        xs = rows(dtype, 1, count=3)
        xs = [x for x in xs if x.max() <= 64]  # beyond, tests/test_softmax.py
        for mode in (jax.grad, jax.jacfwd):
            for x, gradient in by_row(mode(logsumexp), xs):
                assert worst(gradient, Exact(x).p) <= BOUND[dtype], x
        for mode in (jax.hessian, lambda f: jax.jacrev(jax.grad(f)), lambda f: jax.jacfwd(jax.jacfwd(f))):
            for x, hessian in by_row(mode(logsumexp), xs):
                assert worst(hessian, Exact(x).covariance()) <= 2 * BOUND[dtype], x


def test_bit_patterns():
    bits = np.random.default_rng(3).integers(0, 2**32, (3000, 3), dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[~np.isnan(x).any(1) & ((np.abs(x) > 1e-37) | (x == 0)).all(1)]
    wide = x.astype(np.float64)
    m = wide.max(1, keepdims=True)
    with np.errstate(all="ignore"):
        ties = (wide == m).sum(1)
        exact = m[:, 0] + np.log1p(ties - 1 + np.where(wide < m, np.exp(wide - m), 0).sum(1))
    got = jax.jit(lambda x: logsumexp(x, 1))(x)
    near_zero = np.abs(exact) < 2.0**-20 * np.abs(m[:, 0])
    assert ulps(got, exact)[~near_zero].max() <= 4


def test_the_plain_forms_fail():
    x = jnp.array([0.0, -40.0])
    assert jax.scipy.special.logsumexp(x) == 0 and ulps(logsumexp(x), words(Exact(np.asarray(x)).logsumexp)[0]) <= 4
    halves = np.log(np.array([0.5, 0.5], np.float32))
    exact = words(Exact(halves).logsumexp)
    assert ulps(jax.scipy.special.logsumexp(halves), *exact) > 1e5 and ulps(logsumexp(halves), *exact) <= 4
    wide = np.array([12.7, -14.9, 3.1, 11.2], np.float32)
    assert worst(jax.grad(jax.scipy.special.logsumexp)(wide), Exact(wide).p) > 4
    assert worst(jax.grad(logsumexp)(wide), Exact(wide).p) <= 4
    assert np.isnan(jax.grad(lambda x: jax.scipy.special.logsumexp(jnp.array([-INF, -INF + x])))(1.0))
    assert np.isnan(jax.grad(jax.scipy.special.logsumexp)(jnp.array([INF, 0.0]))).any()
    assert np.isnan(jax.grad(lambda x: jnp.log(jnp.sum(jnp.exp(x))))(jnp.array([1000.0, 0.0]))).any()


def test_public_cases():
    assert jax.grad(lambda x: logsumexp(jnp.array([-INF, -INF + x])))(1.0) == 0  # jax issue 6811
    masked = jax.grad(lambda x: logsumexp(x, where=jnp.array([True, False])))(jnp.array([0.0, 100.0]))
    np.testing.assert_array_equal(masked, [1, 0])
    np.testing.assert_array_equal(jax.grad(logsumexp)(jnp.array([1000.0, 0.0])), [1, 0])


LARGEST = 3.4028235e38
POLICY = {  # rows, the value and the gradient
    (-INF, -INF, -INF): (-INF, (0, 0, 0)),
    (INF, 0.0, -1.0): (INF, (1, 0, 0)),
    (INF, -INF, INF): (INF, (0.5, 0, 0.5)),
    (LARGEST, LARGEST, 0.0): (LARGEST, (0.5, 0.5, 0)),
    (-LARGEST, -INF, -INF): (-LARGEST, (1, 0, 0)),
}


def test_policy_at_infinities():
    x = np.array(list(POLICY), np.float32)
    values, gradients = (np.array(z, np.float32) for z in zip(*POLICY.values()))
    np.testing.assert_array_equal(logsumexp(x, 1), values)
    for mode in (jax.grad, jax.jacfwd):
        np.testing.assert_array_equal(jax.jit(jax.vmap(mode(logsumexp)))(x), gradients)
    assert np.isfinite(jax.jit(jax.vmap(jax.hessian(logsumexp)))(x)).all()
    np.testing.assert_array_equal(logsumexp(x[:, :1], 1), x[:, 0])


def test_nan_and_nothing():
    assert (
        np.isnan(logsumexp(jnp.array([jnp.nan, 0.0])))
        and np.isnan(jax.grad(logsumexp)(jnp.array([jnp.nan, 0.0]))).all()
    )
    assert logsumexp(jnp.zeros((0,))) == -INF and logsumexp(jnp.zeros((2, 0)), 1).shape == (2,)
    assert np.isnan(logmeanexp(jnp.zeros(2), where=jnp.zeros(2, bool)))


def test_weights_and_signs():
    a, b = jnp.array([1.0, 2.0, 100.0, 3.0]), jnp.array([1.0, -2.0, 0.0, 0.5])
    total = np.exp(1) - 2 * np.exp(2) + 0.5 * np.exp(3)
    value, sign = logsumexp(a, b=b, return_sign=True)
    np.testing.assert_allclose(value, np.log(abs(total)), rtol=1e-6)
    assert sign == np.sign(total)
    assert np.isnan(logsumexp(a, b=-jnp.abs(b))) and logsumexp(a, b=0 * b) == -INF
    in_a, in_b = jax.grad(lambda a, b: logsumexp(a, b=b, return_sign=True)[0], (0, 1))(a, b)
    wide = np.exp(np.asarray(a, np.float64)) / total
    np.testing.assert_allclose(in_a, wide * np.asarray(b), rtol=1e-5)
    np.testing.assert_allclose(in_b, np.where(np.arange(4) == 2, -INF, wide), rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda a: logsumexp(a, b=0 * b))(a), 0)
    check_grads(jax.jit(lambda a, b: logsumexp(a, b=jnp.exp(b))), (a / 30, b), 2, rtol=2e-2)
    masked = logsumexp(a, b=b, where=jnp.array([True, False, True, True]))
    np.testing.assert_allclose(masked, np.log(np.exp(1) + 0.5 * np.exp(3)), rtol=1e-6)


def test_arguments():
    x = jax.random.normal(jax.random.key(0), (3, 4, 5)) * 10
    for axis in (None, (0, 2), -1):
        for keepdims in (False, True):
            wanted = jax.scipy.special.logsumexp(x, axis, keepdims=keepdims)
            got = logsumexp(x, axis, keepdims=keepdims)
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
    with jax.numpy_dtype_promotion("strict"):
        half = x.astype(jnp.bfloat16)
        assert logsumexp(half, 1).dtype == jnp.bfloat16 and jax.grad(logsumexp)(half).dtype == jnp.bfloat16
        assert logsumexp(jnp.array([1, 2])).dtype == jnp.float32
    with pytest.raises(TypeError, match="has dtype complex64; expected real numbers"):
        logsumexp(jnp.array([1j]))
    with pytest.raises(ValueError, match="`axis` 3 is out of range"):
        logsumexp(x, 3)


def test_a_normalised_long_row():
    """Near 0, many terms: the careful sum goes by blocks, under vmap too."""
    x = np.random.default_rng(0).normal(size=(2, 150_001)) * 2
    x = (x - np.log(np.exp(x).sum(1, keepdims=True))).astype(np.float32)
    exact = np.log(np.exp(x.astype(np.float64)).sum(1))
    assert ulps(logsumexp(x, 1), exact).max() <= 4
    assert ulps(jax.vmap(logsumexp)(x), exact).max() <= 4


def test_logmeanexp():
    x = jax.random.normal(jax.random.key(0), (3, 7)) * 30
    exact = np.log(np.exp(np.asarray(x, np.float64)).mean(1))
    assert ulps(logmeanexp(x, 1), exact).max() <= 4
    assert logmeanexp(jnp.full(7, 0.1, jnp.float32)) == np.float32(0.1)
    np.testing.assert_allclose(jax.grad(logmeanexp)(x[0]), jax.nn.softmax(x[0]), rtol=1e-5)
    mask = jnp.arange(7) < 3
    np.testing.assert_allclose(logmeanexp(x, 1, where=mask), logmeanexp(x[:, :3], 1), rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(logmeanexp)(jnp.full(2, -INF)), 0)
    assert logmeanexp(jnp.array([INF, 0.0])) == INF


def test_logcumsumexp():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32) * 30
    x[0, :2] = -INF
    with np.errstate(divide="ignore"):
        exact = np.log(np.cumsum(np.exp(x.astype(np.float64)), 1))
        backward = np.log(np.cumsum(np.exp(x.astype(np.float64))[:, ::-1], 1))[:, ::-1]
    assert ulps(logcumsumexp(x, 1), exact).max() <= 8
    assert ulps(logcumsumexp(x, 1, reverse=True), backward).max() <= 8
    weights = np.exp(x[:, None].astype(np.float64) - np.where(np.isfinite(exact), exact, 0)[..., None]) * np.tri(5)
    for mode in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(
            jax.jit(jax.vmap(mode(lambda x: logcumsumexp(x))))(x), weights, rtol=1e-4, atol=1e-37
        )
    assert np.isnan(jax.jacfwd(jax.lax.cumlogsumexp)(x[0])).any()
    assert np.isfinite(jax.jit(jax.hessian(lambda x: logcumsumexp(x)[-1]))(x[0])).all()


def test_large_weights_do_not_overflow():
    a, b = jnp.array([64.0, -3.0]), jnp.array([1e12, 1e37])
    wide = np.asarray(b, np.float64)
    wanted = np.log(wide[0] * np.exp(64.0) + wide[1] * np.exp(-3.0))
    assert ulps(logsumexp(a, b=b), wanted) <= 2
    assert ulps(LogSumExp.init().add(a, b=b).finalize(), wanted) <= 2
    assert np.isinf(jnp.log(jnp.sum(b * jnp.exp(a))))


@pytest.mark.parametrize("f", [lambda a, b: logsumexp(a, b=b), lambda a, b: LogSumExp.init().add(a, b=b).finalize()])
def test_elements_of_weight_zero(f):
    a, b = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
    assert ulps(jax.grad(f, 1)(a, b), np.array([1, np.e])).max() <= 1
    np.testing.assert_array_equal(jax.grad(lambda b: jax.scipy.special.logsumexp(a, b=b))(b), [1, 0])
    for far in (50.0, 1000.0):
        np.testing.assert_array_equal(jax.jacfwd(f)(jnp.array([0.0, far]), b), [1, 0])


def test_infinite_elements_with_weights():
    a, b = jnp.array([INF, 0.0]), jnp.ones(2)
    np.testing.assert_array_equal(jax.grad(lambda a: logsumexp(a, b=b))(a), [1, 0])
    assert np.isnan(jax.grad(lambda a: jax.scipy.special.logsumexp(a, b=b))(a)).any()


def test_masked_elements_do_not_cost_digits_of_a_mean():
    x = jnp.concatenate([jnp.array([0.0, -1e-3]), jnp.zeros(10**5)])
    counted = jnp.arange(len(x)) < 2
    exact = np.log((1 + np.exp(np.float64(np.float32(-1e-3)))) / 2)
    assert ulps(logmeanexp(x, where=counted), exact) <= 4
    plain = jax.scipy.special.logsumexp(jnp.where(counted, x, -INF)) - jnp.log(2.0)
    assert ulps(plain, exact) > 100


def test_weights_that_are_all_zero():
    """The argument of the logarithm is 0: slope +inf in the weights that have an entry, 0 in the entries."""
    a, b = jnp.array([1.0, 3.0, -INF]), jnp.zeros(3)
    np.testing.assert_array_equal(jax.grad(lambda b: logsumexp(a, b=b))(b), [INF, INF, 0])
    np.testing.assert_array_equal(jax.grad(lambda a: logsumexp(a, b=b))(a), 0)
    assert np.isnan(jax.grad(lambda b: jax.scipy.special.logsumexp(a, b=b))(b)).any()
