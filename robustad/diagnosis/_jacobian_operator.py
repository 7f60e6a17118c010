"""The Jacobian of a function at a point, as the two linear maps that automatic differentiation gives.

Unlike `_linearization`, which evaluates them in float64 outside of any program, these are the working program's own
products, and can be part of one that is compiled.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robustad import _jaxpr
from robustad.diagnosis._arguments import Arguments, AuditError
from robustad.diagnosis._coordinates import Coordinates, epsilon, working_dtype
from robustad.diagnosis._directions import directions
from robustad.diagnosis._program import without_aux

WHOLE = 64  # products at most that form a small matrix
ROWS = 64  # products at a time

Product = Callable[[Array], Array]
"""Of vectors, one a row."""


@dataclasses.dataclass(frozen=True, eq=False)
class JacobianOperator:
    """v ↦ J v (`push`) and u ↦ uᵀ J (`pull`), row by row. `epsilon`: of the narrowest dtype among inputs and outputs."""

    push: Product
    pull: Product
    inputs: int
    outputs: int
    dtype: Any
    epsilon: float

    def scaled(self, seed: Array) -> tuple["JacobianOperator", Array]:
        """The Jacobian times 2^-e, by which a unit vector becomes one with elements of about 1; and e.

        Singular values and what is made of them neither overflow nor vanish on the way, whatever the Jacobian's scale.
        """
        exponents = np.array([0, 60, -60], np.int32)
        rows = unit(self, seed)[None] * jnp.asarray(2.0**exponents, self.dtype)[:, None]
        largest = jnp.max(jnp.abs(self.push(rows)), axis=1, initial=0)
        valid = jnp.isfinite(largest) & (largest > 0)
        pick = jnp.argmax(valid)
        _, e = jnp.frexp(jnp.where(valid[pick], largest[pick], 1))
        e = jnp.where(valid[pick], e - jnp.asarray(exponents)[pick], 0)
        # Half of it before the product, half after it: both stay far from the ends of the range.
        before, after = -(e // 2), -(e - e // 2)

        def around(product: Product) -> Product:
            return lambda rows: jnp.ldexp(product(jnp.ldexp(rows, before)), after)

        return dataclasses.replace(self, push=around(self.push), pull=around(self.pull)), e

    def transposed(self) -> "JacobianOperator":
        return dataclasses.replace(self, push=self.pull, pull=self.push, inputs=self.outputs, outputs=self.inputs)


def jacobian_operator(
    taken: Arguments, leaves: Sequence[Array], others: Sequence[Array], has_aux: bool, name: str
) -> JacobianOperator:
    """The Jacobian at `leaves` of the floating results of `taken.call(leaves, others)`.

    Raises:
        AuditError: the function returns no floating array; inputs or results have no elements; or (when a product is used)
            JAX cannot differentiate it.
    """

    def values(leaves: Sequence[Array]) -> list[Array]:
        out = jax.tree.leaves(without_aux(taken.call(leaves, others), has_aux))
        kinds = jax.Array | np.ndarray | np.generic | float | complex
        floats = [y for y in (jnp.asarray(x) for x in out if isinstance(x, kinds)) if _jaxpr.is_inexact(y)]
        if not floats:
            raise AuditError(f"`{name}` must return floating arrays, which have a Jacobian; it returned none.")
        return floats

    leaves = list(leaves)
    shapes = jax.eval_shape(values, leaves)
    dtype = working_dtype([*leaves, *shapes])
    x, y = Coordinates.of(leaves, dtype), Coordinates.of(shapes, dtype)
    if not x.size * y.size:
        raise AuditError(
            f"the Jacobian of `{name}` is empty: {y.size} x {x.size}. Most likely an array has no elements."
        )
    try:
        _, pushed = jax.linearize(values, leaves)
        jax.eval_shape(jax.vmap(pushed), [x[None] for x in leaves])
    except TypeError:  # custom_vjp functions have no forward mode; u ↦ uᵀJ is linear, and its transpose is v ↦ J v
        _, pulled = jax.vjp(values, leaves)
        transpose = jax.linear_transpose(lambda u: [c.conj() for c in pulled([c.conj() for c in u])[0]], list(shapes))

        def pushed(v: list[Array]) -> list[Array]:
            return [c.conj() for c in transpose([c.conj() for c in v])[0]]

    def push(row: Array) -> Array:
        return y.vector(pushed(x.leaves(row)))

    def pull(row: Array) -> Array:
        # For complex leaves JAX's cotangents are the conjugates of the real transpose's.
        try:
            _, pulled = jax.vjp(values, leaves)
            (found,) = pulled([u.conj() for u in y.leaves(row)])
        except ValueError as error:
            raise AuditError(
                f"`{name}` has no reverse mode that JAX can make: {str(error).strip()[:600]}\nMost likely a while loop: "
                "use lax.scan, or lax.fori_loop of a static length."
            ) from error
        return x.vector([u.conj() for u in found])

    return JacobianOperator(jax.vmap(push), jax.vmap(pull), x.size, y.size, dtype, epsilon([*leaves, *shapes]))


def columns(operator: JacobianOperator) -> Array:
    """The matrix itself."""
    rows = jnp.eye(operator.inputs, dtype=operator.dtype)
    if len(rows) <= ROWS:
        return operator.push(rows).T
    return lax.map(lambda row: operator.push(row[None])[0], rows, batch_size=ROWS).T


def unit(operator: JacobianOperator, seed: Array) -> Array:
    """A unit vector of inputs."""
    v = directions((operator.inputs,), operator.dtype, seed)
    return v / jnp.sqrt(jnp.sum(v * v))
