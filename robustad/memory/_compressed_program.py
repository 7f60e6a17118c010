"""A program whose reverse mode keeps compressed residuals.

A call of it is one equation with a rule. Its derivative is a linear map whose adjoint takes the residuals, packed, and
unpacks each where it is used; the tangents, and derivatives of that adjoint, are those of the program itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import ad

from robustad import _jaxpr
from robustad.memory import _linear_map, _packed
from robustad.memory._after import after
from robustad.memory._linear_map import LinearMap
from robustad.memory._loop import pick, put
from robustad.memory._packed import Format
from robustad.stability._custom_jvp import custom_jvp

Arrays = list[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Of the residuals, each once: which are inputs, and which are compressed; `places` are where the linearized function,
    of that tree, has them."""

    tree: Any
    places: tuple[int, ...]
    inputs: tuple[bool, ...]
    packs: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A closed program of flat lists of arrays, and how its residuals are compressed."""

    closed: Any
    to: Format
    at_least: int
    block: int

    def of_moved(self, operands: Sequence[Any]) -> tuple[Callable[..., Any], list[bool]]:
        """The inexact results as a function of the inexact operands (the others are aux), and which operands these are."""
        moves = [_jaxpr.is_inexact(x) for x in operands]

        def function(*moved: Any) -> Any:
            out = jaxpr_as_fun(self.closed)(*put(operands, moves, moved))
            return [x for x in out if _jaxpr.is_inexact(x)], [x for x in out if not _jaxpr.is_inexact(x)]

        return function, moves

    def linearized(self, operands: Sequence[Any]) -> tuple[Arrays, Arrays, Plan]:
        """The results, the residuals, and the plan of these."""
        trees = []

        def both(*operands: Any) -> Any:
            function, moves = self.of_moved(operands)
            values, forward, others = jax.linearize(function, *pick(operands, moves), has_aux=True)
            leaves, tree = jax.tree.flatten(forward)
            trees.append(tree)
            moved, fixed = iter(values), iter(others)
            outs = [next(moved if _jaxpr.is_inexact(a) else fixed) for a in self.closed.out_avals]
            return outs, leaves

        traced = jax.make_jaxpr(both)(*operands)
        outs = jaxpr_as_fun(traced)(*operands)
        count = len(self.closed.out_avals)
        program = _jaxpr.body(traced)
        given = {id(v) for v in program.inputs} | {id(v) for v, _ in program.constants}
        index: dict[int, int] = {}
        places = tuple(index.setdefault(id(v), len(index)) for v in program.outputs[count:])
        first = [places.index(i) + count for i in range(len(index))]
        inputs = tuple(id(program.outputs[k]) in given for k in first)
        packs = tuple(not own and self._packs(_jaxpr.aval(program.outputs[k])) for k, own in zip(first, inputs))
        return outs[:count], [outs[k] for k in first], Plan(trees[-1], places, inputs, packs)

    def _packs(self, aval: Any) -> bool:
        wide = jnp.issubdtype(aval.dtype, jnp.floating) and aval.dtype.itemsize >= 4
        return wide and _jaxpr.nbytes(aval) >= self.at_least

    def packed(self, leaves: Arrays, plan: Plan) -> Arrays:
        return [_packed.pack(x, self.to, self.block) if packs else x for x, packs in zip(leaves, plan.packs)]

    def pull(self, operands: Sequence[Any], plan: Plan, leaves: Arrays, cotangents: Sequence[Any]) -> Arrays:
        """The cotangents of the inexact operands, from residuals."""
        forward = jax.tree.unflatten(plan.tree, [leaves[i] for i in plan.places])
        avals = [jax.typeof(x).to_tangent_aval() for x in operands if _jaxpr.is_inexact(x)]
        return list(jax.linear_transpose(lambda *steps: forward(*steps), *avals)(list(cotangents)))

    def pull_lazily(self, operands: Sequence[Any], plan: Plan, stored: Arrays, cotangents: Arrays) -> Arrays:
        """`pull`, equation by equation: a compressed residual is unpacked where it is used, after the cotangent there.

        Else the compiler might unpack it at once, and keep that.
        """
        shapes = [jax.typeof(x) if not packs else x.aval() for x, packs in zip(stored, plan.packs)]
        k = len(stored)
        traced = jax.make_jaxpr(lambda *xs: self.pull(operands, plan, list(xs[:k]), list(xs[k:])))(*shapes, *cotangents)
        program = _jaxpr.body(traced)
        values: dict[Any, Any] = dict(program.constants)
        values.update(zip(program.inputs, [*stored, *cotangents]))

        def read(atom: Any, tokens: Arrays) -> Any:
            value = _jaxpr.literal_value(atom) if _jaxpr.literal(atom) is not None else values[atom]
            if isinstance(value, _packed.Packed):
                return _packed.unpack(jax.tree.map(lambda y: after(y, tokens), value))
            return value

        for eqn in program.equations:
            met = [values[atom] for atom in eqn.invars if _jaxpr.literal(atom) is None]
            met = [v for v in met if not isinstance(v, _packed.Packed)] or cotangents
            with _jaxpr.at(eqn):
                results = _jaxpr.bind(eqn, [read(atom, met) for atom in eqn.invars])
            values.update(zip(eqn.outvars, results))
        return [read(atom, []) for atom in program.outputs]


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def run(program: Program, operands: Arrays) -> Arrays:
    return list(jaxpr_as_fun(program.closed)(*operands))


def _run_jvp(program: Program, primals: tuple[Arrays], tangents: tuple[Arrays]) -> tuple[Arrays, Arrays]:
    (operands,), (steps,) = primals, tangents
    outputs, leaves, plan = program.linearized(operands)
    stored, tree = jax.tree.flatten(program.packed(leaves, plan))
    moved = [
        step if isinstance(step, Array) else _jaxpr.zeros_of_tangent(x)
        for x, step in zip(operands, steps)
        if _jaxpr.is_inexact(x)
    ]
    types = tuple(jax.typeof(o).to_tangent_aval() for o in outputs if _jaxpr.is_inexact(o))
    found = iter(_linear_map.apply(Tangent(program, plan, tree, len(operands), types), [*operands, *stored], moved))
    return outputs, [
        next(found) if _jaxpr.is_inexact(o) else SymbolicZero(jax.typeof(o).to_tangent_aval()) for o in outputs
    ]


run.defjvp(_run_jvp, symbolic_zeros=True)


@dataclasses.dataclass(frozen=True)
class _OfProgram:
    """Residuals: the operands, then those of the program, compressed."""

    program: Program
    plan: Plan
    tree: Any
    operands: int
    outputs: tuple[Any, ...]

    def exact(self, operands: Arrays, vectors: Arrays) -> list[Array]:
        """The map from exact residuals, which each of the two below is."""
        raise NotImplementedError

    def apply(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Array]:
        return self.exact(list(residuals[: self.operands]), list(vectors))

    def jvp(self, residuals: Any, vectors: Any, steps: Any, vector_steps: Any) -> tuple[Any, Any]:
        """The result as it is, and the tangent of the exact one."""
        values, tangents = [*residuals[: self.operands], *vectors], [*steps[: self.operands], *vector_steps]
        moves = [type(t) is not ad.Zero for t in tangents]

        def function(*moved: Any) -> list[Array]:
            full = put(values, moves, moved)
            return self.exact(full[: self.operands], full[self.operands :])

        outputs = _linear_map.apply(self, residuals, vectors)  # pyright: ignore[reportArgumentType]
        if not any(moves):
            return outputs, [_jaxpr.zeros_of_tangent(o) for o in outputs]
        return outputs, jax.jvp(function, pick(values, moves), pick(tangents, moves))[1]


class Tangent(_OfProgram):
    """From tangents of the inexact operands, those of the inexact results."""

    def exact(self, operands: Arrays, vectors: Arrays) -> list[Array]:
        function, moves = self.program.of_moved(operands)
        return jax.jvp(lambda *x: function(*x)[0], pick(operands, moves), vectors)[1]

    def avals(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Any]:
        return list(self.outputs)

    def adjoint(self) -> LinearMap:
        return Adjoint(self.program, self.plan, self.tree, self.operands, self.outputs)


class Adjoint(_OfProgram):
    """From cotangents of the inexact results, those of the inexact operands, from the compressed residuals."""

    def exact(self, operands: Arrays, vectors: Arrays) -> list[Array]:
        function, moves = self.program.of_moved(operands)
        return list(jax.vjp(lambda *x: function(*x)[0], *pick(operands, moves))[1](vectors))

    def apply(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Array]:
        operands, stored = residuals[: self.operands], residuals[self.operands :]
        return self.program.pull_lazily(operands, self.plan, jax.tree.unflatten(self.tree, stored), list(vectors))

    def avals(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Any]:
        return [aval.to_tangent_aval() for aval in residuals[: self.operands] if _jaxpr.is_inexact(aval)]

    def adjoint(self) -> LinearMap:
        return Tangent(self.program, self.plan, self.tree, self.operands, self.outputs)
