"""Programs that are exported for any batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import robustad as rad

X = np.array([[700.0, -300.0, 20.0], [-900.0, -901.0, -905.0]], np.float32)
CASES = {
    "softmax": lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True),
    "logsumexp": lambda x: jnp.log(jnp.sum(jnp.exp(x), -1)),
    "log-softmax": lambda x: jnp.log(jax.nn.softmax(x)),
    "product": lambda x: jnp.log(jnp.einsum("bi,bi->b", jnp.exp(x), jnp.exp(-x) + 1)),
    "variance": lambda x: jnp.mean(x**2, -1) - jnp.mean(x, -1) ** 2,
    "distance": lambda x: (lambda r: (1 + r) * jnp.exp(-r))(jnp.sqrt(jnp.sum(x**2, -1))),
}


@pytest.mark.parametrize("name", CASES)
def test_exported_gradients(name):
    (b,) = export.symbolic_shape("b")

    def slope(x):
        return jax.grad(lambda x: jnp.sum(rad.stabilize(CASES[name])(x) * jnp.arange(2.0)[: x.ndim - 1]))(x)

    exported = export.export(jax.jit(slope))(jax.ShapeDtypeStruct((b, 3), jnp.float32))
    np.testing.assert_allclose(exported.call(X), jax.jit(slope)(X), rtol=1e-6, atol=1e-30)
