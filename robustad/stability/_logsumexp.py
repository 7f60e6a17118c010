"""Logarithms of sums of exponentials."""

from __future__ import annotations

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from . import _normalizer as normalizer
from ._arguments import Axes, Axis, axes_of, axis_of, counted, joint_shape, mask_of, masked, numbers, working
from ._centring import Row, constant, of_mean, row_of, row_of_total
from ._custom_jvp import custom_jvp
from ._log_exp import logaddexp


@functools.partial(custom_jvp, nondiff_argnums=(1,))
def log_sum(a: Array, axes: Axes) -> Array:
    """log Σ exp(a), the axes kept."""
    return normalizer.log_total(a, normalizer.total(a, axes, bounded=False), axes)


@functools.partial(custom_jvp, nondiff_argnums=(1,))
def _log_sum_and_row(a: Array, axes: Axes) -> tuple[Array, Row]:
    """The same, with the row that its derivative needs: of the same exponentials."""
    total = normalizer.total(a, axes)
    return normalizer.log_total(a, total, axes), row_of_total(a, total, axes)


@log_sum.defjvp
def _log_sum_jvp(axes: Axes, primals: tuple[Array], tangents: tuple[Array]):
    (a,), (t,) = primals, tangents
    value, row = _log_sum_and_row(a, axes)
    return value, of_mean(a, row, t, axes)


@_log_sum_and_row.defjvp
def _log_sum_and_row_jvp(axes: Axes, primals: tuple[Array], tangents: tuple[Array]):
    (a,), (t,) = primals, tangents
    value, row = _log_sum_and_row(a, axes)
    return (value, row), (of_mean(a, row, t, axes), constant(row))


@functools.partial(custom_jvp, nondiff_argnums=(2,))
def _weighted(a: Array, b: Array, axes: Axes) -> tuple[Array, Array]:
    """(log|Σ b exp(a)|, its sign), the axes kept."""
    counted = jnp.where(b == 0, -jnp.inf, a)
    c = normalizer.shift(normalizer.maximum(counted, axes))
    s = jnp.sum(jnp.where(b == 0, 0, b) * normalizer.terms(counted, c), axes, keepdims=True)
    infinite = jnp.any(counted == jnp.inf, axes, keepdims=True) & (s != 0)
    return jnp.where(infinite, jnp.inf, c + lax.log(jnp.abs(s))), jnp.sign(s)


def _weighted_jvp(axes: Axes, primals: tuple[Array, Array], tangents: tuple[Any, Any]):
    value, sign = _weighted(*primals, axes)
    shares, per_weight, _ = _weighted_shares(*primals, axes)
    given = [(w, t) for w, t in zip((shares, per_weight), tangents) if not _is_zero(t)]
    terms = [jnp.sum(w * t, axes, keepdims=True) for w, t in given]
    return (value, sign), (functools.reduce(jnp.add, terms), jnp.zeros_like(sign))


_weighted.defjvp(_weighted_jvp, symbolic_zeros=True)


