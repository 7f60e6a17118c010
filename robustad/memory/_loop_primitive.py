r"""A loop as a primitive, with its derivatives of every order.

Let F map (constants, initial carry, xs) to (final carry, ys). Its tangent map D F(p) and the adjoint of that, which
reverses the loop from stored states, are linear maps that declare each other. The derivative of the adjoint in its
residuals is, for cotangents c, the Hessian of ⟨c, F⟩: symmetric, so it is its own adjoint, and equal to the reversal
of the loop that carries tangents beside values. So every order in every mode ends in reversals of loops of the same kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from robustad import _jaxpr
from robustad.memory import _linear_map
from robustad.memory._flops import program_flops
from robustad.memory._linear_map import Arrays, LinearMap
from robustad.memory._loop import Active, Loop, Mask, active, batched_loop, pick, put, spread, tangent_loop
from robustad.memory._loop_plan import evaluated
from robustad.memory._reversal import reverse, run_storing, stack_of

_loop = Primitive("checkpointed_loop")
_loop.multiple_results = True


def run(loop: Loop, operands: Arrays) -> list[Array]:
    """([number of steps,] constants, initial carry, xs) -> (final carry, ys), as one equation."""
    return _loop.bind(*operands, loop=loop, storing=False)


def _run(loop: Loop, storing: bool, operands: Arrays) -> list[Array]:
    if not storing:
        return loop.run(operands)
    carry, ys, stack = run_storing(loop, operands)
    return [*carry, *ys, *stack.leaves()]


@_loop.def_impl
def _evaluate(*operands: Array, loop: Loop, storing: bool) -> list[Array]:
    return jax.jit(lambda *operands: _run(loop, storing, operands))(*operands)


@_loop.def_abstract_eval
def _abstract(*avals: Any, loop: Loop, storing: bool) -> list[Any]:
    _, _, carry, _ = loop.split(avals)
    ys = [_jaxpr.stacked(aval, loop.length) for aval in loop.step.out_avals[loop.carry :]]
    if not storing:
        return [*carry, *ys]
    slots = loop.plan.slots
    integers = [_jaxpr.int32(*shape) for shape in ((slots,), (slots,), ())]
    return [*carry, *ys, *(_jaxpr.stacked(c, slots) for c in carry), *integers]


def _jvp(operands: Arrays, steps: Arrays, *, loop: Loop, storing: bool) -> tuple[Arrays, Arrays]:
    results = _loop.bind(*operands, loop=loop, storing=True)
    outputs, stored = results[: loop.carry + loop.ys], results[loop.carry + loop.ys :]
    tangents = tangents_of(loop, [*operands, *stored], steps, outputs)
    if storing:  # what is stored is recomputed where it is differentiated
        return results, [*tangents, *(ad.Zero(jax.typeof(s).to_tangent_aval()) for s in stored)]
    return outputs, tangents


def tangents_of(loop: Loop, residuals: Arrays, steps: Arrays, outputs: Arrays) -> list[Any]:
    """The tangents of a loop's outputs, of those of its operands; `residuals`: the operands, then what was stored."""
    marked = [type(t) is not ad.Zero for t in steps[loop.dynamic :]]
    moved = active(loop, marked)
    vectors = [ad.instantiate_zeros(t) for t in pick(steps[loop.dynamic :], moved.ins)]
    tangents = iter(_linear_map.apply(Tangent(loop, moved), residuals, vectors))
    return [next(tangents) if m else ad.Zero(jax.typeof(o).to_tangent_aval()) for o, m in zip(outputs, moved.outs)]


