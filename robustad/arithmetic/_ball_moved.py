"""Exact values near a working point, as a derivative sees them.

The moved program takes the decisions of the working one, as every exact walk does. Two more things make its differences
those that derivatives are meant to be: what passes a `stop_gradient` stays where it was, and a tie (two equal operands of a
maximum, an absolute value at 0) is broken in a chosen way, for the second operand with the weight `ties`. JAX's
derivatives of ties lie between the first operand's and the last one's; half and half is what `jnp.maximum` has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robustad._jaxpr import Body, Equation, Path
from robustad.arithmetic._ball import Ball, boxed, exact
from robustad.arithmetic._ball_reductions import window_places
from robustad.arithmetic._ball_rules import enclosed
from robustad.arithmetic._ball_walk import BallArithmetic
from robustad.arithmetic._stopped import stopped


class MovedBalls(BallArithmetic):
    """ties: the weight of the last among equals, 0, 1/2 or 1. held: the twins that `stop_gradient` passed in a walk at the
    working point (None while that one is walked). tied: whether a walk met a tie."""

    def __init__(self, program: Body, limit: float):
        super().__init__(program, limit)
        self._stopped = stopped(program)
        self.ties, self.tied = 0.5, False
        self.held: list[np.ndarray | None] | None = None
        self.passed: list[np.ndarray | None] = []

    def rewind(self) -> None:
        super().rewind()
        self.passed = []

    def twins(
        self, eqn: Equation, operands: Sequence[Ball], working: Sequence[Any], path: Path
    ) -> list[np.ndarray | None]:
        name = eqn.primitive.name
        if path in self._stopped:
            k = len(self.passed)
            self.passed.append(operands[0].exact if self.held is None else self.held[k])
            return [self.passed[-1]]
        if name in _TIES and operands[0].exact is not None:
            found = _TIES[name](eqn, operands, working, self.ties)
            if found is not None:
                self.tied = True
                return [found]
        return super().twins(eqn, operands, working, path)


def _blend(x: Any, y: Any, weight: float) -> Any:
    """Of equal working values: x, y, or what is halfway."""
    return x if weight == 0 else y if weight == 1 else x / 2 + y / 2


def _binary(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any], ties: float) -> np.ndarray | None:
    a, b = (np.asarray(v.working) for v in operands)
    tie = np.broadcast_to(a == b, np.shape(working[0]))
    if not tie.any():
        return None
    x, y = (np.broadcast_to(exact(v), tie.shape) for v in operands)
    (plain,) = enclosed(eqn, operands, working)
    return boxed(np.where(tie, _blend(x, y, ties), plain))


def _absolute(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any], ties: float) -> np.ndarray | None:
    tie, x = np.asarray(operands[0].working) == 0, exact(operands[0])
    if not tie.any() or np.iscomplexobj(operands[0].working):
        return None
    (plain,) = enclosed(eqn, operands, working)
    return boxed(np.where(tie, _blend(x, -x, ties), plain))


def _clamp(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any], ties: float) -> np.ndarray | None:
    low, x, top = (np.broadcast_to(np.asarray(v.working), np.shape(working[0])) for v in operands)
    at_low, at_top = x == low, x == top
    if not (at_low | at_top).any():
        return None
    a, b, c = (np.broadcast_to(exact(v), x.shape) for v in operands)
    (plain,) = enclosed(eqn, operands, working)
    return boxed(np.where(at_low, _blend(a, b, ties), np.where(at_top, _blend(c, b, ties), plain)))


def _rows(rows: np.ndarray, taken: np.ndarray, plain: np.ndarray, ties: float) -> np.ndarray | None:
    """Of rows in which several elements are taken: the first, the last, or their mean."""
    several = np.flatnonzero(taken.sum(1) > 1)
    if not several.size:
        return None
    out = np.array(plain).ravel()
    for i in several:
        among = rows[i][taken[i]]
        out[i] = among[0] if ties == 0 else among[-1] if ties == 1 else among.sum() / len(among)
    return out.reshape(plain.shape)


def _reduction(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any], ties: float) -> np.ndarray | None:
    axes, out = tuple(eqn.params["axes"]), np.asarray(working[0])
    x, held = exact(operands[0]), np.asarray(operands[0].working)
    order = (*(d for d in range(x.ndim) if d not in axes), *axes)
    taken = held.transpose(order).reshape(out.size, -1) == out.reshape(-1, 1)
    (plain,) = enclosed(eqn, operands, working)
    return _rows(x.transpose(order).reshape(out.size, -1), taken, plain, ties)


def _window(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any], ties: float) -> np.ndarray | None:
    x, held = exact(operands[0]), np.asarray(operands[0].working)
    at, _ = window_places(eqn, x.shape)
    taken = (held.ravel()[at] == np.asarray(working[0]).reshape(-1, 1)) & (at >= 0)
    (plain,) = enclosed(eqn, operands, working)
    return _rows(x.ravel()[at], taken, plain, ties)


def _running(eqn: Equation, operands: Sequence[Ball], working: Sequence[Any], ties: float) -> np.ndarray | None:
    axis, reverse = eqn.params["axis"], eqn.params["reverse"]
    x, held, best = exact(operands[0]), np.asarray(operands[0].working), np.asarray(working[0])
    x, held, best = (np.moveaxis(np.flip(v, axis) if reverse else v, axis, 0) for v in (x, held, best))
    out, tied = np.array(x), False
    for i in range(1, len(out)):
        new, tie = held[i] != best[i - 1], held[i] == best[i - 1]
        taken = new & (held[i] == best[i])
        tied |= bool(tie.any())
        out[i] = np.where(tie, _blend(out[i - 1], x[i], ties), np.where(taken, x[i], out[i - 1]))
    out = np.moveaxis(out, 0, axis)
    return (np.flip(out, axis) if reverse else out) if tied else None


_TIES: dict[str, Callable[..., np.ndarray | None]] = {
    "abs": _absolute,
    "clamp": _clamp,
    "cummax": _running,
    "cummin": _running,
    "max": _binary,
    "min": _binary,
    "reduce_max": _reduction,
    "reduce_min": _reduction,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
}
