"""Floating leaves as one real vector, which linear algebra can work on."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates:
    """The coordinates of leaves, in order; a complex leaf has its real parts, then its imaginary ones.

    `dtype`: that of the vectors. Half precision is held in float32, so that sums of squares keep their digits and range.
    """

    shapes: tuple[jax.ShapeDtypeStruct, ...]
    dtype: Any

    @staticmethod
    def of(leaves: Sequence[Any], dtype: Any) -> "Coordinates":
        return Coordinates(tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves), dtype)

    @property
    def size(self) -> int:
        return sum(self._lengths())

    def _lengths(self) -> list[int]:
        return [int(np.prod(x.shape)) * (2 if _is_complex(x) else 1) for x in self.shapes]

    def vector(self, leaves: Sequence[Array]) -> Array:
        parts = []
        for x in leaves:
            halves = [jnp.real(x), jnp.imag(x)] if _is_complex(x) else [x]
            parts += [half.astype(self.dtype).reshape(-1) for half in halves]
        return jnp.concatenate([jnp.zeros((0,), self.dtype), *parts])

    def leaves(self, vector: Array) -> list[Array]:
        made = []
        ends = np.cumsum([0, *self._lengths()])
        for x, (start, stop) in zip(self.shapes, itertools.pairwise(ends)):
            part = vector[start:stop]
            if _is_complex(x):
                real = jnp.finfo(x.dtype).dtype
                half = part.reshape(2, *x.shape).astype(real)
                made.append(jax.lax.complex(half[0], half[1]))
            else:
                made.append(part.reshape(x.shape).astype(x.dtype))
        return made


def working_dtype(leaves: Sequence[Any]) -> Any:
    """float64 where a leaf is that wide, else float32."""
    return jnp.float64 if any(jnp.finfo(x.dtype).bits == 64 for x in leaves) else jnp.float32


def epsilon(leaves: Sequence[Any]) -> float:
    """That of the narrowest dtype among the leaves."""
    return max((float(jnp.finfo(x.dtype).eps) for x in leaves), default=float(jnp.finfo(jnp.float32).eps))


def _is_complex(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.complexfloating)
