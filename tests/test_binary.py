"""Functions of two and more arguments against ball arithmetic: value, first and second derivatives, edges, transforms."""

import flint
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability
from tests._two_arguments import TABLE, errors, points
from tests._ulp import ulps
from tests.special._measure import evaluate
from tests.special._oracle import _words

INF, NAN = np.inf, np.nan
BOUND = {np.float32: 4, np.float64: 8}
PLAIN = {
    "divide": lambda x, y: x / y,
    "hypot": jnp.hypot,
    "arctan2": jnp.arctan2,
    "power": jnp.power,
    "sqrt_diff": lambda x, h: jnp.sqrt(x + h) - jnp.sqrt(x),
    "diff_of_products": lambda a, b, c, d: a * b - c * d,
}


@pytest.mark.parametrize("dtype", BOUND, ids=["f32", "f64"])
@pytest.mark.parametrize("name", TABLE)
def test_three_orders_within_the_bound(name, dtype):
    with jax.enable_x64(dtype == np.float64):
        columns = points(TABLE[name], dtype, 1200)
        for order, error in enumerate(errors(name, getattr(stability, name), columns)):
            bound = 2 if (name, order) == ("diff_of_products", 0) else BOUND[dtype]
            worst = error.max(0)
            i = int(worst.argmax())
            assert worst[i] <= bound, (order, [x[i] for x in columns], error[:, i])


@pytest.mark.parametrize("name", TABLE)
def test_the_plain_form_fails(name):
    columns = points(TABLE[name], np.float32, 300)
    assert max(e.max() for e in errors(name, PLAIN[name], columns)) > 1e3


# function, point, value, first derivatives, second derivatives (xx, xy, yy); the limits that the policy asks for
EDGES = [
    ("power", (0, 0), 1, (0, -INF), (0, INF, INF)),
    ("power", (0, 1), 0, (1, 0), (0, -INF, 0)),
    ("power", (0, 2), 0, (0, 0), (2, 0, 0)),
    ("power", (0, 0.5), 0, (INF, 0), (-INF, -INF, 0)),
    ("power", (0, 1.5), 0, (0, 0), (INF, 0, 0)),
    ("power", (0, -1), INF, (-INF, -INF), (INF, INF, INF)),
    ("power", (-2, 3), -8, (12, NAN), (-12, NAN, NAN)),
    ("power", (-2, 0.5), NAN, (NAN, NAN), (NAN, NAN, NAN)),
    ("power", (INF, -1), 0, (0, 0), (0, 0, 0)),
    ("power", (1, 5), 1, (5, 0), (20, 1, 0)),
    ("hypot", (0, 0), 0, (0, 0), (INF, NAN, INF)),
    ("hypot", (-INF, 1), INF, (-1, 0), (0, 0, 0)),
    ("hypot", (INF, INF), INF, (0.70710678, 0.70710678), (0, 0, 0)),
    ("arctan2", (1e-30, 1e-30), 0.78539816, (5e29, -5e29), (-INF, 0, INF)),
    ("arctan2", (0, 0), 0, (NAN, NAN), (NAN, NAN, NAN)),
    ("arctan2", (INF, 1), 1.57079633, (0, 0), (0, 0, 0)),
    ("divide", (1, 0), INF, (INF, -INF), (0, -INF, INF)),
    ("divide", (1, 1e-25), 1e25, (1e25, -INF), (0, -INF, INF)),
    ("divide", (1e-25, 1e-25), 1, (1e25, -1e25), (0, -INF, INF)),
    ("divide", (1, INF), 0, (0, 0), (0, 0, 0)),
    ("sqrt_diff", (0, 0), 0, (0, INF), (0, -INF, -INF)),
    ("sqrt_diff", (0, 1), 1, (-INF, 0.5), (INF, -0.25, -0.25)),
    ("sqrt_diff", (1, -1), -1, (INF, INF), (-INF, -INF, -INF)),
    ("sqrt_diff", (-1, 3), NAN, (NAN, NAN), (NAN, NAN, NAN)),
]


