"""Directional derivatives of what a program computes, by differences: JAX's derivative rules are not asked.

Exactly, where the exact walk can: with a step of 2⁻¹⁰⁰ and as many digits as the difference needs. The program takes the
decisions that it takes at the working point, so that a step crosses no branch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from robustad import _jaxpr
from robustad._jaxpr import Body
from robustad.arithmetic._ball import balls, boxed, determined, flint, to_float
from robustad.arithmetic._ball_moved import MovedBalls
from robustad.arithmetic._ball_walk import LIMIT, ExactWalk

_SHIFT = 100
_TIES = (0.5, 0.0, 1.0)
_Differences = tuple[Any, Any, Any]
"""Forward, backward and central, of one element."""


@dataclasses.dataclass(frozen=True)
class Slope:
    """The derivative of one output along a direction, float64 arrays of the output's shape.

    low, high: what differences allow; they differ at a kink or a tie. value: in between. error: a bound of what the
    differences themselves are wrong by, infinite where nothing is known (and `value` is NaN).
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray

    @property
    def kinked(self) -> np.ndarray:
        return self.low < self.high


class ExactSlopes:
    """Of a program whose first operands are moved.

    Raises:
        UnsupportedError, TooLargeError: what the exact walk raises.
    """

    exact = True

    def __init__(self, program: Body, operands: Sequence[Any], limit: float = LIMIT):
        self._walk = ExactWalk(program, operands, limit, MovedBalls(program, limit))
        dtypes = [np.asarray(v.working).dtype for v in self._walk.operands if v.exact is not None]
        narrow = all(d.itemsize <= 4 or d == np.complex64 for d in dtypes)
        self._floor = 2.0**-126 if narrow else 2.0**-1022
        self._ladder = (256, 512) if narrow else (256, 2400)
        self._shapes = [tuple(_jaxpr.aval(out).shape) for out in program.outputs]
        self._bases: dict[tuple[int, float], tuple[list[Any], list[Any]]] = {}

    @property
    def cost(self) -> float:
        """Of one derivative, in the units of `program_cost`."""
        return 4 * self._walk.cost

    def outputs(self, bits: int = 256) -> list[Any]:
        """The exact outputs at the working point, as balls."""
        return self._base(bits, 0.5)[0]

    def along(self, steps: Sequence[np.ndarray | None], per: float = 1.0) -> list[Slope]:
        """The derivative of every output along `steps` (an array for each of the first operands, or None), divided by
        `per`."""
        found = [self._smooth_or_kinked(steps, per, ties) for ties in _TIES[: 1 if not self._tied() else 3]]
        return [_hull(slopes) for slopes in zip(*found)]

    def moved(self, steps: Sequence[np.ndarray | None], factor: Any, bits: int, ties: float = 0.5) -> list[Any]:
        """The outputs as balls, at the working point plus `factor` (an exact number) times `steps`."""
        arithmetic = self._arithmetic
        _, arithmetic.held = self._base(bits, ties)
        arithmetic.ties = ties
        with flint().ctx.workprec(bits):
            operands: list[np.ndarray | None] = [
                None if step is None else boxed(v.exact + balls(step) * factor)
                for v, step in zip(self._walk.operands, steps)
            ]
            operands += [None] * (len(self._walk.operands) - len(operands))
            return [v.exact for v in self._walk.at(operands, bits)]

    @property
    def _arithmetic(self) -> MovedBalls:
        assert isinstance(self._walk.arithmetic, MovedBalls)
        return self._walk.arithmetic

    def _tied(self) -> bool:
        self._base(self._ladder[0], 0.5)
        return self._arithmetic.tied

    def _base(self, bits: int, ties: float) -> tuple[list[Any], list[Any]]:
        """The outputs at the working point and what `stop_gradient` passes there."""
        if (bits, ties) not in self._bases:
            self._arithmetic.held, self._arithmetic.ties = None, ties
            outs = [v.exact for v in self._walk.at(None, bits)]
            self._bases[bits, ties] = outs, self._arithmetic.passed
        return self._bases[bits, ties]

    def _smooth_or_kinked(self, steps: Sequence[np.ndarray | None], per: float, ties: float) -> list[Slope]:
        near = self._settled(steps, per, ties, _SHIFT)
        bent = any(_bent(d) for output in near for d in output)
        nearer = self._settled(steps, per, ties, _SHIFT + 40) if bent else near
        return [_slope(d, e, shape) for d, e, shape in zip(near, nearer, self._shapes)]

    def _settled(
        self, steps: Sequence[np.ndarray | None], per: float, ties: float, shift: int
    ) -> list[list[_Differences]]:
        """(forward, backward, central) differences of every element of every output, known if more digits make them so."""
        for bits in self._ladder:
            made = self._differences(steps, per, ties, shift, bits)
            if all(_known(d) for output in made for d in output):
                break
        return made

    def _differences(self, steps: Any, per: float, ties: float, shift: int, bits: int) -> list[list[_Differences]]:
        base, _ = self._base(bits, ties)
        with flint().ctx.workprec(bits):
            h = flint().arb(2) ** -shift
            plus, minus = (self.moved(steps, sign * h, bits, ties) for sign in (1, -1))
            unit = h * flint().arb(per)

            def differences(p: Any, b: Any, m: Any) -> _Differences:
                return (p - b) / unit, (b - m) / unit, self._or_zero((p - m) / (2 * unit))

            return [
                []
                if b is None or (b.size and isinstance(b.flat[0], flint().acb))
                else [differences(*at) for at in zip(p.ravel(), b.ravel(), m.ravel())]
                for p, b, m in zip(plus, base, minus)
            ]

    def _or_zero(self, x: Any) -> Any:
        """A number that is surely below every normal one is 0."""
        return flint().arb(0) if not isinstance(x, flint().acb) and abs(x) < flint().arb(self._floor) else x


