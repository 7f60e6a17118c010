"""Log densities: values and derivatives of two orders against mpmath, and the limits at the edges of the support."""

import inspect

import jax
import jax.numpy as jnp
import jax.scipy.stats as plain
import mpmath as mp
import numpy as np
import pytest
import scipy.stats

from robustad import stability as st
from robustad.stability._log_gamma import (
    digamma_gap,
    digamma_gap_fall,
    half_step_remainder,
    log_gamma,
    stirling_remainder,
)
from tests._subset import thinned

INF = np.inf


def _z(x, loc, scale):
    return (x - loc) / scale


def _gamma(x, a, loc, scale):
    z = _z(x, loc, scale)
    return (a - 1) * mp.log(z) - z - mp.loggamma(a) - mp.log(scale)


def _beta(x, a, b, loc, scale):
    z = _z(x, loc, scale)
    constant = mp.loggamma(a + b) - mp.loggamma(a) - mp.loggamma(b) - mp.log(scale)
    return (a - 1) * mp.log(z) + (b - 1) * mp.log(1 - z) + constant


def _t(x, df, loc, scale):
    constant = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(mp.pi * df) / 2 - mp.log(scale)
    return constant - (df + 1) / 2 * mp.log(1 + _z(x, loc, scale) ** 2 / df)


def _binom(k, n, p):
    return mp.loggamma(n + 1) - mp.loggamma(k + 1) - mp.loggamma(n - k + 1) + k * mp.log(p) + (n - k) * mp.log(1 - p)


FORMULAS = {
    "norm_logpdf": lambda x, loc, s: -(_z(x, loc, s) ** 2) / 2 - mp.log(2 * mp.pi) / 2 - mp.log(s),
    "laplace_logpdf": lambda x, loc, s: -abs(_z(x, loc, s)) - mp.log(2 * s),
    "cauchy_logpdf": lambda x, loc, s: -mp.log(1 + _z(x, loc, s) ** 2) - mp.log(mp.pi * s),
    "logistic_logpdf": lambda x, loc, s: -2 * mp.log(2 * mp.cosh(_z(x, loc, s) / 2)) - mp.log(s),
    "expon_logpdf": lambda x, loc, s: -_z(x, loc, s) - mp.log(s),
    "t_logpdf": _t,
    "gamma_logpdf": _gamma,
    "chi2_logpdf": lambda x, df, loc, s: _gamma(x, df / 2, loc, 2 * s),
    "beta_logpdf": _beta,
    "binom_logpmf": _binom,
    "poisson_logpmf": lambda k, mu: k * mp.log(mu) - mu - mp.loggamma(k + 1),
    "bernoulli_logpmf": lambda k, p: k * mp.log(p) + (1 - k) * mp.log(1 - p),
}


def _points(name, count=20):
    """Arguments exact in float32: large and small parameters, c standard deviations from the mode, in tails."""
    rng = np.random.default_rng(sum(map(ord, name)))

    def powers(low, high):
        return 10 ** rng.uniform(low, high, count)

    c = rng.choice([-1, 1], count) * rng.uniform(0.3, 3, count) * np.where(rng.random(count) < 0.2, 20, 1)
    a, b, n = powers(1, 14), powers(1, 14), np.round(powers(2, 14))
    small = rng.random(count) < 0.3
    a, b = np.where(small, powers(-3, 1), a), np.where(rng.random(count) < 0.3, powers(-3, 1), b)
    loc, scale = np.where(small | (rng.random(count) < 0.5), [[0.0], [1.0]], [rng.normal(size=count), powers(-3, 3)])
    p = powers(-5, -0.05)
    gamma = a * np.where(small, 10 ** (c / 3), np.abs(1 + c / np.sqrt(a)))
    mean = a / (a + b)
    share = np.clip(mean + c * np.sqrt(mean * (1 - mean) / (a + b + 1)), 1e-6, 1 - 1e-6)
    end = np.float64(np.float32(loc)) + np.float64(np.float32(scale))
    columns = {
        "t_logpdf": (loc + scale * np.where(np.abs(c) < 1.2, c, c + np.sign(c)), a, loc, scale),  # f_ν is 0 near 1.55
        "gamma_logpdf": (loc + scale * gamma, a, loc, scale),
        "chi2_logpdf": (loc + scale * 2 * gamma, 2 * a, loc, scale),
        "beta_logpdf": (np.clip(loc + scale * share, loc + 1e-3 * scale, end - 1e-3 * scale), a, b, loc, scale),
        "binom_logpmf": (np.clip(np.round(n * p + c * np.sqrt(n * p * (1 - p))), 1, n - 1), n, p),
        "poisson_logpmf": (np.maximum(1, np.round(n + c * np.sqrt(n))), n),
        "bernoulli_logpmf": (n % 2, p),
        "expon_logpdf": (loc + scale * np.abs(c), loc, scale),
    }
    far = np.where(np.arange(count) < 5, 10.0 ** np.arange(count), 1)  # c is not near 1 there
    return np.float32(columns.get(name, (loc + scale * c * far, loc, scale)))


