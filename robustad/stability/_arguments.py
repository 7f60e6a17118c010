"""The arguments of sums and of other functions of whole axes, as `jnp.sum` takes them; and what is said of others."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from robustad import _jaxpr

Axis = int | Sequence[int] | None
Axes = tuple[int, ...]
AxisName = Any  # a name of a mesh axis, or several in a tuple
FORMATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)

# ---- what is no array of numbers


def numbers(name: str, **arguments: Any) -> None:
    """Refuses what `jax.numpy` refuses: lists and other objects, text, random keys."""
    for argument, x in arguments.items():
        known = isinstance(x, jax.Array | np.ndarray | np.generic | complex | float | int) or hasattr(
            x, "__jax_array__"
        )
        if not known:
            fix = (
                "Convert it by `jnp.asarray`."
                if isinstance(x, list | tuple | range)
                else "Give its numbers as an array."
            )
            raise TypeError(f"{name}: `{argument}` has type {type(x).__name__}; expected an array or a number. {fix}")
        dtype = getattr(x, "dtype", None)
        if dtype is None or jnp.issubdtype(dtype, np.number) or dtype == np.dtype(bool):
            continue
        fix = "Convert it to numbers first."
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            fix = "Draw numbers with the key, for instance by `jax.random.normal`."
        raise TypeError(f"{name}: `{argument}` has dtype {dtype}; expected numbers. {fix}")


def refuse_complex(name: str, argument: str, dtype: DTypeLike, instead: str) -> None:
    """`instead` says what is right for this function."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name}: `{argument}` has dtype {dtype}; expected real numbers. {instead}")


def refuse_traced(name: str, argument: str, value: Any, expected: str, instead: str = "") -> None:
    """Refuses a tracer for an argument on which shapes or the choice of a formula depend."""
    if _jaxpr.is_traced(value):
        fix = instead or f"Make it static, for instance by `jax.jit(f, static_argnames='{argument}')`."
        raise TypeError(f"{name}: `{argument}` is traced; expected {expected}. {fix}")


def integer(name: str, argument: str, value: Any) -> int:
    """An integer that is known when tracing, such as a length."""
    refuse_traced(name, argument, value, "an integer")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: `{argument}` is {value!r}; expected an integer. Round it: `int(...)`.") from None


# ---- arrays


def real_or_complex(function: Callable[[Array], Array], x: Array) -> Array:
    """A linear function of a real array, of a complex array: by its parts."""
    if jnp.iscomplexobj(x):
        return lax.complex(function(x.real), function(x.imag))
    return function(x)


def integers(name: str, x: ArrayLike, argument: str) -> Array:
    """Indices as int32: one that int32 cannot hold is out of range of every array here."""
    numbers(name, **{argument: x})
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name}: `{argument}` has dtype {x.dtype}; expected integers. Cast it: `.astype(int)`.")
    limits, own = np.iinfo(np.int32), jnp.iinfo(x.dtype)
    if own.max > limits.max:
        x = jnp.minimum(x, x.dtype.type(limits.max))
    if own.min < limits.min:
        x = jnp.maximum(x, x.dtype.type(limits.min))
    return x.astype(np.int32)


def real_part_of(dtype: DTypeLike) -> np.dtype:
    """Of a complex dtype that of its parts."""
    return np.dtype(jnp.finfo(dtype).dtype)


def inexact(name: str, x: ArrayLike, dtype: DTypeLike | None = None, argument: str = "x") -> tuple[Array, jnp.dtype]:
    """`x` in the dtype to sum in, which is no narrower than `x` or `dtype`, and the dtype of the result."""
    numbers(name, **{argument: x})
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.result_type(float))
    if dtype is None:
        return x, x.dtype
    result = jnp.zeros((), dtype).dtype  # as jnp reads it: float64 is float32 without x64
    if not jnp.issubdtype(result, jnp.inexact):
        raise TypeError(f"{name}: `dtype` is {result}; expected a float or complex dtype. Round the result instead.")
    if jnp.iscomplexobj(x) and not jnp.issubdtype(result, jnp.complexfloating):
        raise TypeError(
            f"{name}: `dtype` is {result}; expected a complex one, as `{argument}` has {x.dtype}. Give the real part alone, "
            "or a complex `dtype`."
        )
    wide = wider(x.dtype, result)
    return x.astype(wide), result


def floating(
    name: str, x: ArrayLike, argument: str = "x", complex_instead: str = "Give the real and the imaginary part in turn."
) -> Array:
    """`x` as an array of one of the four real formats."""
    numbers(name, **{argument: x})
    x = jnp.asarray(x)
    refuse_complex(name, argument, x.dtype, complex_instead)
    if jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool:
        x = x.astype(jnp.result_type(float))
    if x.dtype not in FORMATS:
        raise TypeError(
            f"{name}: `{argument}` has dtype {x.dtype}; expected float16, bfloat16, float32 or float64. Cast it first."
        )
    return x


