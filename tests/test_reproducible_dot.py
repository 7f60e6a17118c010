"""Order-free dot products and norms: exact, rounded once, and the same bits for every order and layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad.stability as rs
from tests._exact import exact_dot, pattern
from tests._subset import thinned

RNG = np.random.default_rng(2)
TERMS = (RNG.standard_normal(800) * 10.0 ** RNG.integers(-6, 7, 800)).astype(np.float32)


def test_the_norm_neither_overflows_nor_depends_on_order_or_leaves():
    norm = jax.jit(rs.reproducible_global_norm)
    for scale in (2e-39, 1e-25, 1e20, 1e36):
        x = (RNG.standard_normal(200) * scale).astype(np.float32)
        wide = x.astype(np.float64)
        want = np.sqrt(((wide / scale) ** 2).sum()) * scale
        assert (
            len({pattern(norm(RNG.permutation(x))) for _ in range(5)} | {pattern(norm({"a": x[:7], "b": [x[7:]]}))})
            == 1
        )
        assert abs(float(norm(x)) - want) <= np.spacing(np.float32(want))
    assert np.isinf(jnp.linalg.norm(x)) and norm({}) == 0
    x = RNG.standard_normal(4).astype(np.float32)
    np.testing.assert_allclose(
        jax.hessian(rs.reproducible_global_norm)(x), jax.hessian(jnp.linalg.norm)(x), rtol=1e-5, atol=1e-6
    )
    assert not jax.grad(rs.reproducible_global_norm)(np.zeros(2, np.float32)).any()


def test_dots_are_exact_and_free_of_order():
    a, b = TERMS[:400], TERMS[400:800].copy()
    b[-1], a[-1] = 1e-44, 1e36  # a subnormal that counts
    want, dot, plain = exact_dot(a, b, np.float32), jax.jit(rs.reproducible_dot), jax.jit(jnp.dot)
    orders = [RNG.permutation(400) for _ in range(20)]
    assert {pattern(dot(a[order], b[order])) for order in orders} == {pattern(want)}
    assert len({pattern(plain(a[order], b[order])) for order in orders}) > 1
    assert dot(np.float32([1e30, 1, 1e30, 0] * 100), np.float32([1e30, 1, -1e30, 0] * 100)) == 100
    with jax.enable_x64(True):
        x, y = (z.astype(np.float64) * np.pi for z in (a, b))
        assert pattern(rs.reproducible_dot(x, y)) == pattern(exact_dot(x, y, np.float64))


@pytest.mark.parametrize("slices", thinned([2, None], 2))
def test_matrix_products_depend_on_rows_and_columns_alone(slices: int | None):
    a, b = RNG.standard_normal((4, 50)).astype(np.float32), RNG.standard_normal((50, 3)).astype(np.float32)
    product = jax.jit(functools.partial(rs.reproducible_dot, slices=slices))
    result, order = product(a, b), RNG.permutation(50)
    assert pattern(product(a[:, order], b[order])) == pattern(result)
    assert pattern(product(a[2], b[:, 1])) == pattern(result[2, 1])
    assert pattern(product(a[1:3], b)) == pattern(result[1:3])
    assert pattern(jax.vmap(product, (0, None))(a, b)) == pattern(result)
    assert pattern(jax.vmap(product)(a[:3], b.T)) == pattern(jnp.diagonal(result[:3]))
    exact = np.array([[exact_dot(row, column, np.float32) for column in b.T] for row in a])
    bound = 0 if slices is None else 50 * 2.0 ** (1 - 20 * slices) * np.abs(a).max(1)[:, None] * np.abs(b).max(0)
    assert (np.abs(result - exact) <= bound + np.spacing(np.abs(exact)) * (slices is not None)).all()


def test_derivatives_of_dots():
    a, b = RNG.standard_normal((2, 5)).astype(np.float32), RNG.standard_normal((5, 3)).astype(np.float32)

    def loss(dot):
        return lambda a, b: jnp.sum(jnp.sin(dot(a, b)))

    products = [rs.reproducible_dot, functools.partial(rs.reproducible_dot, slices=2)]
    for product in products:
        got, want = (jax.jit(jax.grad(loss(dot), (0, 1)))(a, b) for dot in (product, jnp.dot))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), got, want)

    def square(dot):
        return lambda x: dot(x, x * b[:, 0]) ** 2

    got, want = (jax.jit(jax.hessian(square(dot)))(a[0]) for dot in (rs.reproducible_dot, jnp.dot))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_special_values_in_matrix_products():
    a, b = RNG.standard_normal((3, 4)).astype(np.float32), RNG.standard_normal((4, 2)).astype(np.float32)
    a[0, 1], a[1, 2] = np.inf, np.nan
    for slices in (None, 2):
        result, plain = rs.reproducible_dot(a, b, slices=slices), jnp.dot(a, b)
        np.testing.assert_array_equal(np.where(np.isfinite(result), 0, result), np.where(np.isfinite(plain), 0, plain))


def test_products_without_terms():
    assert rs.reproducible_dot(jnp.zeros((3, 0)), jnp.zeros((0, 2))).shape == (3, 2)
    assert jax.vmap(rs.reproducible_dot)(jnp.zeros((4, 3, 0)), jnp.zeros((4, 0, 2))).shape == (4, 3, 2)


def test_subnormal_factors_and_products():
    """To the bit; `jnp.dot` reads the first factor as 0, and flushes the second product."""
    a, b = np.array([2.0**-140], np.float32), np.array([2.0**40], np.float32)
    alone, padded = rs.reproducible_dot(a, b), rs.reproducible_dot(np.append(a, [0.0]), np.append(b, [0.0]))
    assert alone == padded == 2.0**-100 and jnp.dot(a, b) == 0
    a, b = np.array([3 * 2.0**-80], np.float32), np.array([2.0**-69], np.float32)
    assert np.asarray(rs.reproducible_dot(a, b)).view(np.int32) == 3  # 3 · 2⁻¹⁴⁹
    assert np.asarray(jnp.dot(a, b)).view(np.int32) == 0


@pytest.mark.parametrize("size", thinned([1e-30, 1e-20, 1.0, 1e20], 4))
def test_the_hessian_of_the_norm_in_the_whole_range(size):
    x = jnp.array([3.0, 4.0]) * size
    want = np.array([[16, -12], [-12, 9]]) / 125
    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        got = np.asarray(hessian(rs.reproducible_global_norm)(x)) * np.float32(size)
        np.testing.assert_allclose(got, want, rtol=8 * np.finfo(np.float32).eps)
    if size != 1:
        assert not np.allclose(jax.hessian(lambda x: jnp.sqrt(jnp.sum(x * x)))(x) * size, want)


def test_mapped_norms_of_nothing():
    np.testing.assert_array_equal(jax.vmap(rs.reproducible_global_norm)(jnp.zeros((3, 0))), np.zeros(3))


@pytest.mark.parametrize("dot", [rs.reproducible_dot, rs.compensated_dot], ids=lambda f: f.__name__)
def test_gradients_of_a_replicated_and_a_sharded_factor(dot):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(8.0), jax.sharding.PartitionSpec())
        y = jax.device_put(jnp.ones(8), jax.sharding.PartitionSpec("d"))
        by_x, by_y = jax.grad(dot, (0, 1))(x, y)
    np.testing.assert_array_equal(by_x, np.ones(8))
    np.testing.assert_array_equal(by_y, np.arange(8))
