"""Third derivatives, which no formula of ours was written for, and second ones through a scan."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from robustad import stability as st
from tests._subset import thinned
from tests._ulp import ulps

THIRD = {  # name: (ours, the same by mpmath, point)
    "divide": (lambda y: st.divide(1.0, y), lambda y: 1 / y, 2.0),
    "hypot": (lambda x: st.hypot(x, 0.4), lambda x: mp.sqrt(x * x + mp.mpf("0.16")), 0.3),
    "arctan2": (lambda y: st.arctan2(y, 0.4), lambda y: mp.atan2(y, mp.mpf("0.4")), 0.3),
    "sqrt_diff": (lambda x: st.sqrt_diff(x, 0.5), lambda x: mp.sqrt(x + 0.5) - mp.sqrt(x), 2.0),
    "power": (lambda x: st.power(x + 1, x), lambda x: mp.power(x + 1, x), 0.7),
    "cloglog": (st.cloglog, lambda x: mp.log(-mp.log(1 - x)), 0.3),
    "log1psq": (st.log1psq, lambda x: mp.log(1 + x * x), 0.7),
    "sigmoid": (st.sigmoid, lambda x: 1 / (1 + mp.exp(-x)), 0.7),
    "norm_logpdf in the scale": (lambda s: st.norm_logpdf(1.0, 0.0, s), lambda s: -1 / (2 * s * s) - mp.log(s), 2.0),
}


@pytest.mark.parametrize("name", thinned(list(THIRD), 2))
def test_third_derivatives_are_not_silently_wrong(name):
    """Within 4 ulp: a rule that JAX cannot differentiate would give 0 here, or an approximation's derivative."""
    ours, exact, x = THIRD[name]
    with mp.workdps(40):
        wanted = float(mp.diff(exact, mp.mpf(float(np.float32(x))), 3))
    assert ulps(jax.grad(jax.grad(jax.grad(ours)))(x), wanted) <= 4


@pytest.mark.parametrize("name", thinned(["divide", "hypot", "arctan2", "power", "sqrt_diff"], 2))
def test_second_derivatives_through_a_scan(name):
    """Within 2 ulp of those without a scan: JAX may not drop the rules there."""
    f = getattr(st, name)
    x = jnp.array([[0.3, 0.5], [0.4, 0.9]])

    def summed(x):
        return jax.lax.scan(lambda total, row: (total + f(*row), None), 0.0, x)[0]

    wanted = np.asarray(jax.hessian(lambda x: f(*x[0]) + f(*x[1]))(x), np.float64)
    for hessian in (jax.hessian(summed)(x), jax.jacrev(jax.grad(summed))(x)):
        assert ulps(hessian, wanted).max() <= 2