@pytest.mark.parametrize("name", sorted({name for name, *_ in EDGES}))
def test_edges(name):
    f = getattr(stability, name)
    rows = [row[1:] for row in EDGES if row[0] == name]
    x, y = (np.array([row[0][i] for row in rows], np.float32) for i in (0, 1))
    expected = [np.array([row[k] for row in rows], np.float32) for k in (1, 2, 3)]
    np.testing.assert_allclose(f(x, y), expected[0], rtol=3e-7)
    values = evaluate(f, 2, [x, y])
    np.testing.assert_allclose(values[1].T, expected[1], rtol=3e-7)
    np.testing.assert_allclose(values[2].T, expected[2], rtol=3e-7)


def test_products_that_overflow_by_themselves():
    f = stability.diff_of_products
    assert f(2.0**100, 2.0**100, 2.0**100, 2.0**100) == 0
    assert f(2.0**100, 2.0**29, 2.0**127, 3.0) == 2.0**127
    assert np.isinf(f(INF, 1.0, 1.0, 1.0)) and np.isnan(f(INF, 1.0, INF, 1.0))


def test_an_exponent_without_a_tangent_does_not_poison():
    assert jax.grad(stability.power)(0.0, 0.0) == 0 and np.isnan(jax.grad(jnp.power)(0.0, 0.0))
    x = jnp.zeros(3)
    np.testing.assert_array_equal(jax.jacfwd(lambda x: stability.power(x, jnp.arange(3)))(x).diagonal(), [0, 1, 0])
    assert jax.hessian(lambda x: stability.power(x, 3))(-2.0) == -12


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])
def test_half_precision_is_rounded_once(dtype):
    x, y = jnp.linspace(1, 300, 20).astype(dtype), jnp.linspace(200, 300, 20).astype(dtype)
    wide = stability.hypot(x.astype(jnp.float32), y.astype(jnp.float32)).astype(dtype)
    got = stability.hypot(x, y)
    assert got.dtype == dtype and jnp.isfinite(got).all()
    np.testing.assert_array_equal(got, wide)


@pytest.mark.parametrize("name", TABLE)
def test_transforms_agree(name):
    f, columns = getattr(stability, name), [x[-6:] for x in points(TABLE[name], np.float32, 300, seed=2)]
    np.testing.assert_array_equal(jax.vmap(f)(*columns), f(*columns))
    np.testing.assert_array_equal(jax.lax.scan(lambda c, xs: (c, f(*xs)), 0, tuple(columns))[1], f(*columns))
    with jax.numpy_dtype_promotion("strict"):
        assert f(*(jnp.ones(2, jnp.bfloat16) for _ in columns[1:]), 2.0).dtype == jnp.bfloat16


# ---- the roots of a quadratic


def _exact_roots(a, b, c):
    """Per root: itself and its derivatives in a, b and c."""
    a, b, c = (flint.arb(float(z)) for z in (a, b, c))
    d = b * b - 4 * a * c
    if d < 0:
        return [[(NAN, 0.0)] * 4] * 2
    rows = []
    for sign in (1, -1) if a < 0 else (-1, 1):
        slope = sign * d.sqrt()
        r = (slope - b) / (2 * a)
        rows.append([_words(v) for v in (r, -r * r / slope, -r / slope, -1 / slope)])
    return rows


