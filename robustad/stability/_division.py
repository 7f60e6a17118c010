"""Division, whose derivatives have powers of the denominator that leave the range."""

import jax.numpy as jnp
from jax import Array, lax

from ._elementwise import elementwise
from ._significand import shifted, significand


def _divide_y(x: Array, y: Array) -> Array:
    (x, i), (y, j) = significand(x), significand(y)
    return shifted(-x / (y * y), i - 2 * j)


def _divide_xy(x: Array, y: Array) -> Array:
    y, j = significand(y)
    return shifted(-1 / (y * y), -2 * j)


def _divide_yy(x: Array, y: Array) -> Array:
    (x, i), (y, j) = significand(x), significand(y)
    return shifted(2 * x / (y * y * y), i - 3 * j)


_zero = elementwise()(lambda x, y: jnp.zeros_like(x))
_second_xy = elementwise()(_divide_xy)
_first_x = elementwise(_zero, _second_xy)(lambda x, y: 1 / y)
_first_y = elementwise(_second_xy, elementwise()(_divide_yy))(_divide_y)


@elementwise(_first_x, _first_y)
def divide(x: Array, y: Array) -> Array:
    r""":math:`x / y`, with derivatives in which no power of `y` leaves the range.

    JAX forms :math:`-x y^{-2}`, infinite for :math:`|y| < 10^{-19}` in float32. Here the partial derivatives
    :math:`1/y, -x/y^2, 0, -1/y^2, 2x/y^3` are products of significands, scaled once at the end. At y = 0 they are what IEEE
    arithmetic gives: signed infinities, NaN for 0/0.

    Args:
      x, y: real arrays.

    Returns:
      An array of the broadcast shape and promoted dtype. Value 0.5 ulp, derivatives within 3 ulp.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.divide, 1)(1e-25, 1e-25), jax.grad(lambda x, y: x / y, 1)(1e-25, 1e-25))
    -1e+25 -inf
    """
    return lax.div(x, y)
