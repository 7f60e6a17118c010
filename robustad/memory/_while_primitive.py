"""A while loop as a primitive: run, and reversed from states stored on the way, of whatever number of steps it made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from robustad import _jaxpr
from robustad.memory import _online
from robustad.memory._loop import Loop, batched_loop, spread
from robustad.memory._loop_primitive import tangents_of
from robustad.memory._reversal import Stack, new_stack, stack_of

_while = Primitive("checkpointed_while")
_while.multiple_results = True


@dataclasses.dataclass(frozen=True, eq=False)
class While:
    """A loop of at most `loop.length` steps, made while `cond`, a closed program (constants, carry) -> boolean, holds."""

    cond: Any
    cond_consts: int
    loop: Loop

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Operands as (constants of the condition, constants of the step, carry)."""
        first = self.cond_consts
        last = first + self.loop.consts
        return list(operands[:first]), list(operands[first:last]), list(operands[last:])


def run(loop: While, operands: Sequence[Any]) -> list[Array]:
    """(constants of the condition, constants of the step, initial carry) -> final carry, as one equation."""
    return _while.bind(*operands, loop=loop, storing=False)[: loop.loop.carry]


def _run(loop: While, storing: bool, operands: Sequence[Any]) -> list[Array]:
    """The final carry; the number of steps, twice: under `vmap` that of all, and each one's own; then what was stored."""
    cond_consts, consts, init = loop.split(operands)
    slots = loop.loop.plan.slots

    def more(state: Any) -> Array:
        step, carry, *_ = state
        return jaxpr_as_fun(loop.cond)(*cond_consts, *carry)[0] & (step < loop.loop.length)

    def plain(state: Any) -> Any:
        step, carry = state
        return step + 1, loop.loop(consts, carry, [])[0]

    def store(state: Any) -> Any:
        step, carry, stored, buffers = state
        if slots > 1:
            placed = _online.place(stored, step)
            # The initial state is written over itself.
            slot = jnp.where(step == 0, 0, placed[0])
            stored = jax.tree.map(lambda new, old: jnp.where(step == 0, old, new), placed[1], stored)
            buffers = [lax.dynamic_update_index_in_dim(b, c, slot, 0) for b, c in zip(buffers, carry)]
        return step + 1, loop.loop(consts, carry, [])[0], stored, buffers

    if not storing:
        step, carry = lax.while_loop(more, plain, (jnp.int32(0), init))
        return [*carry, step, step]
    start = jnp.int32(0), init, _online.nothing_stored(slots), new_stack(init, slots).buffers
    step, carry, stored, buffers = lax.while_loop(more, store, start)
    return [*carry, step, step, *Stack(buffers, *_online.in_order(stored)).leaves()]


@_while.def_impl
def _evaluate(*operands: Array, loop: While, storing: bool) -> list[Array]:
    return jax.jit(lambda *operands: _run(loop, storing, operands))(*operands)


@_while.def_abstract_eval
def _abstract(*avals: Any, loop: While, storing: bool) -> list[Any]:
    _, _, carry = loop.split(avals)
    slots = loop.loop.plan.slots
    step, *integers = (_jaxpr.int32(*shape) for shape in ((), (slots,), (slots,), ()))
    stored = [*(_jaxpr.stacked(c, slots) for c in carry), *integers] if storing else []
    return [*carry, step, step, *stored]


def _jvp(operands: Sequence[Any], steps: Sequence[Any], *, loop: While, storing: bool) -> Any:
    """The tangents are those of the loop over the number of steps that was found, in which each has its own number."""
    results = _while.bind(*operands, loop=loop, storing=True)
    _, consts, init = loop.split(operands)
    _, consts_steps, init_steps = loop.split(steps)
    carry, (total, own), stored = (
        results[: loop.loop.carry],
        results[loop.loop.carry : loop.loop.carry + 2],
        stack_of(results[loop.loop.carry + 2 :]),
    )
    index = jnp.zeros_like(stored.positions).at[stored.slots].set(stored.positions)
    stored = stored._replace(buffers=[index, *stored.buffers])
    fixed = [own, *map(_no_tangent, init)]
    none = [ad.Zero(jax.typeof(f).to_tangent_aval()) for f in fixed]
    tangents = tangents_of(
        _counted(loop.loop),
        [total, *fixed, *consts, jnp.int32(0), *init, *stored.leaves()],
        [None, *none, *consts_steps, none[0], *init_steps],
        [total, *carry],
    )[1:]
    outputs = results if storing else results[: loop.loop.carry + 2]
    rest = [ad.Zero(jax.typeof(o).to_tangent_aval()) for o in outputs[loop.loop.carry :]]
    return outputs, [*tangents, *rest]


def _counted(loop: Loop) -> Loop:
    """The loop with its index before its carry, and its own number of steps and initial carry before its constants.

    From that number on it keeps its carry. The step is then computed at the initial carry, where it is not thrown away alone
    but has been made, so that no infinite derivative meets the zero cotangent.
    """

    def step(own: Any, *rest: Any) -> list[Any]:
        safe, rest = rest[: loop.carry], rest[loop.carry :]
        consts, index, carry = rest[: loop.consts], rest[loop.consts], rest[loop.consts + 1 :]
        going = index < own
        after, _ = loop(consts, [jnp.where(going, c, s) for c, s in zip(carry, safe)], [])
        return [index + 1, *(jnp.where(going, new, c) for new, c in zip(after, carry))]

    consts, carry = loop.step.in_avals[: loop.consts], loop.step.in_avals[loop.consts :]
    number = _jaxpr.int32()
    return dataclasses.replace(
        loop,
        step=jax.make_jaxpr(step)(number, *carry, *consts, number, *carry),
        consts=1 + loop.carry + loop.consts,
        carry=1 + loop.carry,
    )