def _known(difference: _Differences) -> bool:
    """Not at a pole, where the central difference has a value, and the one-sided ones have none."""
    forward, backward, central = difference
    return determined(central) and forward.is_finite() and backward.is_finite()


def _bent(difference: _Differences) -> bool:
    """Whether the one-sided differences are not equal: a kink, or a derivative near 0."""
    forward, backward, _ = difference
    gap = abs(forward - backward)
    return bool(gap > abs(forward) * flint().arb(2) ** -30) or bool(gap > abs(backward) * flint().arb(2) ** -30)


def _slope(near: list[_Differences], nearer: list[_Differences], shape: tuple[int, ...]) -> Slope:
    """The slope of an output from its differences with a step, and with one 2⁴⁰ times smaller."""
    if not near:
        return unknown(shape)
    columns = np.array([_judged(d, e) for d, e in zip(near, nearer)], float).reshape(*shape, 4)
    return Slope(columns[..., 0], columns[..., 1], columns[..., 2], columns[..., 3])


def unknown(shape: tuple[int, ...]) -> Slope:
    """Of integers and complex numbers, of which the parts are asked for by themselves."""
    nothing = np.full(shape, np.nan)
    return Slope(nothing, nothing, nothing, np.full(shape, np.inf))


def _judged(near: _Differences, nearer: _Differences) -> tuple[float, float, float, float]:
    if not _known(near) or not _known(nearer):
        return np.nan, np.nan, np.nan, np.inf
    if near is nearer or not _bent(near):
        value = to_float(near[2])
        return value, value, value, 0.0
    shrunk = abs(nearer[0] - nearer[1]) < abs(near[0] - near[1]) * flint().arb(2) ** -20
    if shrunk:  # curvature: the derivative is 0 where the central difference too vanishes with the step
        value, error = to_float(nearer[2]), abs(to_float(near[2] - nearer[2]))
        if error > abs(value):
            value = 0.0
        return value, value, value, 0.0
    forward, backward = to_float(nearer[0]), to_float(nearer[1])
    return to_float(nearer[2]), min(forward, backward), max(forward, backward), 0.0


def _hull(slopes: Sequence[Slope]) -> Slope:
    """Of several ways to break ties, the first one's value and the hull of all."""
    if len(slopes) == 1:
        return slopes[0]
    lows, highs = np.array([s.low for s in slopes]), np.array([s.high for s in slopes])
    with np.errstate(invalid="ignore"):
        return Slope(slopes[0].value, lows.min(0), highs.max(0), np.array([s.error for s in slopes]).max(0))
