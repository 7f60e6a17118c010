"""Which elements of a value are demanded: by the outputs of a program, through its selects.

A demand is a disjunction of conjunctions of boolean terms, each of the shape of what it masks (or a scalar). It is only ever
too wide: what cannot be told is demanded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from robustad.rewriting._graph import Step, Term, in_order

Literal: TypeAlias = tuple[Term, bool]
"""A boolean term and the value of it that demands."""
Demand: TypeAlias = frozenset[frozenset[Literal]] | None
"""The cases in which an element is demanded; None: in all."""

NEVER: Demand = frozenset()
_MOST_CASES = 6

DECIDING = frozenset("eq ne lt le gt ge is_finite sign floor ceil round stop_gradient argmax argmin".split())
"""Primitives through which no derivative passes: what they take is no demand."""


def either(a: Demand, b: Demand) -> Demand:
    """What one of two readers demands."""
    if a is None or b is None:
        return None
    cases = set(a | b)
    merged = True
    while merged:  # (p and q) or (p and not q) is p
        merged = False
        for case in list(cases):
            for term, value in case:
                twin = (case - {(term, value)}) | {(term, not value)}
                if twin in cases:
                    cases -= {case, twin}
                    cases.add(case - {(term, value)})
                    merged = True
                    break
            if merged:
                break
    least = {c for c in cases if not any(other < c for other in cases)}
    if frozenset() in least or len(least) > _MOST_CASES:
        return None
    return frozenset(least)


def both(demand: Demand, literal: Literal) -> Demand:
    """A demand that holds where a boolean term has a value, alone."""
    cases = [frozenset()] if demand is None else demand
    term, value = literal
    return frozenset(case | {literal} for case in cases if (term, not value) not in case)


class Demands:
    """The demand of every floating term on which the outputs' derivatives depend.

    weak: boolean terms that an extremum or a branch made, not a `select` of the user's: for these only what may have
    an infinite derivative is guarded.
    """

    def __init__(self, outputs: Sequence[Term], demanded: Demand = None, effects: Iterable[Step] = ()):
        self.of: dict[Step, dict[int, Demand]] = {}
        self.weak: set[Term] = {term for case in demanded or () for term, _ in case}
        self._made: dict[Any, Term] = {}
        undifferentiated = set(effects)
        for term in outputs:
            self._join(term, demanded)
        for step in reversed(in_order(t.step for t in outputs)):
            wanted = self.of.get(step)
            if not wanted or step.name in DECIDING or step in undifferentiated:
                continue
            if len(wanted) == 1:
                demands = self._of_operands(step, *next(iter(wanted.items())))
            else:
                demands = [None] * len(step.operands)
            for operand, demand in zip(step.operands, demands):
                self._join(operand, demand)

    def __getitem__(self, term: Term) -> Demand:
        return self.of.get(term.step, {}).get(term.index, NEVER)

    def is_weak(self, demand: Demand) -> bool:
        return demand is not None and all(term in self.weak for case in demand for term, _ in case)

    def _join(self, term: Term, new: Demand) -> None:
        if term.floating and term.name not in ("constant",):
            held = self.of.setdefault(term.step, {})
            held[term.index] = either(held.get(term.index, NEVER), new)

    # ------------------------------------------------------------------------------------- from outputs to operands

    def _of_operands(self, step: Step, index: int, demand: Demand) -> list[Demand]:
        shape = step.outputs[index].shape
        if step.name == "select_n":
            which, *cases = step.operands
            return [None, *(self._where(demand, which, k, shape, c) for k, c in enumerate(cases))]
        if step.name in ("max", "min") and len(step.operands) == 2:
            a, b = step.operands
            less = self._boolean("lt", jnp.less, (a, b) if step.name == "max" else (b, a), shape)
            more = self._boolean("lt", jnp.less, (b, a) if step.name == "max" else (a, b), shape)
            demands = [both(demand, (less, False)), both(demand, (more, False))]
            return [self._shrunk(d, shape, t) for d, t in zip(demands, step.operands)]
        if step.name == "clamp":
            low, x, high = step.operands
            outside = self._boolean("outside", lambda lo, y, hi: (y < lo) | (y > hi), (low, x, high), shape)
            return [None, both(demand, (outside, False)), None]
        if any(cases is not None for cases in step.reads):
            return [self._read(demand, cases, shape, t) for cases, t in zip(step.reads, step.operands, strict=True)]
        if demand is None:
            return [None] * len(step.operands)
        if step.elementwise:
            return [self._shrunk(demand, shape, t) for t in step.operands]
        move = _MOVES.get(step.name)
        if move is None or step.equation is None:
            return [None] * len(step.operands)
        return [self._moved(demand, step, i, move) if t.floating else None for i, t in enumerate(step.operands)]

    def _boolean(self, name: str, run: Callable[..., Array], operands: Sequence[Term], shape: tuple[int, ...]) -> Term:
        key = (name, *operands)
        if key not in self._made:
            self._made[key] = boolean(name, lambda *x: jnp.broadcast_to(run(*x), shape), operands, shape)
            self.weak.add(self._made[key])
        return self._made[key]

    def _where(self, demand: Demand, which: Term, k: int, shape: tuple[int, ...], case: Term) -> Demand:
        if jnp.issubdtype(which.dtype, jnp.bool_):
            new = both(demand, (which, bool(k)))
        else:
            key = (which, k)
            if key not in self._made:
                self._made[key] = boolean("eq", lambda w: w == k, [which], which.shape)
            new = both(demand, (self._made[key], True))
        return self._shrunk(new, shape, case)

    def _read(self, demand: Demand, cases: Demand, shape: tuple[int, ...], operand: Term) -> Demand:
        """The demand of an operand that only matters in some cases."""
        if cases is None:
            return self._shrunk(demand, shape, operand)
        found = NEVER
        for case in cases:
            found = either(found, functools.reduce(both, case, demand))
        return self._shrunk(found, shape, operand)

    def _shrunk(self, demand: Demand, shape: tuple[int, ...], operand: Term) -> Demand:
        """The demand of an operand that is repeated along axes where it has size 1."""
        if demand is None or operand.shape == shape:
            return demand
        if not operand.shape:
            axes, kept = tuple(range(len(shape))), False
        else:
            axes, kept = tuple(i for i, (n, m) in enumerate(zip(operand.shape, shape)) if n != m), True

        def any_of(literal: Literal) -> Literal:
            return self._reduced(literal, axes, kept)

        return frozenset(frozenset(map(any_of, case)) for case in demand)

    def _reduced(self, literal: Literal, axes: tuple[int, ...], kept: bool) -> Literal:
        term, value = literal
        if not term.shape or not axes:
            return literal
        key = (term, value, axes, kept)
        if key not in self._made:
            # any(c), or not all(c)
            reduce = jnp.any if value else jnp.all
            shape = jax.eval_shape(lambda c: jnp.any(c, axes, keepdims=kept), term.aval).shape
            self._made[key] = boolean("any", lambda c: reduce(c, axes, keepdims=kept), [term], shape)
            if term in self.weak:
                self.weak.add(self._made[key])
        return self._made[key], value

    def _moved(self, demand: Demand, step: Step, i: int, move: _Move) -> Demand:
        if demand is None:
            return None
        cases = []
        for case in demand:
            literals = [self._moved_literal(x, step, i, move) for x in case]
            cases.append(frozenset(literals))
        return frozenset(cases)

    def _moved_literal(self, literal: Literal, step: Step, i: int, move: _Move) -> Literal:
        term, value = literal
        if not term.shape:
            return literal
        key = (term, value if step.name == "broadcast_in_dim" else None, step, i)
        if key not in self._made:
            operand = step.operands[i]
            self._made[key] = boolean("moved", lambda c: move(step, i, c, value), [term], operand.shape)
            if term in self.weak:
                self.weak.add(self._made[key])
        return self._made[key], value


def boolean(name: str, run: Callable[..., Array], operands: Sequence[Term], shape: tuple[int, ...]) -> Term:
    """A boolean term that the program does not have."""
    aval = jax.ShapeDtypeStruct(shape, jnp.bool_)
    return Step.of(name, lambda *x: [run(*x)], operands, aval)


def mask(demand: Demand, shape: tuple[int, ...]) -> Term:
    """The elements that a demand demands, as a boolean term."""
    assert demand is not None
    cases = [tuple(case) for case in demand]
    terms = list(dict.fromkeys(term for case in cases for term, _ in case))

    def run(*arrays: Array) -> Array:
        known = dict(zip(terms, arrays))
        result: Any = False
        for case in cases:
            held: Any = True
            for term, value in case:
                held = held & (known[term] if value else ~known[term])
            result = result | held
        return jnp.broadcast_to(result, shape)

    return boolean("demanded", run, terms, shape)


# ----------------------------------------------------------------------------------------------- axes that move

_Move: TypeAlias = Callable[[Step, int, Array, bool], Array]


def _same(step: Step, i: int, c: Array, value: bool) -> Array:
    """Of operations that only move elements, by the operand's shape."""
    return c.reshape(step.operands[i].shape)