def _batch(axis: Any, operands: Sequence[Any], axes: Sequence[Any], *, loop: While, storing: bool) -> Any:
    if all(a is None for a in axes):
        results = _while.bind(*operands, loop=loop, storing=storing)
        return results, [None] * len(results)
    operands = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(operands, axes)]
    cond_marks, *marks = loop.split([a is not None for a in axes])
    marked = spread(loop.loop, [m for group in marks for m in group])
    if _jaxpr.reached(_jaxpr.body(loop.cond), [*cond_marks, *marked.carry])[0]:
        return _batch_differing(axis, operands, cond_marks, marks, loop, storing)
    cond_consts, consts, carry = loop.split(operands)
    carry = _spread_out(carry, marks[1], marked.carry, axis.size)
    inner = batched_loop(loop.loop, axis, marked, [jax.typeof(x) for x in (*consts, *carry)])
    results = _while.bind(*cond_consts, *consts, *carry, loop=dataclasses.replace(loop, loop=inner), storing=storing)
    stored = [*(1 if m else None for m in marked.carry), None, None, None] if storing else []
    return results, [*(0 if m else None for m in marked.carry), None, None, *stored]


def _batch_differing(
    axis: Any, operands: Sequence[Any], cond_marks: list[bool], marks: list[list[bool]], loop: While, storing: bool
) -> Any:
    """Where the number of steps differs within the batch: one loop until all have ended, which carries each one's number.

    One that has ended keeps its carry, as in `_counted`.
    """
    cond_consts, consts, init = loop.split(operands)
    count = len(init)
    init = _spread_out(init, marks[1], [True] * count, axis.size)

    def over(function: Any, in_marks: Sequence[bool]) -> Any:
        in_axes = [*(0 if m else None for m in in_marks), *[0] * count]
        return jax.vmap(
            lambda *operands: function(*operands),
            tuple(in_axes),
            axis_size=axis.size,
            axis_name=axis.name,
            spmd_axis_name=axis.spmd_name,
        )

    holds = over(lambda *operands: jaxpr_as_fun(loop.cond)(*operands)[0], cond_marks)
    each = over(jaxpr_as_fun(loop.loop.step), marks[0])

    def cond(*operands: Any) -> list[Array]:
        first, carry = operands[: len(cond_consts)], operands[len(cond_consts) + 1 :]
        return [jnp.any(holds(*first, *carry))]

    def step(*operands: Any) -> list[Array]:
        first, rest = operands[: len(cond_consts)], operands[len(cond_consts) :]
        safe, rest = rest[:count], rest[count:]
        own, steps, carry = rest[: len(consts)], rest[len(consts)], rest[len(consts) + 1 :]
        going = holds(*first, *carry)
        after = each(*own, *(_where(going, c, s) for c, s in zip(carry, safe)))
        return [jnp.where(going, steps + 1, steps), *(_where(going, new, c) for new, c in zip(after, carry))]

    fixed = [*cond_consts, *map(_no_tangent, init)]
    carry = [jnp.zeros(axis.size, jnp.int32), *init]
    types = [jax.typeof(x) for x in (*fixed, *consts, *carry)]
    inner = dataclasses.replace(
        loop.loop, step=jax.make_jaxpr(step)(*types), consts=len(fixed) + len(consts), carry=count + 1
    )
    ended = jax.make_jaxpr(cond)(*(jax.typeof(x) for x in (*cond_consts, *carry)))
    batched = While(ended, len(cond_consts), inner)
    steps, *results = _while.bind(*cond_consts, *fixed, *consts, *carry, loop=batched, storing=storing)
    carry, total, stored = results[:count], results[count], results[count + 3 :]  # without the stored numbers
    axes = [*[0] * count, None, 0, *([*[1] * count, None, None, None] if storing else [])]
    return [*carry, total, steps, *stored], axes


def _spread_out(carry: Sequence[Any], own: Sequence[bool], marked: Sequence[bool], size: int) -> list[Any]:
    return [
        jnp.broadcast_to(c, (size, *c.shape)) if m and not o else c for c, o, m in zip(carry, own, marked, strict=True)
    ]


def _where(going: Array, new: Array, old: Array) -> Array:
    return jnp.where(going.reshape(going.shape + (1,) * (new.ndim - 1)), new, old)


def _no_tangent(x: Array) -> Array:
    return lax.stop_gradient(x) if _jaxpr.is_inexact(x) else x


def _lower(ctx: Any, *operands: Any, loop: While, storing: bool) -> Any:
    return mlir.lower_fun(lambda *operands: _run(loop, storing, operands), multiple_results=True)(ctx, *operands)


ad.primitive_jvps[_while] = _jvp
batching.fancy_primitive_batchers[_while] = _batch
mlir.register_lowering(_while, _lower)
