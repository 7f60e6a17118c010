"""Functions that promote dtypes themselves do so under strict promotion too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability as st


def of_log_matmul():
    return jax.grad(lambda a: st.log_matmul(a, a).sum())(jnp.full((2, 2), -200.0))


def of_narrow_leaves():
    return st.reproducible_global_norm([jnp.ones(2), jnp.ones(2, jnp.bfloat16)])


def of_counts():
    return st.poisson_logpmf(jnp.arange(3), jnp.array([1.0, 2.0, 3.0]))


def of_integers():
    return st.elu(jnp.array([1, -1]))


@pytest.mark.parametrize("call", [of_log_matmul, of_narrow_leaves, of_counts, of_integers])
def test_the_same_bits_as_under_standard_promotion(call):
    with jax.numpy_dtype_promotion("strict"):
        got = call()
    assert np.isfinite(got).all() and got.dtype == jnp.float32
    np.testing.assert_array_equal(got, call())


def test_values():
    assert of_narrow_leaves() == 2
    np.testing.assert_array_equal(of_integers(), jnp.array([1.0, np.expm1(np.float32(-1))], jnp.float32))
    with pytest.raises(jax.dtypes.TypePromotionError), jax.numpy_dtype_promotion("strict"):
        jnp.ones(2) + jnp.ones(2, jnp.bfloat16)
