"""The arguments of sums and of other functions of whole axes, as `jnp.sum` takes them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

Axis = int | Sequence[int] | None
Axes = tuple[int, ...]
FORMATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def real_or_complex(function: Callable[[Array], Array], x: Array) -> Array:
    """A linear function of a real array, of a complex array: by its parts."""
    if jnp.iscomplexobj(x):
        return lax.complex(function(x.real), function(x.imag))
    return function(x)


def integers(name: str, x: ArrayLike, argument: str) -> Array:
    """Indices as int32: one that int32 cannot hold is out of range of every array here."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name}: `{argument}` has dtype {x.dtype}; expected integers.")
    limits, own = np.iinfo(np.int32), jnp.iinfo(x.dtype)
    if own.max > limits.max:
        x = jnp.minimum(x, x.dtype.type(limits.max))
    if own.min < limits.min:
        x = jnp.maximum(x, x.dtype.type(limits.min))
    return x.astype(np.int32)


def real_part_of(dtype: DTypeLike) -> np.dtype:
    """Of a complex dtype that of its parts."""
    return np.dtype(jnp.finfo(dtype).dtype)


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


def floating(name: str, x: ArrayLike, argument: str = "x") -> Array:
    """`x` as an array of one of the four real formats."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool:
        x = x.astype(jnp.result_type(float))
    if x.dtype not in FORMATS:
        raise TypeError(
            f"{name}: `{argument}` has dtype {x.dtype}; expected float16, bfloat16, float32 or float64. Cast it first."
        )
    return x


def wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    """The dtype that holds both, also under strict promotion: here the rounding is the function's business."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def axes_of(name: str, axis: Axis, ndim: int) -> Axes:
    """The axes, not negative, sorted."""
    if axis is None:
        return tuple(range(ndim))
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    axes = []
    for a in map(operator.index, given):
        if not -ndim <= a < ndim:
            raise ValueError(f"{name}: `axis` {a} is out of range for an array of {ndim} dimensions.")
        axes.append(a % ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: `axis` names an axis twice: {axis}.")
    return tuple(sorted(axes))


def without(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """What is left of a shape."""
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def masked(x: Array, where: ArrayLike | None) -> Array:
    if where is None:
        return x
    mask = jnp.broadcast_to(jnp.asarray(where, bool), x.shape)
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def counted(x: Array, axes: Axes, where: ArrayLike | None) -> Array:
    """How many terms each sum has: int32."""
    if where is None:
        return jnp.full(without(x.shape, axes), math.prod(x.shape[i] for i in axes), jnp.int32)
    return jnp.sum(jnp.broadcast_to(jnp.asarray(where, bool), x.shape), axes, dtype=jnp.int32)


def keep(total: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    return jnp.expand_dims(total, axes) if keepdims else total
