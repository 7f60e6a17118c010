"""The Cholesky factor, also of singular matrices, with finite derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from ._custom_jvp import custom_jvp
from ._gaps import adjoint, matrices, product, rounded
from ._over_leading_axes import over_leading_axes


def _diagonal(a: Array) -> Array:
    return jnp.diagonal(a, axis1=-2, axis2=-1).real


def _tolerance(a: Array) -> float:
    return a.shape[-1] * float(np.finfo(a.dtype).eps)


def _semidefinite(a: Array) -> Array:
    """Column by column; a pivot that is rounding error gives a zero column. NaN for an indefinite matrix.

    Elimination with a nearly singular leading block makes the rounding errors of what is left larger (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, theorem 10.14): a hundred times as large they are not yet called indefinite.
    """
    n = a.shape[-1]
    size = _diagonal(a)
    index = jnp.arange(n)

    def step(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, factor = state
        column = jnp.take(rest, j, axis=-1)
        pivot, own = jnp.take(column, j, axis=-1).real, jnp.take(size, j, axis=-1)
        live = pivot > _tolerance(a) * own
        error = 100 * _tolerance(a) * jnp.abs(own)
        # Of a semidefinite matrix |a_ij|² <= a_ii a_jj; here a_jj may be an error.
        bound = jnp.sqrt(jnp.abs(size)) * jnp.sqrt(error)[..., None]
        indefinite = ~live & jnp.any((jnp.abs(column) > bound) & (index > j), -1) | (pivot < -error)
        root = jnp.sqrt(jnp.where(live, pivot, jnp.ones_like(pivot)))[..., None]
        column = jnp.where((index >= j) & live[..., None], column / root.astype(a.dtype), jnp.zeros_like(column))
        column = jnp.where(indefinite[..., None] | jnp.isnan(pivot)[..., None], jnp.full_like(column, jnp.nan), column)
        rest = rest - column[..., :, None] * jnp.conj(column)[..., None, :]
        return rest, jnp.where(index == j, column[..., :, None], factor)

    factor = lax.fori_loop(0, n, step, (a, jnp.zeros_like(a)))[1]
    whole = jnp.any(jnp.isnan(factor), (-2, -1), keepdims=True)
    return jnp.tril(jnp.where(whole, jnp.full_like(factor, jnp.nan), factor))


def _factor(a: Array) -> Array:
    if 0 in a.shape:
        return a
    plain = lax.linalg.cholesky(a, symmetrize_input=False)
    definite = jnp.all(jnp.isfinite(plain), (-2, -1), keepdims=True)
    return lax.cond(jnp.all(definite), lambda: plain, lambda: jnp.where(definite, plain, _semidefinite(a)))


@custom_jvp
def _cholesky(a: Array) -> Array:
    return over_leading_axes(_factor)(a)


@_cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    (a,), (t,) = primals, tangents
    factor = _cholesky(a)
    pivots = jnp.square(_diagonal(factor))
    live = (pivots > _tolerance(a) * _diagonal(a)) | jnp.isnan(pivots)
    columns = live[..., None, :].astype(a.dtype)
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    whole = factor * columns + identity * (1 - columns)
    inner = lax.linalg.triangular_solve(whole, t, left_side=True, lower=True)
    inner = lax.linalg.triangular_solve(whole, inner, lower=True, transpose_a=True, conjugate_a=True)
    lower = jnp.tril(inner) - 0.5 * identity * inner
    return factor, product(whole, lower * columns)


@jax.jit
def _symmetrized(a: Array) -> Array:
    return _cholesky(0.5 * a + 0.5 * adjoint(a))


def cholesky(a: ArrayLike) -> Array:
    r"""The lower triangular L with :math:`a = L L^H`, also for a singular positive semidefinite matrix.

    :math:`\dot L = L \, Φ(L^{-1} \dot a L^{-H})`, where Φ takes the lower triangle with half of the diagonal. A pivot
    below :math:`n ε a_{jj}` is rounding error: `jnp.linalg.cholesky` gives NaN there, or a derivative that is noise.
    Here its column counts as zero in the derivative, which keeps the part that a matrix of that rank can follow and is
    otherwise of smallest norm: the true one is infinite there, like that of a square root at 0. NaN for an indefinite
    matrix: a negative element of the diagonal, or a pivot below :math:`-100 n ε a_{jj}`.

    Args:
      a: real symmetric or complex Hermitian matrices, shape (..., n, n); only :math:`(a + a^H)/2` counts.

    Returns:
      An array of the shape of `a`.

    Raises:
      ValueError: `a` is not square.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from robustad import stability as st
    >>> a = jnp.ones((2, 2))
    >>> print(st.cholesky(a), jax.grad(lambda a: st.cholesky(a)[0, 0])(a)[0])
    [[1. 0.]
     [1. 0.]] [0.5 0. ]
    """
    a, dtype = matrices("cholesky", a, square=True)
    return rounded(_symmetrized(a), dtype)
