"""Ways to run a `lax.scan` of a plan: its states kept, its body recomputed, in all iterations or in the first ones, its
iterations in blocks that are recomputed, or few states kept by a binomial schedule, as `checkpointed_scan` does."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax import lax

from robustad import _jaxpr
from robustad._jaxpr import Scan
from robustad.memory import _loop_primitive
from robustad.memory._checkpoint import checkpoint
from robustad.memory._flat import flat, plain_call
from robustad.memory._loop import Loop, Plan
from robustad.memory._loop_plan import evaluated, least_cost
from robustad.memory._running import kept_policy, outputs_of, run_steps

TAILS = (0.75, 0.5, 0.25)
"""Shares of the iterations that may be run plainly, at the end of a loop that is recomputed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """block: of how many iterations, which are checkpoints of checkpoints (1: each iteration is one; 0: none are). kept:
    what each iteration keeps, of its body's values. tail: so many iterations at the end are run plainly. schedule: of the
    few states that are kept, in place of all this.

    bytes: that stay for the backward pass; passing: more while it runs; flops: operations done again.
    """

    block: int
    kept: frozenset[int]
    bytes: int
    passing: int
    flops: int
    schedule: Plan | None = None
    tail: int = 0


class Selection(NamedTuple):
    """What an iteration keeps of its values; bytes: of these; passing: of all that its backward pass reads; flops: done
    again."""

    kept: frozenset[int]
    bytes: int
    passing: int
    flops: int


def ways(scan: Scan, inner: int, selections: Sequence[Selection]) -> list[Way]:
    """The ways to run a loop that keeps `inner` bytes when it is run plainly, in the order of what they keep.

    selections: for iterations that are recomputed; the last keeps nothing.
    """
    carry, elements = (sum(_jaxpr.nbytes(_jaxpr.aval(v)) for v in vs) for vs in _carried(scan))
    found = [Way(0, frozenset(), inner, 0, 0)]
    for kept, size, passing, flops in selections:
        found.append(Way(1, kept, scan.length * (carry + size), passing, scan.length * flops))
        for tail in {round(share * scan.length) for share in TAILS} - {0, scan.length}:
            head, plainly = scan.length - tail, inner * tail // scan.length
            bytes_ = head * (carry + size) + plainly + scan.length * elements
            # One iteration is no loop to XLA: its bytes are free when the others' backward pass begins.
            rest = max(0, passing - plainly) if tail == 1 else passing
            found.append(Way(1, kept, bytes_, rest, head * flops, tail=tail))
    root = math.sqrt(scan.length)
    block = min(
        range(1, scan.length + 1), key=lambda b: (scan.length % b > 0 or b > 2 * root or 2 * b < root, abs(b - root))
    )
    if block > 1:
        kept, size, passing, flops = selections[-1]
        states = math.ceil(scan.length / block) * carry
        if scan.length % block:  # the elements are cut in two, which copies them
            states += scan.length * elements
        found.append(Way(block, kept, states, block * (carry + size) + passing, 2 * scan.length * flops))
    found += _scheduled(scan, inner, carry, elements, selections[-1])
    best: list[Way] = []
    for way in sorted(found, key=lambda way: (way.flops, way.bytes + way.passing)):
        if not best or way.bytes + way.passing < best[-1].bytes + best[-1].passing:
            best.append(way)
    return best


