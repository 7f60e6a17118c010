"""Sums that loops carry in 16 bits."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import robustad as rad

ONES = np.ones(300, np.float32)


def total(x):
    return lax.scan(lambda s, x: (s + x, None), jnp.zeros((), x.dtype), x)[0]


def counted(x):
    """The steps after the 280th."""

    def step(count, x):
        count = count + 1
        return count, jnp.where(count > 280, x, 0)

    return jnp.sum(lax.scan(step, jnp.zeros((), x.dtype), x)[1].astype(jnp.float32))


def kahan(x):
    def step(state, x):
        s, c = state
        y = x - c
        t = s + y
        return (t, (t - s) - y), None

    return lax.scan(step, (jnp.zeros((), x.dtype), jnp.zeros((), x.dtype)), x)[0][0]


def test_a_running_sum_does_not_stop_growing():
    x = jnp.asarray(ONES, jnp.bfloat16)
    assert total(x) == 256 and rad.stabilize(total)(x) == 300
    np.testing.assert_array_equal(np.float32(jax.grad(rad.stabilize(total))(x)), 1)


def test_a_counter_passes_its_bound_at_its_step():
    x = jnp.asarray(ONES, jnp.bfloat16)
    assert counted(x) == 0 and jax.jit(rad.stabilize(counted))(x) == 20
    np.testing.assert_array_equal(np.float32(jax.grad(rad.stabilize(counted))(x)), np.arange(300) >= 280)


def test_a_compensated_sum_is_left_as_it_is():
    x = jnp.asarray(ONES, jnp.bfloat16)
    assert rad.stabilize(kahan)(x) == kahan(x) == 300
    assert not rad.stabilize(kahan).rewrites(x)


def test_cotangents_of_what_a_loop_closes_over():
    x = jnp.asarray(ONES, jnp.bfloat16)

    def loss(w):
        return jnp.sum(lax.scan(lambda c, x: (c, x * w), 0, x)[1].astype(jnp.float32))

    w = jnp.asarray(1.0, jnp.bfloat16)
    assert jax.grad(loss)(w) == 256 and jax.grad(rad.stabilize(loss))(w) == 300
