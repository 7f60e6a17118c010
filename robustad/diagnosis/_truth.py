"""A second opinion on the reference: exact twins, where the program is small and python-flint is installed.

float64 shares the program's faults where they are not rounding: ranges, masks, functions flat to the last bit. Where its
verdict is bad, or nothing can be concluded from it, the program is walked with balls of as many bits as it takes.
"""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from robustad._eager import Unsupported
from robustad.arithmetic._ball import flint
from robustad.arithmetic._ball_cost import TooLarge
from robustad.arithmetic._ball_walk import ExactWalk
from robustad.diagnosis._accuracy import norm
from robustad.diagnosis._program import Audited

log = logging.getLogger("robustad")


REFUTED = 2.0**-6
"""Relative error of a float64 reference from which on it is no guide."""


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """outputs: the exact value and gradient leaves, rounded to float64; None where they are undefined or not known. bits:
    the precision that it took."""

    outputs: list[np.ndarray | None]
    bits: int

    def refutes(self, highs: Sequence[np.ndarray]) -> bool:
        """Whether a float64 reference is too far off to tell what went wrong where."""
        pairs = zip(self.outputs, highs, strict=True)
        return any(true is not None and not norm(high - true) <= REFUTED * norm(true) for true, high in pairs)


def truth(audited: Audited, limit: float) -> Truth | None:
    """The exact outputs; None where python-flint is missing, a primitive has no rule or it takes more than `limit` scalar
    operations."""
    try:
        flint()
        constants, inputs = audited.operands
        walk = ExactWalk(audited.closed, [*constants, *inputs], limit)
        log.info("the same in exact arithmetic")
        results = walk.outputs()
    except (ImportError, Unsupported, TooLarge) as reason:
        log.debug("no exact reference: %s", reason)
        return None
    known = [r.value if r.determined.all() and np.isfinite(r.value).all() else None for r in results]
    return Truth(known, walk.bits)
