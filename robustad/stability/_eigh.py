"""Eigenvalues and eigenvectors of Hermitian matrices, with derivatives that are finite at repeated eigenvalues."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from ._custom_jvp import custom_jvp
from ._gaps import adjoint, inverse_or_zero, matrices, product, rounded, scale_of, tie_tolerance


@custom_jvp
def _eigh(a: Array) -> tuple[Array, Array]:
    scale = scale_of(a)
    v, w = lax.linalg.eigh(a * (1 / scale)[..., None, None].astype(a.dtype), symmetrize_input=False)
    return w * scale[..., None], v


@_eigh.defjvp
def _eigh_jvp(primals, tangents):
    w, v = _eigh(*primals)
    return (w, v), eigh_tangents(w, v, *tangents)


def eigh_tangents(w: Array, v: Array, t: Array) -> tuple[Array, Array]:
    """Of the eigenvalues and eigenvectors, for the tangent t of the matrix."""
    inside = product(adjoint(v), t, v)
    least = tie_tolerance(v.shape[-1], w.dtype) * jnp.max(jnp.abs(w), -1, initial=0)
    mixing = inverse_or_zero(w[..., None, :] - w[..., :, None], least[..., None, None]).astype(v.dtype) * inside
    return jnp.diagonal(inside, axis1=-2, axis2=-1).real, product(v, mixing)


@jax.jit
def _symmetrized(a: Array) -> tuple[Array, Array]:
    return _eigh(0.5 * a + 0.5 * adjoint(a))


class EighResult(NamedTuple):
    """As `jnp.linalg.eigh` returns them."""

    eigenvalues: Array
    eigenvectors: Array


def eigh(a: ArrayLike) -> EighResult:
    r"""Ascending eigenvalues w and orthonormal eigenvectors v (columns) of Hermitian matrices, :math:`a v = v w`.

    With :math:`P = v^H \dot a v`,

    .. math:: \dot w = \operatorname{diag} P, \qquad \dot v = v (F \circ P), \quad F_{ij} = 1/(w_j - w_i) .

    `jnp.linalg.eigh` has F infinite at a repeated eigenvalue, and NaN as the derivative of everything. Here F is 0
    within a tie: :math:`|w_i - w_j| \le 4 \sqrt n \, ε \max |w|`, which is what the computed values of a tie spread by;
    the motion inside an eigenspace, which is not determined, is the smallest. First derivatives are then exact for
    functions that do not depend on the basis of a tied eigenspace: symmetric functions of its eigenvalues (their sum, a
    trace of f(a)), projections onto the whole of it, eigenvectors and eigenvalues outside it. They are not exact for
    :math:`v f(w) v^H` as a matrix, whose elements inside the tie need :math:`f'`, which the pair (w, v) does not know.
    Second derivatives are finite.

    Args:
      a: real symmetric or complex Hermitian matrices, shape (..., n, n), of any scale; only :math:`(a + a^H)/2` counts.

    Returns:
      `(eigenvalues, eigenvectors)` of shapes (..., n) and (..., n, n).

    Raises:
      ValueError: `a` is not square.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> a = jnp.diag(jnp.array([4.0, 1.0, 1.0]))
    >>> print(jax.grad(lambda a: st.eigh(a).eigenvalues[:2].sum())(a).diagonal())
    [0. 1. 1.]
    """
    a, dtype = matrices("eigh", a, square=True)
    w, v = _symmetrized(a)
    return EighResult(rounded(w, dtype), rounded(v, dtype))
