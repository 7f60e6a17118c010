"""Value, first and second derivative of every twin against mpmath, and what plain JAX gives there."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax
from jax.scipy import special

from robustad.rewriting.twins._elementwise import acos_of_contraction
from robustad.rewriting.twins._special import bessel_i0, bessel_i1
from tests._subset import thinned
from tests._ulp import ulps
from tests.rewriting._oracle import FUNCTIONS, Function, points, words
from tests.rewriting._walk import names, twinned

DTYPES = {"f32": np.float32, "f64": np.float64}
mp = mpmath.mp


def orders(f):
    return jax.jit(lambda x: [g(x) for g in (f, jax.vmap(jax.grad(f)), jax.vmap(jax.grad(jax.grad(f))))])


CASES = [(function, dtype) for dtype in DTYPES for function in FUNCTIONS]


@pytest.mark.parametrize(
    "function, dtype", thinned(CASES, 3, CASES[: len(FUNCTIONS)]), ids=lambda x: getattr(x, "name", x)
)
def test_three_orders_against_mpmath(function: Function, dtype: str):
    kind = DTYPES[dtype]
    with jax.enable_x64(dtype == "f64"):
        x = points(function, kind, 16)
        ours, plain = orders(twinned(function.plain))(x), orders(function.plain)(x)
        worst = []
        for order, exact in enumerate(function.exact):
            if exact is None:
                continue
            truth = np.array([words(exact, float(v)) for v in x])
            known = ~np.isnan(truth[:, 0])
            error, before = (ulps(y[order], *truth.T)[known] for y in (ours, plain))
            i = int(error.argmax())
            assert error[i] <= function.ulp[order], (order, x[known][i], np.asarray(ours[order])[known][i], error[i])
            worst.append(before.max())
        assert all(worst[order] > 500 for order in function.plain_fails), worst
        if not function.better:
            np.testing.assert_array_equal(ours[0], plain[0])


@pytest.mark.parametrize("function", thinned(FUNCTIONS, 4), ids=[f.name for f in FUNCTIONS])
def test_transforms(function: Function):
    """Eager, jit, vmap, both modes, scan and half precision agree."""
    low, high = (min(max(bound, -4), 4) for bound in function.domain)
    x = jnp.array([low * 0.7 + high * 0.3, low * 0.2 + high * 0.8], jnp.float32)
    f = twinned(function.plain)

    def looped(x):
        return lax.scan(lambda c, v: (c + f(v), None), 0.0, x)[0]

    @jax.jit
    def run(x):
        slope, second = jax.vmap(jax.grad(f))(x), jax.vmap(jax.grad(jax.grad(f)))(x)
        forward = jax.jvp(f, (x,), (jnp.ones_like(x),))[1], jax.vmap(jax.jacfwd(jax.grad(f)))(x)
        through = jax.grad(looped)(x), jnp.diagonal(jax.jacrev(jax.grad(looped))(x))
        return (slope, second), forward, through

    expected, *others = run(x)
    for other in others:
        np.testing.assert_allclose(other, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(f)(x[0]), expected[0][0], rtol=1e-5)  # eager
    for half in (jnp.bfloat16, jnp.float16):
        h = x.astype(half)
        got, wide = (jax.vmap(jax.grad(f))(y) for y in (h, h.astype(jnp.float32)))
        assert got.dtype == half
        np.testing.assert_allclose(got.astype(np.float32), wide, rtol=4 * float(jnp.finfo(half).eps))


# ---- division, powers, angles, remainders


def _close(got, truth, rtol=1e-5):
    """Results below the normal numbers may be flushed."""
    np.testing.assert_allclose(got, truth, rtol=rtol, atol=1.2e-38)


def test_division_in_every_range():
    f, plain = twinned(lambda x, y: x / y), lambda x, y: x / y
    first = jax.jit(jax.grad(f, (0, 1)))
    second = jax.jit(jax.grad(jax.grad(f, 1), 1))
    forward = jax.jit(lambda x, y: jax.jvp(lambda y: jax.grad(f, 1)(x, y), (y,), (1.0,))[1])
    for x, y in [(1e-25, 1e-25), (3e25, 2e25), (1e-30, 1e-20), (-1e-10, 1e-22), (1e30, -1e24), (2.0, 3.0)]:
        x64, y64 = float(np.float32(x)), float(np.float32(y))
        with np.errstate(over="ignore", under="ignore"):
            _close(first(x, y), (np.float32(1 / y64), np.float32(-x64 / y64**2)))
            for g in (second, forward):
                _close(g(x, y), np.float32(2 * x64 / y64**3))
    negated = jax.jit(jax.grad(lambda x, y: -f(x, y), 1))
    _close(negated(1e-25, 1e-25), 1e25)  # XLA would divide x by y²
    assert jax.grad(plain, 1)(1e-25, 1e-25) == -jnp.inf
    _close(jax.grad(f, 1)(1e-25, 1e-25), -1e25)
    assert jax.grad(f, 1)(1.0, 0.0) == -jnp.inf and jnp.isnan(jax.grad(f, 1)(0.0, 0.0))
    x = jnp.arange(1.0, 4.0)
    gradients = jax.grad(lambda x, y: f(x, y).sum(), (0, 1))(x, jnp.float32(2))
    _close(gradients[0], np.full(3, 0.5))
    _close(gradients[1], -1.5)
    batched, reference = (jax.jit(jax.vmap(jax.hessian(g, (0, 1)), (0, None)))(x, 2.0) for g in (f, plain))
    jax.tree.map(_close, batched, reference)


@pytest.mark.parametrize("n", thinned([3, -2, 4, 7, -1, -3], 3))
def test_integer_powers(n):
    f = twinned(lambda x: lax.integer_pow(x, n))
    run = jax.jit(lambda x: (f(x), jax.grad(f)(x), jax.grad(jax.grad(f))(x), jax.hessian(f)(x)))
    for x in (0.7, -1.3, 2.0):
        second = n * (n - 1) * x ** (n - 2)
        _close(run(x), (x**n, n * x ** (n - 1), second, second))


def test_integer_powers_share_the_cotangent():
    plain, f = lambda x: 1e30 * lax.integer_pow(x, 3), lambda x: 1e30 * twinned(lambda x: lax.integer_pow(x, 3))(x)
    _close(jax.grad(f)(1e-20), 3e-10)
    assert jax.grad(plain)(1e-20) == 0


def test_powers_at_zero_and_elsewhere():
    """P9, P10, P11 and their kin."""
    f = twinned(lambda x, y: lax.pow(x, y))
    assert jax.grad(f)(0.0, 0.0) == 0 and jnp.isnan(jax.grad(lax.pow)(0.0, 0.0))
    assert jax.grad(f)(0.0, 1.0) == 1 and jax.grad(f)(0.0, 2.0) == 0 and jax.grad(f)(0.0, 0.5) == jnp.inf
    assert jax.grad(f, 1)(0.0, 2.0) == 0 and jax.grad(f, 1)(0.0, 0.0) == 0 and jax.grad(f, 1)(0.0, -1.0) == -jnp.inf
    assert jax.grad(f, 1)(jnp.inf, -1.0) == 0
    exponents = jnp.arange(3)
    assert jax.grad(twinned(lambda x: jnp.sum(x**exponents)))(0.0) == 1
    assert jax.grad(twinned(lambda x: jnp.power(x - jnp.floor(x), jnp.zeros(1))[0]))(1.0) == 0
    assert jax.grad(twinned(lambda x: jnp.power(x, 0.0)))(0.0) == 0
    rng = np.random.default_rng(3)
    gradient, hessian = jax.jit(jax.grad(f, (0, 1))), jax.jit(jax.hessian(f, (0, 1)))
    for x, y in zip(np.exp(rng.uniform(-8, 8, 12)), rng.uniform(-6, 6, 12)):
        x, y = float(np.float32(x)), float(np.float32(y))
        log = np.log(x)
        (xx, xy), (_, yy) = hessian(x, y)
        _close(gradient(x, y), (y * x ** (y - 1), x**y * log), 3e-5)
        scale = abs(x ** (y - 1))
        np.testing.assert_allclose(xx, y * (y - 1) * x ** (y - 2), rtol=1e-4)
        np.testing.assert_allclose(yy, x**y * log**2, rtol=1e-4)
        np.testing.assert_allclose(xy, x ** (y - 1) * (1 + y * log), rtol=1e-4, atol=1e-5 * scale)


def test_the_remainder_counts_as_it_divides():
    f = twinned(lax.rem)
    assert jax.grad(f, (0, 1))(7.0, 2.0) == (1, -3) and jax.grad(f, (0, 1))(-7.0, 2.0) == (1, 3)
    rng = np.random.default_rng(0)
    y = rng.uniform(0.1, 3, 20000).astype(np.float32)
    x = np.nextafter((y * rng.integers(1, 9000, y.size)).astype(np.float32), np.float32(0))
    truth = -np.trunc(x.astype(np.float64) / y)
    slope = jax.grad(lambda x, y: f(x, y).sum(), 1)(x, y)
    np.testing.assert_array_equal(slope, truth)
    assert (jax.grad(lambda x, y: lax.rem(x, y).sum(), 1)(x, y) != truth).any()


def test_the_angle_in_every_range():
    """P24."""
    f = twinned(jnp.arctan2)
    for y, x in [(1e-30, 1e-30), (3e30, -4e30), (1e-20, 1.0), (-2.0, 1e-25), (2e-38, 4e-38), (3e38, 2e38)]:
        h = float(np.float32(x)) ** 2 + float(np.float32(y)) ** 2
        for run in (jax.grad(f, (0, 1)), jax.jit(jax.grad(f, (0, 1)))):
            _close(run(y, x), (x / h, -y / h))
    assert jax.grad(f, (0, 1))(jnp.inf, 1.0) == (0, 0) and jnp.isnan(jax.grad(f)(0.0, 0.0))
    assert jnp.isinf(jax.grad(jnp.arctan2)(1e-30, 1e-30))
    jax.tree.map(_close, jax.hessian(f, (0, 1))(1.0, 2.0), ((-0.16, -0.12), (-0.12, 0.16)))


# ---- choices


@pytest.mark.parametrize("compiled", thinned([True, False], 2))
def test_what_is_not_chosen_gets_no_infinite_cotangent(compiled):
    """P16 and its kin."""
    run = jax.jit if compiled else lambda f: f
    cases = [
        (lambda x: jnp.arccos(jnp.clip(x, -1, 1)), 10.0),
        (lambda x: jnp.arcsin(jnp.minimum(x, 1)), 3.0),
        (lambda x: jnp.sqrt(jnp.maximum(x, 0)), -1.0),
        (lambda x: jnp.log(jnp.maximum(x, 0)), -1.0),
        (lambda x: jnp.sqrt(jnp.max(jnp.stack([x, jnp.zeros_like(x)]))), -1.0),
        (lambda x: jnp.sqrt(lax.cummax(jnp.stack([jnp.zeros_like(x), x])))[1], -1.0),
        (lambda x: jnp.sqrt(jax.nn.relu6(x)), -1.0),
    ]
    for f, x in cases:
        assert run(jax.grad(twinned(f)))(x) == 0
        assert run(jax.vmap(jax.grad(twinned(f))))(jnp.array([x]))[0] == 0
    assert jnp.isnan(jax.grad(cases[2][0])(-1.0)) and jnp.isnan(jax.grad(cases[0][0])(10.0))
    assert run(jax.grad(twinned(cases[0][0])))(1.0) == -jnp.inf  # half of the pole: a tie


def test_ties_are_shared_as_in_jax():
    x, y = jnp.array([1.0, 2.0, 3.0, jnp.nan]), jnp.array([2.0, 2.0, 2.0, 2.0])
    for f in (lax.max, lax.min):
        for i in (0, 1):
            ours, plain = (jax.grad(lambda *a, g=g: g(*a).sum(), i)(x, y) for g in (twinned(f), f))
            np.testing.assert_array_equal(ours[:3], plain[:3])
    rows = jnp.array([[3.0, 1.0, 3.0], [2.0, 5.0, 5.0]])
    for f in (lambda x: jnp.max(x, 0), lambda x: jnp.min(x, 1), jnp.max, lambda x: lax.cummax(x, axis=1)):
        ours, plain = (jax.grad(lambda x, g=g: (g(x) * 2).sum())(rows) for g in (twinned(f), f))
        np.testing.assert_array_equal(ours, plain)


# ---- special functions


def test_poles_of_the_gamma_function():
    """P43; trigamma has poles of one sign at the negative integers, digamma none."""
    f = twinned(special.digamma)
    for g in (f, jax.jit(f)):
        assert g(0.0) == -jnp.inf and jax.grad(g)(0.0) == jnp.inf and g(-0.0) == jnp.inf
    assert abs(jax.grad(special.digamma)(-8.65) / float(mp.polygamma(1, -8.65)) - 1) > 0.1
    assert jnp.isnan(f(-1.0)) and jax.grad(f)(-1.0) == jnp.inf
    assert jax.grad(twinned(special.gammaln))(0.0) == -jnp.inf
    g = twinned(lambda x: special.polygamma(1, x))
    for x in (-1.5, -0.25, 0.7, 3.0, 1e6):
        truth = [float(mp.polygamma(n, x)) for n in (1, 2)]
        _close([g(x), jax.grad(g)(x)], truth, 2e-5)
    with pytest.raises(ValueError, match="with respect to m"):
        jax.grad(twinned(lax.polygamma))(2.0, 1.0)


def test_functions_for_shapes():
    """What stands for more than one equation: exp|x| times a scaled Bessel function, the arc cosine of a contraction."""
    for x in (1e-30, 0.5, 7.0, -3.0):
        i0, i1 = (float(mp.besseli(n, x)) for n in (0, 1))
        y = jnp.float32(x)
        _close([bessel_i0(y), jax.grad(bessel_i0)(y), jax.grad(bessel_i1)(y)], [i0, i1, i0 - i1 / x], 2e-5)
    assert jax.grad(bessel_i1)(jnp.float32(0)) == 0.5
    p = jnp.array([0.3, 0.7])
    slope = jax.jit(jax.grad(lambda p: acos_of_contraction(jnp.vdot(jnp.sqrt(p), jnp.sqrt(jnp.array([0.3, 0.7]))))))(p)
    np.testing.assert_array_equal(slope, 0)  # P17
    _close(jax.grad(acos_of_contraction)(jnp.float32(0.9)), jax.grad(jnp.arccos)(0.9))


def test_incomplete_functions_have_densities():
    f, plain = twinned(special.gammainc), special.gammainc
    a = 1e4
    truth = float(mp.exp(-a + (a - 1) * mp.log(a) - mp.loggamma(a)))
    _close(jax.grad(f, 1)(a, a), truth, 1e-6)
    assert abs(jax.grad(plain, 1)(a, a) / truth - 1) > 1e-4
    _close(jax.grad(twinned(special.gammaincc), 1)(a, a), -truth, 1e-6)
    _close(jax.grad(f, 0)(2.0, 3.0), jax.grad(plain, 0)(2.0, 3.0))
    truth = float(mp.exp((a - 1) * mp.log(0.25) - mp.log(mp.beta(a, a))))
    _close(jax.grad(twinned(special.betainc), 2)(a, a, 0.5), truth, 1e-5)
    with pytest.raises(ValueError, match="betainc"):
        jax.grad(twinned(special.betainc))(2.0, 3.0, 0.5)


# ---- complex numbers, factorisations, products


def test_lengths_and_directions_of_complex_numbers():
    """P23."""
    f = twinned(jnp.abs)
    for z, slope in [(jnp.inf + 0j, 1), (3e-30 + 4e-30j, 0.6 - 0.8j), (0j, 0), (-3e30 + 4e30j, -0.6 - 0.8j)]:
        np.testing.assert_allclose(jax.grad(f)(jnp.complex64(z)), slope, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.grad(f))(jnp.complex64(z)), slope, rtol=1e-6)
    assert jnp.isnan(jax.grad(jnp.abs)(jnp.complex64(jnp.inf)))
    z, step = jnp.complex64(3 + 4j), jnp.complex64(1e-2j)
    _, moved = jax.jvp(twinned(jnp.sign), (z,), (step,))
    exact = complex(0.6, 0.8) * 1j * (0.6 * 1e-2) / 5
    np.testing.assert_allclose(moved, exact, rtol=1e-5)


def test_factorisations_with_repeated_values():
    """P13, P14."""
    a = jnp.diag(jnp.array([4.0, 1.0, 1.0]))
    vector = twinned(lambda a: jnp.linalg.eigh(a)[1][0, 2])
    assert jnp.all(jax.grad(vector)(a) == 0) and jnp.isnan(jax.grad(lambda a: jnp.linalg.eigh(a)[1][0, 2])(a)).any()
    assert jnp.all(jax.jit(jax.vmap(jax.grad(vector)))(a[None]) == 0)

    def length(a):
        u, s, vh = jnp.linalg.svd(a)
        return jnp.linalg.norm((u * s) @ vh)

    b = jnp.diag(jnp.array([1.0, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(jax.grad(twinned(length))(b), b / jnp.linalg.norm(b), atol=1e-6)
    assert jnp.isnan(jax.grad(length)(b)).any()
    nuclear = twinned(lambda a: jnp.linalg.norm(a, "nuc"))
    np.testing.assert_allclose(jax.grad(nuclear)(b), jnp.eye(4), atol=1e-6)
    np.testing.assert_allclose(jax.grad(nuclear)(1e-25 * b), jnp.eye(4), atol=1e-6)
    tall = jnp.arange(6.0).reshape(3, 2)
    for f in (
        lambda a: jnp.linalg.svd(a, full_matrices=False)[0][0, 0],
        lambda a: jnp.linalg.svd(a.T, full_matrices=False)[2][0, 0],
        lambda a: jnp.linalg.eigh(a.T @ a + jnp.eye(2))[1][0, 0],
        lambda a: jnp.linalg.cholesky(a.T @ a + jnp.eye(2))[1, 0],
    ):
        np.testing.assert_allclose(jax.jit(jax.grad(twinned(f)))(tall), jax.jit(jax.grad(f))(tall), atol=1e-6)
        np.testing.assert_array_equal(twinned(f)(tall), f(tall))
    assert jnp.isfinite(jax.grad(twinned(lambda a: jnp.linalg.cholesky(a)[1, 0]))(jnp.ones((2, 2)))).all()


def test_products_leave_the_range_in_the_middle_only():
    f = twinned(jnp.prod)
    x = jnp.array([1e30, 1e30, 1e-30, 1e-30])
    assert f(x) == 1 and jnp.prod(x) == jnp.inf
    first, second = jax.jit(jax.grad(f)), jax.jit(jax.hessian(f))
    np.testing.assert_allclose(first(x), 1 / x, rtol=1e-6)
    for y in ([0.0, 3.0, 4.0], [0.0, 0.0, 4.0], [2.0, 3.0, 4.0]):
        a, b, c = y
        padded = jnp.array([*y, 1.0])
        np.testing.assert_allclose(first(padded), [b * c, a * c, a * b, a * b * c])
        np.testing.assert_allclose(second(padded)[:3, :3], [[0, c, b], [c, 0, a], [b, a, 0]])
    rows = jnp.arange(1.0, 13.0).reshape(3, 4)
    for axis in (0, (0, 1)):
        g, plain = twinned(lambda x, axis=axis: jnp.prod(x, axis)), lambda x, axis=axis: jnp.prod(x, axis)
        np.testing.assert_array_equal(g(rows), plain(rows))
        np.testing.assert_allclose(jax.jit(jax.jacobian(g))(rows), jax.jit(jax.jacobian(plain))(rows), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(f)))(rows), jax.vmap(jax.grad(jnp.prod))(rows), rtol=1e-6)


def test_running_logarithms_of_sums():
    f = twinned(lambda x: lax.cumlogsumexp(x).sum())
    x = jnp.array([-jnp.inf, -jnp.inf, 1.0])
    np.testing.assert_array_equal(jax.grad(f)(x), [1, 0, 1])  # the first sum is its term
    assert jnp.isnan(jax.grad(lambda x: lax.cumlogsumexp(x).sum())(x)).any()
    y = jnp.array([0.3, -2.0, 1.5])
    np.testing.assert_allclose(jax.grad(f)(y), jax.grad(lambda x: lax.cumlogsumexp(x).sum())(y), rtol=1e-5)


# ---- what is left alone


def test_what_is_right_has_no_twin():
    x = jnp.float32(0.5)
    for f in (jnp.exp, jnp.sin, jnp.cos, jnp.sqrt, lambda x: x * x + 1, lambda x: x**2, jnp.abs, lax.rsqrt, jnp.sinh):
        assert names(f, x) == []
    assert names(lambda z: jnp.tanh(z), jnp.complex64(1j)) == []
    assert names(lambda n: lax.max(n, 1), jnp.int32(3)) == []


def test_float64_inside_a_float32_program():
    def f(x):
        with jax.enable_x64(True):
            y = lax.convert_element_type(x, jnp.float64)
            return lax.convert_element_type(lax.tanh(y) / y, jnp.float32)

    for g in (jax.grad, lambda f: jax.grad(jax.grad(f))):
        np.testing.assert_allclose(g(twinned(f))(jnp.float32(3.0)), g(f)(jnp.float32(3.0)), rtol=1e-5)
