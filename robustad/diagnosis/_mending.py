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
    lost = [b for name in finding.reaches if (b := after.bits_lost.get(name)) is not None]
    if not lost or finding.bits_lost is None or max(lost) >= finding.bits_lost - 1:
        return finding
    told = f" Or rad.stabilize: {best.before} -> {best.after}; then {max(lost):.1f} bits are lost."
    return dataclasses.replace(finding, remedy=finding.remedy + told)


_LAST = ("derivative", "untaken-branch")
