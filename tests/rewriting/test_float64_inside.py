"""Arrays of float64 that a function makes inside of itself: the rules are asked for after its context was left."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from tests._subset import thinned

X = np.array([1.0, 2.0, -3.0], np.float32)
CASES = {
    "logsumexp": lambda y: jnp.log(jnp.sum(jnp.exp(y))),
    "softmax": lambda y: (jnp.exp(y) / jnp.sum(jnp.exp(y)))[0],
    "log-softmax": lambda y: jax.nn.log_softmax(y)[0],
    "norm": lambda y: jnp.sqrt(jnp.sum(y**2)),
    "deviation": jnp.std,
}


@pytest.mark.parametrize("name", thinned(list(CASES), 2))
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradients(name, transform):
    def f(x):
        with jax.enable_x64(True):
            return lax.convert_element_type(CASES[name](lax.convert_element_type(x, jnp.float64)), jnp.float32)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX's own, of its operations on such arrays
        got, want = transform(jax.grad(rad.stabilize(f)))(X), transform(jax.grad(f))(X)
    np.testing.assert_allclose(got, want, rtol=1e-6)
