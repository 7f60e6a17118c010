"""What to keep inside segments: the integer program whose optimum does the fewest operations again.

A step is done again if a result of it is needed and not kept, or read by a step that is done again; at no segment may the
bytes that earlier segments leave and its own exceed the budget. Of the variables only "is kept" has to be an integer: the
others follow from it (a closure problem; Jain et al., Checkmate, MLSys 2020, have the same constraints for every step).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from robustad.memory._segments import COPIES, Plan, Segment, Segments

LIMITS = {"mip_rel_gap": 1e-2, "node_limit": 1, "presolve": False}
"""Of the search: counts, no seconds, so that it ends with the same result each time. More nodes than the root spare 1e-4 of
the operations, and take half a minute where 500 layers are alike."""


def refined(model: Segments, plan: Plan, budget: float) -> Plan:
    """The plan with the same segments, in which what is kept inside is chosen anew; or the plan, if that is no worse."""
    program = _IntegerProgram(model, budget)
    alive = program.variable(upper=0.0)
    for segment in plan.segments:
        alive = program.add(segment, alive, 1.0)
    kept = program.solution()
    if kept is None:
        return plan
    segments = tuple(
        s if s.plain else model.sweep(s.start, [s.stop], kept.__contains__, s.way)[0] for s in plan.segments
    )
    flops, peak, saved = sum(s.flops for s in segments), 0, 0
    for segment in segments:
        peak = max(peak, saved + segment.inside)
        saved += segment.saved
    return Plan(segments, flops, peak) if flops < plan.flops and peak <= budget else plan


def selected(model: Segments, most: int) -> frozenset[int]:
    """What to keep of a whole program that is one segment: at most so many bytes."""
    whole = model.sweep(0, [len(model.program.steps)], lambda v: False, 0)[0]
    program = _IntegerProgram(model, max(1, most))
    program.add(whole, program.variable(upper=0.0), np.inf)
    program.keep_at_most(1.0)
    return frozenset(program.solution() or ())


@dataclasses.dataclass(frozen=True)
class _Closure:
    """What the backward pass of a segment reaches if nothing is kept: values made in the segment, the steps that make them,
    values from before; needed: values that it reads itself."""

    values: list[int]
    steps: list[int]
    before: list[int]
    needed: set[int]
    forced: set[int]
    """Steps that are done again in any case: loops, and those whose derivative reads their result as it left them."""


class _IntegerProgram:
    """Rows low <= a·x <= high over variables in [0, 1], but for those that count bytes, which are in units of `unit`."""

    def __init__(self, model: Segments, unit: float):
        self._model, self._unit = model, unit
        self._cost: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._whole: list[int] = []
        self._rows: list[tuple[list[tuple[int, float]], float, float]] = []
        self._kept: dict[int, int] = {}

    def variable(self, cost: float = 0.0, lower: float = 0.0, upper: float = 1.0, whole: bool = False) -> int:
        self._cost.append(cost)
        self._lower.append(lower)
        self._upper.append(upper)
        self._whole.append(int(whole))
        return len(self._cost) - 1

    def keep_at_most(self, most: float) -> None:
        self._row([(x, self._model.sizes[v] / self._unit) for v, x in self._kept.items()], high=most)

    def _row(self, row: list[tuple[int, float]], low: float = -np.inf, high: float = np.inf) -> None:
        self._rows.append((row, low, high))

    def add(self, segment: Segment, alive: int, most: float) -> int:
        """A segment whose backward pass may take `most`. alive: the variable of the bytes alive before it; the one of those
        alive after it is returned."""
        model, unit = self._model, self._unit
        after = self.variable(upper=np.inf)
        if segment.plain:
            self._row([(alive, 1.0)], high=most - segment.inside / unit)
            self._row([(after, 1.0), (alive, -1.0)], low=segment.saved / unit)
            return after
        closure = _closure(model, segment)
        bare = model.sweep(segment.start, [segment.stop], lambda v: False, segment.way)[0]
        size = {v: model.sizes[v] / unit for v in (*closure.values, *closure.before)}
        total = max(1, model.forward_flops)
        kept = {v: self.variable(0.01 * size[v], whole=True) for v in closure.values}  # of equals the smaller
        again = {i: self.variable(1e4 * model.flops[i] / total, float(i in closure.forced)) for i in closure.steps}
        read = {u: self.variable(lower=float(u in closure.needed)) for u in closure.before} if COPIES else {}
        self._kept |= kept
        for v in closure.values:
            if v in closure.needed:
                self._row([(kept[v], 1.0), (again[model.maker[v]], 1.0)], low=1.0)
        for i in closure.steps:
            for v in _operands(model, i):
                if v in kept:
                    self._row([(kept[v], 1.0), (again[model.maker[v]], 1.0), (again[i], -1.0)], low=0.0)
                elif v in read:
                    self._row([(read[v], 1.0), (again[i], -1.0)], low=0.0)
        copied = COPIES * sum(size[u] for u in closure.before)
        inside = [(alive, 1.0), *((kept[v], size[v]) for v in closure.values if v not in closure.needed)]
        inside += [(x, COPIES * size[u]) for u, x in read.items()]
        self._row(inside, high=most - bare.inside / unit + copied)
        stay = [(x, -size[v]) for v, x in kept.items() if model.last.get(v, -1) < segment.stop]
        self._row([(after, 1.0), (alive, -1.0), *stay], low=bare.saved / unit)
        return after

    def solution(self) -> set[int] | None:
        """The values that are kept; None where none was found."""
        from scipy import sparse  # of HiGHS's interface: 0.3 s that `import robustad` need not take
        from scipy.optimize import Bounds, LinearConstraint, milp

        entries = [(r, c, a) for r, (row, _, _) in enumerate(self._rows) for c, a in row]
        if not self._kept or not entries:
            return None
        rows, columns, numbers = zip(*entries)
        matrix: Any = sparse.csr_array((numbers, (rows, columns)), shape=(len(self._rows), len(self._cost)))
        low, high = ([row[k] for row in self._rows] for k in (1, 2))
        limits: Any = Bounds(self._lower, self._upper)  # pyright: ignore[reportArgumentType]
        fulfilled: Any = LinearConstraint(matrix, low, high)  # pyright: ignore[reportArgumentType]
        found = milp(self._cost, integrality=self._whole, bounds=limits, constraints=fulfilled, options=dict(LIMITS))
        return None if found.x is None else {v for v, x in self._kept.items() if found.x[x] > 0.5}


def _closure(model: Segments, segment: Segment) -> _Closure:
    within = range(segment.start, segment.stop)
    needed = {model.root[v] for i in within for v in model.needs[i].values}
    forced = {i for i in within if model.needs[i].inner or {*model.needs[i].values} & {*model.program.steps[i].results}}
    inside = [v for v in sorted(needed) if model.maker.get(v, -1) >= segment.start]
    values, steps = dict.fromkeys(inside), dict[int, None]()
    before = {v: None for v in sorted(needed) if v not in values}
    pending = [*sorted(forced), *(model.maker[v] for v in inside)]
    while pending:
        i = pending.pop()
        if i in steps:
            continue
        steps[i] = None
        for v in _operands(model, i):
            if model.maker.get(v, -1) < segment.start:
                before[v] = None
            else:
                values[v] = None
                pending.append(model.maker[v])
    return _Closure(list(values), list(steps), list(before), needed, forced)


def _operands(model: Segments, i: int) -> list[int]:
    return [model.root[v] for v in dict.fromkeys(model.program.steps[i].operands) if v is not None]