DISCRETE = {"binom_logpmf", "poisson_logpmf", "bernoulli_logpmf"}


def _at(f, row, orders):
    with mp.workdps(60):
        return float(mp.diff(f, tuple(mp.mpf(float(v)) for v in row), orders))


def _variables(f, count):
    """All but loc, whose derivative is that of x with the other sign, and the k of a Bernoulli variable."""
    skipped = {"loc", "k"} if f is st.bernoulli_logpmf else {"loc"}
    return [i for i, name in enumerate(list(inspect.signature(f).parameters)[:count]) if name not in skipped]


def _truths(name, columns, variables):
    """Value, gradient and upper half of the second derivatives, with what each is relative to at least."""
    f, unit = FORMULAS[name], np.eye(len(columns), dtype=int)
    scale = len(columns) - 1 if name not in DISCRETE else None
    orders = [0 * unit[0], *unit[variables], *(unit[i] + unit[j] for i in variables for j in variables if i <= j)]
    for order in orders:
        at = "v12"[sum(order)]
        least = np.ones(columns.shape[1]) if at == "v" else 0.0
        if scale is not None and order[scale] == sum(order) and at != "v":  # the derivatives of log s
            least = columns[scale].astype(np.float64) ** -sum(order)
        yield order, np.array([_at(f, row, tuple(map(int, order))) for row in columns.T]), least


@pytest.mark.parametrize("name", thinned(list(FORMULAS), 6))
def test_value_and_derivatives_of_two_orders(name):
    """Within 8 ulp in float32 and 16 in float64, second derivatives within 1e-4 and 1e-10, for parameters up to 1e14."""
    f, columns = getattr(st, name), _points(name)
    variables = _variables(f, len(columns))

    def derivatives(*args):
        def first(*args):
            slopes = jax.grad(f, variables)(*args)
            return slopes, slopes

        return f(*args), *jax.jacfwd(first, variables, has_aux=True)(*args)

    truths = list(_truths(name, columns, variables))
    for dtype, ulp, second in ((np.float32, 8, 1e-4), (np.float64, 16, 1e-10)):
        with jax.enable_x64(dtype == np.float64):
            value, hessian, gradient = jax.jit(jax.vmap(derivatives))(*columns.astype(dtype))
        eps, tiny = float(np.finfo(dtype).eps), max(float(np.finfo(dtype).tiny), 1e-50)  # mpmath's zeros are 1e-60
        for order, truth, least in truths:
            at = [variables.index(i) for i in np.repeat(np.arange(len(order)), order)]
            got = value if not at else gradient[at[0]] if len(at) == 1 else hessian[at[0]][at[1]]
            assert got.dtype == dtype
            bound = second if len(at) == 2 else ulp * eps
            error = np.abs(np.asarray(got, np.float64) - truth) - bound * np.maximum(np.abs(truth), least)
            assert np.all(error <= 2 * tiny), (dtype, order, columns.T[np.argmax(error)], got, truth)


