"""Logsumexp and cross-entropy of logits whose classes are sharded over a mesh axis, inside `jax.shard_map`.

`jax.lax.pmax` has no derivative, and needs none here: the maximum is only a shift.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from . import _normalizer as normalizer
from ._arguments import Axes, axis_of, integers, names, numbers, working
from ._cross_entropy import OF_COMPLEX, target_of
from ._normalizer import MOST, Total


def _total(a: Array, axes: Axes, name: str) -> Total:
    m = lax.pmax(normalizer.maximum(a, axes), name)
    c = normalizer.shift(m)
    return Total(m, c, lax.psum(jnp.sum(normalizer.terms(a, c), axes, keepdims=True), name))


def _rest(p: Array, total: Total, axes: Axes, name: str) -> Array:
    largest = normalizer.share_of_maximum(total)
    others = lax.psum(jnp.sum(jnp.where(p > MOST, 0, p), axes, keepdims=True), name)
    return jnp.where(largest > MOST, others, 1 - largest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _shares(a: Array, axes: Axes, name: str) -> tuple[Array, Array]:
    """The shares, and what the largest of a row leaves, which carries no derivative."""
    total = _total(a, axes, name)
    p = normalizer.terms(a, total.shift) * normalizer.inverse(total)
    return p, _rest(p, total, axes, name)


@_shares.defjvp
def _shares_jvp(axes: Axes, name: str, primals: tuple[Array], tangents: tuple[Array]):
    (a,), (t,) = primals, tangents
    p, q = _shares(a, axes, name)
    top = p > MOST
    whole = lax.psum(jnp.sum(p * t, axes, keepdims=True), name)
    others = lax.psum(jnp.sum(jnp.where(top, 0, p * t), axes, keepdims=True), name)
    return (p, q), (p * jnp.where(top, q * t - others, t - whole), jnp.zeros_like(q))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _log_sum(a: Array, axes: Axes, name: str) -> Array:
    total = _total(a, axes, name)
    value = total.shift + lax.log(total.sum)
    return jnp.where(total.maximum == jnp.inf, jnp.inf, value)


@_log_sum.defjvp
def _log_sum_jvp(axes: Axes, name: str, primals: tuple[Array], tangents: tuple[Array]):
    (a,), (t,) = primals, tangents
    p, _ = _shares(a, axes, name)
    return _log_sum(a, axes, name), lax.psum(jnp.sum(p * t, axes, keepdims=True), name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _loss(a: Array, labels: Array, axis: int, name: str) -> Array:
    total = _total(a, (axis,), name)
    _, q = _shares(a, (axis,), name)
    logit, valid, _ = _target(a, labels, axis, name)
    gap = jnp.where(logit == total.maximum, 0, total.maximum - logit)
    loss = normalizer.log_of_sum(normalizer.share_of_maximum(total), q) + gap
    return jnp.where(valid, loss, jnp.nan)


def _target(a: Array, labels: Array, axis: int, name: str) -> tuple[Array, Array, Array]:
    """The label's logit, whether there is one, and the label's index in this shard."""
    target = target_of(a, labels, axis, first=lax.axis_index(name) * a.shape[axis])
    valid = lax.psum(target.valid.astype(jnp.int32), name) > 0
    return lax.psum(target.logit, name), valid, target.index


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _slope(a: Array, labels: Array, axis: int, name: str) -> Array:
    """p - y, at the label -(1 - p) from the sum of the others; 0 at a label that is masked."""
    p, q = _shares(a, (axis,), name)
    logit, valid, index = _target(a, labels, axis, name)
    here = lax.broadcasted_iota(index.dtype, a.shape, axis) == index
    complement = jnp.where(logit == -jnp.inf, 0, jnp.where(p > MOST, q, 1 - p))
    return jnp.where(here, -complement, p) * jnp.where(valid, 1, jnp.nan)


@_slope.defjvp
def _slope_jvp(axis: int, name: str, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (a, labels), (t, _) = primals, tangents
    _, (dp, _) = jax.jvp(lambda a: _shares(a, (axis,), name), (a,), (t,))
    return _slope(a, labels, axis, name), dp


@_loss.defjvp
def _loss_jvp(axis: int, name: str, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (a, labels), (t, _) = primals, tangents
    slope = _slope(a, labels, axis, name)
    return _loss(a, labels, axis, name), lax.psum(jnp.sum(slope * t, axis, keepdims=True), name)


def sharded_logsumexp(a: ArrayLike, axis_name: str, axis: int = -1) -> Array:
    r"""`logsumexp` along an axis that is sharded over a mesh axis too; inside `jax.shard_map`.

    The result is the same on every device of the mesh axis, and within 2 ulp of the unsharded one (where that is
    near 0: relative to the largest entry). Its derivative is the softmax, by a rule of its own.

    With `check_vma=True`, and with the gradient taken outside of `shard_map`, gradients are those of the
    unsharded function. With `check_vma=False` and the gradient taken *inside*, JAX differentiates the sum of all
    devices' results, so that every collective's gradient, this one's too, is that of the mesh axis's size times the
    function: divide by `jax.lax.axis_size(axis_name)`.

    Args:
      a: this device's part of a real array.
      axis_name: the mesh axis.
      axis: the sharded dimension.

    Returns:
      An array without that dimension, of the dtype of `a`.
    """
    names("sharded_logsumexp", axis_name)
    x, dtype = working("sharded_logsumexp", a, "a", "Take the real part, or gather `a` for `jax`'s logsumexp.")
    i = axis_of("sharded_logsumexp", axis, x.ndim)
    return jnp.squeeze(_log_sum(x, (i,), axis_name), i).astype(dtype)


def sharded_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike, axis_name: str, axis: int = -1) -> Array:
    r"""`softmax_cross_entropy` with integer labels, of classes that are sharded over a mesh axis; inside
    `jax.shard_map`.

    Needs three rounds of communication of one number a row, and no gathered logits. Values, masks and gradients are
    those of `softmax_cross_entropy`, within 2 ulp. For `check_vma=False` see `sharded_logsumexp`.

    Args:
      logits: this device's part of a real array; the device at position k of the mesh axis has the k-th block of
        classes.
      labels: integers, the same on every device of the mesh axis: indices in all classes; of the shape of `logits`
        without `axis`.
      axis_name: the mesh axis.
      axis: the dimension of the classes.

    Returns:
      The loss of each row, the same on every device of the mesh axis; NaN where a label is out of range.
    """
    names("sharded_softmax_cross_entropy", axis_name)
    x, dtype = working("sharded_softmax_cross_entropy", logits, "logits", OF_COMPLEX)
    numbers("sharded_softmax_cross_entropy", labels=labels)
    i = axis_of("sharded_softmax_cross_entropy", axis, x.ndim)
    y = jnp.asarray(labels)
    expected = x.shape[:i] + x.shape[i + 1 :]
    if not jnp.issubdtype(y.dtype, jnp.integer) or y.shape != expected:
        raise ValueError(
            f"sharded_softmax_cross_entropy: `labels` are {y.dtype} of shape {y.shape}, expected integers of shape "
            f"{expected} for this device's `logits` of shape {x.shape} with `axis` {axis}."
        )
    y = integers("sharded_softmax_cross_entropy", y, "labels")
    return jnp.squeeze(_loss(x, y, i, axis_name), i).astype(dtype)
