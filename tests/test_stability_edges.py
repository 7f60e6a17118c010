"""Where types, modes of differentiation, shapes and ranges meet: the corners of the stability functions."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from robustad import stability as st

INF = jnp.inf
A = jnp.array


def third(f, x):
    return float(jax.grad(jax.grad(jax.grad(f)))(x))


THIRD = {  # name: (ours, the same by mpmath, point)
    "divide": (lambda y: st.divide(1.0, y), lambda y: 1 / y, 2.0),
    "hypot": (lambda x: st.hypot(x, 0.4), lambda x: mp.sqrt(x * x + mp.mpf("0.16")), 0.3),
    "arctan2": (lambda y: st.arctan2(y, 0.4), lambda y: mp.atan2(y, mp.mpf("0.4")), 0.3),
    "sqrt_diff": (lambda x: st.sqrt_diff(x, 0.5), lambda x: mp.sqrt(x + 0.5) - mp.sqrt(x), 2.0),
    "power": (lambda x: st.power(x + 1, x), lambda x: mp.power(x + 1, x), 0.7),
    "cloglog": (st.cloglog, lambda x: mp.log(-mp.log(1 - x)), 0.3),
    "log1psq": (st.log1psq, lambda x: mp.log(1 + x * x), 0.7),
    "sigmoid": (st.sigmoid, lambda x: 1 / (1 + mp.exp(-x)), 0.7),
    "norm_logpdf in the scale": (lambda s: st.norm_logpdf(1.0, 0.0, s), lambda s: -1 / (2 * s * s) - mp.log(s), 2.0),
}


@pytest.mark.parametrize("name", THIRD)
def test_third_derivatives_are_not_silently_wrong(name):
    ours, exact, x = THIRD[name]
    with mp.workdps(40):
        wanted = float(mp.diff(exact, mp.mpf(float(np.float32(x))), 3))
    np.testing.assert_allclose(third(ours, x), wanted, rtol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32])
def test_labels_of_a_vocabulary_that_just_fits_their_dtype(dtype):
    classes = min(256, int(jnp.iinfo(dtype).max) + 1)
    loss = st.softmax_cross_entropy(jnp.zeros((2, classes)), A([3, classes - 1], dtype))
    np.testing.assert_allclose(loss, np.log(classes), rtol=1e-6)


def test_large_weights_do_not_overflow():
    a, b = A([64.0, -3.0]), A([1e12, 1e37])
    wanted = np.log(1e12 * np.exp(64.0) + 1e37 * np.exp(-3.0))
    np.testing.assert_allclose(st.logsumexp(a, b=b), wanted, rtol=1e-6)
    np.testing.assert_allclose(st.LogSumExp.init().add(a, b=b).finalize(), wanted, rtol=1e-6)


def test_elements_of_weight_zero_and_infinite_elements():
    def streamed(a, b):
        return st.LogSumExp.init().add(a, b=b).finalize()

    a, b = A([0.0, 1.0]), A([1.0, 0.0])
    for f in (lambda a, b: st.logsumexp(a, b=b), streamed):
        np.testing.assert_allclose(jax.grad(f, 1)(a, b), [1, np.e], rtol=1e-6)
        np.testing.assert_array_equal(jax.jacfwd(f)(A([0.0, 50.0]), b), [1, 0])
    np.testing.assert_array_equal(jax.jacfwd(lambda a: st.logsumexp(a, b=b))(A([0.0, 1000.0])), [1, 0])
    np.testing.assert_array_equal(jax.grad(lambda a: st.logsumexp(a, b=jnp.ones(2)))(A([INF, 0.0])), [1, 0])


def test_masked_elements_do_not_cost_digits_of_a_mean():
    x = jnp.concatenate([A([0.0, -1e-3]), jnp.zeros(10**5)])
    exact = np.log((1 + np.exp(np.float64(np.float32(-1e-3)))) / 2)
    np.testing.assert_allclose(st.logmeanexp(x, where=jnp.arange(len(x)) < 2), exact, rtol=3e-7)


def test_forward_mode_where_an_infinite_loss_meets_a_zero_weight():

    def soft(a):
        return st.softmax_cross_entropy(a, A([0.5, 0.5, 0.0]))

    a = A([1.0, 2.0, -INF])
    np.testing.assert_allclose(jax.jvp(soft, (a,), (A([1.0, 0.0, 0.0]),))[1], jax.grad(soft)(a)[0])
    assert jax.jvp(lambda a: st.sigmoid_cross_entropy(a, 1.0), (INF,), (1.0,))[1] == 0


def test_the_derivative_in_a_binary_label():
    a = A([1e-8, 1.2543e-5, 3.0, -40.0, 100.0])
    slope = jax.vmap(jax.grad(st.sigmoid_cross_entropy, 1), (0, None))(a, 0.3)
    np.testing.assert_array_equal(slope, -a)


@pytest.mark.parametrize("name", ["divide", "hypot", "arctan2", "power", "sqrt_diff"])
def test_second_derivatives_through_a_scan(name):
    f = getattr(st, name)
    x = A([[0.3, 0.5], [0.4, 0.9]])

    def summed(x):
        return jax.lax.scan(lambda total, row: (total + f(*row), None), 0.0, x)[0]

    wanted = jax.hessian(lambda x: f(*x[0]) + f(*x[1]))(x)
    for hessian in (jax.hessian(summed)(x), jax.jacrev(jax.grad(summed))(x)):
        np.testing.assert_allclose(hessian, wanted, rtol=1e-5, atol=1e-6)


def test_products_along_axes_of_an_empty_array():
    assert st.prod(jnp.zeros((0, 3)), axis=1).shape == (0,)
    np.testing.assert_array_equal(st.prod(jnp.zeros((0, 3)), axis=0), jnp.ones(3))


def test_a_mask_may_add_axes():
    np.testing.assert_allclose(
        st.softmax(jnp.zeros(3), where=jnp.ones((2, 3), bool)), np.full((2, 3), 1 / 3), rtol=1e-6
    )


def test_narrow_results_are_rounded_once():
    x = A([1.0, 2.0**-8, 2.0**-40], jnp.bfloat16)  # a tie in bfloat16 once it is rounded to float32
    assert jnp.sum(x.astype(jnp.float32)).astype(jnp.bfloat16) == 1
    one = jnp.ones_like(x)
    for total in (
        st.compensated_sum(x),
        st.compensated_dot(x, one),
        st.compensated_cumsum(x)[-1],
        st.reproducible_sum(x),
    ):
        assert total == 1.0078125
    x = jnp.linspace(-3, 0, 1001).astype(jnp.bfloat16)
    np.testing.assert_array_equal(st.elu(x), jnp.expm1(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_products_without_terms_and_with_subnormal_ones():
    assert st.reproducible_dot(jnp.zeros((3, 0)), jnp.zeros((0, 2))).shape == (3, 2)
    assert jax.vmap(st.reproducible_dot)(jnp.zeros((4, 3, 0)), jnp.zeros((4, 0, 2))).shape == (4, 3, 2)
    a, b = np.array([2.0**-140], np.float32), np.array([2.0**40], np.float32)
    alone, padded = st.reproducible_dot(a, b), st.reproducible_dot(np.append(a, [0.0]), np.append(b, [0.0]))
    assert alone == padded == 2.0**-100
    tiny = st.reproducible_dot(np.array([3 * 2.0**-80], np.float32), np.array([2.0**-69], np.float32))
    assert np.asarray(tiny).view(np.int32) == 3  # 3 · 2⁻¹⁴⁹


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        x = jnp.full((2, 2), -200.0)
        assert np.isfinite(jax.grad(lambda a: st.log_matmul(a, a).sum())(x)).all()
        assert st.reproducible_global_norm([jnp.ones(2), jnp.ones(2, jnp.bfloat16)]) == 2
        assert np.isfinite(st.poisson_logpmf(jnp.arange(3), A([1.0, 2.0, 3.0]))).all()
        np.testing.assert_array_equal(st.elu(A([1, -1])), A([1.0, np.expm1(np.float32(-1))], jnp.float32))


def test_mapped_accumulators():
    x = jnp.arange(12.0).reshape(4, 3)
    state = jax.vmap(lambda row: st.Accumulator.init().add(row))(x)
    np.testing.assert_array_equal(state.finalize(), x.sum(1))
    np.testing.assert_array_equal(jax.tree.map(lambda leaf: leaf[1:], state).finalize(), x[1:].sum(1))


def test_second_derivatives_through_a_scan_of_accumulators():
    def square(x):
        state, _ = jax.lax.scan(lambda s, row: (s.add(row), None), st.Accumulator.init(), x.reshape(2, 2))
        return state.finalize() ** 2

    x = jnp.arange(4.0)
    for hessian in (jax.hessian(square)(x), jax.jacrev(jax.grad(square))(x), jax.jacfwd(jax.jacfwd(square))(x)):
        np.testing.assert_array_equal(hessian, np.full((4, 4), 2))


def test_zeros_among_large_numbers():
    zero, large = st.SignedLog.from_array(0.0), st.SignedLog.from_log(1000.0)
    assert (zero * large).to_array() == 0
    assert st.SignedLog.from_array(A([0.0, 1e30, 1e30])).prod().to_array() == 0
    undefined = zero / 0.0
    assert jnp.isnan(undefined.to_array()) and jnp.isnan(undefined.log)


def test_the_mantissa_of_a_sum_of_zero():
    np.testing.assert_array_equal(jax.grad(lambda x: st.block_scaled_sum(x)[0])(A([1e30, -1e30])), [1, 1])
    m, k = st.block_scaled_sum(A([1.0, -0.001], jnp.bfloat16))
    assert 0.5 <= m < 1 and k == 0


def test_an_infinite_coordinate_decides():
    assert st.hypot(INF, jnp.nan) == INF
    assert st.cholesky(jnp.zeros((0, 0))).shape == (0, 0)


def test_parameters_outside_their_domain():
    values = [
        st.bernoulli_logpmf(1, 1.5),
        st.binom_logpmf(5, 5, 1.5),
        st.poisson_logpmf(0, -1.0),
        st.uniform_logpdf(0.0, 0.0, -1.0),
        st.expon_logpdf(-1.0, 0.0, -1.0),
        st.gamma_logpdf(-1.0, -2.0),
    ]
    assert np.isnan(values).all()


def test_messages():
    with pytest.raises(TypeError, match=r"log takes 1 arrays \(x\), got 0"):
        st.log()
    with pytest.raises(TypeError, match="beta_logpdf: missing a required argument: 'b'; it takes x, a, b, loc, scale"):
        st.beta_logpdf(0.5, 2.0)
    with pytest.raises(TypeError, match="`label_smoothing` is traced"):
        jax.jit(lambda s: st.softmax_cross_entropy(jnp.zeros(3), 1, label_smoothing=s))(0.1)
    with pytest.raises(ValueError, match=r"the state has \(\)"):
        st.LogSumExp.init().add(jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"`cov` has shape \(\)"):
        st.multivariate_normal_logpdf(0.0, 0.0, 1.0)
    with pytest.raises(TypeError):
        st.segment_sum(jnp.zeros(3), jnp.zeros(3, jnp.int32), 2.0)
    assert st.segment_sum(jnp.ones(3), jnp.zeros(3, jnp.int32), 2)[0] == 3
