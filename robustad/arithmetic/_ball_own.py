"""Rules of the exact twins for the primitives of `robustad.stability`: what their kernels compute, without rounding."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustad._jaxpr import Equation
from robustad.arithmetic._ball import Ball, boxed, exact, flint, mapped, zero
from robustad.arithmetic._ball_limits import square_root
from robustad.arithmetic._ball_reductions import product
from robustad.arithmetic._ball_rules import rule

Twins = list[np.ndarray | None]


def _sum(x: np.ndarray, axes: Sequence[int], keepdims: bool = False) -> np.ndarray:
    return boxed(np.add.reduce(x, tuple(axes), initial=zero(x), keepdims=keepdims))


@rule("compensated_sum", "order_free_sum", "pairwise_sum", "kahan_sum")
def _summed(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    """Over a count, if they have one."""
    x, *count = (exact(v) for v in operands)
    total = _sum(x, eqn.params["axes"])
    return [boxed(total / count[0]) if count else total]


@rule("compensated_sum_transpose", "order_free_sum_transpose", "pairwise_sum_transpose", "kahan_sum_transpose")
def _spread(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    x = np.expand_dims(exact(operands[0]), tuple(eqn.params["axes"]))
    return [np.broadcast_to(x, eqn.params["shape"])]


@rule("order_free_zero")
def _zeros(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    return [np.full(np.shape(working[0]), zero(exact(operands[0])))]


@rule("attach_tangent")
def _value(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    return [exact(operands[0])]


@rule("compensated_matmul")
def _matmul(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    a, b = (exact(v) for v in operands)
    return [product(a, b)]


@rule("order_free_dot")
def _dots(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    a, b = (exact(v) for v in operands)
    return [product(a, b.swapaxes(1, 2))]


@rule("order_free_norm")
def _norms(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    return [mapped(square_root, _sum(exact(operands[0]) ** 2, [1]))]


@rule("order_free_segment_sum")
def _segment_sum(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    rows, ids = exact(operands[0]), np.asarray(operands[1].working)
    out = np.full(np.shape(working[0]), zero(rows))
    inside = (ids >= 0) & (ids < len(out))
    np.add.at(out, ids[inside], rows[inside])
    return [out]


@rule("order_free_gather")
def _gathered(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    rows, ids = exact(operands[0]), np.asarray(operands[1].working)
    inside = (ids >= 0) & (ids < len(rows))
    nothing = np.append(rows, np.full((1, *rows.shape[1:]), zero(rows)), 0)
    return [nothing[np.where(inside, ids, len(rows))]]


@rule("scaled_down", "mantissa")
def _scaled(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    """x 2⁻ᵏ with the exponent of the working program."""
    k = np.asarray(operands[1].working).astype(int)
    return [mapped(lambda x, k: x * flint().arb(2) ** int(-k), exact(operands[0]), k)]


@rule("log_share_jvp", "log_share_vjp", "share_jvp", "mean_jvp", "mean_vjp")
def _centred(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any]) -> Twins:
    """The derivatives of shares p = exp(a - c) r: see `stability._centring`."""
    (a, c, r, _, t), axes, name = (exact(v) for v in operands), eqn.params["axes"], eqn.primitive.name
    p = mapped(lambda x: x.exp(), a - c) * r
    if name == "mean_vjp":
        return [p * t]
    if name == "mean_jvp":
        return [_sum(p * t, axes, True)]
    missing = np.asarray(operands[0].working) == -np.inf
    own = np.where(missing, zero(t), t)
    if name == "log_share_vjp":
        return [boxed(own - p * _sum(np.broadcast_to(t, p.shape), axes, True))]
    centred = own - _sum(p * t, axes, True)
    return [boxed(p * centred if name == "share_jvp" else centred)]
