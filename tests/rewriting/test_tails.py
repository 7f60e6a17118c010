"""Functions that saturate: their distance from the limit, and its logarithm, far out."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from robustad.rewriting.expressions._tails import scaled
from tests.rewriting._scalar import check, stable

erf, erfc = jax.scipy.special.erf, jax.scipy.special.erfc
CASES = {
    "1 - tanh²": (lambda x: 1 - jnp.tanh(x) ** 2, [(20.0,), (-9.0,), (0.3,)]),
    "log(1 - tanh²)": (lambda x: jnp.log(1 - jnp.tanh(x) ** 2), [(20.0,), (-60.0,), (1e-5,), (0.9,)]),
    "a squashed Gaussian": (
        lambda x: -x * x / 2 - jnp.log(1 - jnp.tanh(x) ** 2),
        [(20.0,), (-1e-5,), (2.0,)],
    ),
    "log(1 - tanh)": (lambda x: jnp.log(1 - jnp.tanh(x)), [(20.0,), (-20.0,), (1e-9,)]),
    "log(1 + tanh)": (lambda x: jnp.log(1 + jnp.tanh(x)), [(-20.0,), (20.0,), (1e-9,)]),
    "1 - erf": (lambda x: 1 - erf(x), [(5.0,), (-3.0,), (1e-9,)]),
    "log(1 - erf)": (lambda x: jnp.log(1 - erf(x)), [(20.0,), (1e-9,), (-3.1,)]),
    "log(1 + erf)": (lambda x: jnp.log(1 + erf(x)), [(-20.0,), (1e-9,), (3.1,)]),
    "log(1 - erf²)": (lambda x: jnp.log(1 - erf(x) ** 2), [(20.0,), (1e-5,), (-0.9,)]),
    "log erfc": (lambda x: jnp.log(erfc(x)), [(20.0,), (2.99,), (3.01,), (1e-9,)]),
    "log sech": (lambda x: jnp.log(1 / jnp.cosh(x)), [(100.0,), (-1e-4,)]),
    "log sech²": (lambda x: jnp.log(1 / jnp.cosh(x) ** 2), [(100.0,), (-1e-4,)]),
    "inverse Mills ratio": (lambda x: jnp.exp(-x * x) / erfc(x), [(14.0,), (2.9,), (0.9,)]),
    "scaled erfc": (lambda x: jnp.exp(x * x) * erfc(x), [(20.0,), (2.9,), (0.9,)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes(name):
    check(*CASES[name])


@pytest.mark.parametrize("x", [-9.0, -60.0, -1000.0])
def test_the_normal_distribution_by_hand(x):
    """erfc underflows even in float64 beyond 27."""
    g = stable(lambda x: jnp.log(0.5 * (1 + erf(x * np.float32(0.70710678)))))
    with mp.workdps(400):
        u = -mp.mpf(x) * mp.mpf(float(np.float32(0.70710678)))
        c = mp.mpf(float(np.float32(0.70710678)))
        slope = 2 * c / mp.sqrt(mp.pi) * mp.exp(-u * u) / mp.erfc(u)
        want = [mp.log(mp.erfc(u) / 2), slope, slope * (2 * c * u - slope)]
    got = [h(np.float32(x)) for h in (g, jax.grad(g), jax.grad(jax.grad(g)))]
    np.testing.assert_allclose(got, [float(w) for w in want], rtol=3e-7)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_scaled_integrals(n):
    for x in (3.0, 4.0, 11.0, 1e9):
        with mp.workdps(60):
            f = lambda t: t**n / mp.factorial(n) * mp.exp(-t * (t + 2 * mp.mpf(x)))  # noqa: B023, E731
            want = 2 / mp.sqrt(mp.pi) * mp.quad(f, [0, 1 / mp.mpf(x), 4 / mp.mpf(x), 20 / mp.mpf(x), 200 / mp.mpf(x)])
        np.testing.assert_allclose(scaled(n, np.float64(x), np.float64), float(want), rtol=1e-15)
