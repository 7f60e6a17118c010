"""A `jax.checkpoint` whose recomputation waits for the cotangents.

A call of a checkpointed function is one equation. Differentiated, it is JAX's own linearization of `jax.checkpoint`: the
values that the policy keeps, and a linear map of these and the tangents. Transposed, that map takes the kept values `after`
the cotangents, so that no compiler can merge the recomputation with the first computation; and its transpose is such a call
again, so that the same holds for every further derivative. Where the policy keeps all that is needed, nothing has to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from robustad import _jaxpr
from robustad.memory._after import after
from robustad.memory._flat import flat, plain_call

_call = Primitive("checkpointed")
_call.multiple_results = True


def recomputed(checkpointed: Callable[..., Any], *args: Any) -> Any:
    """`checkpointed(*args)` as one such call, for a function made by `jax.checkpoint`, of arrays."""
    leaves, tree = jax.tree.flatten(args)
    program, shapes = jax.make_jaxpr(lambda *xs: checkpointed(*tree.unflatten(xs)), return_shape=True)(*leaves)
    if effects := _jaxpr.repeated_effects(program):
        raise NotImplementedError(
            f"the function to checkpoint has effects, {', '.join(effects)}, which recomputation would repeat. "
            "Take callbacks, ordered prints and writes to references out of it; `jax.debug.print` may stay."
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), _bound(program, leaves))


def _bound(program: Any, operands: Sequence[Any]) -> list[Any]:
    """A call of a closed program, its constants made operands."""
    program, consts = _jaxpr.closed_over_nothing(program)
    return _call.bind(*consts, *operands, jaxpr=program)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, jaxpr: Any) -> tuple[list[Any], list[Any]]:
    moving = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def function(*moved: Any) -> tuple[list[Any], list[Any]]:
        operands = list(primals)
        for i, x in zip(moving, moved):
            operands[i] = x
        outs = jaxpr_as_fun(jaxpr)(*operands)
        return [x for x in outs if _jaxpr.is_inexact(x)], [x for x in outs if not _jaxpr.is_inexact(x)]

    values, forward, others = jax.linearize(function, *(primals[i] for i in moving), has_aux=True)
    given = [tangents[i] for i in moving]
    steps = iter(_bound(jax.make_jaxpr(forward)(*given), given))
    values, others = iter(values), iter(others)
    inexact = [_jaxpr.is_inexact(aval) for aval in jaxpr.out_avals]
    outs = [next(values if moves else others) for moves in inexact]
    return outs, [
        next(steps) if moves else ad.Zero(jax.typeof(out).to_tangent_aval()) for moves, out in zip(inexact, outs)
    ]


def _transpose(cotangents: Sequence[Any], *operands: Any, jaxpr: Any) -> list[Any]:
    wanted = [i for i, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
    given = [k for k, ct in enumerate(cotangents) if type(ct) is not ad.Zero]
    if not given:
        return [ad.Zero(operands[i].aval) if i in wanted else None for i in range(len(operands))]
    avals = [operands[i].aval for i in wanted]
    arrived = [cotangents[k] for k in given]
    kept = {i: x for i, x in enumerate(operands) if i not in wanted}
    if _computes_again(jaxpr, wanted):
        kept = {i: after(x, arrived) for i, x in kept.items()}
    arrived = [
        after(ct, [ct]) for ct in arrived
    ]  # else XLA fuses what is added to a cotangent on its way, and keeps it

    def backward(kept: dict[int, Array], arrived: Sequence[Array]) -> Any:
        def function(*steps: Array) -> list[Array]:
            filled = kept | dict(zip(wanted, steps))
            outs = jaxpr_as_fun(jaxpr)(*(filled[i] for i in range(len(operands))))
            return [outs[k] for k in given]

        return jax.linear_transpose(function, *avals)(list(arrived))

    results = dict(zip(wanted, recomputed(backward, kept, arrived)))
    return [results.get(i) for i in range(len(operands))]


def _computes_again(program: Any, wanted: Sequence[int]) -> bool:
    """Whether a map that is linear in the inputs `wanted` first computes something from the others."""
    steps = flat(_jaxpr.body(program), opened=plain_call)
    moves = {steps.inputs[i] for i in wanted}
    for step in steps.steps:
        operands = {v for v in step.operands if v is not None}
        if _jaxpr.control(step.equation) or (operands and not operands & moves):
            return True
        if operands:
            moves.update(step.results)
    return False


def _batch(axis: Any, operands: Sequence[Array], batch_axes: Sequence[int | None], *, jaxpr: Any):
    if all(i is None for i in batch_axes):
        outputs = _bound(jaxpr, operands)
        return outputs, [None] * len(outputs)
    function = jax.vmap(
        jaxpr_as_fun(jaxpr),
        in_axes=tuple(batch_axes),
        axis_size=axis.size,
        axis_name=axis.name,
        spmd_axis_name=axis.spmd_name,
    )
    outputs = _bound(jax.make_jaxpr(function)(*operands), operands)
    return outputs, [0] * len(outputs)


def _lower(ctx: Any, *operands: Any, jaxpr: Any, **_: Any) -> Any:
    return mlir.lower_fun(jaxpr_as_fun(jaxpr), multiple_results=True)(ctx, *operands)


_call.def_impl(lambda *operands, jaxpr: jaxpr_as_fun(jaxpr)(*operands))
_call.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals)
ad.primitive_jvps[_call] = _jvp
ad.primitive_transposes[_call] = _transpose
batching.fancy_primitive_batchers[_call] = _batch
mlir.register_lowering(_call, _lower)
