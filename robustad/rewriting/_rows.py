"""Axes along which a linear program keeps rows apart: row i of its result is made of row i of its argument alone.

So are the members of a batch under `vmap`. Each row may then have a scale of its own.
"""

from collections.abc import Sequence
from typing import Any

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Equation
from robustad.rewriting._graph import Term, is_elementwise

Place = int | None
"""Where the axis lies in a value that depends on the argument; None where rows are mixed."""


def row_axes(program: Body, source: int, out: int) -> tuple[int, ...]:
    """The axes of an input that lie at the same place in an output of the same shape, with rows apart.

    The output is linear in the input (`_scaled_loops.degrees`).
    """
    rank = len(_jaxpr.aval(program.inputs[source]).shape)
    return tuple(axis for axis in range(rank) if _places(program, {source: axis})[out] == axis)


def place_in(term: Term, known: dict[Term, Any]) -> Any:
    """The place of an axis of a known term in another one; None where rows are mixed."""
    if term not in known:
        places = [place_in(t, known) for t in term.operands]
        if all(p is _FREE for p in places):
            known[term] = _FREE
        else:
            eqn = term.step.equation
            known[term] = None if eqn is None else _places_of(eqn, places)[term.index]
    return known[term]


def _places(program: Body, inputs: dict[int, Place]) -> list[Any]:
    """Of each output, the place of the axis; "none" where it does not depend on the argument."""
    known: dict[Any, Any] = {program.inputs[i]: place for i, place in inputs.items()}

    def of(atom: Any) -> Any:
        return _FREE if _jaxpr.literal_value(atom) is not None else known.get(atom, _FREE)

    for eqn in program.equations:
        places = [of(a) for a in eqn.invars]
        if any(p is not _FREE for p in places):
            known |= dict(zip(eqn.outvars, _places_of(eqn, places)))
    return [of(a) for a in program.outputs]


_FREE: Any = "none"


def _places_of(eqn: Equation, places: Sequence[Any]) -> Sequence[Any]:
    count = len(eqn.outvars)
    if None in places:
        return [None] * count
    inner = _jaxpr.control(eqn)
    if isinstance(inner, Call) and eqn.primitive.name in ("jit", "pjit", "closed_call", "remat2", "checkpoint"):
        given = {i: p for i, p in enumerate(inner.of(places)) if p is not _FREE}
        return _places(inner.body, given)
    if count > 1:
        return [None] * count
    held = [(i, p) for i, p in enumerate(places) if p is not _FREE]
    if len({p for _, p in held}) > 1 and eqn.primitive.name != "dot_general":
        return [None]
    return [_place_of(eqn, *held[0])]


def _place_of(eqn: Equation, index: int, axis: int) -> Place:
    """Of the result of an equation, whose operand `index` (and perhaps others) has the axis there."""
    name, params = eqn.primitive.name, eqn.params
    before, after = _jaxpr.aval(eqn.invars[index]).shape, _jaxpr.aval(eqn.outvars[0]).shape
    if is_elementwise(eqn):
        return axis if before == after else None
    match name:
        case "broadcast_in_dim":
            place = params["broadcast_dimensions"][axis]
            return place if before[axis] == after[place] else None
        case "transpose":
            return list(params["permutation"]).index(axis)
        case "reduce_sum" | "reduce_max" | "reduce_min":
            return None if axis in params["axes"] else axis - sum(a < axis for a in params["axes"])
        case "squeeze":
            return None if axis in params["dimensions"] else axis - sum(a < axis for a in params["dimensions"])
        case "reshape":
            return axis if params.get("dimensions") is None and before[: axis + 1] == after[: axis + 1] else None
        case "rev":
            return None if axis in params["dimensions"] else axis
        case "slice" | "dynamic_slice":
            return axis if before[axis] == after[axis] else None
        case "cumsum":
            return axis if axis != params["axis"] else None
        case "concatenate":
            return axis if axis != params["dimension"] else None
        case "dot_general":
            return _of_product(eqn, index, axis)
        case _:
            return None


def _of_product(eqn: Equation, index: int, axis: int) -> Place:
    (contracted, batch) = eqn.params["dimension_numbers"]
    if axis in contracted[index]:
        return None
    if axis in batch[index]:
        return list(batch[index]).index(axis)
    own = [
        [a for a in range(len(_jaxpr.aval(eqn.invars[i]).shape)) if a not in contracted[i] and a not in batch[i]]
        for i in range(2)
    ]
    return len(batch[0]) + (len(own[0]) if index else 0) + own[index].index(axis)
