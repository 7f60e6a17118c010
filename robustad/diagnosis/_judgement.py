"""The verdict on one gradient leaf: finite, by a right rule, and with its digits."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from robustad.diagnosis._accuracy import norm, scale
from robustad.diagnosis._grad_check_report import LeafCheck
from robustad.diagnosis._point import Gradient
from robustad.diagnosis._probes import Probes, coordinates, from_coordinates


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a leaf's derivative.

    expected: the derivative of the value, where no differences were taken what the derivative program gives without
    rounding; NaN where neither is known; in `coordinates`, like `wrong`: where these two differ; and `decided`: where
    differences are good enough to tell. told: a direction along which they do, as (got, expected).
    """

    expected: np.ndarray
    wrong: np.ndarray
    decided: np.ndarray
    told: tuple[float, float] | None


def known(gradient: Gradient, probes: Probes, rtol: float, tiniest: float) -> Known:
    """Compares a derivative program without rounding to the differences of the value.

    Constants in the program (π, the coefficients of an approximation) are rounded to its dtype, and may cancel: 16 units in
    the last place of the leaf's largest element are no fault. Nor is what is below its dtype's normal numbers (`tiniest`).
    """
    rules = coordinates(gradient.exact)
    finite = np.abs(rules[np.isfinite(rules)])
    floor = 16 * 2.0**-gradient.precision * float(np.max(finite, initial=0.0)) + tiniest
    with np.errstate(invalid="ignore", over="ignore"):
        nearest = np.clip(rules, probes.slopes.low, probes.slopes.high)  # at a kink all in between
        tolerance = rtol * np.fmax(np.abs(probes.slopes.value), np.abs(rules)) + floor
        decided = probes.slopes.error <= tolerance
        wrong = (
            ~np.isnan(rules)
            & ~np.isnan(probes.slopes.value)
            & (np.abs(rules - nearest) > tolerance + probes.slopes.error)
        )
    expected = np.where(wrong | (np.isnan(rules) & decided), probes.slopes.value, rules)
    told = None
    for v, slope in probes.directions:
        terms = (rules * coordinates(np.conj(v))).ravel()
        along, spread = math.fsum(terms) if np.isfinite(terms).all() else math.nan, norm(terms)
        nearest = min(max(along, float(slope.low)), float(slope.high))
        tolerance = rtol * max(abs(float(slope.value)), spread) + float(slope.error) + floor * norm(v.ravel())
        if math.isfinite(tolerance) and abs(along - nearest) > tolerance:
            told = (along, float(slope.value))
    return Known(np.where(np.abs(expected) < tiniest, 0.0, expected), wrong, decided, told)


def judged(
    got: np.ndarray,
    gradient: Gradient,
    probes: Probes,
    reference: Known,
    rtol: float,
    describe: Callable[..., LeafCheck],
) -> LeafCheck:
    """The verdict on `got`, the leaf as one mode of differentiation gives it: forward mode, the probed elements alone."""
    g, expected = coordinates(got), reference.expected
    present = probes.taken if got is not gradient.working else np.ones(len(g), bool)
    g, want = g[present], expected[present]
    same = (g == want) | (np.isinf(g) & np.isnan(want))  # infinities, and infinities of which nothing is known
    nonfinite = ~np.isfinite(g) & ~same
    compared = np.isfinite(g) & np.isfinite(want)
    a, b = np.where(compared, g, 0.0), np.where(compared, want, 0.0)
    with np.errstate(over="ignore"):
        error = np.abs(a - b)
    if not np.isfinite(error).all():
        error = np.minimum(error, np.finfo(float).max)
    lossy = _lossy(a, b, gradient, rtol, size=norm(_finite(expected))) | (np.isinf(want) & np.isfinite(g))
    wrong = reference.wrong[present]
    ruled = wrong.any() or reference.told is not None
    reason = "nonfinite" if nonfinite.any() else "rule" if ruled else "rounding" if lossy.any() else ""

    blamed = wrong if wrong.any() else lossy if lossy.any() else np.ones_like(lossy)
    score = np.where(nonfinite, np.inf, np.where(blamed, error, -1.0))
    there: tuple[float | complex, float | complex] = (0.0, 0.0)
    element: tuple[int, ...] | None = ()
    if reference.told is not None and not wrong.any() and not nonfinite.any():
        there, element = reference.told, None
    elif g.size:
        row = int(np.argmax(score.max(1)))
        element = tuple(int(i) for i in np.unravel_index(np.flatnonzero(present)[row], got.shape))
        there = (_number(g[row], got), _number(want[row], got))
    absolute = abs(there[0] - there[1])
    size = norm(b.ravel())
    return describe(
        gradient=got,
        expected=from_coordinates(expected, got),
        ok=not reason,
        reason=reason,
        element=element,
        got=there[0],
        expected_there=there[1],
        absolute=float(absolute),
        relative=float(absolute / max([1.0, *(abs(x) for x in there if not np.isnan(x))])),
        norm_error=math.inf if nonfinite.any() else norm(error.ravel()) / size if size else norm(error.ravel()),
        checked=int((probes.taken & reference.decided.all(-1)).sum()),
        directions=len(probes.directions),
        undetermined=int((np.isnan(expected) | (probes.taken[:, None] & ~reference.decided)).any(-1).sum()),
        kinks=int(probes.slopes.kinked.any(-1).sum()),
    )


def _finite(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, 0.0).ravel()


def _lossy(a: np.ndarray, b: np.ndarray, gradient: Gradient, rtol: float, size: float) -> np.ndarray:
    """Which elements belong to a leaf, or to a slice of it, that has lost more than its share of digits.

    A sample of a leaf's elements is measured against its share of the norm of all. A structural zero is measured against
    the terms that cancel to it (see `scale`).
    """

    def lossy(x: np.ndarray, y: np.ndarray, terms: float, size: float) -> bool:
        gap, zero = norm(x - y), size == 0 if gradient.proven else None
        return gap > rtol * scale(gap, size, terms, gradient.precision, zero)

    whole = gradient.working.size
    rows = gradient.slices or 1
    if len(a) < whole:
        terms, rows = np.max(gradient.terms), 1
        sizes = [max(size * math.sqrt(len(a) / whole), norm(b.ravel()))]
    else:
        terms, sizes = gradient.terms, [norm(y) for y in b.reshape(rows, -1)]
    terms = np.broadcast_to(np.atleast_1d(terms), (rows,))
    each = zip(a.reshape(rows, -1), b.reshape(rows, -1), terms, sizes, strict=True)
    found = np.array([lossy(x, y, float(t), s) for x, y, t, s in each])
    return np.broadcast_to(found[:, None], (rows, a.size // rows)).reshape(a.shape)


def _number(x: np.ndarray, like: np.ndarray) -> float | complex:
    return complex(x[0], -x[1]) if np.iscomplexobj(like) else float(x[0])