PLAIN = ("gamma.logpdf", "chi2.logpdf", "beta.logpdf", "binom.logpmf", "poisson.logpmf", "t.logpdf", "cauchy.logpdf")


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_form_has_lost_its_digits_there(name):
    """By more than 1000 ulp of the value or 1; Student's by 100, Cauchy's in its mixed derivative."""
    family, method = name.split(".")
    f, ours = getattr(getattr(plain, family), method), f"{family}_{method}"
    columns = _points(ours)
    if family == "cauchy":
        got, exact = jax.jit(jax.vmap(jax.grad(jax.grad(f, 2))))(*columns), (1, 0, 1)
    else:
        got, exact = jax.jit(f)(*columns), (0,) * len(columns)
    truth = np.array([_at(FORMULAS[ours], row, exact) for row in columns.T])
    least = 0 if family == "cauchy" else 1
    error = np.abs(got - truth) / np.maximum(np.abs(truth), least) / np.finfo(np.float32).eps
    assert np.isnan(got).any() or np.nanmax(error) >= (100 if family == "t" else 1000)


# name, arguments, value, gradient in each argument asked for (None: not asked)
EDGES = [
    ("expon_logpdf", (0.0, 0.0, 1.0), 0, (-1, 1, -1)),
    ("expon_logpdf", (-1.0, 0.0, 1.0), -INF, (0, 0, 0)),
    ("uniform_logpdf", (1.0, 0.0, 1.0), 0, (0, 0, -1)),
    ("uniform_logpdf", (1.5, 0.0, 1.0), -INF, (0, 0, 0)),
    ("gamma_logpdf", (0.0, 1.0, 0.0, 1.0), 0, (-1, None, 1, -1)),
    ("gamma_logpdf", (0.0, 2.0, 0.0, 1.0), -INF, (INF, -INF, None, None)),
    ("gamma_logpdf", (0.0, 0.5, 0.0, 1.0), INF, (-INF, -INF, None, None)),
    ("gamma_logpdf", (-1.0, 0.5, 0.0, 1.0), -INF, (0, 0, 0, 0)),
    ("beta_logpdf", (0.0, 1.0, 1.0), 0, (0, None, 1)),
    ("beta_logpdf", (1.0, 2.0, 1.0), np.log(2), (1, 0.5, None)),
    ("beta_logpdf", (0.0, 2.0, 1.0), -INF, (INF, -INF, 1.5)),
    ("beta_logpdf", (1.5, 2.0, 1.0), -INF, (0, 0, 0)),
    ("bernoulli_logpmf", (0.0, 0.0), 0, (None, -1)),
    ("bernoulli_logpmf", (1.0, 1.0), 0, (None, 1)),
    ("bernoulli_logpmf", (1.0, 0.0), -INF, (None, INF)),
    ("bernoulli_logpmf", (2.0, 0.5), -INF, (None, 0)),
    ("binom_logpmf", (0.0, 5.0, 0.0), 0, (None, None, -5)),
    ("binom_logpmf", (5.0, 5.0, 1.0), 0, (None, None, 5)),
    ("binom_logpmf", (6.0, 5.0, 1.0), -INF, (None, None, 0)),
    ("poisson_logpmf", (0.0, 0.0), 0, (None, -1)),
    ("poisson_logpmf", (1.0, 0.0), -INF, (None, INF)),
    ("poisson_logpmf", (0.5, 1.0), -INF, (None, 0)),
    ("norm_logpdf", (1e30, 0.0, 1.0), -INF, (-1e30, 1e30, None)),
    ("cauchy_logpdf", (INF, 0.0, 1.0), -INF, (0, 0, None)),
    ("t_logpdf", (1e30, 1.0, 0.0, 1.0), -139.299836, (-2e-30, None, 2e-30, None)),
    ("logistic_logpdf", (1e-20, 0.0, 1.0), -2 * np.log(2), (-5e-21, 5e-21, -1)),
]


@pytest.mark.parametrize("name", sorted({row[0] for row in EDGES}))
def test_edges_and_outside(name):
    rows = [row for row in EDGES if row[0] == name]
    f = getattr(st, name)
    columns = np.array([row[1] for row in rows], np.float32).T
    asked = [i for i, one in enumerate(rows[0][3]) if any(row[3][i] is not None for row in rows)]
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(f, tuple(asked))))(*columns)
    np.testing.assert_allclose(values, [row[2] for row in rows], rtol=1e-6, atol=1e-7)
    for i, got in zip(asked, slopes):
        for row, slope in zip(rows, got):
            if row[3][i] is not None:
                np.testing.assert_allclose(slope, row[3][i], rtol=1e-5, atol=1e-38, err_msg=str((row, i)))
    assert np.isnan(f(np.nan, *columns[1:, 0]))


