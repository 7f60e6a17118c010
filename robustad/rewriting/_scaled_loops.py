"""Products that a loop carries: kept in range by powers of two, for a logarithm that is taken of them.

The forward algorithm of a hidden Markov model carries a vector of probabilities that each step multiplies; after some
hundred steps all of it has underflowed, though its logarithm is of moderate size. Where a step is linear in what it carries,
the scale of the carry may be anything: after each step it is taken out as a power of two, exactly, and counted (Rabiner,
Proc. IEEE 77, 1989). The counted scale is constant in derivatives: what it adds to the logarithm, the scaled carry lacks.
Rows that the step keeps apart (`_rows`), as those of a batch, have a scale each.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Body, Call, Scan, While
from robustad.rewriting._graph import Run, Step, Term
from robustad.rewriting._log_space import Parts, parts_of
from robustad.rewriting._rewriter import Rewriter
from robustad.rewriting._rows import row_axes

_LINEAR = frozenset(
    "neg convert_element_type copy reshape squeeze expand_dims broadcast_in_dim transpose rev slice reduce_sum "
    "dynamic_slice gather cumsum concatenate add add_any sub reduce_window_sum".split()
)
_BILINEAR = frozenset(["mul", "dot_general", "conv_general_dilated"])


@parts_of("scan", "while")
def carried_product(term: Term, rw: Rewriter) -> Parts | None:
    """The final carry of a loop whose step is linear in it, as scale and scaled value."""
    return scaled_carry(term, rw, rows_of(term))


def rows_of(term: Term) -> tuple[int, ...]:
    """The axes of a loop's final carry along which its step keeps rows apart."""
    loop = _loop(term.step)
    if loop is None or term.index >= len(loop.body.outputs):
        return ()
    first = loop.consts if isinstance(loop, Scan) else loop.body_consts
    return row_axes(loop.body, first + term.index, term.index) if _is_linear(loop, term.index) else ()


def scaled_carry(term: Term, rw: Rewriter, rows: tuple[int, ...]) -> Parts | None:
    """The same, with a scale for each row along these axes."""
    if (term, rows) not in rw.scaled:
        rw.scaled[term, rows] = _scaled_carry(term, rw, rows)
    return rw.scaled[term, rows]


def _scaled_carry(term: Term, rw: Rewriter, rows: tuple[int, ...]) -> Parts | None:
    step, k, loop = term.step, term.index, _loop(term.step)
    if loop is None or not jnp.issubdtype(term.dtype, jnp.floating) or 0 in term.shape or not _is_linear(loop, k):
        return None
    run = _scaled_scan(loop, k, rw, rows) if isinstance(loop, Scan) else _scaled_while(loop, k, rw, rows)

    def parts(*arrays: Array) -> list[Array]:
        count, value = run(*arrays)
        log_scale = lax.convert_element_type(count, jnp.promote_types(term.dtype, jnp.float32)) * math.log(2)
        return [jnp.broadcast_to(lax.convert_element_type(log_scale, term.dtype), term.shape), value]

    operands = [rw(t) for t in step.operands]
    log, rest = Step.several("scaled loop", parts, operands, [term.aval, term.aval], origin=step.origin)
    return Parts(log, rest)


def _loop(step: Step) -> Scan | While | None:
    eqn = step.equation
    loop = _jaxpr.control(eqn) if eqn is not None and not _jaxpr.has_effects(eqn) else None
    return loop if isinstance(loop, Scan | While) else None


def _is_linear(loop: Scan | While, k: int) -> bool:
    """Whether the step is linear in carry k, and nothing else that matters depends on it."""
    first = loop.consts if isinstance(loop, Scan) else loop.body_consts
    body = loop.body
    carries = len(body.outputs) if isinstance(loop, While) else loop.carry
    if k >= carries:
        return False
    outputs = degrees(body, [int(i == first + k) for i in range(len(body.inputs))])
    if isinstance(loop, While):
        condition = degrees(loop.cond, [int(i == loop.cond_consts + k) for i in range(len(loop.cond.inputs))])
        if condition != [0] or loop.cond.outputs[0].aval.ndim > 0:
            return False
        return outputs[k] == 1 and all(d == 0 for i, d in enumerate(outputs) if i != k)
    others = [d for i, d in enumerate(outputs) if i != k]
    return outputs[k] == 1 and not any(d is None or (d and i < carries - 1) for i, d in enumerate(others))


def _scaled(c: Array, rows: Sequence[int]) -> tuple[Array, Array]:
    """An array over the power of two near its largest entry, or of each of its rows, and the exponent of that."""
    others = tuple(i for i in range(c.ndim) if i not in rows)
    largest = jnp.max(jnp.abs(lax.stop_gradient(c)), others, keepdims=bool(rows))
    exponent = jnp.where((largest > 0) & jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    return c * jnp.exp2(-exponent.astype(c.dtype)), exponent


def _strong(carry: Sequence[Array]) -> list[Array]:
    return [lax.convert_element_type(c, jnp.result_type(c)) for c in carry]


def _scaled_scan(scan: Scan, k: int, rw: Rewriter, rows: Sequence[int]) -> Run:
    body = rw.body(scan.body)

    def run(*arrays: Array) -> list[Array]:
        consts, carry = arrays[: scan.consts], _strong(arrays[scan.consts : scan.consts + scan.carry])

        def one(state: Any, x: Any) -> tuple[Any, None]:
            count, carry = state
            carry = list(body(*consts, *carry, *x)[: scan.carry])
            carry[k], more = _scaled(carry[k], rows)
            return (count + more, carry), None

        carry[k], first = _scaled(carry[k], rows)
        xs = list(arrays[scan.consts + scan.carry :])
        (count, carry), _ = lax.scan(one, (first, carry), xs, scan.length, reverse=scan.reverse, unroll=scan.unroll)
        return [count, carry[k]]

    return run


def _scaled_while(loop: While, k: int, rw: Rewriter, rows: Sequence[int]) -> Run:
    condition, body = rw.body(loop.cond), rw.body(loop.body)
    both = loop.cond_consts + loop.body_consts

    def run(*arrays: Array) -> list[Array]:
        of_condition, of_body, carry = (
            arrays[: loop.cond_consts],
            arrays[loop.cond_consts : both],
            _strong(arrays[both:]),
        )

        def one(state: Any) -> Any:
            count, carry = state
            carry = list(body(*of_body, *carry))
            carry[k], more = _scaled(carry[k], rows)
            return count + more, carry

        carry[k], first = _scaled(carry[k], rows)
        count, carry = lax.while_loop(lambda state: condition(*of_condition, *state[1])[0], one, (first, carry))
        return [count, carry[k]]

    return run


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