def widened(x: Array) -> Array:
    """float16 and bfloat16 in float32: results are rounded once."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def working(
    name: str, x: ArrayLike, argument: str = "x", complex_instead: str = "Take the real part."
) -> tuple[Array, jnp.dtype]:
    """A real array in the dtype to compute in, and the dtype of the result."""
    x = floating(name, x, argument, complex_instead)
    return widened(x), x.dtype


def wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    """The dtype that holds both, also under strict promotion: here the rounding is the function's business."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


# ---- axes


def axes_of(name: str, axis: Axis, ndim: int) -> Axes:
    """The axes, not negative, sorted."""
    if axis is None:
        return tuple(range(ndim))
    axes = [
        _in_range(name, a, ndim, axis, "an integer, integers in a tuple, or None")
        for a in (axis if isinstance(axis, Sequence) and not isinstance(axis, str) else (axis,))
    ]
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: `axis` names an axis twice: {axis}. Name each once.")
    return tuple(sorted(axes))


def axis_of(name: str, axis: int, ndim: int) -> int:
    """The one axis, not negative."""
    return _in_range(name, axis, ndim, axis, "one integer")


def _in_range(name: str, a: Any, ndim: int, axis: Any, expected: str) -> int:
    refuse_traced(name, "axis", a, expected)
    try:
        index = operator.index(a)
    except TypeError:
        fix = "Give one axis; several become one by `reshape`." if isinstance(a, Sequence) else "Give whole numbers."
        if isinstance(a, str):
            fix = "Axes of an array have no names; for a mesh axis see `reproducible_psum`."
        raise TypeError(f"{name}: `axis` is {axis!r}; expected {expected}. {fix}") from None
    if not -ndim <= index < ndim:
        fix = f"Expected -{ndim} to {ndim - 1}." if ndim else "Give it one: `x[None]`."
        raise ValueError(f"{name}: `axis` {index} is out of range for an array of {ndim} dimensions. {fix}")
    return index % ndim


def without(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """What is left of a shape."""
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def joint_shape(name: str, **shapes: tuple[int, ...]) -> tuple[int, ...]:
    """To which the arguments of these shapes broadcast."""
    try:
        return jnp.broadcast_shapes(*shapes.values())
    except ValueError:
        given = ", ".join(f"`{argument}` {shape}" for argument, shape in shapes.items())
        raise ValueError(
            f"{name}: the shapes of {given} do not fit; expected shapes that broadcast. Add or reorder axes."
        ) from None


# ---- masks and results


def mask_of(
    name: str, where: ArrayLike | None, shape: tuple[int, ...], argument: str = "x", *, may_add_axes: bool = False
) -> Array | None:
    """`where` as a bool array that broadcasts to `shape`, or with it."""
    if where is None:
        return None
    numbers(name, where=where)
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(
            f"{name}: `where` has dtype {mask.dtype}; expected bool, as in `jnp.sum`. Compare: `where != 0`."
        )
    joint = joint_shape(name, **{argument: shape, "where": mask.shape})
    if joint != shape and not may_add_axes:
        raise ValueError(
            f"{name}: `where` has shape {mask.shape}; expected one that broadcasts to {shape}, that of `{argument}`. "
            f"Broadcast `{argument}` first."
        )
    return mask


def masked(x: Array, mask: Array | None) -> Array:
    if mask is None:
        return x
    return jnp.where(jnp.broadcast_to(mask, x.shape), x, jnp.zeros((), x.dtype))


def counted(x: Array, axes: Axes, mask: Array | None) -> Array:
    """How many terms each sum has: int32."""
    if mask is None:
        return jnp.full(without(x.shape, axes), math.prod(x.shape[i] for i in axes), jnp.int32)
    return jnp.sum(jnp.broadcast_to(mask, x.shape), axes, dtype=jnp.int32)


def keep(total: Array, axes: Axes, keepdims: bool) -> Array:
    return jnp.expand_dims(total, axes) if keepdims else total


# ---- named axes


def names(name: str, axis_name: AxisName) -> tuple:
    """Of mesh axes, which must be bound."""
    given = tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)
    for axis in given:
        try:
            lax.axis_size(axis)
        except (NameError, ValueError):
            raise ValueError(
                f"{name}: `axis_name` {axis!r} is no axis of a mesh here; expected one that `jax.shard_map` maps over. Call "
                "it inside `jax.shard_map`, or inside `jax.vmap(..., axis_name=...)`."
            ) from None
    return given
