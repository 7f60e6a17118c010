r"""The norm of all elements of a pytree, which no order and no layout can change."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robustad._jaxpr import varying_alike
from robustad.stability import _exact_dot
from robustad.stability._arguments import floating, wider
from robustad.stability._custom_jvp import custom_jvp
from robustad.stability._order_free import kernels
from robustad.stability._primitive import batch_first, linear_primitive
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
    parts = "Give both parts as leaves: `jax.tree.map(lambda z: (z.real, z.imag), tree)`."
    leaves = [floating("reproducible_global_norm", leaf, "tree", parts) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.zeros(())
    dtype = functools.reduce(wider, (leaf.dtype for leaf in leaves))
    return _norm_and_unit(jnp.concatenate(varying_alike(*(leaf.astype(dtype).reshape(-1) for leaf in leaves))))[0]


def _batch(size: int, operands, batch_axes) -> Array:
    (x,) = batch_first(size, operands, batch_axes)
    return _norms(x.reshape(x.shape[0] * x.shape[1], x.shape[2])).reshape(x.shape[:2])


_norms = linear_primitive(  # of the rows; its derivative is below
    "order_free_norm",
    kernels=kernels(_exact_dot.norms),
    shape=lambda x: x.sum(1),
    transposes={},
    batch=_batch,
)


@custom_jvp
def _norm_and_unit(x: Array) -> tuple[Array, Array]:
    """The norm, and x divided by it; 0 by 0 is 0."""
    norm = _norms(x[None])[0]
    return norm, x / jnp.where(norm == 0, jnp.ones_like(norm), norm)


@_norm_and_unit.defjvp
def _norm_and_unit_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    norm, unit = _norm_and_unit(x)
    along = reproducible_dot(unit, t)
    return (norm, unit), (along, (t - unit * along) / norm)
