"""A program run with taps on some of its equations: the user's own rules, loops, branches and recomputation stay."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Cond, Control, Equation, Path, Scan, ShardMap
from robustad.diagnosis._activations import watched
from robustad.diagnosis._cotangent_record import CotangentRecord
from robustad.diagnosis._flow_layers import Stage
from robustad.diagnosis._tap import tap

Records: TypeAlias = dict[int, Array]
"""For each stage by its number its sums, one for each iteration of the loops around it."""


class Tapped:
    """A program with taps at its stages; called with its operands and the records to differentiate with respect to."""

    def __init__(self, program: Body, stages: Sequence[Stage]):
        self.program = program
        self.stages = stages
        self.at: dict[Path, list[int]] = {}
        self.below: dict[Path, list[int]] = {}
        for k, stage in enumerate(stages):
            self.at.setdefault(stage.path, []).append(k)
            for n in range(1, len(stage.path), 2):  # a path alternates between equations and bodies
                self.below.setdefault(stage.path[:n], []).append(k)

    def __call__(self, operands: Sequence[Array], records: Records) -> list[Array]:
        return self._body(self.program, operands, records, ())

    def _body(self, program: Body, operands: Sequence[Array], records: Records, path: Path) -> list[Array]:
        env: dict[Any, Any] = dict(program.constants)
        env.update(zip(program.inputs, operands, strict=True))

        def read(atom: Any) -> Any:
            constant = _jaxpr.literal(atom)
            return env[atom] if constant is None else constant

        last_use = _jaxpr.last_uses(program)
        for i, eqn in enumerate(program.equations):
            here, ins = (*path, i), [read(atom) for atom in eqn.invars]
            inner = _jaxpr.control(eqn) if here in self.below else None
            if inner is None:
                outs = _jaxpr.bind(eqn, ins)
            else:
                inside = {k: records[k] for k in self.below[here]}
                outs = _RULES[type(inner)](self, eqn, inner, ins, inside, here)
            for k in self.at.get(here, ()):
                outs = [self._tap(k, y, records[k]) for y in outs]
            env.update(zip(eqn.outvars, outs, strict=True))
            for var in last_use[i]:
                del env[var]
        return [read(atom) for atom in program.outputs]

    def _tap(self, k: int, y: Array, sums: Array) -> Array:
        if not _jaxpr.is_inexact(y):
            return y
        if kind := self.stages[k].kind:
            return watched(*_jaxpr.varying_alike(y, sums), kind)
        return tap(y, CotangentRecord(sums))

    def _call(self, eqn: Equation, call: Call, ins: list[Any], records: Records, path: Path) -> list[Array]:
        def run(ins: list[Any], records: Records) -> list[Array]:
            return self._body(call.body, ins, records, (*path, 0))

        if "prevent_cse" in eqn.params:
            run = jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
        return run(ins, records)

    def _scan(self, eqn: Equation, scan: Scan, ins: list[Any], records: Records, path: Path) -> list[Array]:
        consts, carry = ins[: scan.consts], ins[scan.consts : scan.consts + scan.carry]

        def step(carry: list[Any], each: Any) -> Any:
            xs, records = each
            outs = self._body(scan.body, [*consts, *carry, *xs], records, (*path, 0))
            return outs[: scan.carry], outs[scan.carry :]

        each = (ins[scan.consts + scan.carry :], records)
        carry, ys = lax.scan(step, carry, each, scan.length, reverse=scan.reverse, unroll=scan.unroll)
        return [*carry, *ys]

    def _cond(self, eqn: Equation, cond: Cond, ins: list[Any], records: Records, path: Path) -> list[Array]:
        def branch(k: int) -> Callable[..., list[Array]]:
            return lambda ins, records: self._body(cond.branches[k], ins, records, (*path, k))

        return lax.switch(ins[0], [branch(k) for k in range(len(cond.branches))], ins[1:], records)

    def _shard_map(self, eqn: Equation, mapped: ShardMap, ins: list[Any], records: Records, path: Path) -> list[Array]:
        run = jax.shard_map(
            lambda ins, records: self._body(mapped.body, ins, records, (*path, 0)),
            mesh=mapped.mesh,
            in_specs=(list(mapped.in_specs), jax.sharding.PartitionSpec()),
            out_specs=list(mapped.out_specs),
            axis_names=set(mapped.axis_names),
            check_vma=mapped.check_vma,
        )
        return run(ins, records)


_RULES: dict[type[Control], Callable[..., list[Array]]] = {
    Call: Tapped._call,
    Scan: Tapped._scan,
    Cond: Tapped._cond,
    ShardMap: Tapped._shard_map,
}