def _batch(axis: Any, operands: Arrays, axes: Sequence[Any], *, loop: Loop, storing: bool) -> Any:
    n, consts, carry, xs = loop.split(operands)
    _, *at = loop.split(axes)
    marked = spread(loop, [a is not None for group in at for a in group])

    def placed(x: Any, from_: Any, mark: bool, to: int) -> Any:
        if from_ is not None:
            return jnp.moveaxis(x, from_, to)
        return jnp.broadcast_to(jnp.expand_dims(x, to), (*x.shape[:to], axis.size, *x.shape[to:])) if mark else x

    consts = [placed(c, a, m, 0) for c, a, m in zip(consts, at[0], marked.consts)]
    carry = [placed(c, a, m, 0) for c, a, m in zip(carry, at[1], marked.carry)]
    xs = [placed(x, a, m, 1) for x, a, m in zip(xs, at[2], marked.xs)]
    each = [jax.typeof(a) for a in (*consts, *carry)] + [_jaxpr.first_of(jax.typeof(x)) for x in xs]
    batched = batched_loop(loop, axis, marked, each)
    results = _loop.bind(*n, *consts, *carry, *xs, loop=batched, storing=storing)
    out = [0 if m else None for m in marked.carry] + [1 if m else None for m in marked.ys]
    if storing:
        out += [1 if m else None for m in marked.carry] + [None] * 3
    return results, out


def _lower(ctx: Any, *operands: Any, loop: Loop, storing: bool) -> Any:
    return mlir.lower_fun(lambda *operands: _run(loop, storing, operands), multiple_results=True)(ctx, *operands)


ad.primitive_jvps[_loop] = _jvp
batching.fancy_primitive_batchers[_loop] = _batch
mlir.register_lowering(_loop, _lower)


@dataclasses.dataclass(frozen=True)
class _OfLoop:
    loop: Loop
    active: Active

    @property
    def operands(self) -> int:
        return len(self.loop.step.in_avals) + self.loop.dynamic

    def _active_ins(self, residuals: Arrays) -> list[Any]:
        return pick(residuals[self.loop.dynamic : self.operands], self.active.ins)


@dataclasses.dataclass(frozen=True)
class Tangent(_OfLoop):
    """D F: of tangents of the active operands, those of the active outputs. Residuals: the operands, and what was stored."""

    def _with_tangents(self, operands: Arrays, vectors: Arrays) -> tuple[Loop, list[Any]]:
        loop, active = self.loop, self.active
        n, consts, carry, xs = loop.split(operands)
        left = iter(vectors)
        groups = zip((consts, carry, xs), (active.consts, active.carry, active.xs))
        joined = [v for group, mask in groups for v in (*group, *(next(left) for m in mask if m))]
        return tangent_loop(loop, active), [*n, *joined]

    def _pick(self, outputs: Arrays) -> list[Any]:
        carried, ys = self.loop.carry + sum(self.active.carry), self.loop.ys
        return [*outputs[self.loop.carry : carried], *outputs[carried + ys :]]

    def apply(self, residuals: Arrays, vectors: Arrays) -> list[Array]:
        loop, operands = self._with_tangents(residuals[: self.operands], vectors)
        return self._pick(loop.run(operands))

    def avals(self, residuals: Arrays, vectors: Arrays) -> list[Any]:
        _, _, carry, _ = self.loop.split(residuals[: self.operands])
        ys = [_jaxpr.stacked(aval, self.loop.length) for aval in self.loop.step.out_avals[self.loop.carry :]]
        return [aval.to_tangent_aval() for aval in pick([*carry, *ys], self.active.outs)]

    def operations(self) -> int:
        return tangent_loop(self.loop, self.active).operations()

    def adjoint(self) -> LinearMap:
        return Reversal(self.loop, self.active)

    def jvp(self, residuals: Arrays, vectors: Arrays, steps: Arrays, vector_steps: Arrays) -> tuple[Arrays, Arrays]:
        def function(operands: Arrays, vectors: Arrays) -> list[Array]:
            loop, joined = self._with_tangents(operands, vectors)
            return self._pick(run(loop, joined))

        return _jvp_of(function, residuals[: self.operands], vectors, steps[: self.operands], vector_steps)


