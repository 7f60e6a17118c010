"""What a plan is of: a whole program, or what each device runs of it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from robustad import _jaxpr
from robustad._jaxpr import ShardMap
from robustad.memory._flat import Flat, flat, plain_call
from robustad.memory._needs import active, step_flops

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """A program that is cut into segments.

    atoms: its outputs, as the equations have them. differentiated, reached: the inputs and outputs between which
    derivatives pass. step, over: where the `shard_map` stands whose body it is, and that; None: it is the whole program.
    """

    program: Flat
    atoms: Sequence[Any]
    differentiated: Sequence[int]
    reached: Sequence[int]
    step: int | None = None
    over: ShardMap | None = None

    def mapped(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """A function of what each device has, as one of whole arrays."""
        assert self.over is not None
        return _mapped(self.over, f, tuple(self.over.in_specs), list(self.over.out_specs))

    def inside(self, make: Callable[[], T]) -> T:
        """What a function returns that traces steps of the program where they stand."""
        if self.over is None:
            return make()
        made: list[T] = []
        jax.eval_shape(_mapped(self.over, lambda: made.append(make()), (), None))
        return made[0]


def _mapped(over: ShardMap, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    names = set(over.axis_names)
    return jax.shard_map(
        f, mesh=over.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names, check_vma=over.check_vma
    )


def planned(whole: Flat, atoms: Sequence[Any], differentiated: Sequence[int]) -> Planned:
    """The body of the `shard_map` that does most of a program's operations, or else all of it."""
    flops, moves = step_flops(whole), active(whole, differentiated)
    for i, step in enumerate(whole.steps):
        inner = _jaxpr.control(step.equation)
        ins = [k for k, v in enumerate(step.operands) if v is not None and moves[v]]
        outs = [k for k, v in enumerate(step.results) if moves[v]]
        if isinstance(inner, ShardMap) and ins and outs and 2 * flops[i] > sum(flops):
            return Planned(flat(inner.body, opened=plain_call), inner.body.outputs, ins, outs, i, inner)
    return Planned(whole, atoms, differentiated, (0,))
