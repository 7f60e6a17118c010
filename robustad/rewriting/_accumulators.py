"""Sums that a loop carries in 16 bits: carried in float32.

A running sum in bfloat16 stops growing when a term is below half its unit in the last place, and the derivative with it. The
cotangent of a value that a loop closes over is such a sum too, over the loop's steps. Both are kept in float32 between the
steps; what else the body computes of them is computed of the rounded value, as before. Comparisons are not: a counter has to
pass its bound at its step.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from robustad import _jaxpr
from robustad._jaxpr import Body, Scan
from robustad.rewriting._graph import Step, Term, input_term
from robustad.rewriting._report import Rewrite


@dataclasses.dataclass(frozen=True)
class Wide:
    """What a scan keeps in float32: positions among its constants, and among its carries."""

    consts: tuple[int, ...] = ()
    carries: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.consts or self.carries)


COMPARISONS = ("gt", "ge", "lt", "le")
_ROUNDED = "rounded sum"


def wide_in(scan: Scan) -> Wide:
    """The constants of 16 bits (for their cotangents), and the carries of 16 bits that are sums over the steps."""
    body = scan.body
    consts = tuple(i for i in range(scan.consts) if _is_narrow(_jaxpr.aval(body.inputs[i])))
    carries = tuple(
        i
        for i in range(scan.carry)
        if _is_narrow(_jaxpr.aval(body.inputs[scan.consts + i])) and _is_sum(body, scan.consts + i, i)
    )
    return Wide(consts, carries)


def _is_narrow(aval: jax.ShapeDtypeStruct) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.floating)) and jnp.finfo(aval.dtype).bits == 16


def _is_sum(body: Body, source: int, out: int) -> bool:
    """Whether an output is an input plus something, and nothing in the body looks at its rounding (as Kahan's sum does)."""
    made, before = body.outputs[out], body.inputs[source]
    for eqn in body.equations:
        if made in eqn.invars and eqn.primitive.name not in COMPARISONS:
            return False
        if made in eqn.outvars:
            same = eqn.invars[: 1 if eqn.primitive.name == "sub" else 2]
            if eqn.primitive.name not in ("add", "sub") or before not in same or eqn.invars[0] is eqn.invars[1]:
                return False
    return any(made in eqn.outvars for eqn in body.equations)


def wide_input(aval: jax.ShapeDtypeStruct) -> tuple[Term, Term]:
    """An input in float32, and its value in the dtype of the program."""
    wide = input_term(jax.ShapeDtypeStruct(aval.shape, jnp.float32))
    return wide, rounded(wide, aval)


def rounded(wide: Term, aval: jax.ShapeDtypeStruct) -> Term:
    """A sum in float32, in the dtype of the program."""
    return Step.of(_ROUNDED, lambda x: [lax.convert_element_type(x, aval.dtype)], [wide], aval, elementwise=True)


def compared(operands: Sequence[Term]) -> tuple[Term, ...] | None:
    """What a comparison compares in float32, if one of its operands is such a sum."""
    if not any(t.name == _ROUNDED for t in operands):
        return None

    def widened(term: Term) -> Term:
        if term.name == _ROUNDED:
            return term.operands[0]
        aval = jax.ShapeDtypeStruct(term.shape, jnp.float32)
        return Step.of("convert", lambda x: [lax.convert_element_type(x, aval.dtype)], [term], aval, elementwise=True)

    return tuple(map(widened, operands))


def wide_sum(total: Term, carry: Term, narrow: Term, operands: Sequence[Term], told: Rewrite) -> Term:
    """The sum `total` of the program (of `operands`, one of which is the narrow carry), in float32."""
    (term,) = [t for t in operands if t is not narrow][:1]
    sign = -1.0 if total.name == "sub" else 1.0
    aval = jax.ShapeDtypeStruct(total.shape, jnp.float32)

    def run(c: jax.Array, x: jax.Array) -> list[jax.Array]:
        return [c + sign * lax.convert_element_type(x, jnp.float32)]

    return Step.of("add", run, [carry, term], aval, origin=total.step.origin, rewrite=told)
