"""Hessians of functions of distances, of masked quotients by norms, and of mixtures with weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

import robustad as rad
from tests._subset import thinned

ROOT5 = float(np.sqrt(np.float32(5)))


def _by_hand(x: Any) -> Any:
    return jnp.sqrt(jnp.sum(x**2, -1))


def matern52(x: Any, r: Any = _by_hand) -> Any:
    return (1 + ROOT5 * r(x) + 5 * r(x) ** 2 / 3) * jnp.exp(-ROOT5 * r(x))


def scaled_matern32(x: Any) -> Any:
    s = jnp.sqrt(3.0) * jnp.sqrt(jnp.sum((x / 0.7) ** 2))
    return (1 + s) * jnp.exp(-s)


# name: (a function of the distance to 0 that is smooth in the point, f''(0))
RADIAL: dict[str, tuple[Callable[[Any], Any], float]] = {
    "Matern 5/2": (matern52, 10 / 3 - ROOT5**2),
    "Matern 5/2 of a library's norm": (lambda x: matern52(x, lambda d: jnp.linalg.norm(d, axis=-1)), 10 / 3 - ROOT5**2),
    "Matern 3/2 with a length": (scaled_matern32, -3 / 0.49),
    "a squared norm": (lambda x: jnp.linalg.norm(x) ** 2, 2.0),
    "a cube": (lambda x: _by_hand(x) ** 3, 0.0),
    "cosh": (lambda x: jnp.cosh(_by_hand(x)), 1.0),
    "a Gaussian": (lambda x: jnp.exp(-(_by_hand(x) ** 2)), -2.0),
    "sin r / r": (lambda x: jnp.sin(_by_hand(x)) / _by_hand(x), -1 / 3),
    "a root mean square": (lambda x: jnp.sqrt(jnp.mean(x * x)) ** 2, 1.0),
}


def orders(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Value, gradient and Hessian."""
    return lambda x: (f(x), jax.grad(f)(x), jax.hessian(f)(x))


def exact(f: Callable[[Any], Any], x: Any) -> Any:
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(orders(f))(np.asarray(x, np.float64)))


@pytest.mark.parametrize("name", thinned(list(RADIAL), 2))
def test_smooth_functions_of_a_distance(name):
    f, curvature = RADIAL[name]
    points = np.array([[0.0, 0.0], [0.3, -0.4], [2.0, 1.0], [0.02, 0.01]], np.float32)
    got = jax.jit(jax.vmap(orders(rad.stabilize(f))))(points)
    with jax.enable_x64(True):
        want = jax.jit(jax.vmap(orders(f)))(points.astype(np.float64))
    assert np.isnan(want[2][0]).all()  # the plain form fails in any precision
    np.testing.assert_array_equal(got[1][0], 0)
    np.testing.assert_allclose(got[2][0], curvature * np.eye(2), rtol=1e-6, atol=1e-12)
    for x, y in zip(got, want):
        np.testing.assert_allclose(x[1:], y[1:], rtol=3e-5, atol=3e-6)


def test_a_cone_stays_one():
    """1 - r has a kink at 0, and so has its gradient; only smooth functions are rewritten so."""
    s = rad.stabilize(lambda x: jnp.exp(-_by_hand(x)))
    assert [r.rule for r in s.rewrites(np.ones(2, np.float32))] == ["norm"]
    assert not np.isfinite(jax.hessian(s)(np.zeros(2, np.float32))).all()


def test_gram_matrix_with_equal_points():
    weights = np.arange(9.0, dtype=np.float32).reshape(3, 3)

    def energy(x):
        return jnp.sum(matern52(x[:, None] - x[None]) * weights)

    x = np.array([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]], np.float32)
    got = jax.jit(jax.hessian(rad.stabilize(energy)))(x)
    own, other = (10 / 3 - ROOT5**2) * np.eye(2), exact(matern52, x[1])[2]
    np.testing.assert_allclose(got[1, :, 2], -12 * own, rtol=1e-6)  # weights 5 + 7
    np.testing.assert_allclose(got[0, :, 1], -4 * other, rtol=1e-5)  # 1 + 3
    np.testing.assert_allclose(got[1, :, 1], 12 * own + 4 * other, rtol=1e-5)


