"""A report as one page of HTML that holds all that it needs, and as a fragment for notebooks."""

import os
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from robustad._html_style import PAGE, STYLE
from robustad.diagnosis._contribution import Contribution
from robustad.diagnosis._error_map import error_map
from robustad.diagnosis._finding import Finding
from robustad.diagnosis._marked_lines import MarkedLine, around, marked_lines
from robustad.diagnosis._report import LeafSummary, Report

OPEN, LEAVES, RANKED, NOTES, SOURCE = 30, 1000, 20, 50, 200
"""Rows of leaves in sight and in all, leaves with a ranking, notes, and marked lines of source; the rest is counted."""
LONGEST = 240
"""Characters of a source line or a name that are shown."""


def page(report: Report) -> str:
    """The whole page, with neither scripts nor anything to fetch."""
    title = _text(f"audit {report.function}: {'OK' if report.ok else 'NOT OK'}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{PAGE}</style></head>\n<body>{fragment(report)}</body></html>\n"
    )


def fragment(report: Report) -> str:
    """The same without the page about it."""
    return f'<div class="robustad"><style>{STYLE}</style>\n' + "\n".join(_parts(report)) + "\n</div>"


def _parts(report: Report) -> Iterator[str]:
    yield from _verdict(report)
    for number, finding in enumerate(report.findings, 1):
        yield _card(finding, number)
    lines = marked_lines(report)
    if lines:
        yield "<h2>Error along the program</h2>"
        precision = max((leaf.precision for leaf in report.leaves if leaf.precision), default=24)
        yield f'<div class="wide">{error_map(lines, precision)}</div>{_KEY}'
    yield from _leaves(report.leaves, report.threshold)
    yield from _rankings(report.ranking)
    yield from _source(lines)
    if report.notes:
        n = len(report.notes)
        held = "".join(_card(note) for note in report.notes[:NOTES])
        yield f"<h2>Notes</h2><details><summary>{n} note{'s' * (n != 1)}</summary>{held}{_more(n - NOTES)}</details>"


def _verdict(report: Report) -> Iterator[str]:
    n = len(report.findings)
    verdict = "OK" if report.ok else f"NOT OK, {n} cause{'s' * (n != 1)}"
    yield f'<h1>audit {_text(report.function)}: <span class="{"good" if report.ok else "bad"}">{verdict}</span></h1>'
    value = np.asarray(report.value)
    shown = f"{value[()]:.6g}" if value.shape == () else f"{value.dtype}{list(value.shape)}"
    lost = "no reference" if report.value_bits_lost is None else f"{report.value_bits_lost:.1f} bits lost"
    against = "" if report.dtype == "f64" else f", {report.dtype} against f64"
    yield f"<p>value <code>{_text(shown)}</code>, {lost}{_text(against)}</p>"
    yield f'<p class="dim">{report.equations} equations, {report.seconds:.1f} s</p>'


# ------------------------------------------------------------------------------------------------ findings


def _card(finding: Finding, number: int | None = None) -> str:
    where = f" {_place(finding)}" if finding.line > 0 else ""
    within = f" in {finding.function}" if finding.function else ""
    name = f"{number}. {finding.kind}" if number else finding.kind
    parts = [f"<h3>{_text(name)} <span class='dim'>{finding.phase}{_text(where + within)}</span></h3>"]
    parts.append(f"<p>{_text(finding.cause)}</p>")
    there = finding.committed_file or finding.file
    marks = {(finding.file, finding.line): "found"}
    if finding.committed_at is not None:
        marks[there, finding.committed_at] = "committed"
    for file in {file: None for file, _ in marks}:
        parts.append(_excerpt(file, {line: mark for (f, line), mark in marks.items() if f == file}, 3))
    if finding.committed_at is not None:
        at = f"{os.path.basename(there)}:{finding.committed_at}"
        parts.append(f"<p>Most of the error was made at <b>{_text(at)}</b>.</p>")
    if finding.shows_at:
        parts.append(f"<p>Shows at {_text(finding.shows_at)}.</p>")
    if finding.reaches:
        rest = f" and {len(finding.reaches) - 6} more" if len(finding.reaches) > 6 else ""
        parts.append(f"<p class='dim'>Reaches {_text(', '.join(map(_short, finding.reaches[:6])))}{rest}.</p>")
    parts.append(f"<p><b>Fix:</b> {_text(finding.remedy)}</p>")
    return f'<div class="card{"" if number else " note"}">{"".join(parts)}</div>'


def _excerpt(file: str, marks: dict[int, str], context: int) -> str:
    """Lines of a file about the marked ones."""
    rows, last = [], 0
    for number, text in around(file, list(marks), context):
        gap = "<span class='dim'>     …</span>" if last and number > last + 1 else ""
        mark = f' class="{marks[number]}"' if number in marks else ""
        rows.append(f"{gap}<span{mark}><u>{number:5d}</u>  {_text(_short(text)) or ' '}</span>")
        last = number
    return f"<pre>{''.join(rows)}</pre>" if rows else ""


_KEY = """<p class="key dim"><span><i style="background:var(--blue)"></i>share of a leaf's error made here (pale: it
cancels another's)</span><span><i style="background:var(--bad)"></i>a finding, and the bits it loses</span><span><i
style="background:var(--amber)"></i>where a finding's error was made</span><span><i
style="background:var(--violet)"></i>the first value that is not finite</span></p>"""


