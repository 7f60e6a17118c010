"""What the derivatives of matrix factorisations share: inverses of gaps, with ties left out."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ._arguments import inexact, widened
from ._division import divide
from ._norms import power_of_two_near


def tie_tolerance(n: int, dtype) -> float:
    """Relative to the largest value: what lies closer than 4 √n ε is a tie.

    Computed values of an n-fold tie spread by up to 12 ε (measured, float32, n from 3 to 300); the bound is 7 ε to 69 ε
    there.
    """
    return 4 * math.sqrt(max(n, 1)) * float(np.finfo(dtype).eps)


def inverse_or_zero(gap: Array, least: Array) -> Array:
    """1/gap, and 0 where |gap| ≤ least; its derivatives do not square the gap first."""
    apart = jnp.abs(gap) > least
    return jnp.where(apart, divide(jnp.ones_like(gap), jnp.where(apart, gap, jnp.ones_like(gap))), jnp.zeros_like(gap))


def adjoint(x: Array) -> Array:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def product(*factors: Array) -> Array:
    result = factors[0]
    for factor in factors[1:]:
        result = jnp.matmul(result, factor, precision="highest")
    return result


def matrices(name: str, a: ArrayLike, square: bool) -> tuple[Array, jnp.dtype]:
    """A stack of matrices in a dtype that has factorisations, and the dtype of the result."""
    a = inexact(name, a, argument="a")[0]
    if a.ndim < 2 or (square and a.shape[-1] != a.shape[-2]):
        kind = "square matrices" if square else "matrices"
        raise ValueError(f"{name}: `a` must be {kind} in its last two axes, got shape {a.shape}.")
    return widened(a), a.dtype


def scale_of(a: Array) -> Array:
    """A power of two near the largest element of each matrix."""
    return power_of_two_near(jnp.max(jnp.abs(a), (-2, -1), initial=0))


def rounded(x: Array, dtype: jnp.dtype) -> Array:
    """x in the precision of `dtype`, real or complex as it is."""
    return x if jnp.iscomplexobj(x) else x.astype(jnp.finfo(dtype).dtype)
