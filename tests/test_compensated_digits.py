"""How many digits the functions of the double-word arithmetic have, against mpmath at 100 digits."""

from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax import lax

import robustad as rad
from robustad.arithmetic._double_word import DoubleWord
from tests._double_words import as_mp, error, exactly, random_words
from tests._subset import thinned

ELEMENTARY = {
    "sqrt": (jnp.sqrt, mpmath.sqrt, (0, 100)),
    "rsqrt": (lax.rsqrt, lambda x: 1 / mpmath.sqrt(x), (0, 100)),
    "cbrt": (jnp.cbrt, mpmath.cbrt, (0, 100)),
    "exp": (jnp.exp, mpmath.exp, (-40, 40)),
    "exp2": (jnp.exp2, lambda x: mpmath.mpf(2) ** x, (-40, 40)),
    "expm1": (jnp.expm1, mpmath.expm1, (-1, 1)),
    "log": (jnp.log, mpmath.log, (0.5, 3)),
    "log1p": (jnp.log1p, mpmath.log1p, (-0.5, 3)),
    "sin": (jnp.sin, mpmath.sin, (-100, 100)),
    "cos": (jnp.cos, mpmath.cos, (-1e9, 1e9)),
    "tan": (jnp.tan, mpmath.tan, (-10, 10)),
    "tanh": (jnp.tanh, mpmath.tanh, (-5, 5)),
    "logistic": (jax.nn.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x)), (-40, 40)),
    "sinh": (jnp.sinh, mpmath.sinh, (-5, 5)),
    "cosh": (jnp.cosh, mpmath.cosh, (-5, 5)),
    "asinh": (jnp.arcsinh, mpmath.asinh, (-5, 5)),
    "atanh": (jnp.arctanh, mpmath.atanh, (-1, 1)),
    "acos, acosh": (
        lambda x: jnp.arccos(x) + jnp.arccosh(2 + x),
        lambda x: mpmath.acos(x) + mpmath.acosh(2 + x),
        (0, 0.9),
    ),
    "asin": (jnp.arcsin, mpmath.asin, (-1, 1)),
    "atan": (jnp.arctan, mpmath.atan, (-5, 5)),
    "erf": (lax.erf, mpmath.erf, (-4, 4)),
    "cube": (lambda x: x**3, lambda x: x**3, (-5, 5)),
    "inverse square": (lambda x: x**-2, lambda x: x**-2, (1, 5)),
}
BINARY = {
    "add": (lax.add, lambda x, y: x + y),
    "sub": (lax.sub, lambda x, y: x - y),
    "mul": (lax.mul, lambda x, y: x * y),
    "div": (lax.div, lambda x, y: x / y),
    "atan2": (jnp.arctan2, mpmath.atan2),
}


CALLS = 81  # one shape for all tests: each function is compiled once
FUNCTIONS = {**ELEMENTARY, **{k: (*fs, (-9, 9)) for k, fs in BINARY.items()}}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, np.finfo(np.float32).max, np.finfo(np.float32).tiny]


@cache
def in_words(name):
    return rad.compensated(FUNCTIONS[name][0], words=True)


def _arguments(name, dtype):
    rng = np.random.default_rng(0)
    return [random_words(rng, *FUNCTIONS[name][2], dtype, CALLS) for _ in range(2 if name in BINARY else 1)]


def _truths(name, args):
    return [FUNCTIONS[name][1](*xs) for xs in zip(*(as_mp(exactly(x)) for x in args))]


@pytest.mark.parametrize("name", thinned(list(FUNCTIONS), 2))
def test_14_digits_in_float32(name):
    """Of values that have them; the plain function has 7."""
    args = _arguments(name, np.float32)
    bound = 5e-14 if name == "erf" else 1e-14
    assert error(in_words(name)(*args), _truths(name, args)) < bound
    assert error(FUNCTIONS[name][0](*(x.hi for x in args)), _truths(name, args)) > 1e5 * bound


@pytest.mark.parametrize("name", thinned(["add", "sub", "mul", "div", "sqrt", "exp", "log", "sin", "cos"], 3))
def test_30_digits_in_float64(name):
    with jax.enable_x64(True):
        args = _arguments(name, np.float64)
        assert error(in_words(name)(*args), _truths(name, args)) < 1e-30
        assert error(FUNCTIONS[name][0](*(x.hi for x in args)), _truths(name, args)) > 1e-18


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values_are_those_of_the_plain_function(name):
    args = [v.ravel() for v in jnp.meshgrid(jnp.float32(SPECIAL), jnp.float32(SPECIAL))]
    args = args if name in BINARY else args[:1]
    got = in_words(name)(*(DoubleWord(x, jnp.zeros_like(x)) for x in args))
    value = np.asarray(FUNCTIONS[name][0](*args))
    if name == "asin":  # plain asin flushes the smallest normal float
        value = np.where(np.abs(args[0]) < 1e-30, args[0], value)
    np.testing.assert_allclose(got.hi, value, rtol=1e-5)
    np.testing.assert_array_equal(got.lo[~np.isfinite(value)], 0)
    zero = value == 0
    np.testing.assert_array_equal(np.signbit(got.hi[zero]), np.signbit(value[zero]))


def test_order_and_power_of_special_values():
    a, b = (v.ravel() for v in jnp.meshgrid(jnp.float32(SPECIAL), jnp.float32(SPECIAL)))

    def f(a, b):
        order = jnp.maximum(a, b), jnp.minimum(a, b), a < b, a != b, a >= b, jnp.max(a), jnp.floor(a), jnp.round(a)
        return a**b, lax.rem(a, b), jnp.sum(a), *order

    for got, plain in zip(rad.compensated(f)(a, b), f(a, b), strict=True):
        np.testing.assert_allclose(got, plain, rtol=1e-5)


def test_power():
    """Within a few u² (1 + |y log x|), u = 2**-24."""
    rng = np.random.default_rng(1)
    x, y = random_words(rng, 0.1, 9, np.float32), random_words(rng, -30, 30, np.float32)
    got = rad.compensated(jnp.power, words=True)(x, y)
    truths = [a**b for a, b in zip(*(as_mp(exactly(v)) for v in (x, y)))]
    assert error(got, truths) < 3 * 2.0**-48 * (1 + 30 * np.log(10))


def test_sine_of_huge_arguments():
    """Where float32 has no digit behind the point; both words count."""
    x = DoubleWord(jnp.float32([1e10, 3e38, -7e20, 2.0**127]), jnp.float32([100.5, 1e30, 12345.0, 0]))
    sine, cosine = rad.compensated(lambda x: (jnp.sin(x), jnp.cos(x)), words=True)(x)
    assert error(sine, [mpmath.sin(v) for v in as_mp(exactly(x))]) < 1e-14
    assert error(cosine, [mpmath.cos(v) for v in as_mp(exactly(x))]) < 1e-14
