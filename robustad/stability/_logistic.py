"""The logistic function and what is made of it."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _words as words
from ._arguments import floating
from ._elementwise import elementwise


def _mirrored(x: Array, low: Array | float) -> Array | float:
    """The low word of -|x|."""
    return -jnp.sign(x) * low if isinstance(low, Array) else 0.0


def sigmoid_words(x: Array, low: Array | float = 0.0) -> Array:
    """1/(1 + exp(-x - low)), by the exponential that does not overflow."""
    e = words.decay(-jnp.abs(x), _mirrored(x, low))
    return jnp.where(x < 0, e, 1.0) / (1 + e)


def sigmoid_slope(x: Array, low: Array | float = 0.0) -> Array:
    """The derivative of the sigmoid, e/(1 + e)² with e = exp(-|x|): even, and without 1 - sigmoid."""
    e = words.decay(-jnp.abs(x), _mirrored(x, low))
    return e / jnp.square(1 + e)


def tanh_value(x: Array) -> Array:
    """tanh x by expm1(-2|x|)."""
    m = words.decayed(-2 * jnp.abs(x))
    return jnp.where(x == 0, x, jnp.sign(x) * (m / (2 - m)))


def softplus_words(x: Array, low: Array | float = 0.0) -> Array:
    """log(1 + exp(x + low))."""
    return jnp.maximum(x, 0.0) + (
        words.log1p(words.decay(-jnp.abs(x), _mirrored(x, low))) + jnp.maximum(jnp.sign(x), 0) * low
    )


def sigmoid_curvature(x: Array, factor: float = 1.0) -> Array:
    """factor times the second derivative of the sigmoid, -e (1 - e)/(1 + e)³ with the sign of x.

    What 1 + e rounds away enters to first order.
    """
    e = words.decay(-jnp.abs(x))
    one = words.opaque(1.0, x)
    u = one + e
    lost = ((one - u) + e) / u
    numerator = words.exp(-jnp.abs(x), factor=-factor * jnp.sign(x) * words.decayed(-jnp.abs(x)))
    return (numerator - 3 * lost * numerator) / (u * u * u)


_sigmoid_first = elementwise(elementwise()(lambda x: sigmoid_curvature(x)))(lambda x: sigmoid_slope(x))


@elementwise(_sigmoid_first)
def sigmoid(x: Array) -> Array:
    r""":math:`1/(1 + e^{-x})`.

    Written by hand its gradient is NaN at -200, and s(1 - s) of the rounded s is 0 from x = 17 on (float32); JAX's
    own is 0 from 37.43 in float64 (jax issue 40385). Here the derivative is :math:`e/(1 + e)^2`, :math:`e = e^{-|x|}`.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.sigmoid)(40.0))
    4.248354e-18
    """
    return sigmoid_words(x)


@elementwise(sigmoid)
def log1pexp(x: Array) -> Array:
    r""":math:`\log(1 + e^x)`, also called softplus.

    The naive form overflows from 88.7 (float32), and its gradient is NaN there. Here
    :math:`\max(x, 0) + \log(1 + e^{-|x|})` (Mächler, "Accurately computing log(1 - exp(-|a|))", 2012).

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.log1pexp(1000.0), jax.grad(jax.grad(st.log1pexp))(-40.0))
    1000.0 4.248354e-18
    """
    return softplus_words(x)


softplus = log1pexp

_log_sigmoid_first = elementwise(elementwise()(lambda x: -sigmoid_slope(x)))(lambda x: sigmoid_words(-x))


@elementwise(_log_sigmoid_first)
def log_sigmoid(x: Array) -> Array:
    r""":math:`-\log(1 + e^{-x})`, the logarithm of the sigmoid, which itself underflows from -104 (float32).

    >>> from robustad import stability as st
    >>> print(st.log_sigmoid(-1000.0))
    -1000.0
    """
    return -softplus_words(-x)


def _times_sigmoid(factor: Array, x: Array) -> Array:
    """factor · sigmoid(x), where |factor| grows as |x| at most: 0 at -inf."""
    y = -jnp.abs(x)
    bounded = jnp.clip(factor, -1e4, 1e4)  # exp(x) is 0 long before x is -10⁴
    numerator = jnp.where(x < 0, words.exp(y, factor=bounded), factor)
    return numerator / (1 + words.decay(y))


def _silu_second(x: Array) -> Array:
    y = -jnp.abs(x)
    bounded = jnp.clip(2 + y * tanh_value(-0.5 * y), -1e4, 1e4)
    return words.exp(y, factor=bounded) / jnp.square(1 + words.decay(y))


def _silu_first(x: Array) -> Array:
    return _times_sigmoid(1 + jnp.where(x == jnp.inf, 0.0, _times_sigmoid(x, -x)), x)


@elementwise(elementwise(elementwise()(_silu_second))(_silu_first))
def silu(x: Array) -> Array:
    r""":math:`x / (1 + e^{-x})`, with its limit 0 at -inf.

    JAX's gradient is 0 from -709 on in float64 (jax issue 39798).

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.silu)(-80.0))
    -1.4258326e-33
    """
    return _times_sigmoid(x, x)


def _left(x: Array, above: Array | float, below: Array) -> Array:
    """`below` where x ≤ 0, or NaN."""
    return jnp.where(x > 0, above, below)


_elu_xx = elementwise()(lambda x, alpha: _left(x, 0.0, words.exp(jnp.minimum(x, 0.0), factor=alpha)))
_elu_mixed = elementwise()(lambda x, alpha: _left(x, 0.0, words.decay(jnp.minimum(x, 0.0))))
_elu_x = elementwise(_elu_xx, _elu_mixed)(lambda x, alpha: _left(x, 1.0, words.exp(jnp.minimum(x, 0.0), factor=alpha)))
_elu_alpha = elementwise(_elu_mixed, elementwise()(lambda x, alpha: 0 * alpha))(
    lambda x, alpha: _left(x, 0.0, -words.decayed(jnp.minimum(x, 0.0)))
)


@elementwise(_elu_x, _elu_alpha)
def _elu(x: Array, alpha: Array) -> Array:
    return _left(x, x, -alpha * words.decayed(jnp.minimum(x, 0.0)))


def elu(x: ArrayLike, alpha: ArrayLike = 1.0) -> Array:
    r""":math:`x` above 0, :math:`\alpha (e^x - 1)` elsewhere.

    JAX's gradient is 0 from -37 on in float64 (jax issue 39795). At 0 it is that of the exponential, as in JAX.

    Args:
      x: real array.
      alpha: a scalar or an array that broadcasts with `x`.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.elu)(-40.0))
    4.248354e-18
    """
    return _elu(floating("elu", x, "x", "It is a function of real numbers: give `x.real`."), alpha)


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
_selu_slope = _SELU_SCALE * _SELU_ALPHA

_selu_second = elementwise()(lambda x: _left(x, 0.0, words.exp(jnp.minimum(x, 0.0), factor=_selu_slope)))
_selu_first = elementwise(_selu_second)(
    lambda x: _left(x, _SELU_SCALE, words.exp(jnp.minimum(x, 0.0), factor=_selu_slope))
)


@elementwise(_selu_first)
def selu(x: Array) -> Array:
    """The scaled `elu` of self-normalising networks (Klambauer et al., 2017), with the constants of jax.nn.selu.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(jax.grad(st.selu)(-40.0))
    7.469028e-18
    """
    return _left(x, _SELU_SCALE * x, -_selu_slope * words.decayed(jnp.minimum(x, 0.0)))


def _logit_second(x: Array) -> Array:
    """(2x - 1)/(x (1 - x))²: in the middle by the distance to 1/2, outside as ±(1 - r²)/y², r = y/(1 - y)."""
    t = x - 0.5
    middle = words.over_square(2 * t, 0.25 - t * t)
    y = jnp.minimum(x, 1 - x)
    r = y / (1 - y)
    value = jnp.where(jnp.abs(t) < 0.25, middle, words.over_square(jnp.sign(t) * (1 - r * r), y))
    return jnp.where((x < 0) | (x > 1), jnp.nan, value)


_logit_first = elementwise(elementwise()(_logit_second))(
    lambda x: jnp.where((x < 0) | (x > 1), jnp.nan, 1 / (x * (1 - x)))
)


@elementwise(_logit_first)
def logit(x: Array) -> Array:
    r""":math:`\log(x/(1 - x))`, right at its zero 1/2 too, by log1p there. NaN outside [0, 1].

    >>> from robustad import stability as st
    >>> print(st.logit(0.5000001))
    4.7683716e-07
    """
    middle = (x > 0.3) & (x < 0.7)
    y = jnp.where(middle, x, 0.5)
    # For x < 0.3 the quotient is below 1/2 and its logarithm is well-conditioned; above 0.7, 1 - x is exact.
    return jnp.where(middle, words.log1p(2 * (y - 0.5) / (1 - y)), lax.log(x / (1 - x)))
