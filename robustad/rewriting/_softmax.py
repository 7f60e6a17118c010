"""Sums of exponentials as normalisers: logsumexp, softmax and log-softmax written by hand.

A shift by a maximum, detached or not, is seen through: softmax and log-softmax do not depend on it.
"""

import dataclasses
import math

from jax import Array, lax

from robustad import stability as st
from robustad.rewriting._graph import Term, scalar, unwrapped
from robustad.rewriting._layout import is_spread_of, reduced_axes, spread
from robustad.rewriting._rewriter import Rewriter, replaced, rule
from robustad.rewriting.twins import _shares as shares
from robustad.rewriting.twins._composites import composite
from robustad.rewriting.twins._composites_reductions import first_axes


@dataclasses.dataclass(frozen=True)
class Normalized:
    """What is normalised over which axes."""

    logits: Term
    axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LogTotal:
    """log Σ exp(logits) over axes; axis i of the sum is axis dims[i] of the term."""

    logits: Term
    axes: tuple[int, ...]
    dims: tuple[int, ...]


def softmax_of(term: Term) -> Normalized | None:
    """What exp(u) / Σ exp(u) is the softmax of."""
    if term.name != "div":
        return None
    top, bottom = (unwrapped(t) for t in term.operands)
    total = spread(bottom).source
    axes = reduced_axes(total, "reduce_sum")
    if axes is None or top.name != "exp":
        return None
    summed = unwrapped(total.operands[0])
    if summed is not top or not is_spread_of(bottom, total, axes, len(top.shape)):
        return None
    return Normalized(_unshifted(top.operands[0], axes), axes)


def log_softmax_of(term: Term) -> Normalized | None:
    """What u - log Σ exp(u), or a call of `jax.nn.log_softmax`, is the log-softmax of."""
    if term.name == "jit" and term.params.get("name") == "log_softmax":
        eqn = term.step.equation
        whole = composite(eqn) if eqn is not None else None
        if eqn is None or whole is None or whole.name != "log_softmax" or len(term.operands) != 1:
            return None
        return Normalized(term.operands[0], first_axes(eqn))
    if term.name != "sub":
        return None
    u, normalizer = (unwrapped(t) for t in term.operands)
    if (total := log_total_of(normalizer)) is None:
        return None
    rank = len(u.shape)
    if total.logits is not u or len(normalizer.shape) not in (rank, 0):
        return None
    if not normalizer.shape and len(total.axes) != rank:
        return None
    remaining = [a for a in range(rank) if a not in total.axes]
    if any(d not in (a, -1) for d, a in zip(total.dims, remaining)):
        return None
    return Normalized(_unshifted(u, total.axes), total.axes)


def log_total_of(term: Term) -> LogTotal | None:
    """What a term is the log of the sum of the exponentials of."""
    seen = spread(term)
    inner = seen.source
    if inner.name == "add":
        for log, shift in (inner.operands, inner.operands[::-1]):
            if (total := log_total_of(log)) is None or total.logits.name != "sub":
                continue
            u, m = total.logits.operands
            detached = _is_maximum(m)  # of which the sum does not depend; another shift does
            back, away = spread(shift, detached), spread(m, detached)
            placed_back = all(d == t or n == 1 for d, t, n in zip(back.dims, total.dims, back.source.shape))
            same = back.source is away.source and len(back.dims) == len(total.dims) and placed_back
            if same and is_spread_of(m, away.source, total.axes, len(u.shape), detached):
                return LogTotal(u, total.axes, _composed(seen.dims, total.dims))
        return None
    if inner.name != "log":
        return None
    below = spread(inner.operands[0])
    dims = below.dims
    if below.source.name == "abs":
        further = spread(below.source.operands[0])
        below, dims = further, _composed(dims, further.dims)
    axes = reduced_axes(below.source, "reduce_sum")
    if axes is None:
        return None
    exponential = unwrapped(below.source.operands[0])
    if exponential.name != "exp":
        return None
    return LogTotal(exponential.operands[0], axes, _composed(seen.dims, dims))