def _transposed(step: Step, i: int, c: Array, value: bool) -> Array:
    order = step.params["permutation"]
    return jnp.transpose(c, [order.index(k) for k in range(len(order))])


def _rev(step: Step, i: int, c: Array, value: bool) -> Array:
    return lax.rev(c, step.params["dimensions"])


def _reduction(step: Step, i: int, c: Array, value: bool) -> Array:
    shape = step.operands[i].shape
    return jnp.broadcast_to(jnp.expand_dims(c, step.params["axes"]), shape)


def _broadcast(step: Step, i: int, c: Array, value: bool) -> Array:
    held, before = step.params["broadcast_dimensions"], step.operands[i].shape
    repeated = [d for d in range(c.ndim) if d not in held or before[held.index(d)] != c.shape[d]]
    reduced = (jnp.any if value else jnp.all)(c, tuple(repeated))
    return reduced.reshape(before)


def _concatenated(step: Step, i: int, c: Array, value: bool) -> Array:
    axis = step.params["dimension"]
    start = sum(t.shape[axis] for t in step.operands[:i])
    return lax.slice_in_dim(c, start, start + step.operands[i].shape[axis], axis=axis)


def _sliced(step: Step, i: int, c: Array, value: bool) -> Array:
    shape = step.operands[i].shape
    starts = step.params["start_indices"]
    steps = step.params["strides"] or (1,) * len(shape)
    ends = [n - (s + (m - 1) * k + 1) for n, s, m, k in zip(shape, starts, c.shape, steps)]
    config = [(s, e, k - 1) for s, e, k in zip(starts, ends, steps)]
    return lax.pad(c, jnp.asarray(not value), config)


_MOVES: dict[str, _Move] = {
    "reshape": _same,
    "squeeze": _same,
    "expand_dims": _same,
    "transpose": _transposed,
    "rev": _rev,
    "reduce_sum": _reduction,
    "reduce_prod": _reduction,
    "reduce_max": _reduction,
    "reduce_min": _reduction,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenated,
    "slice": _sliced,
}
