"""Vectors over their root mean square, where the squares leave the range."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad as rad


def by_rsqrt(x, s):
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-3) * s


def by_quotient(x, s):
    return x / jnp.sqrt((x**2).mean(-1) + 1e-3)[:, None] * s


def transposed(x, s):
    return (x.T / jnp.sqrt((x**2).mean(-1) + 1e-3)).T * s


CASES = [(by_rsqrt, jnp.float32, scale) for scale in (1e25, 1.0, 1e-30)]
CASES += [(by_quotient, jnp.float32, 1e25), (transposed, jnp.float32, 1e25), (by_rsqrt, jnp.float16, 300.0)]


def measured(f, x, s, small):
    """Value, gradient, a second derivative at `small`, and the gradient row by row."""
    return (
        *jax.value_and_grad(f)(x, s),
        jax.jvp(jax.grad(f), (small, s), (jnp.ones_like(small), s))[1],
        jax.vmap(jax.grad(f))(x[:, None], jnp.stack([s, s]))[:, 0],
    )


@pytest.mark.parametrize(("form", "dtype", "scale"), CASES)
def test_root_mean_square(form, dtype, scale):
    """Value and gradient within 8 ulp of float64's, second derivatives 32; plain, 0 or NaN where squares overflow."""
    x = jnp.asarray(scale * np.arange(1, 13.0).reshape(2, 6), dtype)
    s = jnp.linspace(0.5, 1.5, 6).astype(dtype)
    weights = np.arange(1.0, 7)

    def loss(x, s):
        return jnp.sum(form(x, s) * weights.astype(x.dtype))

    with jax.enable_x64(True):
        wide = jnp.asarray(np.float64(x)), jnp.asarray(np.float64(s))
        expected = jax.jit(functools.partial(measured, loss))(*wide, wide[0] / scale)
    got = jax.jit(functools.partial(measured, rad.stabilize(loss)))(x, s, (x / scale).astype(dtype))
    eps = float(jnp.finfo(dtype).eps)
    for a, b, ulp in zip(got, expected, (8, 8, 32, 8), strict=True):
        np.testing.assert_allclose(np.float64(a), b, rtol=0, atol=ulp * eps * np.abs(b).max())
    if scale > 1:
        assert not abs(float(loss(x, s)) / float(expected[0]) - 1) < 0.5


def test_a_root_of_other_rows_is_no_root_mean_square_of_this():
    x = jnp.asarray(np.arange(1, 10.0).reshape(3, 3), jnp.float32)

    def loss(x):
        return jnp.sum(x / jnp.sqrt(jnp.sum(x**2, 0) + 1.0)[:, None] * jnp.arange(3.0))

    np.testing.assert_allclose(rad.stabilize(loss)(x), loss(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(rad.stabilize(loss))(x), jax.grad(loss)(x), rtol=1e-5)
