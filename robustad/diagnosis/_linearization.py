"""The Jacobian of a program, evaluated in float64 beside it: as a linear map in both directions, or as a matrix.

What is evaluated is the derivative program that JAX makes, custom rules included. Every value in it has a twin in float64
that follows the branches of the working program (see `arithmetic._shadow`): casts to narrower dtypes do not round.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robustad import _jaxpr
from robustad._interpret import interpret
from robustad._jaxpr import Body
from robustad.arithmetic import _shadow
from robustad.arithmetic._shadow import Shadow, ShadowArithmetic

ROWS = 32  # directions at a time
Flat: TypeAlias = np.ndarray
"""Vectors, one a row, of all components of all leaves."""
Function: TypeAlias = Callable[[list[Array], list[Array]], list[Array]]
"""Of differentiated arrays and of others, all real; its results are real and floating."""


class DerivativeError(Exception):
    """JAX cannot differentiate the function in this mode."""


@dataclasses.dataclass(frozen=True, eq=False)
class Linearization:
    """`f` at a point. `x`, `y`: its inputs and outputs in float64, flat; `inputs`, `outputs`: the places of the leaves."""

    f: Function
    leaves: list[Array]
    others: list[Array]
    shapes: list[Any]
    x: np.ndarray
    y: np.ndarray

    @property
    def inputs(self) -> list[slice]:
        return _places(self.leaves)

    @property
    def outputs(self) -> list[slice]:
        return _places(self.shapes)

    def push(self) -> Callable[[Flat], Flat]:
        """v ↦ J v, row by row.

        Raises:
            DerivativeError: there is neither a forward mode nor a differentiable reverse mode.
        """

        def forward(x: list[Array], others: list[Array], v: list[Array]) -> list[Array]:
            return jax.vmap(lambda t: jax.jvp(lambda x: self.f(x, others), (x,), (t,))[1])(v)

        def twice_reversed(x: list[Array], others: list[Array], v: list[Array]) -> list[Array]:
            # custom_vjp functions have no forward mode; u ↦ uᵀJ is linear, and its own reverse is v ↦ J v.
            zeros = [jnp.zeros(s.shape, s.dtype) for s in self.shapes]
            _, turned = jax.vjp(lambda u: jax.vjp(lambda x: self.f(x, others), x)[1](u)[0], zeros)
            return jax.vmap(lambda t: turned(t)[0])(v)

        try:
            return self._map(forward, self.leaves)
        except DerivativeError as error:
            try:
                return self._map(twice_reversed, self.leaves)
            except DerivativeError:
                raise error from error.__cause__

    def pull(self) -> Callable[[Flat], Flat]:
        """u ↦ uᵀ J, row by row.

        Raises:
            DerivativeError: there is no reverse mode.
        """

        def reverse(x: list[Array], others: list[Array], u: list[Array]) -> list[Array]:
            return jax.vmap(jax.vjp(lambda x: self.f(x, others), x)[1])(u)[0]

        return self._map(reverse, self.shapes)

    def _map(self, derivative: Callable[..., list[Array]], like: Sequence[Any]) -> Callable[[Flat], Flat]:
        """A linear map of flat rows; `like`: the leaves that a row is made of."""
        directions = [jnp.zeros((ROWS, *x.shape), x.dtype) for x in like]
        try:
            program, _ = _jaxpr.trace(derivative, self.leaves, self.others, directions)
        except Exception as error:  # whatever JAX, or a rule of the user's, says
            raise DerivativeError(f"{type(error).__name__}: {str(error).strip()[:600]}") from error
        twin = _twin(program)

        def apply(rows: Flat) -> Flat:
            made = []
            for start in range(0, len(rows), ROWS):
                some = rows[start : start + ROWS]
                padded = np.concatenate([some, np.zeros((ROWS - len(some), rows.shape[1]))])
                highs = [padded[:, place].reshape(ROWS, *x.shape) for place, x in zip(_places(like), like)]
                with jax.enable_x64(True):
                    given = [Shadow(jnp.asarray(h, x.dtype), jnp.asarray(h)) for h, x in zip(highs, like)]
                outs = twin([*self.leaves, *self.others, *given])
                made.append(_flat([out.reshape(ROWS, -1) for out in outs], ROWS)[: len(some)])
            return np.concatenate(made)

        return apply


def linearize(f: Function, program: Body, leaves: list[Array], others: list[Array], shapes: list[Any]) -> Linearization:
    """`f`, whose program and shapes of outputs are given, at the arrays `leaves`."""
    y = _twin(program)([*leaves, *others])
    x = [np.asarray(leaf).astype(np.float64).reshape(1, -1) for leaf in leaves]
    return Linearization(f, leaves, others, shapes, _flat(x, 1)[0], _flat([v.reshape(1, -1) for v in y], 1)[0])


def _twin(program: Body) -> Callable[[Sequence[Any]], list[np.ndarray]]:
    """The results of a program in float64, a function of its inputs (arrays, or `Shadow`s)."""
    # Constants are operands, not code.
    variables = (*(var for var, _ in program.constants), *program.inputs)
    open_program = dataclasses.replace(program, constants=(), inputs=variables)
    constants = [jnp.asarray(c) for _, c in program.constants]
    arithmetic: Any = ShadowArithmetic()
    walk = jax.jit(lambda operands: interpret(arithmetic, open_program, operands)[0])

    def run(operands: Sequence[Any]) -> list[np.ndarray]:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            lifted = [x if isinstance(x, Shadow) else _shadow.lift(x) for x in [*constants, *operands]]
            return [np.asarray(_shadow.high(out)) for out in walk(lifted)]

    return run


def _places(leaves: Sequence[Any]) -> list[slice]:
    ends = np.cumsum([0, *(int(np.prod(x.shape)) for x in leaves)])
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]


def _flat(parts: list[np.ndarray], rows: int) -> np.ndarray:
    return np.concatenate([np.zeros((rows, 0)), *parts], axis=1)