@pytest.mark.parametrize("dtype", BOUND, ids=["f32", "f64"])
def test_quadratic_roots_over_sixty_decades(dtype):
    flint.ctx.prec = 4000
    rng, n = np.random.default_rng(0), 400
    decades = 15 if dtype == np.float32 else 30
    with jax.enable_x64(dtype == np.float64):
        a, b, c = (rng.choice([-1, 1], n) * 10 ** rng.uniform(-decades, decades, n) for _ in range(3))
        r, near = rng.normal(size=(2, n // 2))
        s = r * (1 + 1e-3 * near)
        b[: n // 2], c[: n // 2] = -a[: n // 2] * (r + s), a[: n // 2] * r * s
        a, b, c = (z.astype(dtype) for z in (a, b, c))
        truth = np.array([_exact_roots(*z) for z in zip(a, b, c)])
        for i in (0, 1):
            slopes = jax.jit(jax.grad(lambda *z, i=i: stability.quadratic_roots(*z)[i].sum(), (0, 1, 2)))
            got = [stability.quadratic_roots(a, b, c)[i], *slopes(a, b, c)]
            for k in range(4):
                assert ulps(got[k], truth[:, i, k, 0], truth[:, i, k, 1]).max() <= 8
        plain = (-b - jnp.sqrt(b * b - 4 * a * c)) / (2 * a)
        assert ulps(plain, truth[:, 0, 0, 0], truth[:, 0, 0, 1]).max() > 1e3


def test_quadratic_roots_at_edges():
    f = stability.quadratic_roots
    np.testing.assert_array_equal(f(1.0, 2.0, 1.0), [-1, -1])
    np.testing.assert_array_equal(jax.grad(lambda *z: f(*z)[0], (0, 1, 2))(1.0, 2.0, 1.0), [INF, -INF, INF])
    np.testing.assert_array_equal(f(0.0, 2.0, -4.0), [-INF, 2])
    np.testing.assert_array_equal(jax.grad(lambda *z: f(*z)[1], (0, 1, 2))(0.0, 2.0, -4.0), [-2, -1, -0.5])
    np.testing.assert_array_equal(f(1.0, 0.0, 1.0), [NAN, NAN])
    np.testing.assert_array_equal(f(1.0, 0.0, 0.0), [0, 0])
    np.testing.assert_allclose(f(1e30, -3e30, 2e30), [1, 2], rtol=1e-6)
    curvature = jax.hessian(lambda b: f(1.0, b, -4.0)[1])(2.0)  # of (-b + √(b² + 16))/2: 8/(b² + 16)^(3/2)
    np.testing.assert_allclose(curvature, 8 / 20**1.5, rtol=1e-6)


def test_power_at_zero_in_every_order():
    """x³ has the third derivative 6; JAX's is NaN for x² and x."""

    def third(f):
        return [float(jax.grad(jax.grad(jax.grad(f)))(0.0, y)) for y in (0.0, 1.0, 2.0, 3.0, 4.0)]

    assert third(stability.power) == [0, 0, 0, 6, 0]
    assert np.isnan(third(jnp.power)[:3]).all()
    mixed = jax.grad(jax.grad(jax.grad(stability.power)), 1)(2.0, 3.0)  # xʸ⁻² (2 y - 1 + y (y - 1) log x)
    assert ulps(mixed, 2 * (5 + 6 * np.log(2.0))) <= 4


def test_an_infinite_coordinate_decides():
    assert stability.hypot(np.inf, np.nan) == np.inf == jnp.hypot(np.inf, np.nan)
    assert np.isnan(jnp.sqrt(jnp.float32(np.inf) ** 2 + jnp.float32(np.nan) ** 2))


def test_second_derivatives_of_the_root_that_does_not_cancel():
    """2 c/D³ of x² + b x + c, which a difference of first derivatives of size 1 rounds to 0."""
    got = jax.hessian(lambda b: stability.quadratic_roots(1.0, b, 1.0)[1])(-1e4)
    assert ulps(got, -2 / (1e8 - 4) ** 1.5) <= 16
    hessian = jax.hessian(lambda z: stability.quadratic_roots(*z)[0])(jnp.array([1.0, 1e5, 2.0]))
    assert ulps(hessian[1, 1], 4 / (1e10 - 8) ** 1.5) <= 16 and ulps(hessian[0, 2], 4 / (1e10 - 8) ** 1.5) <= 16
    plain = jax.hessian(lambda b: (-b + jnp.sqrt(b * b - 4.0)) / 2)(-1e4)
    assert ulps(plain, -2 / (1e8 - 4) ** 1.5) > 1e3
