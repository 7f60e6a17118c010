"""A loop whose states before every block of steps go to disk, and come back for the backward pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import io_callback

from robustad import _jaxpr
from robustad.memory._disk import DiskTier, as_before, as_data
from robustad.memory._loop import Loop, pick, put

Arrays = list[Any]
_NUMBER = jax.ShapeDtypeStruct((), jnp.int32)
"""Of a run on disk."""


def run(loop: Loop, tier: DiskTier, states: int | None, operands: Sequence[Any]) -> Arrays:
    """(constants, carry, xs) -> (final carry, ys); `states` are stored, None: as many as a block has steps."""
    block = math.ceil(loop.length / (states or math.isqrt(loop.length) or 1))
    moves = [_jaxpr.is_inexact(x) for x in operands]
    return _run(loop, tier, block, tuple(moves), pick(operands, moves), pick(operands, [not m for m in moves]))


def _joined(moves: Sequence[bool], moving: Sequence[Any], fixed: Sequence[Any]) -> Arrays:
    left, right = iter(moving), iter(fixed)
    return [next(left) if m else next(right) for m in moves]


def _steps(loop: Loop, consts: Arrays, carry: Arrays, xs: Arrays, size: int) -> tuple[Arrays, Arrays]:
    return lax.scan(lambda c, x: loop(consts, c, x), carry, xs, length=size, unroll=loop.unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _run(loop: Loop, tier: DiskTier, block: int, moves: Any, moving: Arrays, fixed: Arrays) -> Arrays:
    return loop.run(_joined(moves, moving, fixed))


def _blocks(loop: Loop, block: int, xs: Sequence[Array]) -> tuple[Arrays, Arrays]:
    """Of arrays along the steps: those before the first whole block, and the blocks."""
    head = loop.length % block
    return [x[:head] for x in xs], [x[head:].reshape(-1, block, *x.shape[1:]) for x in xs]


def _forward(loop: Loop, tier: DiskTier, block: int, moves: Any, moving: Arrays, fixed: Arrays) -> Any:
    _, consts, init, xs = loop.split(_joined(moves, moving, fixed))
    first, blocks = _blocks(loop, block, xs)
    count, head = divmod(loop.length, block)
    # A loop around this one that is differentiated takes out of itself what does not depend on its iteration, and drops what
    # gives no result: the run depends on all operands, and its number passes through what writes to it.
    start, *_ = lax.optimization_barrier((jnp.int32(0), *moving, *fixed))
    number = io_callback(tier.open_run, _NUMBER, start, ordered=True)

    def body(state: Any, given: Any) -> Any:
        (carry, number), (place, x) = state, given
        number = io_callback(tier.write, _NUMBER, number, place, *map(as_data, carry), ordered=True)
        carry, ys = _steps(loop, consts, carry, x, block)
        return (carry, number), ys

    carry, ys = _steps(loop, consts, init, first, head)
    (carry, number), more = lax.scan(body, (carry, number), (jnp.arange(count), blocks))
    ys = [jnp.concatenate([y, m.reshape(-1, *m.shape[2:])]) for y, m in zip(ys, more)]
    return [*carry, *ys], (number, moving, fixed)


def _backward(loop: Loop, tier: DiskTier, block: int, moves: Any, kept: Any, cotangents: Arrays) -> Any:
    number, moving, fixed = kept
    _, consts, init, xs = loop.split(_joined(moves, moving, fixed))
    first, blocks = _blocks(loop, block, xs)
    count, head = divmod(loop.length, block)
    of_consts, of_carry, of_xs = (
        moves[: loop.consts],
        moves[loop.consts :][: loop.carry],
        moves[loop.consts + loop.carry :],
    )
    out_carry = [_jaxpr.is_inexact(a) for a in loop.step.out_avals[: loop.carry]]
    out_ys = [_jaxpr.is_inexact(a) for a in loop.step.out_avals[loop.carry :]]
    ct_first, ct_blocks = _blocks(loop, block, pick(cotangents[loop.carry :], out_ys))

    def pull(carry: Arrays, x: Arrays, size: int, sums: Any, ct_y: Arrays) -> Any:
        ct_consts, ct_carry = sums

        def function(consts_: Arrays, carry_: Arrays, x_: Arrays) -> Any:
            given = put(consts, of_consts, consts_), put(carry, of_carry, carry_), put(x, of_xs, x_)
            carry_, ys = _steps(loop, *given, size)
            return pick(carry_, out_carry), pick(ys, out_ys)

        _, back = jax.vjp(function, pick(consts, of_consts), pick(carry, of_carry), pick(x, of_xs))
        more, ct_carry, ct_x = back((ct_carry, ct_y))
        return ([a + b for a, b in zip(ct_consts, more)], ct_carry), ct_x

    def body(sums: Any, given: Any) -> Any:
        place, x, ct_y = given
        like = [jax.eval_shape(as_data, c) for c in init]
        found = io_callback(lambda n, p: tier.read(n, p, like), like, number, place, ordered=True)
        return pull([as_before(d, c) for d, c in zip(found, init)], x, block, sums, ct_y)

    sums = [_jaxpr.zeros_of_tangent(c) for c in pick(consts, of_consts)], pick(cotangents[: loop.carry], out_carry)
    sums, of_blocks = lax.scan(body, sums, (jnp.arange(count), blocks, ct_blocks), reverse=True)
    io_callback(tier.close_run, None, number, ordered=True)
    (ct_consts, ct_carry), of_first = pull(init, first, head, sums, ct_first)
    ct_xs = [jnp.concatenate([a, b.reshape(-1, *b.shape[2:])]) for a, b in zip(of_first, of_blocks)]
    return [*ct_consts, *ct_carry, *ct_xs], None


_run.defvjp(_forward, _backward)
