"""A `MemoryReport` as one page of HTML, with a picture of the bytes alive along the program."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from robustad._html_style import PAGE, STYLE
from robustad.memory._bytes import readable
from robustad.memory._report_text import parts, place, recomputation, shape

if TYPE_CHECKING:
    from robustad.memory._report import MemoryReport, Moment, Residual

ROWS, WIDTH, HEIGHT, LEFT, COLUMNS = 60, 960, 220, 70, 400


def page(report: MemoryReport) -> str:
    """The whole page, with neither scripts nor anything to fetch."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>memory of {escape(report.function)}</title><style>{PAGE}</style></head>\n"
        f"<body>{fragment(report)}</body></html>\n"
    )


def fragment(report: MemoryReport) -> str:
    """The same without the page about it."""
    return f'<div class="robustad"><style>{STYLE}</style>\n' + "\n".join(_parts(report)) + "\n</div>"


def _parts(report: MemoryReport) -> Iterator[str]:
    on = f" on each of {report.devices} devices" if report.devices > 1 else ""
    yield f"<h1>memory of value_and_grad({escape(report.function)}): {readable(report.total)}{on}</h1>"
    rows = [[name, readable(size), _bar(size, report.total), escape(note)] for name, size, note in parts(report)]
    yield _table(["", "", "", ""], rows)
    yield f"<p class='dim'>{recomputation(report)}</p>"
    yield "<h2>Bytes alive along the program</h2>"
    yield f'<div class="wide">{picture(report.timeline)}</div>'
    yield "<p class='dim'>predicted, beside arguments and results; dark: forward, light: backward</p>"
    yield f"<h2>Kept for the backward pass: {readable(report.residual_bytes)}</h2>{_lines(report.residuals)}"
    yield f"<h2>Alive at the peak</h2>{_lines(report.peak_lines)}"
    if report.policies:
        told = [
            [escape(p.name), readable(p.temporaries), readable(p.residuals), f"{p.flop_ratio - 1:+.1%}"]
            for p in report.policies
        ]
        yield "<h2>What a policy for the whole function would come to</h2>"
        yield _table(["policy", "temporaries", "kept", "operations"], told)
    arguments = [
        [
            f"<code>{escape(a.name)}</code>",
            shape(a),
            readable(a.per_device),
            "differentiated" if a.differentiated else "",
            {"": "", "possible": "could be donated", "given": "donated", "unusable": "donated in vain"}[a.donation],
        ]
        for a in report.arguments[:ROWS]
    ]
    yield f"<h2>Arguments</h2>{_table(['argument', 'shape', 'bytes', '', ''], arguments)}"
    yield _rest(len(report.arguments))


def _lines(rows: Sequence[Residual]) -> str:
    total = max(1, sum(r.bytes for r in rows))
    told = [
        [
            readable(r.bytes),
            _bar(r.bytes, total),
            escape(place(r)),
            f"<code>{escape(linecache.getline(r.file, r.line).strip()[:100])}</code>" if r.line else "",
            f"{r.count} × {shape(r)}" if r.count > 1 else shape(r),
            escape(r.primitive),
        ]
        for r in rows[:ROWS]
    ]
    return _table(["bytes", "", "line", "", "shape", "made by"], told) + _rest(len(rows))


def _rest(count: int) -> str:
    return f"<p class='dim'>{count - ROWS} more</p>" if count > ROWS else ""


def _bar(size: int, total: int) -> str:
    return f'<span class="bar"><i style="left:0;width:{100 * size / max(1, total):.1f}%"></i></span>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = f"<tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr>" if any(heads) else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def picture(timeline: Sequence[Moment]) -> str:
    """The bytes alive over the program's steps, as an SVG; each column shows the largest of its steps."""
    if not timeline:
        return "<p>an empty program</p>"
    count = min(COLUMNS, len(timeline))
    edges = [k * len(timeline) // count for k in range(count + 1)]
    columns = [max(timeline[a:b], key=lambda m: m.bytes) for a, b in itertools.pairwise(edges)]
    highest = max(1, *(m.bytes for m in columns), 1)
    step = (WIDTH - LEFT - 10) / count
    bars = []
    for k, m in enumerate(columns):
        tall = (HEIGHT - 40) * m.bytes / highest
        told = f"{readable(m.bytes)} at {m.file.rpartition('/')[2]}:{m.line}" if m.line else readable(m.bytes)
        told += ", backward" if m.backward else ", forward"
        bars.append(
            f'<rect x="{LEFT + k * step:.2f}" y="{HEIGHT - 20 - tall:.2f}" width="{step + 0.05:.2f}" height="{tall:.2f}" '
            f'style="fill:var(--blue);opacity:{0.55 if m.backward else 1}"><title>{escape(told)}</title></rect>'
        )
    grid = "".join(
        f'<line class="file" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{readable(highest * part)}</text>'
        for part in (0.5, 1.0)
        for y in [HEIGHT - 20 - (HEIGHT - 40) * part]
    )
    return (
        f'<svg class="map" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'aria-label="bytes alive along the program">{grid}{"".join(bars)}'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">first step</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 4}" text-anchor="end">last of {len(timeline)}</text></svg>'
    )
