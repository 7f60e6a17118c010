"""Scaled products: exact scaling, zeros, derivatives as products of the others."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.stability import prod, scaled_prod
from tests._ulp import ulps

INF = float("inf")


def exact_product(x) -> Fraction:
    product = Fraction(1)
    for v in x:
        product *= Fraction(float(v))
    return product


def test_powers_of_two_cancel():
    x = np.r_[np.full(5000, 2.0), np.full(5000, 0.5)].astype(np.float32)
    m, k = scaled_prod(x)
    assert (m, k) == (0.5, 1) and prod(x) == 1
    assert not np.isfinite(jnp.prod(x)) or jnp.prod(x) == 0
    np.testing.assert_array_equal(jax.jit(jax.grad(prod))(x), 1 / x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 40, 300])
def test_against_fractions(count, dtype):
    with jax.enable_x64(dtype == np.float64):
        rng = np.random.default_rng(count)
        exponents = rng.integers(np.finfo(dtype).minexp, np.finfo(dtype).maxexp - 1, count)
        x = np.ldexp(rng.uniform(-1, 1, count), exponents).astype(dtype)
        m, k = scaled_prod(x)
        exact = exact_product(x)
        assert 0.5 <= abs(m) < 1
        ratio = Fraction(float(m)) * Fraction(2) ** int(k) / exact
        assert abs(ratio - 1) <= (count - 1) * Fraction(float(np.finfo(dtype).eps)) / 2
        gradient = jax.jit(jax.grad(lambda x: scaled_prod(x)[0]))(x)
        scaled = float(exact / Fraction(2) ** int(k))
        inside = np.abs(scaled / x.astype(np.float64)) < np.finfo(dtype).max / 4
        np.testing.assert_allclose(
            gradient[inside], (scaled / x.astype(np.float64))[inside], rtol=count * np.finfo(dtype).eps
        )


def test_subnormal_factors_count():
    x = np.array([1e-45, 3e-40, -1e30], np.float32)
    m, k = scaled_prod(x)
    assert Fraction(float(m)) * Fraction(2) ** int(k) == pytest.approx(exact_product(x), rel=1e-6)


def test_zeros():
    x = jnp.array([0.0, 2.0, 3.0, 4.0])
    m, k = scaled_prod(x)
    assert m == 0
    np.testing.assert_array_equal(jax.grad(lambda x: scaled_prod(x)[0])(x) * 2.0**k, [24, 0, 0, 0])
    np.testing.assert_array_equal(jax.grad(prod)(x), [24, 0, 0, 0])
    two = x.at[2].set(0.0)
    np.testing.assert_array_equal(jax.grad(prod)(two), 0)
    hessian = np.zeros((4, 4))
    hessian[0, 2] = hessian[2, 0] = 8
    for mode in (jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        np.testing.assert_array_equal(jax.jit(mode(prod))(two), hessian)
    long = np.random.default_rng(0).uniform(0.5, 1, 10_000).astype(np.float32)
    long[77] = 0
    m, k = scaled_prod(long)
    slope = jax.jit(jax.grad(lambda x: scaled_prod(x)[0]))(long)[77]
    exact = exact_product(np.delete(long, 77)) / Fraction(2) ** int(k)
    assert float(slope) == pytest.approx(float(exact), rel=1e-4)


def test_the_gradient_where_the_product_underflows():
    x = jnp.array([1e-30, 1e-20, 1.0])
    assert prod(x) == 0
    np.testing.assert_allclose(jax.grad(prod)(x), [1e-20, 1e-30, 0], rtol=1e-6)
    big = jnp.array([1e30, 1e30, 1e-30, 1e-31])
    assert ulps(prod(big), float(exact_product(big))) <= 2
    np.testing.assert_allclose(jax.grad(prod)(big), [1e-31, 1e-31, 1e29, 1e30], rtol=1e-6)


def test_infinities_axes_and_errors():
    assert prod(jnp.array([INF, -2.0])) == -INF and np.isnan(prod(jnp.array([INF, 0.0])))
    assert prod(jnp.zeros((0,))) == 1 and prod(jnp.ones((2, 0)), 1).shape == (2,)
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    for axis in (None, 0, (0, 2), -1):
        np.testing.assert_allclose(prod(x, axis), jnp.prod(x, axis), rtol=1e-5)
        np.testing.assert_allclose(prod(x, axis, keepdims=True), jnp.prod(x, axis, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(prod)(x), jnp.prod(x, (1, 2)), rtol=1e-5)
    with jax.numpy_dtype_promotion("strict"):
        assert prod(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="`axis` 3 is out of range"):
        prod(x, 3)


def test_masks_kept_axes_and_dtypes():
    x = jnp.array([[2.0, 0.0, 3.0], [1e30, 1e30, 1e30]])
    mask = jnp.array([[True, False, True], [True, False, False]])
    np.testing.assert_array_equal(prod(x, 1, where=mask), jnp.prod(x, 1, where=mask))
    np.testing.assert_array_equal(
        jax.grad(lambda x: prod(x, 1, where=mask).sum())(x), [[3.0, 0.0, 2.0], [1.0, 0.0, 0.0]]
    )
    assert prod(x, where=False) == 1
    m, k = scaled_prod(x, 1, keepdims=True, where=jnp.array([True, False, True]))
    np.testing.assert_array_equal(m[0], [0.75])
    np.testing.assert_array_equal(k[0], [3])
    assert m.shape == k.shape == (2, 1) and ulps(m[1], [1e60 / 2.0 ** float(k[1, 0])]) <= 1
    half = jnp.array([300.0, 300.0], jnp.float16)
    assert prod(half, dtype=jnp.float32) == 90000 and jnp.isinf(prod(half))
    assert prod(half, 0, jnp.bfloat16).dtype == jnp.bfloat16


def test_products_along_axes_of_an_empty_array():
    for axis in (0, 1):
        got, plain = prod(jnp.zeros((0, 3)), axis), jnp.prod(jnp.zeros((0, 3)), axis)
        assert got.shape == plain.shape
        np.testing.assert_array_equal(got, plain)
