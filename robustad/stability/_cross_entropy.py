r"""Cross-entropies of logits, with gradients p - y that do not cancel."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from . import _centring as centring
from . import _normalizer as normalizer
from ._arguments import Axes, axis_of, integers, joint_shape, mask_of, numbers, refuse_complex, refuse_traced, working
from ._custom_jvp import custom_jvp
from ._elementwise import elementwise
from ._logistic import sigmoid_slope, sigmoid_words, softplus_words
from ._normalizer import MOST
from ._softmax import log_softmax

OF_COMPLEX = "Give real logits: `logits.real`, or `jnp.abs(logits)`."
_OF_COMPLEX_LABELS = "Labels are classes or probabilities: give `labels.real`."


class Target(NamedTuple):
    """What of a row's label the formulas need; the axis of classes has length 1."""

    index: Array
    logit: Array  # 0 where the index is out of range
    valid: Array


def target_of(a: Array, labels: Array, axis: int, first: ArrayLike = 0) -> Target:
    """For integer labels; `first` is the index of the first class in `a`."""
    index = jnp.expand_dims(labels, axis) - first
    valid = (index >= 0) & (index < a.shape[axis])
    logit = jnp.take_along_axis(a, jnp.where(valid, index, 0), axis)
    return Target(index, jnp.where(valid, logit, 0), valid)


class Parts(NamedTuple):
    """What loss and gradient of a row are made of."""

    total: normalizer.Total
    target: Target
    share: Array  # the largest
    rest: Array  # 1 - it, carefully summed where the label has most of its row: there it is all of the loss


def _parts(a: Array, labels: Array, axis: int, bounded: bool) -> Parts:
    total = normalizer.total(a, (axis,), bounded=bounded)
    share = normalizer.share_of_maximum(total)
    target = target_of(a, labels, axis)
    confident = (share > MOST) & (target.logit == total.maximum)
    return Parts(total, target, share, normalizer.rest(a, total, (axis,), needed=confident))


def _loss_of(parts: Parts) -> Array:
    """log Σ exp(a - m) + (m - a[label]): two terms that are not negative."""
    logit, m = parts.target.logit, parts.total.maximum
    loss = normalizer.log_of_sum(parts.share, parts.rest) + jnp.where(logit == m, 0, m - logit)
    return jnp.where(parts.target.valid, loss, jnp.nan)


@functools.partial(custom_jvp, nondiff_argnums=(2,))
def _hard_loss(a: Array, labels: Array, axis: int) -> Array:
    parts = _parts(a, labels, axis, bounded=False)
    infinite = parts.total.maximum == jnp.inf
    return normalizer.repaired(infinite, _loss_of(parts), lambda: _loss_of(_parts(a, labels, axis, bounded=True)))


@_hard_loss.defjvp
def _hard_loss_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (a, labels), (t, _) = primals, tangents
    loss, slope = _hard_loss_and_gradient(a, labels, axis)
    return loss, jnp.sum(slope * t, axis, keepdims=True)


@functools.partial(custom_jvp, nondiff_argnums=(2,))
def _hard_loss_and_gradient(a: Array, labels: Array, axis: int) -> tuple[Array, Array]:
    """The gradient is p - y, at the label -(1 - p) from the sum of the others; 0 at a label that is masked."""
    parts = _parts(a, labels, axis, bounded=True)
    target, row = parts.target, centring.Row(parts.total.shift, normalizer.inverse(parts.total), parts.rest)
    share = centring.shares(target.logit, row)
    complement = jnp.where(share > MOST, row.rest, 1 - share)
    here = lax.broadcasted_iota(target.index.dtype, a.shape, axis) == target.index
    complement = jnp.where(target.logit == -jnp.inf, 0, complement)
    factor = jnp.where(target.valid, 1, jnp.nan)
    shares = centring.shares(a, row._replace(factor=row.factor * factor))
    return _loss_of(parts), jnp.where(here, -complement * factor, shares)