@dataclasses.dataclass(frozen=True)
class Reversal(_OfLoop):
    """The adjoint of D F: of cotangents of the active outputs, those of the active operands. Residuals as of `Tangent`."""

    def apply(self, residuals: Arrays, vectors: Arrays) -> list[Array]:
        stack = stack_of(residuals[self.operands :])
        return reverse(self.loop, self.active, residuals[: self.operands], stack, vectors)

    def avals(self, residuals: Arrays, vectors: Arrays) -> list[Any]:
        return [aval.to_tangent_aval() for aval in self._active_ins(residuals)]

    def operations(self) -> int:
        loop, active = self.loop, self.active
        steps = 1 if loop.dynamic else loop.length
        again = (
            0 if loop.dynamic else evaluated(steps, loop.plan) - 2 * steps
        )  # but for the two passes that any loop makes

        def gradient(operands: Arrays, cotangents: Arrays) -> Any:
            def of_active(*marked: Any) -> list[Any]:
                return pick(jaxpr_as_fun(loop.step)(*put(operands, active.ins, marked)), active.outs)

            return jax.vjp(of_active, *pick(operands, active.ins))[1](list(cotangents))

        avals = loop.step.in_avals
        out = [aval.to_tangent_aval() for aval in pick(loop.step.out_avals, active.outs)]
        once = program_flops(_jaxpr.body(jax.make_jaxpr(gradient)(avals, out)))
        return steps * once + again * program_flops(_jaxpr.body(loop.step))

    def adjoint(self) -> LinearMap:
        return Tangent(self.loop, self.active)

    def jvp(self, residuals: Arrays, vectors: Arrays, steps: Arrays, vector_steps: Arrays) -> tuple[Arrays, Arrays]:
        operands = residuals[: self.operands]
        moved = tuple(type(t) is not ad.Zero for t in steps[: self.operands])[self.loop.dynamic :]
        outputs = _linear_map.apply(self, residuals, vectors)
        tangents = [ad.Zero(jax.typeof(o).to_tangent_aval()) for o in outputs]
        if any(moved):
            hessian = Hessian(self.loop, self.active.outs, self.active.ins, moved)
            tangents = _linear_map.apply(
                hessian, [*operands, *vectors], pick(steps[self.loop.dynamic : self.operands], moved)
            )
        if any(type(t) is not ad.Zero for t in vector_steps):
            own = _linear_map.apply(self, residuals, [ad.instantiate_zeros(t) for t in vector_steps])
            tangents = [ad.add_tangents(a, b) for a, b in zip(tangents, own)]
        return outputs, tangents


@dataclasses.dataclass(frozen=True)
class Hessian:
    """A block of the Hessian of ⟨c, F⟩: from tangents of the operands `moved`, cotangents of the operands `of`.

    Residuals: the operands, then c, the cotangents of the outputs `outs`.
    """

    loop: Loop
    outs: Mask
    of: Mask
    moved: Mask

    @property
    def operands(self) -> int:
        return len(self.loop.step.in_avals) + self.loop.dynamic

    def apply(self, residuals: Arrays, vectors: Arrays) -> list[Array]:
        operands, cotangents = list(residuals[: self.operands]), list(residuals[self.operands :])
        n, given = operands[: self.loop.dynamic], operands[self.loop.dynamic :]

        def slope(*of: Any) -> list[Array]:
            at = put(given, self.of, of)

            def function(*moved: Any) -> list[Array]:
                return pick(run(self.loop, [*n, *put(at, self.moved, moved)]), self.outs)

            return jax.jvp(function, pick(at, self.moved), list(vectors))[1]

        _, back = jax.vjp(slope, *pick(given, self.of))
        return list(back(cotangents))

    def avals(self, residuals: Arrays, vectors: Arrays) -> list[Any]:
        given = residuals[self.loop.dynamic : self.operands]
        return [aval.to_tangent_aval() for aval in pick(given, self.of)]

    def adjoint(self) -> LinearMap:
        return Hessian(self.loop, self.outs, self.moved, self.of)

    def jvp(self, residuals: Arrays, vectors: Arrays, steps: Arrays, vector_steps: Arrays) -> tuple[Arrays, Arrays]:
        return _jvp_of(self.apply, residuals, vectors, steps, vector_steps)


def _jvp_of(function: Any, residuals: Arrays, vectors: Arrays, steps: Arrays, vector_steps: Arrays) -> Any:
    """`jax.jvp` of `function(residuals, vectors)` in what has tangents."""
    values, tangents = [*residuals, *vectors], [*steps, *vector_steps]
    moved = [type(t) is not ad.Zero for t in tangents]

    def of_moved(*given: Any) -> list[Array]:
        full = put(values, moved, given)
        return list(function(full[: len(residuals)], full[len(residuals) :]))

    return jax.jvp(of_moved, pick(values, moved), pick(tangents, moved))
