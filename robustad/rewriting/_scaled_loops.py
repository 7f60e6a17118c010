"""Products that a loop carries: kept in range by powers of two, for a logarithm that is taken of them.

The forward algorithm of a hidden Markov model carries a vector of probabilities that each step multiplies; after some
hundred steps all of it has underflowed, though its logarithm is of moderate size. Where a step is linear in what it carries,
the scale of the carry may be anything: after each step it is taken out as a power of two, exactly, and counted (Rabiner,
Proc. IEEE 77, 1989). The counted scale is constant in derivatives: what it adds to the logarithm, the scaled carry lacks.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Scan
from robustad.rewriting._graph import Step, Term
from robustad.rewriting._log_space import Parts, parts_of
from robustad.rewriting._rewriter import Rewriter

_LINEAR = frozenset(
    "neg convert_element_type copy reshape squeeze expand_dims broadcast_in_dim transpose rev slice reduce_sum "
    "dynamic_slice gather cumsum concatenate add add_any sub reduce_window_sum".split()
)
_BILINEAR = frozenset(["mul", "dot_general", "conv_general_dilated"])


@parts_of("scan")
def carried_product(term: Term, rw: Rewriter) -> Parts | None:
    """The final carry of a scan whose step is linear in it, as scale and scaled value."""
    step, k = term.step, term.index
    eqn = step.equation
    inner = _jaxpr.control(eqn) if eqn is not None else None
    if eqn is None or not isinstance(inner, Scan) or k >= inner.carry or _jaxpr.has_effects(eqn):
        return None
    if not jnp.issubdtype(term.dtype, jnp.floating) or 0 in term.shape:
        return None
    outputs = degrees(inner.body, [int(i == inner.consts + k) for i in range(len(inner.body.inputs))])
    others = [d for i, d in enumerate(outputs) if i != k]
    if outputs[k] != 1 or any(d is None or (d and i < inner.carry - 1) for i, d in enumerate(others)):
        return None
    operands = [rw(t) for t in step.operands]
    scan = inner
    body = rw.body(scan.body)

    def run(*arrays: Array) -> list[Array]:
        consts, carry = arrays[: scan.consts], list(arrays[scan.consts : scan.consts + scan.carry])
        carry = [lax.convert_element_type(c, jnp.result_type(c)) for c in carry]

        def scaled(c: Array) -> tuple[Array, Array]:
            largest = jnp.max(jnp.abs(lax.stop_gradient(c)))
            exponent = jnp.where((largest > 0) & jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
            return c * jnp.exp2(-exponent.astype(c.dtype)), exponent

        def one(state: Any, x: Any) -> tuple[Any, None]:
            count, carry = state
            carry = list(body(*consts, *carry, *x)[: scan.carry])
            carry[k], more = scaled(carry[k])
            return (count + more, carry), None

        carry[k], first = scaled(carry[k])
        xs = list(arrays[scan.consts + scan.carry :])
        (count, carry), _ = lax.scan(one, (first, carry), xs, scan.length, reverse=scan.reverse, unroll=scan.unroll)
        log_scale = lax.convert_element_type(count, jnp.promote_types(term.dtype, jnp.float32)) * math.log(2)
        return [jnp.broadcast_to(lax.convert_element_type(log_scale, term.dtype), term.shape), carry[k]]

    log, rest = Step.several("scaled scan", run, operands, [term.aval, term.aval], origin=step.origin)
    return Parts(log, rest)


def degrees(program: Body, inputs: Sequence[int]) -> list[int | None]:
    """Of each output, whether it is independent of the marked input (0), linear in it (1) or neither (None)."""
    known: dict[Any, int | None] = dict(zip(program.inputs, inputs))
    known |= {var: 0 for var, _ in program.constants}

    def of(atom: Any) -> int | None:
        return 0 if _jaxpr.literal_value(atom) is not None else known[atom]

    for eqn in program.equations:
        operands = [of(a) for a in eqn.invars]
        made = _degrees_of(eqn, operands)
        known |= dict(zip(eqn.outvars, made))
    return [of(a) for a in program.outputs]


def _degrees_of(eqn: Any, operands: Sequence[int | None]) -> Sequence[int | None]:
    name, n = eqn.primitive.name, len(eqn.outvars)
    if all(d == 0 for d in operands):
        return [0] * n
    if None in operands:
        return [None] * n
    inner = _jaxpr.control(eqn)
    if isinstance(inner, Call) and name in ("jit", "pjit", "closed_call", "remat2", "checkpoint"):
        return degrees(inner.body, [int(d or 0) for d in inner.of(operands)])
    if name in _BILINEAR:
        return [1 if sum(map(int, operands)) == 1 else None]  # type: ignore[arg-type]
    if name == "div":
        return [1 if operands[1] == 0 else None]
    if name in _LINEAR and all(map(_jaxpr.is_inexact, eqn.outvars)):
        floating = [d for d, a in zip(operands, eqn.invars) if _jaxpr.is_inexact(a)]
        return [1 if floating and all(d == 1 for d in floating) else None]
    if name == "select_n":
        return [1 if operands[0] == 0 and all(d == 1 for d in operands[1:]) else None]
    return [None] * n
