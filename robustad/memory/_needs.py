"""What the backward pass of each step of a program needs of the forward pass."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from robustad import _jaxpr
from robustad.memory._flat import Flat, Step
from robustad.memory._flops import equation_flops
from robustad.memory._liveness import FUSIBLE


@dataclasses.dataclass(frozen=True)
class Need:
    """values: those of its operands and results that a step's transpose reads; inner: bytes that it keeps beside them, which
    only the step itself can make again."""

    values: tuple[int, ...]
    inner: int


NOTHING = Need((), 0)


def active(program: Flat, differentiated: Sequence[int], reached: Sequence[int] = (0,)) -> list[bool]:
    """Of each value, whether a derivative passes through it: from the differentiated inputs to the `reached` outputs."""
    moves, reaches = ([False] * len(program.avals) for _ in range(2))
    for i in differentiated:
        moves[program.inputs[i]] = True
    for step in program.steps:
        if step.name != "stop_gradient" and any(v is not None and moves[v] for v in step.operands):
            for v in step.results:
                moves[v] = jnp.issubdtype(getattr(program.avals[v], "dtype", jnp.int32), jnp.inexact)
    for v in (program.outputs[k] for k in reached):
        if v is not None:
            reaches[v] = True
    for step in reversed(program.steps):
        if any(reaches[v] and moves[v] for v in step.results):
            for v in step.operands:
                if v is not None:
                    reaches[v] = True
    return [a and b for a, b in zip(moves, reaches)]


def needs(program: Flat, moves: Sequence[bool]) -> list[Need]:
    """What each step's transpose reads, as JAX's own derivative of the step has it."""
    known: dict[Any, tuple[tuple[int, ...], tuple[int, ...], int]] = {}
    found = []
    for step in program.steps:
        moved = tuple(v is not None and moves[v] for v in step.operands)
        if not any(moved) or not any(moves[v] for v in step.results):
            found.append(NOTHING)
            continue
        key = _key(step, moved)
        if key not in known:
            known[key] = _kept(step, moved)
        operands, results, inner = known[key]
        values = [step.operands[i] for i in operands] + [step.results[i] for i in results]
        found.append(Need(tuple(v for v in values if v is not None), inner))
    return found


def _key(step: Step, moved: tuple[bool, ...]) -> Any:
    types = tuple(str(_jaxpr.aval(a)) for a in (*step.equation.invars, *step.equation.outvars))
    params = step.equation.params
    try:
        hash(tuple(params.values()))
    except TypeError:
        return step.site.path
    return (step.name, types, moved, tuple(params.items()), tuple(str(_jaxpr.literal(a)) for a in step.equation.invars))


def _kept(step: Step, moved: tuple[bool, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Positions of operands and of results, and bytes beside them."""
    eqn = step.equation
    given = [i for i, v in enumerate(step.operands) if v is not None]
    where = [k for k, i in enumerate(given) if moved[i]]
    shapes: list[Any] = []

    def linearized(*operands: Any) -> Any:
        def function(*xs: Any) -> Any:
            filled = dict(zip(given, operands)) | {given[k]: x for k, x in zip(where, xs)}
            ins = [filled[i] if i in filled else _jaxpr.literal_value(a) for i, a in enumerate(eqn.invars)]
            return _jaxpr.bind(eqn, ins)

        outs, pull = jax.vjp(function, *(operands[k] for k in where))
        shapes[:] = outs
        return outs, [x for x in jax.tree.leaves(pull) if hasattr(x, "dtype")]

    avals = [_jaxpr.strong(_jaxpr.aval(eqn.invars[i])) for i in given]
    try:
        program, _ = _jaxpr.trace(linearized, *avals)
    except Exception:  # outside its mesh, say, a step cannot be traced by itself: all that it touches may be needed
        return tuple(given), tuple(range(len(step.results))), 0
    count = len(step.results)
    place = {var: ("operand", given[k]) for k, var in enumerate(program.inputs)}
    for k, atom in enumerate(program.outputs[:count]):
        if _jaxpr.literal(atom) is None:
            place.setdefault(atom, ("result", k))
    kept = dict.fromkeys(a for a in program.outputs[count:] if _jaxpr.literal(a) is None)
    derived = [var for var in kept if var not in place]
    touched: set[tuple[str, int]] = {place[var] for var in kept if var in place}
    made = {var: e for e in program.equations for var in e.outvars}
    simple = step.name in FUSIBLE or all(made[v].primitive.name in FUSIBLE for v in derived if v in made)
    if not simple:
        inner = sum(_jaxpr.nbytes(_jaxpr.aval(v)) for v in derived)
        return _places(touched, "operand"), _places(touched, "result"), inner
    stack = list(derived)
    while stack:
        var = stack.pop()
        if var in place:
            touched.add(place[var])
        elif var in made:
            stack.extend(a for a in made[var].invars if _jaxpr.literal(a) is None)
    return _places(touched, "operand"), _places(touched, "result"), 0


def _places(touched: set[tuple[str, int]], kind: str) -> tuple[int, ...]:
    return tuple(sorted(i for k, i in touched if k == kind))


def step_flops(program: Flat) -> list[int]:
    """The operations of each step."""
    return [equation_flops(step.equation) for step in program.steps]