# ----------------------------------------------------------------------------------------- leaves and rankings


def _leaves(leaves: Sequence[LeafSummary], threshold: float) -> Iterator[str]:
    rows = [(_wrong(leaf, threshold), leaf) for leaf in leaves]
    rows.sort(key=lambda row: (not row[0], -(row[1].worst or 0.0)))
    made = [_leaf(leaf, wrong, threshold) for wrong, leaf in rows[:LEAVES]]
    head = "<table><tr><th>leaf</th><th>bits lost</th><th></th><th>of these, the problem's own</th><th></th></tr>"
    yield f"<h2>Leaves</h2>{head}{''.join(made[:OPEN])}</table>"
    if rest := made[OPEN:]:
        more = _more(len(rows) - LEAVES)
        yield f"<details><summary>{len(rows) - OPEN} more</summary>{head}{''.join(rest)}</table>{more}</details>"


def _wrong(leaf: LeafSummary, threshold: float) -> bool:
    return leaf.nonfinite > 0 or bool(leaf.worst and leaf.precision and leaf.worst > threshold * leaf.precision)


def _leaf(leaf: LeafSummary, wrong: bool, threshold: float) -> str:
    bad = ' class="bad"' if wrong else ""
    name = f'<td class="name"><code{bad}>{_text(_short(leaf.name))}</code></td>'
    told = [f"{leaf.nonfinite} of {int(np.prod(leaf.shape, dtype=int))} not finite"] if leaf.nonfinite else []
    if leaf.worst is None or leaf.precision is None or leaf.bits_lost is None:
        return f"<tr>{name}<td>no reference</td><td></td><td></td><td>{''.join(told)}</td></tr>"
    if leaf.sliced:
        over = sum(bits > threshold * leaf.precision for bits in leaf.bits_lost)
        told.append(f"the worst of {len(leaf.bits_lost)} slices, {over} above the threshold")
    parts = [("wrong" if wrong else "fair", leaf.worst), ("own", leaf.conditioning or 0.0)]
    filled = "".join(
        f'<i class="{kind}" style="left:0;width:{100 * bits / leaf.precision:.1f}%"></i>'
        for kind, bits in parts
        if bits
    )
    bar = f'<span class="bar">{filled}<b style="left:{100 * threshold:.1f}%"></b></span>'
    condition = "" if leaf.conditioning is None else f"{leaf.conditioning:.1f}"
    bits = f"{leaf.worst:.1f} of {leaf.precision}"
    return f"<tr>{name}<td>{bits}</td><td>{bar}</td><td>{condition}</td><td>{', '.join(told)}</td></tr>"


def _rankings(ranking: Sequence[Contribution]) -> Iterator[str]:
    by_leaf: dict[str, list[Contribution]] = {}
    for one in ranking:
        by_leaf.setdefault(one.leaf, []).append(one)
    if by_leaf:
        yield "<h2>Where the error of each leaf is made</h2>"
    for leaf, parts in list(by_leaf.items())[:RANKED]:
        most = max(abs(one.share) for one in parts) or 1.0
        rows = "".join(_contribution(one, most) for one in parts)
        yield f"<h3><code>{_text(_short(leaf))}</code></h3><table>{rows}</table>"
    yield _more(len(by_leaf) - RANKED)


def _contribution(one: Contribution, most: float) -> str:
    half = 50 * abs(one.share) / most
    left, sign = (50.0, "") if one.share >= 0 else (50 - half, ' class="opposed"')
    bar = f'<span class="bar"><i{sign} style="left:{left:.1f}%;width:{half:.1f}%"></i><b style="left:50%"></b></span>'
    what = f"{_text(one.primitive)}, {one.phase}"
    return (
        f"<tr><td>{one.share:+.1%}</td><td>{bar}</td><td>{_text(_place(one))}</td>"
        f"<td class='dim'>{what}</td><td class='name'><code>{_text(_short(one.source))}</code></td></tr>"
    )


# ------------------------------------------------------------------------------------------------- the source


def _source(lines: Sequence[MarkedLine]) -> Iterator[str]:
    kept = sorted(lines, key=lambda one: one.weight, reverse=True)[:SOURCE]
    files: dict[str, dict[int, str]] = {}
    for one in sorted(kept, key=lambda one: one.line):
        mark = "found" if one.found else "committed" if one.committed else "made" if one.share else "shown"
        files.setdefault(one.file, {})[one.line] = mark
    shown = [(file, excerpt) for file, marks in files.items() if (excerpt := _excerpt(file, marks, 2))]
    if shown:
        yield "<h2>The source, its lines marked</h2>"
    for file, excerpt in shown:
        yield f"<details open><summary><code>{_text(file)}</code></summary>{excerpt}</details>"


def _place(x: Finding | Contribution) -> str:
    return f"{os.path.basename(x.file)}:{x.line}" if x.line > 0 else "an unknown place"


def _more(n: int) -> str:
    return f"<p class='dim'>... {n} more</p>" if n > 0 else ""


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _text(text: str) -> str:
    return escape(text.encode("utf-8", "replace").decode())
