"""Log densities: values against SciPy, derivatives against float64, and the limits at the edges of the support."""

import jax
import jax.numpy as jnp
import jax.scipy.stats as plain
import mpmath as mp
import numpy as np
import pytest
import scipy.stats

from robustad import stability as st
from robustad.stability._log_gamma import log_gamma

INF = np.inf
# name, SciPy's, points (x, parameters...) inside the support, tails among them
CASES = {
    "norm_logpdf": ("norm.logpdf", [(0.3, 1.0, 2.0), (1e10, 0.0, 1.0), (-30.0, 0.0, 1e-3), (1e-20, 0.0, 1.0)]),
    "laplace_logpdf": ("laplace.logpdf", [(0.3, 1.0, 2.0), (100.0, 0.0, 1.0), (3e-25, 0.0, 1e-25)]),
    "cauchy_logpdf": ("cauchy.logpdf", [(0.3, 1.0, 2.0), (1e15, 0.0, 1.0), (1e-20, 0.0, 1.0)]),
    "logistic_logpdf": ("logistic.logpdf", [(0.3, 1.0, 2.0), (200.0, 0.0, 1.0), (-1e5, 0.0, 1.0)]),
    "t_logpdf": (
        "t.logpdf",
        [(0.3, 3.0, 1.0, 2.0), (1e15, 2.0, 0.0, 1.0), (0.5, 1e7, 0.0, 1.0), (2.0, 30.0, 0.0, 1.0)],
    ),
    "uniform_logpdf": ("uniform.logpdf", [(0.3, 0.0, 2.0), (1e-20, 0.0, 1e-10)]),
    "expon_logpdf": ("expon.logpdf", [(0.3, 0.0, 2.0), (1e10, 0.0, 1.0)]),
    "gamma_logpdf": ("gamma.logpdf", [(0.3, 2.5, 0.0, 2.0), (1e-30, 0.5, 0.0, 1.0), (50.0, 40.0, 0.0, 1.0)]),
    "chi2_logpdf": ("chi2.logpdf", [(0.3, 2.5, 0.0, 2.0), (1e-30, 1.0, 0.0, 1.0)]),
    "beta_logpdf": ("beta.logpdf", [(0.3, 2.5, 1.5), (1e-30, 0.5, 2.0), (0.999, 300.0, 2.0), (0.5, 30.0, 30.0)]),
    "binom_logpmf": ("binom.logpmf", [(3.0, 10.0, 0.4), (0.0, 5.0, 1e-20), (50.0, 100.0, 0.5)]),
    "poisson_logpmf": ("poisson.logpmf", [(3.0, 2.5), (0.0, 1e-20), (12.0, 15.0)]),
    "bernoulli_logpmf": ("bernoulli.logpmf", [(1.0, 0.3), (0.0, 1e-20)]),
}
DISCRETE = {"binom_logpmf", "poisson_logpmf", "bernoulli_logpmf"}


@pytest.mark.parametrize("name", CASES)
def test_values_as_scipy_and_derivatives_as_float64(name):
    theirs, points = CASES[name]
    family, method = theirs.split(".")
    f = getattr(st, name)
    reference = getattr(getattr(scipy.stats, family), method)
    columns = np.array(points).T.astype(np.float32)
    variables = tuple(range(1 if name in DISCRETE else 0, len(columns)))
    if name == "binom_logpmf":
        variables = (2,)
    gradient = jax.jit(jax.vmap(jax.grad(f, variables)))
    first32 = gradient(*columns)
    expected = reference(*columns.astype(np.float64))
    np.testing.assert_allclose(f(*columns), expected, rtol=3e-6, atol=8e-6)
    with jax.enable_x64(True):
        wide = columns.astype(np.float64)
        np.testing.assert_allclose(f(*wide), expected, rtol=1e-9, atol=1e-11)
        exact = np.array(gradient(*wide))
        for got, truth in zip(first32, exact):
            assert np.all(np.abs(got - truth) <= 2e-5 * np.abs(exact).max(0) + 1e-36), (got, truth)


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


def test_the_plain_ones_fail():
    assert np.isnan(jax.grad(plain.gamma.logpdf)(0.0, 1.0)) or np.isnan(jax.grad(plain.beta.logpdf)(0.0, 1.0, 1.0))
    assert not np.isclose(plain.t.logpdf(0.5, 1e7), scipy.stats.t.logpdf(0.5, 1e7), rtol=1e-3)
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
    x, alpha = jnp.array([0.2, 0.3, 0.5]), jnp.array([1.5, 2.0, 0.5])
    np.testing.assert_allclose(
        st.dirichlet_logpdf(x, alpha), scipy.stats.dirichlet.logpdf([0.2, 0.3, 0.5], alpha), rtol=1e-5
    )
    np.testing.assert_allclose(jax.grad(st.dirichlet_logpdf)(x, alpha), (alpha - 1) / x, rtol=1e-6)
    edge = jax.grad(st.dirichlet_logpdf, (0, 1))(jnp.array([0.0, 1.0]), jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(edge[0], [0, 2])
    outside = jax.value_and_grad(st.dirichlet_logpdf)(jnp.array([-0.5, 1.5]), jnp.array([1.0, 3.0]))
    assert outside[0] == -INF and (outside[1] == 0).all()
    assert st.dirichlet_logpdf(jnp.ones((4, 1, 2)) / 2, jnp.ones((3, 2))).shape == (4, 3)


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


def test_log_gamma_and_differences():
    mp.mp.prec = 120
    x = np.concatenate([np.linspace(0.01, 12, 60), [1, 2, 1 + 1e-5, 2 - 1e-5, 1e-10, 100, 1e6]]).astype(np.float32)
    exact = lambda f, *xs: np.array([float(f(*(mp.mpf(float(v)) for v in row))) for row in zip(*xs)])  # noqa: E731
    np.testing.assert_allclose(jax.jit(log_gamma)(x), exact(mp.loggamma, x), rtol=4e-7)
    slopes = jax.jit(jax.vmap(jax.grad(log_gamma)))(x)
    np.testing.assert_allclose(slopes, exact(mp.digamma, x), rtol=1e-5, atol=1e-6)
    assert log_gamma(jnp.float32(1.0)) == 0
    rng = np.random.default_rng(0)
    a, b = (10 ** rng.uniform(-3, 6, (2, 60))).astype(np.float32)
    beta = lambda a, b: mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)  # noqa: E731
    np.testing.assert_allclose(jax.jit(log_beta)(a, b), exact(beta, a, b), rtol=1e-6, atol=1e-6)
    half = lambda a: mp.loggamma(a + mp.mpf(0.5)) - mp.loggamma(a)  # noqa: E731
    np.testing.assert_allclose(jax.jit(log_gamma_half_step)(a), exact(half, a), rtol=1e-6, atol=1e-6)


def test_arguments():
    with jax.numpy_dtype_promotion("strict"):
        assert st.norm_logpdf(jnp.ones(2, jnp.bfloat16), 0.0, scale=2.0).dtype == jnp.bfloat16
    assert st.poisson_logpmf(3, 2.0).dtype == jnp.float32
    assert st.norm_logpdf(jnp.ones((3, 1)), jnp.ones(4)).shape == (3, 4)
    with pytest.raises(TypeError, match="norm_logpdf: got an unexpected keyword argument 'loc_'"):
        st.norm_logpdf(0.0, loc_=1.0)
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        st.gamma_logpdf(0.0)
    with pytest.raises(TypeError, match="takes real arrays"):
        st.norm_logpdf(1j)