@_hard_loss_and_gradient.defjvp
def _hard_loss_and_gradient_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    (a, labels), (t, _) = primals, tangents
    loss, slope = _hard_loss_and_gradient(a, labels, axis)
    turn = centring.of_shares(a, centring.row_of(a, (axis,)), t, (axis,))
    return (loss, slope), (jnp.sum(slope * t, axis, keepdims=True), turn)


@custom_jvp
def _weighted(weight: Array, nats: Array) -> Array:
    """weight · nats, 0 where the weight is 0, also where the nats are infinite."""
    return jnp.where(weight == 0, 0, weight * nats)


def _weighted_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (weight, nats), (dw, dn) = primals, tangents
    terms = [x * t for x, t in ((nats, dw), (weight, dn)) if not isinstance(t, SymbolicZero)]
    return _weighted(weight, nats), functools.reduce(jnp.add, terms)


_weighted.defjvp(_weighted_jvp, symbolic_zeros=True)


def _soft_loss(a: Array, y: Array, axes: Axes) -> Array:
    return jnp.sum(_weighted(y, -log_softmax(a, axes)), axes, keepdims=True)


def _uniform_loss(a: Array, axis: int) -> Array:
    """The mean of -log p over the classes that are not masked."""
    counted = a != -jnp.inf
    nats = jnp.where(counted, -log_softmax(a, axis), 0)
    return jnp.sum(nats, axis, keepdims=True) / jnp.maximum(1, jnp.sum(counted, axis, keepdims=True, dtype=a.dtype))


@functools.partial(jax.jit, static_argnames=("axis", "smoothing", "hard"))
def _loss(a: Array, labels: Array, ignored: Array | None, axis: int, smoothing: float, hard: bool) -> Array:
    if ignored is not None:
        a = jnp.where(jnp.expand_dims(ignored, axis), 0, a)
        if hard:
            labels = jnp.where(ignored, 0, labels)
    loss = _hard_loss(a, labels, axis) if hard else _soft_loss(a, labels, (axis,))
    if smoothing:
        weight = 1 if hard else jnp.sum(labels, axis, keepdims=True)
        loss = (1 - smoothing) * loss + smoothing * weight * _uniform_loss(a, axis)
    loss = jnp.squeeze(loss, axis)
    return loss if ignored is None else jnp.where(ignored, 0, loss)


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> Array:
    r""":math:`-\sum_i y_i \log p_i` of each row, with :math:`p = \operatorname{softmax}(\text{logits})`.

    As :math:`\sum_i y_i (\log \sum_j e^{a_j - m} + (m - a_i))`, whose terms are not negative: nothing cancels. The
    usual :math:`\log \sum e^a - a_y` loses the digits of a loss that is small beside the logits, and is 0 for a
    label with nearly the whole row. The gradient :math:`p_i - y_i` is within 2 units in the last place of 1, and at
    a label with most of its row it is :math:`-\sum_{j \ne y} p_j`, to 4 ulp.

    A logit of -inf is masked: its gradient is exactly 0. If a masked class is a target, the loss is +inf, and the
    gradient is still p - y but for the masked entries. A class with probability 0 in `labels` contributes 0.

    Args:
      logits: real array, with the classes along `axis`.
      labels: integers, of the shape of `logits` without `axis`; or probabilities, of the shape of `logits`,
        differentiable.
      axis: the dimension of the classes.
      where: bool array that broadcasts with `logits`; classes that are False are masked.
      label_smoothing: the share of the target that is spread evenly over the classes of the row that are not masked.
      ignore_index: rows with this label have loss 0 and gradient 0, whatever their logits are. For integer labels.

    Returns:
      The loss of each row, of the dtype of `logits`; NaN where an integer label is out of range.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> x = jnp.array([40.0, 0.0, -jnp.inf])
    >>> print(st.softmax_cross_entropy(x, 0), jax.grad(st.softmax_cross_entropy)(x, 0))
    4.248354e-18 [-4.248354e-18  4.248354e-18  0.000000e+00]
    """
    a, dtype = working("softmax_cross_entropy", logits, "logits", OF_COMPLEX)
    a = normalizer.masked(a, mask_of("softmax_cross_entropy", where, a.shape, "logits", may_add_axes=True))
    i = axis_of("softmax_cross_entropy", axis, a.ndim)
    numbers("softmax_cross_entropy", labels=labels)
    y = jnp.asarray(labels)
    refuse_complex("softmax_cross_entropy", "labels", y.dtype, _OF_COMPLEX_LABELS)
    hard = jnp.issubdtype(y.dtype, jnp.integer)
    rows = a.shape[:i] + a.shape[i + 1 :]
    expected = rows if hard else a.shape
    if y.shape != expected:
        kind = (
            "integer labels: the shape of `logits` without `axis`" if hard else "probabilities: the shape of `logits`"
        )
        raise ValueError(
            f"softmax_cross_entropy: `labels` have shape {y.shape}, expected {expected} ({kind}), with `logits` of shape "
            f"{a.shape} and `axis` {axis}. Convert one-hot integers to a float dtype."
        )
    mix = "Pass it as a static argument, or mix two losses."
    refuse_traced("softmax_cross_entropy", "label_smoothing", label_smoothing, "a number", mix)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"softmax_cross_entropy: `label_smoothing` is {label_smoothing}, expected a number in [0, 1].")
    if ignore_index is not None and not hard:
        raise ValueError(
            "softmax_cross_entropy: `ignore_index` needs integer `labels`. Give rows to ignore probabilities 0 instead."
        )
    ignored = None if ignore_index is None else y == ignore_index
    y = integers("softmax_cross_entropy", y, "labels") if hard else y.astype(a.dtype)
    return _loss(a, y, ignored, axis=i, smoothing=float(label_smoothing), hard=bool(hard)).astype(dtype)