# name, arguments: x - loc, and loc + scale, overflow by themselves
HUGE = [
    ("norm_logpdf", (3e38, -3e38, 1e38)),
    ("cauchy_logpdf", (3e38, -3e38, 3e37)),
    ("logistic_logpdf", (3e38, -3e38, 3e37)),
    ("t_logpdf", (3e38, 3.0, -3e38, 3e37)),
    ("gamma_logpdf", (3e38, 3.0, -3e38, 3e37)),
]


@pytest.mark.parametrize("name, point", HUGE)
def test_differences_that_overflow(name, point):
    """Values, and derivatives above 1e-37, within 8 ulp; XLA flushes the others on their way."""
    point = np.float32(point)
    f = getattr(st, name)
    value, slopes = jax.value_and_grad(f, tuple(range(len(point))))(*point)
    for order, got in zip([0 * np.eye(len(point), dtype=int)[0], *np.eye(len(point), dtype=int)], (value, *slopes)):
        truth = _at(FORMULAS[name], point, tuple(map(int, order)))
        assert abs(float(got) - truth) <= 1e-6 * abs(truth) or abs(truth) < 1e-37, (order, got, truth)
    family, method = name.split("_")
    assert not np.isclose(getattr(getattr(plain, family), method)(*point), value, rtol=1e-3)


def test_supports_whose_end_overflows():
    value, slope = jax.value_and_grad(st.uniform_logpdf, 2)(*np.float32([3.2e38, 3e38, 3e38]))
    np.testing.assert_allclose(value, -np.log(3e38), rtol=1e-6)
    assert st.uniform_logpdf(*np.float32([2.9e38, -3e38, 3e38])) == -INF
    point = np.float32([3.2e38, 2, 3, 3e38, 3e38])
    np.testing.assert_allclose(st.beta_logpdf(*point), _at(_beta, point, (0,) * 5), rtol=1e-6)
    assert np.isfinite(slope)


def test_at_infinity():
    for f, rest in [
        (st.norm_logpdf, ()),
        (st.laplace_logpdf, ()),
        (st.cauchy_logpdf, ()),
        (st.logistic_logpdf, ()),
        (st.uniform_logpdf, ()),
        (st.expon_logpdf, ()),
        (st.t_logpdf, (3.0,)),
        (st.gamma_logpdf, (np.float32([0.5, 1, 3, 1e6]),)),
        (st.chi2_logpdf, (3.0,)),
        (st.beta_logpdf, (3.0, 2.0)),
        (st.poisson_logpmf, (1.0,)),
        (st.binom_logpmf, (3.0, 0.5)),
        (st.bernoulli_logpmf, (0.5,)),
    ]:
        assert np.all(f(INF, *rest) == -INF) and np.all(f(-INF, *rest) == -INF), f
    assert jax.grad(st.poisson_logpmf, 1)(INF, 1.0) == INF  # k/μ - 1
    assert jax.grad(st.gamma_logpdf)(INF, 3.0) == -1
    assert jax.grad(st.cauchy_logpdf, 2)(INF, 0.0, 1.0) == 1
    assert np.isnan(st.poisson_logpmf(INF, np.nan))


def test_third_derivatives():
    for name, point in [
        ("t_logpdf", (0.1, 3.0, 0.1, 2.0)),
        ("gamma_logpdf", (1e4, 1.1e4, 0.0, 1.0)),
    ]:
        f, point = getattr(st, name), np.float32(point)
        along = jax.grad(
            jax.grad(jax.grad(lambda t, f=f, point=point: f(*(v + i * t for i, v in enumerate(point, 1)))))
        )
        with mp.workdps(60):
            truth = mp.diff(
                lambda t, name=name, point=point: FORMULAS[name](*(float(v) + i * t for i, v in enumerate(point, 1))),
                0,
                3,
            )
        np.testing.assert_allclose(jax.jit(along)(0.0), float(truth), rtol=1e-3)
    np.testing.assert_allclose(jax.grad(jax.grad(jax.grad(st.poisson_logpmf, 1), 1), 1)(3.0, 2.0), 6 / 8, rtol=1e-6)


