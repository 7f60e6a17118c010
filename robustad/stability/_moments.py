r"""Mean, variance and standard deviation without overflow or underflow in the middle.

First the plain two passes, :math:`\bar x` and :math:`\sum (x - \bar x)^2`. Where that is not finite, or squares may have
been lost, or the deviations are so small beside the mean that its rounding shows, the deviations are formed again:
scaled by a power of two and counted from the smallest element, so that equal values give exactly 0. Elsewhere the bits
are those of the plain form.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from ._arguments import (
    Axis,
    axes_of,
    inexact,
    mask_of,
    numbers,
    real_or_complex,
    refuse_complex,
    refuse_traced,
    widened,
)
from ._custom_jvp import custom_jvp
from ._norms import largest_of, least_safe_square, power_of_two_near, scaled
from ._over_leading_axes import over_leading_axes

_Axes = tuple[int, ...]


def _count(x: Array, mask: Array | None, axes: _Axes) -> Array:
    if mask is None:
        return jnp.asarray(math.prod(x.shape[i] for i in axes), x.dtype)
    return jnp.sum(mask.astype(x.dtype), axes)


def _masked(mask: Array | None, x: Array) -> Array:
    return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))


def _safe_mean(axes: _Axes, x: Array, mask: Array | None) -> Array:
    total, count = jnp.sum(_masked(mask, x), axes), _count(x, mask, axes)
    finite = jnp.isfinite(total)

    def careful() -> Array:
        fraction = 2.0 ** -max(math.prod(x.shape[i] for i in axes), 1).bit_length()
        return jnp.where(finite, total / count, (jnp.sum(_masked(mask, x) * fraction, axes) / count) * (1 / fraction))

    return lax.cond(jnp.all(finite), lambda: total / count, careful)


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _mean(axes: _Axes, x: Array, mask: Array | None) -> Array:
    return over_leading_axes(functools.partial(_safe_mean, axes))(x, mask)


@_mean.defjvp
def _mean_jvp(axes, primals, tangents):
    x, mask = primals
    weight = 1 / jnp.expand_dims(_count(x, mask, axes), axes) if mask is not None else 1 / _count(x, mask, axes)
    return _mean(axes, x, mask), jnp.sum(_masked(mask, tangents[0] * weight), axes)


def _bound_of_mean(axes: _Axes, x: Array, mask: Array | None, mean: Array, noise: float) -> Array:
    """|mean|; of rows that are not long 2 |x₀|, as |mean| <= |x₀| + √(Σ (x - mean)²), where the root does not decide.

    Measured: XLA computes the squares of a row in one pass, as long as nothing else asks for its mean.
    """
    size = math.prod(x.shape[i] for i in axes)
    if mask is not None or size == 0 or noise * math.sqrt(size) > 0.5:
        return jnp.abs(mean)
    return 2 * jnp.abs(x[tuple(0 if i - x.ndim in axes else slice(None) for i in range(x.ndim))])


def _deviations(axes: _Axes, x: Array, mask: Array | None) -> tuple[Array, Array, Array, Array]:
    """(s, a, b, q): the deviations are ((x/s - a) - b) s, their sum of squares q s²."""
    count = _count(x, mask, axes)
    y = _masked(mask, x)
    mean = jnp.sum(y, axes) / count
    squares = jnp.sum(jnp.square(_masked(mask, x - jnp.expand_dims(mean, axes))), axes)
    size = math.prod(x.shape[i] for i in axes)
    right = (squares >= least_safe_square(size, x.dtype)) & jnp.isfinite(squares)
    # The mean is off by about u |mean|: its square must be below u² of the variance.
    noise = 8 * math.sqrt(float(np.finfo(x.dtype).eps))
    right = right & (jnp.sqrt(squares / count) >= noise * _bound_of_mean(axes, x, mask, mean, noise))
    one, zero = jnp.ones_like(mean), jnp.zeros_like(mean)

    def careful() -> tuple[Array, Array, Array, Array]:
        scale = power_of_two_near(largest_of([y], [axes]))
        z = scaled(y, axes, scale)
        candidates = z if mask is None else jnp.where(mask, z, jnp.full_like(z, jnp.inf))
        start = jnp.min(candidates, axes, initial=jnp.inf)
        z = z - jnp.expand_dims(start, axes)
        centre = jnp.sum(_masked(mask, z), axes) / count
        rest = _masked(mask, z - jnp.expand_dims(centre, axes))
        left = jnp.sum(rest * rest, axes) - jnp.square(jnp.sum(rest, axes)) / count
        scale = jnp.where(jnp.isinf(scale), jnp.full_like(scale, jnp.nan), scale)
        new, old = (scale, start, centre, jnp.maximum(left, zero)), (one, zero, mean, squares)
        return jax.tree.map(lambda a, b: jnp.where(right, b, a), new, old)

    return lax.cond(jnp.all(right), lambda: (one, zero, mean, squares), careful)


@functools.partial(custom_jvp, nondiff_argnums=(0, 1))
def _spread(axes: _Axes, ddof: float, x: Array, mask: Array | None) -> tuple[Array, Array, Array, Array]:
    """The variance, the standard deviation, and their gradients in x."""
    scale, start, centre, squares = over_leading_axes(functools.partial(_deviations, axes))(x, mask)
    free = _count(x, mask, axes) - ddof
    variance = jnp.where(free > 0, squares / free, jnp.nan)
    deviation = jnp.sqrt(variance)
    wide = functools.partial(jnp.expand_dims, axis=axes)
    rest = _masked(mask, (x * wide(1 / scale) - wide(start)) - wide(centre))
    degrees = wide(free) if free.ndim else free
    divisor = wide(jnp.where(deviation == 0, jnp.ones_like(deviation), deviation))
    variance_slope = (rest * (2 / degrees)) * wide(scale)
    # Equal values: the deviations are exactly 0, and so is the slope, the subgradient of smallest norm.
    deviation_slope = (rest / divisor) * (1 / degrees)
    return variance * scale * scale, deviation * scale, variance_slope, deviation_slope


@_spread.defjvp
def _spread_jvp(axes, ddof, primals, tangents):
    x, mask = primals
    variance, deviation, variance_slope, deviation_slope = _spread(axes, ddof, x, mask)
    count = _count(x, mask, axes)
    wide = functools.partial(jnp.expand_dims, axis=axes)
    degrees = wide(count - ddof) if count.ndim else count - ddof
    step = _masked(mask, tangents[0])
    total = wide(jnp.sum(step, axes))
    step = step - _masked(mask, jnp.broadcast_to(total / (wide(count) if count.ndim else count), step.shape))
    along = jnp.sum(deviation_slope * step, axes)
    turn = (step * (1 / degrees) - deviation_slope * wide(along)) / wide(deviation)
    tangent = jnp.sum(variance_slope * step, axes), along, step * (2 / degrees), turn
    return (variance, deviation, variance_slope, deviation_slope), tangent


def _prepare(name: str, x: Array, axis: Axis, where: ArrayLike | None) -> tuple[Array | None, _Axes]:
    axes = tuple(i - x.ndim for i in axes_of(name, axis, x.ndim))
    mask = mask_of(name, where, x.shape)
    return None if mask is None else jnp.broadcast_to(mask, x.shape), axes


_compiled_mean = jax.jit(_mean, static_argnums=0)


def mean(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r""":math:`\frac1n \sum x_i`, also where the sum overflows and the mean does not.

    Args:
      x: real or complex array.
      axis: the axes to reduce; None for all.
      dtype: of the result, by default that of `x`; the elements are not rounded to it.
      keepdims: keep the reduced axes with size 1.
      where: bool array; which elements take part.

    Returns:
      An array of that dtype; float16 and bfloat16 are summed in float32. NaN if no element takes part.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x = jnp.array([3e38, 1e38])
    >>> print(st.mean(x), jnp.mean(x))
    2e+38 inf
    """
    x, result = inexact("mean", x, dtype)
    mask, axes = _prepare("mean", x, axis, where)
    value = real_or_complex(lambda part: _compiled_mean(axes, widened(part), mask), x).astype(result)
    return jnp.expand_dims(value, axes) if keepdims else value


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled_spread(which: int, axes: _Axes, ddof: float, x: Array, mask: Array | None) -> Array:
    return _spread(axes, ddof, x, mask)[which]


def _spread_of(
    name: str,
    x: ArrayLike,
    axis: Axis,
    dtype: DTypeLike | None,
    ddof: float,
    correction: float | None,
    keepdims: bool,
    where: ArrayLike | None,
) -> Array:
    if correction is not None:
        if ddof != 0:
            raise ValueError(f"{name}: give `ddof` or `correction`, which mean the same, got {ddof} and {correction}.")
        ddof = correction
    refuse_traced(name, "ddof", ddof, "a number")
    numbers(name, x=x)
    parts = "Add the variances of `x.real` and `x.imag`" + ("." if name == "var" else ", and take `st.sqrt`.")
    refuse_complex(name, "x", jnp.result_type(x), parts)
    x, result = inexact(name, x, dtype)
    refuse_complex(name, "dtype", result, "The result is real.")
    mask, axes = _prepare(name, x, axis, where)
    value = _compiled_spread(int(name == "std"), axes, float(ddof), widened(x), mask).astype(result)
    return jnp.expand_dims(value, axes) if keepdims else value


def var(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    ddof: float = 0,
    correction: float | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r""":math:`\frac{1}{n - d} \sum (x_i - \bar x)^2`, without overflow or underflow in the middle; 0 for equal values.

    Args:
      x: real array.
      axis: the axes to reduce; None for all.
      dtype: of the result, by default that of `x`; the elements are not rounded to it.
      ddof, correction: d, under the name of NumPy or of the array API.
      keepdims: keep the reduced axes with size 1.
      where: bool array; which elements take part.

    Returns:
      An array of that dtype; float16 and bfloat16 are computed in float32. NaN where n ≤ d.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x = jnp.array([1.5e19, -1.5e19])
    >>> print(st.var(x) > 2.2e38, jnp.var(x))
    True inf
    """
    return _spread_of("var", x, axis, dtype, ddof, correction, keepdims, where)


def std(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    ddof: float = 0,
    correction: float | None = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""The square root of `var`, in the whole range, although its square may not be representable.

    For equal values, a finite kink, the gradient is the subgradient of smallest norm, 0; plain JAX gives NaN. The second
    derivative does not exist there: a Hessian has inf and NaN. Arguments and errors as for `var`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.std(jnp.array([1e20, -1e20])), jax.grad(st.std)(jnp.ones(2)))
    1e+20 [0. 0.]
    """
    return _spread_of("std", x, axis, dtype, ddof, correction, keepdims, where)
