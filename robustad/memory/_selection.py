"""What to keep inside the segments of a plan: the integer program whose optimum does the fewest operations again.

A step is done again if a result of it is needed and not kept, or read by a step that is done again; at no segment may the
bytes that earlier segments leave and its own exceed the budget. Of the variables only "is kept" has to be an integer: the
others follow from it (a closure problem; Jain et al., Checkmate, MLSys 2020, have the same constraints for every step).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from robustad.memory._plan import COPIES, Plan, Planner, Segment

LIMITS = {"mip_rel_gap": 1e-2, "node_limit": 100, "presolve": False}
"""Of the search: counts, no seconds, so that it ends with the same result each time; and without the presolve, which saves
little here and prints a line of HiGHS's own when its solution has to be repaired."""


def refined(planner: Planner, plan: Plan, budget: float) -> Plan:
    """The plan with the same segments, in which what is kept inside is chosen anew; or the plan, if that is no worse."""
    program = _IntegerProgram(planner, plan, budget)
    kept = program.solution()
    if kept is None:
        return plan
    segments = tuple(
        s if s.plain else planner.sweep(s.start, [s.stop], kept.__contains__, s.way)[0] for s in plan.segments
    )
    flops, peak, saved = sum(s.flops for s in segments), 0, 0
    for segment in segments:
        peak = max(peak, saved + segment.inside)
        saved += segment.saved
    return Plan(segments, flops, peak) if flops < plan.flops and peak <= budget else plan


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
    """Rows a·x >= low over variables in [0, 1], but for those that count bytes; bytes are in units of the budget."""

    def __init__(self, planner: Planner, plan: Plan, budget: float):
        self._planner, self._budget = planner, budget
        self._cost: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._whole: list[int] = []
        self._rows: list[tuple[list[tuple[int, float]], float, float]] = []
        self._kept: dict[int, int] = {}
        saved = self._variable(0.0, upper=0.0)
        for segment in plan.segments:
            saved = self._segment(segment, saved)

    def _variable(self, cost: float, lower: float = 0.0, upper: float = 1.0, whole: bool = False) -> int:
        self._cost.append(cost)
        self._lower.append(lower)
        self._upper.append(upper)
        self._whole.append(int(whole))
        return len(self._cost) - 1

    def _segment(self, segment: Segment, saved: int) -> int:
        """Adds the rows of a segment; saved: the variable of what is alive before it. Returns the one after it."""
        after = self._variable(0.0, upper=np.inf)
        if segment.plain:
            self._rows.append(([(saved, 1.0)], -np.inf, 1 - segment.inside / self._budget))
            self._rows.append(([(after, 1.0), (saved, -1.0)], segment.saved / self._budget, np.inf))
            return after
        planner, closure = self._planner, _closure(self._planner, segment)
        bare = planner.sweep(segment.start, [segment.stop], lambda v: False, segment.way)[0]
        total = max(1, planner.forward_flops)
        size = {v: planner.sizes[v] / self._budget for v in (*closure.values, *closure.before)}
        kept = {v: self._variable(1e-6 * size[v], whole=True) for v in closure.values}
        again = {i: self._variable(planner.flops[i] / total, lower=float(i in closure.forced)) for i in closure.steps}
        held = {u: self._variable(0.0, lower=float(u in closure.needed)) for u in closure.before} if COPIES else {}
        self._kept |= kept
        for v in closure.values:
            if v in closure.needed:
                self._rows.append(([(kept[v], 1.0), (again[planner.maker[v]], 1.0)], 1.0, np.inf))
        for i in closure.steps:
            for v in _operands(planner, i):
                if v in kept:
                    row = [(kept[v], 1.0), (again[planner.maker[v]], 1.0), (again[i], -1.0)]
                    self._rows.append((row, 0.0, np.inf))
                elif v in held:
                    self._rows.append(([(held[v], 1.0), (again[i], -1.0)], 0.0, np.inf))
        copied = sum(size[u] for u in closure.before) * COPIES
        alive = [(saved, 1.0), *((kept[v], size[v]) for v in closure.values if v not in closure.needed)]
        alive += [(x, COPIES * size[u]) for u, x in held.items()]
        self._rows.append((alive, -np.inf, 1 - bare.inside / self._budget + copied))
        stays = [(x, -size[v]) for v, x in kept.items() if planner.last.get(v, -1) < segment.stop]
        self._rows.append(([(after, 1.0), (saved, -1.0), *stays], bare.saved / self._budget, np.inf))
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
        found = milp(
            np.array(self._cost),
            integrality=np.array(self._whole),
            bounds=Bounds(np.array(self._lower), np.array(self._upper)),
            constraints=LinearConstraint(matrix, np.array(low), np.array(high)),
            options=dict(LIMITS),
        )
        return None if found.x is None else {v for v, x in self._kept.items() if found.x[x] > 0.5}


def _closure(planner: Planner, segment: Segment) -> _Closure:
    within = range(segment.start, segment.stop)
    needed = {planner.root[v] for i in within for v in planner.needs[i].values}
    forced = {
        i for i in within if planner.needs[i].inner or {*planner.needs[i].values} & {*planner.program.steps[i].results}
    }
    inside = [v for v in sorted(needed) if planner.maker.get(v, -1) >= segment.start]
    values, steps = dict.fromkeys(inside), dict[int, None]()
    before = {v: None for v in sorted(needed) if v not in values}
    pending = [*sorted(forced), *(planner.maker[v] for v in inside)]
    while pending:
        i = pending.pop()
        if i in steps:
            continue
        steps[i] = None
        for v in _operands(planner, i):
            if planner.maker.get(v, -1) < segment.start:
                before[v] = None
            else:
                values[v] = None
                pending.append(planner.maker[v])
    return _Closure(list(values), list(steps), list(before), needed, forced)


def _operands(planner: Planner, i: int) -> list[int]:
    return [planner.root[v] for v in dict.fromkeys(planner.program.steps[i].operands) if v is not None]
