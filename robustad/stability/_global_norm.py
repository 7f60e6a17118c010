r"""The norm of all elements of a pytree, which no order and no layout can change."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import batching

from robustad.stability import _exact_dot
from robustad.stability._operator import operator, varying_alike
from robustad.stability._reproducible import floating
from robustad.stability._reproducible_dot import reproducible_dot


def reproducible_global_norm(tree: Any) -> Array:
    r"""The Euclidean norm of all elements of a pytree: the same bits for every order of the elements and every
    division into leaves.

    .. math:: \sqrt{\sum_i x_i^2}

    `optax.global_norm` rounds every partial sum, overflows where a square does, from 1.8e19 in float32, and is 0
    below 1e-23.

    Args:
        tree: a pytree of arrays as for :func:`reproducible_sum`; they are promoted to one dtype. An array is a pytree too.

    Returns:
        A scalar of that dtype, within 1 ulp; 0 for no elements. NaN or infinity where an element is. It overflows
        only if the norm itself does. The sum of squares is exact, relative to the largest element (float64: terms
        below :math:`2^{-900}` of its square may be lost), and rounded before the root is taken.

    Derivatives of any order go through :func:`reproducible_dot`; the gradient at 0 is 0, the subgradient of least norm.

    >>> import jax.numpy as jnp
    >>> from robustad.stability import reproducible_global_norm
    >>> print(reproducible_global_norm({"w": jnp.array([3e20]), "b": jnp.array(4e20)}))
    5e+20
    """
    leaves = [floating("reproducible_global_norm", leaf, "tree") for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.zeros(())
    dtype = functools.reduce(jnp.promote_types, (leaf.dtype for leaf in leaves))
    return _norm(jnp.concatenate(varying_alike(*(leaf.astype(dtype).reshape(-1) for leaf in leaves))))


norm_p = operator("order_free_norm", lambda x, float64: _exact_dot.norms(x, float64), lambda x: (x.shape[:1], x.dtype))


def _batch(operands, dims):
    x = jnp.moveaxis(operands[0], dims[0], 0)
    return norm_p.bind(x.reshape(-1, x.shape[-1])).reshape(x.shape[:2]), 0


batching.primitive_batchers[norm_p] = _batch


@jax.custom_jvp
def _norm(x: Array) -> Array:
    return norm_p.bind(x[None])[0]


@_norm.defjvp
def _norm_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    norm = _norm(x)
    direction = jnp.where(norm == 0, jnp.zeros_like(x), x / jnp.where(norm == 0, jnp.ones_like(norm), norm))
    return norm, reproducible_dot(direction, t)
