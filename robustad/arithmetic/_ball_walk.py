"""The exact walk: what a program would return if nothing were ever rounded, its decisions those that it takes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustad._eager import interpret_eagerly
from robustad._interpret import Arithmetic
from robustad._jaxpr import Body, Equation, Path
from robustad.arithmetic import _ball_linalg as _ball_linalg  # registers its rules
from robustad.arithmetic import _ball_own as _ball_own
from robustad.arithmetic import _ball_reductions as _ball_reductions
from robustad.arithmetic import _ball_scatter as _ball_scatter
from robustad.arithmetic._ball import Ball, balls, boxed, determined, exact, flint, lift, mapped, to_complex, to_float
from robustad.arithmetic._ball_cost import TooLargeError, cost, program_cost
from robustad.arithmetic._ball_rules import enclosed, evaluated
from robustad.arithmetic._bits import returned

PRECISIONS = (128, 512, 2048, 8192)
LIMIT = 1e7
"""Of a walk's cost, in scalar operations at 128 bits: a second or two."""


class BallArithmetic(Arithmetic[Ball]):
    """Working values beside exact ones (`robustad._eager`).

    The first walk evaluates the working program; later ones take its values from there, so that what is computed at
    another precision, or at a point nearby, follows the same decisions and runs no side effect again.
    """

    def __init__(self, program: Body, limit: float = LIMIT):
        self._limit, self._spent = limit, 0.0
        self._returned = returned(program)
        self._looked_at = frozenset(self._returned.values())
        self._cast: dict[Path, Ball] = {}  # the floats whose bits are looked at
        self._costs: dict[Path, float] = {}
        self._tape: list[list[Any]] = []
        self._at: int | None = None

    def rewind(self) -> None:
        """What is walked next is the same program on the same working operands."""
        self._at, self._spent = 0, 0.0

    def lift(self, x: Any) -> Ball:
        return lift(x)

    def plain(self, value: Ball) -> Any:
        return value.working

    def equation(self, eqn: Equation, operands: Sequence[Ball], path: Path) -> tuple[list[Ball], None]:
        if path not in self._costs:
            self._costs[path] = cost(eqn)
        self._spent += self._costs[path]
        if self._spent > self._limit:
            raise TooLargeError(f"the exact walk takes more than {self._limit:.0f} scalar operations.")
        if self._at is None:
            working = evaluated(eqn, [v.working for v in operands])
            self._tape.append(working)
        else:
            working = self._tape[self._at]
            self._at += 1
        return [Ball(w, x) for w, x in zip(working, self.twins(eqn, operands, working, path))], None

    def twins(
        self, eqn: Equation, operands: Sequence[Ball], working: Sequence[Any], path: Path
    ) -> list[np.ndarray | None]:
        """The exact outputs of an equation."""
        if path in self._looked_at:
            self._cast[path] = operands[0]
        outs = enclosed(eqn, operands, working)
        if path in self._returned:
            source = self._cast[self._returned[path]]
            same = np.asarray(source.working) == np.asarray(working[0])
            return [boxed(np.where(same, exact(source), exact(Ball(working[0], outs[0]))))]
        return outs


@dataclasses.dataclass(frozen=True)
class Exact:
    """One output: its `working` array, its `exact` balls (None for integers), the float64 (complex128) `value` nearest to
    them, NaN where `determined` is False. `zeros`: where 0 is not excluded."""

    working: Any
    exact: np.ndarray | None
    value: np.ndarray
    determined: np.ndarray

    @property
    def zeros(self) -> np.ndarray:
        return self.value == 0 if self.exact is None else _where(lambda x: x.contains(0), self.exact)


class ExactWalk:
    """A program to be evaluated exactly at a working point, and near it."""

    def __init__(
        self,
        program: Body,
        operands: Sequence[Any],
        limit: float = LIMIT,
        arithmetic: BallArithmetic | None = None,
    ):
        self._program, self._limit = program, limit
        self.operands = [v if isinstance(v, Ball) else lift(v) for v in operands]
        self.cost = program_cost(program)
        if self.cost > limit:
            raise TooLargeError(
                f"the program takes about {self.cost:.2g} scalar operations; the exact walk takes {limit:.2g} at most."
            )
        self.arithmetic = arithmetic or BallArithmetic(program, limit)
        self.bits = PRECISIONS[0]
        """The precision of the last walk."""
        self._walked = False

    def at(self, exact: Sequence[np.ndarray | None] | None = None, bits: int = 128) -> list[Ball]:
        """The outputs with `bits` of precision, the operands' exact parts replaced by `exact` (None: kept)."""
        operands = self.operands
        if exact is not None:
            operands = [v if x is None else Ball(v.working, x) for v, x in zip(operands, exact, strict=True)]
        if self._walked:
            self.arithmetic.rewind()
        self.bits = bits
        with flint().ctx.workprec(bits), jax.enable_x64(True):  # for what is in float64 inside other programs
            outs = interpret_eagerly(self.arithmetic, self._program, operands)
        self._walked = True
        return outs

    def precisions(self) -> list[int]:
        """Those that are affordable."""
        return [bits for bits in PRECISIONS if bits == 128 or self.cost * bits / 128 <= self._limit]

    def outputs(self, exact: Sequence[np.ndarray | None] | None = None, floor: int = -1500) -> list[Exact]:
        """With as much precision as it takes, up to 8192 bits; what is surely below 2 to the power of `floor` is 0."""
        for bits in self.precisions():
            outs = self.at(exact, bits)
            results = [_result(out, bits, floor) for out in outs]
            if all(r.determined.all() for r in results):
                break
        return results


def exact_outputs(program: Body, operands: Sequence[Any], limit: float = LIMIT, floor: int = -1500) -> list[Exact]:
    """What `program` would return on `operands` if nothing were rounded.

    Evaluated with 128, 512, 2048 and 8192 bits until every output is known to 60 bits, or to be below 2 to the power of
    `floor`, which counts as 0. What is still not known then is not determined.

    Args:
        program: from `_jaxpr.trace`. It is run once in its own dtypes, equation by equation, and takes its decisions there.
        operands: arrays; or `Ball`s whose exact parts differ from the working ones.
        limit: of the cost, in scalar operations at 128 bits.
        floor: the exponent of two below which a number counts as 0.

    Raises:
        UnsupportedError: a primitive has no exact rule.
        TooLargeError: the program takes more than `limit` scalar operations.
    """
    return ExactWalk(program, operands, limit).outputs(floor=floor)


def _result(out: Ball, bits: int, floor: int) -> Exact:
    if out.exact is None:
        is_key = jnp.issubdtype(out.working.dtype, jax.dtypes.extended)
        value = out.working if is_key else np.asarray(out.working)
        return Exact(out.working, None, value, np.ones(np.shape(out.working), bool))
    is_complex = np.iscomplexobj(np.asarray(out.working))
    with flint().ctx.workprec(bits):
        known = _where(determined, out.exact)
        held, below = np.array(out.exact), flint().arb(2) ** floor
        if not known.all():
            tiny = ~known & _where(lambda x: abs(x) < below, held)
            held[tiny] = balls(np.zeros((), complex if is_complex else float))[()]
            known |= tiny
        value = mapped(to_complex if is_complex else to_float, held).astype(complex if is_complex else float)
    return Exact(out.working, held, np.where(known, value, np.nan), known)


def _where(condition: Callable[[Any], bool], x: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(condition, 1, 1)(x), bool)