POINTS = np.array([[0.0, 0.0], [1.0, 2.0], [1.0, 3.0]], np.float32)
ROWS = np.array([[1.0, 2.0], [0.0, 0.0]], np.float32)


def _distances(x):
    return jnp.sqrt(jnp.sum((x[:, None] - x[None]) ** 2, -1))


# name: (a masked function of norms of which some are 0, the same on what the mask keeps, where)
MASKED = {
    "1 / distance": (
        lambda x: jnp.sum(jnp.where(jnp.eye(3, dtype=bool), 0, 1 / _distances(x))),
        lambda x: 2 * sum(1 / jnp.linalg.norm(x[i] - x[j]) for i, j in ((0, 1), (0, 2), (1, 2))),
        POINTS,
    ),
    "Yukawa": (
        lambda x: jnp.sum(jnp.where(jnp.eye(3) == 1, 0.0, jnp.exp(-_distances(x)) / _distances(x))),
        lambda x: 2 * sum(jnp.exp(-r) / r for r in (jnp.linalg.norm(x[i] - x[j]) for i, j in ((0, 1), (0, 2), (1, 2)))),
        POINTS,
    ),
    "unit rows": (
        lambda x: jnp.sum(jnp.where(jnp.array([[True], [False]]), x / jnp.linalg.norm(x, axis=-1, keepdims=True), 0) ** 3),
        lambda x: jnp.sum((x[0] / jnp.linalg.norm(x[0])) ** 3),
        ROWS,
    ),
    "rows that are not 0": (
        lambda x: jnp.sum(jnp.where(_by_hand(x)[:, None] > 0, x / _by_hand(x)[:, None], 0.0) ** 3),
        lambda x: jnp.sum((x[0] / jnp.linalg.norm(x[0])) ** 3),
        ROWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", thinned(list(MASKED), 2))
def test_norms_of_masked_rows(name):
    f, kept, x = MASKED[name]
    assert not np.isfinite(jax.jit(jax.grad(f))(x)).all()
    got = jax.jit(jax.vmap(orders(rad.stabilize(f))))(x[None])
    for order, want in zip(got, exact(kept, x)):
        np.testing.assert_allclose(order[0], want, rtol=1e-5, atol=1e-6)


WEIGHTS = np.array([0.2, 0.5, 0.3], np.float32)
LOGITS = np.array([[100.0, 90.0, 80.0], [100.0, -90.0, 80.0], [-300.0, -301.0, -302.0]], np.float32)
MIXTURES = {
    "logsumexp with weights": lambda x: logsumexp(x, b=WEIGHTS),
    "log of a weighted sum": lambda x: jnp.log(jnp.sum(WEIGHTS * jnp.exp(x))),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures(name):
    f = MIXTURES[name]
    s = rad.stabilize(f)
    e = WEIGHTS * np.exp(LOGITS.astype(np.float64) - LOGITS.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    truth = -np.einsum("ni,nj->nij", p, p)
    truth[:, range(3), range(3)] = p * np.stack([p[:, 1] + p[:, 2], p[:, 0] + p[:, 2], p[:, 0] + p[:, 1]], 1)
    plain = jax.jit(jax.vmap(jax.hessian(f)))(LOGITS)
    assert not np.allclose(plain, truth, rtol=1e-3, atol=0)
    _, slope, hessian = jax.jit(jax.vmap(orders(s)))(LOGITS)
    np.testing.assert_allclose(slope, p, rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(hessian, truth, rtol=1e-5, atol=1e-37)


def test_weights_of_a_mixture():
    x = np.array([100.0, 90.0, -20.0], np.float32)
    f = lambda w: jnp.log(jnp.sum(w * jnp.exp(x)))  # noqa: E731
    w = np.array([0.1, 0.2, 0.3], np.float32)
    e = np.exp(np.float64(x) - 100)
    slope = e / (e @ np.float64(w))
    assert np.isnan(jax.grad(f)(w)).any()
    np.testing.assert_allclose(jax.grad(rad.stabilize(f))(w), slope, rtol=1e-6, atol=1e-37)
    hessian = jax.jit(jax.hessian(rad.stabilize(f)))(w)
    np.testing.assert_allclose(hessian, -np.outer(slope, slope), rtol=1e-5, atol=1e-37)


def lennard_jones(r):
    return r**-12.0 - r**-6.0


def of_pairs(x):
    r = jnp.linalg.norm(x[:, None] - x[None], axis=-1)
    return jnp.sum(jnp.where(jnp.eye(len(x)) > 0, 0.0, lennard_jones(r)))


# The mask is another variable, or the distance itself.
UNTAKEN = {
    "pairs": (of_pairs, [[1.0, 2.0], [2.0, 2.0], [0.5, 1.0]]),
    "equal to 0": (lambda x: (lambda r: jnp.where(r == 0, 0.0, lennard_jones(r)))(jnp.linalg.norm(x)), [0.0, 0.0]),
    "not 0": (lambda x: (lambda r: jnp.where(r != 0, 1 / r - jnp.exp(-r) / r, 1.0))(_by_hand(x)), [0.0, 0.0]),
    "a small distance": (
        lambda x: (lambda r: jnp.where(r > 1e-3, jnp.sin(r) / r, 1 - r * r / 6))(jnp.linalg.norm(x)),
        [0.0, 0.0],
    ),
}


@pytest.mark.parametrize("name", UNTAKEN)
def test_a_region_reads_a_distance_in_one_branch(name):
    f, point = UNTAKEN[name]
    x = jnp.array(point)
    hessian = jax.jit(jax.hessian(rad.stabilize(f)))(x)
    assert np.isnan(jax.hessian(f)(x)).any()
    if name == "pairs":
        others = [
            lambda x, i=i, j=j: lennard_jones(jnp.linalg.norm(x[i] - x[j]))
            for i in range(3)
            for j in range(3)
            if i != j
        ]
        want = sum(jax.hessian(g)(x) for g in others)
    else:
        want = -np.eye(2) / 3 if name == "a small distance" else np.zeros((2, 2))
    np.testing.assert_allclose(hessian, want, rtol=2e-5, atol=1e-5)


def test_what_decides_is_read_as_it_is():
    def f(a, b):
        x = jnp.sum(a * b, -1)
        return jnp.where(x > 0, jnp.sqrt(x + 1) - jnp.sqrt(x), 5.0)

    a, b = jnp.array([[1.0, 2.0], [-1.0, -2.0]]), jnp.ones((2, 2))
    np.testing.assert_allclose(rad.stabilize(f)(a, b), f(a, b), rtol=1e-6)


def test_the_anchor_of_a_contrastive_loss():
    p, n = jnp.array([1.0, 2.0001]), jnp.array([-1.0, 0.5])

    def cosine(u, v):
        return jnp.sum(u * v) / (jnp.linalg.norm(u) * jnp.linalg.norm(v))

    def loss(a):
        near, far = (jnp.exp(cosine(a, v) / 0.1) for v in (p, n))
        return -jnp.log(near / (near + far))

    a = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jax.hessian(rad.stabilize(loss))(a), exact(loss, a)[2], rtol=2e-3)


def rotation(r, w):
    """An entry of a rotation by a vector, in Rodrigues' form."""
    return jnp.sin(r) / r + 2 * (1 - jnp.cos(r)) / (r * r) * w[0] + (r - jnp.sin(r)) / r**3 * w[1] * w[2]


@pytest.mark.parametrize(
    "length", [jnp.linalg.norm, lambda w: jnp.sqrt(w[0] ** 2 + w[1] ** 2 + w[2] ** 2)], ids=["norm", "components"]
)
def test_functions_of_a_distance_with_factors(length):
    def f(w):
        return rotation(length(w), w)

    got = jax.jit(jax.vmap(orders(rad.stabilize(f))))
    points = np.array([[0.0, 0.0, 0.0], [1e-20, 1e-20, 0.0], [0.3, -0.4, 0.1]], np.float32)
    value, gradient, hessian = got(points)
    assert all(np.isnan(jax.grad(f)(x)).any() for x in points[:2])
    for i in (0, 1):  # 1 + w_0 - |w|²/6 + w_1 w_2/6 + ...
        np.testing.assert_allclose(value[i], 1, rtol=1e-7)
        np.testing.assert_allclose(gradient[i], [1, 0, 0], atol=1e-6)
        want = -np.eye(3) / 3 + np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0]]) / 6
        np.testing.assert_allclose(hessian[i], want, atol=1e-6)
    for part, want in zip((value[2], gradient[2], hessian[2]), exact(f, points[2])):
        np.testing.assert_allclose(part, want, rtol=2e-6, atol=1e-6)
