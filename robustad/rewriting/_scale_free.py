"""Quotients in which the scale of what a loop carries drops out: v / ‖v‖ of a power iteration, α / Σ α of a filter.

The loop's value may have left the range, the quotient has not: it is that of the scaled value (`_scaled_loops`). Rows with
divisors of their own have scales of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from robustad.rewriting._graph import Term, scalar
from robustad.rewriting._layout import spread
from robustad.rewriting._norms import norm_of
from robustad.rewriting._report import Rewrite
from robustad.rewriting._rewriter import Rewriter, place_of, rule
from robustad.rewriting._rows import place_in
from robustad.rewriting._scaled_loops import rows_of, scaled_carry

_LOOPS = ("scan", "while")
_SAME = frozenset(
    "neg abs convert_element_type copy reshape squeeze expand_dims broadcast_in_dim transpose rev slice reduce_sum "
    "reduce_max reduce_min add add_any sub max min select_n".split()
)
_DEEPEST = 8


@rule("div")
def quotient(term: Term, rw: Rewriter) -> Term | None:
    top, bottom = term.operands
    if scalar(bottom) is not None or (carried := _loop_under(top, _DEEPEST)) is None:
        return None
    known: dict[Term, Fraction | None] = {carried: Fraction(1)}
    degree = _degree(top, known)
    if not degree or degree != _degree(bottom, known) or (rows := _common_rows(carried, top, bottom)) is None:
        return None
    found = scaled_carry(carried, rw, rows)
    if found is None or found.rest is None or found.rest.name != "scaled loop":
        return None
    made = {carried: found.rest}

    def rebuilt(t: Term) -> Term:
        if t not in made:
            made[t] = t.step.on([rebuilt(x) for x in t.operands]).outputs[t.index] if known.get(t) else rw(t)
        return made[t]

    told = Rewrite(
        *place_of(term.step), "scaled loop", "v / |v| after a loop that multiplies v", "the same of v over powers of two",
        "v leaves the range in the loop, and its scale drops out",
    )  # fmt: skip
    return term.step.on([rebuilt(top), rebuilt(bottom)], rewrite=told).outputs[term.index]


def _common_rows(carried: Term, top: Term, bottom: Term) -> tuple[int, ...] | None:
    """The axes of what a loop carries along which each row has a divisor of its own; None where the divisor is another
    along other axes too.
    """
    if not spread(bottom).source.shape:
        return ()
    places = {axis: place_in(top, {carried: axis}) for axis in rows_of(carried)}
    rows = {axis: p for axis, p in places.items() if isinstance(p, int) and place_in(bottom, {carried: axis}) == p}
    seen = spread(bottom)
    divisors = {d for n, d in zip(seen.source.shape, seen.dims) if n != 1}
    return tuple(rows) if divisors <= set(rows.values()) else None


def _loop_under(term: Term, depth: int) -> Term | None:
    """The carry of a loop that a term is linear in."""
    if term.name in _LOOPS:
        return term
    if depth == 0 or term.name not in _SAME | {"mul", "dot_general"}:
        return None
    return next((x for t in term.operands if (x := _loop_under(t, depth - 1)) is not None), None)


def _degree(term: Term, known: dict[Term, Fraction | None], depth: int = _DEEPEST) -> Fraction | None:
    """n where a term is multiplied by cⁿ if what is known to be of degree 1 is by c > 0; 0 if it does not depend on it.

    None where neither is seen within some steps.
    """
    if term not in known:
        below = [_degree(t, known, depth - 1) for t in term.operands] if depth else [None]
        known[term] = _degree_of(term, below)
    return known[term]


def _degree_of(term: Term, degrees: Sequence[Fraction | None]) -> Fraction | None:
    if all(d == 0 for d in degrees):
        return Fraction(0)
    if any(d is None for d in degrees):
        return None
    held = [d for d in degrees if d is not None]
    match term.name:
        case "mul" | "dot_general":
            return held[0] + held[1]
        case "div":
            return held[0] - held[1]
        case "square":
            return 2 * held[0]
        case "integer_pow":
            return held[0] * term.params["y"]
        case "sqrt":
            return held[0] / 2
        case "select_n":
            return held[1] if held[0] == 0 and len(set(held[1:])) == 1 else None
        case name if name in _SAME and len(set(held)) == 1:
            return held[0]
        case _:
            return held[0] if norm_of(term) is not None else None
