"""Contributions beside exact twins: where float64 loses what the program loses, its distances tell nothing.

For small programs, on the host. A first walk records what every equation made; a second one carries the distances, which
alone are traced.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad._eager import interpret_eagerly
from robustad._interpret import Arithmetic
from robustad._jaxpr import Body, Equation, Path
from robustad.arithmetic._ball import Ball, balls, flint, lift, mapped, to_complex, to_float
from robustad.arithmetic._ball_cost import TooLargeError
from robustad.arithmetic._ball_walk import BallArithmetic
from robustad.arithmetic._contribution import Shifted, with_distances
from robustad.arithmetic._origin import Recipe

MOST = 1000
"""Equations that are walked through, those of every iteration counted."""


def exact_distances(
    program: Body, operands: Sequence[Any], numbers: dict[Path, int], bits: int
) -> Callable[..., list[Shifted]]:
    """(distances of the operands, shifts: a scalar an equation) to the outputs with theirs, beside exact twins of `bits` of
    precision: see `_contribution`.

    Raises:
        UnsupportedError: a primitive has no exact rule.
        TooLargeError: more than `MOST` equations are walked through.
    """
    recording = _Recording(program)
    with flint().ctx.workprec(bits):
        interpret_eagerly(recording, program, [lift(x) for x in operands])
        starts = [_measured(lift(x)) for x in operands]

    def run(moves: Sequence[Array | None], shifts: Sequence[Array]) -> list[Shifted]:
        replaying = _Replaying(numbers, shifts, iter(recording.made))
        values = [Shifted(v.working, v.high, move, v.error) for v, move in zip(starts, moves, strict=True)]
        return interpret_eagerly(replaying, program, values)

    return run


def _measured(value: Ball) -> Shifted:
    """The exact twin and the exact distance from it, each rounded to float64."""
    if value.exact is None:
        return Shifted(value.working, None, None)
    working = np.asarray(value.working)
    to_number, dtype = (to_complex, np.complex128) if np.iscomplexobj(working) else (to_float, np.float64)
    high, error = (jnp.asarray(mapped(to_number, x).astype(dtype)) for x in (value.exact, balls(working) - value.exact))
    return Shifted(value.working, high, None, error)


class _Recording(BallArithmetic):
    """The exact walk that keeps what every equation made, in the order of the walk."""

    def __init__(self, program: Body):
        super().__init__(program)
        self.made: list[list[Shifted]] = []

    def equation(self, eqn: Equation, operands: Sequence[Ball], path: Path) -> tuple[list[Ball], None]:
        outs, none = super().equation(eqn, operands, path)
        if len(self.made) == MOST:
            raise TooLargeError(f"contributions beside exact twins are found in {MOST} equations at the most.")
        self.made.append([_measured(out) for out in outs])
        return outs, none


class _Replaying(Arithmetic[Shifted]):
    """The walk with distances; what its equations make is on record."""

    def __init__(self, numbers: dict[Path, int], shifts: Sequence[Array], made: Iterator[Sequence[Shifted]]):
        self.numbers, self.shifts, self.made = numbers, shifts, made

    def lift(self, x: Any) -> Shifted:
        value = _measured(lift(x))
        distance = None if value.high is None else jnp.zeros_like(value.high)
        return Shifted(value.working, value.high, distance, value.error)

    def plain(self, value: Shifted) -> Any:
        return value.working

    def equation(self, eqn: Equation, operands: Sequence[Shifted], path: Path) -> tuple[list[Shifted], None]:
        shift = self.shifts[self.numbers[path]] if path in self.numbers else None
        return _step(Recipe(eqn), list(operands), list(next(self.made)), shift), None


@functools.partial(jax.jit, static_argnums=0)  # equations that compute alike are compiled once
def _step(recipe: Recipe, operands: list[Shifted], made: list[Shifted], shift: Array | None) -> list[Shifted]:
    return with_distances(recipe.eqn, operands, made, shift)
