"""A second opinion on the reference: exact twins, where the program is small and python-flint is installed.

float64 shares the program's faults where they are not rounding: ranges, masks, functions flat to the last bit. Where its
verdict is bad, or nothing can be concluded from it, the program is walked with balls of as many bits as it takes.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustad._eager import UnsupportedError
from robustad._jaxpr import Equation, Path
from robustad.arithmetic._ball import Ball, flint
from robustad.arithmetic._ball_cost import TooLargeError
from robustad.arithmetic._ball_walk import BallArithmetic, ExactWalk
from robustad.diagnosis._accuracy import norm
from robustad.diagnosis._program import Audited

log = logging.getLogger("robustad")


REFUTED = 2.0**-6
"""Relative error of a float64 reference from which on it is no guide."""


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """outputs: the exact value and gradient leaves, rounded to float64; None where they are undefined or not known. zeros:
    which of their elements may be 0. bits: the precision that it took."""

    outputs: list[np.ndarray | None]
    zeros: list[np.ndarray]
    bits: int

    def refutes(self, highs: Sequence[np.ndarray]) -> bool:
        """Whether a float64 reference is too far off to tell what went wrong where."""
        pairs = zip(self.outputs, highs, strict=True)
        return any(true is not None and not norm(high - true) <= REFUTED * norm(true) for true, high in pairs)


class _Deciding(BallArithmetic):
    """The exact walk, which adds up what was decided at the equations in `decisions`."""

    def __init__(self, audited: Audited, limit: float):
        super().__init__(audited.closed, limit)
        self.decisions = audited.decisions
        self.decided: dict[Path, float] = {}

    def rewind(self) -> None:
        super().rewind()
        self.decided.clear()

    def equation(self, eqn: Equation, operands: Sequence[Ball], path: Path) -> tuple[list[Ball], None]:
        outs, none = super().equation(eqn, operands, path)
        if path in self.decisions:
            sum_ = float(np.sum(np.asarray(outs[0].working), dtype=np.float64))
            self.decided[path] = self.decided.get(path, 0.0) + sum_
        return outs, none


def truth(audited: Audited, records: Mapping[Path, Any], limit: float) -> Truth | None:
    """The exact outputs; None where python-flint is missing, a primitive has no rule, it takes more than `limit` scalar
    operations, or the program decides otherwise where it is run equation by equation.

    `records`: of the first pass, what the compiled program decided.
    """
    try:
        flint()
        constants, inputs = audited.operands
        deciding = _Deciding(audited, limit)
        walk = ExactWalk(audited.closed, [*constants, *inputs], limit, deciding)
        log.info("the same in exact arithmetic")
        results = walk.outputs()
    except (ImportError, UnsupportedError, TooLargeError) as reason:
        log.debug("no exact reference: %s", reason)
        return None
    if any(deciding.decided.get(path, 0.0) != float(records[path][1]) for path in audited.decisions):
        log.debug("no exact reference: equation by equation the program decides otherwise")
        return None
    known = [r.value if r.determined.all() and np.isfinite(r.value).all() else None for r in results]
    return Truth(known, [r.zeros for r in results], walk.bits)
