"""Where `stop_gradient` means that a value is a constant to derivatives."""

from collections.abc import Iterable
from typing import Any

from robustad import _jaxpr
from robustad._jaxpr import Body, Path


def stopped(program: Body, path: Path = ()) -> frozenset[Path]:
    """The `stop_gradient`s of a program, but for those in front of a factorization that a `custom_linear_solve` solves
    with: what it returns is a solution of its `matvec`, through which the derivative goes."""
    found: set[Path] = set()
    for i, eqn in enumerate(program.equations):
        here = (*path, i)
        if eqn.primitive.name == "stop_gradient" and not _only_solves(program, eqn.outvars):
            found.add(here)
        if inner := _jaxpr.control(eqn):
            for k, body in enumerate(_jaxpr.bodies(inner)):
                found |= stopped(body, (*here, k))
    return frozenset(found)


def _only_solves(program: Body, variables: Iterable[Any]) -> bool:
    """Whether variables reach nothing but the solvers of linear systems."""
    seen = set(variables)
    for eqn in program.equations:
        used = [k for k, v in enumerate(eqn.invars) if _jaxpr.literal(v) is None and v in seen]
        if used and eqn.primitive.name == "custom_linear_solve":
            lengths = eqn.params["const_lengths"]
            first = lengths.matvec + lengths.vecmat
            if not all(first <= k < first + lengths.solve + lengths.transpose_solve for k in used):
                return False
        elif used and _jaxpr.control(eqn) is not None:
            return False
        elif used:
            seen.update(eqn.outvars)
    return not any(_jaxpr.literal(v) is None and v in seen for v in program.outputs)
