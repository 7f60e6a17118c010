r"""Angles between vectors, and cosines beside 1.

\(\arccos\) of a rounded cosine loses half of the digits of a small angle and all of its derivative's; \(1 - \cos\) loses all
digits. With unit vectors u and v, \(w = u - v\) and \(s = u + v\), the angle is \(2 \arctan(|w| / |s|)\) and
\(1 - \cos = |w|^2 / 2\) (Kahan, "How Futile are Mindless Assessments of Roundoff", 2006, section 12). Of vectors a and b
that are nearly equal, w does not come from rounded u and v:

.. math:: |a| w = (a - b) - v \delta, \qquad \delta = |a| - |b| = \frac{(a - b) \cdot (a + b)}{|a| + |b|}.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from robustad import stability as st
from robustad.rewriting._graph import Term, scalar, unwrapped
from robustad.rewriting._layout import reduced_axes, spread
from robustad.rewriting._norms import norm_of
from robustad.rewriting._rewriter import Rewriter, replaced, rule

Axes = tuple[int, ...]


class _Cosine(NamedTuple):
    """a · b / (|a| |b|) along axes."""

    a: Term
    b: Term
    axes: Axes


def _cosine(term: Term) -> _Cosine | None:
    top, bottom = _factors(term)
    if len(top) != 1 or len(bottom) > 2 or (found := _dot(top[0])) is None:
        return None
    p, q, axes = found
    (a, a_is_unit), (b, b_is_unit) = _before_unit(p, axes), _before_unit(q, axes)
    lengths = [x for x in map(_normed, bottom) if x is not None]
    needed = [x for x, unit in ((a, a_is_unit), (b, b_is_unit)) if not unit]
    if len(lengths) != len(bottom) or len(needed) != len(lengths) or any(along != axes for _, along in lengths):
        return None
    if sorted(id(x) for x, _ in lengths) != sorted(map(id, needed)):
        return None
    return _Cosine(a, b, axes)


def _factors(term: Term) -> tuple[list[Term], list[Term]]:
    """The factors of a product and those of its divisor, of which each has as many entries as the term."""
    inner = spread(term).source
    if math.prod(inner.shape) != math.prod(term.shape):
        return [term], []
    if inner.name in ("mul", "div") and all(math.prod(t.shape) == math.prod(term.shape) for t in inner.operands):
        (top, bottom), (other, under) = map(_factors, inner.operands)
        return (top + other, bottom + under) if inner.name == "mul" else (top + under, bottom + other)
    return [inner], []


def _dot(term: Term) -> tuple[Term, Term, Axes] | None:
    """(p, q, axes) where a term is Σ p q, entry by entry."""
    if (axes := reduced_axes(term, "reduce_sum")) is not None:
        product = unwrapped(term.operands[0])
        if product.name != "mul" or product.operands[0].shape != product.operands[1].shape:
            return None
        p, q = map(unwrapped, product.operands)
        return p, q, axes
    if term.name == "dot_general":
        (left, right), (batch, other) = term.params["dimension_numbers"]
        p, q = map(unwrapped, term.operands)
        paired = left == right and batch == other == tuple(range(len(batch))) and p.shape == q.shape
        if paired and len(left) + len(batch) == len(p.shape):
            return p, q, tuple(sorted(left))
    return None


def _before_unit(p: Term, axes: Axes) -> tuple[Term, bool]:
    """(a, True) where p is a/|a|; (p, False) else."""
    if p.name == "div" and (of := _normed(spread(p.operands[1]).source)) is not None:
        a = unwrapped(p.operands[0])
        if of == (a, axes) and spread(p.operands[1]).dims == _rows(p.operands[1], a, axes):
            return a, True
    return p, False


def _rows(divisor: Term, a: Term, axes: Axes) -> Axes:
    """Where the axes of a norm lie in an array that is divided by it row by row."""
    rank = len(spread(divisor).source.shape)
    return tuple(range(rank)) if rank == len(a.shape) else tuple(i for i in range(len(a.shape)) if i not in axes)


def _normed(term: Term) -> tuple[Term, Axes] | None:
    """(a, axes) where a term is the Euclidean norm of a."""
    if (found := norm_of(unwrapped(term))) is None or found.factor != 1:
        return None
    return unwrapped(found.x), tuple(sorted(found.axes))


def _difference(a: Array, b: Array, axes: Axes) -> tuple[Array, Array]:
    """The difference and the sum of the unit vectors."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    norm = functools.partial(st.norm, axis=axes, keepdims=True) if len(axes) == 1 else _norm_of(axes)
    long, short = norm(a), norm(b)
    u, v, d = a / long, b / short, a - b
    delta = jnp.sum(d * ((a + b) / (long + short)), axes, keepdims=True)
    return (d - v * delta) / long, u + v


def _norm_of(axes: Axes) -> Callable[[Array], Array]:
    def norm(x: Array) -> Array:
        rows = [n if i not in axes else 1 for i, n in enumerate(x.shape)]
        moved = jnp.moveaxis(x, axes, range(-len(axes), 0))
        return st.norm(moved.reshape(*moved.shape[: -len(axes)], -1), axis=-1).reshape(rows)

    return norm


def _length(x: Array, axes: Axes) -> Array:
    return jnp.squeeze(_norm_of(axes)(x), axes)


@rule("acos")
def angle(term: Term, rw: Rewriter) -> Term | None:
    """arccos of a cosine, perhaps clipped."""
    inner, low, high = unwrapped(term.operands[0]), 0.0, math.pi
    while inner.name in ("max", "min"):
        x, *bounds = sorted(inner.operands, key=lambda t: scalar(t) is not None)
        (bound,) = map(scalar, bounds)
        if bound is None or abs(bound) > 1:
            return None
        low, high = (low, math.acos(bound)) if inner.name == "max" else (math.acos(bound), high)
        inner = unwrapped(x)
    if (cosine := _cosine(inner)) is None:
        return None

    def run(a: Array, b: Array) -> Array:
        w, s = _difference(a, b, cosine.axes)
        theta = 2 * st.arctan2(_length(w, cosine.axes), _length(s, cosine.axes))
        theta = theta.reshape(term.shape)
        return theta if (low, high) == (0.0, math.pi) else jnp.clip(theta, low, high)

    return replaced(
        term, "angle", run, [rw(cosine.a), rw(cosine.b)], before="arccos(a·b / (|a| |b|))",
        after="2 atan2(|u - v|, |u + v|), u = a/|a|, v = b/|b|",
        reason="a cosine near ±1 holds half of the digits of the angle, and the derivative divides by its rounding",
    )  # fmt: skip


@rule("sub")
def cosine_distance(term: Term, rw: Rewriter) -> Term | None:
    """1 - cosine."""
    one, inner = term.operands
    if scalar(one) != 1 or inner.name not in ("div", "mul", "reduce_sum", "dot_general"):
        return None
    if (cosine := _cosine(inner)) is None:
        return None

    def run(a: Array, b: Array) -> Array:
        w, _ = _difference(a, b, cosine.axes)
        return (jnp.sum(w * w, cosine.axes) / 2).reshape(term.shape)

    return replaced(
        term, "angle", run, [rw(cosine.a), rw(cosine.b)], before="1 - a·b / (|a| |b|)",
        after="|u - v|² / 2, u = a/|a|, v = b/|b|", reason="the difference cancels where the vectors are nearly parallel",
    )  # fmt: skip
