"""Where to cut a program into segments that are recomputed, and what to keep inside them, so that a budget holds.

The backward pass goes through the segments from the last to the first. At segment j there are alive what the segments
before it have kept, what it keeps itself, and what it makes again. So the constraint of a segment needs only the sum of
what is kept to its left, and the cheapest plan is found by dynamic programming from left to right, over the pairs (bytes
kept, operations done again) that no other pair beats. Inside a segment a few selections compete: keep nothing, keep results
that take many operations for a byte, keep all. Once it is known where to cut, what to keep is chosen anew: see `_selection`.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from robustad import _jaxpr
from robustad._jaxpr import Scan
from robustad.memory._flat import Flat, flat, plain_call
from robustad.memory._loops import Selection, Way, ways
from robustad.memory._segments import Plan, Segment, Segments
from robustad.memory._selection import refined, selected

DENSITIES = (math.inf, 100.0, 25.0, 6.0, 1.0, 0.0)
"""Operations for a byte of result from which a result is kept inside a segment: nothing is, ..., everything is."""
SHARES = tuple(k / 20 for k in range(1, 15))
"""Of what an iteration of a loop keeps, if it is run plainly, that it may keep when it is recomputed."""
FRONT, REACH = 24, 36
"""Pairs kept at a cut; cuts that a segment may span."""


class Planner:
    """The search for plans of one program."""

    def __init__(self, program: Flat, differentiated: Sequence[int], reached: Sequence[int] = (0,)):
        self.model = Segments(program, differentiated, reached, _ways_of)
        self._cuts = self._candidates()

    def _candidates(self) -> list[int]:
        """Positions to cut at: of so many stretches of the program, the one where the fewest bytes are alive; and about
        loops."""
        n, crossing = len(self.model.program.steps), self.model.crossing
        forced = {c for i in self.model.ways for c in (i, i + 1) if 0 < c < n}
        count = 72 + n // 50
        edges = sorted({round(k * n / count) for k in range(count + 1)} | {0, n})
        kept = {min(range(a, b), key=lambda c: (crossing[c], -c)) for a, b in itertools.pairwise(edges)}
        return sorted({0, n, *forced, *kept})

    @functools.cached_property
    def _segments(self) -> dict[int, list[Segment]]:
        """The segments that may begin at each cut."""
        found: dict[int, list[Segment]] = {}
        most = max(map(len, self.model.ways.values()), default=1)
        for k, start in enumerate(self._cuts[:-1]):
            reach = self._cuts[k + 1 : k + 1 + REACH]
            if self._cuts[-1] not in reach:
                reach = [*reach, self._cuts[-1]] if k == 0 else reach
            loops = any(start <= i < reach[-1] for i in self.model.ways)
            made = [
                s
                for density in DENSITIES
                for way in range(most if loops else 1)
                for s in self.model.sweep(start, reach, self.model.dense(density) if density else None, way)
            ]
            found[start] = _unbeaten(made)
        return found

    def plan(self, budget: float) -> Plan | None:
        """The plan with the fewest operations done again whose peak, by this model, is within the budget."""
        plan = self.cut(budget)
        return plan and refined(self.model, plan, budget)

    def cut(self, budget: float) -> Plan | None:
        """The same, of those that keep in each segment one of the few selections."""
        fronts: dict[int, list[_Label]] = {c: [] for c in self._cuts}
        fronts[0] = [_Label(0, 0, 0, None, None)]
        each = self.model.forward_flops // 10**4  # no cut for nothing
        for start in self._cuts[:-1]:
            front = fronts[start] = _front(fronts[start])
            for segment in self._segments[start]:
                for label in front:
                    alive = label.saved + segment.inside
                    if alive > budget:
                        break  # the labels keep more and more
                    saved, flops = label.saved + segment.saved, label.flops + segment.flops + each
                    fronts[segment.stop].append(_Label(saved, flops, max(label.peak, alive), segment, label))
        ends = fronts[self._cuts[-1]]
        if not ends:
            return None
        best: _Label | None = min(ends, key=lambda label: (label.flops, label.peak))
        peak = best.peak
        segments: list[Segment] = []
        while best is not None and best.segment is not None:
            segments.append(best.segment)
            best = best.before
        return Plan(tuple(reversed(segments)), sum(s.flops for s in segments), peak)

    def least(self) -> int:
        """The smallest budget, within two percent, for which there is a plan."""
        free = self.cut(math.inf)
        low, high = 0.0, float(free.peak if free else 1)
        while high - low > 0.02 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.cut(middle) else (middle, high)
        return math.ceil(high)


def _ways_of(scan: Scan, inner: int) -> list[Way]:
    """The ways to run a loop that keeps `inner` bytes when it is run plainly."""
    body = flat(scan.body, opened=plain_call)
    moved = [k for k, v in enumerate(body.inputs) if _jaxpr.is_inexact(body.avals[v])]
    model = Segments(body, moved, range(len(body.outputs)), _ways_of)
    return ways(scan, inner, _selections(model, inner // max(1, scan.length)))


def _selections(model: Segments, plainly: int) -> list[Selection]:
    """What an iteration that is recomputed may keep, of the `plainly` bytes that it keeps else; the last keeps nothing."""
    stop = len(model.program.steps)
    kept = {selected(model, int(share * plainly)) for share in SHARES} | {frozenset()}
    made = [model.sweep(0, [stop], k.__contains__, 0)[0] for k in kept]
    made.sort(key=lambda s: (s.flops, not s.kept))
    return [Selection(s.kept, sum(model.sizes[v] for v in s.kept), s.inside, s.flops) for s in made]


class _Label(NamedTuple):
    """A plan of the program up to a cut: bytes kept, operations done again, largest bytes alive."""

    saved: int
    flops: int
    peak: int
    segment: Segment | None
    before: "_Label | None"


def _front(labels: Sequence[_Label]) -> list[_Label]:
    """The pairs (bytes, operations) that no other beats, thinned out."""
    kept: list[_Label] = []
    for label in sorted(labels, key=lambda label: label[:3]):
        if not kept or label.flops < kept[-1].flops:
            kept.append(label)
    if len(kept) > FRONT:
        step = (len(kept) - 1) / (FRONT - 1)
        kept = [kept[round(k * step)] for k in range(FRONT)]
    return kept


def _unbeaten(segments: Sequence[Segment]) -> list[Segment]:
    """Of the segments with the same ends, those that no other beats."""
    found: list[Segment] = []
    by_stop: dict[int, list[Segment]] = {}
    for s in segments:
        by_stop.setdefault(s.stop, []).append(s)
    for group in by_stop.values():
        unique = {(s.flops, s.saved, s.inside): s for s in group}
        for key, s in unique.items():
            if not any(o != key and all(a <= b for a, b in zip(o, key)) for o in unique):
                found.append(s)
    return found
