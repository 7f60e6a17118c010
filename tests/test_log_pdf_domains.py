"""Log-densities outside the domain of their parameters."""

import jax
import numpy as np
import pytest

from robustad import stability as st

OUTSIDE = {
    "bernoulli": lambda: st.bernoulli_logpmf(1, 1.5),
    "binom": lambda: st.binom_logpmf(5, 5, 1.5),
    "poisson": lambda: st.poisson_logpmf(0, -1.0),
    "uniform": lambda: st.uniform_logpdf(0.0, 0.0, -1.0),
    "expon": lambda: st.expon_logpdf(-1.0, 0.0, -1.0),
    "gamma": lambda: st.gamma_logpdf(-1.0, -2.0),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_parameters_outside_their_domain_give_nan(name):
    assert np.isnan(OUTSIDE[name]())


def test_plain_jax_gives_numbers_there():
    assert not np.isnan(jax.scipy.stats.poisson.logpmf(0, -1.0))
    assert not np.isnan(jax.scipy.stats.expon.logpdf(-1.0, 0.0, -1.0))
