"""Sums that a loop carries, as sums over an axis: that of the loop's steps.

A carry that starts at 0 and has something added in each step, and that nothing else in the body reads, is the sum of what is
added. That is read off the loop's inputs where it stands there, and else collected by the loop once more.
"""

import dataclasses
from collections.abc import Sequence

import jax
from jax import Array, lax

from robustad import _jaxpr
from robustad._jaxpr import Scan
from robustad.rewriting._graph import Graph, Step, Term, evaluate, in_order, input_term, scalar

_OPENED = ("jit", "pjit", "closed_call")


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A scan whose body has been read: its inputs, outputs, and for some carries what each step adds to them."""

    step: Step
    scan: Scan
    inputs: tuple[Term, ...]
    outputs: tuple[Term, ...]
    added: dict[int, Term]
    _made: dict[Term, tuple[Term, bool]] = dataclasses.field(default_factory=dict)

    @staticmethod
    def of(step: Step) -> "Loop | None":
        """The loop of a step; None where it carries no sum."""
        eqn = step.equation
        inner = _jaxpr.control(eqn) if eqn is not None else None
        if eqn is None or not isinstance(inner, Scan) or not inner.length or _jaxpr.has_effects(eqn):
            return None
        if not any(_is_zero(t) for t in step.operands[inner.consts : inner.consts + inner.carry]):
            return None
        graph = Graph()
        inputs = [input_term(_jaxpr.aval(v)) for v in inner.body.inputs]
        outputs = graph.read(inner.body, inputs, lambda e, _: e.primitive.name in _OPENED)
        steps = in_order(t.step for t in outputs)
        readers: dict[Term, int] = {}
        for read in steps:
            for t in read.operands:
                readers[t] = readers.get(t, 0) + 1
        added = {}
        for k in range(inner.carry):
            carry, out = inputs[inner.consts + k], outputs[k]
            starts_at_zero = _is_zero(step.operands[inner.consts + k])
            if (
                starts_at_zero
                and carry.floating
                and out.name == "add"
                and carry in out.operands
                and readers[carry] == 1
            ):
                a, b = out.operands
                added[k] = b if a is carry else a
        return Loop(step, inner, tuple(inputs), tuple(outputs), added) if added else None

    def outside(self, term: Term) -> tuple[Term, bool]:
        """A term of the body as one outside of the loop, and whether that has the loop's axis, as its first one."""
        if term not in self._made:
            self._made[term] = self._outside(term)
        return self._made[term]

    def _outside(self, term: Term) -> tuple[Term, bool]:
        scan = self.scan
        if term in self.inputs:
            i = self.inputs.index(term)
            if i < scan.consts:
                return self.step.operands[i], False
            if i >= scan.consts + scan.carry:
                return self.step.operands[i], True
        aval = jax.ShapeDtypeStruct((scan.length, *term.shape), term.dtype)
        operands = self.step.operands

        def run(*arrays: Array) -> list[Array]:
            consts, carry = arrays[: scan.consts], list(arrays[scan.consts : scan.consts + scan.carry])

            def one(state: list[Array], xs: Sequence[Array]) -> tuple[list[Array], Array]:
                known = dict(zip(self.inputs, (*consts, *state, *xs)))
                *after, value = evaluate([*self.outputs[: scan.carry], term], [], known)
                return after, value

            xs = list(arrays[scan.consts + scan.carry :])
            return [lax.scan(one, carry, xs, scan.length, reverse=scan.reverse, unroll=scan.unroll)[1]]

        return Step.of("collected", run, operands, aval, origin=self.step.origin), True


def _is_zero(term: Term) -> bool:
    return term.floating and scalar(term) == 0
