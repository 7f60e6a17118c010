"""Sums over products of labelled arrays (`_totals`), each with the axes of the result and those that are summed over."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from robustad._jaxpr import is_symbolic
from robustad.rewriting._totals import Labels

_LARGER = 2  # how much larger than its operands an array of all products may be


@dataclasses.dataclass(frozen=True)
class Contraction:
    """The axes of a sum: `rank` of the result, and behind them those of these sizes, which are summed over."""

    rank: int
    sizes: tuple[int, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(self.rank, self.rank + len(self.sizes)))

    def placed(self, x: Array, labels: Labels) -> Array:
        """An array with all axes, of size 1 where it is repeated."""
        at = {self.rank - 1 - k if k < 0 else k: i for i, k in enumerate(labels) if k is not None}
        sizes = [x.shape[at[k]] if k in at else 1 for k in range(self.rank + len(self.sizes))]
        held = jnp.squeeze(x, [i for i in range(x.ndim) if i not in at.values()])
        order = sorted(at.values())
        return jnp.transpose(held, [order.index(at[k]) for k in sorted(at)]).reshape(sizes)

    def shape(self, *arrays: Array) -> tuple[int, ...]:
        """That of a product, with the axes that are summed over."""
        joint = jnp.broadcast_shapes(*(a.shape for a in arrays))
        return (*joint[: self.rank], *self.sizes)

    def sum(self, *arrays: Array) -> Array:
        """Of products, the axes kept; by a matrix product where an array of all of them would be large."""
        shape = self.shape(*arrays)
        first, *others = arrays
        if len(arrays) == 1 or is_symbolic(shape) or math.prod(shape) <= _LARGER * self._largest(arrays):
            return jnp.sum(jnp.broadcast_to(math.prod(others, start=first), shape), self.axes, keepdims=True)
        return self._matrix_product(math.prod(arrays[1:-1], start=first), arrays[-1])

    def _largest(self, arrays: Sequence[Array]) -> int:
        return max(math.prod(self.sizes), *(a.size for a in arrays))

    def _matrix_product(self, x: Array, y: Array) -> Array:
        held, squeezed = [], []
        for a in (x, y):
            a = jnp.broadcast_to(a, self.shape(a))
            held.append([i for i, n in enumerate(a.shape) if n != 1 or i in self.axes])
            squeezed.append(a.reshape([a.shape[i] for i in held[-1]]))
        out = [i for i in range(self.rank) if any(i in labels for labels in held)]
        made = jnp.einsum(squeezed[0], held[0], squeezed[1], held[1], out, precision=lax.Precision.HIGHEST)
        joint = self.shape(x, y)
        return made.reshape([*(joint[i] if i in out else 1 for i in range(self.rank)), *(1 for _ in self.sizes)])

    def result(self, x: Array, shape: Sequence[int]) -> Array:
        """What was summed without the axes of the sum."""
        return jnp.broadcast_to(x.reshape(x.shape[: self.rank]), tuple(shape))
