"""A loop run forward with states stored, and reversed from them, in a program whose size does not depend on its length.

The stored states form a stack: `top` is the index of the last one, and the i-th is the state before block `positions[i]` and
lies in `slots[i]` of the buffers. Reversing a block takes the last stored state at or before it, advances towards
the block and stores on the way, where the binomial schedule says, while slots are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad.memory import _binomial
from robustad.memory._loop import Active, Loop, pick, put


class Stack(NamedTuple):
    buffers: list[Array]
    positions: Array
    slots: Array
    top: Array

    def push(self, carry: Sequence[Array], position: Any) -> Stack:
        top = self.top + 1
        at = self.slots[top]
        buffers = [lax.dynamic_update_index_in_dim(b, c, at, 0) for b, c in zip(self.buffers, carry)]
        return Stack(buffers, self.positions.at[top].set(position), self.slots, top)

    def last(self) -> tuple[list[Array], Array]:
        at = self.slots[self.top]
        carry = [lax.dynamic_index_in_dim(b, at, 0, keepdims=False) for b in self.buffers]
        return carry, self.positions[self.top]

    def pop_if(self, position: Array) -> Stack:
        return self._replace(top=self.top - (self.positions[self.top] == position))

    def leaves(self) -> list[Array]:
        return [*self.buffers, self.positions, self.slots, self.top]


def stack_of(leaves: Sequence[Array]) -> Stack:
    return Stack(list(leaves[:-3]), *leaves[-3:])


def new_stack(carry: Sequence[Array], slots: int) -> Stack:
    """A stack that holds the state before block 0."""
    buffers = [jnp.broadcast_to(c, (slots, *c.shape)) for c in carry]
    return Stack(buffers, jnp.zeros(slots, jnp.int32), jnp.arange(slots, dtype=jnp.int32), jnp.int32(0))


class Blocks(NamedTuple):
    """Steps in blocks: `head` steps, fewer than `size`, then `count` blocks of `size` steps."""

    head: int
    size: int
    count: Any


def blocks(loop: Loop, n: Sequence[Array]) -> Blocks:
    if loop.dynamic:
        return Blocks(0, 1, n[0])
    return Blocks(loop.length % loop.plan.block, loop.plan.block, loop.length // loop.plan.block)


def _steps(loop: Loop, consts: Any, carry: Any, xs: Any, size: int, recompute: bool = False) -> tuple[Any, Any]:
    """`size` steps on their own xs."""
    step = jax.checkpoint(loop.__call__) if recompute else loop
    if size == 1:
        carry, ys = step(consts, carry, [x[0] for x in xs])
        return carry, [y[None] for y in ys]
    return lax.scan(lambda c, x: step(consts, c, x), carry, xs, length=size, unroll=min(loop.unroll, size))


def _slice(arrays: Sequence[Array], start: Any, size: int) -> list[Array]:
    return [lax.dynamic_slice_in_dim(a, start, size) for a in arrays]


def _write(arrays: Sequence[Array], chunks: Sequence[Array], start: Any) -> list[Array]:
    return [lax.dynamic_update_slice_in_dim(a, c, start, 0) for a, c in zip(arrays, chunks)]


def _advance(loop: Loop, shape: Blocks, consts: Any, xs: Any, carry: Any, start: Any, stop: Any) -> Any:
    """The carry after the blocks from `start` up to `stop`."""

    def one(block: Array, carry: Any) -> Any:
        chunk = _slice(xs, shape.head + block * shape.size, shape.size)
        if shape.size == 1:
            return loop(consts, carry, [x[0] for x in chunk])[0]
        after, _ = lax.scan(
            lambda c, x: (loop(consts, c, x)[0], None), carry, chunk, length=shape.size, unroll=loop.unroll
        )
        return after

    return lax.fori_loop(start, stop, one, carry)


def _table(loop: Loop) -> Any:
    slots, most = loop.plan.slots, loop.length // loop.plan.block
    # Of a number of steps known beforehand no part needs more repetitions than the whole.
    return _binomial.bounds(most, slots, _binomial.repetitions(most, min(2, slots) if loop.dynamic else slots))


def run_storing(loop: Loop, operands: Sequence[Array]) -> tuple[list[Array], list[Array], Stack]:
    """Every step: the carry at the end, the ys, and the stored states."""
    n, consts, carry, xs = loop.split(operands)
    shape = blocks(loop, n)
    ys = [_jaxpr.blank(aval, loop.length) for aval in loop.step.out_avals[loop.carry :]]
    if shape.head:
        carry, chunk = _steps(loop, consts, carry, [x[: shape.head] for x in xs], shape.head)
        ys = _write(ys, chunk, 0)
    stack = new_stack(carry, loop.plan.slots)
    table = _table(loop)

    def advance(start: Any, stop: Any, carry: Any, ys: Any) -> tuple[Any, Any]:
        def one(block: Array, state: Any) -> Any:
            carry, ys = state
            at = shape.head + block * shape.size
            carry, chunk = _steps(loop, consts, carry, _slice(xs, at, shape.size), shape.size)
            return carry, _write(ys, chunk, at)

        return lax.fori_loop(start, stop, one, (carry, ys))

    def store(state: Any) -> Any:
        carry, ys, at, stack = state
        then = at + _binomial.traced_split(table, shape.count - at, loop.plan.slots - stack.top)
        carry, ys = advance(at, then, carry, ys)
        return carry, ys, then, stack.push(carry, then)

    def more(state: Any) -> Array:
        _, _, at, stack = state
        return (stack.top < loop.plan.slots - 1) & (at < shape.count - 1)

    at: Any = jnp.int32(0)
    if loop.plan.slots > 1:
        carry, ys, at, stack = lax.while_loop(more, store, (carry, ys, at, stack))
    carry, ys = advance(at, shape.count, carry, ys)
    return carry, ys, stack


def reverse(
    loop: Loop, active: Active, operands: Sequence[Array], stack: Stack, cotangents: Sequence[Array]
) -> list[Array]:
    """The cotangents of the active constants, initial carry and xs, of those of the active final carry and ys."""
    n, consts, init, xs = loop.split(operands)
    shape = blocks(loop, n)
    table = _table(loop)
    carried = sum(active.carry)
    ct_carry, ct_ys = list(cotangents[:carried]), list(cotangents[carried:])
    ct_consts = [_jaxpr.zeros_of_tangent(c) for c in pick(consts, active.consts)]
    ct_xs = [_jaxpr.zeros_of_tangent(x) for x in pick(xs, active.xs)]

    def pull(carry: Any, at: Any, size: int, sums: Any) -> Any:
        """The cotangents before `size` steps, of those after; `carry` is the state before them."""
        ct_carry, ct_consts, ct_xs = sums
        chunk = _slice(xs, at, size)

        def steps(c: Any, a: Any, x: Any) -> Any:
            full = put(consts, active.consts, c), put(carry, active.carry, a), put(chunk, active.xs, x)
            after, ys = _steps(loop, *full, size, loop.plan.recompute)
            return pick(after, active.carry), pick(ys, active.ys)

        _, back = jax.vjp(steps, pick(consts, active.consts), pick(carry, active.carry), pick(chunk, active.xs))
        to_consts, ct_carry, to_xs = back((ct_carry, _slice(ct_ys, at, size)))
        return ct_carry, [s + c for s, c in zip(ct_consts, to_consts)], _write(ct_xs, to_xs, at)

    def store(state: Any) -> Any:
        carry, at, block, stack = state
        then = at + _binomial.traced_split(table, block + 1 - at, loop.plan.slots - stack.top)
        carry = _advance(loop, shape, consts, xs, carry, at, then)
        return carry, then, block, stack.push(carry, then)

    def more(state: Any) -> Array:
        _, at, block, stack = state
        return (stack.top < loop.plan.slots - 1) & (at < block)

    def one(back: Array, state: Any) -> Any:
        stack, sums = state
        block = shape.count - 1 - back
        carry, at = stack.last()
        if loop.plan.slots > 1:
            carry, at, _, stack = lax.while_loop(more, store, (carry, at, block, stack))
        carry = _advance(loop, shape, consts, xs, carry, at, block)
        return stack.pop_if(block), pull(carry, shape.head + block * shape.size, shape.size, sums)

    _, sums = lax.fori_loop(0, shape.count, one, (stack, (ct_carry, ct_consts, ct_xs)))
    if shape.head:
        sums = pull(init, 0, shape.head, sums)
    ct_carry, ct_consts, ct_xs = sums
    return [*ct_consts, *ct_carry, *ct_xs]
