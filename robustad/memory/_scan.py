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

EVALUATIONS = 3.5
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
    leaves, tree = jax.tree.flatten(carry)
    x = jax.tree.map(lambda a: _jaxpr.first_of(jax.typeof(a)), xs)
    step, consts, leaves, y_tree = _step.trace_step(_NAME, body, jax.tree.unflatten(tree, leaves), x)
    x_leaves = jax.tree.leaves(xs)
    if reverse:
        x_leaves = [jnp.flip(a, 0) for a in x_leaves]
    state, limit = limit_of(_NAME, leaves, checkpoints, budget)
    plan = _choose(step, len(consts), length, state, limit)
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


def limit_of(
    name: str, carry: list[Any], checkpoints: int | None, budget: int | str | None
) -> tuple[int, int | None]:
    """The bytes of a state, and those that stored states may take, None where the caller does not say."""
    state = _byte_count.of(map(jax.typeof, carry))
    if checkpoints is not None and budget is not None:
        raise ValueError(
            f"`checkpoints` and `budget` of `{name}` say the same in two ways: give one of them; got {checkpoints!r} and "
            f"{budget!r}."
        )
    if checkpoints is not None:
        return max(state, 1), positive_integer("checkpoints", checkpoints) * max(state, 1)
    if budget is None:
        return max(state, 1), None
    limit = _byte_count.parse("budget", budget)
    if limit < state:
        raise ValueError(
            f"`budget` of `{name}` must hold at least one state of the loop, {_byte_count.text(state)}; got "
            f"{_byte_count.text(limit)}. A smaller state is the only remedy: what no step changes can be closed over."
        )
    return max(state, 1), limit


def _choose(step: Any, consts: int, length: int, state: int, limit: int | None) -> Plan | None:
    """The plan; None where nothing need be recomputed."""
    if length == 0:
        return None
    tape = max(_step.tape(step, consts), 1)
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
