"""Rows of what a loop carries, each with a scale of its own: under a logarithm and in quotients, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import robustad as rad
from robustad import _jaxpr
from robustad.rewriting._rows import row_axes

RNG = np.random.default_rng(0)
MATRIX = np.float32(0.2 * np.abs(RNG.normal(size=(4, 4))) + 0.02)
FAR = np.float32([1.0, 1e-3, 1e2])  # after 40 steps 1e200 apart
SEEN = np.float32(RNG.uniform(0.5, 1, size=(3, 40, 4))) * FAR[:, None, None]


def likelihoods(a):
    """The forward algorithm of several sequences."""

    def one(seen):
        alpha, _ = lax.scan(lambda p, s: ((p @ a) * s, None), jnp.ones(4, a.dtype), seen)
        return jnp.log(jnp.sum(alpha))

    return jax.vmap(one)(SEEN.astype(a.dtype))


def by_while(a):
    """The same of what a while loop carries, the batch behind."""

    def one(s):
        step = lambda c: (c[0] + 1, s * (a @ c[1]))  # noqa: E731
        return jnp.log(lax.while_loop(lambda c: c[0] < 40, step, (0, jnp.ones(4, a.dtype)))[1][2])

    return jax.vmap(one)(FAR.astype(a.dtype))


def by_hand(a):
    """Rows without vmap, through a transpose and a sum."""

    def step(p, _):
        q = (a.T @ p.T).T * FAR[:, None].astype(a.dtype)
        return q + p, None

    return jnp.log(jnp.sum(lax.scan(step, jnp.ones((3, 4), a.dtype), None, 60)[0], axis=1))


def elements(a):
    far = FAR[:, None, None].astype(a.dtype)
    return jnp.log(lax.fori_loop(0, 40, lambda _, p: p * a * far, jnp.ones((3, 4, 4), a.dtype)))


def directions(a):
    """Power iterations of several matrices."""

    def one(s):
        v = lax.fori_loop(0, 40, lambda _, v: s * (a @ v), jnp.ones(4, a.dtype))
        return v / jnp.linalg.norm(v)

    return jax.vmap(one)(FAR.astype(a.dtype))


def posteriors(a):
    p = lax.scan(lambda p, _: (p @ a * FAR[:, None].astype(a.dtype), None), jnp.ones((3, 4), a.dtype), None, 40)[0]
    return p / jnp.sum(p, axis=1, keepdims=True)


@pytest.mark.parametrize("f", [likelihoods, by_while, by_hand, elements, directions, posteriors])
def test_each_row_has_its_scale(f):
    """Within 64 ulp of float64's, derivatives 1024; the plain form is not finite in some rows."""

    def both(f, a):
        return f(a), jax.jvp(f, (a,), (a * jnp.cos(a),))[1]

    with jax.enable_x64(True):
        expected = jax.jit(lambda a: both(f, a))(np.float64(MATRIX))
    got = jax.jit(lambda a: both(rad.stabilize(f), a))(MATRIX)
    for x, y, ulp in zip(got, expected, (64, 1024), strict=True):
        np.testing.assert_allclose(x, y, rtol=ulp * 2**-23, atol=ulp * 2**-23 * (f in (directions, posteriors)))
    assert not np.isfinite(f(MATRIX)).all()


def test_a_row_of_zeros_beside_others():
    def f(a):
        p = lax.scan(lambda p, _: (p @ a, None), jnp.asarray([[0.0, 0.0], [1.0, 1.0]]), None, 200)[0]
        return jnp.log(jnp.sum(p, axis=1))

    a = np.float32([[0.1, 0.2], [0.2, 0.1]])
    np.testing.assert_allclose(rad.stabilize(f)(a), [-np.inf, 200 * np.log(0.3) + np.log(2)], rtol=1e-6)


ROWS = {  # a step, the axes along which it keeps rows apart
    "product": (lambda p: p @ MATRIX, (0,)),
    "product from the left": (lambda p: MATRIX @ p, (1,)),
    "elements": (lambda p: 2 * p - p * MATRIX, (0, 1)),
    "transposed twice": (lambda p: (MATRIX @ p.T).T, (0,)),
    "transposed": (lambda p: p.T, ()),
    "sum": (lambda p: p + jnp.sum(p, axis=1, keepdims=True), (0,)),
    "reversed": (lambda p: p[::-1], (1,)),
    "joined": (lambda p: jnp.concatenate([p[:, 1:], p[:, :1]], axis=1), (0,)),
    "cumulative": (lambda p: jnp.cumsum(p, axis=0), (1,)),
    "reshaped": (lambda p: p.reshape(4, 2, 2).sum(2).repeat(2, axis=1), (0,)),
    "batched": (lambda p: jnp.einsum("ij,ijk->ik", p, np.ones((4, 4, 4), np.float32)), (0,)),
    "in a call": (lambda p: jax.jit(lambda p: p @ MATRIX)(p), (0,)),
    "shifted": (lambda p: jnp.roll(p, 1, axis=1), (0,)),
}


@pytest.mark.parametrize("name", ROWS)
def test_row_axes(name):
    """Each axis that is told is one: the step commutes with factors of the rows."""
    step, axes = ROWS[name]
    p = np.float32(RNG.normal(size=(4, 4)))
    found = row_axes(_jaxpr.trace(step, p)[0], 0, 0)
    assert set(found) <= set(axes)
    assert name in ("reshaped",) or found == axes
    for axis in found:
        factors = np.float32(2.0 ** np.arange(4)).reshape((-1, 1) if axis == 0 else (1, -1))
        np.testing.assert_allclose(step(p * factors), step(p) * factors, rtol=1e-5)
