"""Hyperbolic functions, their inverses and logarithms."""

import math

import jax.numpy as jnp
from jax import Array, lax

from . import _words as words
from ._elementwise import elementwise
from ._log_exp import csch_squared
from ._logarithm import square_hides_1
from ._logistic import sigmoid_curvature, tanh_value
from ._roots import one_minus_square


def _sech_squared(x: Array) -> Array:
    y = -2 * jnp.abs(x)
    return words.exp(y, factor=4.0) / jnp.square(1 + words.exp(y))


_tanh_second = elementwise()(lambda x: sigmoid_curvature(2 * x, 8.0))
_tanh_first = elementwise(_tanh_second)(_sech_squared)


@elementwise(_tanh_first)
def tanh(x: Array) -> Array:
    r""":math:`\tanh x`, with the derivative :math:`4e/(1+e)^2`, :math:`e = e^{-2|x|}`.

    JAX forms 1 - tanh² from the rounded value: 0 from 9.01 on in float32 (jax issue 40388).

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.tanh)(20.0))
    1.6993417e-17
    """
    return tanh_value(x)


def _log_cosh(x: Array) -> Array:
    y = jnp.abs(x)
    near = y < 1.5
    z = jnp.where(near, y, 1.0)
    m = words.expm1(z)
    # cosh y - 1 = (e^y - 1)² / (2 e^y)
    small = words.log1p(0.5 * m * (m / (1 + m)))
    first, second = words.constant(words.LN2, y)
    return jnp.where(near, small, (y - first) + (words.log1p(words.exp(-2 * y)) - second))


@elementwise(tanh)
def log_cosh(x: Array) -> Array:
    r""":math:`\log\cosh x`: near 0 by log1p of cosh x - 1, elsewhere :math:`|x| - \log 2 + \log(1 + e^{-2|x|})`.

    The naive gradient is NaN from 89.4 on (float32; jax issue 7245), the naive value 0 below 2e-4.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.log_cosh)(100.0), st.log_cosh(1e-10))
    1.0 5.0000002e-21
    """
    return _log_cosh(x)


def _sinh(y: Array) -> Array:
    m = words.expm1(y)
    return 0.5 * (m + m / (1 + m))


_logabssinh_second = elementwise()(lambda x: -csch_squared(2 * jnp.abs(x), factor=4.0))
_logabssinh_first = elementwise(_logabssinh_second)(lambda x: 1 / tanh_value(x))


@elementwise(_logabssinh_first)
def logabssinh(x: Array) -> Array:
    r""":math:`\log|\sinh x|`, right at its zeros ±asinh 1, without overflow. Name after LogExpFunctions.jl.

    Near its zero a, :math:`\sinh x - 1 = 2 \cosh\frac{x+a}{2} \sinh\frac{x-a}{2}`.

    >>> from robustad import stability as st
    >>> print(st.logabssinh(1000.0))
    999.3068
    """
    y = jnp.abs(x)
    middle = (y > 0.6) & (y < 1.3)
    z = jnp.where(middle, y, 0.9)
    step = words.away(z, words.ASINH_1)
    half = 0.5 * jnp.abs(step)
    e = words.exp(z - 0.5 * step)
    excess = (e + 1 / e) * (jnp.sign(step) * _sinh(half))
    first, second = words.constant(words.LN2, y)
    far = (y - first) + (words.log1p(-words.exp(-2 * jnp.maximum(y, 1.0))) - second)
    return jnp.where(middle, words.log1p(excess), jnp.where(y < 1, lax.log(_sinh(jnp.minimum(y, 1.0))), far))


def _csch_2(x: Array) -> Array:
    """2/sinh(2x), signed."""
    y = jnp.abs(x)
    far = words.exp(-2 * y, factor=4.0) / -words.expm1(-4 * y)
    r = jnp.where(y < 1, 2 / _sinh(2 * jnp.minimum(y, 1.0)), far)
    return jnp.where(jnp.signbit(x), -r, r)


def _logabstanh_second(x: Array) -> Array:
    """-4 cosh(2y)/sinh²(2y), by exponentials."""
    y = jnp.abs(x)
    z = jnp.minimum(y, 1.0)
    m, n = words.expm1(4 * z), words.expm1(2 * z)
    near = -words.over_square(16 * (1 + m), m) * (1 + 0.5 * n * (n / (1 + n)))  # cosh 2y = 1 + (e^2y - 1)²/(2 e^2y)
    e = words.exp(-4 * y)
    return jnp.where(y < 1, near, -words.exp(-2 * y, factor=8.0) * ((1 + e) / jnp.square(1 - e)))


