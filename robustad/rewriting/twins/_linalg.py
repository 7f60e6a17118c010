"""Twins of matrix factorisations: finite at repeated and at zero values, exact for functions that do not see the basis.

The rules are those of `stability.eigh`, `svd` and `cholesky`, where they are derived; the values are the primitive's own.
"""

import functools
from collections.abc import Sequence

from jax import Array

from robustad._jaxpr import Equation, aval
from robustad.stability import _cholesky
from robustad.stability._custom_jvp import custom_jvp
from robustad.stability._eigh import eigh_tangents
from robustad.stability._svd import svd_tangents

from ._twin import Arrays, Bound, Entry, bound, in_float64


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _eigh(decompose: Bound, a: Array) -> tuple[Array, Array]:
    v, w = decompose(a)
    return v, w


@_eigh.defjvp
def _eigh_jvp(decompose: Bound, primals: Sequence[Array], tangents: Sequence[Array]):
    with in_float64(*primals):
        v, w = _eigh(decompose, *primals)
        w_step, v_step = eigh_tangents(w, v, *tangents)
        return (v, w), (v_step, w_step)


def _of_eigh(eqn: Equation) -> Arrays | None:
    n = aval(eqn.invars[0]).shape[-1]
    if eqn.params.get("subset_by_index") not in (None, (0, n)):
        return None  # JAX says that it has no derivative
    return lambda a: list(_eigh(bound(eqn), a))


@functools.partial(custom_jvp, nondiff_argnums=(0, 1))
def _svd(decompose: Bound, whole: Bound, a: Array) -> tuple[Array, ...]:
    return tuple(decompose(a))


@_svd.defjvp
def _svd_jvp(decompose: Bound, whole: Bound, primals: Sequence[Array], tangents: Sequence[Array]):
    with in_float64(*primals):
        outputs = _svd(decompose, whole, *primals)
        s, u, vh = outputs if len(outputs) == 3 else _svd(whole, whole, *primals)
        u_step, s_step, vh_step = svd_tangents(u, s, vh, *tangents)
        return outputs, (s_step, u_step, vh_step)[: len(outputs)]


def _of_svd(eqn: Equation) -> Arrays | None:
    params = eqn.params
    *_, rows, columns = aval(eqn.invars[0]).shape
    if params.get("subset_by_index") not in (None, (0, min(rows, columns))):
        return None
    if params["compute_uv"] and params["full_matrices"] and rows != columns:
        return None  # JAX says that the vectors of the null space have no derivative
    whole = Bound(eqn.primitive, tuple(sorted((dict(params) | {"compute_uv": True, "full_matrices": False}).items())))
    return lambda a: list(_svd(bound(eqn), whole, a))


def _of_cholesky(eqn: Equation) -> Arrays | None:
    return lambda a: [_cholesky._cholesky(a)]


TABLE: dict[str, Entry] = {
    "eigh": Entry("1/(wᵢ - wⱼ) is infinite at repeated eigenvalues: NaN everywhere", _of_eigh),
    "svd": Entry("1/(sᵢ² - sⱼ²) is infinite at repeated singular values, and leaves the range for small ones", _of_svd),
    "cholesky": Entry("a singular matrix has NaN, or a derivative that is noise", _of_cholesky),
}
