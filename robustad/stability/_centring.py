r"""The derivatives of shares :math:`p = e^a / \sum e^a` as linear operations that do not cancel.

    log p has the derivative    t - Σ p t             transposed  g - p Σ g
    p     has the derivative    p (t - Σ p t)         its own transpose

Where one share is nearly 1, these cancel for its entry. There they are

    q t - Σ' p t,   q g - p Σ' g,   p (q t - Σ' p t),

with q = 1 - p from the sum of the other shares, and Σ' the sum over the others: computed only if a row has such an
entry. The shares come as p = e r, a term and its row's factor, so that programs need not hold p beside e. The
derivative of p is that of e, with r held fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from . import _normalizer as normalizer
from ._normalizer import MOST, Axes
from ._primitive import linear_primitive

# Each takes e, r, q and t, and the axes of a row.
Kernel = Callable[..., Array]


def _total(x: Array, axes: Axes) -> Array:
    return jnp.sum(x, axes, keepdims=True)


def _other_products(e: Array, t: Array, r: Array) -> Array:
    return jnp.where(e * r > MOST, 0, e * r * t)


def _other_values(e: Array, g: Array, r: Array) -> Array:
    return jnp.where(e * r > MOST, 0, g)


def _log_kernel(e: Array, r: Array, q: Array, t: Array, *, axes: Axes) -> Array:
    whole = _total(e * r * t, axes)
    others = normalizer.repaired(
        q < 1 - MOST, whole, lambda: normalizer.blocked_sum(_other_products, [e, t], [r], axes)
    )
    return jnp.where(e * r > MOST, q * t - others, t - whole)


def _log_transposed_kernel(e: Array, r: Array, q: Array, g: Array, *, axes: Axes) -> Array:
    whole = _total(g, axes)
    others = normalizer.repaired(q < 1 - MOST, whole, lambda: normalizer.blocked_sum(_other_values, [e, g], [r], axes))
    return jnp.where(e * r > MOST, q * g - e * r * others, g - e * r * whole)


def _share_kernel(e: Array, r: Array, q: Array, t: Array, *, axes: Axes) -> Array:
    return (e * r) * _log_kernel(e, r, q, t, axes=axes)


def _primitive(name: str, kernel: Kernel, transpose: Callable[..., Array]) -> Kernel:
    def batch(size: int, operands: Sequence[Array], batch_axes: Sequence[int | None], *, axes: Axes) -> Array:
        moved = [
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, batch_axes)
        ]
        return bind(*moved, axes=tuple(i + 1 for i in axes))

    bind = linear_primitive(
        name,
        kernels={None: kernel},
        shape=lambda e, r, q, t, *, axes: e * r * q * t,
        transposes={3: lambda g, e, r, q, t, *, axes: transpose(e, r, q, g, axes)},
        batch=batch,
    )
    return bind


_log_primitive = _primitive("log_share_jvp", _log_kernel, lambda e, r, q, g, axes: of_log_transposed(e, r, q, g, axes))
_log_transposed_primitive = _primitive(
    "log_share_vjp", _log_transposed_kernel, lambda e, r, q, g, axes: of_log(e, r, q, g, axes)
)
_share_primitive = _primitive("share_jvp", _share_kernel, lambda e, r, q, g, axes: of_shares(e, r, q, g, axes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def of_log(e: Array, r: Array, q: Array, t: Array, axes: Axes) -> Array:
    """t - Σ p t."""
    return _log_primitive(e, r, q, t, axes=axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def of_log_transposed(e: Array, r: Array, q: Array, g: Array, axes: Axes) -> Array:
    """g - p Σ g."""
    return _log_transposed_primitive(e, r, q, g, axes=axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def of_shares(e: Array, r: Array, q: Array, t: Array, axes: Axes) -> Array:
    """p (t - Σ p t)."""
    return _share_primitive(e, r, q, t, axes=axes)


def _rule(function: Callable[..., Array], in_e: Callable[..., Array]) -> Callable[..., Any]:
    """The rule of a function linear in t, with its derivative in e; the row's r and q follow from e."""

    def jvp(axes: Axes, primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
        (e, r, q, t), (de, _, _, dt) = primals, tangents
        value = function(e, r, q, t, axes)
        tangent = jnp.zeros_like(value) if isinstance(dt, SymbolicZero) else function(e, r, q, dt, axes)
        return value, tangent if isinstance(de, SymbolicZero) else tangent + in_e(e, r, q, t, de * r, axes)

    return jvp


of_log.defjvp(_rule(of_log, lambda e, r, q, t, dp, axes: -_total(dp * t, axes)), symbolic_zeros=True)
of_log_transposed.defjvp(
    _rule(of_log_transposed, lambda e, r, q, g, dp, axes: -dp * _total(g, axes)), symbolic_zeros=True
)
of_shares.defjvp(
    _rule(of_shares, lambda e, r, q, t, dp, axes: dp * of_log(e, r, q, t, axes) - e * r * _total(dp * t, axes)),
    symbolic_zeros=True,
)
