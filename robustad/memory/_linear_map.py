"""A linear map with a declared adjoint, as a primitive: forward and reverse mode of every order, `vmap`, `jit`.

`jax.custom_vjp` has no forward mode, and `jax.custom_jvp` takes the transpose of the tangent's program as it stands.
Here the transpose is another map, which may compute in its own way, and is itself a map of this kind.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from robustad import _jaxpr

Arrays = Sequence[Any]


class LinearMap(Protocol):
    """What is linear in `vectors`, at fixed `residuals`.

    A map whose program holds loops of unknown length may say by `operations()` how much arithmetic it does.
    """

    def apply(self, residuals: Arrays, vectors: Arrays) -> list[Array]:
        """Its result."""
        ...

    def avals(self, residuals: Arrays, vectors: Arrays) -> list[Any]:
        """The types of the result, of the types of the operands."""
        ...

    def adjoint(self) -> LinearMap:
        """The adjoint at the same residuals."""
        ...

    def jvp(self, residuals: Arrays, vectors: Arrays, steps: Arrays, vector_steps: Arrays) -> tuple[Arrays, Arrays]:
        """The result and its tangent, of tangents that may be `ad.Zero`."""
        ...


_map = Primitive("linear_map")
_map.multiple_results = True


def apply(linear_map: LinearMap, residuals: Arrays, vectors: Arrays) -> list[Array]:
    """The map's result, as one equation."""
    return _map.bind(*residuals, *vectors, map=linear_map, residuals=len(residuals))


@functools.lru_cache(maxsize=256)
def _compiled(linear_map: LinearMap, residuals: int) -> Any:
    return jax.jit(lambda *operands: linear_map.apply(operands[:residuals], operands[residuals:]))


@_map.def_impl
def _evaluate(*operands: Array, map: LinearMap, residuals: int) -> list[Array]:
    return _compiled(map, residuals)(*operands)


@_map.def_abstract_eval
def _abstract(*avals: Any, map: LinearMap, residuals: int) -> list[Any]:
    return map.avals(avals[:residuals], avals[residuals:])


def _jvp(operands: Arrays, steps: Arrays, *, map: LinearMap, residuals: int) -> tuple[Arrays, Arrays]:
    given, vectors = operands[:residuals], operands[residuals:]
    if all(type(t) is ad.Zero for t in steps[:residuals]):
        filled = [ad.instantiate_zeros(t) for t in steps[residuals:]]
        return apply(map, given, vectors), apply(map, given, filled)
    return map.jvp(given, vectors, steps[:residuals], steps[residuals:])


def _transpose(cotangents: Arrays, *operands: Any, map: LinearMap, residuals: int) -> list[Any]:
    results = apply(map.adjoint(), operands[:residuals], [ad.instantiate_zeros(c) for c in cotangents])
    # A vector that is known is an instantiated zero.
    linear = [r if ad.is_undefined_primal(v) else None for r, v in zip(results, operands[residuals:], strict=True)]
    return [None] * residuals + linear


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """A map under `vmap`: every vector and result, and the residuals whose axis is not None, have a batch axis, at 0."""

    of: LinearMap
    size: int
    name: Any
    spmd_name: Any
    axes: tuple[int | None, ...]

    def _over(self, function: Any, in_axes: Any) -> Any:
        return jax.vmap(
            function, in_axes=in_axes, axis_size=self.size, axis_name=self.name, spmd_axis_name=self.spmd_name
        )

    def apply(self, residuals: Arrays, vectors: Arrays) -> list[Array]:
        return self._over(self.of.apply, (list(self.axes), 0))(list(residuals), list(vectors))

    def avals(self, residuals: Arrays, vectors: Arrays) -> list[Any]:
        residuals = [r if a is None else _jaxpr.first_of(r) for r, a in zip(residuals, self.axes, strict=True)]
        results = self.of.avals(residuals, [_jaxpr.first_of(v) for v in vectors])
        return [_jaxpr.stacked(r, self.size) for r in results]

    def operations(self) -> int | None:
        of: Any = self.of
        count = of.operations() if hasattr(of, "operations") else None
        return None if count is None else self.size * count

    def adjoint(self) -> LinearMap:
        return dataclasses.replace(self, of=self.of.adjoint())

    def jvp(self, residuals: Arrays, vectors: Arrays, steps: Arrays, vector_steps: Arrays) -> tuple[Arrays, Arrays]:
        operands, tangents = [*residuals, *vectors], [*steps, *vector_steps]
        given = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]
        axes = [*self.axes, *[0] * len(vectors)]
        k = len(residuals)

        def one(operands: Arrays, steps: Arrays) -> tuple[Arrays, Arrays]:
            filled = [ad.Zero(jax.typeof(o).to_tangent_aval()) for o in operands]
            for i, step in zip(given, steps, strict=True):
                filled[i] = step
            return self.of.jvp(operands[:k], operands[k:], filled[:k], filled[k:])

        return self._over(one, (axes, [axes[i] for i in given]))(operands, [tangents[i] for i in given])


def _batch(axis: Any, operands: Arrays, axes: Sequence[Any], *, map: LinearMap, residuals: int) -> Any:
    if all(a is None for a in axes):
        results = _map.bind(*operands, map=map, residuals=residuals)
        return results, [None] * len(results)
    first = [x if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(operands, axes)]
    # A vector that is not mapped is spread out: the adjoint then sums over the batch.
    vectors = [
        jnp.broadcast_to(x, (axis.size, *x.shape)) if a is None else x
        for x, a in zip(first[residuals:], axes[residuals:])
    ]
    at = tuple(None if a is None else 0 for a in axes[:residuals])
    results = apply(_Mapped(map, axis.size, axis.name, axis.spmd_name, at), first[:residuals], vectors)
    return results, [0] * len(results)


def _lower(ctx: Any, *operands: Any, map: LinearMap, residuals: int) -> Any:
    def function(*operands: Any) -> list[Array]:
        return map.apply(operands[:residuals], operands[residuals:])

    return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)


ad.primitive_jvps[_map] = _jvp
ad.primitive_transposes[_map] = _transpose
batching.fancy_primitive_batchers[_map] = _batch
mlir.register_lowering(_map, _lower)
