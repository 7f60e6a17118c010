"""A loop run forward with states stored, and reversed from them, in a program whose size does not depend on its length.

The stored states form a stack: `top` is the index of the last one, and the i-th is the state before block `positions[i]` and
lies in `slots[i]` of the buffers. Reversing a block takes the last stored state at or before it, advances towards
the block and stores on the way, where the binomial schedule says, while slots are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad.memory import _binomial
from robustad.memory._loop import Active, Loop, pick
from robustad.memory._pull import pull


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
        return self._replace(top=jnp.where(self.positions[self.top] == position, self.top - 1, self.top))

    def leaves(self) -> list[Array]:
        return [*self.buffers, self.positions, self.slots, self.top]


def stack_of(leaves: Sequence[Array]) -> Stack:
    return Stack(list(leaves[:-3]), *leaves[-3:])


def new_stack(carry: Sequence[Array], slots: int) -> Stack:
    """A stack that holds the state before block 0."""
    buffers = [jnp.broadcast_to(c, (slots, *c.shape)) for c in carry]
    return Stack(buffers, jnp.zeros(slots, jnp.int32), jnp.arange(slots, dtype=jnp.int32), jnp.int32(0))


class Blocks(NamedTuple):
    """`count` blocks of `size` steps each, the first of which begins with step `first`."""

    first: int
    size: int
    count: Any

    def at(self, block: Any) -> Any:
        """The first step of a block."""
        return self.first + block * self.size


def _blocks(loop: Loop, n: Sequence[Array]) -> tuple[Blocks, Blocks]:
    """The steps before the first whole block, one by one, and the blocks."""
    if loop.dynamic:
        return Blocks(0, 1, 0), Blocks(0, 1, n[0])
    size = loop.plan.block
    head = loop.length % size
    return Blocks(0, 1, head), Blocks(head, size, loop.length // size)


def _table(loop: Loop, blocks: Blocks) -> Any:
    slots, most = loop.plan.slots, loop.length if loop.dynamic else blocks.count
    # Of a number of steps known beforehand no part needs more repetitions than the whole.
    return _binomial.bounds(most, slots, _binomial.repetitions(most, min(2, slots) if loop.dynamic else slots))


def _slice(arrays: Sequence[Array], start: Any, size: int) -> list[Array]:
    return [lax.dynamic_slice_in_dim(a, start, size) for a in arrays]


def _write(arrays: Sequence[Array], chunks: Sequence[Array], start: Any) -> list[Array]:
    return [lax.dynamic_update_slice_in_dim(a, c, start, 0) for a, c in zip(arrays, chunks)]


def _steps(loop: Loop, consts: Any, carry: Any, xs: Sequence[Array], size: int) -> tuple[list[Array], list[Array]]:
    """`size` steps on their own xs."""
    if size == 1:
        carry, ys = loop(consts, carry, [x[0] for x in xs])
        return carry, [y[None] for y in ys]
    return lax.scan(lambda c, x: loop(consts, c, x), carry, xs, length=size, unroll=min(loop.unroll, size))


def _advance(loop: Loop, blocks: Blocks, consts: Any, xs: Any, carry: Any, start: Any, stop: Any) -> Any:
    """The carry after the blocks from `start` up to `stop`."""

    def one(block: Array, carry: Any) -> Any:
        return _steps(loop, consts, carry, _slice(xs, blocks.at(block), blocks.size), blocks.size)[0]

    return lax.fori_loop(start, stop, one, carry)


def run_storing(loop: Loop, operands: Sequence[Array]) -> tuple[list[Array], list[Array], Stack]:
    """Every step: the carry at the end, the ys, and the stored states."""
    n, consts, carry, xs = loop.split(operands)
    head, blocks = _blocks(loop, n)
    ys = [_jaxpr.zeros(_jaxpr.stacked(aval, loop.length)) for aval in loop.step.out_avals[loop.carry :]]
    if head.count:
        carry, chunk = _steps(loop, consts, carry, [x[: head.count] for x in xs], head.count)
        ys = _write(ys, chunk, 0)
    stack = new_stack(carry, loop.plan.slots)
    table = _table(loop, blocks)

    def advance(start: Any, stop: Any, carry: Any, ys: Any) -> tuple[Any, Any]:
        def one(block: Array, state: Any) -> Any:
            carry, ys = state
            at = blocks.at(block)
            carry, chunk = _steps(loop, consts, carry, _slice(xs, at, blocks.size), blocks.size)
            return carry, _write(ys, chunk, at)

        return lax.fori_loop(start, stop, one, (carry, ys))

    def store(state: Any) -> Any:
        carry, ys, at, stack = state
        then = at + _binomial.traced_split(table, blocks.count - at, loop.plan.slots - stack.top)
        carry, ys = advance(at, then, carry, ys)
        return carry, ys, then, stack.push(carry, then)

    def more(state: Any) -> Array:
        _, _, at, stack = state
        return (stack.top < loop.plan.slots - 1) & (at < blocks.count - 1)

    at: Any = jnp.int32(0)
    if loop.plan.slots > 1:
        carry, ys, at, stack = lax.while_loop(more, store, (carry, ys, at, stack))
    carry, ys = advance(at, blocks.count, carry, ys)
    return carry, ys, stack


def reverse(
    loop: Loop, active: Active, operands: Sequence[Array], stack: Stack, cotangents: Sequence[Array]
) -> list[Array]:
    """The cotangents of the active constants, initial carry and xs, of those of the active final carry and ys."""
    n, consts, init, xs = loop.split(operands)
    head, blocks = _blocks(loop, n)
    carried = sum(active.carry)
    ct_ys = list(cotangents[carried:])
    sums = Sums(
        [_jaxpr.zeros_of_tangent(c) for c in pick(consts, active.consts)],
        list(cotangents[:carried]),
        [_jaxpr.zeros_of_tangent(x) for x in pick(xs, active.xs)],
    )
    given = loop, active, consts, xs, ct_ys
    stack, sums = _reverse_blocks(*given, blocks, stack, sums)
    if head.count:
        stack = stack._replace(top=jnp.int32(-1)).push(init, 0)
        _, sums = _reverse_blocks(*given, head, stack, sums)
    return [*sums.consts, *sums.carry, *sums.xs]


class Sums(NamedTuple):
    """Cotangents on the way: of the constants and xs so far, of the carry at the present step."""

    consts: list[Array]
    carry: list[Array]
    xs: list[Array]


def _reverse_blocks(
    loop: Loop, active: Active, consts: Any, xs: Any, ct_ys: Any, blocks: Blocks, stack: Stack, sums: Sums
) -> tuple[Stack, Sums]:
    table = _table(loop, blocks)
    slots = loop.plan.slots

    def store(state: Any) -> Any:
        carry, at, block, stack = state
        then = at + _binomial.traced_split(table, block + 1 - at, slots - stack.top)
        carry = _advance(loop, blocks, consts, xs, carry, at, then)
        return carry, then, block, stack.push(carry, then)

    def more(state: Any) -> Array:
        _, at, block, stack = state
        return (stack.top < slots - 1) & (at < block)

    def one(back: Array, state: Any) -> Any:
        stack, sums = state
        block = blocks.count - 1 - back
        carry, at = stack.last()
        if slots > 1:
            carry, at, _, stack = lax.while_loop(more, store, (carry, at, block, stack))
        carry = _advance(loop, blocks, consts, xs, carry, at, block)
        start = blocks.at(block)
        chunks = _slice(xs, start, blocks.size), _slice(ct_ys, start, blocks.size)
        ct_consts, ct_carry, ct_chunk = pull(loop, active, blocks.size, consts, carry, *chunks, sums.consts, sums.carry)
        return stack.pop_if(block), Sums(ct_consts, ct_carry, _write(sums.xs, ct_chunk, start))

    return lax.fori_loop(0, blocks.count, one, (stack, sums))
