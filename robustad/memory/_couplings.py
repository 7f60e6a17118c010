r"""A stack of additive couplings, \(y_1 = x_1 + f(x_2),\; y_2 = x_2 + g(y_1)\), as a scan that can run backwards.

Its derivative is a linear map with a declared adjoint: the tangents follow the blocks from the input, the cotangents come
back from the output, from which each block's input is had again by \(x_2 = y_2 - g(y_1),\; x_1 = y_1 - f(x_2)\).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import jaxpr_as_fun
from jax.interpreters import ad

from robustad import _jaxpr
from robustad.memory import _linear_map
from robustad.memory._linear_map import LinearMap
from robustad.memory._loop import pick, put
from robustad.stability._custom_jvp import custom_jvp

Arrays = list[Any]


@custom_jvp
def on_grid(x: Array, quantum: Array) -> Array:
    """x rounded to a multiple of a power of two; its derivative is 1."""
    # Large elements are on the grid as they are, and x / quantum may overflow.
    return jnp.where(jnp.abs(x) < quantum / jnp.finfo(x.dtype).eps, jnp.round(x / quantum) * quantum, x)


@on_grid.defjvp
def _on_grid_jvp(primals: Any, tangents: Any) -> Any:
    return on_grid(*primals), tangents[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """`length` blocks of two programs, (constants, a block's parameters, half) -> half, on flat lists of arrays.

    groups: how many arrays there are of f's and g's constants, f's and g's parameters, x₁ and x₂: the operands.
    quantum: of the grid that the states are on, or None.
    """

    f: Any
    g: Any
    groups: tuple[int, int, int, int, int, int]
    length: int
    quantum: float | None

    def split(self, operands: Sequence[Any]) -> list[Arrays]:
        """The operands in groups."""
        left = iter(operands)
        return [[next(left) for _ in range(n)] for n in self.groups]

    def _rounded(self, halves: Arrays) -> Arrays:
        if self.quantum is None:
            return halves
        return [on_grid(v, jnp.asarray(self.quantum, v.dtype)) for v in halves]

    def run(self, operands: Sequence[Any], keep: bool = False) -> Any:
        """The output; with `keep`, the input of every block too, stacked."""
        f_consts, g_consts, f_params, g_params, x1, x2 = self.split(operands)

        def body(x: Any, params: Any) -> Any:
            (x1, x2), (p, q) = x, params
            y1 = _sum(x1, self._rounded(jaxpr_as_fun(self.f)(*f_consts, *p, *x2)))
            y2 = _sum(x2, self._rounded(jaxpr_as_fun(self.g)(*g_consts, *q, *y1)))
            return (y1, y2), [*x1, *x2] if keep else None

        start = self._rounded(x1), self._rounded(x2)
        (y1, y2), states = lax.scan(body, start, (f_params, g_params), length=self.length)
        return ([*y1, *y2], states) if keep else [*y1, *y2]

    def back(self, operands: Sequence[Any], output: Sequence[Any], keep: bool = False) -> Any:
        """The input, from the output, `operands` being those but x; with `keep`, every block's."""
        f_consts, g_consts, f_params, g_params, *_ = self.split([*operands, *output])
        y1, y2 = output[: self.groups[4]], output[self.groups[4] :]

        def body(y: Any, params: Any) -> Any:
            (y1, y2), (p, q) = y, params
            x2 = _difference(y2, self._rounded(jaxpr_as_fun(self.g)(*g_consts, *q, *y1)))
            x1 = _difference(y1, self._rounded(jaxpr_as_fun(self.f)(*f_consts, *p, *x2)))
            return (x1, x2), [*x1, *x2] if keep else None

        (x1, x2), states = lax.scan(body, (list(y1), list(y2)), (f_params, g_params), length=self.length, reverse=True)
        return ([*x1, *x2], states) if keep else [*x1, *x2]

    def pull(self, operands: Sequence[Any], output: Sequence[Any], cotangents: Sequence[Any]) -> Arrays:
        """The cotangents of all inexact operands, of those of the output."""
        f_consts, g_consts, f_params, g_params, *_ = self.split([*operands, *output])
        k = self.groups[4]

        def body(carry: Any, params: Any) -> Any:
            (y1, y2, ct1, ct2, of_f, of_g), (p, q) = carry, params
            value, pull = _pull(self.g, g_consts, q, y1)
            x2 = _difference(y2, self._rounded(value))
            step_consts, of_q, more = pull(ct2)
            of_g, ct1 = _sum(of_g, step_consts), _sum(ct1, more)
            value, pull = _pull(self.f, f_consts, p, x2)
            x1 = _difference(y1, self._rounded(value))
            step_consts, of_p, more = pull(ct1)
            of_f, ct2 = _sum(of_f, step_consts), _sum(ct2, more)
            return (x1, x2, ct1, ct2, of_f, of_g), (of_p, of_q)

        zeros = [[_jaxpr.zeros_of_tangent(c) for c in _inexact(group)] for group in (f_consts, g_consts)]
        carry = list(output[:k]), list(output[k:]), list(cotangents[:k]), list(cotangents[k:]), *zeros
        (_, _, ct1, ct2, of_f, of_g), (of_p, of_q) = lax.scan(
            body, carry, (f_params, g_params), length=self.length, reverse=True
        )
        return [*of_f, *of_g, *of_p, *of_q, *ct1, *ct2]


def _pull(program: Any, consts: Arrays, params: Arrays, half: Arrays) -> Any:
    """The value, and cotangents of (constants, parameters, half), the inexact ones, from its cotangent."""
    operands = [*consts, *params, *half]
    moves = [_jaxpr.is_inexact(x) for x in operands]
    value, pull = jax.vjp(
        lambda *moved: list(jaxpr_as_fun(program)(*put(operands, moves, moved))), *pick(operands, moves)
    )
    first, second = len(_inexact(consts)), len(_inexact([*consts, *params]))

    def grouped(cotangents: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        found = list(pull(cotangents))
        return found[:first], found[first:second], found[second:]

    return value, grouped


def _inexact(arrays: Sequence[Any]) -> Arrays:
    return [x for x in arrays if _jaxpr.is_inexact(x)]


def _sum(a: Arrays, b: Arrays) -> Arrays:
    return [x + y for x, y in zip(a, b, strict=True)]


def _difference(a: Arrays, b: Arrays) -> Arrays:
    return [x - y for x, y in zip(a, b, strict=True)]


# ------------------------------------------------------------------------------------------------ the derivative


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def run(stack: Stack, operands: Arrays) -> Arrays:
    """The output of a stack, whose reverse mode keeps the operands and the output."""
    return stack.run(operands)


def _run_jvp(stack: Stack, primals: tuple[Arrays], tangents: tuple[Arrays]) -> tuple[Arrays, Arrays]:
    (operands,), (steps,) = primals, tangents
    output = run(stack, operands)
    moved = [
        step if isinstance(step, Array) else _jaxpr.zeros_of_tangent(x)
        for x, step in zip(operands, steps)
        if _jaxpr.is_inexact(x)
    ]
    return output, _linear_map.apply(Tangent(stack), [*operands, *output], moved)


run.defjvp(_run_jvp, symbolic_zeros=True)


@dataclasses.dataclass(frozen=True)
class _OfStack:
    """Residuals: the operands, then the output."""

    stack: Stack

    def _parts(self, residuals: Sequence[Any]) -> tuple[Arrays, Arrays]:
        count = sum(self.stack.groups)
        return list(residuals[:count]), list(residuals[count:])

    def apply(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Array]:
        """The map itself, which each of those below is."""
        raise NotImplementedError

    def jvp(self, residuals: Any, vectors: Any, steps: Any, vector_steps: Any) -> tuple[Any, Any]:
        values, tangents = [*residuals, *vectors], [*steps, *vector_steps]
        moves = [type(t) is not ad.Zero for t in tangents]

        def function(*moved: Any) -> list[Array]:
            full = put(values, moves, moved)
            return list(self.apply(full[: len(residuals)], full[len(residuals) :]))

        return jax.jvp(function, pick(values, moves), pick(tangents, moves))


@dataclasses.dataclass(frozen=True)
class Tangent(_OfStack):
    """From tangents of the inexact operands, those of the output."""

    def apply(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Array]:
        operands, _ = self._parts(residuals)
        moves = [_jaxpr.is_inexact(x) for x in operands]

        def function(*moved: Any) -> list[Array]:
            return self.stack.run(put(operands, moves, moved))

        return jax.jvp(function, pick(operands, moves), list(vectors))[1]

    def avals(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Any]:
        return [aval.to_tangent_aval() for aval in self._parts(residuals)[1]]

    def adjoint(self) -> LinearMap:
        return Adjoint(self.stack)


@dataclasses.dataclass(frozen=True)
class Adjoint(_OfStack):
    """From cotangents of the output, those of the inexact operands."""

    def apply(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Array]:
        operands, output = self._parts(residuals)
        return self.stack.pull(operands[: sum(self.stack.groups[:4])], output, vectors)

    def avals(self, residuals: Sequence[Any], vectors: Sequence[Any]) -> list[Any]:
        return [aval.to_tangent_aval() for aval in _inexact(self._parts(residuals)[0])]

    def adjoint(self) -> LinearMap:
        return Tangent(self.stack)
