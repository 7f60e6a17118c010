"""Quotients by an exponential, whose derivative's factors leave the range while their product does not: against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from tests.rewriting._scalar import ulps

RESIDUALS = np.float32([2.0, -0.5, 1.5, 0.25])


def squares(s):
    return jnp.sum((RESIDUALS.astype(s.dtype) / jnp.exp(s)) ** 2)


def rows(s):
    """A scale for each row, broadcast."""
    r = jnp.stack([RESIDUALS, RESIDUALS / 2]).astype(s.dtype)
    return jnp.sum((r / jnp.exp(s[:2])[:, None]) ** 2)


def scanned(s):
    step = lambda c, x: (c + (x[0] / jnp.exp(x[1])) ** 2, None)  # noqa: E731
    return lax.scan(step, jnp.zeros((), s.dtype), (RESIDUALS.astype(s.dtype), s))[0]


def scaled_once(s):
    return jnp.sum(jnp.square(RESIDUALS.astype(s.dtype) / jnp.exp(s[0])))


@pytest.mark.parametrize("at", [-40.0, 39.0])
@pytest.mark.parametrize("f", [squares, rows, scanned, scaled_once])
def test_gradient_and_hessian(f, at):
    """Within 16 ulp (exp's own of s = 40 among them); of the plain form both are infinite, NaN or 0."""
    s = np.float32(at + np.array([0, 0.25, -0.5, 0.5]))

    def all_of(g, s):
        return g(s), jax.grad(g)(s), jax.hessian(g)(s), jax.jvp(g, (s,), (s,))[1]

    with jax.enable_x64(True):
        wanted = jax.tree.map(np.asarray, jax.jit(lambda s: all_of(f, s))(np.float64(s)))
    got, plain = (jax.jit(lambda s, g=g: all_of(g, s))(s) for g in (rad.stabilize(f), f))
    for x, y in zip(got, wanted, strict=True):
        assert all(ulps(a, b) <= 16 for a, b in zip(np.ravel(x).tolist(), np.ravel(y).tolist()))
    largest = np.abs(wanted[1]).max()
    assert not np.allclose(plain[1] / largest, wanted[1] / largest, rtol=1e-2, atol=0)


def test_both_operands_and_the_bits_of_the_value():
    f = lambda x, s: x / jnp.exp(s)  # noqa: E731
    x, s = np.float32(3.0), np.float32(0.7)
    g = rad.stabilize(f)
    assert [r.before for r in g.rewrites(x, s)] == ["x / exp(s)"]
    assert g(x, s) == f(x, s)
    np.testing.assert_allclose(jax.grad(g, (0, 1))(x, s), [np.exp(-0.7), -3 * np.exp(-0.7)], rtol=3e-7)
    np.testing.assert_allclose(jax.hessian(g, (0, 1))(x, s)[1], [-np.exp(-0.7), 3 * np.exp(-0.7)], rtol=3e-7)
