"""The real roots of a quadratic equation."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ._differences import difference_of_products
from ._division import divide, inverse
from ._elementwise import elementwise, promoted
from ._error_free import opaque
from ._significand import shifted, significand


def _solution(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    r"""The lower root, the upper root and :math:`\sqrt{b^2 - 4 a c}`.

    With x = 2ᵗ z the coefficients of 1 and z² get comparable exponents; where b is much larger than
    both, the square root is |b|.
    """
    (a, i), (b, j), (c, k) = significand(a), significand(b), significand(c)
    double = (i - k) & 1  # so that t is an integer
    t = (k - i - double) >> 1
    scaled_c = shifted(c, double)
    shift = j - i - t
    bits = np.finfo(a.dtype).nmant
    dominant = shift > bits + 4
    scaled_b = shifted(b, jnp.where(dominant, 0, shift))
    m, e = difference_of_products(scaled_b, scaled_b, 4 * a, scaled_c)
    discriminant = shifted(m, e)
    root = jnp.sqrt(discriminant)
    q = -0.5 * (scaled_b + jnp.where(jnp.signbit(b), -root, root))
    first = jnp.where(dominant, shifted(-b / a, j - i), shifted(q / a, t))
    second = jnp.where(dominant, shifted(-c / b, k - j), shifted(scaled_c / opaque(q), t))
    # q = 0: b = 0 and a c = 0, so the roots are 0 if a is not.
    second = jnp.where((q == 0) & (a != 0) & ~dominant, first, second)
    root = jnp.where(dominant, shifted(jnp.abs(b), j), shifted(root, i + t))
    return jnp.minimum(first, second), jnp.maximum(first, second), root


# With s = ±D, D = √(b² - 4 a c), for the root r: its derivatives are -r²/s, -r/s, -1/s, and those of second order
# products of t = r/s, c/s², ...: written out, for differences of the first ones cancel in the root that does not.


def _parts(a: Array, b: Array, c: Array, upper: bool) -> tuple[Array, Array]:
    """A root r, and 2 a r + b."""
    r = (_upper if upper else _lower)(a, b, c)
    root = _discriminant_root(a, b, c)
    return r, jnp.where(jnp.signbit(a), -root, root) * (1 if upper else -1)


def _over_square(x: Array, s: Array) -> Array:
    return divide(divide(x, s), s)


def _second(upper: bool) -> dict[str, Callable[..., Array]]:
    def in_aa(a: Array, b: Array, c: Array) -> Array:
        r, s = _parts(a, b, c, upper)
        t = divide(r, s)
        return 2 * (r * t) * (t - _over_square(c, s))

    def in_ab(a: Array, b: Array, c: Array) -> Array:
        r, s = _parts(a, b, c, upper)
        t = divide(r, s)
        return t * (t - 2 * _over_square(c, s))

    def in_ac(a: Array, b: Array, c: Array) -> Array:
        _, s = _parts(a, b, c, upper)
        return -2 * divide(_over_square(c, s), s)

    def in_bc(a: Array, b: Array, c: Array) -> Array:
        _, s = _parts(a, b, c, upper)
        return divide(_over_square(b, s), s)

    def in_cc(a: Array, b: Array, c: Array) -> Array:
        _, s = _parts(a, b, c, upper)
        return -2 * divide(_over_square(a, s), s)

    functions = {"aa": in_aa, "ab": in_ab, "ac": in_ac, "bc": in_bc, "cc": in_cc}
    found = {name: elementwise()(function) for name, function in functions.items()}
    return found | {"bb": found["ac"]}


def _partials(upper: bool) -> list[Callable[..., Array]]:
    second = _second(upper)

    def in_a(a: Array, b: Array, c: Array) -> Array:
        r, s = _parts(a, b, c, upper)
        return -r * divide(r, s)

    def in_b(a: Array, b: Array, c: Array) -> Array:
        return -divide(*_parts(a, b, c, upper))

    def in_c(a: Array, b: Array, c: Array) -> Array:
        return -inverse(_parts(a, b, c, upper)[1])

    return [
        elementwise(*(second["".join(sorted(one + other))] for other in "abc"))(function)
        for one, function in zip("abc", (in_a, in_b, in_c))
    ]


def _root_a(a: Array, b: Array, c: Array) -> Array:
    return divide(-2 * c, _discriminant_root(a, b, c))


def _root_b(a: Array, b: Array, c: Array) -> Array:
    return divide(b, _discriminant_root(a, b, c))


def _root_c(a: Array, b: Array, c: Array) -> Array:
    return divide(-2 * a, _discriminant_root(a, b, c))


@elementwise(elementwise()(_root_a), elementwise()(_root_b), elementwise()(_root_c))
def _discriminant_root(a: Array, b: Array, c: Array) -> Array:
    return _solution(a, b, c)[2]


@elementwise(*_partials(False))
def _lower(a: Array, b: Array, c: Array) -> Array:
    return _solution(a, b, c)[0]


@elementwise(*_partials(True))
def _upper(a: Array, b: Array, c: Array) -> Array:
    return _solution(a, b, c)[1]


def quadratic_roots(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> tuple[Array, Array]:
    r"""The real roots of :math:`a x^2 + b x + c = 0`, the lower and the upper one.

    The school formula cancels in the smaller root, in the discriminant near a double root, and overflows for
    :math:`|b| > 10^{19}` in float32. Here
    :math:`q = -(b + \operatorname{sign}(b) \sqrt{b^2 - 4ac})/2` with the
    roots q/a and c/q, the discriminant by `diff_of_products`, and the variable scaled by a power of two.

    Derivatives by the implicit function: :math:`-r^2/s, -r/s, -1/s` with
    :math:`s = 2 a r + b = \pm\sqrt{b^2 - 4ac}`. At a double root they are signed infinities (NaN
    in a and b where that root is 0).

    Args:
      a, b, c: real arrays.

    Returns:
      Two arrays of the broadcast shape and promoted dtype, within 8 u of the exact roots, as are their first
      derivatives; second derivatives within 16 u but where two terms of one cancel. NaN where there are no real roots.
      For a = 0 one root is infinite, with the sign of -b/a; for a = b = 0 both are NaN.

    Source: Goldberg, What every computer scientist should know about floating-point arithmetic (1991), section 1.4.

    >>> from robustad import stability as st
    >>> lower, upper = st.quadratic_roots(1.0, -1e10, 1.0)
    >>> print(lower, upper)
    1e-10 1e+10
    """
    a, b, c = promoted("quadratic_roots", {"a": a, "b": b, "c": c})
    return _lower(a, b, c), _upper(a, b, c)
