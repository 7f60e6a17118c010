"""log F and log(1 - F) of distribution functions, in the forms that users write, far out on both sides.

The oracle is mpmath. A form that divides x by √2 first has that rounding, times x², in its tail; the bounds allow for it.
"""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from jax.scipy.special import erf, erfc
from jax.scipy.stats import norm

import robustad as rad
from tests._subset import thinned

ROOT = np.float32(np.sqrt(2))
POINTS = np.float32([-12, -8, -5, -1, 0.3, 1, 3, 6, 8, 12])
FORMS = {
    "log(cdf)": (lambda x: jnp.log(norm.cdf(x)), 1),
    "log(erfc/2)": (lambda x: jnp.log(0.5 * erfc(-x / ROOT)), 1),
    "log((1 + erf)/2)": (lambda x: jnp.log((1 + erf(x / ROOT)) / 2), 1),
    "log(1 - cdf)": (lambda x: jnp.log(1 - norm.cdf(x)), -1),
    "log1p(-cdf)": (lambda x: jnp.log1p(-norm.cdf(x)), -1),
    "log(1 - (1 + erf)/2)": (lambda x: jnp.log(1 - (1 + erf(x / ROOT)) / 2), -1),
    "log(1 - erfc/2)": (lambda x: jnp.log(1 - erfc(x / ROOT) / 2), 1),
}


def ulps(got, exact):
    unit = float(np.spacing(np.float32(abs(float(exact)))))
    return abs(float(got) - float(exact)) / unit


@pytest.mark.parametrize("form", thinned(list(FORMS), 3))
def test_normal(form):
    f, side = FORMS[form]
    found, before = (
        jax.jit(jax.vmap(lambda x, g=g: (g(x), jax.grad(g)(x), jax.grad(jax.grad(g))(x))))(POINTS)
        for g in (rad.stabilize(f), f)
    )
    worst = []
    with mp.workdps(60):
        for k in range(3):
            for x, got, was in zip(POINTS, found[k], before[k]):
                x = mp.mpf(float(x))
                step = {"n": k, "h": mp.mpf(10) ** -20}
                exact = mp.diff(lambda t: mp.log(mp.ncdf(side * t)), x, **step) if k else mp.log(mp.ncdf(side * x))
                assert ulps(got, exact) <= 16 + 4 * float(x) ** 2, (k, x)
                worst.append(ulps(was, exact) if np.isfinite(was) else np.inf)
    assert max(worst) > 1e5


@pytest.mark.parametrize("x", np.float32([-40, -9, 0.5, 12, 40]))
def test_logistic_by_tanh(x):
    f = rad.stabilize(lambda x: jnp.log(0.5 * (1 + jnp.tanh(x / 2))))
    g = rad.stabilize(lambda x: jnp.log(1 - 0.5 * (1 + jnp.tanh(x / 2))))
    with mp.workdps(60):
        p, q = (1 / (1 + mp.exp(-mp.mpf(float(s * x)))) for s in (1, -1))
        assert ulps(f(x), mp.log(p)) <= 4 and ulps(g(x), mp.log(q)) <= 4
        assert ulps(jax.grad(f)(x), q) <= 4 and ulps(jax.grad(g)(x), -p) <= 4


def test_other_factors_and_cases():
    """A factor that is not 1/2 is added as its logarithm; a case of another kind leaves the sum of logarithms as it was."""
    x = np.float32([-20, -3, 0.1, 2])
    third = jax.vmap(rad.stabilize(lambda x: jnp.log(1.5 * erfc(-x / ROOT))))(x)
    np.testing.assert_allclose(third, jax.scipy.stats.norm.logcdf(x) + np.log(np.float32(3)), rtol=1e-6, atol=1e-7)
    mixed = rad.stabilize(lambda x: jnp.log(0.5 * jnp.where(x > 0, 1 + erf(x), jnp.exp(x))))
    exact = [np.log(0.5 + 0.5 * float(mp.erf(float(v)))) if v > 0 else float(v) - np.log(2) for v in x]
    np.testing.assert_allclose(jax.vmap(mixed)(x), exact, rtol=1e-6, atol=1e-7)
