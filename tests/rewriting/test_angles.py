"""Angles between nearly parallel vectors, and 1 - cosine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import robustad as rad

length = jnp.linalg.norm


def quotients(a, b):
    return jnp.arccos(jnp.clip(jnp.sum(a * b, -1) / length(a, axis=-1) / length(b, axis=-1), -1, 1))


def mapped(a, b):
    return jax.vmap(lambda a, b: jnp.arccos(jnp.vdot(a, b) / (length(a) * length(b))))(a, b)


def units(a, b):
    u, v = a / length(a, axis=-1, keepdims=True), b / jnp.sqrt(jnp.sum(b**2, -1))[:, None]
    return jnp.arccos(jnp.einsum("nd,nd->n", u, v))


def distance(a, b):
    return 1 - jnp.sum(a * b, -1) / (length(a, axis=-1) * length(b, axis=-1))


def distance_of_units(a, b):
    return 1 - jnp.sum(a / length(a, axis=-1, keepdims=True) * (b / length(b, axis=-1)[:, None]), axis=-1)


def products(a, b):
    u = a / jnp.maximum(length(a, axis=1, keepdims=True), 1e-6)
    return 1 - (u * b / jnp.maximum(length(b, axis=1, keepdims=True), 1e-6)).sum(1)


def library(a, b):
    return 1 - optax.losses.cosine_similarity(a, b, epsilon=1e-8)


def vectors():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 6))
    b = a * np.array([1, 1.01, 2, 0.3])[:, None] + 1e-3 * rng.normal(size=(4, 6))
    b[3] = -a[3] + 0.1 * rng.normal(size=6)
    return jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)


@pytest.mark.parametrize("f", [quotients, mapped, units, distance, distance_of_units, products, library])
def test_small_angles(f):
    """Within 2⁻²³ of what its entries' last places decide of an angle of 1e-3; the plain form loses 1e-3 or more."""
    a, b = vectors()

    def slope(f, a, b):
        both = jax.value_and_grad(lambda a: (f(a, b).sum(), f(a, b))[0])(a)
        return f(a, b), both[1], jax.jvp(jax.grad(lambda a: f(a, b).sum()), (a,), (b,))[1]

    with jax.enable_x64(True):
        wide = jnp.asarray(np.float64(a)), jnp.asarray(np.float64(b))
        expected = jax.jit(lambda *x: slope(f, *x))(*wide)
    got = jax.jit(lambda *x: slope(rad.stabilize(f), *x))(a, b)
    plain = jax.jit(lambda *x: slope(f, *x))(a, b)

    def off(x, y):
        y = np.asarray(y).reshape(len(y), -1)
        return np.max(np.abs(np.float64(x).reshape(y.shape) - y) / np.max(np.abs(y), -1, keepdims=True))

    assert off(got[0], expected[0]) < 2**-23 / 1e-3
    assert not off(plain[0], expected[0]) <= 1e-3  # or NaN: arccos of what was rounded above 1
    assert off(got[1], expected[1]) < 4 * 2**-23 / 1e-3
    assert off(got[2], expected[2]) < 1e-2


def test_parallel_vectors_and_a_clip():
    a, _ = vectors()
    value, slope = jax.jit(jax.value_and_grad(rad.stabilize(lambda a, b: quotients(a, b).sum())))(a, a)
    assert value == 0 and not jnp.any(slope)

    def clipped(a, b):
        return jnp.arccos(jnp.clip(jnp.vdot(a, b) / length(a) / length(b), -0.5, 0.5))

    stable = jax.jit(jax.value_and_grad(rad.stabilize(clipped)))
    (low, slope), (high, _) = stable(a[0], a[0]), stable(a[0], -a[0])
    np.testing.assert_allclose([low, high], [np.pi / 3, 2 * np.pi / 3], rtol=2e-7)
    assert not jnp.any(slope)


@pytest.mark.parametrize("f", [products, library])
def test_lengths_below_a_floor_and_of_other_sizes(f):
    a = jnp.asarray([[0.0, 0, 0], [1e-9, 2e-9, 1e-9], [1e-3, 2e-3, 1e-3], [1e3, 2e3, 1e3]], jnp.float32)
    b = jnp.asarray([[1.0, 2, 1.01]] * 4, jnp.float32)
    with jax.enable_x64(True):
        wide = jnp.asarray(np.float64(a)), jnp.asarray(np.float64(b))
        truth, slopes = f(*wide), jax.jit(jax.grad(lambda a: f(a, wide[1]).sum()))(wide[0])
    np.testing.assert_allclose(rad.stabilize(f)(a, b), truth, rtol=2**-20, atol=2**-23)
    if f is library:  # the norm of the other form has no derivative at 0
        got = jax.jit(jax.grad(lambda a: rad.stabilize(f)(a, b).sum()))(a)
        np.testing.assert_allclose(got[:2], slopes[:2], rtol=2**-20)


def columns(a, b):
    """Each column divided by the length of a row."""
    a, b = a[:, :4], b[:, :4]
    return 1 - jnp.sum(a / jnp.sqrt(jnp.sum(a**2, 1)[None]) * b / length(b, axis=1), 1)


def test_what_is_no_cosine_is_left_alone():
    a, b = vectors()
    for f in (
        lambda a, b: jnp.arccos(jnp.vdot(a[0], b[0]) / length(a[0]) / length(a[0]) / 2),
        lambda a, b: 1 - jnp.sum(a * b, -1) / (length(a, axis=-1) * length(a, axis=-1)),
        lambda a, b: (
            1 - jnp.sum(a[:, :4] / jnp.sqrt(jnp.sum(a[:, :4] ** 2, 1)[None]) * b[:, :4] / length(b[:, :4], axis=1), 1)
        ),
        lambda a, b: 1 - jnp.sum(a / length(a, axis=0) * (b / length(b, axis=0)), axis=-1),
    ):
        assert not any(r.rule == "angle" for r in rad.stabilize(f).rewrites(a, b))


@pytest.mark.parametrize("v", [[0.3001, 0.1001], [0.5, -0.2]])
def test_hyperbolic_distances(v):
    """arccosh near 1, in the ball of Poincaré."""

    def distance(u, v):
        return jnp.arccosh(1 + 2 * jnp.sum((u - v) ** 2) / ((1 - jnp.sum(u * u)) * (1 - jnp.sum(v * v))))

    u, v = np.float32([0.3, 0.1]), np.float32(v)
    got = jax.jit(jax.value_and_grad(rad.stabilize(distance)))(u, v)
    with jax.enable_x64(True):
        want = jax.value_and_grad(distance)(np.float64(u), np.float64(v))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)
    if v[1] > 0:  # near u
        assert distance(u, v) == 0 and not np.isfinite(jax.grad(distance)(u, v)).any()
