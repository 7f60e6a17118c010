r"""Arrays in fewer bytes: as bfloat16, or as int8 with one scale for each block.

bfloat16 keeps 8 bits: a relative error of at most 2⁻⁸ for each element, in float32's range but for the
subnormals. int8: with m the largest absolute value of a block, \(q = \operatorname{round}(127\, x / m)\), an error of at
most m / 254.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

Format: TypeAlias = Literal["bfloat16", "int8"]
BOUNDS: dict[str, float] = {"bfloat16": 2.0**-8, "int8": 1 / 254}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """An array in fewer bytes. `scale` are the largest values of the blocks of int8."""

    data: Array
    scale: Array | None
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    def aval(self) -> Any:
        """The type of the array that this stands for."""
        return jax.eval_shape(unpack, self)


def pack(x: Array, to: Format, block: int) -> Packed:
    """A floating array of 32 bits or more as `to`."""
    if to == "bfloat16":
        # As bits: XLA for CPU keeps arrays of bfloat16 in float32.
        return Packed(lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16), None, x.shape, x.dtype)
    flat = x.reshape(-1)
    block = min(block, max(flat.size, 1))
    blocks = jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    scale = jnp.max(jnp.abs(blocks), 1, keepdims=True)
    q = jnp.round(blocks / jnp.where(scale == 0, 1, scale) * 127)
    return Packed(q.astype(jnp.int8), scale, x.shape, x.dtype)


def unpack(packed: Packed) -> Array:
    """The array again, rounded."""
    if packed.scale is None:
        return lax.bitcast_convert_type(packed.data, jnp.bfloat16).astype(packed.dtype)
    blocks = packed.data.astype(packed.dtype) / 127 * packed.scale
    return blocks.reshape(-1)[: math.prod(packed.shape)].reshape(packed.shape)