@functools.partial(custom_jvp, nondiff_argnums=(2,))
def _weighted_shares(a: Array, b: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """The derivatives of log|Σ b exp(a)| in a, the shares, and in b; and 1 - the share that is more than half of the sum."""
    value, sign = _weighted(a, b, axes)
    counted = jnp.where(b == 0, -jnp.inf, a)
    c = normalizer.shift(normalizer.maximum(counted, axes))
    exponentials = normalizer.terms(counted, c)
    s = jnp.sum(jnp.where(b == 0, 0, b) * exponentials, axes, keepdims=True)
    # At a sum of 0 the derivatives are not defined if terms cancel; in entries 0 if there is no term, in weights infinite.
    empty = jnp.all((b == 0) | (a == -jnp.inf), axes, keepdims=True)
    # Infinite terms share the sum among themselves.
    infinite, top = value == jnp.inf, a == jnp.inf
    total = jnp.sum(jnp.where(top, b, 0), axes, keepdims=True)
    among = jnp.where(top, 1 / jnp.where(total == 0, 1, total), 0)
    without = sign * jnp.exp(a - jnp.where(empty | infinite, 0, value))
    per_weight = jnp.where(b == 0, without, exponentials / jnp.where(empty, 1, s))
    per_weight = jnp.where(infinite, among, per_weight)
    per_weight = jnp.where(empty, jnp.where(a == -jnp.inf, 0, jnp.inf), per_weight)
    shares = jnp.where((b == 0) | empty, 0, jnp.where(b == 0, 0, b) * jnp.where(b == 0, 0, per_weight))
    return shares, per_weight, jnp.sum(jnp.where(_most(shares, axes), 0, shares), axes, keepdims=True)


def _most(shares: Array, axes: Axes) -> Array:
    """The entry that has more than half of the sum, if there is one alone."""
    most = jnp.abs(shares) > normalizer.MOST
    return most & (jnp.sum(most, axes, keepdims=True) == 1)


def _weighted_shares_jvp(axes: Axes, primals: tuple[Array, Array], tangents: tuple[Any, Any]):
    """With q = 1 - p of the entry that has most of the sum: 1 - p of its rounded share would cancel."""
    shares, per_weight, rest = _weighted_shares(*primals, axes)
    da, db = (0 if _is_zero(t) else t for t in tangents)
    by_entries, by_weights = shares * da, jnp.zeros_like(shares) if _is_zero(tangents[1]) else per_weight * db
    most = _most(shares, axes)

    def total(x: Array) -> Array:
        return jnp.sum(x, axes, keepdims=True)

    def others(x: Array) -> Array:
        return total(jnp.where(most, 0, x))

    left = rest * da - others(by_entries)
    centred = jnp.where(most, left, da - total(by_entries)) - total(by_weights)
    of_most = shares * (left - others(by_weights)) + rest * by_weights
    steps = jnp.where(most, of_most, shares * centred + by_weights)
    return (shares, per_weight, rest), (steps, per_weight * centred, others(steps))


_weighted_shares.defjvp(_weighted_shares_jvp, symbolic_zeros=True)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


OF_COMPLEX = "The sum of complex exponentials is `jax.scipy.special.logsumexp`."
_compiled_log_sum = jax.jit(log_sum, static_argnums=1)
_compiled_weighted = jax.jit(_weighted, static_argnums=2)


@overload
def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: Literal[False] = False,
    where: ArrayLike | None = None,
) -> Array: ...
@overload
def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    *,
    return_sign: Literal[True],
    where: ArrayLike | None = None,
) -> tuple[Array, Array]: ...
def logsumexp(a, axis=None, b=None, keepdims=False, return_sign=False, where=None):
    r""":math:`\log \sum_i b_i e^{a_i}`; the arguments are those of `jax.scipy.special.logsumexp`.

    Written by hand it overflows from 88.7 (float32). Here :math:`c + \log \sum e^{a_i - c}` with a shift c that
    makes the differences exact. Without weights, within 4 ulp (float32) and 8 ulp (float64) and the error of summing
    n terms. Where the value is near 0: in float32, computed in float64 there, within 4 ulp as long as it is above
    :math:`2^{-27} \max|a|`; in float64 within 8 ulp if no entry is negative, else relative to the maximum's
    magnitude. With weights of both signs the sum may cancel: the error is relative to :math:`\sum |b_i| e^{a_i}`.

    The derivative is the softmax. Entries of -inf have share 0, all of them in a row of -inf alone, where the value
    is -inf; a weight there, as the argument of a logarithm at 0, has the derivative +inf. Entries of +inf share equally.

    Args:
      a: real array; float16 and bfloat16 are computed in float32 and rounded once.
      axis: the dimension or dimensions to sum over; None for all.
      b: weights that broadcast with `a`, of any sign; differentiable. Elements with weight 0 do not count.
      keepdims: whether the summed dimensions stay, with length 1.
      return_sign: whether to return (log|sum|, sign of the sum). If not, a negative sum gives NaN.
      where: bool array that broadcasts with `a`; elements that are False do not count.

    Returns:
      An array of the dtype of `a` (promoted with `b`), or two. An empty sum is 0: -inf.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.logsumexp(jnp.array([1000.0, 1000.0])), st.logsumexp(jnp.array([0.0, -40.0])))
    1000.6931 4.248354e-18
    >>> print(jax.grad(st.logsumexp)(jnp.array([-jnp.inf, -jnp.inf])))
    [0. 0.]
    """
    if b is not None:
        numbers("logsumexp", a=a, b=b)
        a, b = (jnp.asarray(x, jnp.result_type(a, b)) for x in (a, b))
    x, dtype = working("logsumexp", a, "a", OF_COMPLEX)
    if b is None:
        x = normalizer.masked(x, mask_of("logsumexp", where, x.shape, "a", may_add_axes=True))
        axes = axes_of("logsumexp", axis, x.ndim)
        value = _compiled_log_sum(x, axes)
        sign = jnp.where(value == -jnp.inf, 0, jnp.where(jnp.isnan(value), value, jnp.ones_like(value)))
    else:
        weights = jnp.asarray(b, x.dtype)
        shape = joint_shape("logsumexp", a=x.shape, b=weights.shape)
        mask = mask_of("logsumexp", where, shape, "a", may_add_axes=True)
        if mask is not None:
            shape = jnp.broadcast_shapes(shape, mask.shape)
            weights = jnp.where(mask, weights, 0)
        x, weights = jnp.broadcast_to(x, shape), jnp.broadcast_to(weights, shape)
        axes = axes_of("logsumexp", axis, x.ndim)
        x, weights = normalizer.with_moderate_weights(normalizer.masked(x, mask), weights)
        value, sign = _compiled_weighted(x, weights, axes)
    value, sign = (y if keepdims else jnp.squeeze(y, axes) for y in (value, sign))
    if return_sign:
        return value.astype(dtype), sign.astype(dtype)
    return (value if b is None else jnp.where(sign < 0, jnp.nan, value)).astype(dtype)


