r"""Angles between vectors, and cosines beside 1.

\(\arccos\) of a rounded cosine loses half of the digits of a small angle and all of its derivative's; \(1 - \cos\) loses all
digits. With unit vectors u and v, \(w = u - v\) and \(s = u + v\), the angle is \(2 \arctan(|w| / |s|)\) and
\(1 - \cos = |w|^2 / 2\) (Kahan, "How Futile are Mindless Assessments of Roundoff", 2006, section 12). Of vectors a and b
of nearly the same length, w does not come from rounded u and v:

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
from robustad.rewriting._layout import reduced_axes, spread, through
from robustad.rewriting._norms import norm_of, sum_of_squares
from robustad.rewriting._rewriter import Rewriter, replaced, rule

Axes = tuple[int, ...]


class _Length(NamedTuple):
    """max(|x|, floor) over axes, whose other axes are those `at` of the term."""

    x: Term
    axes: Axes
    floor: float
    at: Axes


class _Cosine(NamedTuple):
    """a · b / (max(|a|, floor) max(|b|, floor)) along axes."""

    a: Term
    b: Term
    axes: Axes
    floors: tuple[float, float]


def _cosine(term: Term) -> _Cosine | None:
    top, bottom = _factors(term)
    if len(top) != 1 or (found := _dot(top[0])) is None:
        return None
    factors, divisors, axes = found
    lengths = [*(_length_of(t) for t in bottom), *(_length_along(t, axes) for t in divisors)]
    if len(factors) != 2 or len(lengths) != 2 or any(x is None or x.axes != axes for x in lengths):
        return None
    a, b = factors
    if a.shape != b.shape:
        return None
    for one, other in (lengths, lengths[::-1]):
        assert one is not None and other is not None
        if one.x is a and other.x is b:
            return _Cosine(a, b, axes, (one.floor, other.floor))
    return None


def _factors(term: Term) -> tuple[list[Term], list[Term]]:
    """The factors of a product and those of its divisor."""
    inner = unwrapped(term)
    if inner.name not in ("mul", "div"):
        inner = _unreshaped(inner)
    if inner.name in ("mul", "div"):
        (top, bottom), (other, under) = map(_factors, inner.operands)
        return (top + other, bottom + under) if inner.name == "mul" else (top + under, bottom + other)
    return [inner], []


def _unreshaped(term: Term) -> Term:
    """A product or a sum that a term is, with axes of size 1 added or dropped."""
    inner = spread(term).source
    same = math.prod(inner.shape) == math.prod(term.shape)
    return inner if same and inner.name in ("mul", "div", "reduce_sum", "dot_general") else term


def _dot(term: Term) -> tuple[list[Term], list[Term], Axes] | None:
    """(factors, divisors, axes) where a term is a sum of products over axes, entry by entry."""
    if (axes := reduced_axes(term, "reduce_sum")) is not None:
        return (*_factors(term.operands[0]), tuple(sorted(axes)))
    if term.name == "dot_general":
        (left, right), (batch, other) = term.params["dimension_numbers"]
        p, q = term.operands
        paired = left == right and batch == other == tuple(range(len(batch))) and p.shape == q.shape
        if paired and len(left) + len(batch) == len(p.shape):
            (top, bottom), (more, under) = _factors(p), _factors(q)
            return top + more, bottom + under, tuple(sorted(left))
    return None


def _length_along(term: Term, axes: Axes) -> _Length | None:
    """The length of each row, spread over the rows."""
    if (length := _length_of(term)) is None:
        return None
    shape = length.x.shape
    rows = [i for i in range(len(shape)) if i not in axes]
    along = len(term.shape) == len(shape) and all(shape[i] == 1 or i == d for i, d in zip(rows, length.at))
    return length if along else None


def _length_of(term: Term) -> _Length | None:
    """The Euclidean norm that a term is, perhaps not below a constant, √(Σ x²) or √(max(Σ x², c)) or max(√(Σ x²), c)."""
    inner, floor, at = _floored(term)
    if inner.name == "sqrt":
        inside, least, dims = _floored(inner.operands[0])
        if (found := sum_of_squares(inside)) is None:
            return None
        x, axes, kept = found
        return _Length(
            unwrapped(x), tuple(sorted(axes)), max(floor, math.sqrt(least)), through(at, through(dims, kept))
        )
    if (norm := norm_of(inner)) is None or norm.factor != 1:
        return None
    axes, x = tuple(sorted(norm.axes)), unwrapped(norm.x)
    rows = tuple(i for i in range(len(x.shape)) if i not in axes)
    return _Length(x, axes, floor, through(at, rows if len(inner.shape) == len(x.shape) else tuple(range(len(rows)))))


def _floored(term: Term) -> tuple[Term, float, Axes]:
    """(x, c, dims) where a term is max(x, c), c = 0 for others; x's axes are those dims of the term."""
    seen = spread(term)
    if seen.source.name == "max":
        for x, bound in (seen.source.operands, seen.source.operands[::-1]):
            if (c := scalar(bound)) is not None and 0 <= c < math.inf:
                inner = spread(x)
                return inner.source, float(c), through(seen.dims, inner.dims)
    return seen.source, 0.0, seen.dims


class _Units(NamedTuple):
    """The difference and the sum of u = a/|a| and v = b/|b|, 1 - |u|² and 1 - |v|², which are not 0 below a floor."""

    difference: Array
    sum: Array
    short: Array


def _units(cosine: _Cosine, a: Array, b: Array) -> _Units:
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    axes = cosine.axes
    norm = functools.partial(st.norm, axis=axes, keepdims=True) if len(axes) == 1 else _norm_of(axes)
    long, short = norm(a), norm(b)
    d = a - b
    delta = jnp.sum(d * ((a + b) / (long + short)), axes, keepdims=True)
    near = (long < 2 * short) & (short < 2 * long)
    below = jnp.zeros_like(long)
    if any(cosine.floors):
        floored = [jnp.maximum(x, floor) for x, floor in zip((long, short), cosine.floors)]
        near = near & (floored[0] == long) & (floored[1] == short)
        for x, size, whole in ((a, long, floored[0]), (b, short, floored[1])):
            rest = 1 - jnp.sum((x / whole) ** 2, axes, keepdims=True)
            below = below + jnp.where(size < whole, rest, jnp.zeros_like(rest))
        long, short = floored
    u, v = a / long, b / short
    return _Units(jnp.where(near, (d - v * delta) / long, u - v), u + v, below)


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
    if (cosine := _cosine(inner)) is None or any(cosine.floors):
        return None

    def run(a: Array, b: Array) -> Array:
        units = _units(cosine, a, b)
        theta = 2 * st.arctan2(_length(units.difference, cosine.axes), _length(units.sum, cosine.axes))
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
        units = _units(cosine, a, b)
        twice = jnp.sum(units.difference**2, cosine.axes, keepdims=True) + units.short
        return (twice / 2).reshape(term.shape)

    return replaced(
        term, "angle", run, [rw(cosine.a), rw(cosine.b)], before="1 - a·b / (|a| |b|)",
        after="|u - v|² / 2, u = a/|a|, v = b/|b|", reason="the difference cancels where the vectors are nearly parallel",
    )  # fmt: skip
