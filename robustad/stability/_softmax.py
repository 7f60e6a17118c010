"""Softmax and its logarithm, with masks, and derivatives that do not cancel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from . import _centring as centring
from . import _normalizer as normalizer
from ._arguments import Axes, Axis, axes_of, mask_of, working
from ._centring import Row
from ._custom_jvp import custom_jvp


@functools.partial(custom_jvp, nondiff_argnums=(1,))
def _softmax(a: Array, axes: Axes) -> tuple[Array, Row]:
    row = centring.row_of(a, axes)
    return centring.shares(a, row), row


@_softmax.defjvp
def _softmax_jvp(axes: Axes, primals: tuple[Array], tangents: tuple[Array]):
    (a,), (t,) = primals, tangents
    p, row = _softmax(a, axes)
    return (p, row), (centring.of_shares(a, row, t, axes), centring.constant(row))


@functools.partial(custom_jvp, nondiff_argnums=(1,))
def _log_softmax(a: Array, axes: Axes) -> Array:
    total = normalizer.total(a, axes)
    log_of_sum = normalizer.log_of_sum(normalizer.share_of_maximum(total), normalizer.rest(a, total, axes))
    return jnp.where(a == total.maximum, 0, a - total.maximum) - log_of_sum


@_log_softmax.defjvp
def _log_softmax_jvp(axes: Axes, primals: tuple[Array], tangents: tuple[Array]):
    (a,), (t,) = primals, tangents
    return _log_softmax(a, axes), centring.of_log(a, centring.row_of(a, axes, False), t, axes)


_OF_COMPLEX = "Shares are of real logits: give `x.real`, or `jnp.abs(x)`."
_compiled_softmax = jax.jit(lambda a, axes: _softmax(a, axes)[0], static_argnums=1)
_compiled_log_softmax = jax.jit(_log_softmax, static_argnums=1)


def softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    r""":math:`p_i = e^{x_i} / \sum_j e^{x_j}`.

    The usual form rounds :math:`x_i - \max x` before the exponential: 20 ulp at logits of 10 in float32. Its derivative
    :math:`p_i (t_i - \sum_j p_j t_j)` is 0 where :math:`p_i` rounds to 1 (jax issue 40384). Here the difference is
    exact, and :math:`1 - p_i` is the sum of the other shares. Within 4 ulp and the error of summing n terms;
    exceptions: shares below :math:`e^{-64}` of a row with a maximum above 64 (512 in float64) have the rounding
      error of their difference.

    An entry of -inf is masked: its share and its derivatives are exactly 0. A row of -inf alone gives zeros, with zero
    derivatives. Entries of +inf share equally, and finite ones beside them get 0. NaN gives NaN.

    Args:
      x: real array; float16 and bfloat16 are computed in float32 and rounded once.
      axis: the dimension or dimensions to normalise over; None for all.
      where: bool array that broadcasts with `x`; elements that are False count as -inf.

    Returns:
      An array of the dtype of `x`, in its shape broadcast with `where`.

    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> print(st.softmax(jnp.array([1e4, 1e4, -jnp.inf])), st.softmax(jnp.full(2, -jnp.inf)))
    [0.5 0.5 0. ] [0. 0.]
    """
    y, dtype = working("softmax", x, "x", _OF_COMPLEX)
    y = normalizer.masked(y, mask_of("softmax", where, y.shape, may_add_axes=True))
    return _compiled_softmax(y, axes_of("softmax", axis, y.ndim)).astype(dtype)


def log_softmax(x: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> Array:
    r""":math:`x_i - \log \sum_j e^{x_j}`.

    For an entry that has nearly the whole of its row this is :math:`-\sum_{j \ne i} e^{x_j - x_i}`, which the usual
    form rounds to 0, and its derivative with it (jax issue 40384). Within 4 ulp and the error of summing n terms.

    A masked entry (-inf) gives -inf, also in a row of -inf alone; derivatives in it are exactly 0. Entries of +inf
    share equally. NaN gives NaN.

    Args:
      x: real array; float16 and bfloat16 are computed in float32 and rounded once.
      axis: the dimension or dimensions to normalise over; None for all.
      where: bool array that broadcasts with `x`; elements that are False count as -inf.

    Returns:
      An array of the dtype of `x`, in its shape broadcast with `where`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x = jnp.array([40.0, 0.0])
    >>> print(st.log_softmax(x), jax.grad(lambda x: st.log_softmax(x)[0])(x))
    [-4.248354e-18 -4.000000e+01] [ 4.248354e-18 -4.248354e-18]
    """
    y, dtype = working("log_softmax", x, "x", _OF_COMPLEX)
    y = normalizer.masked(y, mask_of("log_softmax", where, y.shape, may_add_axes=True))
    return _compiled_log_softmax(y, axes_of("log_softmax", axis, y.ndim)).astype(dtype)
