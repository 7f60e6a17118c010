"""Differences in which two nearly equal terms cancel."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from . import _words as words
from ._elementwise import elementwise
from ._error_free import opaque, two_prod_kernel, two_sum_kernel
from ._significand import shifted, significand


def difference_of_products(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
    """(m, k) with a b - c d = m 2ᵏ, m within 1 ulp; not both products infinite or NaN."""
    zero = [(a == 0) | (b == 0), (c == 0) | (d == 0)]
    (a, i), (b, j), (c, p), (d, q) = (significand(x) for x in (a, b, c, d))
    low = jnp.asarray(-4 * np.finfo(a.dtype).maxexp, i.dtype)
    left, right = jnp.where(zero[0], low, i + j), jnp.where(zero[1], low, p + q)
    k = jnp.maximum(left, right)
    # A product that is smaller by this many binary places counts in the last place only, and there as a sign.
    most = 2 * np.finfo(a.dtype).nmant + 8
    a, c = shifted(a, jnp.maximum(left - k, -most)), shifted(c, jnp.maximum(right - k, -most))
    first, second = two_prod_kernel(a, b), two_prod_kernel(c, d)
    total, error = two_sum_kernel(first[0], -second[0])
    return total + (error + (first[1] - second[1])), k


_first = [elementwise()(f) for f in (lambda a, b, c, d: b, lambda a, b, c, d: a)]
_last = [elementwise()(f) for f in (lambda a, b, c, d: -d, lambda a, b, c, d: -c)]


@elementwise(*_first, *_last)
def diff_of_products(a: Array, b: Array, c: Array, d: Array) -> Array:
    r""":math:`a b - c d`, right to the last bits however much of the products cancels.

    The plain form loses the digits that both products share. Here each product is an unevaluated sum of two words, and the
    factors are scaled, so that a product that overflows by itself does no harm.

    Args:
      a, b, c, d: real arrays.

    Returns:
      An array of the broadcast shape and promoted dtype, within 2 ulp; where a factor is not finite, the plain form.

    Source: Jeannerod, Louvet and Muller, Further analysis of Kahan's algorithm for the accurate computation of 2 x 2
    determinants, Math. Comp. 82 (2013).

    >>> from robustad import stability as st
    >>> print(st.diff_of_products(4097.0, 4097.0, 4096.0, 4098.0))
    1.0
    """
    finite = jnp.isfinite(a) & jnp.isfinite(b) & jnp.isfinite(c) & jnp.isfinite(d)
    m, k = difference_of_products(*(jnp.where(finite, x, 0.0) for x in (a, b, c, d)))
    return jnp.where(finite, shifted(m, k), a * b - c * d)


def _sum(x: Array, h: Array) -> tuple[Array, Array]:
    """(s, c) with x + h = s c²; c is 2 where the sum would overflow."""
    large = float(np.finfo(x.dtype).max) / 4
    root = jnp.where((jnp.abs(x) > large) | (jnp.abs(h) > large), 2.0, 1.0)
    return x / (root * root) + h / (root * root), root


def _sqrt_diff(x: Array, h: Array) -> Array:
    total, c = _sum(x, h)
    new, old = c * jnp.sqrt(total), jnp.sqrt(x)
    value = jnp.where((h == 0) & ~jnp.isnan(old), 0.0, h / (new + old))
    return jnp.where(h == jnp.inf, new - old, jnp.where((x == jnp.inf) & jnp.isfinite(h), 0.0, value))


def _relative_roots(x: Array, h: Array) -> tuple[Array, ...]:
    """x' and h' = x/4ᵏ and h/4ᵏ with 1 ≤ x' < 4, x' + h' as two words, its root, √x' and k, for the derivatives in x.

    A step that is larger than x by half of the exponents is cut: it no longer changes them.
    """
    _, k = significand(x)
    k = k >> 1
    x = shifted(x, -2 * k)
    largest = 2.0 ** (np.finfo(x.dtype).maxexp * 7 // 16)
    h = jnp.minimum(shifted(h, -2 * k), largest)
    one = words.opaque(1.0, x)  # for a user's constant
    total, error = two_sum_kernel(x * one, h * one)
    new = jnp.sqrt(total)
    new = new + jnp.where(total > 0, 0.5 * error / new, 0.0)
    return x, h, total, error, new, jnp.sqrt(x), k


def _enlarged(h: Array) -> tuple[Array, Array]:
    """A small step times 2³², and 32: else a quotient may underflow before it is scaled back."""
    tiny = jnp.abs(h) < 2.0**-20
    return jnp.where(tiny, h * 2.0**32, h), jnp.where(tiny, 32, 0)


def _sqrt_diff_x(x: Array, h: Array) -> Array:
    flat = (h == 0) & (x >= 0) | (x == jnp.inf) & jnp.isfinite(h)
    x, h, total, _, new, old, k = _relative_roots(x, h)
    step, back = _enlarged(h)
    return jnp.where(flat, 0.0, shifted(-0.5 * step / (total * old + x * new), -k - back))


def _sqrt_diff_xx(x: Array, h: Array) -> Array:
    flat = (h == 0) & (x >= 0) | (x == jnp.inf) & jnp.isfinite(h)
    x, h, total, error, new, old, k = _relative_roots(x, h)
    # (a³ - b³)/(4 a³ b³) for the roots a and b, by a³ - b³ = (a - b)(a² + ab + b²) and a - b = h/(a + b).
    step, back = _enlarged(h)
    roots = total * old + (x * new + error * old)
    value = step * (total + (x + new * old)) / (4 * roots * (total * x + error * x))
    return jnp.where(flat, 0.0, shifted(value, -3 * k - back))


def _sqrt_diff_h(x: Array, h: Array) -> Array:
    total, c = _sum(x, h)
    return jnp.where(x < 0, jnp.nan, 0.5 / (c * jnp.sqrt(total)))


def _sqrt_diff_hh(x: Array, h: Array) -> Array:
    # `opaque`, or XLA makes a/(b c) of (a/b)/c, whose denominator may overflow.
    total, c = _sum(x, h)
    return jnp.where(x < 0, jnp.nan, opaque(-0.25 / (c * c * c * jnp.sqrt(total))) / total)


_sqrt_diff_mixed = elementwise()(_sqrt_diff_hh)


@elementwise(
    elementwise(elementwise()(_sqrt_diff_xx), _sqrt_diff_mixed)(_sqrt_diff_x),
    elementwise(_sqrt_diff_mixed, _sqrt_diff_mixed)(_sqrt_diff_h),
)
def sqrt_diff(x: Array, h: Array) -> Array:
    r""":math:`\sqrt{x + h} - \sqrt x`, without the cancellation for small `h`.

    :math:`h / (\sqrt{x + h} + \sqrt x)`; the derivative in `x`, itself such a difference, is
    :math:`-\frac{h}{2 \sqrt x \sqrt{x + h} (\sqrt{x + h} + \sqrt x)}`. Along h = 0 the value and the
    derivatives in `x` are 0. Where x or x + h is 0 the derivatives are signed infinities.

    Args:
      x, h: real arrays; NaN where x < 0 or x + h < 0.

    Returns:
      An array of the broadcast shape and promoted dtype, within 3 ulp, as its first derivatives; the second ones within 5.

    >>> from robustad import stability as st
    >>> print(st.sqrt_diff(1e10, 1.0), float(jnp.sqrt(1e10 + 1.0) - jnp.sqrt(1e10)))
    5e-06 0.0
    """
    return _sqrt_diff(x, h)
