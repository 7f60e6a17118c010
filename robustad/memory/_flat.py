"""A program as one list of steps: calls are opened where they stand, loops and branches are steps that hold programs."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Equation, Location, Path, ShardMap, Site

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"})
CHECKPOINTS = frozenset({"remat2", "checkpoint", "checkpointed"})


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """An equation of the flat program; values are numbers, as one variable may stand for several in calls made twice."""

    site: Site
    operands: tuple[int | None, ...]
    """None: a literal."""
    results: tuple[int, ...]

    @property
    def equation(self) -> Equation:
        return self.site.equation

    @property
    def name(self) -> str:
        return self.site.primitive

    @property
    def location(self) -> Location | None:
        return self.site.location


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A program's steps, its inputs and outputs, and the type of each value."""

    inputs: tuple[int, ...]
    outputs: tuple[int | None, ...]
    steps: tuple[Step, ...]
    avals: tuple[Any, ...]
    constants: tuple[tuple[int, Any], ...]


def flat(
    program: Body,
    sites: dict[Path, Site] | None = None,
    path: Path = (),
    opened: Callable[[Equation], Body | None] = lambda eqn: any_call(eqn),
) -> Flat:
    """The steps of a program that stands at `path` of the one whose `sites` are given.

    `opened`: the program of an equation whose steps stand in its place, or None.
    """
    sites = sites or {site.path: site for site in _jaxpr.sites(program)}
    return _Flattening(sites, opened).program(program, path)


def any_call(eqn: Equation) -> Body | None:
    """The program of whatever is a call: for looking at, since rules of derivatives are lost."""
    inner = _jaxpr.control(eqn)
    return inner.body if isinstance(inner, ShardMap) or (isinstance(inner, Call) and inner.picked is None) else None


def plain_call(eqn: Equation) -> Body | None:
    """The program of a call that means no more than its equations; of a checkpoint too, which a plan takes over."""
    if eqn.primitive.name not in CALLS | CHECKPOINTS:
        return None
    placed = (*eqn.params.get("in_shardings", ()), *eqn.params.get("out_shardings", ()))
    return None if any(map(_jaxpr.is_specified, placed)) else any_call(eqn)


class _Flattening:
    def __init__(self, sites: dict[Path, Site], opened: Callable[[Equation], Body | None]):
        self._sites, self._opened = sites, opened
        self._avals: list[Any] = []
        self._constants: list[tuple[int, Any]] = []

    def program(self, program: Body, path: Path) -> Flat:
        inputs = tuple(self._new(var) for var in program.inputs)
        steps: list[Step] = []
        outputs = self._body(program, path, inputs, steps)
        return Flat(inputs, tuple(outputs), tuple(steps), tuple(self._avals), tuple(self._constants))

    def _new(self, var: Any) -> int:
        self._avals.append(_jaxpr.aval(var))
        return len(self._avals) - 1

    def _constant(self, literal: Any) -> int:
        """The value that stands for a literal which enters or leaves a call."""
        self._constants.append((self._new(literal), _jaxpr.literal_value(literal)))
        return self._constants[-1][0]

    def _body(self, program: Body, path: Path, inputs: Sequence[int | None], steps: list[Step]) -> list[int | None]:
        env: dict[Any, int | None] = {var: self._new(var) for var, _ in program.constants}
        self._constants.extend((env[var], value) for var, value in program.constants)  # pyright: ignore
        env.update(zip(program.inputs, inputs))

        def read(atom: Any) -> int | None:
            return None if _jaxpr.literal(atom) is not None else env[atom]

        for i, eqn in enumerate(program.equations):
            here = (*path, i)
            operands = tuple(read(atom) for atom in eqn.invars)
            if inner := self._opened(eqn):
                given = [self._constant(a) if v is None else v for a, v in zip(eqn.invars, operands)]
                outs = self._body(inner, (*here, 0), given, steps)
                made = [self._constant(a) if v is None else v for a, v in zip(inner.outputs, outs)]
                env.update(zip(eqn.outvars, made))
                continue
            results = tuple(self._new(var) for var in eqn.outvars)
            steps.append(Step(self._sites[here], operands, results))
            env.update(zip(eqn.outvars, results))
        return [read(atom) for atom in program.outputs]


def within(step: Step, sites: dict[Path, Site]) -> Iterator[Flat]:
    """The flat programs that a step holds."""
    if inner := _jaxpr.control(step.equation):
        for k, body in enumerate(_jaxpr.bodies(inner)):
            yield flat(body, sites, (*step.site.path, k))
