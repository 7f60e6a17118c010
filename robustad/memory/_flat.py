"""A program as one list of steps: calls are opened where they stand, loops and branches are steps that hold programs."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Equation, Location, Path, ShardMap, Site


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


def flat(program: Body, sites: dict[Path, Site] | None = None, path: Path = ()) -> Flat:
    """The steps of a program that stands at `path` of the one whose `sites` are given."""
    return _Flattening(sites or {site.path: site for site in _jaxpr.sites(program)}).program(program, path)


def opened(eqn: Equation) -> Call | ShardMap | None:
    """What an equation calls, if its equations can stand in its place."""
    inner = _jaxpr.control(eqn)
    return inner if isinstance(inner, ShardMap) or (isinstance(inner, Call) and inner.picked is None) else None


class _Flattening:
    def __init__(self, sites: dict[Path, Site]):
        self._sites = sites
        self._avals: list[Any] = []

    def program(self, program: Body, path: Path) -> Flat:
        inputs = tuple(self._new(var) for var in program.inputs)
        steps: list[Step] = []
        outputs = self._body(program, path, inputs, steps)
        return Flat(inputs, tuple(outputs), tuple(steps), tuple(self._avals))

    def _new(self, var: Any) -> int:
        self._avals.append(_jaxpr.aval(var))
        return len(self._avals) - 1

    def _body(self, program: Body, path: Path, inputs: Sequence[int | None], steps: list[Step]) -> list[int | None]:
        env: dict[Any, int | None] = {var: self._new(var) for var, _ in program.constants}
        env.update(zip(program.inputs, inputs))

        def read(atom: Any) -> int | None:
            return None if _jaxpr.literal(atom) is not None else env[atom]

        for i, eqn in enumerate(program.equations):
            here = (*path, i)
            operands = tuple(read(atom) for atom in eqn.invars)
            if inner := opened(eqn):
                env.update(zip(eqn.outvars, self._body(inner.body, (*here, 0), operands, steps)))
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
