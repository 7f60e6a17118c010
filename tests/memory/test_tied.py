"""Arrays that wait, and cotangents that wait for one another: the identity, at every order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad.memory._after import after, sealed
from robustad.memory._tied import tied


def loss(identity, x, y):
    x, y = identity([x, y])
    return jnp.sum(jnp.sin(x) * jnp.cos(x) + jnp.concatenate([x, y])[: x.size] ** 2) + jnp.sum(y * x[:2])


def test_derivatives_of_the_identity():
    x, y = jnp.arange(4.0), jnp.ones(2)
    for derive in (jax.grad, jax.hessian, lambda f, argnums: jax.jit(jax.jacfwd(jax.grad(f, argnums), argnums))):
        ours = derive(lambda x, y: loss(tied, x, y), argnums=(0, 1))(x, y)
        plain = derive(lambda x, y: loss(lambda a: a, x, y), argnums=(0, 1))(x, y)
        jax.tree.map(np.testing.assert_array_equal, ours, plain)


def test_under_vmap_where_one_array_is_not_mapped():
    x, y = jnp.arange(12.0).reshape(3, 4), jnp.ones(2)
    ours = jax.vmap(jax.grad(lambda x, y: loss(tied, x, y), (0, 1)), (0, None))(x, y)
    plain = jax.vmap(jax.grad(lambda x, y: loss(lambda a: a, x, y), (0, 1)), (0, None))(x, y)
    jax.tree.map(np.testing.assert_array_equal, ours, plain)


def test_the_other_cotangents_come_first():
    """The program of the gradient orders them, and nothing else does."""

    def joined(identity):
        def f(x, y):
            x, y = identity([jnp.sin(x), jnp.sin(y)])
            return jnp.sum(jnp.concatenate([x, y]) ** 2)

        return str(jax.make_jaxpr(jax.grad(f, (0, 1)))(jnp.ones(3), jnp.ones(4)))

    assert joined(tied).count(" after ") == 2
    assert " after " not in joined(lambda a: a)


@pytest.mark.parametrize(
    "x",
    [
        jax.random.key(3),
        jax.random.split(jax.random.key(3), 2),
        jnp.arange(3, dtype=jnp.uint8),
        jnp.array([True, False]),
        jnp.array([1 + 2j]),
        jnp.ones((2, 2), jnp.bfloat16),
        jnp.ones((0, 3)),
        jnp.float16(2),
    ],
    ids=lambda x: f"{x.dtype}{x.shape}",
)
def test_arrays_of_every_type_may_wait_and_be_waited_for(x):
    waited = jax.jit(lambda x: (sealed(x), after(x, [jnp.ones(2), x]), after(jnp.ones(2), [x])))(x)
    data = jax.random.key_data if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else lambda x: x
    for got in waited[:2]:
        assert got.dtype == x.dtype
        np.testing.assert_array_equal(data(got), data(x))
    np.testing.assert_array_equal(waited[2], 1)
