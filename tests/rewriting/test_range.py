"""What overflows or underflows only in the middle, in both formats: quotients, roots and logarithms of squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustad as rad
from robustad.rewriting.expressions._derivative import derivative
from robustad.rewriting.expressions._scaled import scaled, together
from tests.rewriting._scalar import evaluated, expression, ulps

CASES = {
    "reciprocal of z, real": lambda x, y: x / (x * x + y * y),
    "reciprocal of z, imaginary": lambda x, y: -y / (x * x + y * y),
    "1/|z|": lambda x, y: 1 / jnp.sqrt(x * x + y * y),
    "rsqrt": lambda x, y: jax.lax.rsqrt(x * x + y * y),
    "direction": lambda x, y: x / jnp.sqrt(x * x + y * y),
    "|z|": lambda x, y: jnp.sqrt(x * x + y * y),
    "log |z|²": lambda x, y: jnp.log(x * x + y * y),
    "1/|z|²": lambda x, y: 1 / (x * x + y * y),
    "product over squares": lambda x, y: x * y / (x * x + y * y),
    "(x² - y²)/(x² + y²)": lambda x, y: (x * x - y * y) / (x * x + y * y),
    "w/z, real": lambda a, b, c, d: (a * c + b * d) / (c * c + d * d),
    "w/z, imaginary": lambda a, b, c, d: (b * c - a * d) / (c * c + d * d),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_values_and_slopes(name, dtype):
    f = CASES[name]
    arity = f.__code__.co_argcount
    rng = np.random.default_rng(1)
    size = 36 if dtype == np.float32 else 300
    points = (
        10 ** rng.uniform(-size, size, (16, 1))
        * 10 ** rng.uniform(-2, 2, (16, arity))
        * rng.choice([-1, 1], (16, arity))
    )
    with jax.enable_x64(dtype == np.float64):
        points = points.astype(dtype)
        e = expression(f, arity, dtype)
        orders = [e] + [derivative(e, i) for i in range(arity)]
        plain_is_right = True
        slopes = [jax.jit(jax.vmap(jax.value_and_grad(h, tuple(range(arity))))) for h in (f, rad.stabilize(f))]
        plain, ours = (np.stack([v, *g], 1) for v, g in (h(*points.T) for h in slopes))
        limits = np.finfo(dtype)
        for i, point in enumerate(points):
            for k, order in enumerate(orders):
                want = evaluated(order, point)
                if float(limits.tiny) < abs(want) < float(limits.max):
                    assert ulps(ours[i, k], want, dtype) < 16, (point, k, ours[i, k], want)
                    plain_is_right &= bool(ulps(plain[i, k], want, dtype) < 1e4)
    assert not plain_is_right


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_with_an_exponent(dtype):
    limits = np.finfo(dtype)
    values = np.array([0.0, -0.0, 1, -3, limits.max, limits.tiny, -limits.tiny, np.inf, -np.inf, np.nan, 0.1], dtype)
    with jax.enable_x64(True):
        x = scaled(jnp.asarray(values))
        np.testing.assert_array_equal(together(x), values)
        np.testing.assert_array_equal(np.signbit(together(x)), np.signbit(values))
        normal = np.abs(x.m[np.isfinite(values) & (values != 0)])
        assert np.all((normal >= 1) & (normal < 2))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.sqrt(jnp.sum(x * x, -1)),
        lambda x: jnp.sqrt(jnp.mean(jnp.square(x), -1)),
        lambda x: jnp.sqrt(x @ x),
    ],
)
def test_norms_in_float16(f):
    """Squares of 300 overflow, which JAX then adds up in float32."""
    x = jnp.array([300.0, 300.0, 2.0], jnp.float16)
    value, slope = jax.value_and_grad(rad.stabilize(f))(x)
    want = jax.value_and_grad(f)(x.astype(jnp.float32))
    assert value.dtype == jnp.float16 and not np.isfinite(f(x))
    np.testing.assert_allclose(value, want[0], rtol=2**-10)
    np.testing.assert_allclose(slope, want[1], rtol=2**-9)
