r"""The derivatives of shares :math:`p = e^a / \sum e^a` as linear operations that do not cancel.

    log Σ eᵃ has the derivative    Σ p t             transposed  p g
    log p    has the derivative    t - Σ p t         transposed  g - p Σ g
    p        has the derivative    p (t - Σ p t)     its own transpose

Where one share is nearly 1, the latter two cancel for its entry. There they are

    q t - Σ' p t,   q g - p Σ' g,   p (q t - Σ' p t),

with q = 1 - p from the sum of the other shares, and Σ' the sum over the others: computed only if a row has such an
entry. An entry of -inf has no derivative: outside of the sums its t and g count as 0.

The shares come as a, c and r: p = exp(a - c) r, so that programs hold nothing of the size of a beside a itself. The
row's c, r and q follow from a, and their own tangents are not asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from . import _normalizer as normalizer
from ._arguments import Axes
from ._custom_jvp import custom_jvp
from ._normalizer import MOST
from ._primitive import batch_first, linear_primitive

# Each takes a, c, r, q and t, and the axes of a row.
Kernel = Callable[..., Array]


class Row(NamedTuple):
    """What the shares of a row are made of, beside its entries; the axes kept with length 1."""

    shift: Array  # c
    factor: Array  # r
    rest: Array  # q = 1 - the largest share


def shares(a: Array, row: Row) -> Array:
    return normalizer.terms(a, row.shift) * row.factor


def _total(x: Array, axes: Axes) -> Array:
    return jnp.sum(x, axes, keepdims=True)


def _other_products(a: Array, t: Array, c: Array, r: Array) -> Array:
    p = normalizer.terms(a, c) * r
    return jnp.where(p > MOST, 0, p * t)


def _other_values(a: Array, g: Array, c: Array, r: Array) -> Array:
    return jnp.where(normalizer.terms(a, c) * r > MOST, 0, g)


def _others(term: Kernel, whole: Array, a: Array, row: Row, x: Array, axes: Axes) -> Array:
    """The sum without the entry of the largest share: where there is one."""
    rows = [row.shift, row.factor]
    return normalizer.repaired(row.rest < 1 - MOST, whole, lambda: normalizer.blocked_sum(term, [a, x], rows, axes))


def _log_kernel(a: Array, c: Array, r: Array, q: Array, t: Array, *, axes: Axes) -> Array:
    p = shares(a, Row(c, r, q))
    whole = _total(p * t, axes)
    others = _others(_other_products, whole, a, Row(c, r, q), t, axes)
    return jnp.where(p > MOST, q * t - others, jnp.where(a == -jnp.inf, 0, t) - whole)


def _log_transposed_kernel(a: Array, c: Array, r: Array, q: Array, g: Array, *, axes: Axes) -> Array:
    p = shares(a, Row(c, r, q))
    whole = _total(g, axes)
    others = _others(_other_values, whole, a, Row(c, r, q), g, axes)
    return jnp.where(p > MOST, q * g - p * others, jnp.where(a == -jnp.inf, 0, g) - p * whole)


def _share_kernel(a: Array, c: Array, r: Array, q: Array, t: Array, *, axes: Axes) -> Array:
    return shares(a, Row(c, r, q)) * _log_kernel(a, c, r, q, t, axes=axes)


def _mean_kernel(a: Array, c: Array, r: Array, q: Array, t: Array, *, axes: Axes) -> Array:
    return _total(shares(a, Row(c, r, q)) * t, axes)


def _mean_transposed_kernel(a: Array, c: Array, r: Array, q: Array, g: Array, *, axes: Axes) -> Array:
    return shares(a, Row(c, r, q)) * g


def _like_entries(a: Array, c: Array, r: Array, q: Array, t: Array, *, axes: Axes) -> Array:
    return a * c * r * q * t


def _primitive(name: str, kernel: Kernel, transpose: Callable[..., Array], shape: Kernel = _like_entries) -> Kernel:
    def batch(size: int, operands: Sequence[Array], batch_axes: Sequence[int | None], *, axes: Axes) -> Array:
        return bind(*batch_first(size, operands, batch_axes), axes=tuple(i + 1 for i in axes))

    bind = linear_primitive(
        name,
        kernels={None: kernel},
        shape=shape,
        transposes={4: lambda g, a, c, r, q, t, *, axes: transpose(a, Row(c, r, q), g, axes)},
        batch=batch,
    )
    return bind


_log_primitive = _primitive("log_share_jvp", _log_kernel, lambda *args: of_log_transposed(*args))
_log_transposed_primitive = _primitive("log_share_vjp", _log_transposed_kernel, lambda *args: of_log(*args))
_mean_primitive = _primitive("mean_jvp", _mean_kernel, lambda *args: of_mean_transposed(*args), shape=_mean_kernel)
_mean_transposed_primitive = _primitive("mean_vjp", _mean_transposed_kernel, lambda *args: of_mean(*args))
_share_primitive = _primitive("share_jvp", _share_kernel, lambda *args: of_shares(*args))


@functools.partial(custom_jvp, nondiff_argnums=(3,))
def of_log(a: Array, row: Row, t: Array, axes: Axes) -> Array:
    """t - Σ p t."""
    return _log_primitive(a, *row, t, axes=axes)


@functools.partial(custom_jvp, nondiff_argnums=(3,))
def of_log_transposed(a: Array, row: Row, g: Array, axes: Axes) -> Array:
    """g - p Σ g."""
    return _log_transposed_primitive(a, *row, g, axes=axes)


@functools.partial(custom_jvp, nondiff_argnums=(3,))
def of_shares(a: Array, row: Row, t: Array, axes: Axes) -> Array:
    """p (t - Σ p t)."""
    return _share_primitive(a, *row, t, axes=axes)


@functools.partial(custom_jvp, nondiff_argnums=(3,))
def of_mean(a: Array, row: Row, t: Array, axes: Axes) -> Array:
    """Σ p t, the axes kept."""
    return _mean_primitive(a, *row, t, axes=axes)


@functools.partial(custom_jvp, nondiff_argnums=(3,))
def of_mean_transposed(a: Array, row: Row, g: Array, axes: Axes) -> Array:
    """p g."""
    return _mean_transposed_primitive(a, *row, g, axes=axes)


def _rule(function: Callable[..., Array], in_shares: Callable[..., Array]) -> Callable[..., Any]:
    """The rule of a function linear in t, with its derivative in the shares."""

    def jvp(axes: Axes, primals: tuple[Array, Row, Array], tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
        (a, row, t), (da, _, dt) = primals, tangents
        value = function(a, row, t, axes)
        tangent = jnp.zeros_like(value) if isinstance(dt, SymbolicZero) else function(a, row, dt, axes)
        if isinstance(da, SymbolicZero):
            return value, tangent
        return value, tangent + in_shares(a, row, t, of_shares(a, row, da, axes), axes)

    return jvp


of_mean.defjvp(_rule(of_mean, lambda a, row, t, dp, axes: _total(dp * t, axes)), symbolic_zeros=True)
of_mean_transposed.defjvp(_rule(of_mean_transposed, lambda a, row, g, dp, axes: dp * g), symbolic_zeros=True)
of_log.defjvp(_rule(of_log, lambda a, row, t, dp, axes: -_total(dp * t, axes)), symbolic_zeros=True)
of_log_transposed.defjvp(
    _rule(of_log_transposed, lambda a, row, g, dp, axes: -dp * _total(g, axes)), symbolic_zeros=True
)
of_shares.defjvp(
    _rule(
        of_shares,
        lambda a, row, t, dp, axes: (
            dp * of_log(a, row, t, axes) - of_mean_transposed(a, row, _total(dp * t, axes), axes)
        ),
    ),
    symbolic_zeros=True,
)


@functools.partial(custom_jvp, nondiff_argnums=(1, 2))
def row_of(a: Array, axes: Axes, shared: bool = True) -> Row:
    """Of the entries' rows; not `shared`, the exponentials are summed where they are made, and made again for the shares."""
    total = normalizer.total(a, axes, bounded=shared)
    if not shared:
        bounded = normalizer.repaired(total.maximum == jnp.inf, total.sum, lambda: normalizer.total(a, axes).sum)
        total = total._replace(sum=bounded)
    return row_of_total(a, total, axes)


@row_of.defjvp
def _row_of_jvp(axes: Axes, shared: bool, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Row, Row]:
    row = row_of(primals[0], axes, shared)
    return row, constant(row)


def row_of_total(a: Array, total: normalizer.Total, axes: Axes) -> Row:
    return Row(total.shift, normalizer.inverse(total), normalizer.rest(a, total, axes))


def constant(row: Row) -> Row:
    """Its tangent: what changes with the entries is in the rules of the linear operations."""
    return Row(*map(jnp.zeros_like, row))
