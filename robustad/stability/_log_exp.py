"""Logarithms of sums and differences of exponentials."""

import math

import jax.numpy as jnp
from jax import Array, lax

from . import _words as words
from ._elementwise import elementwise
from ._logistic import sigmoid_slope, sigmoid_words


def csch_squared(y: Array, factor: float = 1.0) -> Array:
    """factor/(4 sinh²(y/2)) for y ≥ 0."""
    return words.over_square(words.exp(-y, factor=factor), words.expm1(-y))


def _log1mexp(y: Array) -> Array:
    """log(1 - exp(-y)) for y ≥ 0, switching at ln 2 (Mächler 2012)."""
    near = y < math.log(2)
    return jnp.where(near, lax.log(-words.expm1(-y)), words.log1p(-words.exp(-y)))


_log1mexp_second = elementwise()(lambda x: -csch_squared(jnp.abs(x)))
_log1mexp_first = elementwise(_log1mexp_second)(
    lambda x: jnp.where(jnp.signbit(x), -1.0, 1.0) / words.expm1(jnp.abs(x))
)


@elementwise(_log1mexp_first)
def log1mexp(x: Array) -> Array:
    r""":math:`\log(1 - e^{-|x|})`.

    For x > 0 this is `jax.nn.log1mexp`; for x < 0 the :math:`\log(1 - e^x)` of LogExpFunctions.jl: both conventions are in
    use, and TFP's is this one. The naive form is -inf below 6e-8 (float32) and 0 from 17 on. Here
    :math:`\log(-\operatorname{expm1}(-|x|))` below ln 2, :math:`\operatorname{log1p}(-e^{-|x|})` above (Mächler 2012).

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.log1mexp(1e-10), st.log1mexp(40.0), jax.grad(st.log1mexp)(40.0))
    -23.02585 -4.248354e-18 4.248354e-18
    """
    return _log1mexp(jnp.abs(x))


def _two_minus_exp(x: Array) -> Array:
    """2 - exp(x), right at its zero ln 2."""
    near = x > 0.4
    step = words.away(jnp.where(near, x, 1.0), words.LN2)
    return jnp.where(near, -2 * words.expm1(step), 1 - words.expm1(jnp.minimum(x, 1.0)))


_log2mexp_second = elementwise()(lambda x: -2 * (words.exp(x) / _two_minus_exp(x)) * (1 / _two_minus_exp(x)))
_log2mexp_first = elementwise(_log2mexp_second)(
    lambda x: jnp.where(_two_minus_exp(x) < 0, jnp.nan, -words.exp(x) / _two_minus_exp(x))
)


@elementwise(_log2mexp_first)
def log2mexp(x: Array) -> Array:
    r""":math:`\log(2 - e^x)` for x ≤ ln 2, right at its zero 0 and near ln 2. Name after LogExpFunctions.jl.

    >>> from robustad import stability as st
    >>> print(st.log2mexp(1e-10))
    -1e-10
    """
    near = x > 0.4
    return jnp.where(near, lax.log(_two_minus_exp(x)), words.log1p(-words.expm1(jnp.minimum(x, 1.0))))


def _logexpm1(x: Array) -> Array:
    """log(exp(x) - 1), right at its zero ln 2: there exp(x) - 2 = 2 expm1(x - ln 2)."""
    middle = (x > 0.4) & (x < 1.0)
    step = words.away(jnp.where(middle, x, 0.7), words.LN2)
    low, high = jnp.minimum(x, 1.0), jnp.maximum(x, 0.5)
    return jnp.where(
        middle,
        words.log1p(2 * words.expm1(step)),
        jnp.where(x < 0.5, lax.log(words.expm1(low)), high + words.log1p(-words.exp(-high))),
    )


_logexpm1_second = elementwise()(lambda x: -csch_squared(x))
_logexpm1_first = elementwise(_logexpm1_second)(lambda x: jnp.where(x < 0, jnp.nan, -1 / words.expm1(-x)))


@elementwise(_logexpm1_first)
def logexpm1(x: Array) -> Array:
    r""":math:`\log(e^x - 1)`, the inverse of `log1pexp`; x ≥ 0.

    The naive form overflows from 88.7 (float32) and is -inf below 6e-8. Name after LogExpFunctions.jl.

    >>> from robustad import stability as st
    >>> print(st.logexpm1(1000.0), st.logexpm1(1e-10))
    1000.0 -23.02585
    """
    return _logexpm1(x)


_logit1mexp_second = elementwise()(lambda x: -csch_squared(-x))
_logit1mexp_first = elementwise(_logit1mexp_second)(lambda x: jnp.where(x > 0, jnp.nan, 1 / words.expm1(-jnp.abs(x))))


@elementwise(_logit1mexp_first)
def logit1mexp(x: Array) -> Array:
    r""":math:`\operatorname{logit}(1 - e^x) = \log(e^{-x} - 1)` for x ≤ 0. Name after LogExpFunctions.jl.

    >>> from robustad import stability as st
    >>> print(st.logit1mexp(-1000.0))
    1000.0
    """
    return _logexpm1(-x)


def _distance(x: Array) -> Array:
    """How far 1 - x is below 1/e, in units of 1/e."""
    return words.times_e(words.away(x, words.ONE_MINUS_EXP_MINUS_1))


def _middle(x: Array) -> Array:
    return (x > 0.45) & (x < 0.8)


def _minus_log1m(x: Array) -> Array:
    return -words.log1p(-x)


