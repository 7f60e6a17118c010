"""`pareto`: what a gradient costs in operations for each amount of memory."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from robustad.memory._arguments import refuse_what_is_no_function
from robustad.memory._bytes import readable
from robustad.memory._fit import Call, InfeasibleBudget, Search, certificate_of

FRACTIONS = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2)


@dataclasses.dataclass(frozen=True)
class ParetoPoint:
    """A plan: measured bytes of temporaries, and operations against those of the gradient as it is."""

    fraction: float
    measured: int
    flop_ratio: float


@dataclasses.dataclass(frozen=True)
class Pareto:
    """The plans found, from the most bytes to the fewest. infeasible: the first fraction that no plan kept to."""

    function: str
    points: tuple[ParetoPoint, ...]
    infeasible: float | None

    def __str__(self) -> str:
        lines = [f"memory of value_and_grad({self.function}) against operations"]
        lines += [f"  {readable(p.measured):>11}   {p.flop_ratio - 1:+.1%}" for p in self.points]
        if self.infeasible is not None:
            lines.append(f"  no plan was found for {self.infeasible:g} of the unplanned peak")
        return "\n".join(lines)

    def to_svg(self) -> str:
        """The curve: bytes to the right, operations added upwards."""
        width, height, left, low = 520, 260, 60, 30
        most = max((p.measured for p in self.points), default=0)
        highest = max([0.01, *(p.flop_ratio - 1 for p in self.points)])
        told = f"{readable(most)} of temporaries" if self.points else f"no plan was found for {self.infeasible:g}"
        places = [
            (
                left + (width - left - 20) * p.measured / max(1, most),
                height - low - (height - low - 20) * (p.flop_ratio - 1) / highest,
            )
            for p in self.points
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#3567b5"><title>{readable(p.measured)}, '
            f"{p.flop_ratio - 1:+.1%} operations</title></circle>"
            for p, (x, y) in zip(self.points, places)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui,sans-serif" font-size="11"><rect width="{width}" height="{height}" fill="#fff"/>'
            f'<path d="M{left},10V{height - low}H{width - 10}" fill="none" stroke="#667080"/>'
            f'<polyline points="{line}" fill="none" stroke="#3567b5" stroke-width="2"/>{dots}'
            f'<text x="{left - 6}" y="24" text-anchor="end">{highest:+.0%}</text>'
            f'<text x="{left - 6}" y="{height - low}" text-anchor="end">+0%</text>'
            f'<text x="{width - 10}" y="{height - 10}" text-anchor="end">{told}</text></svg>'
        )


def pareto(
    f: Callable[..., Any],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    fractions: Sequence[float] = FRACTIONS,
) -> Callable[..., Pareto]:
    """What the gradient of `f` costs in operations for each amount of memory: `fit` at each fraction of the unplanned peak.

    Args:
        f, argnums, has_aux: as for `fit`.
        fractions: of the temporaries that f needs as it is, each above 0 and at most 1. The first that no plan keeps to is
            the last that is tried.

    Returns:
        A function of f's arguments that returns the curve: `.points`, `str()`, `.to_svg()`.

    Raises:
        TypeError: `fractions` is no sequence.
        ValueError: a fraction is no number above 0, or above 1; there is none.
    """
    refuse_what_is_no_function("f", f)
    if isinstance(fractions, str) or not isinstance(fractions, Iterable):
        raise TypeError(f"`fractions` is {fractions!r}; expected a sequence of fractions, as (0.8, 0.5).")
    fractions = tuple(fractions)
    if not fractions:
        raise ValueError("`fractions` is empty; expected fractions of the unplanned peak, as (0.8, 0.5).")
    for fraction in fractions:
        if not isinstance(fraction, numbers.Real) or not 0 < fraction <= 1:
            raise ValueError(
                f"`fractions` holds {fraction!r}; expected fractions of the unplanned peak, above 0, at most 1."
            )

    def drawn(*args: Any, **kwargs: Any) -> Pareto:
        points: list[ParetoPoint] = []
        refused = None
        search = Search(Call(f, argnums, has_aux, args, kwargs))
        for fraction in sorted(fractions, reverse=True):
            try:
                certificate = certificate_of(search.fit(float(fraction)))
            except InfeasibleBudget:
                refused = fraction
                break
            ratio = certificate.flop_ratio if search.unplanned.flops else 1.0
            points.append(ParetoPoint(fraction, certificate.measured, ratio))
        return Pareto(getattr(f, "__name__", type(f).__name__), tuple(_falling(points)), refused)

    return drawn


def _falling(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """The points that no other beats in both; of equal ones the first."""
    places = [(p.measured, p.flop_ratio) for p in points]
    return [
        p
        for i, (p, own) in enumerate(zip(points, places))
        if own not in places[:i] and not any(q[0] <= own[0] and q[1] <= own[1] and q != own for q in places)
    ]
