"""What `stabilize` tells of its replacements."""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """One replacement.

    file, line, function: the statement of the user's that it stands for; None where no line of the user's made the equation.
    rule: the kind of replacement.
    before, after: what stood there and what stands there, as formulas.
    reason: where the one before fails.
    """

    file: str | None
    line: int | None
    function: str | None
    rule: str
    before: str
    after: str
    reason: str

    def __str__(self) -> str:
        return f"{_place(self)}\n    {self.before}\n    -> {self.after}  [{self.rule}]\n    {self.reason}"


@dataclasses.dataclass(frozen=True)
class Untouched:
    """Something that no rule looked into, with its place and why."""

    file: str | None
    line: int | None
    function: str | None
    primitive: str
    reason: str

    def __str__(self) -> str:
        return f"{_place(self)}\n    {self.primitive} is left alone: {self.reason}"


class Rewrites(tuple[Rewrite, ...]):
    """The replacements in a program, printable; `untouched`: what was left alone."""

    untouched: tuple[Untouched, ...]

    @staticmethod
    def of(rewrites: Iterable[Rewrite], untouched: Iterable[Untouched]) -> Rewrites:
        """One entry for each rule at a statement: the largest form."""
        best: dict[object, Rewrite] = {}
        for r in rewrites:
            key = (r.file, r.line, r.function, r.rule, r.before if r.rule == "derivative" else None)
            if key not in best or len(r.before) > len(best[key].before):
                best[key] = r
        made = Rewrites(sorted(best.values(), key=lambda r: (r.file or "", r.line or 0)))
        made.untouched = tuple(untouched)
        return made

    def __str__(self) -> str:
        if not self and not self.untouched:
            return "nothing is replaced"
        return "\n".join(str(r) for r in (*self, *self.untouched))

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        printer.text(str(self))  # type: ignore[attr-defined]


def _place(told: Rewrite | Untouched) -> str:
    if told.file is None or told.line is None:
        return "(no line of yours)"
    text = linecache.getline(told.file, told.line).strip()
    return f"{told.file}:{told.line} in {told.function}" + (f": {text}" if text else "")
