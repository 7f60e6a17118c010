"""SignedLog beside exact arithmetic: operators, zeros, infinities, derivatives of the numbers represented."""

import operator
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax

from robustad.stability import SignedLog, prod
from tests._subset import thinned

INF = float("inf")
S = SignedLog.from_array
VALUES = np.array([0, 1, -1, 2.5, -2.5, 1e-3, -30, INF, -INF, np.nan], np.float32)
A, B = (z.ravel() for z in np.meshgrid(VALUES, VALUES))
OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("op", OPERATORS, ids=lambda f: f.__name__)
def test_operators(op):
    with np.errstate(all="ignore"):
        exact = op(A.astype(np.float64), B.astype(np.float64))
        got = jax.jit(lambda a, b: op(S(a), S(b)).to_array())(A, B)
        np.testing.assert_allclose(got, exact, rtol=1e-6)  # exponents up to 7: 7 units of rounding
    finite = np.isfinite(exact) & np.isfinite(A) & np.isfinite(B)
    a, b = A[finite], B[finite]

    def derivatives(f):
        return jax.jit(jax.vmap(jax.grad(f, (0, 1))))(a, b), jax.jit(jax.vmap(jax.jacfwd(f, (0, 1))))(a, b)

    for got, wanted in zip(
        jax.tree.leaves(derivatives(lambda a, b: op(S(a), S(b)).to_array())), jax.tree.leaves(derivatives(op))
    ):
        np.testing.assert_allclose(got, wanted, rtol=3e-6)
    hessians = jax.jit(jax.vmap(jax.hessian(lambda x: op(S(x[0]), S(x[1])).to_array())))(np.stack([a, b], 1))
    wanted = jax.jit(jax.vmap(jax.hessian(lambda x: op(x[0], x[1]))))(np.stack([a, b], 1))
    # (dv)²/v cancels against itself
    size = np.abs(wanted) + (1 / np.where(a == 0, 1, np.abs(a)) + 1 / np.where(b == 0, 1, np.abs(b)))[:, None, None]
    assert (np.abs(hessians - wanted) <= 4e-6 * size).all()


def test_division_by_zero_has_a_signed_infinity_and_derivative():
    np.testing.assert_array_equal((S(jnp.array([1.0, -2.0, 0.0])) / 0.0).to_array(), [INF, -INF, np.nan])
    assert jax.grad(lambda x: (1 / S(x)).to_array())(0.0) == -INF


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons(name):
    op = getattr(operator, name)
    np.testing.assert_array_equal(op(S(A), S(B)), op(A, B))
    np.testing.assert_array_equal(op(S(A), 2.5), op(A, 2.5))


@pytest.mark.parametrize("power", thinned([0.5, 0, 1, 2, 3, -1, -2, 2.0, -1.5], 5))
def test_powers(power):
    x = VALUES[np.isfinite(VALUES)]
    x = x[x >= 0] if power != int(power) else x
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose((S(x) ** power).to_array(), np.power(x, np.float32(power)), rtol=3e-6)
    gradient = jax.vmap(jax.grad(lambda x: (S(x) ** power).to_array()))(x)
    wanted = jax.vmap(jax.grad(lambda x: x**power))(x)
    if power == -2:  # a jump from -∞ to ∞: any
        gradient, wanted, x = gradient[x != 0], wanted[x != 0], x[x != 0]
    np.testing.assert_allclose(gradient, wanted, rtol=4e-6)
    if power != int(power):
        assert np.isnan((S(-2.0) ** power).to_array())
        np.testing.assert_allclose(
            jax.grad(lambda p: (S(2.5) ** p).to_array())(power), np.log(2.5) * 2.5**power, rtol=1e-6
        )


def test_a_product_of_many_factors():
    """10⁵ factors with a zero: the product's derivative there is the product of the others."""
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    with mpmath.workprec(80):
        log = mpmath.fsum(mpmath.log(abs(mpmath.mpf(float(v)))) for v in x[1:])
    x[0] = 0
    product, tangent = jax.jit(lambda x: jax.jvp(lambda x: S(x).prod(), (x,), (jnp.zeros_like(x).at[0].set(1),)))(x)
    assert product.sign == 0 and product.log == -INF
    assert tangent.sign == (-1) ** int((x < 0).sum())
    assert abs(float(product.exponent) - float(log)) <= np.spacing(np.float32(abs(float(log))))
    x[0] = -2.0
    full = S(x).prod()
    assert abs(float(full.exponent) - float(log) - np.log(2)) <= 2 * np.spacing(np.float32(abs(float(log))))
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: S(x).prod().log))(x), 1 / x, rtol=1e-6)
    assert np.prod(x) == 0
    few = jnp.array([0.0, -3.0, 4.0])
    np.testing.assert_allclose(jax.grad(lambda x: S(x).prod().to_array())(few), [-12, 0, 0], rtol=1e-6)
    hessian = jax.hessian(lambda x: S(x).prod().to_array())(jnp.array([0.0, 0.0, 4.0]))
    np.testing.assert_allclose(hessian, [[0, 4, 0], [4, 0, 0], [0, 0, 0]], rtol=1e-6)


def operands():
    rng = np.random.default_rng(1)
    m, n = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    n[1, 1] = 0
    return m, n


