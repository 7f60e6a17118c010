"""Norms over the whole range: value, two derivatives, transforms, and the bits of the plain form where it is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability as st

INF, NAN = np.inf, np.nan
VECTORS = [
    [3.0, -4.0, 12.0],
    [1e20, -2e20, 3e20],
    [3e-20, 4e-20, 0.0],
    [1e-25, 2e-25, -1e-25],
    [1e20, 1e-20, 1.0],
    [2e38, 1e38, -1e38],
]
TINY = 1.2e-38


def exact(x, p=2.0):
    """Norm, gradient and Hessian in float64, for which this range is small."""
    x = np.asarray(x, np.float32).astype(np.float64)
    n = (np.abs(x) ** p).sum() ** (1 / p)
    r = np.abs(x) / n
    g = np.sign(x) * r ** (p - 1)
    return n, g, (p - 1) / n * (np.diag(r ** (p - 2)) - np.outer(g, g))


def close(got, expected, rtol=1e-6, scale=1.0):
    expected = np.asarray(expected)
    assert np.all(np.abs(np.asarray(got, np.float64) - expected) <= np.maximum(rtol * np.abs(expected), TINY) * scale)


@pytest.mark.parametrize("p", [2.0, 3.0, 2.5])
def test_value_gradient_and_hessian_over_the_range(p):

    def f(x):
        return st.norm(x, p)

    run = jax.jit(lambda x: (f(x), jax.grad(f)(x), jax.hessian(f)(x), jax.jacrev(jax.grad(f))(x)))
    for v in VECTORS:
        x = jnp.array(v, jnp.float32)
        n, g, h = exact(v, p)
        value, slope, forward, reverse = run(x)
        close(value, n)
        close(slope, g, 2e-6)
        largest = (p - 1) / n  # elements of the Hessian are differences of two such
        for got in (forward, reverse):
            assert np.all(np.abs(np.asarray(got, np.float64) - h) <= 3e-6 * largest + TINY)


def test_the_plain_form_fails():
    for v in VECTORS[1:4]:
        n, g, _ = exact(v)
        x = jnp.array(v, jnp.float32)
        assert not np.isclose(jnp.linalg.norm(x), n, rtol=1e-3) or not np.allclose(jax.grad(jnp.linalg.norm)(x), g)


def test_the_plain_bits_where_squares_are_in_range():
    x = jax.random.normal(jax.random.key(0), (50, 64))
    with jax.disable_jit(False):
        plain = jax.jit(lambda x: (jnp.linalg.norm(x), jnp.linalg.norm(x, axis=1), jnp.linalg.norm(x, 3, axis=0)))
        ours = jax.jit(lambda x: (st.norm(x), st.norm(x, axis=1), st.norm(x, 1, axis=0)))
    np.testing.assert_array_equal(plain(x)[0], ours(x)[0])
    np.testing.assert_array_equal(plain(x)[1], ours(x)[1])
    np.testing.assert_array_equal(ours(x)[2], jnp.linalg.norm(x, 1, axis=0))
    # A neighbour that needs care does not change the others' bits.
    np.testing.assert_array_equal(st.norm(x.at[0].set(1e30), axis=1)[1:], st.norm(x, axis=1)[1:])


def test_at_zero():
    x = jnp.zeros(3)
    for p in (2, 3, 2.5):
        np.testing.assert_array_equal(jax.grad(lambda x: st.norm(x, p))(x), 0)  # noqa: B023
    np.testing.assert_array_equal(jax.grad(lambda x: st.norm(x) ** 2)(x), 0)
    assert jax.grad(lambda a: st.norm(a * x))(1.3) == 0
    assert np.isnan(jax.grad(jnp.linalg.norm)(x)).all()
    np.testing.assert_array_equal(jax.hessian(st.norm)(x).diagonal(), INF)
    np.testing.assert_array_equal(st.normalize(x), 0)


def test_infinities_and_nan():
    x = jnp.array([INF, 1.0, -INF])
    assert st.norm(x) == INF
    np.testing.assert_allclose(jax.grad(st.norm)(x), [0.5**0.5, 0, -(0.5**0.5)], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(st.norm)(jnp.array([-INF, 2.0])), [-1, 0])
    assert np.isnan(st.norm(jnp.array([NAN, INF]))) and np.isnan(jax.grad(st.norm)(jnp.array([NAN, 1.0]))).all()
    # The value overflows, the gradient does not.
    np.testing.assert_allclose(jax.grad(st.norm)(jnp.array([3e38, 3e38])), 0.5**0.5, rtol=1e-6)


@pytest.mark.parametrize("ord", [0, 1, INF, -INF, 3, "fro", None])
def test_orders_axes_and_keepdims_as_in_jnp(ord):
    x = jax.random.normal(jax.random.key(1), (3, 4, 5))
    for axis in (0, -1) if ord != "fro" else ((0, 2), (-1, 0)):
        for keepdims in (False, True):
            got = st.norm(x, ord, axis=axis, keepdims=keepdims)
            np.testing.assert_allclose(got, jnp.linalg.norm(x, ord, axis=axis, keepdims=keepdims), rtol=1e-6)
    np.testing.assert_allclose(
        st.norm(x[0, 0], ord), jnp.linalg.norm(x[0].reshape(-1)[:5], None if ord == "fro" else ord), 1e-6
    )


def test_other_dtypes():
    half = jnp.full(12, 300, jnp.float16)
    assert st.norm(half) == jnp.float16(1039) and jnp.isinf(jnp.linalg.norm(half.astype(jnp.float16) ** 2))
    assert jax.grad(st.norm)(half).dtype == jnp.float16
    assert st.norm(jnp.arange(3)).dtype == jnp.float32
    z = jnp.array([3e20 + 4e20j])
    np.testing.assert_allclose(st.norm(z), 5e20, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(st.norm)(z), [0.6 - 0.8j], rtol=1e-6)
    np.testing.assert_allclose(st.normalize(z), [0.6 + 0.8j], rtol=1e-6)
    with jax.enable_x64(True):
        x = jnp.array([3e200, 4e-200])
        assert st.norm(x) == 3e200 and jax.grad(st.norm)(x)[0] == 1
    with jax.numpy_dtype_promotion("strict"):
        tree = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
        assert st.global_norm(tree) == 2 and st.global_norm(tree).dtype == jnp.float32


def test_transforms():
    x = jnp.array(VECTORS, jnp.float32)
    rows = st.norm(x, axis=1)
    np.testing.assert_array_equal(jax.vmap(st.norm)(x), rows)
    np.testing.assert_array_equal(jax.vmap(st.norm, in_axes=1)(x.T), rows)
    np.testing.assert_array_equal(jax.lax.scan(lambda c, v: (c, st.norm(v)), 0, x)[1], rows)
    np.testing.assert_allclose(jax.vmap(jax.vmap(st.norm))(x[None])[0], rows)
    np.testing.assert_allclose(jax.jvp(st.norm, (x[1],), (x[1],))[1], rows[1], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(st.norm))(x)[1], exact(VECTORS[1])[1], rtol=1e-6)
    assert st.norm(jnp.zeros(0)) == 0 and st.norm(jnp.zeros((2, 0)), INF, axis=1).shape == (2,)
    # The batch rule keeps the branch: no select of both passes.
    assert "cond" in str(jax.make_jaxpr(jax.vmap(st.norm))(x))


def test_global_norm():
    tree = {"w": jnp.array([[3e20]]), "b": [jnp.array([4e20]), jnp.zeros(0)]}
    np.testing.assert_allclose(st.global_norm(tree), 5e20, rtol=1e-6)
    slope = jax.grad(st.global_norm)(tree)
    np.testing.assert_allclose([slope["w"][0, 0], slope["b"][0][0]], [0.6, 0.8], rtol=1e-6)
    assert st.global_norm({}) == 0
    batched = jax.vmap(st.global_norm, in_axes=({"a": 0, "b": None},))({"a": jnp.ones((3, 2)), "b": jnp.ones(2)})
    np.testing.assert_allclose(batched, 2)


def test_cosine_similarity():
    x, y = jnp.array([1e-25, 2e-25]), jnp.array([3e25, -1e25])
    np.testing.assert_allclose(st.cosine_similarity(x, y), 1 / 50**0.5, rtol=1e-6)
    u, v = np.array([1.0, 2.0]) / 5**0.5, np.array([3.0, -1.0]) / 10**0.5
    np.testing.assert_allclose(jax.grad(st.cosine_similarity)(x, y), (v - (u @ v) * u) / (5**0.5 * 1e-25), rtol=1e-5)
    assert st.cosine_similarity(jnp.ones((3, 1, 2)), jnp.ones((4, 2))).shape == (3, 4)


def test_errors():
    for ord in ("nuc", -1, NAN):
        with pytest.raises(ValueError, match="norm: `ord`"):
            st.norm(jnp.ones(3), ord)
    with pytest.raises(ValueError, match="matrix norm"):
        st.norm(jnp.ones((3, 3)), 2.5)
    with pytest.raises(ValueError, match="out of range"):
        st.norm(jnp.ones(3), axis=1)


def test_a_cosine_is_at_most_1():
    """Rounded sums of products of unit vectors pass 1 by an ulp, of which the arc cosine is NaN."""
    x = np.random.default_rng(0).normal(size=(1000, 7)).astype(np.float32)
    unit = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    assert (unit * unit).sum(1).max() > 1
    cosine = st.cosine_similarity(x, x)
    assert cosine.max() <= 1 and cosine.min() >= 1 - 4 * np.finfo(np.float32).eps
    y = x[:, ::-1]
    slope = jax.grad(lambda x: st.cosine_similarity(x, y).sum())(x)
    plain = jax.grad(lambda x: (x * y).sum(1) @ (1 / jnp.linalg.norm(x, axis=1) / jnp.linalg.norm(y, axis=1)))(x)
    np.testing.assert_allclose(slope, plain, atol=1e-5)
