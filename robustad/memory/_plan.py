"""Where to cut a program into segments that are recomputed, and what to keep inside them, so that a budget holds.

The backward pass goes through the segments from the last to the first. At segment j there are alive what the segments
before it have kept, what it keeps itself, and what it makes again. So the constraint of a segment needs only the sum of
what is kept to its left, and the cheapest plan is found by dynamic programming from left to right, over the pairs (bytes
kept, operations done again) that no other pair beats. Inside a segment a few selections compete: keep nothing, keep results
that take many operations for a byte, keep all.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from robustad import _jaxpr
from robustad._jaxpr import Scan
from robustad.memory._flat import Flat, Step, flat, plain_call
from robustad.memory._liveness import FUSIBLE, SAME_BUFFER
from robustad.memory._loops import Way, numbered, ways
from robustad.memory._needs import Need, active, needs, step_flops

DENSITIES = (math.inf, 100.0, 25.0, 6.0, 1.0, 0.0)
"""Operations for a byte of result from which a result is kept inside a segment: nothing is, ..., everything is."""
FRONT, REACH = 24, 36
"""Pairs kept at a cut; cuts that a segment may span."""
COPIES = 0 if _jaxpr.XLA_KEEPS_BARRIERS else 1
"""How often a recomputed segment holds what it reads, beside the original: see `_after`."""
AT_ONCE = _jaxpr.XLA_KEEPS_BARRIERS
"""Whether the cotangents that a step reads and makes are alive together, transposed for the gradients of kernels too: newer
XLA for CPU begins each operation as early as it can."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Steps start..stop, recomputed but for the values in `kept`; `plain`: all of it is kept. way: of the loops in it, by
    number (see `Planner.ways`)."""

    start: int
    stop: int
    plain: bool
    kept: frozenset[int]
    way: int
    flops: int
    saved: int
    """Bytes that it leaves alive: what is kept inside and what later segments read."""
    inside: int
    """Bytes alive in its backward pass, beside what earlier segments have left."""


@dataclasses.dataclass(frozen=True)
class Plan:
    segments: tuple[Segment, ...]
    flops: int
    peak: int


class Planner:
    """The search for plans of one program."""

    def __init__(self, program: Flat, differentiated: Sequence[int], reached: Sequence[int] = (0,)):
        self.program = program
        self._moves = active(program, differentiated, reached)
        self.needs: list[Need] = needs(program, self._moves)
        self.flops = step_flops(program)
        self.maker = {v: i for i, step in enumerate(program.steps) for v in step.results}
        self.root = self._roots()
        self.sizes = [_jaxpr.nbytes(aval) for aval in program.avals]
        self.last = self._last_uses()
        self.ways = {
            i: self._ways_of(i) for i, s in enumerate(program.steps) if s.name == "scan" and self.needs[i].inner
        }
        self._crossing = self._bytes_between()
        self._cuts = self._candidates()
        self.forward_flops = sum(self.flops)

    # -------------------------------------------------------------------------------------- the program

    def _roots(self) -> list[int]:
        """Of each value, the one whose bytes hold it: a broadcast, say, is made again where it is used."""
        root = list(range(len(self.program.avals)))
        for step in self.program.steps:
            one = [v for v in step.operands if v is not None]
            if step.name in SAME_BUFFER | {"broadcast_in_dim"} and len(one) == len(step.results) == 1:
                root[step.results[0]] = root[one[0]]
        return root

    def _last_uses(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for i, step in enumerate(self.program.steps):
            last.update((self.root[v], i) for v in step.operands if v is not None)
        last.update((self.root[v], len(self.program.steps)) for v in self.program.outputs if v is not None)
        return last

    def _ways_of(self, i: int) -> list[Way]:
        """The ways to run the loop at step i."""
        step = self.program.steps[i]
        inner = _jaxpr.control(step.equation)
        assert isinstance(inner, Scan)
        body = flat(inner.body, opened=plain_call)
        moved = [k for k, v in enumerate(body.inputs) if _jaxpr.is_inexact(body.avals[v])]
        within = Planner(body, moved, range(len(body.outputs)))
        return ways(inner, self.needs[i].inner, within.selections())

    def selections(self) -> list[tuple[frozenset[int], int, int, int]]:
        """Of the program as one segment: what is kept, its bytes, the bytes of all that is read, operations done again."""
        stop = len(self.program.steps)
        made = [self.sweep(0, [stop], self._dense(density), 0)[0] for density in reversed(DENSITIES[:-1])]
        return [(s.kept, sum(self.sizes[v] for v in s.kept), s.inside, s.flops) for s in made]

    def _bytes_between(self) -> list[int]:
        """For each position, the bytes that steps before it make and steps after it read."""
        n = len(self.program.steps)
        crossing = [0] * (n + 2)
        for v, end in self.last.items():
            if v in self.maker and end > self.maker[v]:
                crossing[self.maker[v] + 1] += self.sizes[v]
                crossing[min(end, n) + 1] -= self.sizes[v]
        return list(itertools.accumulate(crossing))

    def _candidates(self) -> list[int]:
        """Positions to cut at: of so many stretches of the program, the one where the fewest bytes are alive; and about
        loops."""
        n, crossing = len(self.program.steps), self._crossing
        forced = {c for i in self.ways for c in (i, i + 1) if 0 < c < n}
        count = 72 + n // 50
        edges = sorted({round(k * n / count) for k in range(count + 1)} | {0, n})
        kept = {min(range(a, b), key=lambda c: (crossing[c], -c)) for a, b in itertools.pairwise(edges)}
        return sorted({0, n, *forced, *kept})

    # -------------------------------------------------------------------------------------- segments

    @functools.cached_property
    def _segments(self) -> dict[int, list[Segment]]:
        """The segments that may begin at each cut."""
        found: dict[int, list[Segment]] = {}
        most = max(map(len, self.ways.values()), default=1)
        for k, start in enumerate(self._cuts[:-1]):
            reach = self._cuts[k + 1 : k + 1 + REACH]
            if self._cuts[-1] not in reach:
                reach = [*reach, self._cuts[-1]] if k == 0 else reach
            loops = any(start <= i < reach[-1] for i in self.ways)
            made = [
                s
                for density in DENSITIES
                for way in range(most if loops else 1)
                for s in self.sweep(start, reach, self._dense(density) if density else None, way)
            ]
            found[start] = _unbeaten(made)
        return found

    def sweep(self, start: int, stops: Sequence[int], keeps: Callable[[int], bool] | None, way: int) -> list[Segment]:
        """The segments from `start` to each of `stops`. keeps: of a value, whether it is kept; None: all are, plainly."""
        held: set[int] = set()
        touched: set[int] = set()
        kept: set[int] = set()
        again: set[int] = set()
        flops = kept_bytes = held_bytes = copied = inner = passing = largest = local = 0
        plain = keeps is None
        found = []
        stops_left = iter(stops)
        stop: float = next(stops_left)
        leaving: dict[int, int] = {}

        def touch(v: int, hold: bool) -> list[int]:
            """Notes that a value is wanted; the steps that have to be done again for it."""
            nonlocal kept_bytes, held_bytes, copied
            v = self.root[v]
            i = self.maker.get(v, -1)
            if i < start:
                if v not in touched:
                    touched.add(v)
                    copied += COPIES * self.sizes[v]
                return []
            if hold and v not in held:
                held.add(v)
                held_bytes += self.sizes[v]
            if v in touched:
                return []
            touched.add(v)
            if keeps is None or keeps(v):
                if v not in kept:
                    kept.add(v)
                    kept_bytes += self.sizes[v]
                return []
            return [i]

        def redo(stack: list[int]) -> None:
            nonlocal flops
            while stack:
                i = stack.pop()
                if i in again:
                    continue
                again.add(i)
                flops += self.flops[i]
                for v in self.program.steps[i].operands:
                    if v is not None:
                        stack.extend(touch(v, False))

        for i in range(start, stops[-1]):
            step, need = self.program.steps[i], self.needs[i]
            for v in step.results:
                largest = max(largest, self.sizes[v])
                if self.root[v] == v and self.last.get(v, -1) > i:
                    leaving[v] = self.last[v]
            for v in need.values:
                redo(touch(v, True))
                if v in step.results and not plain:  # as it left the step: what is kept has been given a name since
                    redo([i])
                if plain and step.name == "conv_general_dilated" and self.maker.get(self.root[v], start) < start:
                    kept_bytes += self.sizes[self.root[v]]  # XLA keeps it transposed, for the gradient of the kernel
            if AT_ONCE and step.name not in FUSIBLE and need.values:
                local = max(local, self._crossing[i] + sum(self.sizes[v] for v in step.results) + self._copies(step))
            if need.inner:
                chosen = self.way_of(i, way)
                inner += chosen.bytes if chosen else need.inner
                passing += chosen.passing if chosen else 0
                flops += chosen.flops if chosen else 0
                if not plain:
                    redo([i])
            if i + 1 == stop:
                leaving = {v: end for v, end in leaving.items() if end >= stop}
                out = sum(self.sizes[v] for v in leaving if v not in kept)
                saved = kept_bytes + out + (inner if plain else 0)
                cotangents = max(local, largest + self._crossing[i + 1])
                inside = sum(self.sizes[v] for v in held - kept) + kept_bytes + inner + passing + cotangents
                inside += 0 if plain else copied
                found.append(Segment(start, i + 1, plain, frozenset(kept), way, flops, saved, inside))
                stop = next(stops_left, math.inf)
        return found

    def _copies(self, step: Step) -> int:
        """Bytes that XLA transposes for the gradient of a kernel."""
        if step.name != "conv_general_dilated":
            return 0
        return sum(self.sizes[v] for v in (step.operands[0], *step.results) if v is not None)

    def way_of(self, i: int, way: int) -> Way | None:
        return numbered(self.ways.get(i), way)

    def _dense(self, density: float) -> Callable[[int], bool]:
        """Whether a value takes so many operations for a byte."""

        def keeps(v: int) -> bool:
            i = self.maker[v]
            size = sum(self.sizes[v] for v in self.program.steps[i].results)
            return self.flops[i] >= density * max(1, size)

        return keeps

    # -------------------------------------------------------------------------------------- plans

    def plan(self, budget: float) -> Plan | None:
        """The plan with the fewest operations done again whose peak, by this model, is within the budget."""
        fronts: dict[int, list[_Label]] = {c: [] for c in self._cuts}
        fronts[0] = [_Label(0, 0, 0, None, None)]
        each = self.forward_flops // 10**4  # no cut for nothing
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
        """The smallest budget, within a percent, for which there is a plan."""
        free = self.plan(math.inf)
        low, high = 0.0, float(free.peak if free else 1)
        while high - low > 0.02 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.plan(middle) else (middle, high)
        return math.ceil(high)


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