def _composed(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(outer[d] if d >= 0 else -1 for d in inner)


def _unshifted(u: Term, axes: tuple[int, ...]) -> Term:
    """u without a shift that is the same along the axes."""
    seen = unwrapped(u)
    if seen.name not in ("sub", "add"):
        return u
    for x, m in (seen.operands, seen.operands[::-1]) if seen.name == "add" else (seen.operands,):
        away = spread(m, True)
        constant_along = all(a not in away.dims or away.source.shape[away.dims.index(a)] == 1 for a in axes)
        if x.shape == seen.shape and constant_along and away.source.name in ("reduce_max", "max", "select_n"):
            return x
    return u


def placed(value: Array, dims: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """A reduced array with its axes put at `dims` of an array of that shape; -1 for axes of size 1 that are not there."""
    kept = [d for d in dims if d >= 0]
    value = value.reshape([n for n, d in zip(value.shape, dims) if d >= 0])
    return lax.broadcast_in_dim(value, shape, kept)


def _is_maximum(term: Term) -> bool:
    """Whether a shift is a maximum, perhaps made finite."""
    term = spread(term, True).source
    while term.name in ("select_n", "max"):
        (term, *more) = [spread(t, True).source for t in term.operands if t.floating and scalar(t) is None] or [term]
        if more or term.name in ("select_n", "max"):
            return False
    return term.name == "reduce_max"


@rule("log")
def log_of_shifted_sum(term: Term, rw: Rewriter) -> Term | None:
    """log Σ exp(u - max u), as `jax.nn.logsumexp` has it: right but for a row of -inf, whose derivative is 0 / 0."""
    if (total := log_total_of(term)) is None or total.logits.name != "sub" or not _is_maximum(total.logits.operands[1]):
        return None
    (inner,) = term.operands

    def run(s: Array) -> Array:
        empty = s == 0
        return lax.select(empty, lax.full_like(s, -math.inf), lax.log(lax.select(empty, lax.full_like(s, 1), s)))

    return replaced(
        term, "logsumexp", run, [rw(inner)],
        before="log(sum(exp(x - max(x))))", after="the same, with derivative 0 where the sum is 0",
        reason="a row of -inf has the sum 0, and the derivative 0 / 0", elementwise=True,
    )  # fmt: skip


@rule("add")
def shifted_logsumexp(term: Term, rw: Rewriter) -> Term | None:
    """log Σ exp(u - m) + m for a shift that is not the maximum."""
    if (total := log_total_of(term)) is None or any(rw.by_rule(t) is not None for t in term.operands):
        return None
    return replaced(
        term, "logsumexp",
        lambda u: placed(st.logsumexp(u, total.axes), total.dims, term.shape), [rw(total.logits)],
        before="log(sum(exp(x - m))) + m", after="logsumexp(x)",
        reason="a row of -inf, and a sum near 1, lose the value or the derivative",
    )  # fmt: skip


@rule("sub")
def log_softmax(term: Term, rw: Rewriter) -> Term | None:
    """u - log Σ exp(u): overflows without a shift, and with one loses the log-probability of a confident entry."""
    if (soft := log_softmax_of(term)) is None:
        return None
    return replaced(
        term, "log_softmax", lambda u: shares.log_softmax(u, soft.axes), [rw(soft.logits)],
        before="x - log(sum(exp(x)))", after="log_softmax(x)",
        reason="the difference cancels where one entry has all the probability; exp(x) overflows from 88.7 (float32)",
    )  # fmt: skip


@rule("div")
def softmax(term: Term, rw: Rewriter) -> Term | None:
    """exp(u) / Σ exp(u): inf / inf from 88.7 (float32), and 1 - p is lost in the derivative of a confident entry."""
    if (soft := softmax_of(term)) is None:
        return None
    return replaced(
        term, "softmax", lambda u: shares.softmax(u, soft.axes), [rw(soft.logits)],
        before="exp(x) / sum(exp(x))", after="softmax(x)",
        reason="exp(x) overflows from 88.7 (float32); the derivative of a confident entry cancels",
    )  # fmt: skip


@rule("exp")
def softmax_of_log(term: Term, rw: Rewriter) -> Term | None:
    """exp(u - log Σ exp(u))."""
    if (soft := log_softmax_of(unwrapped(term.operands[0]))) is None:
        return None
    return replaced(
        term, "softmax", lambda u: shares.softmax(u, soft.axes), [rw(soft.logits)],
        before="exp(x - log(sum(exp(x))))", after="softmax(x)", reason="the derivative of a confident entry cancels",
    )  # fmt: skip
