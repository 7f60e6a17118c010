"""What `branch_margin` says: the decisions of a program, the closest first, and how they look on a terminal."""

import dataclasses
import linecache
import math
import os
from collections.abc import Iterator
from typing import Any

import jax

from robustad.diagnosis._strict_json import strict_json


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """One decision.

    Attributes:
        values: the two numbers that were compared; for a jump, the operand and the nearest place where it jumps.
        exact: the same in float64.
        index: where in the equation's result; of neighbours in an order, the place of the first.
        iteration: of the loops around it, the outermost first.
    """

    values: tuple[float, float]
    exact: tuple[float, float]
    index: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    iteration: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def rounding(self) -> float:
        """The rounding error of the difference of the two numbers, as a share of it: from 1 on, it may decide."""
        gap, true = (a - b if a != b else 0.0 for a, b in (self.values, self.exact))
        error = abs(gap - true)
        return 0.0 if error == 0 else math.inf if gap == 0 else error / abs(gap)

    def __str__(self) -> str:
        (a, b), (x, y) = self.values, self.exact
        place = f" at [{', '.join(map(str, self.index))}]" if self.index else ""
        loop = f", iteration {', '.join(map(str, self.iteration))}" if self.iteration else ""
        twins = "" if (a, b) == (x, y) else f" (in float64 {x:.17g} against {y:.17g})"
        return f"{a:.9g} against {b:.9g}{twins}{place}{loop}"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BranchMargin:
    """One predicate of a program: an equation that decides, over all its elements and iterations.

    Attributes:
        margin: of the closest decision, how many floats of the dtype lie between the two numbers, in units of the last
            place: 0 on the threshold, 1 for neighbours; inf where no threshold is near, nan where all operands were NaN.
        kind: "comparison", "kink" (the derivative jumps), "jump" (the value does) or "order".
        primitive, dtype: the JAX primitive, and what it compares.
        file, line, function: the user's statement (line is 1-based); "<unknown>", 0 and "" where no frame is the user's.
        closest: the closest decision; None where no threshold is near.
        decisions: how many decisions were taken; 0 where the equation did not run.
        unknown: how many of them on a NaN.
        otherwise: how many would have been taken otherwise in float64.
        diverging: of these, the one whose numbers are farthest apart in float64, or None.
    """

    margin: float
    kind: str = dataclasses.field(metadata={"static": True})
    primitive: str = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    file: str = dataclasses.field(metadata={"static": True})
    line: int = dataclasses.field(metadata={"static": True})
    function: str = dataclasses.field(metadata={"static": True})
    closest: Sample | None
    decisions: int
    unknown: int
    otherwise: int
    diverging: Sample | None

    @property
    def diverges(self) -> bool:
        """Whether float64 decides otherwise somewhere."""
        return self.otherwise > 0

    @property
    def index(self) -> tuple[int, ...] | None:
        """Of the closest decision."""
        return self.closest.index if self.closest else None

    @property
    def iteration(self) -> tuple[int, ...] | None:
        """Of the closest decision, in the loops around it, the outermost first."""
        return self.closest.iteration if self.closest else None

    @property
    def values(self) -> tuple[float, float] | None:
        """The two numbers of the closest decision."""
        return self.closest.values if self.closest else None

    @property
    def exact(self) -> tuple[float, float] | None:
        """The two numbers of the closest decision in float64."""
        return self.closest.exact if self.closest else None

    @property
    def source(self) -> str:
        """The text of the user's line, or ""."""
        return linecache.getline(self.file, self.line).strip()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BranchMargins:
    """What `branch_margin` found.

    Attributes:
        margins: a `BranchMargin` of every predicate that ran, the smallest first.
        unreached: those that did not run, for example in a branch of `lax.cond` that was not taken.
        function: the name of what was looked at.
        seconds: how long it took.
    """

    margins: tuple[BranchMargin, ...]
    unreached: tuple[BranchMargin, ...]
    function: str = dataclasses.field(metadata={"static": True})
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether float64 takes every decision as the program did."""
        return not self.diverging

    @property
    def diverging(self) -> tuple[BranchMargin, ...]:
        """The predicates that float64 decides otherwise somewhere."""
        return tuple(m for m in self.margins if m.diverges)

    @property
    def smallest(self) -> BranchMargin | None:
        """The predicate with the smallest margin; None where the program decides nothing."""
        return self.margins[0] if self.margins else None

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a logger."""
        return {
            "ok": float(self.ok),
            "smallest": self.smallest.margin if self.smallest else math.inf,
            "predicates": float(len(self.margins)),
            "decisions": float(sum(m.decisions for m in self.margins)),
            "otherwise": float(sum(m.otherwise for m in self.margins)),
        }

    def to_json(self, **options: Any) -> str:
        """As strict JSON (non-finite numbers are the strings "inf" and "nan"); `options` are passed to `json.dumps`."""
        return strict_json(dataclasses.asdict(self) | {"ok": self.ok}, **options)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(found: BranchMargins, most: int = 12) -> Iterator[str]:
    n, wrong = len(found.margins), sum(m.otherwise for m in found.margins)
    verdict = "OK" if found.ok else f"NOT OK   {wrong} decided otherwise in float64"
    counted = f"{n} predicate{'s' * (n != 1)}"
    yield f"{f'branch margins of {found.function}   {counted}':<56}  {verdict}"
    shown = [*found.diverging, *(m for m in found.margins if not m.diverges)]
    for m in shown[:most]:
        where = "an unknown place" if m.file == "<unknown>" else f"{os.path.basename(m.file)}:{m.line}"
        within = f" in {m.function}" if m.function else ""
        yield f"{m.margin:>13,.0f} ulp   {m.primitive} {m.dtype} ({m.kind})   {where}{within}"
        if m.source:
            yield f"{'':<20}{m.source}"
        if m.closest:
            yield f"{'':<20}{m.closest}"
        if m.unknown:
            yield f"{'':<20}{m.unknown} of {m.decisions} on NaN"
        if m.diverging:
            yield f"{'':<6}OTHERWISE     {m.otherwise} of {m.decisions} in float64, for example"
            yield f"{'':<20}{m.diverging}"
    if len(shown) > most:
        yield f"... {len(shown) - most} more"
    if found.unreached:
        yield f"{len(found.unreached)} more did not run: " + ", ".join(
            dict.fromkeys(f"{m.primitive} at {os.path.basename(m.file)}:{m.line}" for m in found.unreached[:6])
        )
