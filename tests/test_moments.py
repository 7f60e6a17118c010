"""Mean, variance and standard deviation over the whole range, with two derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability as st

SAMPLES = [
    [1.0, 2.0, 4.0, 8.0],
    [1e20, -1e20, 2e20, 0.0],
    [1e-25, 3e-25, -1e-25, 0.0],
    [3e38, 3e38, 2e38, 1e38],
    [1e6, 1e6 + 1, 1e6 + 2, 1e6 - 1],
    [1e20, 1e-20, 0.0, 0.0],
]
TINY = 1.2e-38


def exact(x, ddof=0):
    """Mean, variance, deviation; gradients and Hessians of the last two, in float64."""
    x = np.asarray(x, np.float32).astype(np.float64)
    n = len(x)
    d, f = x - x.mean(), n - ddof
    v = (d**2).sum() / f
    s = v**0.5
    centring = np.eye(n) - 1 / n
    return x.mean(), v, s, 2 * d / f, d / (f * s), 2 / f * centring, (centring / f - np.outer(d, d) / (f * s) ** 2) / s


def near(got, expected, rtol):
    got, expected = np.asarray(got, np.float64), np.asarray(expected)
    size = np.abs(expected).max()
    if size > 3.4e38:
        return np.isinf(got).any()
    return np.all(np.abs(got - expected) <= rtol * size + TINY)


@pytest.mark.parametrize("ddof", [0, 1])
def test_over_the_range(ddof):
    std, var = (lambda x: st.std(x, ddof=ddof)), (lambda x: st.var(x, ddof=ddof))

    def second(f, x):
        return (jax.hessian(f)(x), jax.jacrev(jax.grad(f))(x))

    run = jax.jit(
        lambda x: (st.mean(x), var(x), std(x), jax.grad(var)(x), jax.grad(std)(x), second(var, x), second(std, x))
    )
    for sample in SAMPLES:
        got, expected = run(jnp.array(sample, jnp.float32)), exact(sample, ddof)
        for k in range(5):
            assert near(got[k], expected[k], 1e-6), (sample, k, got[k], expected[k])
        for k in (5, 6):
            assert all(near(h, expected[k], 3e-6) for h in got[k]), (sample, k, got[k], expected[k])


def test_the_issue_s_cases():
    assert st.std(jnp.array([1e20, -1e20])) == np.float32(1e20)
    np.testing.assert_allclose(st.var(jnp.array([1.5e19, -1.5e19])), 2.25e38, rtol=2e-7)
    assert st.mean(jnp.full(4, 3e38)) == np.float32(3e38)
    half = jnp.array([300, -300], jnp.float16)
    assert st.std(half) == 300 and st.std(half).dtype == jnp.float16
    for plain in (
        jnp.std(jnp.array([1e20, -1e20])),
        jnp.var(jnp.array([1.5e19, -1.5e19])),
        jnp.mean(jnp.full(4, 3e38)),
    ):
        assert np.isinf(plain)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 3e38, -7.3])
def test_equal_values(value):
    """Exactly 0, although the mean is rounded, and the gradient 0."""
    x = jnp.full(3, value)
    assert st.std(x) == 0 and st.var(x) == 0
    np.testing.assert_array_equal(jax.grad(st.std)(x), 0)
    np.testing.assert_array_equal(jax.vmap(jax.grad(st.std))(x[None])[0], 0)
    assert jnp.std(jnp.full(3, 0.1)) != 0


def test_the_plain_bits_where_they_are_right():
    x = jax.random.normal(jax.random.key(0), (40, 33))
    for ours, plain in ((st.mean, jnp.mean), (st.var, jnp.var), (st.std, jnp.std)):
        np.testing.assert_array_equal(jax.jit(ours)(x), jax.jit(plain)(x))
        np.testing.assert_allclose(jax.vmap(ours)(x), plain(x, axis=1), rtol=5e-7)
        np.testing.assert_array_equal(ours(x.at[0].set(1e30), axis=1)[1:], ours(x, axis=1)[1:])


def test_where_axis_keepdims_and_ddof_as_in_jnp():
    x = jax.random.normal(jax.random.key(0), (3, 4, 5)) + 2
    where = jax.random.bernoulli(jax.random.key(1), 0.7, (4, 5))
    for ours, plain in ((st.var, jnp.var), (st.std, jnp.std)):
        np.testing.assert_allclose(
            ours(x, (0, -1), ddof=1, keepdims=True), plain(x, (0, -1), ddof=1, keepdims=True), 1e-6
        )
        np.testing.assert_allclose(ours(x, 1, where=where), plain(x, 1, where=where), 1e-6)
        np.testing.assert_allclose(
            jax.grad(lambda x: ours(x, where=where, correction=1))(x),  # noqa: B023
            jax.grad(lambda x: plain(x, where=where, correction=1))(x),  # noqa: B023
            atol=1e-7,
        )
        assert np.isnan(ours(x[0, 0, :1], ddof=1))
        with pytest.raises(ValueError, match="`ddof` or `correction`"):
            ours(x, ddof=1, correction=1)
        with pytest.raises(TypeError, match="`x` has dtype complex64; expected real numbers"):
            ours(1j * x)
    np.testing.assert_allclose(
        st.mean(x, 1, where=where, keepdims=True), jnp.mean(x, 1, where=where, keepdims=True), 1e-6
    )
    np.testing.assert_allclose(st.mean(x + 1j), jnp.mean(x + 1j), 1e-6)
    masked = jnp.array([1.0, 3.0, np.nan])
    assert st.std(masked, where=jnp.array([True, True, False])) == 1
    np.testing.assert_array_equal(
        jax.grad(lambda x: st.std(x, where=jnp.array([True, True, False])))(masked), [-0.5, 0.5, 0]
    )
    assert st.std(jnp.arange(3)).dtype == jnp.float32


def test_transforms():
    x = jnp.array(SAMPLES, jnp.float32)
    for f in (st.mean, st.var, st.std):
        rows = f(x, axis=1)
        np.testing.assert_array_equal(jax.vmap(f)(x), rows)
        np.testing.assert_array_equal(jax.lax.scan(lambda c, v: (c, f(v)), 0, x)[1], rows)  # noqa: B023
        forward = jax.jvp(f, (x[0],), (jnp.ones(4),))[1]
        np.testing.assert_allclose(forward, jax.grad(f)(x[0]).sum(), atol=1e-6)
        with jax.numpy_dtype_promotion("strict"):
            assert f(x[0].astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        assert st.std(jnp.array([1e200, -1e200])) == 1e200


def test_results_of_another_dtype():
    x = 1 + jnp.array([0.4, 0.4, 1.4]) * 2**-10
    assert st.mean(x, dtype=jnp.float16) == 1 + 2**-10 and jnp.mean(x, dtype=jnp.float16) == 1  # which rounds x first
    wide = jnp.array([300, -300], jnp.float16)
    assert st.var(wide, dtype=jnp.float32) == 90000 and jnp.isinf(st.var(wide))
    assert st.std(wide, dtype=jnp.bfloat16).dtype == jnp.bfloat16 and st.std(wide, 0, jnp.bfloat16) == 300
    assert st.mean(wide, 0, jnp.complex64) == 0 and st.mean(wide, 0, jnp.complex64).dtype == jnp.complex64
    np.testing.assert_array_equal(
        jax.grad(lambda x: st.mean(x, dtype=jnp.float32))(wide), jnp.full(2, 0.5, jnp.float16)
    )
    with jax.enable_x64(True):
        x = jnp.array([1e8, 1, -1e8], jnp.float32)
        assert st.mean(x, dtype=jnp.float64) == 1 / 3 and st.mean(x) != np.float32(1 / 3)
