"""The singular value decomposition, with derivatives that are finite at repeated and at zero singular values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from ._custom_jvp import custom_jvp
from ._gaps import adjoint, inverse_or_zero, matrices, product, rounded, scale_of, tie_tolerance


@custom_jvp
def _svd(a: Array) -> tuple[Array, Array, Array]:
    scale = scale_of(a)
    u, s, vh = lax.linalg.svd(a * (1 / scale)[..., None, None].astype(a.dtype), full_matrices=False)
    return u, s * scale[..., None], vh


@_svd.defjvp
def _svd_jvp(primals, tangents):
    u, s, vh = _svd(*primals)
    return (u, s, vh), svd_tangents(u, s, vh, *tangents)


def svd_tangents(u: Array, s: Array, vh: Array, t: Array) -> tuple[Array, Array, Array]:
    """Of the thin decomposition, for the tangent t of the matrix."""
    v = adjoint(vh)
    inside = product(adjoint(u), t, v)
    least = tie_tolerance(max(t.shape[-2:]), s.dtype) * jnp.max(s, -1, initial=0)[..., None, None]
    row, column = s[..., None, :], s[..., :, None]
    # Sum and difference of the rotations of u and v: each with its own denominator, no squares.
    both = (inverse_or_zero(row - column, least) * 0.5).astype(t.dtype) * (inside + adjoint(inside))
    apart = (inverse_or_zero(row + column, least) * 0.5).astype(t.dtype) * (inside - adjoint(inside))
    du, dv = product(u, both + apart), product(v, both - apart)
    inverse = inverse_or_zero(row, least).astype(t.dtype)
    rows, columns = t.shape[-2:]
    if rows > columns:
        du = du + (product(t, v) - product(u, inside)) * inverse
    if columns > rows:
        dv = dv + (product(adjoint(t), u) - product(v, adjoint(inside))) * inverse
    return du, jnp.diagonal(inside, axis1=-2, axis2=-1).real, adjoint(dv)


_compiled = jax.jit(_svd)


class SVDResult(NamedTuple):
    """As `jnp.linalg.svd` returns them."""

    U: Array
    S: Array
    Vh: Array


def svd(a: ArrayLike, full_matrices: bool = False) -> SVDResult:
    r"""The thin decomposition :math:`a = u s v^H`: s descending, k = min(m, n) columns of u and rows
    of vʰ.

    With :math:`P = u^H \dot a v` the rotations of u and v have the sum :math:`(P + P^H)_{ij}/(s_j - s_i)` and the
    difference :math:`(P - P^H)_{ij}/(s_j + s_i)`. `jnp.linalg.svd` divides by :math:`s_j^2 - s_i^2`: NaN at ties, and
    out of range for small matrices. Here an inverse is 0 where its denominator is a tie, :math:`\le 4 \sqrt{\max(m,
    n)}\, ε \max s`, and the motion that is not determined is the smallest. First derivatives are then exact for
    functions that do not depend on the basis of tied singular vectors: the nuclear norm at full rank, the norm of the
    product :math:`u s v^H`, singular values and vectors outside the tie. At a zero singular value, a kink, the
    derivative of s is that of the signed value :math:`u^H a v`, as in JAX. Second derivatives are finite.

    Args:
      a: real or complex matrices, shape (..., m, n), of any scale.
      full_matrices: must be False: the vectors of the null space have no derivative.

    Returns:
      `(U, S, Vh)` of shapes (..., m, k), (..., k), (..., k, n).

    Raises:
      ValueError: `a` has fewer than two axes, or `full_matrices` is True.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> def length(a):
    ...     u, s, vh = st.svd(a)
    ...     return st.norm((u * s) @ vh)
    >>> print(4 * jax.grad(length)(jnp.diag(jnp.array([2.0, 2.0, 2.0, 2.0]))).diagonal())
    [2. 2. 2. 2.]
    """
    if full_matrices:
        raise ValueError("svd: `full_matrices` must be False: the vectors of the null space have no derivative.")
    a, dtype = matrices("svd", a, square=False)
    u, s, vh = _compiled(a)
    return SVDResult(rounded(u, dtype), rounded(s, dtype), rounded(vh, dtype))
