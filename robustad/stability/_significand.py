"""Floats taken apart into significand and exponent, so that products of many factors meet the range only at the end."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from . import _words as words


def significand(x: Array) -> tuple[Array, Array]:
    """(m, k) with x = m 2ᵏ and 1 ≤ |m| < 2; zeros, infinities and NaN are their own m, with k = 0. float32 or float64."""
    info = np.finfo(x.dtype)
    integer = np.dtype(f"int{info.bits}").type
    bias, mask = 1 - info.minexp, integer(2**info.nexp - 1)
    bits = lax.bitcast_convert_type(x, integer)
    biased = (bits >> integer(info.nmant)) & mask
    ordinary = (biased > 0) & (biased < mask)
    k = jnp.where(ordinary, biased - bias, 0)
    return jnp.where(ordinary, words.scaled_down(x, k), x), k


def shifted(m: Array, k: Array) -> Array:
    """m 2ᵏ for any k, where m is near 1; overflows to infinity and flushes to zero."""
    limit = 2 * (np.finfo(m.dtype).maxexp - 2)
    return words.scale(m, jnp.clip(k, -limit, limit))
