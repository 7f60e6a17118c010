"""`jax.lax.scan` whose gradient keeps few states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun

from robustad import _jaxpr
from robustad.memory import _disk_scan, _loop_plan, _loop_primitive, _step
from robustad.memory._arguments import integer_from, positive_integer, refuse_what_is_no_function
from robustad.memory._bytes import in_bytes, readable
from robustad.memory._disk import DiskTier
from robustad.memory._loop import Loop, Plan

_Carry = TypeVar("_Carry")
_NAME = "checkpointed_scan"

EVALUATIONS = 4.0
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
    tier: DiskTier | None = None,
) -> tuple[_Carry, Any]:
    r"""`jax.lax.scan`, whose reverse mode stores few states and computes the others again.

    Of n steps the plain scan's gradient keeps what the derivative of every step needs. Here the states before some steps
    are stored, and the steps between them are computed again from there. Where to store is the binomial schedule of
    Griewank and Walther, which needs the fewest steps of all (`revolve_schedule`), over single steps or over blocks of
    steps that are differentiated as the plain scan would, whichever costs less in the same memory. With s states and
    \(n \le \binom{s + r}{s}\) a step is computed r + 1 times at most: 83 states reverse 100 000 steps with each computed
    at most four times. The program does not grow with n: its loops run over the schedule. Call it under `jax.jit`;
    without, every call is compiled anew.

    Values, and gradients in reverse mode, have the plain scan's bits where the compiler rounds a step the same way in
    both: the order of all sums is the plain scan's. Forward mode, reverse mode and all their combinations, `vmap`, `jit`,
    `shard_map`, closed-over values and random keys work as in `jax.lax.scan`; what is random is computed again identically.
    Under `vmap` the limits hold for each example. A gradient of order k stores states with their tangents, up to 2^(k-1)
    times as many bytes.

    Args:
        body: `(carry, x) -> (carry, y)`, on pytrees of arrays; its carry keeps structure, shapes and dtypes. No effects.
        init: the initial carry, a pytree of arrays (real, complex, integer, boolean, typed random keys).
        xs: a pytree of arrays with a leading axis of length n, or None.
        length: n, where `xs` does not say it.
        reverse: run from the last x to the first. `xs` and ys are copied once.
        unroll: steps unrolled within a block.
        checkpoints: states stored at a time, at least 1. More than are of use are not stored. Besides them the
            gradient needs what the derivative of one step needs, and arrays of the size of its results.
        budget: the same as bytes for stored states, an integer or a string such as "2GiB" (units kB, MB, GB, TB,
            KiB, MiB, GiB, TiB), at least one state. With neither, as few states as cost four computations of each step.

        tier: a `DiskTier`: the states before `checkpoints` blocks of steps, √n if not given, go to disk, and each step is
            computed twice. For states that are large beside what a step computes. Reverse mode of first order on one device
            only: JAX refuses `vmap`, `shard_map`, `checkpoint` and further derivatives of the calls that write and read. It
            may stand in the body of a `jax.lax.scan`, if it depends on that loop's iteration.

    Returns:
        `(carry, ys)` as `jax.lax.scan` does.

    Raises:
        TypeError: the body is no function, or returns no pair, something that is no array, or a carry of another structure,
            shape or dtype; a leaf is no array; an integer is none; `tier` is no `DiskTier`.
        ValueError: `checkpoints` is below 1; `budget` is below one state, or no size; both are given, or `budget` and
            `tier`; `tier` inside `shard_map`; lengths are missing or disagree; the body has effects (printing, callbacks,
            writing to references), which would be repeated.

    Source: A. Griewank, "Achieving logarithmic growth of temporal and spatial complexity in reverse automatic
    differentiation", Optim. Methods Softw. 1 (1992) 35-54; A. Griewank, A. Walther, ACM Trans. Math. Softw. 26 (2000) 19-45.

    >>> import jax, jax.numpy as jnp
    >>> from robustad.memory import checkpointed_scan
    >>> def last(rate, scan, **limits):
    ...     step = lambda x, _: (rate * x * (1 - x), None)
    ...     return scan(step, 0.3, None, 1000, **limits)[0]
    >>> gradient = jax.jit(jax.grad(lambda r: last(r, checkpointed_scan, checkpoints=10)))
    >>> plain = jax.jit(jax.grad(lambda r: last(r, jax.lax.scan)))
    >>> bool(gradient(2.5) == plain(2.5))
    True
    """
    refuse_what_is_no_function("body", body)
    carry = _step.as_arrays(_NAME, "init", init)
    xs = _step.as_arrays(_NAME, "xs", xs)
    length = _length(xs, length)
    unroll = positive_integer("unroll", int(unroll) or 1 if isinstance(unroll, bool) else unroll)
    leaves, tree = jax.tree.flatten(carry)
    if length == 0:
        _ = limit_of(_NAME, leaves, checkpoints, budget) if tier is None else _states(tier, checkpoints, budget)
        return lax.scan(body, init, xs, length=0)
    x = jax.tree.map(lambda a: _jaxpr.first_of(jax.typeof(a)), xs)
    step, consts, leaves, y_tree = _step.trace_step(_NAME, body, jax.tree.unflatten(tree, leaves), x)
    x_leaves = jax.tree.leaves(xs)
    if reverse:
        x_leaves = [jnp.flip(a, 0) for a in x_leaves]
    if tier is not None:
        states = _states(tier, checkpoints, budget)
        loop = Loop(step, len(consts), len(leaves), length, Plan(1, 1), unroll=unroll)
        out = _disk_scan.run(loop, tier, states, [*consts, *leaves, *x_leaves])
        return _result(out, reverse, tree, y_tree)
    state, limit = limit_of(_NAME, leaves, checkpoints, budget)
    plan = _choose(step, len(consts), length, state, limit)
    if plan is None:

        def plain(c: Any, x: Any) -> Any:
            out = jaxpr_as_fun(step)(*consts, *c, *x)
            return out[: len(leaves)], out[len(leaves) :]

        leaves, ys = lax.scan(plain, leaves, x_leaves, length=length, unroll=unroll)
        out = [*leaves, *ys]
    else:
        loop = Loop(step, len(consts), len(leaves), length, plan, unroll=unroll)
        out = _loop_primitive.run(loop, [*consts, *leaves, *x_leaves])
    return _result(out, reverse, tree, y_tree)


def _result(out: list[Any], reverse: bool, tree: Any, y_tree: Any) -> tuple[Any, Any]:
    leaves, ys = out[: tree.num_leaves], out[tree.num_leaves :]
    if reverse:
        ys = [jnp.flip(y, 0) for y in ys]
    return jax.tree.unflatten(tree, leaves), jax.tree.unflatten(y_tree, ys)


def _states(tier: Any, checkpoints: Any, budget: Any) -> int | None:
    """How many states go to disk."""
    if not isinstance(tier, DiskTier):
        raise TypeError(f"`tier` of `{_NAME}` must be a DiskTier; got {tier!r}. Write `tier=DiskTier()`.")
    if budget is not None:
        raise ValueError(
            f"`budget` of `{_NAME}` is for states on the device; with `tier`, `checkpoints` says how many go to disk."
        )
    if jax.sharding.get_abstract_mesh().manual_axes:
        raise ValueError(
            f"`tier` of `{_NAME}` cannot be used inside `shard_map`: the devices write in no order. Leave it out there."
        )
    return None if checkpoints is None else positive_integer("checkpoints", checkpoints)


def limit_of(name: str, carry: list[Any], checkpoints: int | None, budget: int | str | None) -> tuple[int, int | None]:
    """The bytes of a state, and those that stored states may take, None where the caller does not say."""
    state = sum(map(_jaxpr.nbytes, map(jax.typeof, carry)))
    if checkpoints is not None and budget is not None:
        raise ValueError(
            f"`checkpoints` and `budget` of `{name}` say the same in two ways: give one of them; got {checkpoints!r} and "
            f"{budget!r}."
        )
    if checkpoints is not None:
        return max(state, 1), positive_integer("checkpoints", checkpoints) * max(state, 1)
    if budget is None:
        return max(state, 1), None
    limit = in_bytes(budget, "budget")
    if limit < state:
        raise ValueError(
            f"`budget` of `{name}` must hold at least one state of the loop, {readable(state)}; got "
            f"{readable(limit)}. A smaller state is the only remedy: what no step changes can be closed over."
        )
    return max(state, 1), limit


def _choose(step: Any, consts: int, length: int, state: int, limit: int | None) -> Plan | None:
    """The plan; None where nothing need be recomputed."""
    tape = max(_step.tape(step, consts), 1)
    if limit is not None:
        return _loop_plan.least_cost(length, state, tape, limit)
    return _loop_plan.least_memory(length, state, tape, EVALUATIONS)


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
