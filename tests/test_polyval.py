"""Compensated polynomials against exact rational arithmetic."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustad import stability
from robustad.stability import _compensated_polyval

U = {np.float32: 2.0**-24, np.float64: 2.0**-53}


def close(got, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, expected)


@pytest.mark.parametrize("kernel", ["float32", "float64", "two words of float32"])
def test_polyval_near_a_multiple_root(kernel):
    """(x - 1) ** 7 expanded, value and two derivatives: the coefficients are exact."""
    dtype = np.float64 if kernel == "float64" else np.float32
    p = np.array([(-1) ** k * math.comb(7, k) for k in range(8)], dtype)
    x = (1 + np.random.default_rng(12).uniform(-1, 1, 40) * np.geomspace(2.0**-5, 0.5, 40)).astype(dtype)
    with jax.enable_x64(kernel == "float64"):
        value = stability.compensated_polyval
        if "two words" in kernel:
            functions = [partial(_compensated_polyval._two_words, order, p[:, None]) for order in range(3)]
        else:
            functions = [
                partial(value, p),
                jax.vmap(jax.grad(partial(value, p))),
                jax.vmap(jax.grad(jax.grad(partial(value, p)))),
            ]
        for order, function in enumerate(functions):
            got = np.asarray(jax.jit(function)(x))
            assert got.dtype == dtype
            for g, v in zip(got, x):
                d = Fraction(float(v)) - 1
                exact = math.perm(7, order) * d ** (7 - order)
                size = math.perm(7, order) * (abs(Fraction(float(v))) + 1) ** (7 - order)
                bound = 2 * Fraction(U[dtype]) * abs(exact) + (14 * Fraction(U[dtype])) ** 2 * size
                assert abs(Fraction(float(g)) - exact) <= bound
        plain = float(jnp.polyval(p, x)[0])
        assert abs(plain - float(x[0] - 1) ** 7) > 1e3 * U[dtype] * abs(float(x[0] - 1)) ** 7


def test_polyval_arguments_and_derivatives():
    random = np.random.default_rng(13)
    p, x = (jnp.asarray(random.standard_normal(s), jnp.float32) for s in ((4,), (3, 2)))
    value = stability.compensated_polyval
    for q, v in ((p, x), (jnp.ones((4, 2)), x), (p[:1], x), (p[:0], x), (p, 2.0)):
        got = value(q, v)
        assert got.shape == jnp.polyval(q, v).shape
        close(got, jnp.polyval(q, v))

    def of(f):
        return lambda p, x: (f(p, x) ** 2).sum()

    close(*(jax.jit(jax.grad(of(f), (0, 1)))(p, x) for f in (value, jnp.polyval)))
    close(*(jax.jit(jax.hessian(of(f), (0, 1)))(p, x[0]) for f in (value, jnp.polyval)))
    close(*(jax.jit(jax.jacrev(jax.grad(of(f), (0, 1)), (0, 1)))(p, x[0]) for f in (value, jnp.polyval)))
    close(jax.grad(value)(p, 0.0), [0, 0, 0, 1])
    with pytest.raises(ValueError, match="axis of coefficients"):
        value(1.0, x)
    with pytest.raises(TypeError, match="has dtype complex64; expected real numbers"):
        value(p, 1j)


def test_the_gradient_of_polyval_in_its_coefficients_makes_no_square_of_their_number():
    p, x = jnp.ones(64), jnp.linspace(0.0, 1.0, 3)
    compiled = jax.jit(jax.grad(lambda p: stability.compensated_polyval(p, x).sum())).lower(p).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 64 * 64
    close(jax.grad(lambda p: stability.compensated_polyval(p, x[1]))(p), 0.5 ** np.arange(63, -1, -1))
