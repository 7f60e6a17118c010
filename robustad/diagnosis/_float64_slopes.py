"""Directional derivatives by differences in float64, for programs that the exact walk does not take.

Central differences with halved steps, extrapolated to a step of 0 (Ridders, Adv. Eng. Software 4, 1982), whose tableau
tells its own error.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustad import _jaxpr
from robustad._interpret import interpret
from robustad._jaxpr import Body, Equation
from robustad.arithmetic import _shadow
from robustad.arithmetic._ball_cost import program_cost
from robustad.arithmetic._bits import returned
from robustad.arithmetic._moved_shadow import Moved, MovedArithmetic
from robustad.arithmetic._stopped import stopped
from robustad.diagnosis._slopes import Slope, unknown

_HALVINGS = 10
_STEPS = 2.0 ** -np.arange(3, 3 + _HALVINGS)


class Float64Slopes:
    """Of a program whose first operands are moved. Where it holds primitives that no twin passes (`lost`), nothing is known
    of its slopes."""

    exact = False

    def __init__(self, program: Body, operands: Sequence[Any]):
        self._program, self._stopped, self._returned = program, stopped(program), returned(program)
        self._operands = [jnp.asarray(x) for x in operands]
        equations = [site.equation for site in _jaxpr.sites(program)]
        self.lost = sorted({eqn.primitive.name for eqn in equations if _loses(eqn)})
        with jax.enable_x64(True):
            self._run = jax.jit(self._evaluated)

    def along(self, steps: Sequence[np.ndarray | None], per: float = 1.0) -> list[Slope]:
        """The derivative of every output along `steps` (an array for each of the first operands, or None; of the size of
        the operands), divided by `per`."""
        if self.lost:
            return [unknown(_jaxpr.aval(out).shape) for out in self._program.outputs]
        factors = np.concatenate([_STEPS, -_STEPS, [0.0]])
        found = []
        for ties in (0.5, 0.0, 1.0) if self._tied else (0.5,):
            found.append([_slope(out, per) for out in self.moved(steps, factors, ties)])
        return [_hull(slopes) for slopes in zip(*found)]

    @functools.cached_property
    def _tied(self) -> bool:
        """Whether it matters how ties are broken: seen along a random direction."""
        random = np.random.default_rng(0)
        steps = [
            random.standard_normal(x.shape) * (np.abs(np.asarray(x, np.complex128)) + 1e-3)
            if _jaxpr.is_inexact(x)
            else None
            for x in self._operands
        ]
        first, last = (self.moved(steps, _STEPS[-1:], ties) for ties in (0.0, 1.0))
        return any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(first, last))

    @property
    def cost(self) -> float:
        """Of one derivative, in the units of the exact walk, which is a hundred times slower."""
        return 6 * _HALVINGS * program_cost(self._program) / 100

    def moved(self, steps: Sequence[np.ndarray | None], factors: np.ndarray, ties: float = 0.5) -> list[np.ndarray]:
        """The outputs at the working point plus each of `factors` times `steps`, stacked."""
        full = [np.zeros(()) if step is None else step for step in steps]
        with jax.enable_x64(True):
            outs = self._run(self._operands, full, factors, ties)
        return [np.asarray(out) for out in outs]

    def _evaluated(self, operands: Any, steps: Any, factors: Any, ties: Any) -> Any:
        def at(factor: Any) -> list[Any]:
            arithmetic = MovedArithmetic(self._stopped, self._returned, ties)
            values = [arithmetic.lift(x) for x in operands]
            for k, step in enumerate(steps):
                v = values[k]
                if v.high is not None:
                    values[k] = Moved(v.working, v.high, v.high + factor * step)
            outs, _ = interpret(arithmetic, self._program, values)
            return [v.working if v.moved is None else v.moved for v in outs]

        return lax.map(at, factors)


def _loses(eqn: Equation) -> bool:
    """Whether a twin starts anew behind an equation that has a derivative."""
    return eqn.primitive.name == "random_gamma" or (_jaxpr.control(eqn) is None and _shadow.is_lost(eqn))


def _slope(values: np.ndarray, per: float) -> Slope:
    """Ridders' extrapolation, element by element; `values` at the steps, their negatives, and 0."""
    values = np.asarray(values)
    shape = values.shape[1:]
    if values.dtype.kind != "f":
        return unknown(shape)
    flat = values.reshape(len(values), -1)
    with np.errstate(all="ignore"):
        parts = [_extrapolated(flat[:, i]) for i in range(flat.shape[1])]
        columns = np.array(parts, float).reshape(*shape, 4) / per
    return Slope(columns[..., 0], columns[..., 1], columns[..., 2], columns[..., 3])


def _extrapolated(f: np.ndarray) -> tuple[float, float, float, float]:
    plus, minus, middle = f[:_HALVINGS], f[_HALVINGS:-1], f[-1]
    noise = 2.0**-52 * np.maximum(np.maximum(abs(plus), abs(minus)), abs(middle)) / _STEPS
    forward, backward = (plus - middle) / _STEPS, (middle - minus) / _STEPS
    gap = abs(forward - backward)
    sides = (forward[-1], backward[-1])
    if np.isfinite(sides).all() and gap[-1] > 0.5 * gap[0] and gap[-1] > 100 * noise[-1]:
        return float(np.mean(sides)), float(min(sides)), float(max(sides)), float(noise[-1])
    column = (plus - minus) / (2 * _STEPS)
    best, least = np.nan, np.inf
    previous = column
    for order in range(1, _HALVINGS):
        factor = 4.0**order
        column = (factor * previous[1:] - previous[:-1]) / (factor - 1)
        errors = np.maximum(abs(column - previous[1:]), abs(column - previous[:-1])) + noise[order:]
        errors = np.where(np.isfinite(errors), errors, np.inf)
        if errors.size and errors.min() < least:
            k = int(errors.argmin())
            best, least = float(column[k]), float(errors[k])
        previous = column
    return best, best, best, 2 * least


def _alike(a: Slope, b: Slope) -> bool:
    """Whether ties make no difference."""
    return np.array_equal(a.value, b.value, equal_nan=True)


def _hull(slopes: Sequence[Slope]) -> Slope:
    first = slopes[0]
    if all(_alike(first, s) for s in slopes):
        return first
    low, high = np.min([s.low for s in slopes], 0), np.max([s.high for s in slopes], 0)
    return Slope(first.value, low, high, np.max([s.error for s in slopes], 0))
