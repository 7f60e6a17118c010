"""Vectors over their root mean square, which holds a constant as well: x / √(c Σ x² + e), as in RMSNorm.

The squares overflow from 1.8e19 (float32) or 256 (float16), and the derivative of the root alone, c x / (...)^(3/2), leaves
the range long before the quotient's does. With √(e/c) as one more entry of x, the quotient is a unit vector.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from robustad.rewriting._graph import Term, scalar, unwrapped
from robustad.rewriting._layout import Spread, spread, through
from robustad.rewriting._norms import scaled_sum_of_squares
from robustad.rewriting._rewriter import Rewriter, replaced, rule
from robustad.rewriting._softmax import placed
from robustad.stability._norms import norm_and_units


class _Squares(NamedTuple):
    """c Σ x² + e over axes, where the sum's own axes are those `dims` of `total`, and `total`'s those of `seen`."""

    x: Term
    axes: tuple[int, ...]
    dims: tuple[int, ...]
    c: float
    e: float
    sum: Term
    seen: Spread

    def length_and_unit(self, x: Array) -> tuple[Array, Array]:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(a - x.ndim for a in self.axes)
        rest = jnp.full([n for a, n in enumerate(x.shape) if a not in self.axes], math.sqrt(self.e / self.c), x.dtype)
        size, (unit, _) = norm_and_units((axes, ()), [x, rest])
        root = jnp.asarray(math.sqrt(self.c), x.dtype)
        return size * root, unit / root


def _squares(term: Term) -> _Squares | None:
    """What a term, the operand of a root, holds."""
    seen = spread(term)
    if seen.source.name != "add":
        return None
    for total, other in (seen.source.operands, seen.source.operands[::-1]):
        e = scalar(other)
        if e is None or not 0 < e < math.inf:
            continue
        inner = spread(total)
        if (found := scaled_sum_of_squares(_before_its_rounding(inner.source))) is not None:
            x, axes, dims, c = found
            return _Squares(x, axes, through(inner.dims, dims), c, float(e), seen.source, seen)
    return None


def _before_its_rounding(term: Term) -> Term:
    """A mean in 16 bits before it is rounded: jnp adds up in float32 and converts what comes of it."""
    inner = term.operands[0] if term.name == "convert_element_type" else term
    if inner.name not in ("mul", "div") or not term.floating or jnp.finfo(term.dtype).bits != 16:
        return term
    total = spread(inner.operands[0]).source
    (added,) = total.operands if total.name == "reduce_sum" else (total,)
    return inner if added.name == "convert_element_type" and added.operands[0].dtype == term.dtype else term


_REASON = "the squares overflow from 1.8e19 (float32) or 256 (float16), and the derivatives of the root leave the range"


@rule("sqrt", "rsqrt")
def root(term: Term, rw: Rewriter) -> Term | None:
    if (squares := _squares(term.operands[0])) is None:
        return None

    def run(x: Array) -> Array:
        size, _ = squares.length_and_unit(x)
        size = placed(placed(size, squares.dims, squares.sum.shape), squares.seen.dims, term.shape)
        return 1 / size if term.name == "rsqrt" else size

    return replaced(
        term, "norm", run, [rw(squares.x)], before=f"{term.name}(sum(x²) + e)", after="the norm of x and sqrt(e)",
        reason=_REASON,
    )  # fmt: skip


@rule("mul", "div")
def quotient(term: Term, rw: Rewriter) -> Term | None:
    pairs = (term.operands, term.operands[::-1])
    for x, divisor in pairs if term.name == "mul" else pairs[:1]:
        seen = spread(divisor)
        if seen.source.name != ("rsqrt" if term.name == "mul" else "sqrt"):
            continue
        squares = _squares(seen.source.operands[0])
        if squares is None or unwrapped(x) is not unwrapped(squares.x) or not _is_along(seen, squares, term):
            continue

        def run(x: Array, squares: _Squares = squares) -> Array:
            return squares.length_and_unit(x)[1]

        return replaced(
            term, "norm", run, [rw(squares.x)], before="x / sqrt(sum(x²) + e)",
            after="x over the norm of x and sqrt(e)", reason=_REASON,
        )  # fmt: skip
    return None


def _is_along(divisor: Spread, squares: _Squares, term: Term) -> bool:
    """Whether each entry is divided by the root of its own row."""
    if squares.x.shape != term.shape:
        return False
    rows = [a for a in range(len(term.shape)) if a not in squares.axes]
    at = through(divisor.dims, through(squares.seen.dims, squares.dims))
    return all(term.shape[a] == 1 or a == d for a, d in zip(rows, at, strict=True))
