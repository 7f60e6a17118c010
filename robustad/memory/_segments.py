"""Segments of a program, and what each costs: bytes that it leaves alive, bytes alive in its backward pass, operations done
again."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from robustad import _jaxpr
from robustad._jaxpr import Scan
from robustad.memory._flat import Flat, Step
from robustad.memory._liveness import FUSIBLE, SAME_BUFFER
from robustad.memory._loops import Way, numbered
from robustad.memory._needs import Need, active, needs, step_flops

COPIES = 0 if _jaxpr.XLA_KEEPS_BARRIERS else 1
"""How often a recomputed segment holds what it reads, beside the original: see `_after`."""
AT_ONCE = _jaxpr.XLA_KEEPS_BARRIERS
"""Whether the cotangents that a step reads and makes are alive together, transposed for the gradients of kernels too: newer
XLA for CPU begins each operation as early as it can."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Steps start..stop, recomputed but for the values in `kept`; `plain`: all of it is kept. way: of the loops in it, by
    number (see `Segments.ways`)."""

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


class Segments:
    """The segments of one program. ways_of: the ways to run a loop that keeps so many bytes when it is run plainly."""

    def __init__(
        self,
        program: Flat,
        differentiated: Sequence[int],
        reached: Sequence[int],
        ways_of: Callable[[Scan, int], list[Way]],
    ):
        self.program = program
        self.needs: list[Need] = needs(program, active(program, differentiated, reached))
        self.flops = step_flops(program)
        self.forward_flops = sum(self.flops)
        self.maker = {v: i for i, step in enumerate(program.steps) for v in step.results}
        self.root = self._roots()
        self.sizes = [_jaxpr.nbytes(aval) for aval in program.avals]
        self.last = self._last_uses()
        self.crossing = self._bytes_between()
        self.ways: dict[int, list[Way]] = {}
        for i, step in enumerate(program.steps):
            if self.needs[i].inner and isinstance(scan := _jaxpr.control(step.equation), Scan):
                self.ways[i] = ways_of(scan, self.needs[i].inner)

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

    def _bytes_between(self) -> list[int]:
        """For each position, the bytes that steps before it make and steps after it read."""
        n = len(self.program.steps)
        crossing = [0] * (n + 2)
        for v, end in self.last.items():
            if v in self.maker and end > self.maker[v]:
                crossing[self.maker[v] + 1] += self.sizes[v]
                crossing[min(end, n) + 1] -= self.sizes[v]
        return list(itertools.accumulate(crossing))

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
                local = max(local, self.crossing[i] + sum(self.sizes[v] for v in step.results) + self._copies(step))
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
                cotangents = max(local, largest + self.crossing[i + 1])
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

    def dense(self, density: float) -> Callable[[int], bool]:
        """Whether a value takes so many operations for a byte."""

        def keeps(v: int) -> bool:
            i = self.maker[v]
            size = sum(self.sizes[v] for v in self.program.steps[i].results)
            return self.flops[i] >= density * max(1, size)

        return keeps
