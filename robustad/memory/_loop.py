"""A loop as data: its step as a program, and the loops that derive from it by differentiation and by `vmap`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import jaxpr_as_fun

from robustad import _jaxpr
from robustad.memory._flops import program_flops

Mask = tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a loop is reversed: by a binomial schedule over blocks of steps, with the states before some blocks stored.

    block: steps of a block, which is differentiated as a whole; steps before the first whole block are one of their own.
    slots: states stored at a time.
    recompute: whether a block keeps only the states between its steps, not what their derivatives need besides.
    """

    block: int
    slots: int
    recompute: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """`length` steps of `step`, a closed program (constants, carry, x) -> (carry, y) on flat lists of arrays.

    dynamic: the number of steps is an operand, at most `length`; there are no xs and no ys then.
    """

    step: Any
    consts: int
    carry: int
    length: int
    plan: Plan
    dynamic: bool = False
    unroll: int = 1

    @property
    def xs(self) -> int:
        return len(self.step.in_avals) - self.consts - self.carry

    @property
    def ys(self) -> int:
        return len(self.step.out_avals) - self.carry

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Operands as (number of steps, constants, carry, xs); the first is a list of one or none."""
        n, rest = list(operands[: self.dynamic]), list(operands[self.dynamic :])
        return n, rest[: self.consts], rest[self.consts : self.consts + self.carry], rest[self.consts + self.carry :]

    def __call__(
        self, consts: Sequence[Any], carry: Sequence[Any], x: Sequence[Any]
    ) -> tuple[list[Array], list[Array]]:
        """One step."""
        out = jaxpr_as_fun(self.step)(*consts, *carry, *x)
        return list(out[: self.carry]), list(out[self.carry :])

    def operations(self) -> int:
        """Of all steps once (of one, where their number is an operand)."""
        return (1 if self.dynamic else self.length) * program_flops(_jaxpr.body(self.step))

    def run(self, operands: Sequence[Any]) -> list[Array]:
        """Every step, nothing stored: the carry at the end, and the ys."""
        (n, consts, carry, xs) = self.split(operands)
        if self.dynamic:
            return list(lax.fori_loop(0, n[0], lambda _, c: self(consts, c, [])[0], carry))
        carry, ys = lax.scan(lambda c, x: self(consts, c, x), carry, xs, length=self.length, unroll=self.unroll)
        return [*carry, *ys]


@dataclasses.dataclass(frozen=True)
class Active:
    """Which constants, carries, xs and ys have tangents."""

    consts: Mask
    carry: Mask
    xs: Mask
    ys: Mask

    @property
    def ins(self) -> Mask:
        return (*self.consts, *self.carry, *self.xs)

    @property
    def outs(self) -> Mask:
        return (*self.carry, *self.ys)


def pick(values: Sequence[Any], mask: Sequence[bool]) -> list[Any]:
    """The values that the mask marks."""
    return [v for v, m in zip(values, mask, strict=True) if m]


def put(values: Sequence[Any], mask: Sequence[bool], marked: Sequence[Any]) -> list[Any]:
    """The values, with those that the mask marks replaced in order."""
    left = iter(marked)
    return [next(left) if m else v for v, m in zip(values, mask, strict=True)]


def spread(loop: Loop, marked: Sequence[bool], kind: Callable[[Any], bool] = lambda aval: True) -> Active:
    """What can depend on the marked (constants, carry, xs), around the loop, of the avals of a kind."""
    marked = list(marked)
    first, last = loop.consts, loop.consts + loop.carry
    while True:
        reached = _jaxpr.reached(_jaxpr.body(loop.step), marked)
        reached = [r and kind(aval) for r, aval in zip(reached, loop.step.out_avals)]
        carry = [old or new for old, new in zip(marked[first:last], reached)]
        if carry == marked[first:last]:
            break
        marked[first:last] = carry
    return Active(tuple(marked[:first]), tuple(carry), tuple(marked[last:]), tuple(reached[loop.carry :]))


def active(loop: Loop, marked: Sequence[bool]) -> Active:
    """What has tangents where the marked (constants, carry, xs) have."""
    return spread(loop, marked, _jaxpr.is_inexact)


def tangent_loop(loop: Loop, active: Active) -> Loop:
    """The loop that carries tangents beside values: after every group of operands and results come its tangents."""

    def step(*operands: Any) -> list[Any]:
        left = list(operands)

        def take(mask: Mask) -> tuple[list[Any], list[Any]]:
            values = [left.pop(0) for _ in mask]
            return values, [left.pop(0) for m in mask if m]

        groups = [take(mask) for mask in (active.consts, active.carry, active.xs)]
        values = [v for group, _ in groups for v in group]

        def of_active(*marked: Any) -> list[Any]:
            return list(jaxpr_as_fun(loop.step)(*put(values, active.ins, marked)))

        out, steps = jax.jvp(of_active, pick(values, active.ins), [t for _, group in groups for t in group])
        steps = pick(steps, active.outs)
        carried = sum(active.carry)
        return [*out[: loop.carry], *steps[:carried], *out[loop.carry :], *steps[carried:]]

    avals = loop.step.in_avals
    first, last = loop.consts, loop.consts + loop.carry
    groups = zip((avals[:first], avals[first:last], avals[last:]), (active.consts, active.carry, active.xs))
    ins = [a for group, mask in groups for a in (*group, *(t.to_tangent_aval() for t in pick(group, mask)))]
    return dataclasses.replace(
        loop,
        step=jax.make_jaxpr(step)(*ins),
        consts=loop.consts + sum(active.consts),
        carry=loop.carry + sum(active.carry),
    )


def batched_loop(loop: Loop, axis: Any, marked: Active, avals: Sequence[Any]) -> Loop:
    """The loop under `vmap`: the marked operands, of these types in each step, have a leading batch axis."""
    over = jax.vmap(
        jaxpr_as_fun(loop.step),
        in_axes=tuple(0 if m else None for m in marked.ins),
        out_axes=[0 if m else None for m in marked.outs],
        axis_size=axis.size,
        axis_name=axis.name,
        spmd_axis_name=axis.spmd_name,
    )
    return dataclasses.replace(loop, step=jax.make_jaxpr(over)(*avals))
