"""A picture of the error along the program: an SVG whose horizontal axis is the user's lines."""

import os
from collections.abc import Iterator, Sequence
from html import escape

from robustad.diagnosis._marked_lines import MarkedLine

MOST = 60
"""Lines that are drawn; beyond them, those that say least are left out."""
COLUMN, LEFT, UP, DOWN, TOP, LABELS = 26, 64, 110, 80, 34, 60
AXIS = TOP + UP
HEIGHT = AXIS + DOWN + LABELS


def error_map(lines: Sequence[MarkedLine], precision: int) -> str:
    """Above the axis the share of a leaf's error that each line makes; below it the bits that its faults lose.

    precision: bits that can be lost, the depth of the lower half.
    """
    kept = sorted(lines, key=lambda one: one.weight, reverse=True)[:MOST]
    drawn = [one for one in lines if one in kept]
    width = LEFT + COLUMN * len(drawn) + 150
    parts = [
        f'<svg class="map" role="img" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        'aria-label="error made and bits lost along the program">',
        *_axes(width),
        *_files(drawn),
        *(part for k, one in enumerate(drawn) for part in _column(k, one, _highest(drawn), precision)),
        "</svg>",
    ]
    left_out = len(lines) - len(drawn)
    more = f"<p class='dim'>{left_out} lines that say less are left out.</p>" if left_out else ""
    return "".join(parts) + more


def _highest(lines: Sequence[MarkedLine]) -> float:
    return max(1.0, *(abs(one.share) for one in lines))


def _axes(width: int) -> Iterator[str]:
    yield f'<line class="axis" x1="{LEFT - 8}" x2="{width - 140}" y1="{AXIS}" y2="{AXIS}"/>'
    yield f'<text x="{LEFT - 12}" y="{TOP + 20}" text-anchor="end">error</text>'
    yield f'<text x="{LEFT - 12}" y="{TOP + 34}" text-anchor="end">made</text>'
    yield f'<text x="{LEFT - 12}" y="{AXIS + DOWN - 18}" text-anchor="end">bits</text>'
    yield f'<text x="{LEFT - 12}" y="{AXIS + DOWN - 4}" text-anchor="end">lost</text>'


def _files(lines: Sequence[MarkedLine]) -> Iterator[str]:
    """The name of each file over its first line, and a rule where it begins."""
    for k, one in enumerate(lines):
        if k == 0 or lines[k - 1].file != one.file:
            x = LEFT + COLUMN * k - 2
            yield f'<line class="file" x1="{x}" x2="{x}" y1="{TOP - 20}" y2="{AXIS + DOWN}"/>'
            yield f'<text x="{x + 4}" y="{TOP - 12}">{escape(os.path.basename(one.file))}</text>'


def _column(k: int, one: MarkedLine, highest: float, precision: int) -> Iterator[str]:
    x, middle = LEFT + COLUMN * k, LEFT + COLUMN * k + COLUMN // 2 - 2
    yield f"<g><title>{escape(_told(one))}</title>"
    if one.share:
        height = max(1.0, UP * abs(one.share) / highest)
        sign = "made" if one.share > 0 else "made opposed"
        yield f'<rect class="{sign}" x="{x + 3}" y="{AXIS - height:.1f}" width="{COLUMN - 10}" height="{height:.1f}"/>'
    if one.bits_lost:
        height = max(1.0, DOWN * min(1.0, one.bits_lost / precision))
        yield f'<rect class="lost" x="{x + 3}" y="{AXIS}" width="{COLUMN - 10}" height="{height:.1f}"/>'
    if one.committed:
        yield f'<path class="committed" d="M{middle} {AXIS - 11}l9 11l-9 11l-9 -11z"/>'
    if one.found:
        yield f'<circle class="found" cx="{middle}" cy="{AXIS}" r="9"/>'
        yield f'<text class="number" x="{middle}" y="{AXIS + 4}" text-anchor="middle">{one.found[0]}</text>'
    elif one.committed:
        yield f'<text class="number" x="{middle}" y="{AXIS + 4}" text-anchor="middle">{one.committed[0]}</text>'
    if one.shown:
        yield f'<path class="shown" d="M{middle - 8} {AXIS + DOWN - 14}h16l-8 13z"/>'
    y = AXIS + DOWN + 10
    strong = ' class="strong"' if one.found or one.committed else ""
    yield f'<text{strong} transform="translate({middle - 3} {y}) rotate(60)">line {one.line}</text></g>'


def _told(one: MarkedLine) -> str:
    told = [f"{os.path.basename(one.file)}:{one.line}"]
    if one.share:
        told.append(f"makes {one.share:+.1%} of the error of {one.leaf}")
    if one.bits_lost:
        told.append(f"a fault here: {one.bits_lost:.1f} bits lost")
    told += [f"the error of finding {n} was made here" for n in one.committed]
    told += [f"finding {n} first shows as a non-finite value here" for n in one.shown]
    return "\n".join(told)
