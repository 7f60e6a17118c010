"""A user's error-free transforms are left alone, and what only looks like one is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad as rad

RECOVERS = {
    "two_sum": lambda a, b: ((a + b) - a) - b,
    "the other operand": lambda a, b: ((a + b) - b) - a,
    "of a difference": lambda a, b: a - (a - b),
    "added back": lambda a, b: (a - b) + b,
    "from the left": lambda a, b: b - (a + b),
}


@pytest.mark.parametrize("name", RECOVERS)
def test_an_error_of_rounding_keeps_its_bits(name):
    f = RECOVERS[name]
    a, b = np.float32(1e8), np.float32(3.0)
    assert not rad.stabilize(f).rewrites(a, b)
    assert rad.stabilize(f)(a, b) == f(jnp.float32(a), jnp.float32(b))


def test_a_sum_that_doubles_its_operand_is_no_error_free_transform():
    """e^x - (1 - e^x) is 2 e^x - 1: nothing cancels to the error of a rounding."""

    def f(x):
        return (jnp.exp(x) - (1 - jnp.exp(x))) / (1 + jnp.exp(x))

    x = np.array([100.0, -0.6931472, 0.3], np.float32)
    e = np.exp(np.float64(x))
    plain = jax.vmap(f)(x)
    assert np.isnan(plain[0]) and plain[1] == 0
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(rad.stabilize(f))))(x)
    np.testing.assert_allclose(value, (2 * e - 1) / (1 + e), rtol=1e-5)
    np.testing.assert_allclose(slope, 3 * e / (1 + e) ** 2, rtol=1e-5, atol=1e-37)
