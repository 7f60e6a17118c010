"""A sum over axes and its broadcast as primitives, each the transpose of the other: of one kind in every order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.stability._arguments import Axes, wider
from robustad.stability._primitive import Kernel, batch_first, linear_primitive


def sum_primitive(name: str, kernels: Mapping[str | None, Kernel]) -> Callable[..., Array]:
    """The function `(x, *count, axes, dtype)` of a kernel per platform: a sum in `dtype`, over `count` if there is one.

    `axes` are sorted and not negative; `count` is int32 in the shape of the result.
    """

    def batch(size: int, operands, batch_axes, *, axes: Axes, dtype: np.dtype) -> Array:
        return bind(*batch_first(size, operands, batch_axes), axes=_later(axes), dtype=dtype)

    def batch_spread(size: int, operands, batch_axes, *, shape, axes: Axes, dtype: np.dtype) -> Array:
        (x,) = batch_first(size, operands, batch_axes)
        return spread(x, shape=(size, *shape), axes=_later(axes), dtype=dtype)

    def transpose(cotangent: Array, x, *count: Array, axes: Axes, dtype: np.dtype) -> Array:
        if count:
            wide = wider(cotangent.dtype, jnp.float32)
            cotangent = cotangent.astype(wide) / count[0].astype(wide)
        return spread(cotangent, shape=x.shape, axes=axes, dtype=np.dtype(x.dtype))

    bind = linear_primitive(name, kernels=kernels, shape=_plain, transposes={0: transpose}, batch=batch)
    spread = linear_primitive(
        f"{name}_transpose",
        kernels={None: _spread},
        shape=_spread,
        transposes={0: lambda cotangent, x, *, shape, axes, dtype: bind(cotangent, axes=axes, dtype=np.dtype(x.dtype))},
        batch=batch_spread,
    )
    return bind


def _plain(x: Array, *count: Array, axes: Axes, dtype: np.dtype) -> Array:
    total = lax.reduce_sum(x, axes)
    return lax.convert_element_type(total / count[0].astype(x.dtype) if count else total, dtype)


def _spread(x: Array, *, shape: tuple[int, ...], axes: Axes, dtype: np.dtype) -> Array:
    kept = [i for i in range(len(shape)) if i not in axes]
    return lax.broadcast_in_dim(lax.convert_element_type(x, dtype), shape, kept)


def _later(axes: Axes) -> Axes:
    return tuple(a + 1 for a in axes)
