"""Floats that are looked at as bits and come back."""

from typing import Any

from robustad import _jaxpr
from robustad._jaxpr import Body, Path

_ON_BITS = frozenset("add and convert_element_type max min not optimization_barrier or sub xor".split())


def returned(program: Body, path: Path = ()) -> dict[Path, Path]:
    """For each cast of bits to a float, the cast of a float of the same kind to bits that they come from, if they do.

    Where they come back unchanged, as from `stability`'s guards against contraction, the float is the one that it was.
    """
    found: dict[Path, Path] = {}
    makers: dict[Any, int] = {}
    for i, eqn in enumerate(program.equations):
        makers.update((var, i) for var in eqn.outvars)
        if eqn.primitive.name == "bitcast_convert_type" and _jaxpr.is_inexact(eqn.outvars[0]):
            source = _source(program, makers, eqn.invars[0])
            if source is not None and _alike(program.equations[source].invars[0], eqn.outvars[0]):
                found[*path, i] = (*path, source)
        if inner := _jaxpr.control(eqn):
            for k, body in enumerate(_jaxpr.bodies(inner)):
                found |= returned(body, (*path, i, k))
    return found


def _source(program: Body, makers: dict[Any, int], atom: Any) -> int | None:
    """The cast of a float to bits that an integer is made of alone."""
    while _jaxpr.literal(atom) is None and atom in makers:
        i = makers[atom]
        eqn = program.equations[i]
        if eqn.primitive.name == "bitcast_convert_type":
            return i if _jaxpr.is_inexact(eqn.invars[0]) else None
        variables = [v for v in eqn.invars if _jaxpr.literal(v) is None]
        if eqn.primitive.name not in _ON_BITS or len(variables) != 1:
            return None
        (atom,) = variables
    return None


def _alike(a: Any, b: Any) -> bool:
    return _jaxpr.aval(a).dtype == _jaxpr.aval(b).dtype and _jaxpr.aval(a).shape == _jaxpr.aval(b).shape
