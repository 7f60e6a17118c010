"""The cotangents before a block of steps, of those after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.extend.core import jaxpr_as_fun

from robustad import _jaxpr
from robustad.memory._loop import Active, Loop, pick, put

Arrays = list[Array]


def pull(
    loop: Loop,
    active: Active,
    size: int,
    consts: Arrays,
    carry: Arrays,
    xs: Arrays,
    ct_ys: Arrays,
    ct_consts: Arrays,
    ct_carry: Arrays,
) -> tuple[Arrays, Arrays, Arrays]:
    """The cotangents of the constants, added to `ct_consts` step by step from the last, of the carry before, and of the xs.

    `carry` is the state before the `size` steps. Forward, every step leaves what its derivative needs, or its state
    where the plan says so; backward, that is used up.
    """
    if size == 1:
        back = vjp(loop, active, consts, carry, [x[0] for x in xs])
        to_consts, ct_carry, to_xs = back((ct_carry, [y[0] for y in ct_ys]))
        return _add(ct_consts, to_consts), ct_carry, [x[None] for x in to_xs]
    keep, rebuild = _states(loop, active, consts) if loop.plan.recompute else _tapes(loop, active, consts, carry, xs)

    def backward(sums: Any, step: Any) -> Any:
        ct_consts, ct_carry = sums
        kept, x, ct_y = step
        to_consts, ct_carry, to_x = rebuild(kept, x)((ct_carry, ct_y))
        return (_add(ct_consts, to_consts), ct_carry), to_x

    unroll = min(loop.unroll, size)
    _, kept = lax.scan(keep, carry, xs, length=size, unroll=unroll)
    steps = (kept, xs, ct_ys)
    (ct_consts, ct_carry), ct_xs = lax.scan(
        backward, (ct_consts, ct_carry), steps, length=size, reverse=True, unroll=unroll
    )
    return ct_consts, ct_carry, ct_xs


def vjp(loop: Loop, active: Active, consts: Arrays, carry: Arrays, x: Arrays) -> Any:
    """Of cotangents of a step's active results (carry, y), those of its active operands (constants, carry, x)."""
    _, back = _vjp(loop, active, consts, carry, x)
    return back


def _vjp(loop: Loop, active: Active, consts: Arrays, carry: Arrays, x: Arrays) -> tuple[Arrays, Any]:
    def step(c: Arrays, a: Arrays, x_: Arrays) -> Any:
        after, y = loop(put(consts, active.consts, c), put(carry, active.carry, a), put(x, active.xs, x_))
        return (pick(after, active.carry), pick(y, active.ys)), after

    _, back, after = jax.vjp(
        step, pick(consts, active.consts), pick(carry, active.carry), pick(x, active.xs), has_aux=True
    )
    return after, back


def _add(sums: Arrays, terms: Sequence[Array]) -> Arrays:
    return [s + t for s, t in zip(sums, terms, strict=True)]


def _states(loop: Loop, active: Active, consts: Arrays) -> Any:
    def keep(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        return loop(consts, carry, x)[0], carry

    return keep, lambda carry, x: vjp(loop, active, consts, carry, x)


def _tapes(loop: Loop, active: Active, consts: Arrays, carry: Arrays, xs: Arrays) -> Any:
    """What a step's derivative needs, but for what the constants and x give: that is not kept step by step."""
    first, last = len(consts), len(consts) + len(carry)
    trees = []

    def taped(*operands: Any) -> list[Any]:
        after, back = _vjp(loop, active, list(operands[:first]), list(operands[first:last]), list(operands[last:]))
        leaves, tree = jax.tree.flatten(back)
        trees[:] = [tree]
        return [*after, *leaves]

    program = jax.make_jaxpr(taped)(*loop.step.in_avals)
    inner = _jaxpr.body(program)
    reached = _jaxpr.reached(inner, [i >= first for i in range(len(inner.inputs))])[len(carry) :]
    outputs = inner.outputs[len(carry) :]
    of_x = {var: i for i, var in enumerate(inner.inputs[last:])}
    from_x = [None if _jaxpr.literal(v) is not None else of_x.get(v) for v in outputs]
    kept = [r and i is None for r, i in zip(reached, from_x)]
    fixed = jaxpr_as_fun(program)(*consts, *carry, *(x[0] for x in xs))[len(carry) :]

    def keep(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        out = jaxpr_as_fun(program)(*consts, *carry, *x)
        return list(out[: len(carry)]), pick(out[len(carry) :], kept)

    def rebuild(tape: Arrays, x: Arrays) -> Any:
        leaves = [f if i is None else x[i] for f, i in zip(fixed, from_x)]
        return jax.tree.unflatten(trees[0], put(leaves, kept, tape))

    return keep, rebuild
