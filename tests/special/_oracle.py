"""Exact values and derivatives by ball arithmetic (python-flint), as two float64 words."""

import itertools
from collections.abc import Callable

import flint
import numpy as np

BITS = 120  # of relative accuracy: two words of float64


def _words(value: flint.arb) -> tuple[float, float]:
    if not value.is_finite():
        return np.nan, 0.0
    if value.is_zero():
        return 0.0, 0.0
    mantissa, exponent = value.mid().man_exp()
    size = int(exponent) + int(mantissa).bit_length()
    if size > 1100:
        return (np.inf if mantissa > 0 else -np.inf), 0.0
    if size < -1200:
        return (0.0 if mantissa > 0 else -0.0), 0.0
    high = float(value.mid())
    if not np.isfinite(high):
        return high, 0.0
    return high, float((value - flint.arb(high)).mid())


def _known(value: flint.arb) -> bool:
    return value.is_finite() and (value.is_exact() or value.rel_accuracy_bits() >= BITS)


def _sufficient(compute: Callable[[], list[flint.arb]]) -> list[flint.arb]:
    """At the first precision that gives every value to BITS bits; a value that never gets there is zero or undefined."""
    values = []
    for precision in (256, 512, 1024, 2560, 5120, 20480):
        flint.ctx.prec = precision
        flint.ctx.cap = 3
        values = compute()
        if all(map(_known, values)):
            break
    return [v if _known(v) else flint.arb(0) if v.is_finite() else flint.arb("nan") for v in values]


def exact(function: Callable, *point: float) -> list[list[tuple[float, float]]]:
    """Value; first partial derivatives; second partial derivatives (for two arguments xx, xy, yy) at finite floats."""

    def along(direction) -> flint.arb_series:
        value = function(*(flint.arb_series([flint.arb(x), flint.arb(d)]) for x, d in zip(point, direction)))
        return value if isinstance(value, flint.arb_series) else flint.arb_series([value])

    def compute() -> list[flint.arb]:
        if len(point) == 1:
            s = along((1,))
            return [s[0], s[1], 2 * s[2]]
        x, y, xy = along((1, 0)), along((0, 1)), along((1, 1))
        return [x[0], x[1], y[1], 2 * x[2], xy[2] - x[2] - y[2], 2 * y[2]]

    values = [_words(v) for v in _sufficient(compute)]
    sizes = (1, 1, 1) if len(point) == 1 else (1, 2, 3)
    stops = list(itertools.accumulate(sizes))
    return [values[stop - size : stop] for size, stop in zip(sizes, stops)]