@elementwise(elementwise(elementwise()(_logabstanh_second))(_csch_2))
def logabstanh(x: Array) -> Array:
    r""":math:`\log|\tanh x|`: far out :math:`-2 \operatorname{artanh} e^{-2|x|}`, which the naive form rounds to 0.

    Name after LogExpFunctions.jl.

    >>> from robustad import stability as st
    >>> print(st.logabstanh(20.0))
    -8.496708e-18
    """
    y = jnp.abs(x)
    e = words.exp(-2 * y)
    far = -words.log1p(words.exp(-2 * y, factor=2.0) / (1 - jnp.minimum(e, 0.5)))
    return jnp.where(y < 0.5, lax.log(tanh_value(y)), far)


def _atanh_second(x: Array) -> Array:
    q = one_minus_square(x)
    return 2 * x / (q * q)


_atanh_first = elementwise(elementwise()(_atanh_second))(
    lambda x: jnp.where(jnp.abs(x) > 1, jnp.nan, 1 / one_minus_square(x))
)


@elementwise(_atanh_first)
def atanh(x: Array) -> Array:
    r""":math:`\operatorname{artanh} x = \frac12 \log\frac{1+x}{1-x}`, by log1p; XLA's loses 7 bits on some versions.

    >>> from robustad import stability as st
    >>> print(st.atanh(1e-10))
    1e-10
    """
    y = jnp.abs(x)
    value = jnp.where(x == 0, x, jnp.sign(x) * (0.5 * words.log1p(2 * (y / (1 - y)))))
    return jnp.where(y > 1, jnp.nan, value)


def _asinh_first(x: Array) -> Array:
    far = jnp.abs(x) > square_hides_1(x)
    return jnp.where(far, 1 / jnp.abs(x), 1 / jnp.sqrt(1 + jnp.square(jnp.where(far, 0.0, x))))


def _asinh_second(x: Array) -> Array:
    far = jnp.abs(x) > square_hides_1(x)
    y = jnp.where(far, 0.0, x)
    q = 1 + y * y
    z = jnp.where(far, x, 1.0)
    return jnp.where(far, -jnp.sign(x) * (1 / z) * (1 / z), -y / (q * jnp.sqrt(q)))


@elementwise(elementwise(elementwise()(_asinh_second))(_asinh_first))
def asinh(x: Array) -> Array:
    r""":math:`\operatorname{arsinh} x`, whose derivative's square does not overflow.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.asinh)(1e30))
    1e-30
    """
    y = jnp.abs(x)
    far = y > square_hides_1(x)
    z = jnp.where(far, 0.0, y)
    near = words.log1p(z + z * (z / (1 + jnp.sqrt(1 + z * z))))
    return jnp.where(x == 0, x, jnp.sign(x) * jnp.where(far, lax.log(y) + math.log(2), near))


def _square_minus_1(x: Array) -> Array:
    high, low = words.square(jnp.clip(x, 1.0, 2.0**31))
    return jnp.where(x < 1, jnp.nan, (high - 1) + low)


def _acosh_first(x: Array) -> Array:
    far = x > square_hides_1(x)
    return jnp.where(far, 1 / x, 1 / jnp.sqrt(_square_minus_1(x)))


def _acosh_second(x: Array) -> Array:
    far = x > square_hides_1(x)
    y = jnp.where(far, 2.0, x)
    q = _square_minus_1(x)
    return jnp.where(far, -(1 / x) * (1 / x), -y / (q * jnp.sqrt(q)))


@elementwise(elementwise(elementwise()(_acosh_second))(_acosh_first))
def acosh(x: Array) -> Array:
    r""":math:`\operatorname{arcosh} x` for x ≥ 1, by log1p of x - 1, which is exact near 1.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.acosh)(1e30))
    1e-30
    """
    far = x > square_hides_1(x)
    t = jnp.where(far, 0.0, x - 1)
    return jnp.where(far, lax.log(x) + math.log(2), words.log1p(t + jnp.sqrt(t) * jnp.sqrt(t + 2)))
