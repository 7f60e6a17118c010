"""Cosines of angles, x · y / (‖x‖ ‖y‖): of unit vectors, whose products stay in range."""

import dataclasses
from collections import Counter

import jax.numpy as jnp
from jax import Array

from robustad import stability as st
from robustad.rewriting._contraction import Contraction
from robustad.rewriting._graph import Term, scalar
from robustad.rewriting._norms import norm_of
from robustad.rewriting._rewriter import Rewriter, replaced, rule
from robustad.rewriting._totals import Factor, Labels, Loops, axes_of, operand_labels, product_of, source


@dataclasses.dataclass(frozen=True)
class _Norms:
    """A product of norms of these vectors, over axes of these sizes, but not below `least`."""

    vectors: tuple[Factor, ...]
    sizes: tuple[int, ...]
    factor: float = 1.0
    least: float | None = None


@rule("div")
def cosine(term: Term, rw: Rewriter) -> Term | None:
    """The scalar product overflows with the squares of its vectors, and the product of their norms as well."""
    top, below = term, []
    while top.name == "div" and len(below) < 3:
        found = _norms(top.operands[1], operand_labels(top.operands[1], axes_of(term)), rw.loops)
        if found is None:
            return None
        below.append(found)
        top = top.operands[0]
    product = product_of(top, rw.loops) if top.shape == term.shape else None
    if product is None or len(product.above) != 1 or product.below or product.above[0].mesh:
        return None
    (total,) = product.above
    vectors = [v for n in below for v in n.vectors]
    if len(vectors) != 2 or total.counts != Counter(vectors) or any(n.sizes != total.sizes for n in below):
        return None
    least = max((n.least or 0.0 for n in below), default=0.0)
    x, y = vectors
    paired = all({k for k in f.labels if k is not None and k >= 0} == set(_kept(x)) for f in vectors)
    if least and (not paired or len(below) > 1):
        return None
    scale = product.coefficient
    for n in below:
        scale /= n.factor

    def run(a: Array, b: Array) -> Array:
        axes = Contraction(len(term.shape), total.sizes)
        a, b = axes.placed(a, x.labels), axes.placed(b, y.labels)
        if not least:
            return axes.result(scale * axes.sum(_unit(a, axes), _unit(b, axes)), term.shape)
        a, b = (jnp.broadcast_to(v, axes.shape(a, b)) for v in (a, b))
        size, other = (st.norm(v, axis=axes.axes) for v in (a, b))
        far = (size * other >= least).reshape(*size.shape, *(1 for _ in total.sizes))
        units = [_unit(jnp.where(far, v, jnp.ones_like(v)), axes) for v in (a, b)]
        near = axes.sum(*(jnp.where(far, jnp.zeros_like(v), v) for v in (a, b))) / least
        return axes.result(scale * jnp.where(far, axes.sum(*units), near), term.shape)

    return replaced(
        term, "cosine", run, [rw(x.term), rw(y.term)],
        before="sum(x y) / (norm(x) norm(y))", after="sum(x / norm(x) · y / norm(y))",
        reason="the products overflow from 1.8e19 and vanish below 1.1e-19 (float32), the cosine does not",
    )  # fmt: skip


def _kept(f: Factor) -> list[int]:
    return [k for k in f.labels if k is not None and k >= 0]


def _unit(x: Array, axes: Contraction) -> Array:
    return st.normalize(jnp.broadcast_to(x, axes.shape(x)), axes.axes)


def _norms(term: Term, labels: Labels, loops: Loops) -> _Norms | None:
    """What a term is the product of the norms of."""
    term, labels = source(term, labels)
    if term.name == "max":
        for inner, least in (term.operands, term.operands[::-1]):
            if (c := scalar(least)) is not None and c > 0:
                found = _norms(inner, operand_labels(inner, labels), loops)
                return found and (None if found.least else dataclasses.replace(found, least=float(c) / found.factor))
        return None
    if term.name == "mul":
        parts = [_norms(t, operand_labels(t, labels), loops) for t in term.operands]
        a, b = parts
        if a is None or b is None or a.least or b.least or a.sizes != b.sizes:
            return None
        return _Norms((*a.vectors, *b.vectors), a.sizes, a.factor * b.factor)
    if term.name == "sqrt":
        product = product_of(term.operands[0], loops, labels)
        if product is None or product.below or product.coefficient <= 0 or not product.above:
            return None
        sizes = product.above[0].sizes
        pairs = [t.factors for t in product.above]
        if any(len(p) != 2 or p[0] != p[1] for p in pairs) or any(t.sizes != sizes or t.mesh for t in product.above):
            return None
        return _Norms(tuple(p[0] for p in pairs), sizes, product.coefficient**0.5)
    if (found := norm_of(term)) is None:
        return None
    axes, kept = sorted(found.axes), iter(labels)
    keeps = len(term.shape) == len(found.x.shape)
    own = []
    for i in range(len(found.x.shape)):
        outer = next(kept) if keeps or i not in axes else None
        own.append(-1 - axes.index(i) if i in axes else outer)
    return _Norms((Factor(*source(found.x, tuple(own))),), tuple(found.x.shape[i] for i in axes), found.factor)
