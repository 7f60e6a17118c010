"""Exponentials whose values and derivatives keep their digits near zero and in the tails."""

import math
from fractions import Fraction

import jax.numpy as jnp
from jax import Array

from . import _words as words
from ._elementwise import elementwise

_exp = elementwise(jnp.exp)(words.exp)


@elementwise(_exp)
def expm1(x: Array) -> Array:
    r""":math:`e^x - 1`.

    `jnp.exp(x) - 1` cancels near 0. The derivative :math:`e^x` is not formed from the value, which would lose it below
    x = -17 (float32): `jax.grad(jnp.expm1)` gives 0 there (jax issue 39794).

    Args:
      x: real array.

    Returns:
      An array of the shape of `x`, in its dtype.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.expm1)(-40.0))
    4.248354e-18
    """
    return words.expm1(x)


_LN2 = float(Fraction(words.LN2))


_exp2_second = elementwise()(lambda x: words.exp2(x, _LN2**2))
_exp2_first = elementwise(_exp2_second)(lambda x: words.exp2(x, _LN2))


@elementwise(_exp2_first)
def exp2(x: Array) -> Array:
    r""":math:`2^x`.

    XLA forms :math:`e^{x \ln 2}`, whose rounded exponent loses up to 7 bits in float32; here the integer part of `x` is
    split off first.

    >>> from robustad import stability as st
    >>> print(st.exp2(-126.0) == 2.0**-126)
    True
    """
    return words.exp2(x)


def _exprel(x: Array, order: int) -> Array:
    r"""The derivative of (eˣ - 1)/x: :math:`\int_0^1 t^n e^{xt} dt`.

    Near 0 by a series of positive terms: of the integral as it stands for x > 0, of
    :math:`e^x \int_0^1 (1-t)^n e^{-xt} dt` for x < 0. Elsewhere in closed form, which no longer cancels.
    """
    n = order
    terms = 24 if x.dtype == jnp.float32 else 40
    y = jnp.minimum(jnp.abs(x), 4.0)
    right = words.polynomial(y, [1 / (math.factorial(j) * (j + n + 1)) for j in range(terms)])
    left = words.exp(-y) * words.polynomial(y, [math.factorial(n) / math.factorial(j + n + 1) for j in range(terms)])
    near, close = jnp.where(x >= 0, right, left), jnp.abs(x) < 4
    x = jnp.where(close, 4.0, x)
    far = words.expm1(x) / x
    if n >= 1:
        far = (words.exp(x) - far) / x
    if n == 2:
        far = (words.exp(x) - 2 * far) / x
    far = jnp.where(x == -jnp.inf, 0.0, jnp.where(x == jnp.inf, jnp.inf, far))
    big = words.exp(x) == jnp.inf
    far = jnp.where(big & (x > 0), jnp.inf, far)
    # exp(x) overflows a little before exp(x)/x does: halve the exponent there.
    half = words.exp(0.5 * x)
    far = jnp.where(big & jnp.isfinite(half), (half / x) * (half * (1 - n / x + (n * (n - 1)) / (x * x))), far)
    return jnp.where(close, near, far)


_exprel_second = elementwise()(lambda x: _exprel(x, 2))
_exprel_first = elementwise(_exprel_second)(lambda x: _exprel(x, 1))


@elementwise(_exprel_first)
def expm1_over_x(x: Array) -> Array:
    r""":math:`(e^x - 1)/x`, with its limit 1 at 0.

    The quotient is 0/0 at 0, and its derivative :math:`(e^x (x - 1) + 1)/x^2` cancels all digits near it.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.expm1_over_x(0.0), jax.grad(st.expm1_over_x)(0.0))
    1.0 0.5
    """
    return _exprel(x, 0)


def _times_exp(factor: Array, x: Array) -> Array:
    """factor · eˣ with the limit 0 at -inf, and finite where only the exponential overflows."""
    return words.exp(x, factor=jnp.maximum(factor, -1e4))  # eˣ is 0 long before x is -10⁴


_xexpx_second = elementwise()(lambda x: _times_exp(2 + x, x))
_xexpx_first = elementwise(_xexpx_second)(lambda x: _times_exp(1 + x, x))


@elementwise(_xexpx_first)
def xexpx(x: Array) -> Array:
    r""":math:`x e^x`, with its limit 0 at -inf, where the product is NaN.

    >>> from robustad import stability as st
    >>> print(st.xexpx(-float("inf")))
    -0.0
    """
    return _times_exp(x, x)


def _gumbel(x: Array, factor: Array | float = 1.0) -> Array:
    r"""factor times :math:`e^{x - e^x}`: the inner exponential in two words, since its error is multiplied by itself."""
    k, a, b = words.exp_words(x)
    high, low = words.two_sum(1 + a * 0, a)
    scaled = words.scale(high, k), words.scale(low + b, k)
    y, error = words.two_sum(x, -scaled[0])
    far = (x > 8) | (x == -jnp.inf)
    return jnp.where(far, 0.0, words.exp(y, jnp.where(far, 0.0, error - scaled[1]), factor))


_cexpexp_second = elementwise()(lambda x: _gumbel(x, -words.expm1(jnp.minimum(x, 8.0))))
_cexpexp_first = elementwise(_cexpexp_second)(lambda x: _gumbel(x))


@elementwise(_cexpexp_first)
def cexpexp(x: Array) -> Array:
    r""":math:`1 - e^{-e^x}`, the inverse of the complementary log-log.

    The naive form is 0 below x = -17 (float32). Here :math:`-\operatorname{expm1}(-e^x)`.

    >>> from robustad import stability as st
    >>> print(st.cexpexp(-40.0))
    4.248354e-18
    """
    return words.decayed(-words.exp(x))