def test_the_plain_ones_fail():
    assert np.isnan(jax.grad(plain.gamma.logpdf)(0.0, 1.0))
    assert np.isnan(plain.poisson.logpmf(INF, 1.0))
    assert jax.grad(plain.logistic.logpdf)(1e-20) != np.float32(-5e-21)


def test_parameters_outside_their_domain_are_nan():
    for value in (
        st.norm_logpdf(0.0, 0.0, -1.0),
        st.gamma_logpdf(1.0, -1.0),
        st.beta_logpdf(0.5, 0.0, 1.0),
        st.t_logpdf(0.0, -1.0),
    ):
        assert np.isnan(value)


def test_dirichlet():
    """Inside, at an edge and outside of the simplex."""
    x = np.float32([[0.2, 0.8], [0, 1], [-0.5, 1.5]])
    alpha = np.float32([[1.5, 0.5], [1, 3], [1, 3]])
    value, (by_x, by_alpha) = jax.jit(jax.vmap(jax.value_and_grad(st.dirichlet_logpdf, (0, 1))))(x, alpha)
    expected = scipy.stats.dirichlet.logpdf([0.2, 0.8], alpha[0])
    np.testing.assert_allclose(value, [expected, np.log(3), -INF], rtol=1e-6)
    np.testing.assert_allclose(by_x, [[2.5, -0.625], [0, 2], [0, 0]], rtol=1e-6)
    assert by_alpha[1, 0] == -INF and (by_alpha[2] == 0).all()
    assert st.dirichlet_logpdf(jnp.ones((4, 1, 2)) / 2, jnp.ones((3, 2))).shape == (4, 3)


def test_dirichlet_with_large_parameters():
    """Value and derivatives in alpha within 8 ulp near the mean; the plain value is wrong by half of it."""
    alpha = np.float32([1e8, 3e7, 0.5, 20])
    x = np.float32(alpha / alpha.sum(dtype=np.float64) * [1.0001, 0.99967, 1.1, 1.2])
    x[0] += np.float32(1 - x.sum(dtype=np.float64))
    value, slopes = jax.jit(jax.value_and_grad(st.dirichlet_logpdf, 1))(x, alpha)
    with mp.workdps(60):
        a, total = [mp.mpf(float(v)) for v in alpha], mp.fsum(map(float, alpha))
        logs = [mp.log(mp.mpf(float(v))) for v in x]
        truth = float(mp.loggamma(total) + sum((v - 1) * log - mp.loggamma(v) for v, log in zip(a, logs)))
        exact = [float(log - mp.digamma(v) + mp.digamma(total)) for v, log in zip(a, logs)]
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    np.testing.assert_allclose(slopes, exact, rtol=1e-6)
    assert not np.isclose(plain.dirichlet.logpdf(x, alpha), truth, rtol=0.1)


def test_shapes_that_do_not_fit():
    one = jnp.ones
    for x, alpha in (((3,), (4,)), ((), (2,)), ((2, 3), (4, 3))):
        with pytest.raises(ValueError, match=r"dirichlet_logpdf: `x` has shape .*expected \(..., n\).*moveaxis"):
            st.dirichlet_logpdf(one(x), one(alpha))
    for x, mean, cov in (((3,), (4,), (3, 3)), ((), (2,), (2, 2)), ((3,), (3,), (3,)), ((2, 3), (4, 3), (3, 3))):
        with pytest.raises(ValueError, match=r"multivariate_normal_logpdf: `x` has shape .*expected.*`norm_logpdf`"):
            st.multivariate_normal_logpdf(one(x), one(mean), one(cov))


def test_multivariate_normal():
    rng = np.random.default_rng(0)
    b = rng.normal(size=(3, 3))
    cov, x = b @ b.T + np.eye(3), rng.normal(size=(5, 3))
    reference = scipy.stats.multivariate_normal(np.ones(3), cov).logpdf(x)
    f = st.multivariate_normal_logpdf
    args = jnp.float32(x), jnp.ones(3), jnp.float32(cov)
    np.testing.assert_allclose(f(*args), reference, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(f, (0, None, None))(*args), f(*args), rtol=1e-6)
    slope = jax.grad(lambda x: f(x, *args[1:]).sum())(args[0])
    np.testing.assert_allclose(slope, -np.linalg.solve(cov, (x - 1).T).T, rtol=1e-4, atol=1e-5)
    assert f(jnp.zeros(2), jnp.zeros(2), 1e-30 * jnp.eye(2)) > 67


