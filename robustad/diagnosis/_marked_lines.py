"""The user's lines that a report speaks of, in the order of the program, each with what is made and what shows there."""

import dataclasses
import linecache
import os
from collections.abc import Iterator

from robustad.diagnosis._finding import Finding
from robustad.diagnosis._report import Report


@dataclasses.dataclass
class MarkedLine:
    """One line of the user's.

    Attributes:
        share: the largest part of a leaf's error that is made here (signed), of the leaf `leaf`; 0.0 where none is known.
        bits_lost: the most bits lost by a leaf that the faults found here reach; 0.0 where none is.
        found, committed, shown: the numbers (from 1) of the findings that stand here, of those whose error was made here
            though they stand elsewhere, and of those whose first non-finite value is here.
    """

    file: str
    line: int
    share: float = 0.0
    leaf: str = ""
    bits_lost: float = 0.0
    found: list[int] = dataclasses.field(default_factory=list)
    committed: list[int] = dataclasses.field(default_factory=list)
    shown: list[int] = dataclasses.field(default_factory=list)

    @property
    def weight(self) -> tuple[bool, float, float]:
        """What is left out last where not all can be shown."""
        return bool(self.found or self.committed or self.shown), abs(self.share), self.bits_lost


def marked_lines(report: Report) -> list[MarkedLine]:
    """File by file as the report first speaks of them, each in the order of its lines."""
    lines: dict[tuple[str, int], MarkedLine] = {}
    files: dict[str, int] = {}

    def at(file: str, line: int) -> MarkedLine:
        files.setdefault(file, len(files))
        return lines.setdefault((file, line), MarkedLine(file, line))

    for number, finding in enumerate(report.findings, 1):
        if finding.line > 0:
            here = at(finding.file, finding.line)
            here.found.append(number)
            here.bits_lost = max(here.bits_lost, finding.bits_lost or 0.0)
        if finding.committed_at is not None:
            at(finding.committed_file or finding.file, finding.committed_at).committed.append(number)
    for one in report.ranking:
        if one.line > 0:
            here = at(one.file, one.line)
            if abs(one.share) > abs(here.share):
                here.share, here.leaf = one.share, one.leaf
    for number, finding in enumerate(report.findings, 1):
        if (place := _shown(finding, files)) is not None:
            at(*place).shown.append(number)
    return sorted(lines.values(), key=lambda one: (files[one.file], one.line))


def _shown(finding: Finding, files: dict[str, int]) -> tuple[str, int] | None:
    """The place that `shows_at` names by the last part of its path, where the report knows such a file."""
    name, _, line = (finding.shows_at or "").partition(" (")[0].rpartition(":")
    known = [file for file in files if os.path.basename(file) == name]
    return (known[0], int(line)) if known and line.isdigit() else None


def around(file: str, lines: list[int], context: int) -> Iterator[tuple[int, str]]:
    """Those lines of a file and `context` lines about each, as (number, text); nothing where the file is not at hand."""
    wanted = sorted({k for line in lines for k in range(max(1, line - context), line + context + 1)})
    for number in wanted:
        if text := linecache.getline(file, number):
            yield number, text.rstrip("\n\r")
