"""A program whose loops hold no checkpoints: a plan says what they keep."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from robustad import _jaxpr
from robustad._jaxpr import Body, Scan
from robustad.memory._flat import CHECKPOINTS, Flat, Step, flat, plain_call
from robustad.memory._running import outputs_of, run_steps


def without_checkpoints(program: Any) -> Any:
    """A closed program with the checkpoints in its scans opened; the same one if there are none."""
    body = _jaxpr.body(program)
    if not any(map(_holds_checkpoints, body.equations)):
        return program
    steps = flat(body, opened=plain_call)
    return jax.make_jaxpr(lambda *xs: _run(steps, body.outputs, xs))(*program.in_avals)


def _holds_checkpoints(eqn: Any, within: bool = False) -> bool:
    """Whether an equation is or holds a scan that holds a checkpoint."""
    if within and eqn.primitive.name in CHECKPOINTS:
        return True
    inner = _jaxpr.control(eqn)
    opened: Body | None = inner.body if isinstance(inner, Scan) else plain_call(eqn)
    within = within or isinstance(inner, Scan)
    return opened is not None and any(_holds_checkpoints(e, within) for e in opened.equations)


def _run(program: Flat, atoms: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    values = dict(program.constants) | dict(zip(program.inputs, arrays))
    run_steps(program.steps, values, special=_scan)
    return outputs_of(program, values, atoms)


def _scan(step: Step, operands: Sequence[Any]) -> list[Any]:
    if not _holds_checkpoints(step.equation):
        return _jaxpr.bind(step.equation, operands)
    scan = _jaxpr.control(step.equation)
    assert isinstance(scan, Scan)
    body = flat(scan.body, opened=plain_call)
    split = scan.consts + scan.carry
    consts, init, xs = operands[: scan.consts], operands[scan.consts : split], operands[split:]

    def once(carry: Any, x: Any) -> Any:
        outs = _run(body, scan.body.outputs, [*consts, *carry, *x])
        carry = [_jaxpr.as_weak(x, _jaxpr.aval(v)) for x, v in zip(outs, scan.body.outputs[: scan.carry])]
        return carry, outs[scan.carry :]

    unroll = step.equation.params["unroll"]
    carry, ys = lax.scan(once, list(init), list(xs), scan.length, reverse=scan.reverse, unroll=unroll)
    return [*carry, *ys]
