"""The walk: one program, equation by equation, under another arithmetic.

Control flow is handled here, once, for every arithmetic; what a primitive does to values is the arithmetic's business.
The walk traces: under `jax.jit` it becomes one XLA program, in which a loop stays a loop.

An arithmetic may keep *records* of some equations, its `watched` paths. Inside a loop they are carried along and
folded, iteration by iteration, so that a record tells of all iterations.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Cond, Control, Equation, Path, Scan, ShardMap, While

Value = TypeVar("Value")
Records: TypeAlias = dict[Path, Any]


class Arithmetic(abc.ABC, Generic[Value]):
    """What a program is walked with. A `Value` is a pytree of arrays, of the shape of the one that it
    stands for, whose structure depends on the dtype alone."""

    @property
    def watched(self) -> frozenset[Path]:
        """The equations of which records are kept."""
        return frozenset()

    @property
    def whole(self) -> frozenset[type[Control]]:
        """The control flow that the arithmetic takes as one equation, as reverse mode must take a `While`."""
        return frozenset()

    @abc.abstractmethod
    def lift(self, x: Any) -> Value:
        """A plain array (an input, a constant, a literal) as a value."""

    @abc.abstractmethod
    def plain(self, value: Value) -> Any:
        """The array that the user's program would hold: what it branches on."""

    @abc.abstractmethod
    def equation(self, eqn: Equation, operands: Sequence[Value], path: Path) -> tuple[list[Value], Any]:
        """The outputs of a plain equation, and its record where `path` is watched (None elsewhere)."""

    def blank(self, path: Path, at: Path) -> Any:
        """The record of the equation at `path` before it has run, as the control flow at `at` carries it."""
        raise NotImplementedError(f"{type(self).__name__} watches equations without saying what their records are")

    def fold(self, path: Path, at: Path, record: Any, new: Any, iteration: Array) -> Any:
        """`record` after an iteration of the control flow at `at` (a loop, or the shards of a map) recorded `new`."""
        raise NotImplementedError(f"{type(self).__name__} watches equations without saying how their records add up")


def interpret(
    arithmetic: Arithmetic[Value], program: Body, operands: Sequence[Value], path: Path = (), first: int = 0
) -> tuple[list[Value], Records]:
    """The outputs of `program` on `operands` under `arithmetic`, and the records of the watched equations.

    `path` is that of the program's body, `first` the index of its first equation there.
    """
    # New objects: what a value caches of itself must not outlive the trace of this body.
    operands = jax.tree.map(lambda x: x, list(operands))
    env: dict[Any, Value] = {var: arithmetic.lift(c) for var, c in program.constants}
    env.update(zip(program.inputs, operands, strict=True))

    def read(atom: Any) -> Value:
        constant = _jaxpr.literal(atom)
        return env[atom] if constant is None else arithmetic.lift(constant)

    last_use = _jaxpr.last_uses(program)
    records: Records = {}
    for i, eqn in enumerate(program.equations):
        here, ins = (*path, first + i), [read(atom) for atom in eqn.invars]
        inner = _jaxpr.control(eqn)
        if inner is not None and type(inner) not in arithmetic.whole:
            outs, new = through(arithmetic, inner, ins, here)
            records.update(new)
        else:
            outs, record = arithmetic.equation(eqn, ins, here)
            if record is not None:
                records[here] = record
        env.update(zip(eqn.outvars, outs, strict=True))
        for var in last_use[i]:
            del env[var]
    return [read(atom) for atom in program.outputs], records


def through(
    arithmetic: Arithmetic[Value], inner: Control, operands: Sequence[Value], path: Path
) -> tuple[list[Value], Records]:
    """The outputs and records of the control flow at `path`."""
    return _RULES[type(inner)](arithmetic, inner, list(operands), path)


def _watched(arithmetic: Arithmetic[Any], path: Path) -> list[Path]:
    """The watched equations below the equation at `path`."""
    return sorted(p for p in arithmetic.watched if len(p) > len(path) and p[: len(path)] == path)


def _call(arithmetic: Arithmetic[Value], call: Call, operands: list[Value], path: Path):
    taken = call.of(operands)
    if call.barrier:
        taken = lax.optimization_barrier(taken)
    return interpret(arithmetic, call.body, taken, (*path, 0))