def test_second_derivatives():
    """Of the normal in its scale, of the t in x, of the gamma density in x at its edge."""
    assert jax.grad(jax.grad(st.norm_logpdf, 2), 2)(1.0, 0.0, 2.0) == 1 / 4 - 3 / 16
    np.testing.assert_allclose(jax.grad(jax.grad(st.t_logpdf))(1e20, 1.0), 2e-40, atol=1e-38)
    assert jax.grad(jax.grad(st.gamma_logpdf))(0.0, 1.0) == 0
    assert jax.grad(jax.grad(st.gamma_logpdf))(0.0, 3.0) == -INF


def _exact(f, *columns):
    with mp.workdps(60):
        return np.array([float(f(*(mp.mpf(float(v)) for v in row))) for row in zip(*columns)])


def _half_step(x):
    return mp.loggamma(x + mp.mpf(0.5)) - mp.loggamma(x) - mp.log(x) / 2


def _stirling(x):
    return mp.loggamma(x) - (x - mp.mpf(0.5)) * mp.log(x) + x - mp.log(2 * mp.pi) / 2


def _gap(x):
    return mp.log(x) - mp.digamma(x)


def test_log_gamma_and_differences():
    x = np.concatenate([np.linspace(0.01, 12, 60), [1, 2, 1 + 1e-5, 2 - 1e-5, 1e-10, 100, 1e6]]).astype(np.float32)
    np.testing.assert_allclose(jax.jit(log_gamma)(x), _exact(mp.loggamma, x), rtol=5e-7)
    slopes = jax.jit(jax.vmap(jax.grad(log_gamma)))(x)
    np.testing.assert_allclose(slopes, _exact(mp.digamma, x), rtol=1e-6, atol=3e-7)
    assert log_gamma(jnp.float32(1.0)) == 0
    rng = np.random.default_rng(0)
    a, h = (10 ** rng.uniform(-3, 6, (2, 60))).astype(np.float32)
    for dtype, rtol in ((np.float32, 1e-6), (np.float64, 2e-15)):
        with jax.enable_x64(dtype == np.float64):
            for f, truth in ((half_step_remainder, _half_step), (digamma_gap, _gap)):
                np.testing.assert_allclose(jax.jit(f)(a.astype(dtype)), _exact(truth, a), rtol=rtol)
            above = a[a >= 1]
            np.testing.assert_allclose(
                jax.jit(stirling_remainder)(above.astype(dtype)), _exact(_stirling, above), rtol=rtol
            )
            fall = jax.jit(digamma_gap_fall)(a.astype(dtype), h.astype(dtype))
            np.testing.assert_allclose(fall, _exact(lambda x, h: _gap(x) - _gap(x + h), a, h), rtol=4 * rtol)


def test_arguments():
    with jax.numpy_dtype_promotion("strict"):
        assert st.norm_logpdf(jnp.ones(2, jnp.bfloat16), 0.0, scale=2.0).dtype == jnp.bfloat16
    assert st.poisson_logpmf(3, 2.0).dtype == jnp.float32
    assert st.norm_logpdf(jnp.ones((3, 1)), jnp.ones(4)).shape == (3, 4)
    with pytest.raises(TypeError, match="norm_logpdf: got an unexpected keyword argument 'loc_'"):
        st.norm_logpdf(0.0, loc_=1.0)
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        st.gamma_logpdf(0.0)
    with pytest.raises(TypeError, match="norm_logpdf: `x` has dtype complex64; expected real numbers"):
        st.norm_logpdf(1j)


def test_dirichlet_at_an_edge_in_one_argument():
    """The derivative in alpha is -inf there: a tangent that is not given must not meet it."""
    x, alpha = jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0])
    np.testing.assert_array_equal(jax.jacfwd(st.dirichlet_logpdf)(x, alpha), [0, 2])
    np.testing.assert_array_equal(jax.grad(st.dirichlet_logpdf)(x, alpha), [0, 2])