def _minus_log1m_less_1(x: Array) -> Array:
    """-log(1 - x) - 1, right at its zero 1 - 1/e."""
    near = (x > 0.25) & (x < 0.75)
    return jnp.where(near, -words.log1p(-_distance(jnp.where(near, x, 0.6))), _minus_log1m(x) - 1)


def _cloglog_second(x: Array) -> Array:
    # Of the squared factors 1 - x and log(1 - x) the rounding errors are taken out to first order.
    one = words.opaque(1.0, x)
    u = one - x
    lost = (one - u) - x
    total, error, rest = words.log1p_words(-jnp.minimum(x, 0.999))
    m, low = words.two_sum(total, error + rest)
    m, low = jnp.where(x < 0.999, -m, _minus_log1m(x)), jnp.where(x < 0.999, -low, 0.0)
    numerator = _minus_log1m_less_1(x)
    value = words.over_square(numerator - 2 * numerator * (lost / u + low / m), u * m)
    return jnp.where(x == 0, -jnp.inf, jnp.where(x == 1, jnp.inf, value))


def _cloglog_first(x: Array) -> Array:
    value = 1 / ((1 - x) * _minus_log1m(x))
    return jnp.where(x == 1, jnp.inf, jnp.where(x < 0, jnp.nan, value))


@elementwise(elementwise(elementwise()(_cloglog_second))(_cloglog_first))
def cloglog(x: Array) -> Array:
    r""":math:`\log(-\log(1 - x))` on [0, 1], right at its zero 1 - 1/e.

    The naive form is -inf below 6e-8 (float32).

    >>> from robustad import stability as st
    >>> print(st.cloglog(1e-10))
    -23.02585
    """
    middle = _middle(x)
    return jnp.where(middle, words.log1p(_minus_log1m_less_1(jnp.where(middle, x, 0.6))), lax.log(_minus_log1m(x)))


def _both(x: Array, y: Array) -> Array:
    """Where both weights are zero: the share of each is 0."""
    return (x == -jnp.inf) & (y == -jnp.inf)


def _share(x: Array, y: Array) -> Array:
    return jnp.where(_both(x, y), 0.0, sigmoid_words(*words.difference(x, y)))


def _spread(x: Array, y: Array) -> Array:
    return jnp.where(_both(x, y), 0.0, sigmoid_slope(*words.difference(x, y)))


_spread_p = elementwise()(_spread)
_spread_m = elementwise()(lambda x, y: -_spread(x, y))
_share_x = elementwise(_spread_p, _spread_m)(_share)
_share_y = elementwise(_spread_m, _spread_p)(lambda x, y: _share(y, x))


@elementwise(_share_x, _share_y)
def logaddexp(x: Array, y: Array) -> Array:
    r""":math:`\log(e^x + e^y)`.

    The larger argument plus :math:`\log(1 + e^{-|x - y|})`, with the difference and its rounding error. Where both are -inf
    the value is -inf and the derivative 0: neither has a share. Where both are +inf each has one half.

    Where :math:`e^x + e^y` is near 1 the value is near 0, and its error is relative to the larger argument.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.logaddexp(1000.0, 1000.0), jax.grad(st.logaddexp)(-float("inf"), -float("inf")))
    1000.6932 0.0
    """
    d, low = words.difference(x, y)
    tail = words.log1p(words.exp(-jnp.abs(d), -jnp.sign(d) * low))
    return jnp.maximum(x, y) + jnp.where(_both(x, y), 0.0, tail)


def _excess(x: Array, y: Array) -> Array:
    """1/(1 - exp(y - x)), and 1/(exp(x - y) - 1) for swapped arguments and opposite sign."""
    d, low = words.difference(x, y)
    e = words.exp(-jnp.abs(d), -jnp.sign(d) * low)
    m = jnp.where(jnp.abs(d) < 1, -words.expm1(-jnp.abs(d)), 1 - e)
    return jnp.where(d < 0, -e, 1.0) / m


def _excess_slope(x: Array, y: Array) -> Array:
    d, low = words.difference(x, y)
    e = words.exp(-jnp.abs(d), -jnp.sign(d) * low)
    m = jnp.where(jnp.abs(d) < 1, -words.expm1(-jnp.abs(d)) + jnp.sign(d) * low * e, 1 - e)
    return -words.over_square(e, m)


_slope_p = elementwise()(_excess_slope)
_slope_m = elementwise()(lambda x, y: -_excess_slope(x, y))
_excess_x = elementwise(_slope_p, _slope_m)(lambda x, y: jnp.where(_both(x, y), 0.0, _excess(x, y)))
_excess_y = elementwise(_slope_m, _slope_p)(lambda x, y: jnp.where(_both(x, y), 0.0, _excess(y, x)))


@elementwise(_excess_x, _excess_y)
def logsubexp(x: Array, y: Array) -> Array:
    r""":math:`\log(e^x - e^y)` for x ≥ y; -inf where they are equal, NaN where x < y.

    :math:`x + \log(1 - e^{-(x - y)})`. Where :math:`e^x - e^y` is near 1 the value is near 0, and its error
    is relative to x.

    >>> from robustad import stability as st
    >>> print(st.logsubexp(1000.0, 999.0))
    999.5413
    """
    d, low = words.difference(x, y)
    far = jnp.maximum(d, 0.5)
    tail = jnp.where(
        d < math.log(2), lax.log(-words.expm1(-d)), words.log1p(-words.exp(-far, -jnp.where(d > 0.5, low, 0.0)))
    )
    return jnp.where(x == y, -jnp.inf, x + tail)
