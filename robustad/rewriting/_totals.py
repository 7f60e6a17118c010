"""Terms as products of sums: c · Σ u v … · Σ w … / Σ …, with the axes over which each factor runs.

An axis is told by a label: from 0 on, that of the whole term's axis; below 0, of an axis that a sum runs over. What is
repeated along an axis does not have its label.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from robustad.rewriting._graph import Step, Term, scalar
from robustad.rewriting._layout import reduced_axes, spread
from robustad.rewriting._mesh_sums import MeshSum, mesh_sum
from robustad.rewriting._running_sums import Loop

Labels = tuple[int | None, ...]
"""Of each axis of an array; None for an axis of size 1."""


@dataclasses.dataclass(frozen=True)
class Factor:
    """An array under a sum."""

    term: Term
    labels: Labels


@dataclasses.dataclass(frozen=True)
class Total:
    """A sum of products over axes of these sizes, with the labels -1, -2, …, and over axes of a mesh."""

    factors: tuple[Factor, ...]
    sizes: tuple[int, ...]
    mesh: tuple[str, ...] = ()
    across: MeshSum | None = dataclasses.field(default=None, compare=False)

    @property
    def counts(self) -> "Counter[Factor]":
        return Counter(self.factors)


@dataclasses.dataclass(frozen=True)
class Product:
    """coefficient · ∏ above / ∏ below."""

    coefficient: float
    above: tuple[Total, ...] = ()
    below: tuple[Total, ...] = ()

    def times(self, other: "Product", power: int = 1) -> "Product":
        above, below = (other.above, other.below) if power > 0 else (other.below, other.above)
        return Product(self.coefficient * other.coefficient**power, self.above + above, self.below + below)


Loops = dict[Step, Loop | None]


def product_of(term: Term, loops: Loops, labels: Labels | None = None) -> Product | None:
    """A term as a product of sums; None where it is none. `loops`: those that have been looked into."""
    return _product(term, axes_of(term) if labels is None else labels, loops)


def axes_of(term: Term) -> Labels:
    return tuple(range(len(term.shape)))


def _product(term: Term, labels: Labels, loops: Loops) -> Product | None:
    if (c := scalar(term)) is not None:
        return Product(float(c)) if c and math.isfinite(c) else None
    term, labels = source(term, labels)
    match term.name:
        case "mul" | "div":
            parts = [_product(t, operand_labels(t, labels), loops) for t in term.operands]
            if parts[0] is None or parts[1] is None:
                return None
            return parts[0].times(parts[1], 1 if term.name == "mul" else -1)
        case "square" | "integer_pow" if term.params.get("y", 2) == 2:
            base = _product(term.operands[0], labels, loops)
            return base and base.times(base)
        case "neg":
            base = _product(term.operands[0], labels, loops)
            return base and Product(-1.0).times(base)
    if (across := mesh_sum(term)) is not None:
        own = _product(across.operand, labels, loops)
        if own is None or own.below or len(own.above) != 1 or own.above[0].mesh:
            return None
        return Product(own.coefficient, (dataclasses.replace(own.above[0], mesh=across.axes, across=across),))
    return _total(term, labels, loops)


def operand_labels(term: Term, labels: Labels) -> Labels:
    """The labels of an operand of an elementwise operation, which may be a scalar beside an array."""
    return labels if term.shape else ()


def source(term: Term, labels: Labels) -> tuple[Term, Labels]:
    """What a term repeats or transposes."""
    while True:
        seen = spread(term)
        held = (labels[d] if d >= 0 else None for d in seen.dims)
        term, labels = seen.source, tuple(k if n != 1 else None for k, n in zip(held, seen.source.shape))
        if term.name != "transpose":
            return term, labels
        order = term.params["permutation"]
        (term,) = term.operands
        labels = tuple(labels[order.index(i)] for i in range(len(order)))


def _total(term: Term, labels: Labels, loops: Loops) -> Product | None:
    if term.name == "reduce_sum":
        sizes = ()
        while (axes := reduced_axes(term, "reduce_sum")) is not None:
            (operand,) = term.operands
            kept, axes = iter(labels), sorted(axes)
            first = -1 - len(sizes)
            inner = tuple(first - axes.index(i) if i in axes else next(kept) for i in range(len(operand.shape)))
            sizes += tuple(operand.shape[i] for i in axes)
            term, labels = source(operand, inner)
        parts = [(term, labels)]
    elif term.name == "dot_general":
        (left, right), (first, second) = term.params["dimension_numbers"]
        batch, free = labels[: len(first)], iter(labels[len(first) :])
        parts = []
        for operand, summed, shared in zip(term.operands, (left, right), (first, second)):
            known = {i: -1 - k for k, i in enumerate(summed)} | dict(zip(shared, batch))
            inner = tuple(known[i] if i in known else next(free) for i in range(len(operand.shape)))
            parts.append((operand, inner))
        sizes = tuple(term.operands[0].shape[i] for i in left)
    elif term.name == "scan":
        return _carried(term, labels, loops)
    else:
        return None
    coefficient, factors = 1.0, []
    for operand, inner in parts:
        c, found = _factors(operand, inner)
        coefficient *= c
        factors += found
    return _summed(term, coefficient, factors, sizes)


def _summed(term: Term, coefficient: float, factors: Sequence[Factor], sizes: tuple[int, ...]) -> Product | None:
    if not term.floating or not coefficient or not math.isfinite(coefficient) or 0 in sizes:
        return None
    if not factors:
        return Product(coefficient * math.prod(sizes))
    return Product(coefficient, (Total(tuple(factors), sizes),))


def _carried(term: Term, labels: Labels, loops: Loops) -> Product | None:
    """A sum over the steps of a loop."""
    if term.step not in loops:
        loops[term.step] = Loop.of(term.step)
    loop = loops[term.step]
    if loop is None or term.index not in loop.added:
        return None
    coefficient, inside = _factors(loop.added[term.index], labels)
    factors = []
    for f in inside:
        outside, stacked = loop.outside(f.term)
        factors.append(Factor(outside, ((-1 if loop.scan.length != 1 else None), *f.labels) if stacked else f.labels))
    return _summed(term, coefficient, factors, (loop.scan.length,))


def _factors(term: Term, labels: Labels) -> tuple[float, list[Factor]]:
    """(c, factors) of a product of arrays."""
    if (c := scalar(term)) is not None:
        return float(c), []
    term, labels = source(term, labels)
    parts: Sequence[Term] = ()
    if term.name == "mul":
        parts = term.operands
    elif term.name in ("square", "integer_pow") and term.params.get("y", 2) in (2, 3, 4):
        parts = term.operands * term.params.get("y", 2)
    elif term.name == "div" and (c := scalar(term.operands[1])):
        found = _factors(term.operands[0], labels)
        return found[0] / float(c), found[1]
    if not parts:
        return 1.0, [Factor(term, labels)]
    coefficient, factors = 1.0, []
    for part in parts:
        c, found = _factors(part, operand_labels(part, labels))
        coefficient *= c
        factors += found
    return coefficient, factors