def _scan(arithmetic: Arithmetic[Value], scan: Scan, operands: list[Value], path: Path):
    consts, carry = operands[: scan.consts], operands[scan.consts : scan.consts + scan.carry]
    xs = operands[scan.consts + scan.carry :]
    inside = _watched(arithmetic, path)

    def step(state: Any, x: list[Value]) -> tuple[Any, list[Value]]:
        i, carry, records = state
        outs, new = interpret(arithmetic, scan.body, [*consts, *carry, *x], (*path, 0))
        position = scan.length - 1 - i if scan.reverse else i
        records = {p: arithmetic.fold(p, path, records[p], new[p], position) for p in inside}
        return (i + 1, outs[: scan.carry], records), outs[scan.carry :]

    blank = {p: arithmetic.blank(p, path) for p in inside}
    init = (jnp.zeros((), jnp.int32), carry, blank)
    (_, carry, records), ys = lax.scan(step, init, xs, scan.length, reverse=scan.reverse, unroll=scan.unroll)
    return [*carry, *ys], records


def _while(arithmetic: Arithmetic[Value], loop: While, operands: list[Value], path: Path):
    both = loop.cond_consts + loop.body_consts
    cond_consts, body_consts = operands[: loop.cond_consts], operands[loop.cond_consts : both]
    inside = _watched(arithmetic, path)
    batched = loop.cond.outputs[0].aval.ndim > 0
    deciding = any(p[len(path)] == 0 for p in inside)

    def decides(carry: list[Value]) -> tuple[Array, Records]:
        (predicate,), records = interpret(arithmetic, loop.cond, [*cond_consts, *carry], (*path, 0))
        return arithmetic.plain(predicate), records

    def keep_on(state: Any) -> Array:
        return jnp.any(decides(state[1])[0])

    def step(state: Any) -> Any:
        i, carry, records = state
        outs, new = interpret(arithmetic, loop.body, [*body_consts, *carry], (*path, 1))
        if batched or deciding:
            proceeds, of_condition = decides(carry)
            new = new | of_condition
            if batched:  # under vmap the loop runs on until the last example is done; the others keep their values
                outs = _where(proceeds, outs, carry)
        return i + 1, outs, {p: arithmetic.fold(p, path, records[p], new[p], i) for p in inside}

    blank = {p: arithmetic.blank(p, path) for p in inside}
    i, carry, records = lax.while_loop(keep_on, step, (jnp.zeros((), jnp.int32), operands[both:], blank))
    if deciding:  # the decision to stop
        _, last = decides(carry)
        records = records | {p: arithmetic.fold(p, path, records[p], last[p], i) for p in last}
    return carry, records


def _where(predicate: Array, new: list[Value], old: list[Value]) -> list[Value]:
    """For each example of a batch (the predicate's axes, the first ones of the values) its new or its old values."""

    def pick(a: Array, b: Array) -> Array:
        return lax.select(lax.broadcast_in_dim(predicate, a.shape, range(predicate.ndim)), a, b)

    return jax.tree.map(pick, new, old)


def _cond(arithmetic: Arithmetic[Value], cond: Cond, operands: list[Value], path: Path):
    blank = {p: arithmetic.blank(p, path) for p in _watched(arithmetic, path)}

    def branch(k: int) -> Callable[..., Any]:
        def run(*values: Value) -> Any:
            outs, records = interpret(arithmetic, cond.branches[k], values, (*path, k))
            return outs, blank | records

        return run

    branches = [branch(k) for k in range(len(cond.branches))]
    return lax.switch(arithmetic.plain(operands[0]).astype(jnp.int32), branches, *operands[1:])


def _shard_map(arithmetic: Arithmetic[Value], mapped: ShardMap, operands: list[Value], path: Path):
    # check_vma only matters to differentiation, which has been done where a program is walked.
    everywhere = jax.sharding.PartitionSpec(tuple(sorted(mapped.axis_names)))

    def shard(*values: Value) -> Any:
        outs, records = interpret(arithmetic, mapped.body, values, (*path, 0))
        return outs, jax.tree.map(lambda r: r[None], records)

    run = jax.shard_map(
        shard,
        mesh=mapped.mesh,
        in_specs=mapped.in_specs,
        out_specs=(list(mapped.out_specs), everywhere),
        axis_names=set(mapped.axis_names),
        check_vma=False,
    )
    outs, gathered = jax.jit(run)(*operands)  # outside jit, a shard_map goes through its body primitive by primitive
    records: Records = {}
    for p, stacked in gathered.items():
        records[p] = arithmetic.blank(p, path)
        for k in range(jax.tree.leaves(stacked)[0].shape[0]):
            new = jax.tree.map(lambda r, k=k: r[k], stacked)
            records[p] = arithmetic.fold(p, path, records[p], new, jnp.asarray(k, jnp.int32))
    return outs, records


_RULES: dict[type[Control], Callable[..., tuple[list[Any], Records]]] = {
    Call: _call,
    Scan: _scan,
    While: _while,
    Cond: _cond,
    ShardMap: _shard_map,
}
