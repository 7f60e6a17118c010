"""A sum over axes as a primitive: its tangent is the same sum, its cotangent a broadcast."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array, lax

from robustad.stability._primitive import Kernel, linear_primitive
from robustad.stability._sum_arguments import wider


def sum_primitive(name: str, kernels: Mapping[str | None, Kernel]) -> Callable[..., Array]:
    """The function `(x, *count, axes)` of a kernel per platform: a sum; over `count`, int32 of its shape, if given."""

    def batch(size: int, operands, batch_axes, *, axes: tuple[int, ...]) -> Array:
        moved = [
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, batch_axes)
        ]
        return bind(*moved, axes=tuple(a + 1 for a in axes))

    bind = linear_primitive(name, kernels=kernels, shape=_plain, transposes={0: _spread}, batch=batch)
    return bind


def _plain(x: Array, *count: Array, axes: tuple[int, ...]) -> Array:
    total = lax.reduce_sum(x, axes)
    return total / count[0].astype(x.dtype) if count else total


def _spread(cotangent: Array, x, *count: Array, axes: tuple[int, ...]) -> Array:
    if count:
        wide = wider(cotangent.dtype, jnp.float32)
        cotangent = (cotangent.astype(wide) / count[0].astype(wide)).astype(cotangent.dtype)
    kept = [i for i in range(len(x.shape)) if i not in axes]
    return lax.broadcast_in_dim(cotangent, x.shape, kept)
