r"""Arrays in fewer bytes: as bfloat16, or as int8 with one scale for each block.

bfloat16 keeps 8 bits: a relative error of at most 2⁻⁸ for each element, in float32's range but for the
subnormals. int8: with m the largest absolute value of a block, \(q = \operatorname{round}(127\, x / m)\), an error of at
most m / 254, but for the subnormals, of x too, which XLA may flush to 0.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
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
        return Packed(lax.bitcast_convert_type(_in_range(x).astype(jnp.bfloat16), jnp.uint16), None, x.shape, x.dtype)
    flat = x.reshape(-1)
    block = min(block, max(flat.size, 1))
    blocks = jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    scale = jnp.max(jnp.abs(blocks), 1, keepdims=True)
    # 1 / scale may be subnormal, which is flushed to 0: not that of the scale with its power of two taken out.
    info = jnp.finfo(x.dtype)
    tiny = np.asarray(info.tiny, x.dtype)
    unit = 1 / lax.reduce_precision(jnp.clip(scale, tiny, 1 / tiny), info.nexp, 0)
    q = jnp.round(blocks * unit / jnp.where(scale == 0, 1, scale * unit) * 127)
    return Packed(q.astype(jnp.int8), scale, x.shape, x.dtype)


def unpack(packed: Packed) -> Array:
    """The array again, rounded."""
    if packed.scale is None:
        return lax.bitcast_convert_type(packed.data, jnp.bfloat16).astype(packed.dtype)
    # Clipped, so that XLA does not compute scale / 127 first, which may be subnormal.
    blocks = jnp.clip(packed.data.astype(packed.dtype) / 127, -1, 1) * packed.scale
    return blocks.reshape(-1)[: math.prod(packed.shape)].reshape(packed.shape)


def _in_range(x: Array) -> Array:
    """x, but what float32 holds and bfloat16 rounds to ∞ is the largest of bfloat16."""
    largest, wide = (np.asarray(jnp.finfo(d).max, x.dtype) for d in (jnp.bfloat16, jnp.float32))
    return jnp.where(jnp.abs(x) <= wide, jnp.clip(x, -largest, largest), x)