@pytest.mark.parametrize("axis", thinned([0, None, [0, 1]], 3))
def test_sums_means_and_products(axis):
    m, axis = operands()[0], tuple(axis) if isinstance(axis, list) else axis
    np.testing.assert_allclose(S(m).sum(axis).to_array(), m.sum(axis), rtol=2e-6)
    np.testing.assert_allclose(S(m).mean(axis).to_array(), m.mean(axis), rtol=2e-6)
    np.testing.assert_allclose(S(m).prod(axis).to_array(), m.prod(axis), rtol=4e-6)
    assert S(m).sum(axis, keepdims=True).shape == m.sum(axis, keepdims=True).shape


@pytest.mark.parametrize("vectors", thinned(["none", "left", "right", "both"], 4))
def test_matrix_products(vectors):
    m, n = operands()
    a, b = m[0] if vectors in ("left", "both") else m, n[:, 0] if vectors in ("right", "both") else n
    for product in (S(a) @ S(b), S(a) @ b, a @ S(b), jnp.asarray(a) @ S(b)):
        np.testing.assert_allclose(product.to_array(), a @ b, rtol=4e-6)


def test_derivatives_and_edges_of_sums_and_products():
    m, n = operands()
    jacobian = jax.jit(jax.jacobian(lambda m, n: (S(m) @ S(n)).to_array(), (0, 1)))(m, n)
    for got, wanted in zip(jacobian, jax.jacobian(jnp.matmul, (0, 1))(m, n)):
        np.testing.assert_allclose(got, wanted, rtol=4e-6, atol=1e-37)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 4\)"):
        S(m) @ S(m)
    slope = jax.jit(jax.grad(lambda x: S(x).sum().to_array()))
    for x in ([1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [5.0, -2.0, 1e30]):
        np.testing.assert_allclose(slope(jnp.array(x)), 1, rtol=2e-5)
    assert S(jnp.zeros(0)).sum().to_array() == 0 and S(jnp.zeros(0)).prod().to_array() == 1
    assert np.isnan(S(jnp.array([INF, -INF])).sum().to_array()) and S(jnp.array([INF, 1.0])).sum().to_array() == INF


def test_beyond_the_range_of_floats():
    huge = SignedLog.from_log(jnp.array([1e4, 1e4 + 1]), jnp.array([1, -1]))
    total = huge.sum()
    assert total.sign == -1
    np.testing.assert_allclose(total.log, 1e4 + np.log(np.e - 1), rtol=1e-7)
    np.testing.assert_allclose((huge[1] / huge[0]).to_array(), -np.e, rtol=2e-7)
    difference = SignedLog.from_log(3.0) - SignedLog.from_log(3.0 - 2.0**-20)
    exact = float(mpmath.exp(3) * -mpmath.expm1(-(mpmath.mpf(2) ** -20)))
    np.testing.assert_allclose(difference.to_array(), exact, rtol=1e-6)
    assert SignedLog.from_log(-INF).sign == 0 and SignedLog.from_log(2.0, 0).to_array() == 0


def test_used_as_an_array():
    x = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    a = S(x)
    assert (a.shape, a.ndim, a.size, len(a), a.dtype) == ((3, 4), 2, 12, 3, jnp.float32)
    for got, wanted in (
        (a.T, x.T),
        (a[1:, ::2], x[1:, ::2]),
        (a.reshape(2, 6), x.reshape(2, 6)),
        (a.ravel(), x.ravel()),
        (abs(a), abs(x)),
        (-a, -x),
        (2 - a, 2 - x),
        (2 / a, 2 / x),
        (x + a, x + x),
        (a[None].squeeze(0), x),
    ):
        np.testing.assert_allclose(got.to_array(), wanted, rtol=2e-6)
    assert [float(row.sum().to_array()) for row in a] == pytest.approx(x.sum(1).tolist(), rel=1e-5)
    carried = jax.jit(lambda m: lax.scan(lambda c, r: (c * S(r) + 1.0, None), S(jnp.ones(4)), m)[0])(x)
    wanted = np.ones(4)
    for row in x:
        wanted = wanted * row + 1
    np.testing.assert_allclose(carried.to_array(), wanted, rtol=1e-5)
    assert jax.vmap(lambda r: S(r).sum())(x).shape == (3,)
    with jax.numpy_dtype_promotion("strict"):
        assert S(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(TypeError, match="`x` has dtype complex64; expected real numbers"):
        S(1j)


def test_plain_products_fail():
    x = np.array([1e-30, 1e-30, 1e30, 1e30, -2.0], np.float32)
    exact = float(np.prod([Fraction(float(v)) for v in x]))
    assert np.prod(x) == 0
    np.testing.assert_allclose(S(x).prod().to_array(), exact, rtol=2e-6)
    np.testing.assert_allclose(prod(x), exact, rtol=2e-7)


def test_zeros_among_large_numbers():
    """`jnp.prod` has met an infinity before it meets the zero: NaN."""
    zero, large = S(0.0), SignedLog.from_log(1000.0)
    assert (zero * large).to_array() == 0
    x = jnp.array([1e30, 1e30, 0.0])
    assert S(x).prod().to_array() == 0 and np.isnan(jnp.prod(x))
    assert S(x[::-1]).prod().to_array() == 0
    undefined = zero / 0.0
    assert jnp.isnan(undefined.to_array()) and jnp.isnan(undefined.log)
