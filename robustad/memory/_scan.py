"""`jax.lax.scan` whose gradient keeps few states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun

from robustad import _jaxpr
from robustad.memory import _byte_count, _loop_primitive, _plan, _step
from robustad.memory._arguments import integer_from, positive_integer
from robustad.memory._loop import Loop, Plan

_Carry = TypeVar("_Carry")
_NAME = "checkpointed_scan"

EVALUATIONS = 3.0
"""How often a step is computed on average where neither `checkpoints` nor `budget` is given."""


def checkpointed_scan(
    body: Callable[[_Carry, Any], tuple[_Carry, Any]],
    init: _Carry,
    xs: Any = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int = 1,
    *,
    checkpoints: int | None = None,
    budget: int | str | None = None,
) -> tuple[_Carry, Any]:
    carry = _step.as_arrays(_NAME, "init", init)
    xs = _step.as_arrays(_NAME, "xs", xs)
    length = _length(xs, length)
    unroll = positive_integer("unroll", int(unroll) if unroll is not False else 1)
    if checkpoints is not None and budget is not None:
        raise ValueError(
            f"`checkpoints` and `budget` are two ways to say the same: give one; got {checkpoints!r} and {budget!r}."
        )
    if checkpoints is not None:
        checkpoints = positive_integer("checkpoints", checkpoints)
    limit = None if budget is None else _byte_count.parse("budget", budget)
    leaves, tree = jax.tree.flatten(carry)
    x = jax.tree.map(lambda a: _jaxpr.first_of(jax.typeof(a)), xs)
    step, consts, leaves, y_tree = _step.trace_step(_NAME, body, jax.tree.unflatten(tree, leaves), x)
    x_leaves = jax.tree.leaves(xs)
    if reverse:
        x_leaves = [jnp.flip(a, 0) for a in x_leaves]
    plan = _choose(step, len(consts), leaves, length, checkpoints, limit)
    if plan is None:

        def plain(c: Any, x: Any) -> Any:
            out = jaxpr_as_fun(step)(*consts, *c, *x)
            return out[: len(leaves)], out[len(leaves) :]

        leaves, ys = lax.scan(plain, leaves, x_leaves, length=length, unroll=unroll)
    else:
        loop = Loop(step, len(consts), len(leaves), length, plan, unroll=unroll)
        out = _loop_primitive.run(loop, [*consts, *leaves, *x_leaves])
        leaves, ys = out[: len(leaves)], out[len(leaves) :]
    if reverse:
        ys = [jnp.flip(y, 0) for y in ys]
    return jax.tree.unflatten(tree, leaves), jax.tree.unflatten(y_tree, ys)


def _choose(
    step: Any, consts: int, carry: list[Any], length: int, checkpoints: int | None, limit: int | None
) -> Plan | None:
    """The plan; None where nothing need be recomputed."""
    state = _byte_count.of(map(jax.typeof, carry))
    if limit is not None and limit < state:
        raise ValueError(
            f"`budget` must hold at least one state of the loop, {_byte_count.text(state)}; got {_byte_count.text(limit)}. "
            "A smaller state is the only remedy: what does not change from step to step can be closed over."
        )
    if length == 0:
        return None
    tape = max(_step.tape(step, consts), 1)
    state = max(state, 1)
    if checkpoints is not None:
        limit = checkpoints * state
    if limit is not None:
        return _plan.least_cost(length, state, tape, limit)
    return _plan.least_memory(length, state, tape, EVALUATIONS)


def _length(xs: Any, length: Any) -> int:
    """The number of steps, which every x and `length` agree on."""
    found = {"length": integer_from("length", length, 0)} if length is not None else {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(xs)[0]:
        name = f"xs{jax.tree_util.keystr(path)}"
        if leaf.ndim == 0:
            raise ValueError(f"`xs` of `{_NAME}` runs over leading axes; {name} is a scalar. Close over it instead.")
        found[name] = leaf.shape[0]
    if not found:
        raise ValueError(f"`{_NAME}` needs `xs` or `length` to know how many steps to make; both are missing.")
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in found.items())
        raise ValueError(f"`xs` and `length` of `{_NAME}` disagree on the number of steps: {told}.")
    return next(iter(found.values()))
