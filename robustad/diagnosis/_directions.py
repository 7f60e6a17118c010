"""Directions for iterations to start in: any will do that are not made for the matrix at hand.

A hash of the index costs a few integer operations; `jax.random` costs more to compile than a small matrix's whole norm.
Estimates whose error is statistical draw with `jax.random`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def seed_of(key: Array | None) -> Array:
    """A seed from a key; the same one each time where there is none."""
    return jnp.zeros((), jnp.uint32) if key is None else jax.random.bits(key, (), jnp.uint32)


@jax.jit
def orthonormal_rows(rows: Array) -> Array:
    """Orthonormal ones with the same span."""
    return jnp.linalg.qr(rows.T)[0].T


def directions(shape: tuple[int, ...], dtype: Any, seed: Array) -> Array:
    """Elements between -1 and 1, from MurmurHash3's finalizer of their indices."""
    h = jax.lax.iota(jnp.uint32, math.prod(shape))
    h = (h + seed) * jnp.uint32(0x9E3779B9) + seed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    h = h ^ (h >> jnp.uint32(16))
    return (h.astype(dtype) * jnp.asarray(2.0**-31, dtype) - 1).reshape(shape)
