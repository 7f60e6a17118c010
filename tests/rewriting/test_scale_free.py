"""Loops whose value leaves the range while a quotient of it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad

RNG = np.random.default_rng(0)
MATRIX = np.abs(RNG.normal(size=(4, 4))) + 0.1


def by_while(a):
    v = lax.while_loop(lambda s: s[0] < 120, lambda s: (s[0] + 1, a @ s[1]), (0, jnp.ones(4, a.dtype)))[1]
    return v / jnp.linalg.norm(v)


def by_scan(a):
    v = lax.fori_loop(0, 120, lambda _, v: a @ v, jnp.ones(4, a.dtype))
    return v / jnp.sqrt(jnp.sum(v * v))


def filtered(a):
    """A forward algorithm that normalises at its end alone."""
    alpha = lax.scan(lambda p, _: (0.1 * (a.T @ p), None), jnp.ones(4, a.dtype), None, 120)[0]
    return alpha / alpha.sum()


def by_largest(a):
    v = lax.scan(lambda p, _: (a @ p, None), jnp.ones(4, a.dtype), None, 120)[0]
    return 3 * v / jnp.max(jnp.abs(v))


@pytest.mark.parametrize("f", [by_while, by_scan, filtered, by_largest])
def test_the_scale_drops_out(f):
    """Within 64 ulp of float64's after 120 products; derivatives, in which 120 times the scale's own drop out, 1024 ulp.

    The plain form is NaN or 0.
    """
    a = jnp.asarray(MATRIX, jnp.float32)

    def both(f, a):
        return f(a), jax.jvp(f, (a,), (jnp.cos(a),))[1]

    with jax.enable_x64(True):
        expected = jax.jit(lambda a: both(f, a))(jnp.asarray(np.float64(a)))
    got = jax.jit(lambda a: both(rad.stabilize(f), a))(a)
    for x, y, ulp in zip(got, expected, (64, 1024), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=ulp * 2**-23 * np.abs(y).max())
    assert not np.allclose(f(a), expected[0], rtol=1e-3)
    if f is not by_while:
        np.testing.assert_allclose(
            jnp.vdot(jax.jit(jax.grad(lambda a: rad.stabilize(f)(a)[0]))(a), jnp.cos(a)), got[1][0], atol=2e-4
        )


def test_where_the_scale_counts_nothing_is_replaced():
    a = jnp.asarray(0.3 * MATRIX, jnp.float32)

    def shifted(a):
        v = lax.scan(lambda p, _: (a @ p, None), jnp.ones(4, a.dtype), None, 5)[0]
        return v / (jnp.linalg.norm(v) + 1.0)

    def squared(a):
        v = lax.scan(lambda p, _: (a @ p, None), jnp.ones(4, a.dtype), None, 5)[0]
        return v / jnp.sum(v * v)

    def mixed(a):
        """Rows that each step adds to each other share a scale; their norms do not."""
        v = lax.scan(lambda p, _: (a @ p, None), jnp.ones((4, 2), a.dtype), None, 16)[0]
        return v / jnp.linalg.norm(v, axis=-1, keepdims=True)

    for f in (shifted, squared, mixed):
        assert not any(r.rule == "scaled loop" for r in rad.stabilize(f).rewrites(a))
        np.testing.assert_allclose(rad.stabilize(f)(a)[0], f(a)[0], rtol=1e-6)
