"""Programs whose squares, products or exponentials leave the range in the middle, or whose parameters meet a limit."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import special
from jax.scipy.stats import cauchy, chi2, t

import robustad as rad
from tests._subset import thinned

PAIR = np.array([[1.0, -3.0, 0.2], [2.0, 1.0, -1.0]], np.float32)
BIG, SMALL = PAIR * np.float32(1e25), PAIR * np.float32(1e-25)
FAR = np.array([1e25, -3e25, 2e22], np.float32)


def _norms(x: Any) -> Any:
    return jnp.linalg.norm(x, axis=1)


def _matrix(x: Any) -> Any:
    return jnp.sum(x @ x.T / (_norms(x)[:, None] * _norms(x)[None]) * jnp.array([[0.0, 1.0], [2.0, 0.0]]))


def _roots(x: Any) -> Any:
    return jnp.sum(x[0] * x[1]) / jnp.sqrt(jnp.sum(x[0] ** 2) * jnp.sum(x[1] ** 2))


def _guarded(x: Any) -> Any:
    return jnp.dot(x[0], x[1]) / jnp.maximum(jnp.linalg.norm(x[0]) * jnp.linalg.norm(x[1]), 1e-8)


CASES: dict[str, tuple[Callable[[Any], Any], np.ndarray]] = {
    "cosine": (lambda x: x[0] @ x[1] / (jnp.linalg.norm(x[0]) * jnp.linalg.norm(x[1])), BIG),
    "cosine, by one root": (_roots, BIG),
    "cosine, by two quotients": (lambda x: x[0] @ x[1] / jnp.linalg.norm(x[0]) / jnp.linalg.norm(x[1]), BIG),
    "product of unit vectors": (lambda x: x[0] / jnp.linalg.norm(x[0]) @ (x[1] / jnp.linalg.norm(x[1])), BIG),
    "cosine of small vectors": (_roots, SMALL),
    "cosine, guarded": (_guarded, BIG),
    "cosines of all pairs": (_matrix, BIG),
    "cosines of all small pairs": (_matrix, SMALL),
    "Cauchy": (lambda x: jnp.sum(-jnp.log1p((x / 2.0) ** 2)), FAR),
    "Cauchy, of the library": (lambda x: jnp.sum(cauchy.logpdf(x)), FAR),
    "Student": (lambda x: jnp.sum(t.logpdf(x, 3.0)), FAR),
    "squared deviations": (lambda x: jnp.sum(x[1] ** 2 / (2 * jnp.exp(x[0]) ** 2) + x[0]),
                           np.array([[-40.0, 50.0], [1e-3, 1.0]], np.float32)),
}  # fmt: skip


@functools.cache
def plainly(dtype: Any) -> dict[str, Any]:
    """Value and gradient of all cases as they stand."""
    with jax.enable_x64(dtype == np.float64):
        run = jax.jit(lambda a: {name: jax.value_and_grad(f)(a[name]) for name, (f, _) in CASES.items()})
        return jax.tree.map(np.asarray, run({name: x.astype(dtype) for name, (_, x) in CASES.items()}))


@pytest.mark.parametrize("name", thinned(list(CASES), 2))
def test_values_and_slopes(name):
    f, x = CASES[name]
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(rad.stabilize(f))))(x[None])
    want, plain = plainly(np.float64)[name], plainly(np.float32)[name]
    largest = np.abs(want[1]).max()
    assert not np.abs(plain[1] - want[1]).max() <= 1e-2 * largest
    np.testing.assert_allclose(value[0], want[0], rtol=2e-6)
    np.testing.assert_allclose(slope[0] / largest, want[1] / largest, rtol=1e-5, atol=2e-6)


def test_a_guarded_cosine_at_zero():
    """Below the guard it is a scalar product."""
    x = np.array([[0.0, 0.0], [3.0, 4.0]], np.float32)
    value, slope = jax.value_and_grad(rad.stabilize(_guarded))(x)
    assert value == 0
    np.testing.assert_allclose(slope, [[3e8, 4e8], [0, 0]], rtol=1e-6)


def test_a_power_that_drops_out():
    def f(x, k=2.0):  # the logarithm of the density of chi² with k degrees of freedom
        inside = (jnp.divide(k, 2) - 1) * jnp.log(x) - x / 2 - k / 2 * jnp.log(2.0)
        return jnp.where(x < 0, -jnp.inf, inside)

    assert np.isnan(f(0.0))
    x = np.array([0.0, 3.0, -1.0], np.float32)
    for density in (f, lambda x: chi2.logpdf(x, 2.0)):
        s = rad.stabilize(density)
        np.testing.assert_allclose(jax.jit(jax.vmap(s))(x), [-np.log(2), -1.5 - np.log(2), -np.inf], rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.grad(s))(x), [-0.5, -0.5, 0.0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_complex_quotients(scale):
    f = lambda z: jnp.abs(z[0] / z[1])  # noqa: E731
    z = (np.array([3 + 1j, 1 - 2j]) * scale).astype(np.complex64)
    with jax.enable_x64(True):
        want = np.asarray(jax.grad(f)(z.astype(complex)))
    assert not np.allclose(jax.grad(f)(z) * scale, want * scale, rtol=1e-2)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(rad.stabilize(f))))(z[None])[0] * scale, want * scale, rtol=1e-5
    )


def test_the_inverse_of_a_sigmoid():
    f = lambda x: special.logit(jax.nn.sigmoid(x))  # noqa: E731
    x = np.array([30.0, -80.0, 9.0, 0.5], np.float32)
    assert not np.isfinite(jax.vmap(f)(x)).all()
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(rad.stabilize(f))))(x)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_array_equal(slope, 1)