_constant = [elementwise()(f) for f in (lambda x, y: 0 * y, lambda x, y: 0 * y - 1)]
_binary_xx = elementwise()(lambda x, y: sigmoid_slope(x))
_binary_y = elementwise(_constant[1], _constant[0])(lambda x, y: -x)  # log(1 + e⁻ˣ) - log(1 + eˣ), which cancel


@elementwise(_binary_xx, _constant[1])
def _binary_x(x: Array, y: Array) -> Array:
    return (1 - y) * sigmoid_words(x) - y * sigmoid_words(-x)


@elementwise(_binary_x, _binary_y)
def _binary(x: Array, y: Array) -> Array:
    one, zero = softplus_words(-x), softplus_words(x)
    return jnp.where(y == 0, 0, y * one) + jnp.where(y == 1, 0, (1 - y) * zero)


def sigmoid_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    r""":math:`-y \log s - (1 - y) \log(1 - s)` of each element, with :math:`s = 1/(1 + e^{-a})`.

    As :math:`y \log(1 + e^{-a}) + (1 - y) \log(1 + e^a)`, whose terms are not negative for labels in [0, 1]. By
    hand, log(1 - s) is -inf from 17 on (float32); :math:`\max(a, 0) - a y + \dots` loses the digits of a small loss.
    The gradient s - y is :math:`(1 - y) s(a) - y s(-a)`: at labels 0 and 1 within 4 ulp, however small.

    Args:
      logits: real array; at -inf and +inf the loss of the label that fits is 0.
      labels: array that broadcasts with `logits`; 0, 1, or a probability. Differentiable.

    Returns:
      The loss of each element, of the dtype of `logits`.

    >>> import jax
    >>> from robustad import stability as st
    >>> print(st.sigmoid_cross_entropy(40.0, 1), jax.grad(st.sigmoid_cross_entropy)(40.0, 1))
    4.248354e-18 -4.248354e-18
    """
    a, dtype = working("sigmoid_cross_entropy", logits, "logits", OF_COMPLEX)
    numbers("sigmoid_cross_entropy", labels=labels)
    refuse_complex("sigmoid_cross_entropy", "labels", jnp.result_type(labels), _OF_COMPLEX_LABELS)
    y = jnp.asarray(labels).astype(a.dtype)
    shape = joint_shape("sigmoid_cross_entropy", logits=a.shape, labels=y.shape)
    return _binary(jnp.broadcast_to(a, shape), jnp.broadcast_to(y, shape)).astype(dtype)
