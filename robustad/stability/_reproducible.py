r"""Sums and means that no order of the terms can change: the exact result, rounded once."""

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from robustad.stability._arguments import FORMATS, Axis, axes_of, counted, floating, keep, mask_of, masked
from robustad.stability._order_free import order_free_sum


def reproducible_sum(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""The sum of the elements, exact and then rounded once: the same bits for every order, shape, chunking and
    device count.

    .. math:: \operatorname{fl}\Big(\sum_i x_i\Big)

    `jnp.sum` rounds every partial sum, so that its last bits change with the order of the terms, the layout and the
    number of devices. This one adds integers (:class:`Accumulator`) or, where one pass of float64 integers suffices,
    proves that it does.

    Args:
        x: float16, bfloat16, float32 or float64; integers and booleans become the default float.
        axis: axis or axes to sum over; all of them by default.
        dtype: of the result, by default that of `x`. The terms are summed exactly before they are rounded to it.
        keepdims: leave the summed axes, with size 1.
        where: which elements to include; it broadcasts against `x`.

    Returns:
        The sum. The error is at most 1/2 ulp at any condition number, subnormal terms and results included. Nothing
        overflows unless the result does. A NaN, or infinities of both signs, give NaN. A zero sum is +0, of no terms
        and of -0 too.

    Raises:
        TypeError: `x` or `dtype` is of another kind.

    Derivatives of any order, in forward and reverse mode, are such sums themselves.

    Kulisch, *Computer Arithmetic and Validity* (2013), ch. 8; Demmel and Nguyen, *Parallel Reproducible Summation* (2015).

    >>> import jax.numpy as jnp
    >>> from robustad.stability import reproducible_sum
    >>> x = jnp.array([3e38, 3e38, -3e38, 1.0])
    >>> print(jnp.sum(x), reproducible_sum(x))
    inf 3e+38
    """
    x, out = _prepared("reproducible_sum", x, dtype)
    axes, mask = axes_of("reproducible_sum", axis, x.ndim), mask_of("reproducible_sum", where, x.shape)
    return keep(order_free_sum(masked(x, mask), axes=axes, dtype=out), axes, keepdims)


def reproducible_mean(
    x: ArrayLike,
    axis: Axis = None,
    dtype: DTypeLike | None = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""The mean of the elements: the exact sum over the exact count, rounded once.

    .. math:: \operatorname{fl}\Big(\frac1n\sum_i x_i\Big)

    Arguments, bits and errors are those of :func:`reproducible_sum`. `jnp.mean` overflows where the sum does; this
    does not. The mean of no elements is NaN, as in JAX. The error is at most 1/2 ulp.

    >>> import jax.numpy as jnp
    >>> from robustad.stability import reproducible_mean
    >>> x = jnp.array([3e38, 3e38])
    >>> print(jnp.mean(x), reproducible_mean(x))
    inf 3e+38
    """
    x, out = _prepared("reproducible_mean", x, dtype)
    axes, mask = axes_of("reproducible_mean", axis, x.ndim), mask_of("reproducible_mean", where, x.shape)
    return keep(order_free_sum(masked(x, mask), counted(x, axes, mask), axes=axes, dtype=out), axes, keepdims)


def _prepared(name: str, x: ArrayLike, dtype: DTypeLike | None) -> tuple[Array, np.dtype]:
    x = floating(name, x)
    out = np.dtype(x.dtype if dtype is None else jax.dtypes.canonicalize_dtype(dtype))
    if out not in FORMATS:
        raise TypeError(f"{name}: `dtype` is {out}; expected float16, bfloat16, float32 or float64.")
    return x, out
