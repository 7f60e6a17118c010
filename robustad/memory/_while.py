"""A while loop with a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from robustad import _jaxpr
from robustad.memory import _plan, _step, _while_primitive
from robustad.memory._arguments import positive_integer
from robustad.memory._loop import Loop, Plan
from robustad.memory._scan import EVALUATIONS, limit_of

_Carry = TypeVar("_Carry")
_NAME = "checkpointed_while"


def checkpointed_while(
    cond: Callable[[_Carry], Any],
    body: Callable[[_Carry], _Carry],
    init: _Carry,
    *,
    max_steps: int,
    checkpoints: int | None = None,
    budget: int | str | None = None,
) -> _Carry:
    carry = _step.as_arrays(_NAME, "init", init)
    max_steps = positive_integer("max_steps", max_steps)
    step, consts, leaves, _ = _step.trace_step(_NAME, lambda c, _: (body(c), None), carry, None)
    tree = jax.tree.structure(carry)
    state, limit = limit_of(_NAME, leaves, checkpoints, budget)
    if limit is None:
        slots = _plan.least_slots(max_steps, EVALUATIONS)
    else:
        slots = min(int(limit // state), max_steps)
    condition, cond_consts = _condition(cond, jax.tree.unflatten(tree, leaves))
    loop = Loop(step, len(consts), len(leaves), max_steps, Plan(1, slots), dynamic=True)
    while_ = _while_primitive.While(condition, len(cond_consts), loop)
    return jax.tree.unflatten(tree, _while_primitive.run(while_, [*cond_consts, *consts, *leaves]))


def _condition(cond: Callable[[Any], Any], init: Any) -> tuple[Any, list[Any]]:
    """The closed program (constants, carry) -> boolean, and the constants."""
    leaves, tree = jax.tree.flatten(init)
    closed, shape = jax.make_jaxpr(lambda *c: cond(jax.tree.unflatten(tree, c)), return_shape=True)(*leaves)
    _step.refuse_effects(_NAME, closed.effects)
    told = jax.tree.leaves(shape)
    if jax.tree.structure(shape) != jax.tree.structure(0) or told[0].shape != () or told[0].dtype != jnp.bool_:
        raise TypeError(
            f"`cond` of `{_NAME}` must return one boolean; got {shape}. Reduce it (`jnp.any`, `jnp.all`) or compare it."
        )
    consts = [c if _jaxpr.is_traced(c) else jnp.asarray(c) for c in closed.consts]

    def program(*operands: Any) -> list[Any]:
        return jax.core.eval_jaxpr(closed.jaxpr, list(operands[: len(consts)]), *operands[len(consts) :])

    return jax.make_jaxpr(program)(*(jax.typeof(x) for x in (*consts, *leaves))), consts