def _scheduled(scan: Scan, inner: int, carry: int, elements: int, selection: Selection) -> Iterator[Way]:
    """Ways with few states, each with about half the bytes of the one before it."""
    _, _, passing, flops = selection
    state, tape = max(1, carry), max(1, inner // max(1, scan.length))
    copied = scan.reverse * scan.length * elements
    limit = inner // 2 - passing
    while limit >= 2 * state:
        plan = least_cost(scan.length, state, tape, limit)
        if plan is None:
            return
        tapes = (plan.block - 1) * (state if plan.recompute else tape)
        again = evaluated(scan.length, plan) - scan.length
        yield Way(0, frozenset(), copied + plan.slots * state, tapes + passing, again * flops, plan)
        limit //= 2


def numbered(ways: Sequence[Way] | None, number: int) -> Way | None:
    """The way of that number, or the last there is."""
    return ways[min(number, len(ways) - 1)] if ways else None


def run(eqn: Any, operands: Sequence[Any], way: Way) -> list[Any]:
    """The outputs of a scan in that way."""
    scan = _jaxpr.control(eqn)
    assert isinstance(scan, Scan)
    if way.schedule:
        return _run_scheduled(eqn, scan, operands, way.schedule)
    if not way.block:
        return _jaxpr.bind(eqn, operands)
    body, unroll = flat(scan.body, opened=plain_call), eqn.params["unroll"]
    split = scan.consts + scan.carry
    consts, init, xs = list(operands[: scan.consts]), list(operands[scan.consts : split]), list(operands[split:])

    def step(carry: Any, x: Any, consts: Any) -> Any:
        values = dict(body.constants) | dict(zip(body.inputs, [*consts, *carry, *x]))
        run_steps(body.steps, values, way.kept)
        outs = outputs_of(body, values, scan.body.outputs)
        return [_jaxpr.as_weak(x, _jaxpr.aval(v)) for x, v in zip(outs[: scan.carry], scan.body.outputs)], outs[
            scan.carry :
        ]

    once = checkpoint(step, prevent_cse=False, policy=kept_policy(way.kept))
    left = way.tail if way.block == 1 else scan.length % way.block
    count = scan.length - left
    head, tail = (slice(left, None), slice(0, left)) if scan.reverse else (slice(0, count), slice(count, None))
    before = [x[head] for x in xs] if left else xs
    if way.block == 1:
        carry, ys = _scan(once, init, before, consts, count, scan.reverse, unroll)
    else:

        def block(carry: Any, x: Any, consts: Any) -> Any:
            return _scan(once, carry, x, consts, way.block, scan.reverse, unroll)

        blocks = count // way.block
        blocked = [x.reshape(blocks, way.block, *x.shape[1:]) for x in before]
        carry, ys = _scan(checkpoint(block, prevent_cse=False), init, blocked, consts, blocks, scan.reverse, 1)
        ys = [y.reshape(count, *y.shape[2:]) for y in ys]
    if left:
        carry, more = _scan(
            step if way.tail else once, carry, [x[tail] for x in xs], consts, left, scan.reverse, unroll
        )
        ys = [lax.concatenate(pair, 0) for pair in (zip(more, ys) if scan.reverse else zip(ys, more))]
    return [*carry, *ys]


def _carried(scan: Scan) -> tuple[Any, Any]:
    """The variables of a loop's carry and of its elements."""
    split = scan.consts + scan.carry
    return scan.body.inputs[scan.consts : split], scan.body.inputs[split:]


def _run_scheduled(eqn: Any, scan: Scan, operands: Sequence[Any], plan: Plan) -> list[Any]:
    step, captured = _jaxpr.closed_over_nothing(eqn.params["jaxpr"])
    loop = Loop(step, len(captured) + scan.consts, scan.carry, scan.length, plan, unroll=int(eqn.params["unroll"]))
    split = scan.consts + scan.carry
    xs = [lax.rev(x, (0,)) if scan.reverse else x for x in operands[split:]]
    outs = _loop_primitive.run(loop, [*captured, *operands[:split], *xs])
    return [*outs[: scan.carry], *(lax.rev(y, (0,)) if scan.reverse else y for y in outs[scan.carry :])]


def _scan(step: Any, init: Any, xs: Any, consts: Any, length: int, reverse: bool, unroll: Any) -> Any:
    return lax.scan(lambda carry, x: step(carry, x, consts), init, xs, length, reverse=reverse, unroll=unroll)
