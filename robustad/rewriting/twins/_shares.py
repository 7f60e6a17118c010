r"""Softmax, its logarithm and the logarithm of a sum of exponentials, at the price of the plain ones.

With m the index of the largest entry, p the shares and :math:`q = 1 - p_m = \sum_{i \ne m} p_i`, the derivative of
:math:`\log p_j` is

.. math:: \dot x_j - \sum_i p_i \dot x_i = (\dot x_j - \dot x_m) + r, \qquad r = q \dot x_m - \sum_{i \ne m} p_i \dot x_i,

in which 1 - p_m is not formed from a rounded p_m, and the difference is left out, not computed, for j = m. Where several
entries are the largest no share exceeds 1/2, and the plain form is right. Entries of -inf have no share and no
derivative, also in a row of nothing else.

`stability.log_softmax` keeps more digits (it repairs sums near 0), and costs more.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad.stability._custom_jvp import custom_jvp

from ._twin import in_float64

Axes = tuple[int, ...]  # negative: leading axes may be added


def _sum(x: Array, axes: Axes) -> Array:
    return jnp.sum(x, axes, keepdims=True)


@functools.partial(custom_jvp, nondiff_argnums=(1,), over_leading_axes=True)
def _log_shares(x: Array, axes: Axes) -> tuple[Array, Array, Array, Array, Array]:
    """log p, p, the logarithm of the sum, q, and the largest entry (NaN at a tie, which equals nothing)."""
    largest = jnp.max(x, axes, keepdims=True)
    one, zero = lax.full_like(largest, 1), lax.full_like(largest, 0)
    top = lax.select(lax.is_finite(largest), largest, zero)
    below = x - top
    e = lax.exp(below)
    is_largest = x == top
    count = _sum(is_largest.astype(x.dtype), axes)
    others = _sum(lax.select(is_largest, lax.full_like(e, 0), e), axes)
    total = count + others
    single = lax.eq(count, one)
    logarithm = lax.select(single, lax.log1p(others), lax.log(total))
    inverse = lax.select(lax.eq(total, zero), zero, lax.div(one, total))
    pivot = lax.select(single, top, lax.full_like(top, np.nan))
    return below - logarithm, e * inverse, top + logarithm, others * inverse, pivot


@_log_shares.defjvp
def _log_shares_jvp(axes: Axes, primals: Sequence[Array], tangents: Sequence[Array]):
    (x,), (t,) = primals, tangents
    with in_float64(x):
        outputs = _log_shares(x, axes)
        _, p, _, q, pivot = outputs
        only, none, zero = x == pivot, x == -np.inf, jnp.zeros_like(t)
        own = _sum(jnp.where(only, t, zero), axes)
        rest = q * own - _sum(jnp.where(only | none, zero, p * t), axes)
        step = jnp.where(none, zero, jnp.where(only, zero, t - own) + rest)
        return outputs, (step, p * step, own - rest, (q - 1) * rest, jnp.zeros_like(pivot))


def _wide(x: Array) -> Array:
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def _negative(axes: Axes, x: Array) -> Axes:
    return tuple(i if i < 0 else i - x.ndim for i in axes)


def _among(x: Array, where: Array | None) -> Array:
    return x if where is None else jnp.where(where, x, jnp.full_like(x, -jnp.inf))


def log_softmax(x: Array, axes: Axes, where: Array | None = None) -> Array:
    """log p; -inf outside of the mask."""
    return _log_shares(_among(_wide(x), where), _negative(axes, x))[0].astype(x.dtype)


def softmax(x: Array, axes: Axes, where: Array | None = None) -> Array:
    """p; 0 outside of the mask, and everywhere where no entry is finite."""
    return _log_shares(_among(_wide(x), where), _negative(axes, x))[1].astype(x.dtype)


def logsumexp(x: Array, axes: Axes, keepdims: bool = False, where: Array | None = None) -> Array:
    value = _log_shares(_among(_wide(x), where), _negative(axes, x))[2].astype(x.dtype)
    return value if keepdims else jnp.squeeze(value, axes)


@functools.partial(custom_jvp, nondiff_argnums=(2,), over_leading_axes=True)
def _weighted_shares(x: Array, weight: Array, axes: Axes) -> Array:
    e = _below_largest(x, weight, axes) * weight
    return e / _sum(e, axes)


def _below_largest(x: Array, weight: Array, axes: Axes) -> Array:
    """exp(x) over the largest that has a weight; finite, for those without a weight."""
    largest = jnp.max(jnp.where(weight == 0, -jnp.inf, x), axes, keepdims=True)
    below = x - jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.exp(jnp.where(weight == 0, jnp.minimum(below, np.log(jnp.finfo(x.dtype).max) - 1), below))


@_weighted_shares.defjvp
def _weighted_shares_jvp(axes: Axes, primals: Sequence[Array], tangents: Sequence[Array]):
    (x, weight), (t, s) = primals, tangents
    with in_float64(x):
        p = _weighted_shares(x, weight, axes)
        e = _below_largest(x, weight, axes)
        none = (p == 0) & (weight != 0)
        step = jnp.where(none, 0, p * t) + e * s / _sum(e * weight, axes)
        only = p == jnp.max(p, axes, keepdims=True)
        only &= _sum(only.astype(p.dtype), axes) == 1
        others, own = (_sum(jnp.where(only == mine, step, 0), axes) for mine in (False, True))
        rest = _sum(jnp.where(only, 0, p), axes)  # 1 less the largest share
        return p, jnp.where(only, step * rest - p * others, step - p * (own + others))


def weighted_softmax(x: Array, weight: Array, axes: Axes) -> Array:
    r"""\(w_i e^{x_i} / \sum_j w_j e^{x_j}\)."""
    return _weighted_shares(_wide(x), _wide(weight), _negative(axes, x)).astype(x.dtype)