def logmeanexp(a: ArrayLike, axis: Axis = None, keepdims: bool = False, where: ArrayLike | None = None) -> Array:
    r""":math:`\log \frac1n \sum_i e^{a_i}`.

    :math:`\log \sum e^{a - \log n}` would lose the digits of equal entries. Here :math:`m + \log(\text{mean of }
    e^{a - m})`: entries that are all equal give their value.

    Args:
      a: real array; float16 and bfloat16 are computed in float32 and rounded once.
      axis: the dimension or dimensions to average over; None for all.
      keepdims: whether these dimensions stay, with length 1.
      where: bool array that broadcasts with `a`; elements that are False do not count, and not in n either.

    Returns:
      An array of the dtype of `a`. The mean of nothing is NaN.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.logmeanexp(jnp.array([1000.0, 1000.0, -jnp.inf, -jnp.inf])))
    999.3068
    """
    x, dtype = working("logmeanexp", a, "a", OF_COMPLEX)
    mask = mask_of("logmeanexp", where, x.shape, "a", may_add_axes=True)
    if mask is not None:
        x, mask = jnp.broadcast_arrays(x, mask)
    axes = axes_of("logmeanexp", axis, x.ndim)
    value = _log_mean(normalizer.masked(x, mask), mask, axes)
    return (value if keepdims else jnp.squeeze(value, axes)).astype(dtype)


@functools.partial(jax.jit, static_argnums=2)
def _log_mean(a: Array, mask: Array | None, axes: Axes) -> Array:
    return _log_mean_of(a, mask, axes)


@functools.partial(custom_jvp, nondiff_argnums=(2,))
def _log_mean_of(a: Array, mask: Array | None, axes: Axes) -> Array:
    m = normalizer.maximum(a, axes)
    d = jnp.where(a == m, 0, a - m)
    # log(1 + mean(exp(d) - 1)): the terms are not positive, so nothing cancels
    lost = masked(jnp.where(d == -jnp.inf, -1, jnp.expm1(d)), mask)
    count = jnp.expand_dims(counted(a, axes, mask), axes).astype(a.dtype)
    mean = jnp.sum(lost, axes, keepdims=True) / count
    value = jnp.where(mean > -0.5, jnp.log1p(jnp.maximum(mean, -0.5)), jnp.log(1 + mean))
    return jnp.where(count == 0, jnp.nan, jnp.where(jnp.isinf(m), m, m + value))


@_log_mean_of.defjvp
def _log_mean_jvp(axes: Axes, primals: tuple[Array, Array | None], tangents: tuple[Array, Any]):
    (a, mask), (t, _) = primals, tangents
    return _log_mean_of(a, mask, axes), of_mean(a, row_of(a, axes), t, axes)


def logcumsumexp(a: ArrayLike, axis: int = 0, reverse: bool = False) -> Array:
    r""":math:`\log \sum_{j \le i} e^{a_j}` for every i along an axis.

    A tree of `logaddexp` of depth :math:`\log_2 n`, each with an error of 2 ulp at most of the larger operand. The
    derivatives are finite at -inf, where `jax.lax.cumlogsumexp` gives NaN: an entry of -inf has no share.

    Args:
      a: real array.
      axis: the dimension to run along.
      reverse: whether to run from the end: :math:`\log \sum_{j \ge i} e^{a_j}`.

    Returns:
      An array of the shape and dtype of `a`.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.logcumsumexp(jnp.array([-jnp.inf, 1000.0, 1000.0])))
    [     -inf 1000.     1000.6932]
    """
    x, dtype = working("logcumsumexp", a, "a", OF_COMPLEX)
    i = axis_of("logcumsumexp", axis, x.ndim)
    x = jnp.where(x == -jnp.inf, -jnp.inf, x)  # no derivative where there is no share
    return lax.associative_scan(logaddexp, x, reverse=reverse, axis=i).astype(dtype)
