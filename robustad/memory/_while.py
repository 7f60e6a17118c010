"""A while loop with a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from robustad import _jaxpr
from robustad.memory import _loop_plan, _step, _while_primitive
from robustad.memory._arguments import positive_integer, refuse_what_is_no_function
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
    r"""`jax.lax.while_loop` with reverse mode, for a number of steps that only the loop itself finds.

    States are stored while it runs, as the number of steps grows at ever fewer places, and the steps between them are
    computed again where the gradient needs them. In all, advances are at most 1.5 times the optimum for a number of
    steps known beforehand, and 1.0 to 1.2 times mostly. The derivative is that of the steps made, at their number:
    of the number of steps, which is an integer, there is none.

    All modes and orders of differentiation, `jit` and `vmap` work. Under `vmap` steps are made until all have
    ended; those that have ended keep their carry, and the derivative of a step that is not theirs is not computed at it.

    Args:
        cond: `carry -> boolean`, one. No effects.
        body: `carry -> carry`, on a pytree of arrays; it keeps structure, shapes and dtypes. No effects.
        init: the initial carry.
        max_steps: the loop ends after so many steps, at least 1, whether `cond` still holds or not: look at `cond` of the
            result to know.
        checkpoints: states stored at a time, at least 1, the initial one among them.
        budget: the same as bytes, an integer or a string such as "2GiB". With neither, as few states as would
            compute each of `max_steps` steps four times on average, were their number known.

    Returns:
        The final carry.

    Raises:
        TypeError: `cond` returns no boolean scalar, the body a carry of another structure, shape or dtype; a leaf is
            no array.
        ValueError: `max_steps` or `checkpoints` is below 1; `budget` is below one state, or no size; both are given; cond or
            body have effects.

    Source: Q. Wang, P. Moin, G. Iaccarino, "Minimal repetition dynamic checkpointing algorithm for unsteady adjoint
    calculation", SIAM J. Sci. Comput. 31 (2009) 2549-2567; between stored states, Griewank and Walther (2000).

    >>> import jax, jax.numpy as jnp
    >>> from robustad.memory import checkpointed_while
    >>> def sqrt(a):  # Newton's method
    ...     error = lambda x: jnp.abs(x * x - a) > 1e-6 * a
    ...     return checkpointed_while(error, lambda x: (x + a / x) / 2, a, max_steps=50)
    >>> round(float(jax.jit(jax.grad(sqrt))(4.0)), 5)
    0.25
    """
    for name, function in (("cond", cond), ("body", body)):
        refuse_what_is_no_function(name, function)
    carry = _step.as_arrays(_NAME, "init", init)
    max_steps = positive_integer("max_steps", max_steps)
    step, consts, leaves, _ = _step.trace_step(_NAME, lambda c, _: (body(c), None), carry, None)
    tree = jax.tree.structure(carry)
    state, limit = limit_of(_NAME, leaves, checkpoints, budget)
    enough = _loop_plan.least_slots(max_steps, EVALUATIONS) if limit is None else limit // state
    slots = min(enough, max_steps)
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
        return _jaxpr.run(closed, operands[: len(consts)], operands[len(consts) :])

    return jax.make_jaxpr(program)(*(jax.typeof(x) for x in (*consts, *leaves))), consts
