"""How a `MemoryReport` prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from robustad.memory._bytes import readable

if TYPE_CHECKING:
    from robustad.memory._report import MemoryReport, Residual

ROWS = 12


def lines(report: MemoryReport) -> Iterator[str]:
    """The report, a line each: the total and its parts, then the user's lines."""
    on = f" on each of {report.devices} devices" if report.devices > 1 else ""
    yield f"memory of value_and_grad({report.function})   {readable(report.total)}{on}"
    for name, size, note in parts(report):
        yield f"  {name:<18}{readable(size):>11}   {note}".rstrip()
    yield recomputation(report)
    yield from _table("kept for the backward pass", report.residuals)
    yield from _table("alive at the peak", report.peak_lines, 5)
    if report.policies:
        yield "what checkpoint(f, policy=...) of the whole function would come to, predicted"
        yield f"  {'policy':<30}{'temporaries':>13}{'kept':>13}{'operations':>12}"
        for p in report.policies:
            yield f"  {p.name:<30}{readable(p.temporaries):>13}{readable(p.residuals):>13}{p.flop_ratio - 1:>+12.1%}"
        yield "  robustad.memory.fit(f, budget) keeps the temporaries to a budget"


def parts(report: MemoryReport) -> Iterator[tuple[str, int, str]]:
    """Name, bytes and a remark of each part of the total."""
    largest = report.arguments[0]
    yield "arguments", report.argument_bytes, f"{len(report.arguments)} arrays, largest {largest.name} {shape(largest)}"
    yield "results", report.output_bytes, _donation(report)
    if report.optimizer_state:
        yield "optimizer state", report.optimizer_state, ""
    if report.measured is None:
        yield "temporaries", report.predicted, "predicted"
    else:
        yield "temporaries", report.measured, f"measured; predicted {readable(report.predicted)}"


def _donation(report: MemoryReport) -> str:
    told = []
    if report.aliased:
        told.append(f"{readable(report.aliased)} in donated buffers")
    if report.donatable:
        told.append(f"{readable(report.donatable)} of arguments could be donated")
    if unusable := [a.name for a in report.arguments if a.donation == "unusable"]:
        told.append(f"donated in vain (no result of that shape and dtype): {', '.join(unusable[:3])}")
    return "; ".join(told)


def recomputation(report: MemoryReport) -> str:
    """What recomputing costs, in a sentence."""
    share = report.recomputed_flops / max(1, report.gradient_flops)
    whole = report.forward_flops / max(1, report.gradient_flops)
    return (
        f"recomputed in the gradient: {share:.1%} of its operations; all of the forward pass again would be {whole:.1%}"
    )


def shape(x: object) -> str:
    return f"{x.dtype}{list(x.shape)}"  # type: ignore[attr-defined]


def place(residual: Residual) -> str:
    return f"{os.path.basename(residual.file)}:{residual.line}" if residual.line else "(no user line)"


def _table(title: str, rows: tuple[Residual, ...], most: int = ROWS) -> Iterator[str]:
    yield f"{title}   {readable(sum(r.bytes for r in rows))}"
    for r in rows[:most]:
        times = f"{r.count} x " if r.count > 1 else ""
        yield f"  {readable(r.bytes):>11}   {place(r):<28}{times}{shape(r)}   {r.primitive}"
    if rest := rows[most:]:
        yield f"  {readable(sum(r.bytes for r in rest)):>11}   {len(rest)} more"
