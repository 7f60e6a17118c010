"""How a report looks on a terminal: lines of text, each with a style that a rich console may apply."""

import dataclasses
import os
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

from robustad.diagnosis._finding import Finding
from robustad.diagnosis._report import LeafSummary, Report

WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Line:
    text: str
    style: str = ""


def screen(report: Report, notes: bool = False) -> list[Line]:
    """The report's first screen; with `notes`, the notes too."""
    return list(_lines(report, notes))


def _lines(report: Report, notes: bool) -> Iterator[Line]:
    n = len(report.findings)
    verdict = "OK" if report.ok else f"NOT OK   {n} cause{'s' * (n != 1)}"
    against = "" if report.dtype == "f64" else f"   {report.dtype} against f64"
    yield Line(f"{f'audit {report.function}{against}':<56}  {verdict}", "bold green" if report.ok else "bold red")
    lost = "no reference" if report.value_bits_lost is None else f"{report.value_bits_lost:.1f} bits lost"
    value = np.asarray(report.value)
    shown = (
        f"{float(value):.6g}"
        if value.shape == () and not np.iscomplexobj(value)
        else f"{value.dtype}{list(value.shape)}"
    )
    yield Line(f"value  {shown:<51}{lost}")
    yield from _leaves(report.leaves, report.threshold)
    if report.stabilized is not None:
        yield from _stabilized(report)
    for k, finding in enumerate(report.findings, 1):
        yield from _finding(f"{k} ", finding, "bold red")
    if notes:
        for finding in report.notes:
            yield from _finding("- ", finding, "yellow")
    places = sorted({_place(f) for f in report.notes if f.kind == "shadow-lost"})
    others = len(report.notes)
    counted = f"{others} note{'s' * (others != 1)}" + (" (--all)" if others and not notes else "")
    where = "shadow lost " + ("at " + ", ".join(places) if places else "nowhere")
    yield Line(f"{counted}   {where}   {report.equations} equations, {report.seconds:.1f} s", "dim")


def _stabilized(report: Report) -> Iterator[Line]:
    """Bits before and after."""
    after = report.stabilized
    assert after is not None
    before = max((leaf.worst for leaf in report.leaves if leaf.worst is not None), default=None)
    then = max((b for name, b in after.bits_lost.items() if b is not None and name != "value"), default=None)
    lost = "no reference" if before is None or then is None else f"{before:.1f} -> {then:.1f} bits lost at most"
    replaced = len([r for r in after.rewrites if r.rule != "derivative"])
    text = f"with rad.stabilize ({replaced} replacement{'s' * (replaced != 1)})"
    yield Line(f"{text:<56}  {lost}{'   OK' if after.ok else ''}", "green" if after.ok else "yellow")


def _leaves(leaves: Sequence[LeafSummary], threshold: float) -> Iterator[Line]:
    precisions = {leaf.precision for leaf in leaves if leaf.precision}
    of = f"lost of {precisions.pop()}" if len(precisions) == 1 else "lost"
    yield Line(f"{'leaf':<58}{of}", "dim")
    rows = [row for leaf in leaves for row in _rows(leaf, threshold)]
    bad = [row for row in rows if row[2]]
    good = sorted((row for row in rows if not row[2]), key=lambda row: -row[3])
    shown, most = bad[:12], max(3, 10 - len(bad))
    for name, text, _, _ in shown:
        yield Line(f"{name:<56}  {text}", "red")
    for name, text, _, _ in good[:most]:
        yield Line(f"{name:<56}  {text}")
    rest = len(rows) - len(shown) - min(len(good), most)
    if rest:
        yield Line(f"... {rest} more", "dim")


def _rows(leaf: LeafSummary, threshold: float) -> Iterator[tuple[str, str, bool, float]]:
    """(name, text, whether it is wrong, bits lost) of a leaf, or of each run of slices with one verdict."""
    bad_values = f"   {leaf.nonfinite} of {max(1, _size(leaf))} not finite" if leaf.nonfinite else ""
    if leaf.bits_lost is None or leaf.precision is None:
        yield leaf.name, f"no reference{bad_values}", bool(leaf.nonfinite), 0.0
        return
    of = leaf.precision
    if not leaf.sliced:
        bits = leaf.bits_lost[0]
        yield leaf.name, f"{bits:5.1f}{_own(leaf)}{bad_values}", bool(leaf.nonfinite) or bits > threshold * of, bits
        return
    wrong = [bits > threshold * of or (leaf.nonfinite > 0 and bits == of) for bits in leaf.bits_lost]
    start = 0
    for i in range(1, len(wrong) + 1):
        if i == len(wrong) or wrong[i] != wrong[start]:
            bits = max(leaf.bits_lost[start:i])
            span = f"[{start}:{i}]" if i - start > 1 else f"[{start}]"
            yield f"{leaf.name}{span}", f"{bits:5.1f}{bad_values if wrong[start] else ''}", wrong[start], bits
            start = i


def _own(leaf: LeafSummary) -> str:
    """What of it is the problem's own, where that is something."""
    return f"   {leaf.conditioning:.1f} by its condition" if (leaf.conditioning or 0.0) >= 1 else ""


def _size(leaf: LeafSummary) -> int:
    size = 1
    for n in leaf.shape:
        size *= n
    return size


def _place(finding: Finding) -> str:
    if finding.file == "<unknown>":
        return "an unknown place"
    return f"{os.path.basename(finding.file)}:{finding.line}"


def _finding(number: str, finding: Finding, style: str) -> Iterator[Line]:
    where = f" in {finding.function}" if finding.function else ""
    undefined = finding.invalid in ("0*inf", "inf-inf", "0/0", "inf/inf")
    invalid = f"   ({finding.invalid})" if undefined else ""
    place = "" if finding.file == "<unknown>" else f"   {_place(finding)}{where}"
    yield Line(f"{number}{finding.kind.upper()}   {finding.phase}{place}{invalid}", style)
    if finding.source:
        yield Line(f"      {finding.source}", "bold")
    yield from _wrapped(finding.cause)
    if finding.committed_at is not None:
        other = finding.committed_file not in (None, finding.file)
        place = f"{os.path.basename(finding.committed_file or '')}:" if other else "line "
        yield from _wrapped(f"most of the error was made at {place}{finding.committed_at}")
    if finding.reaches:
        names = ", ".join(finding.reaches[:6]) + (
            f" and {len(finding.reaches) - 6} more" if len(finding.reaches) > 6 else ""
        )
        shows = f"shows at {finding.shows_at}; " if finding.shows_at else ""
        yield from _wrapped(f"{shows}reaches {names}")
    yield from _wrapped(f"fix: {finding.remedy}")


def _wrapped(text: str) -> Iterator[Line]:
    for line in textwrap.wrap(text, WIDTH - 6):
        yield Line(f"      {line}")
