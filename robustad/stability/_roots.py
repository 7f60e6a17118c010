"""Roots, and inverse circular functions, whose derivatives have poles."""

import jax.numpy as jnp
from jax import Array, lax

from ._elementwise import elementwise
from ._words import over_square


def _sqrt_first(x: Array) -> Array:
    return jnp.where(x == 0, jnp.inf, 0.5 / jnp.sqrt(x))


_sqrt_second = elementwise()(lambda x: -(0.5 / jnp.sqrt(x)) * (0.5 / x))


@elementwise(elementwise(_sqrt_second)(_sqrt_first))
def sqrt(x: Array) -> Array:
    r""":math:`\sqrt x`; its derivatives at 0 are signed infinities.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.sqrt)(0.0), jax.grad(jax.grad(st.sqrt))(0.0))
    inf -inf
    """
    return lax.sqrt(x)


_rsqrt_second = elementwise()(lambda x: jnp.where(x == jnp.inf, 0.0, over_square(0.75 / jnp.sqrt(x), x)))
_rsqrt_first = elementwise(_rsqrt_second)(lambda x: jnp.where(x == jnp.inf, 0.0, (-0.5 * lax.rsqrt(x)) * (1 / x)))


@elementwise(_rsqrt_first)
def rsqrt(x: Array) -> Array:
    r""":math:`1/\sqrt x`.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.rsqrt)(0.0))
    -inf
    """
    return lax.rsqrt(x)


def _cbrt(x: Array) -> Array:
    """XLA's, off by 2.6 ulp in float64, after one step of Newton's method."""
    c = lax.cbrt(x)
    step = (c * c * c - x) / (3 * c * c)
    return jnp.where(jnp.isfinite(step), c - step, c)


def _cbrt_first(x: Array) -> Array:
    value = (_cbrt(x) / x) * (1 / 3)
    return jnp.where(x == 0, jnp.inf, jnp.where(jnp.isinf(x), 0.0, value))


def _cbrt_second(x: Array) -> Array:
    value = ((_cbrt(x) / x) * (-2 / 9)) * (1 / x)
    return jnp.where(x == 0, -1 / x, jnp.where(jnp.isinf(x), 0.0, value))


@elementwise(elementwise(elementwise()(_cbrt_second))(_cbrt_first))
def cbrt(x: Array) -> Array:
    r""":math:`\sqrt[3] x` with its sign; the derivative at 0 is its limit +inf.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.cbrt)(0.0))
    inf
    """
    return _cbrt(x)


def _sqrt1pm1_first(x: Array) -> Array:
    return 0.5 / jnp.sqrt(1 + x)


_sqrt1pm1_second = elementwise()(lambda x: -_sqrt1pm1_first(x) * (0.5 / (1 + x)))


@elementwise(elementwise(_sqrt1pm1_second)(_sqrt1pm1_first))
def sqrt1pm1(x: Array) -> Array:
    r""":math:`\sqrt{1 + x} - 1 = x/(\sqrt{1 + x} + 1)`, which does not cancel near 0.

    >>> from robustad import stability as st
    >>> print(st.sqrt1pm1(1e-10))
    5e-11
    """
    return jnp.where(x == jnp.inf, jnp.inf, x / (jnp.sqrt(1 + x) + 1))


def one_minus_square(x: Array) -> Array:
    """1 - x²: below 1/2 the square's rounding hardly counts, above it 1 - |x| is exact."""
    return jnp.where(jnp.abs(x) < 0.5, 1 - x * x, (1 - x) * (1 + x))


def _asin_first(x: Array) -> Array:
    return 1 / jnp.sqrt(one_minus_square(x))


def _asin_second(x: Array) -> Array:
    q = one_minus_square(x)
    return x / (q * jnp.sqrt(q))


_asin_2 = elementwise()(_asin_second)
_acos_2 = elementwise()(lambda x: -_asin_second(x))


@elementwise(elementwise(_asin_2)(_asin_first))
def asin(x: Array) -> Array:
    r""":math:`\arcsin x`, with the derivative :math:`1/\sqrt{(1-x)(1+x)}`: 1 - x² loses half of the digits near ±1.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.asin)(1.0))
    inf
    """
    return jnp.where(jnp.abs(x) < 2.0**-27, x, lax.asin(x))  # XLA gives 0 below 2e-38


@elementwise(elementwise(_acos_2)(lambda x: -_asin_first(x)))
def acos(x: Array) -> Array:
    r""":math:`\arccos x`, with the derivative :math:`-1/\sqrt{(1-x)(1+x)}`.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.acos)(1.0))
    -inf
    """
    return lax.acos(x)


_sin = elementwise(elementwise()(lax.cos))(lax.sin)


@elementwise(_sin)
def one_minus_cos(x: Array) -> Array:
    r""":math:`1 - \cos x = 2 \sin^2(x/2)`, which does not cancel near 0.

    >>> from robustad import stability as st
    >>> print(st.one_minus_cos(1e-10))
    5.0000002e-21
    """
    s = jnp.sin(0.5 * x)
    return (s + s) * s
