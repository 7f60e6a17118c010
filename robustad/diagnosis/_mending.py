"""What `robustad.stabilize` makes of a gradient that is not good: its replacements as remedies, bits before and after."""

import dataclasses
from collections.abc import Sequence

from robustad.diagnosis._finding import Finding
from robustad.rewriting import Rewrite


@dataclasses.dataclass(frozen=True)
class Stabilized:
    """The gradient of `stabilize(f)` at the same arguments.

    ok: whether it is good.
    bits_lost: of each leaf, by name (of its worst slice); None where there is no reference.
    rewrites: what is replaced.
    """

    ok: bool
    bits_lost: dict[str, float | None]
    rewrites: tuple[Rewrite, ...]


def with_remedies(findings: Sequence[Finding], after: Stabilized) -> tuple[Finding, ...]:
    """The findings, whose remedies name the replacement at their statement."""
    return tuple(_with_remedy(finding, after) for finding in findings)


def _with_remedy(finding: Finding, after: Stabilized) -> Finding:
    here = [r for r in after.rewrites if (r.file, r.line) == (finding.file, finding.line)]
    if not here:
        return finding
    best = min(here, key=lambda r: ("derivative", "untaken-branch").index(r.rule) + 1 if r.rule in _LAST else 0)
    lost = [after.bits_lost[name] for name in finding.reaches if after.bits_lost.get(name) is not None]
    then = f"; then {max(b for b in lost if b is not None):.1f} bits are lost" if lost else ""
    told = f" Or rad.stabilize, which does it: {best.before} -> {best.after}{then}."
    return dataclasses.replace(finding, remedy=finding.remedy + told)


_LAST = ("derivative", "untaken-branch")
