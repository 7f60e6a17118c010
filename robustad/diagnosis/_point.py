"""A function at a point: its gradient as JAX computes it, the same without rounding, and slopes of its value."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from robustad import _jaxpr
from robustad._eager import UnsupportedError
from robustad.arithmetic._ball_cost import TooLargeError
from robustad.arithmetic._ball_walk import exact_outputs
from robustad.diagnosis._accuracy import wide
from robustad.diagnosis._first_pass import shadow_program
from robustad.diagnosis._float64_slopes import Float64Slopes
from robustad.diagnosis._program import Audited
from robustad.diagnosis._slopes import ExactSlopes

MOST = 2e6
"""The cost of a program, in scalar operations, up to which its slopes are exact."""


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A gradient leaf at a point.

    exact: what the derivative program gives without rounding, NaN where it is not known; in float64 alone unless it is
    `proven`. terms: the size of what its last reductions add up. precision, slices: see `_leaves.Leaf`.
    """

    working: np.ndarray
    exact: np.ndarray
    proven: bool
    terms: np.ndarray
    precision: int
    slices: int | None


@dataclasses.dataclass(frozen=True)
class Point:
    """value_reference: the value without rounding, or in float64; None where it is not known."""

    audited: Audited
    gradients: list[Gradient]
    slopes: ExactSlopes | Float64Slopes
    value: float
    value_reference: float | None
    notes: tuple[str, ...]


def point(audited: Audited) -> Point:
    """Everything about a gradient program at its operands."""
    leaves, others = audited.arguments.leaves, audited.arguments.others
    operands = [*leaves, *others]
    with jax.enable_x64(True):
        (value, *twins), sizes = shadow_program(audited)(*audited.operands)
    program, _ = _jaxpr.trace(audited.function, leaves, others)
    slopes, notes = slopes_of(program, operands)
    exact: list[np.ndarray | None] = [None] * len(leaves)
    reference = float(np.asarray(value.high)) if value.working.dtype.itemsize < 8 else None
    if isinstance(slopes, ExactSlopes):
        reference = None
        try:
            narrow = all(x.dtype.itemsize <= 4 or x.dtype == np.complex64 for x in leaves)
            known, *found = exact_outputs(audited.program, operands, floor=-126 if narrow else -1022)
            exact = [e.value for e in found]
            reference = float(known.value) if known.determined else None
        except (UnsupportedError, TooLargeError) as error:
            notes = (*notes, f"the gradient program without rounding is not known: {error}")
    gradients = []
    for twin, known, found in zip(twins, audited.leaves, exact):
        working = np.asarray(twin.working).astype(wide(np.asarray(twin.working)))
        without_rounding = np.asarray(twin.high) if found is None else found
        gradients.append(
            Gradient(
                working,
                without_rounding,
                found is not None,
                known.terms_size(sizes),
                known.precision or 53,
                known.slices,
            )
        )
    return Point(audited, gradients, slopes, float(value.working), reference, notes)


def slopes_of(program: _jaxpr.Body, operands: Sequence[Any]) -> tuple[ExactSlopes | Float64Slopes, tuple[str, ...]]:
    """Exact slopes where they can be had, and notes why they are not."""
    try:
        slopes = ExactSlopes(program, operands, MOST)
        slopes.outputs()
        return slopes, ()
    except (UnsupportedError, TooLargeError, ImportError) as error:
        slopes = Float64Slopes(program, operands)
        lost = f"; not even there, for `{'`, `'.join(slopes.lost)}` has no rule" if slopes.lost else ""
        return slopes, (f"differences are taken in float64: {error}{lost}",)
