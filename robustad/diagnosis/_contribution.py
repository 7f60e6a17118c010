"""The ranking in the user's terms: one statement, and its part in the error of one leaf."""

import dataclasses
import linecache
from collections.abc import Mapping

from robustad._jaxpr import Site
from robustad.diagnosis._ranking import Ranked
from robustad.diagnosis._reader import Reader

MOST = 8
"""Statements that are listed for a leaf."""


@dataclasses.dataclass(frozen=True)
class Contribution:
    """A statement's own rounding, overflow or underflow, carried to the error of a leaf.

    Attributes:
        leaf: name of the gradient leaf, or "value".
        file, line, function: the statement; "<unknown>", 0 and "" where no frame is the user's.
        primitive: of the equation there with the largest part.
        phase: "forward" or "backward", of that equation.
        share: of the leaf's error, signed; those of all statements add up to 1.
        error: the same in units of the leaf, its 2-norm.
    """

    leaf: str
    file: str
    line: int
    function: str
    primitive: str
    phase: str
    share: float
    error: float

    @property
    def source(self) -> str:
        """The text of the user's line, or ""."""
        return linecache.getline(self.file, self.line).strip()


def contributions(reader: Reader, ranked: Mapping[str, Ranked]) -> tuple[Contribution, ...]:
    """Leaf by leaf, the statements with the largest shares first."""
    return tuple(one for leaf, what in ranked.items() for one in _of_leaf(reader, leaf, what))


def _of_leaf(reader: Reader, leaf: str, ranked: Ranked) -> list[Contribution]:
    by_statement: dict[object, list[Site]] = {}
    for path in ranked.shares:
        site = reader.flow.sites[path]
        where = reader.statement(site)
        by_statement.setdefault((where.file, where.line) if where else path, []).append(site)
    made = []
    for sites in by_statement.values():
        most = max(sites, key=lambda s: abs(ranked.shares[s.path]))
        where, share = reader.statement(most), sum(ranked.shares[s.path] for s in sites)
        file, line, function = (where.file, where.line, where.function) if where else ("<unknown>", 0, "")
        phase = "forward" if reader.is_primal(most) else "backward"
        made.append(Contribution(leaf, file, line, function, most.primitive, phase, share, share * ranked.error))
    return sorted(made, key=lambda one: -abs(one.share))[:MOST]
