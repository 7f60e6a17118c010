"""What the sums share: their arguments, as `jnp.sum` takes them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

Axis = int | Sequence[int] | None


def real_or_complex(function: Callable[[Array], Array], x: Array) -> Array:
    """A linear function of a real array, of a complex array: by its parts."""
    if jnp.iscomplexobj(x):
        return lax.complex(function(x.real), function(x.imag))
    return function(x)


def inexact(name: str, x: ArrayLike, dtype: DTypeLike | None = None) -> tuple[Array, jnp.dtype]:
    """`x` in the dtype to sum in, which is no narrower than `x` or `dtype`, and the dtype of the result."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.result_type(float))
    if dtype is None:
        return x, x.dtype
    result = jnp.zeros((), dtype).dtype  # as jnp reads it: float64 is float32 without x64
    if not jnp.issubdtype(result, jnp.inexact):
        raise TypeError(f"{name}: `dtype` must be a float or complex dtype, got {result}. Round the result instead.")
    if jnp.iscomplexobj(x) and not jnp.issubdtype(result, jnp.complexfloating):
        raise TypeError(f"{name}: `dtype` is {result}, but `x` is {x.dtype}. Sum `x.real`, or give a complex dtype.")
    wide = wider(x.dtype, result)
    return x.astype(wide), result


def wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    """The dtype that holds both, also under strict promotion: here the rounding is the function's business."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def summed_axes(name: str, x: Array, axis: Axis) -> tuple[int, ...]:
    """The axes to sum, not negative, sorted."""
    if axis is None:
        return tuple(range(x.ndim))
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    axes = []
    for a in map(operator.index, given):
        if not -x.ndim <= a < x.ndim:
            raise ValueError(f"{name}: `axis` {a} is out of range for `x` of shape {x.shape}.")
        axes.append(a % x.ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: `axis` names an axis twice: {axis}.")
    return tuple(sorted(axes))


def masked(x: Array, where: ArrayLike | None) -> Array:
    if where is None:
        return x
    mask = jnp.broadcast_to(jnp.asarray(where, bool), x.shape)
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def keep(total: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return jnp.expand_dims(total, axes) if keepdims else total
